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
  bool may_be_nobodys = false;  ///< kept for a sequence that may share these cells: only its rows tell whether one does
};

/// The tokens of one sequence in a micro-batch.
struct batch_part {
  std::size_t stream = 0;
  std::int32_t last_cell = -1;          ///< of its sighting
  std::size_t forked_from = no_track;   ///< the track of the sequence that it goes on from, which may go on too
  std::vector<std::uint32_t> tokens{};  ///< their places in the micro-batch, ascending; several sequences may share some
};

/// The tokens of one micro-batch, in their order.
struct micro_batch {
  std::span<const std::int64_t> cells{};        ///< stream * cells of a stream + cell
  std::span<const llama_pos> positions{};       ///< empty: not known
  const ggml_tensor* mask = nullptr;            ///< [cells, tokens of a stream, 1, streams], f32 or f16, in host memory
  std::span<const llama_pos> begins{}, ends{};  ///< lowest and highest position of each sequence, with these tokens; or empty
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
    shifted_.assign(cells_ * streams_, false);
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

  /// Whether a stream holds one sequence at most.
  bool has_one_sequence() const { return streams_ > 1 || one_sequence_; }

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
    ends_.swap(ends_before_);
    begins_.assign(b.begins.begin(), b.begins.end()), ends_.assign(b.ends.begin(), b.ends.end());
    if (!readable) return forget(), false;
    const std::uint64_t before = count_;
    for (std::size_t i = 0; i < b.cells.size(); ++i) {
      const auto at = static_cast<std::size_t>(b.cells[i]);
      written_[at] = ++count_;
      position_[at] = i < b.positions.size() ? b.positions[i] : -1;
      shifted_[at] = false;
    }
    if (!one_sequence_) before_ = seen_;
    const auto each = static_cast<std::size_t>(tokens / streams);
    for (std::size_t s = 0; s < static_cast<std::size_t>(streams); ++s) note_stream(b, s, each, before);
    return true;
  }

  /// A context shift has been applied: cell i lies `by[i]` positions further. llama_memory_seq_div counts the other way round,
  /// and nothing tells it from llama_memory_seq_add.
  void shift(std::span<const std::int32_t> by) {
    for (std::size_t i = 0; i < by.size() && i < position_.size(); ++i)
      if (position_[i] >= 0 && by[i] != 0) position_[i] += by[i], shifted_[i] = true;
  }

  /// Whether the position of a cell has been worked out of a shift, so that it may be wrong.
  bool is_worked_out(std::size_t stream, std::int32_t cell) const { return shifted_[index(stream, cell)]; }

  /// Whether a sequence had these lowest and highest positions at the last micro-batch.
  bool spanned(llama_seq_id sequence, llama_pos begin, llama_pos end) const {
    const auto i = static_cast<std::size_t>(sequence);
    return i < ends_.size() && i < begins_.size() && begins_[i] == begin && ends_[i] == end;
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

  void set_position(std::size_t stream, std::int32_t cell, llama_pos position) {
    position_[index(stream, cell)] = position, shifted_[index(stream, cell)] = false;
  }

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

  /// Adds what has been found out in another way than by a graph, in place of earlier sightings of that sequence.
  sighting& replace(sighting s, bool only_one) {
    retain_sightings([&](const sighting& old) { return old.stream != s.stream || (!only_one && old.sequence != s.sequence); });
    return keep(std::move(s));
  }

  sighting& keep(sighting s) {
    s.time = count_;
    if (seen_.size() >= most_) {  // the oldest one goes at which no sequence ends
      const auto out = std::find_if(seen_.begin(), seen_.end(), [&](const sighting& old) { return ending_with(old) == 0; });
      seen_.erase(out != seen_.end() ? out : seen_.begin());
    }
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
    const auto position_of = [&](std::size_t t) { return position_[at(cells[t])]; };
    std::vector<bool> done(each, false), ends(each, false);
    const auto note_part = [&](std::size_t last, bool newest) {
      sighting seen;
      seen.stream = stream, seen.last_cell = local(cells[last]);
      const auto visible = row_of(b.mask, s, last);
      for (std::int32_t cell = 0; cell < static_cast<std::int32_t>(b.mask->ne[0]); ++cell)
        if (visible(cell)) seen.cells.push_back(cell);
      batch_part part;
      part.stream = stream, part.last_cell = seen.last_cell;
      for (std::size_t t = 0; t < each; ++t)
        if (t == last || (local(cells[t]) < b.mask->ne[0] && visible(local(cells[t])))) {
          done[t] = true;
          part.tokens.push_back(static_cast<std::uint32_t>(s * each + t));
        }
      ends[last] = true;
      part.forked_from = inherit(seen, before, newest);
      parts_.push_back(std::move(part));
      keep(std::move(seen));
    };
    while (true) {
      // The last token of a sequence sees all of its cells.
      std::size_t last = each;
      for (std::size_t t = 0; t < each; ++t)
        if (!done[t] && (last == each || position_of(t) >= position_of(last))) last = t;
      if (last == each) break;
      note_part(last, true);
    }
    // Tokens of several sequences, of which one goes on in this micro-batch: the others end here.
    for (std::size_t t = 0; t < each && may_share(); ++t)
      if (!ends[t] && moved_to(position_of(t)) > noted_at(position_of(t))) note_part(t, false);
  }

  std::size_t at(std::int64_t cell) const { return static_cast<std::size_t>(cell); }
  std::int32_t local(std::int64_t cell) const { return static_cast<std::int32_t>(at(cell) % cells_); }

  /// Whether sequences may have cells in common.
  bool may_share() const { return !has_one_sequence(); }

  llama_pos end_of(const sighting& s) const { return position(s.stream, s.last_cell); }

  /// How many sequences have their last token at this position.
  std::ptrdiff_t ending_at(llama_pos p) const { return p < 0 ? 0 : std::count(ends_.begin(), ends_.end(), p); }

  /// The same of the last position of a sighting.
  std::ptrdiff_t ending_with(const sighting& s) const { return ending_at(end_of(s)); }

  /// The only sequence that ends where this sighting does; -1: none, or several.
  llama_seq_id only_sequence_of(const sighting& s) const {
    if (!may_share() || ending_with(s) != 1) return -1;
    return static_cast<llama_seq_id>(std::find(ends_.begin(), ends_.end(), end_of(s)) - ends_.begin());
  }

  /// Whether a sequence is known to end at another position.
  bool ends_elsewhere(llama_seq_id sequence, llama_pos p) const {
    const auto i = static_cast<std::size_t>(sequence);
    return may_share() && sequence >= 0 && i < ends_.size() && ends_[i] != p;
  }

  /// Whether a sighting is known to be of a sequence that has gone on, or is no more.
  bool is_out_of_date(const sighting& s) const { return ends_elsewhere(s.sequence, end_of(s)); }

  /// How many sequences end at this position since the last micro-batch.
  std::ptrdiff_t moved_to(llama_pos p) const {
    std::ptrdiff_t n = 0;
    for (std::size_t s = 0; s < ends_.size(); ++s)
      n += ends_[s] == p && (s >= ends_before_.size() || ends_before_[s] != p) ? 1 : 0;
    return n;
  }

  /// Sightings of the last micro-batch that end at this position.
  std::ptrdiff_t noted_at(llama_pos p) const {
    return std::count_if(seen_.begin(), seen_.end(), [&](const sighting& s) { return s.time == count_ && end_of(s) == p; });
  }

  std::ptrdiff_t sightings_at(llama_pos p) const {
    return std::count_if(seen_.begin(), seen_.end(), [&](const sighting& s) { return end_of(s) == p && !is_out_of_date(s); });
  }

  /// Whether a sighting may be all that is known of another sequence than that of `now`.
  bool may_go_on(const sighting& s, const sighting& now) const {
    if (!may_share()) return false;
    const llama_pos p = end_of(s);
    const std::ptrdiff_t others = sightings_at(p) - (is_out_of_date(s) ? 0 : 1) + (end_of(now) == p ? 1 : 0);
    return ending_at(p) > others;
  }

  /// Earlier sightings of the same sequence go, and tell whose this one is: a sequence that has been decoded on holds the last
  /// token of before. So does a sequence that shared it: if one may do so still, the sighting stays. Returns the track that its
  /// own one begins with, if that may go on as well. `newest`: it is the last of some sequence, for certain.
  std::size_t inherit(sighting& now, std::uint64_t before, bool newest) {
    const auto contains = [&](std::int32_t cell) { return std::binary_search(now.cells.begin(), now.cells.end(), cell); };
    const auto last_written = [&](const sighting& s) { return written(s.stream, s.last_cell); };
    now.sequence = newest ? only_sequence_of(now) : -1;
    now.may_be_nobodys = !newest;
    const bool known = now.sequence >= 0;
    for (auto old = seen_.begin(); old != seen_.end();) {
      const bool earlier = old->stream == now.stream && contains(old->last_cell) && last_written(*old) <= before;
      const bool overwritten = old->stream == now.stream && last_written(*old) > old->time;
      const bool gone_on = earlier || (known && old->sequence == now.sequence);
      const bool stays = gone_on && may_go_on(*old, now);
      if (stays && (!known || old->sequence == now.sequence)) old->sequence = -1;
      if (stays && old->sequence < 0) old->may_be_nobodys = true;
      if (earlier && !stays && !known && newest) now.sequence = ends_elsewhere(old->sequence, end_of(now)) ? -1 : old->sequence;
      old = (gone_on && !stays) || overwritten ? seen_.erase(old) : old + 1;
    }
    if (one_sequence_) return no_track;
    const sighting* from = nullptr;
    for (const sighting& old : before_)  // a fork of a fork holds the last tokens of both
      if (old.stream == now.stream && contains(old.last_cell) && last_written(old) <= (std::min)(before, old.time) &&
          (from == nullptr || last_written(old) > last_written(*from)))
        from = &old;
    const bool goes_on = from != nullptr;
    if (from == nullptr) from = most_alike(now, before);  // its last tokens were taken back, or it is a fork of a part
    if (from == nullptr) {
      now.track = copied_[now.stream] != no_track ? std::exchange(copied_[now.stream], no_track) : new_track();
      return no_track;
    }
    const auto holder = std::find_if(seen_.begin(), seen_.end(), [&](const sighting& s) { return s.track == from->track; });
    if (!may_share() || (goes_on && holder == seen_.end())) {
      now.track = from->track;
      return no_track;
    }
    // Two parts go on from one sighting: which of them is whose, only their ends tell.
    if (holder != seen_.end() && holder->time == count_ && holder->sequence >= 0) holder->sequence = only_sequence_of(*holder);
    now.track = new_track();
    return from->track;
  }

  /// The earlier sighting that shares most cells with this one; of several the one with fewest others.
  const sighting* most_alike(const sighting& now, std::uint64_t before) const {
    const sighting* best = nullptr;
    std::ptrdiff_t most = 0;
    for (const sighting& old : before_) {
      if (old.stream != now.stream) continue;
      const std::ptrdiff_t n = std::count_if(old.cells.begin(), old.cells.end(), [&](std::int32_t cell) {
        return written(old.stream, cell) <= (std::min)(before, old.time) &&
               std::binary_search(now.cells.begin(), now.cells.end(), cell);
      });
      if (n > most || (n > 0 && n == most && old.cells.size() < best->cells.size())) best = &old, most = n;
    }
    return best;
  }

  std::size_t cells_ = 0, streams_ = 0, most_ = 4;
  std::uint64_t count_ = 0;
  std::vector<llama_pos> position_;     // by stream and cell; -1: not known
  std::vector<bool> shifted_;           // whether it has been worked out of a shift
  std::vector<std::uint64_t> written_;  // by stream and cell; 0: never
  std::vector<sighting> seen_;
  std::vector<sighting> before_;  // as they were before the micro-batch, if there may be several sequences
  bool one_sequence_ = true;
  std::size_t tracks_ = 0;
  std::vector<std::size_t> copied_;  // by stream
  std::vector<batch_part> parts_;
  std::vector<llama_pos> begins_, ends_, ends_before_;  // of each sequence, at the last micro-batch and at the one before
};

}  // namespace lagkv::inline LAGKV_ABI::llama
