// Part of lagkv (MIT). Where the rows of a sequence lie. The graphs of a context show it (cells.hpp) at no cost; where they leave
// a doubt llama.cpp is asked how many cells a sequence has, and at last its state is compared with the cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/match.hpp>
#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/recorder.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/sizes.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Where the rows of a sequence were seen; until whereabouts moves on.
struct seen_rows {
  sighting* seen = nullptr;
  std::vector<std::int32_t> fewer{};  ///< if tokens seem to have been taken back since: the cells of the others, ascending

  std::span<const std::int32_t> cells() const { return fewer.empty() ? seen->cells : fewer; }
};

/// Rows that lie certainly there, in the order of tokens.
struct certain_rows {
  sighting* seen = nullptr;
  std::vector<std::int32_t> cells{};
  std::vector<llama_pos> positions{};  ///< of the cells
};

class whereabouts {
 public:
  whereabouts(llama_context* context, cache_probe* probe)
      : context_(context), memory_(llama_get_memory(context)), probe_(probe), states_(context) {
    look_anew();
  }

  sequence_states& states() { return states_; }
  const sequence_states& states() const { return states_; }

  /// llama.cpp may have been at work since: what was counted is counted again.
  void look_anew() { waits_.clear(), counts_.assign(llama_n_seq_max(context_), std::nullopt); }

  bool has_probe() const { return probe_ != nullptr; }

  /// Whether graphs show where rows lie.
  bool sees() const { return has_probe() && probe_->obstacle().empty(); }

  /// Which of the caches that have been seen is that of the layers with full attention: the one that comes first in a state.
  status find_base(llama_seq_id sequence) {
    const auto caches = probe_->caches();
    if (caches.empty()) return error{"nothing has been decoded yet"};
    if (knows_base()) return {};
    if (!states_.have_other_memory()) {
      if (caches.size() > 1) return error{"the model has several caches: not taken"};
      base_ = 0;
      return {};
    }
    const result<read_state> read = states_.read(sequence);
    if (!read) return error{read.message()};
    for (std::size_t i = 0; i < caches.size(); ++i)
      for (const sighting& s : caches[i].table.sightings())
        if (!cells_of(read->saved, caches[i], s).empty()) {
          probe_->set_recorded_cache(i);
          base_ = i;
          return {};
        }
    return error{"the cache of the layers with full attention has not been seen"};
  }

  /// The cache of the layers with full attention; null as long as it is not known.
  seen_cache* base() { return knows_base() ? &probe_->caches()[base_] : nullptr; }

  /// Tokens that the cache has taken so far.
  std::uint64_t written() const { return first_or_base() != nullptr ? first_or_base()->table.written() : 0; }

  // ---- rows ----

  /// By what the graphs have shown, which costs nothing; where that leaves a doubt, by what the cache holds. Needs a probe.
  result<seen_rows> find(llama_seq_id sequence, llama_pos last) {
    if (!probe_->obstacle().empty()) return error{probe_->obstacle()};
    if (status ok = find_base(sequence); !ok) return error{ok.message()};
    cell_table& table = base()->table;
    sighting* s = newest(sequence);
    if (s != nullptr && table.known(*s)) {
      if (table.position(s->stream, s->last_cell) == last) return seen_rows{s};
      // Tokens at the end have been taken back, or so it seems; what is due is made sure of.
      seen_rows rows{s};
      llama_pos found = -1;
      for (const std::int32_t cell : s->cells) {
        const llama_pos p = table.position(s->stream, cell);
        if (p <= last && table.written(s->stream, cell) <= s->time) rows.fewer.push_back(cell), found = (std::max)(found, p);
      }
      const result<std::size_t>& n = count(sequence);
      if (found == last && n && *n == rows.fewer.size()) return rows;
    }
    return identify(sequence, last);
  }

  /// Before rows move: all that is there is where it was seen, and no other sequence may be meant.
  result<seen_rows> make_sure(llama_seq_id sequence, llama_pos last, seen_rows rows) {
    const result<std::size_t>& n = count(sequence);
    if (!n) return error{n.message()};
    if (!agrees(sequence, last, rows)) return identify_by_content(sequence);
    const bool sure = rows.fewer.empty() && *n == rows.seen->cells.size() &&
                      (only_one() || (shared_cells() == 0 && (rows.seen->sequence == sequence || alike(*n, last) == 1)));
    if (sure) return rows;
    return identify(sequence, last);
  }

  /// Whether positions are what llama.cpp says, as far as it can be asked without a copy of the state. Those that have been
  /// worked out of a shift are not known for certain.
  bool agrees(llama_seq_id sequence, llama_pos last, const seen_rows& rows) {
    const cell_table& table = base()->table;
    llama_pos low = last, high = -1;
    for (const std::int32_t cell : rows.cells()) {
      if (table.is_worked_out(rows.seen->stream, cell)) return false;
      const llama_pos p = table.position(rows.seen->stream, cell);
      low = (std::min)(low, p), high = (std::max)(high, p);
    }
    // Where there is other memory, it is asked for the lowest one.
    return high == last && (states_.have_other_memory() || low == llama_memory_seq_pos_min(memory_, sequence));
  }

  /// Whether no other sequence has one of these cells, or waits for a copy of its stream.
  status is_alone(llama_seq_id sequence, const seen_rows& rows) {
    const cell_table& table = base()->table;
    const bool streams = table.streams() > 1;
    if (!streams && shared_cells() == 0) return {};
    for (const llama_seq_id other : others(sequence)) {
      bool seen = false;
      for (const sighting& s : table.sightings()) {
        if (&s == rows.seen || s.stream != stream_of(other) || !looks_like(other, s)) continue;
        if (!streams && overlap(s, *rows.seen)) return shares(other);
        seen = seen || streams || s.sequence == other;
      }
      if (streams && !seen)
        return error{"sequence " + std::to_string(other) + " may wait for a copy of this one: decode a token of it first"};
      if (!streams && !seen) return shares(other);
    }
    return {};
  }

  certain_rows in_order(const seen_rows& rows) const {
    const cell_table& table = probe_->caches()[base_].table;
    const std::size_t stream = rows.seen->stream;
    certain_rows r{rows.seen, table.rows(stream, {rows.cells().begin(), rows.cells().end()}), {}};
    r.positions = table.positions(stream, r.cells);
    return r;
  }

  /// Whether llama.cpp may have a copy still to make between sequences that have each a part of the cache: the rows of the new
  /// one are not there yet.
  bool waits_for_copy() { return has_streams() && copied_at_ == written(); }

  /// Whether all that the host has asked of llama.cpp has been done; find() sees what has not.
  status waits_for_nothing(llama_seq_id sequence) {
    if (waits_for_copy()) waits_ = copy_waits;
    if (waits_.empty()) return {};
    return error{"sequence " + std::to_string(sequence) + ": " + waits_};
  }

  // ---- room ----

  /// Whether sequences may have cells in common, in a cache that has been seen.
  bool may_share() { return base() != nullptr && !only_one(); }

  /// Cells that all sequences have together. Only if may_share().
  occupancy occupied() {
    std::size_t rows = 0;
    for (llama_seq_id s = 0; s < sequences(); ++s)
      if (last_of(s) >= 0 && count(s)) rows += *count(s);
    return states_.occupied(*base(), rows);
  }

  // ---- what the host, or a repack, has done to a sequence ----

  /// It has copied a sequence, whose recording is of this track, or a part of it, to another one. Returns the track of that one;
  /// no_track where its rows are to be seen first.
  std::size_t copied(llama_seq_id from, llama_seq_id to, std::size_t track) {
    lose_sight_of(to);
    copied_at_ = written();
    if (probe_ == nullptr || !probe_->what().any() || !find_base(from)) return no_track;
    if (!has_streams()) return note_part_of(from, to), no_track;
    cell_table& table = base()->table;
    const sighting* s = newest(from);
    const std::size_t of_copy = table.new_track();
    base()->attention.copy(s != nullptr ? s->track : track, of_copy, table, static_cast<std::size_t>(to));
    if (s != nullptr)
      table.copied(*s, static_cast<std::size_t>(to), of_copy);
    else
      probe_->expect_copy(from, to, static_cast<std::size_t>(to), of_copy);
    return of_copy;
  }

  /// This sequence is about to change, or has changed: what is recorded of others must not be mistaken for its own. Each one that
  /// is in doubt is looked for in the cache, which costs a copy of its state. Returns the tracks of those that were found.
  std::vector<std::size_t> tell_apart(llama_seq_id sequence) {
    std::vector<std::size_t> found;
    if (!records_several()) return found;
    for (const llama_seq_id other : others(sequence))
      if (!is_seen(other))
        if (const sighting* s = identify_recorded(other)) found.push_back(s->track);
    return found;
  }

  /// What is recorded of a sequence whose rows are known by their contents alone; no_track where nothing is.
  std::size_t track_by_content(llama_seq_id sequence) {
    if (!records_several()) return no_track;
    sighting* s = identify_recorded(sequence);
    if (s == nullptr) return no_track;
    const certain_rows rows = in_order({s, {}});
    if (recording* r = recorded(s->track)) r->follow(base()->table.tokens(s->stream, rows.cells), rows.positions);
    return s->track;
  }

  /// The sequence lies elsewhere now, in cells that may have been others'. Of other sequences what certainly holds is kept.
  void lose_sight_of(llama_seq_id sequence) {
    look_anew();
    if (probe_ == nullptr) return;
    for (const llama_seq_id other : others(sequence))
      if (knows_base() || find_base(other)) break;
    const std::vector<std::size_t> found = tell_apart(sequence);
    for (seen_cache& cache : probe_->caches()) {
      const bool is_base = knows_base() && &cache == base();
      cache.table.retain([&](const sighting& s) {
        return is_base && (std::find(found.begin(), found.end(), s.track) != found.end() || is_of_another_still(sequence, s));
      });
    }
  }

  /// Its rows have been put somewhere, and their recording is of this track: they are found now, or by the next graph.
  void expect(llama_seq_id sequence, const saved_sequence& saved, std::size_t track) {
    if (probe_ == nullptr) return;
    track = track_of(track);
    if (first_or_base() != nullptr && probe_->obstacle().empty() && place(sequence, saved, *first_or_base(), track)) return;
    const std::size_t stream = first_or_base() != nullptr ? stream_of(first_or_base()->table, sequence) : 0;
    probe_->expect(expected(sequence, saved, knows_base() ? base_ : 0, stream, track));
  }

  // ---- recordings ----

  /// What has been recorded of a track; null if nothing has.
  recording* recorded(std::size_t track) const {
    const bool any = probe_ != nullptr && probe_->what().any();
    return any ? attention().find(track_of(track)) : nullptr;
  }

  /// A track that begins with this recording; no_track where there can be none.
  std::size_t new_track(recording r) {
    if (probe_ == nullptr) return no_track;
    const std::size_t track = first_or_base() != nullptr ? first_or_base()->table.new_track() : no_track;
    if (track_of(track) != no_track) attention().put(track_of(track), std::move(r));
    return track;
  }

 private:
  static constexpr std::size_t unknown = ~std::size_t{0};
  static constexpr const char* copy_waits = "a copied sequence has not been moved to its stream yet: decode a token first";

  bool knows_base() const { return probe_ != nullptr && base_ < probe_->caches().size(); }

  /// That of the layers with full attention, until it is known the first one; null as long as none has been seen.
  seen_cache* first_or_base() const {
    if (probe_ == nullptr || probe_->caches().empty()) return nullptr;
    return &probe_->caches()[knows_base() ? base_ : 0];
  }

  // ---- what llama.cpp says ----

  llama_seq_id sequences() const { return static_cast<llama_seq_id>(llama_n_seq_max(context_)); }

  /// Position of its last token; -1: it is empty.
  llama_pos last_of(llama_seq_id sequence) const { return llama_memory_seq_pos_max(memory_, sequence); }

  /// Those that hold something.
  std::vector<llama_seq_id> others(llama_seq_id sequence) const {
    std::vector<llama_seq_id> all;
    for (llama_seq_id s = 0; s < sequences(); ++s)
      if (s != sequence && last_of(s) >= 0) all.push_back(s);
    return all;
  }

  /// Its cells; counted once from one look_anew() to the next.
  const result<std::size_t>& count(llama_seq_id sequence) {
    auto& counted = counts_[static_cast<std::size_t>(sequence)];
    if (!counted) counted = states_.count(sequence, *base());
    return *counted;
  }

  /// Whether several sequences may have recordings, which must be kept apart.
  bool records_several() { return base() != nullptr && !only_one() && probe_->what().any(); }

  std::size_t shared_cells() {
    if (only_one()) return 0;
    return occupied().shared();
  }

  static error shares(llama_seq_id other) { return {"sequence " + std::to_string(other) + " may share its cells"}; }

  // ---- sightings ----

  /// What records attention to the layers with full attention.
  recorder& attention() const { return first_or_base() != nullptr ? first_or_base()->attention : probe_->attention(); }

  /// That of a context's only sequence is 0, seen or not.
  std::size_t track_of(std::size_t track) const { return sequences() == 1 ? 0 : track; }

  /// Whether each sequence has a part of the cache of its own.
  bool has_streams() { return base() != nullptr && base()->table.streams() > 1; }

  static std::size_t stream_of(const cell_table& table, llama_seq_id sequence) {
    return table.streams() > 1 ? static_cast<std::size_t>(sequence) : 0;
  }
  std::size_t stream_of(llama_seq_id sequence) { return stream_of(base()->table, sequence); }

  /// Whether no other sequence can be in the same stream.
  bool only_one(const cell_table& table) const { return table.streams() > 1 || sequences() == 1; }
  bool only_one() { return only_one(base()->table); }

  /// The last sighting that is certainly of this sequence; null where a later one may be.
  sighting* newest(llama_seq_id sequence) {
    const auto all = base()->table.sightings();
    for (auto s = all.rbegin(); s != all.rend(); ++s) {
      if (s->stream != stream_of(sequence)) continue;
      if (only_one() || s->sequence == sequence) return &*s;
      if (s->sequence < 0) return nullptr;
    }
    return nullptr;
  }

  /// How many sightings are of so many cells up to this position.
  std::size_t alike(std::size_t cells, llama_pos last) {
    const cell_table& table = base()->table;
    std::size_t n = 0;
    for (const sighting& s : table.sightings()) n += table.is_of(s, cells, last) ? 1U : 0U;
    return n;
  }

  /// Whether a sequence has as many cells as a sighting, up to the same position.
  bool looks_like(llama_seq_id sequence, const sighting& s) {
    const cell_table& table = base()->table;
    const llama_pos last = last_of(sequence);
    if (last < 0 || last != table.position(s.stream, s.last_cell)) return false;
    const result<std::size_t>& n = count(sequence);
    return n && table.is_of(s, *n, last);
  }

  /// Sequences that look like a sighting.
  std::vector<llama_seq_id> like(const sighting& s) {
    std::vector<llama_seq_id> all;
    for (llama_seq_id t = 0; t < sequences(); ++t)
      if (looks_like(t, s)) all.push_back(t);
    return all;
  }

  /// Sightings that look like this one, and it.
  std::size_t alike(const sighting& s) { return alike(s.cells.size(), base()->table.position(s.stream, s.last_cell)); }

  static bool overlap(const sighting& a, const sighting& b) {
    return a.stream == b.stream && std::any_of(a.cells.begin(), a.cells.end(), [&](std::int32_t cell) {
             return std::binary_search(b.cells.begin(), b.cells.end(), cell);
           });
  }

  /// Whether a sighting may be that of another sequence, which may hold the same rows.
  bool may_be_anothers(llama_seq_id sequence, const sighting& s) {
    if (only_one() || (s.sequence == sequence && looks_like(sequence, s))) return false;
    for (const sighting& later : base()->table.sightings())  // it is out of date, or another sequence shares its cells
      if (later.time > s.time && overlap(later, s)) return true;
    if (s.sequence >= 0) return s.sequence != sequence;
    const std::vector<llama_seq_id> all = like(s);
    return std::find(all.begin(), all.end(), sequence) == all.end() || alike(s) < all.size();
  }

  /// Whether a sighting is that of another sequence than this one, which has just lost its own. One that is not known to be
  /// anybody's is, if another sequence for each that looks like it looks like it, too.
  bool is_of_another_still(llama_seq_id sequence, const sighting& s) {
    const llama_seq_id whose = has_streams() ? static_cast<llama_seq_id>(s.stream) : s.sequence;
    if (whose >= 0) return whose != sequence && looks_like(whose, s);
    if (s.may_be_nobodys) return false;
    std::vector<llama_seq_id> all = like(s);
    all.erase(std::remove(all.begin(), all.end(), sequence), all.end());
    return !all.empty() && all.size() >= alike(s);
  }

  /// Whether a sighting is certainly that of this sequence alone, and still holds.
  bool is_seen(llama_seq_id sequence) {
    const auto all = base()->table.sightings();
    return std::any_of(all.begin(), all.end(),
                       [&](const sighting& s) { return s.sequence == sequence && looks_like(sequence, s) && !is_overlapped(s); });
  }

  /// Whether another sighting, of the same time or later, has some of its cells.
  bool is_overlapped(const sighting& s) {
    const auto all = base()->table.sightings();
    return std::any_of(all.begin(), all.end(),
                       [&](const sighting& other) { return &other != &s && other.time >= s.time && overlap(other, s); });
  }

  // ---- where nothing else tells ----

  result<seen_rows> identify(llama_seq_id sequence, llama_pos last) {
    if (waits_for_copy()) return error{copy_waits};  // its stream holds other rows still
    cell_table& table = base()->table;
    const result<std::size_t>& n = count(sequence);
    if (!n) return error{n.message()};
    if (alike(*n, last) == 1 && shared_cells() == 0)
      for (sighting& s : table.sightings())
        if (s.stream == stream_of(sequence) && table.is_of(s, *n, last) && table.known(s) && is_nobody_elses(sequence, s) &&
            agrees(sequence, last, seen_rows{&s})) {
          s.sequence = sequence;
          return seen_rows{&s};
        }
    return identify_by_content(sequence);
  }

  /// Whether a sighting that looks like a sequence is its own. One of another sequence may look like it by chance, where a shift
  /// waits: if it has one of its own, or the other one looks like it, too, only the rows tell.
  bool is_nobody_elses(llama_seq_id sequence, const sighting& s) {
    if (only_one() || s.sequence == sequence) return true;
    const auto all = base()->table.sightings();
    const bool has_own = std::any_of(all.begin(), all.end(), [&](const sighting& own) { return own.sequence == sequence; });
    return s.sequence < 0 && !has_own && like(s).size() == 1 && !s.may_be_nobodys && !is_overlapped(s);
  }

  /// Gives a sequence a sighting of its own, with what has been recorded of its rows, if they are found by their contents; null
  /// if not.
  sighting* identify_recorded(llama_seq_id sequence) {
    seen_cache& c = *base();
    const result<read_state> read = states_.read(sequence);
    if (!read) return nullptr;
    const sighting* best = nullptr;  // that of fewest others
    std::vector<std::int32_t> rows;
    for (const sighting& s : c.table.sightings()) {
      std::vector<std::int32_t> cells = cells_of(read->saved, c, s);
      if (cells.empty()) continue;
      if (best != nullptr && cells != rows) return nullptr;
      if (best == nullptr || s.cells.size() < best->cells.size()) best = &s;
      rows = std::move(cells);
    }
    if (best == nullptr) return nullptr;
    sighting own{.last_cell = rows.back(), .sequence = sequence, .track = best->track};
    if (best->sequence != sequence) {
      own.track = c.table.new_track();
      if (const recording* r = c.attention.find(best->track)) c.attention.put(own.track, *r);
    }
    if (!is_shifted(sequence, rows, read->saved))  // a shift that waits will move the positions that have been seen
      for (std::size_t row = 0; row < rows.size(); ++row) c.table.set_position(0, rows[row], read->saved.positions()[row]);
    own.cells = std::move(rows);
    std::sort(own.cells.begin(), own.cells.end());
    return &c.table.replace(std::move(own), false);
  }

  /// A part of a sequence has been copied to another one, which held nothing: what has been recorded of it is its own from now
  /// on.
  void note_part_of(llama_seq_id from, llama_seq_id to) {
    cell_table& table = base()->table;
    const sighting* s = newest(from);
    const llama_pos last = last_of(to);
    if (s == nullptr || !looks_like(from, *s) || last < 0 || last == last_of(from)) return;
    sighting part{.stream = s->stream, .sequence = to};
    for (const std::int32_t cell : s->cells) {
      const llama_pos p = table.position(s->stream, cell);
      if (p < llama_memory_seq_pos_min(memory_, to) || p > last) continue;
      part.cells.push_back(cell);
      if (p == last) part.last_cell = cell;
    }
    const result<std::size_t>& n = count(to);
    if (!n || *n != part.cells.size() || part.last_cell < 0) return;
    part.track = table.new_track();
    if (const recording* r = base()->attention.find(s->track)) base()->attention.put(part.track, *r);
    table.keep(std::move(part));
  }

  /// Reads the sequence's state and looks for each of its rows in the cells that have been seen.
  result<seen_rows> identify_by_content(llama_seq_id sequence) {
    seen_cache& c = *base();
    const result<read_state> read = states_.read(sequence);
    if (!read) return error{read.message()};
    const std::size_t stream = stream_of(sequence);
    std::vector<std::int32_t> found;
    std::size_t track = no_track;
    for (const sighting& s : c.table.sightings()) {
      if (s.stream != stream || may_be_anothers(sequence, s)) continue;
      std::vector<std::int32_t> cells = cells_of(read->saved, c, s);
      if (cells.empty()) continue;
      if (!found.empty() && cells != found)
        return error{"several sequences hold the same rows: decode a token of this one first"};
      found = std::move(cells), track = s.track;
    }
    // Not found for certain: wherever its rows may be, a shift that waits must not be lost by a repack.
    for (const sighting& s : c.table.sightings())
      if (found.empty() && s.stream == stream && is_shifted(sequence, cells_of(read->saved, c, s), read->saved))
        return waits_for_shift();
    if (found.empty()) return error{"the cells of sequence " + std::to_string(sequence) + " have not been seen since it changed"};
    if (is_shifted(sequence, found, read->saved)) return waits_for_shift();
    return seen_rows{&found_at(sequence, c.table, std::move(found), read->saved.positions(), track)};
  }

  error waits_for_shift() {
    waits_ = "a context shift has not been applied yet: decode a token first";
    return {waits_};
  }

  /// Whether rows have other positions than their cells were seen with, because a shift waits. Positions that have been worked
  /// out of one that was applied may be wrong: they say nothing if the sequence begins and ends as at the last decode.
  bool is_shifted(llama_seq_id sequence, std::span<const std::int32_t> rows, const saved_sequence& saved) {
    const cell_table& table = base()->table;
    const std::size_t stream = stream_of(sequence);
    const bool same_span = table.spanned(sequence, llama_memory_seq_pos_min(memory_, sequence), last_of(sequence));
    for (std::size_t row = 0; row < rows.size(); ++row) {
      const llama_pos seen = table.position(stream, rows[row]);
      if (seen >= 0 && seen != saved.positions()[row] && !(same_span && table.is_worked_out(stream, rows[row]))) return true;
    }
    return false;
  }

  /// A sequence whose rows, in the order of tokens, lie in these cells.
  sighting& found_at(llama_seq_id sequence, cell_table& table, std::vector<std::int32_t> rows,
                     std::span<const llama_pos> positions, std::size_t track) const {
    sighting s{.stream = stream_of(table, sequence), .last_cell = rows.back(), .sequence = sequence, .track = track};
    for (std::size_t row = 0; row < rows.size(); ++row) table.set_position(s.stream, rows[row], positions[row]);
    s.cells = std::move(rows);
    std::sort(s.cells.begin(), s.cells.end());
    return table.replace(std::move(s), only_one(table));
  }

  /// Looks for rows in the cells that no other sequence is known to have.
  bool place(llama_seq_id sequence, const saved_sequence& saved, seen_cache& c, std::size_t track) const {
    std::vector<std::int32_t> rows = cells_of(saved, c, untaken(c.table, stream_of(c.table, sequence)));
    if (rows.empty()) return false;
    const sighting& s = found_at(sequence, c.table, std::move(rows), saved.positions(), track);
    if (track != no_track) c.attention.lies_in(c.table, s, s.cells);
    return true;
  }

  llama_context* context_;
  llama_memory_t memory_;
  cache_probe* probe_;
  sequence_states states_;
  std::size_t base_ = unknown;                   // the cache of the layers with full attention
  std::string waits_;                            // what llama.cpp does at the next decode only; until then nothing can be done
  std::uint64_t copied_at_ = ~std::uint64_t{0};  // tokens that the cache had taken at the last copied()
  std::vector<std::optional<result<std::size_t>>> counts_;  // by sequence
};

/// Tells the probe which of its caches is that of the layers with full attention, by what a state of the sequence holds. Where
/// layers with a window have as many cells (swa_full, or a small context), call it before cache_probe::recorded() is read or a
/// calibration adds; a compressor does so by itself. Costs a state, at most once a context.
inline status find_recorded_cache(llama_context* context, cache_probe& probe, llama_seq_id sequence = 0) {
  return probe.knows_recorded_cache() ? status{} : whereabouts(context, &probe).find_base(sequence);
}

}  // namespace lagkv::inline LAGKV_ABI::llama
