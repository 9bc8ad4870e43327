// Part of lagkv (MIT). Which cells of a cache hold which tokens, as the graphs of a context show it: each micro-batch names the
// cells and positions of its tokens, and its mask the cells of their sequences.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include <ggml.h>
#include <llama.h>

#include <lagkv/view/range.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// What is recorded of a sequence from one sighting to the next is known by a number.
inline constexpr std::size_t no_track = ~std::size_t{0};

/// A token in a cell: what is written there later has another number.
struct cell_token {
  std::int32_t cell = -1;  ///< -1: not known
  std::uint64_t written = 0;
};

/// The cells of one sequence when its last token was decoded.
struct sighting {
  std::vector<std::int32_t> cells{};  ///< within the stream, ascending
  std::size_t stream = 0;
  std::int32_t last_cell = -1;  ///< of its last token
  llama_seq_id sequence = -1;   ///< whose it was found to be; -1: not known yet
  std::uint64_t time = 0;       ///< tokens that the cache had taken then
  std::size_t track = 0;        ///< that of its earlier sightings; 0 if the context has one sequence
};

/// The tokens of one sequence in a micro-batch.
struct batch_part {
  std::size_t stream = 0;
  std::int32_t last_cell = -1;          ///< of its sighting
  std::size_t forked_from = no_track;   ///< the track of the sequence that it goes on from, which may go on too
  std::vector<std::uint32_t> tokens{};  ///< their places in the micro-batch, ascending
};

/// The tokens of one micro-batch, in their order.
struct micro_batch {
  std::span<const std::int64_t> cells{};   ///< stream * cells of a stream + cell
  std::span<const llama_pos> positions{};  ///< empty: not known
  const ggml_tensor* mask = nullptr;       ///< [cells, tokens of a stream, 1, streams], f32 or f16, in host memory
};

class cell_table {
 public:
  /// All is forgotten if the size is another. `sequences`: how many there may be.
  void resize(std::size_t cells, std::size_t streams, std::size_t sequences) {
    most_ = 2 * sequences + 2, one_sequence_ = sequences == 1;
    if (cells == cells_ && streams == streams_) return;
    cells_ = cells, streams_ = streams;
    copied_.assign(streams, no_track);
    forget();
  }

  std::size_t cells() const { return cells_; }
  std::size_t streams() const { return streams_; }

  /// Tokens written so far: a cell was written later than another if its number is higher.
  std::uint64_t written() const { return count_; }
  std::uint64_t written(std::size_t stream, std::int32_t cell) const { return written_[index(stream, cell)]; }
  llama_pos position(std::size_t stream, std::int32_t cell) const { return position_[index(stream, cell)]; }

  /// Newest last.
  std::span<sighting> sightings() { return seen_; }
  std::span<const sighting> sightings() const { return seen_; }

  void forget() {
    seen_.clear();
    position_.assign(cells_ * streams_, -1);
    written_.assign(cells_ * streams_, 0);
  }

  cell_token token(std::size_t stream, std::int32_t cell) const { return {cell, written(stream, cell)}; }

  std::vector<cell_token> tokens(std::size_t stream, std::span<const std::int32_t> cells) const {
    std::vector<cell_token> all;
    for (const std::int32_t cell : cells) all.push_back(token(stream, cell));
    return all;
  }

  std::vector<llama_pos> positions(std::size_t stream, std::span<const std::int32_t> cells) const {
    std::vector<llama_pos> all;
    for (const std::int32_t cell : cells) all.push_back(position(stream, cell));
    return all;
  }

  /// What the last micro-batch brought to each sequence.
  std::span<const batch_part> parts() const { return parts_; }

  /// A micro-batch has come that cannot be seen.
  void lose_parts() { parts_.clear(); }

  /// The sighting that a part has led to.
  sighting* seen_in(const batch_part& part) {
    for (auto s = seen_.rbegin(); s != seen_.rend(); ++s)
      if (s->stream == part.stream && s->last_cell == part.last_cell) return &*s;
    return nullptr;
  }

  std::size_t new_track() { return one_sequence_ ? 0 : ++tracks_; }

  /// The host has copied what this sighting shows to another stream: what comes next in it is of this track.
  void copied(const sighting& s, std::size_t stream, std::size_t track) {
    if (stream >= streams_) return;
    copied_[stream] = track;
    for (const std::int32_t cell : s.cells) set_position(stream, cell, position(s.stream, cell));
  }

  /// Whether a sequence has this track, or will have it.
  bool has(std::size_t track) const {
    return std::find(copied_.begin(), copied_.end(), track) != copied_.end() ||
           std::any_of(seen_.begin(), seen_.end(), [&](const sighting& s) { return s.track == track; });
  }

  /// False if it cannot be read; then nothing is known any more.
  bool note(const micro_batch& b) {
    const auto tokens = static_cast<std::int64_t>(b.cells.size()), streams = b.mask->ne[3];
    const bool readable =
        tokens > 0 && streams > 0 && tokens % streams == 0 && b.mask->ne[1] >= tokens / streams &&
        b.mask->ne[0] <= static_cast<std::int64_t>(cells_) && (b.mask->type == GGML_TYPE_F32 || b.mask->type == GGML_TYPE_F16) &&
        std::all_of(b.cells.begin(), b.cells.end(),
                    [&](std::int64_t cell) { return cell >= 0 && cell < static_cast<std::int64_t>(position_.size()); });
    parts_.clear();
    if (!readable) return forget(), false;
    const std::uint64_t before = count_;
    for (std::size_t i = 0; i < b.cells.size(); ++i) {
      const auto at = static_cast<std::size_t>(b.cells[i]);
      written_[at] = ++count_;
      position_[at] = i < b.positions.size() ? b.positions[i] : -1;
    }
    if (!one_sequence_) before_ = seen_;
    const auto each = static_cast<std::size_t>(tokens / streams);
    for (std::size_t s = 0; s < static_cast<std::size_t>(streams); ++s) note_stream(b, s, each, before);
    return true;
  }

  /// A context shift has been applied: cell i lies `by[i]` positions further.
  void shift(std::span<const std::int32_t> by) {
    for (std::size_t i = 0; i < by.size() && i < position_.size(); ++i)
      if (position_[i] >= 0) position_[i] += by[i];
  }

  std::vector<std::int32_t> rows(const sighting& s) const { return rows(s.stream, s.cells); }

  /// Cells in the order of their tokens: by position, and where that is the same by the time of writing.
  std::vector<std::int32_t> rows(std::size_t stream, std::vector<std::int32_t> all) const {
    const auto key = [&](std::int32_t cell) {
      const std::size_t i = index(stream, cell);
      return std::pair(position_[i], written_[i]);
    };
    const auto earlier = [&](std::int32_t a, std::int32_t b) { return key(a) < key(b); };
    if (!std::is_sorted(all.begin(), all.end(), earlier)) std::sort(all.begin(), all.end(), earlier);
    return all;
  }

  /// Sightings that do not hold any more go, and with them what is known of all cells but those of the others.
  template <class Holds>
  void retain(const Holds& holds) {
    retain_sightings(holds);
    std::vector<llama_pos> known(position_.size(), -1);
    for (const sighting& s : seen_)
      for (const std::int32_t cell : s.cells) known[index(s.stream, cell)] = position(s.stream, cell);
    position_ = std::move(known);
  }

  void set_position(std::size_t stream, std::int32_t cell, llama_pos position) { position_[index(stream, cell)] = position; }

  /// Whether it is of so many cells, of which the last token is at this position.
  bool is_of(const sighting& s, std::size_t cells, llama_pos last) const {
    return s.cells.size() == cells && position(s.stream, s.last_cell) == last;
  }

  /// Whether the positions of all its cells are known.
  bool known(const sighting& s) const {
    return std::all_of(s.cells.begin(), s.cells.end(), [&](std::int32_t cell) { return position(s.stream, cell) >= 0; });
  }

  /// Cells of a sighting whose tokens came in another way than by a graph.
  std::vector<std::int32_t> unknown(const sighting& s) const {
    std::vector<std::int32_t> cells;
    for (const std::int32_t cell : s.cells)
      if (position(s.stream, cell) < 0) cells.push_back(cell);
    return cells;
  }

  /// While sequences share cells, a sequence that is decoded on cannot be told from a fork of it: whose a sighting is must be
  /// found out anew.
  void forked(bool yes) {
    forked_ = yes;
    for (sighting& s : seen_)
      if (yes) s.sequence = -1;
  }

  /// Adds what has been found out in another way than by a graph, in place of earlier sightings of that sequence.
  sighting& replace(sighting s, bool only_one) {
    retain_sightings([&](const sighting& old) { return old.stream != s.stream || (!only_one && old.sequence != s.sequence); });
    return keep(std::move(s));
  }

  sighting& keep(sighting s) {
    s.time = count_;
    if (seen_.size() >= most_) seen_.erase(seen_.begin());
    seen_.push_back(std::move(s));
    return seen_.back();
  }

 private:
  /// Who is asked may compare a sighting with the others: none goes before all have been asked about.
  template <class Holds>
  void retain_sightings(const Holds& holds) {
    std::vector<bool> stays;
    for (const sighting& s : seen_) stays.push_back(holds(s));
    std::size_t left = 0;
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      if (!stays[i]) continue;
      if (left != i) seen_[left] = std::move(seen_[i]);
      ++left;
    }
    seen_.resize(left);
  }

  std::size_t index(std::size_t stream, std::int32_t cell) const { return stream * cells_ + static_cast<std::size_t>(cell); }

  /// Whether the token at `row` sees a cell: the mask is -infinity where it does not.
  static auto row_of(const ggml_tensor* mask, std::size_t stream, std::size_t row) {
    const char* data = static_cast<const char*>(mask->data) + stream * mask->nb[3] + row * mask->nb[1];
    const bool half = mask->type == GGML_TYPE_F16;
    return [data, half](std::int32_t cell) {
      if (half) {
        std::uint16_t x = 0;
        std::memcpy(&x, data + sizeof x * static_cast<std::size_t>(cell), sizeof x);
        return x != 0xfc00;
      }
      std::uint32_t x = 0;
      std::memcpy(&x, data + sizeof x * static_cast<std::size_t>(cell), sizeof x);
      return x != 0xff800000;
    };
  }

  void note_stream(const micro_batch& b, std::size_t s, std::size_t each, std::uint64_t before) {
    const std::span<const std::int64_t> cells = b.cells.subspan(s * each, each);
    const auto stream = static_cast<std::size_t>(cells[0]) / cells_;
    std::vector<bool> done(each, false);
    for (std::size_t left = each; left > 0;) {
      // The last token of a sequence sees all of its cells.
      std::size_t last = each;
      for (std::size_t t = 0; t < each; ++t)
        if (!done[t] && (last == each || position_[at(cells[t])] >= position_[at(cells[last])])) last = t;
      sighting seen;
      seen.stream = stream, seen.last_cell = local(cells[last]);
      const auto visible = row_of(b.mask, s, last);
      for (std::int32_t cell = 0; cell < static_cast<std::int32_t>(b.mask->ne[0]); ++cell)
        if (visible(cell)) seen.cells.push_back(cell);
      batch_part part;
      part.stream = stream, part.last_cell = seen.last_cell;
      for (std::size_t t = 0; t < each; ++t)
        if (!done[t] && (t == last || (local(cells[t]) < b.mask->ne[0] && visible(local(cells[t]))))) {
          done[t] = true, --left;
          part.tokens.push_back(static_cast<std::uint32_t>(s * each + t));
        }
      part.forked_from = inherit(seen, before);
      parts_.push_back(std::move(part));
      keep(std::move(seen));
    }
  }

  std::size_t at(std::int64_t cell) const { return static_cast<std::size_t>(cell); }
  std::int32_t local(std::int64_t cell) const { return static_cast<std::int32_t>(at(cell) % cells_); }

  /// Earlier sightings of the same sequence go, and tell whose this one is: a sequence that has been decoded on holds the last
  /// token of before. So does a fork of it; that is found out by whoever asks for the sequence. Returns the track that its own
  /// one begins with, if that may go on as well.
  std::size_t inherit(sighting& now, std::uint64_t before) {
    const auto contains = [&](std::int32_t cell) { return std::binary_search(now.cells.begin(), now.cells.end(), cell); };
    const auto last_written = [&](const sighting& s) { return written(s.stream, s.last_cell); };
    for (auto old = seen_.begin(); old != seen_.end();) {
      // Of this sequence, or, where sequences share cells, of one that it was forked from.
      const bool earlier = !forked_ && old->stream == now.stream && contains(old->last_cell) && last_written(*old) <= before;
      const bool overwritten = old->stream == now.stream && last_written(*old) > old->time;
      if (earlier) now.sequence = old->sequence;
      old = earlier || overwritten ? seen_.erase(old) : old + 1;
    }
    if (one_sequence_) return no_track;
    const sighting* from = nullptr;
    for (const sighting& old : before_)  // a fork of a fork holds the last tokens of both
      if (old.stream == now.stream && contains(old.last_cell) && last_written(old) <= (std::min)(before, old.time) &&
          (from == nullptr || last_written(old) > last_written(*from)))
        from = &old;
    // Its last tokens may have been taken back: then they share others.
    for (auto old = before_.begin(); old != before_.end() && from == nullptr; ++old)
      if (old->stream == now.stream && std::any_of(old->cells.begin(), old->cells.end(), [&](std::int32_t cell) {
            return written(old->stream, cell) <= (std::min)(before, old->time) && contains(cell);
          }))
        from = &*old;
    if (from != nullptr && !forked_) {
      now.track = from->track;
      return no_track;
    }
    now.track = from == nullptr && copied_[now.stream] != no_track ? std::exchange(copied_[now.stream], no_track) : new_track();
    return from != nullptr ? from->track : no_track;
  }

  std::size_t cells_ = 0, streams_ = 0, most_ = 4;
  std::uint64_t count_ = 0;
  std::vector<llama_pos> position_;     // by stream and cell; -1: not known
  std::vector<std::uint64_t> written_;  // by stream and cell; 0: never
  std::vector<sighting> seen_;
  std::vector<sighting> before_;  // as they were before the micro-batch, if there may be several sequences
  bool forked_ = false, one_sequence_ = true;
  std::size_t tracks_ = 0;
  std::vector<std::size_t> copied_;  // by stream
  std::vector<batch_part> parts_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
