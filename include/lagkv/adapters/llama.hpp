// Part of lagkv (MIT). KV-cache compression inside an unmodified llama.cpp, per head. Not in the umbrella: include it in the
// one file that talks to llama.cpp, and link llama.
//
//   lagkv::llama::cache_probe probe;                       // optional: work in place, where the cache is in host memory
//   probe.attach(context_params);                          // before llama_init_from_model
//   auto compressor = lagkv::llama::compressor::make(context, *lagkv::parse("lagkv:lag=1024,ratio=0.25"), &probe);
//   ...
//   llama_decode(context, batch);                          // prompt, chunk or token
//   auto done = compressor->compress(0);                   // cheap where nothing is due
//
// Policies that read queries or attention (snapkv, h2o, tova) have the probe record what they read, from the tokens on that
// are decoded after the compressor is made; others slow nothing down. Those that read keys as they were before RoPE
// (novelty, pre_rope=yes) need it for the rotary embedding of each layer, which it takes from the first graph. Those that read
// statistics of the model's queries (calibrated=yes) get them with make(); calibration.hpp counts them.
//
// Taken: caches of f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 and q5_1 (keys and values may differ), with or without flash
// attention, on any backend. Quantised rows move as they are. llama.cpp stores most of them under a Hadamard matrix: the
// probe sees it and policies get rows without it; without a probe they are scored as stored. Refused, with the sequence left
// as it was: other types, blocks that span tokens, models with recurrent layers alone. Of models with window layers or recurrent
// ones the layers with full attention are compressed, the others left alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/accumulate.hpp>
#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/attention/query_statistics.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// How to get at the cache.
enum class way : std::uint8_t {
  automatic,  ///< in place where possible, else through the state API
  in_place,   ///< rows move within the cache, freed cells become holes that the next tokens fill: a few ms, no second
              ///< buffer, but attention spans the highest used cell until the holes are filled
  repack      ///< through the state API: two copies of the sequence for a moment, then its cells are dense, so that the
              ///< next tokens are decoded faster
};

/// What compress() did.
struct report {
  std::size_t tokens_before = 0;
  std::size_t tokens_after = 0;
  std::size_t bytes_before = 0;  ///< keys and values of all layers; 0 where nothing was due and there is no probe
  std::size_t bytes_after = 0;
  bool compressed = false;  ///< false: nothing was due
  bool in_place = false;
};

/// Where the rows of compressed partitions come from: in each head a row may be another token than the one that its cell was made
/// for.
struct moved_rows {
  std::vector<llama_pos> cells{};                       ///< the position of each row's cell
  std::vector<std::vector<std::uint32_t>> positions{};  ///< of each layer, [heads][rows]; below 0 (context shift): modulo 2^32
};

/// What compression knows of a sequence, to be saved beside its state: plain data.
struct checkpoint {
  cursor at{};                                        ///< how far it has been compressed
  std::vector<std::vector<double>> key_statistics{};  ///< of each layer, dropped keys too (extras.key_statistics),
                                                      ///< if the policy reads them
  std::size_t counted = 0;                            ///< tokens of the sequence that are in them
  moved_rows moved{};                                 ///< the rows [0, at.compressed), if the policy reads where they come from
  recording recorded{};                               ///< queries and attention, if the policy reads them
};

/// Compresses the sequences of one context. All layers and heads keep the same number of tokens, each its own choice.
/// Use it from the thread that decodes.
class compressor {
 public:
  /// Fails where the model's memory is of a kind that is not taken, or cannot hold what the policy keeps, or the policy reads
  /// what cannot be recorded. `context` and `probe` must outlive it. The probe records what this policy reads, and no more
  /// what an earlier one did. `queries`: of each layer what its queries usually are, before RoPE; policies that read
  /// statistics then take these, moved to the 512 positions that come next, and nothing is recorded for them.
  static result<compressor> make(llama_context* context, const policy& p, cache_probe* probe = nullptr,
                                 std::vector<query_statistics> queries = {}) {
    const llama_model* model = llama_get_model(context);
    if (llama_model_is_recurrent(model)) return error{"model: has recurrent memory, no cache of keys and values"};
    if (llama_model_n_head_kv(model) < 1) return error{"model: has no KV heads"};
    if (p.ragged) return unequal();
    if (p.budget.slope.sloped())
      return error{"policy: layers keep different numbers of tokens (pyramid), which llama.cpp's cache cannot hold"};
    if (p.needs.rope && probe == nullptr)
      return error{"policy: reads keys as they were before RoPE: give the compressor a cache_probe, which sees their embedding"};
    if (p.needs.calibrated && queries.empty())
      return error{"policy: reads statistics of the model's queries: give them to make() (calibration.hpp)"};
    if (!p.needs.query_statistics) queries.clear();
    if (!queries.empty() && probe == nullptr)
      return error{"policy: reads statistics of queries: give the compressor a cache_probe, which sees their embedding"};
    if (probe != nullptr) probe->set_sequences(llama_n_seq_max(context));
    compressor made(context, p, probe, std::move(queries));
    if (status ok = made.record(made.reads()); !ok) return error{ok.message()};
    return made;
  }

  /// Positions of `sequence` that are never dropped, in place of those given before.
  void protect(llama_seq_id sequence, std::vector<std::uint32_t> positions) {
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    sequences_[sequence].protect = std::move(positions);
  }

  /// Drops what is due of `sequence`. Call it after llama_decode has used the new tokens. Where it fails the
  /// sequence is as it was. `observe(layer, plan)` is called for each layer with what it keeps.
  ///
  /// What the host has done since (tokens taken back, a span removed, a context shift) is seen in the cache. In place needs a
  /// probe and a cache in host memory. A sequence that shares cells with another (llama_memory_seq_cp) is repacked, which gives
  /// it cells of its own.
  template <class Observe>
  result<report> compress(llama_seq_id sequence, way how, const Observe& observe) {
    if (status ok = in_range(sequence); !ok) return error{ok.message()};
    state& s = sequences_[sequence];
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) {  // it is empty: what comes is a new one
      s.begin_anew();
      return report{};
    }
    s.fresh = unknown;
    if (status ok = fit_budget(sequence); !ok) return error{ok.message()};
    std::string obstacle = "no cache_probe was given";
    waits_.clear();
    if (probe_ != nullptr) {
      result<rows_in_place> rows = find(sequence, last);
      if (rows) {
        follow(s, *rows, last);
        if (policy_.budget.due(s.at, rows->cells.size()).empty()) return nothing_due(s, rows->cells.size());
        rows = verify(sequence, s, last, std::move(*rows));
        if (rows) follow_recorded(s, *rows);
        if (rows && policy_.budget.due(s.at, rows->cells.size()).empty()) return nothing_due(s, rows->cells.size());
      }
      if (status ok = waits_for_nothing(sequence); !ok) return error{ok.message()};
      if (!rows) {
        obstacle = rows.message();
      } else if (how != way::repack) {
        result<report> done = compress_in_place(sequence, s, last, *rows, observe);
        if (done || how == way::in_place) return done;
      }
    }
    if (how == way::in_place) return error{"in place: " + obstacle};
    return repack(sequence, s, last, observe);
  }

  result<report> compress(llama_seq_id sequence, way how = way::automatic) {
    return compress(sequence, how, [](std::size_t, const plan&) {});
  }

  /// Puts the rows of a sequence into adjacent cells, as repack does, without a change to any row. Attention reads up to the
  /// highest cell in use, so a token is decoded faster afterwards, if compression in place has left holes. Call it once, between
  /// a prompt that was compressed in chunks and its answer. Costs a copy of the sequence's state and back, or nothing if the
  /// cells are adjacent already. Where it fails the sequence is as it was.
  status defragment(llama_seq_id sequence) {
    if (status ok = in_range(sequence); !ok) return ok;
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) return {};
    state& s = sequences_[sequence];
    waits_.clear();
    if (probe_ != nullptr) {
      if (const result<rows_in_place> rows = find(sequence, last)) {
        follow(s, *rows, last);
        const auto [low, high] = std::minmax_element(rows->cells.begin(), rows->cells.end());
        if (static_cast<std::size_t>(*high - *low) + 1 == rows->cells.size()) return {};
      }
      if (status ok = waits_for_nothing(sequence); !ok) return ok;
    }
    const result<read_state> read = read_whole(sequence);
    if (!read) return error{read.message()};
    const saved_sequence& saved = read->saved;
    recount(s, saved);
    if (status ok = put_back(sequence, saved.tokens(), saved.tokens(), read->bytes, read->bytes); !ok) return ok;
    lies_elsewhere(sequence, s, saved);
    return {};
  }

  /// How far a sequence has been compressed.
  cursor at(llama_seq_id sequence) const {
    const auto found = sequences_.find(sequence);
    return found == sequences_.end() ? cursor{} : found->second.at;
  }

  /// Save it beside llama_state_seq_get_data(sequence), for restore(). Looks at the cache, as compress() does: the host may have
  /// removed or shifted rows since the last call.
  checkpoint save(llama_seq_id sequence) {
    if (!in_range(sequence) || (!sequences_.contains(sequence) && !reads().any())) return {};
    state& s = sequences_[sequence];
    look_again(sequence, s);
    checkpoint c = s;
    c.moved = still_there(s);
    if (const recording* r = recorded(s)) c.recorded = *r;
    return c;
  }

  /// Call it when a sequence is cleared or its tokens are replaced.
  void forget(llama_seq_id sequence) {
    sequences_.erase(sequence);
    lose_sight_of(sequence);
  }

  /// Call it after llama_memory_seq_cp(from, to) of a whole sequence or a part.
  void copy(llama_seq_id from, llama_seq_id to) {
    if (from == to) return;
    state& copied = sequences_[to] = sequences_[from];
    copied.cells.clear();  // its rows are known by their marks
    lose_sight_of(to);
    copied_at_ = written();
    if (probe_ != nullptr)
      for (seen_cache& c : probe_->caches())
        if (!only_one(c.table)) c.table.forked(true);
    if (reads().any() && base_cache(from) && has_streams()) {
      cell_table& table = probe_->caches()[base_or_first()].table;
      if (const sighting* s = newest(table, from)) {
        const std::size_t track = table.new_track();
        attention().copy(s->track, track, table, static_cast<std::size_t>(to));
        table.copied(*s, static_cast<std::size_t>(to), track);
      }
    }
  }

  /// Call it after llama_state_seq_set_data(sequence, bytes), with what save() gave beside the bytes ({} where they have never
  /// been compressed). If the policy reads queries or attention, c.recorded must have them. Compression goes on from there; in
  /// place as soon as the sequence has been found in the cache, at the latest when its next token is decoded. Key statistics of
  /// other layers, heads or channels than the cache has are refused by the next compress(), with the sequence left as it was.
  status restore(llama_seq_id sequence, std::span<const std::uint8_t> bytes, const checkpoint& c) {
    const result<saved_sequence> saved =
        saved_sequence::parse({const_cast<std::uint8_t*>(bytes.data()), bytes.size()},  // only read
                              has_other_memory() ? saved_sequence::unknown_rest : 0);
    if (!saved) return error{saved.message()};
    if (c.at.compressed > c.at.tokens || c.at.compressed > saved->tokens())
      return error{"checkpoint: compressed=" + std::to_string(c.at.compressed) + ": must be at most its " +
                   std::to_string(c.at.tokens) + " tokens and the state's " + std::to_string(saved->tokens())};
    if (!c.moved.cells.empty() && c.moved.cells.size() != c.at.compressed)
      return error{"checkpoint: moved rows: " + std::to_string(c.moved.cells.size()) + ": must be the " +
                   std::to_string(c.at.compressed) + " that were compressed"};
    state& s = sequences_[sequence];
    s.begin_anew();
    static_cast<checkpoint&>(s) = c;
    s.marks = marks_of(marked(*saved), saved->cells().first(c.at.compressed));
    s.offset = saved->positions().back() + 1 - static_cast<llama_pos>(saved->tokens());
    const auto end = static_cast<std::size_t>(saved->positions().back()) + 1;
    s.uncounted = (std::min)(end - (std::min)(s.counted, end), saved->tokens());
    s.written = s.counted_written = written();
    recording recorded = std::exchange(s.recorded, {});
    lose_sight_of(sequence);
    if (probe_ != nullptr) {
      s.track = new_track();
      if (track_of(s) != no_track) attention().put(track_of(s), std::move(recorded));
    }
    expect(sequence, *saved, track_of(s));
    return {};
  }

  lagkv::workspace& workspace() { return workspace_; }

 private:
  static constexpr std::size_t unknown = ~std::size_t{0};

  struct state : checkpoint {
    std::vector<std::uint64_t> marks{};    ///< of the rows that the last compression left compressed: what tells them from others
    std::vector<std::size_t> still{};      ///< which of these the rows [0, at.compressed) are; empty: all
    std::vector<std::int32_t> cells{};     ///< where all rows lay at the last call, ascending; empty: not known
    std::uint64_t written = 0;             ///< tokens that the cache had taken then
    llama_pos offset = 0;                  ///< without a probe: the last position + 1, less the rows, at the last call
    std::vector<std::uint32_t> protect{};  ///< ascending
    std::size_t fresh = unknown;           ///< rows whose keys are in no statistics yet
    std::size_t uncounted = 0;             ///< such rows when it was restored
    std::uint64_t counted_written = 0;     ///< tokens that the cache had taken when they were last counted
    std::size_t track = no_track;          ///< of its recording

    void begin_anew() {
      std::vector<std::uint32_t> kept = std::move(protect);
      *this = {};
      protect = std::move(kept);
    }
  };

  /// Where the rows of a sequence lie.
  struct rows_in_place {
    std::size_t cache = 0;
    sighting* seen = nullptr;
    std::vector<std::int32_t> cells{};  ///< ascending until they are verified, then in the order of tokens
    bool trimmed = false;               ///< tokens seem to have been taken back since
  };

  compressor(llama_context* context, const policy& p, cache_probe* probe, std::vector<query_statistics> queries)
      : context_(context),
        memory_(llama_get_memory(context)),
        heads_(static_cast<std::size_t>(llama_model_n_head_kv(llama_get_model(context)))),
        policy_(p),
        probe_(probe),
        queries_(std::move(queries)) {}

  wanted reads() const { return wanted_by(policy_, !queries_.empty()); }

  bool has_other_memory() const {
    const llama_model* model = llama_get_model(context_);
    return llama_model_n_swa(model) > 0 || is_hybrid(model);
  }

  /// Where llama.cpp cannot say it, the state of such a model has bytes that are not expected, and is refused.
  template <class Model>
  static bool is_hybrid(const Model* model) {
    if constexpr (requires { llama_model_is_hybrid(model); })
      return llama_model_is_hybrid(model);
    else
      return false;
  }

  /// What has been recorded of a sequence; null if nothing is.
  recording* recorded(const state& s) const {
    const bool any = probe_ != nullptr && probe_->what().any();
    return any && track_of(s) != no_track ? &attention().of(track_of(s)) : nullptr;
  }

  recorder& attention() const {
    const std::size_t cache = base_or_first();
    return cache < probe_->caches().size() ? probe_->caches()[cache].attention : probe_->attention();
  }

  /// That of a context's only sequence is 0, seen or not.
  std::size_t track_of(const state& s) const { return llama_n_seq_max(context_) == 1 ? 0 : s.track; }

  std::size_t new_track() const {
    const std::size_t cache = base_or_first();
    return cache < probe_->caches().size() ? probe_->caches()[cache].table.new_track() : no_track;
  }

  status in_range(llama_seq_id sequence) const {
    if (sequence >= 0 && static_cast<std::uint32_t>(sequence) < llama_n_seq_max(context_)) return {};
    return error{"sequence " + std::to_string(sequence) + ": must be from 0 to " + std::to_string(llama_n_seq_max(context_) - 1)};
  }

  /// Whether all that the host has asked of llama.cpp has been done; find() sees what has not.
  status waits_for_nothing(llama_seq_id sequence) {
    if (has_streams() && copied_at_ == written())
      waits_ = "a copied sequence has not been moved to its stream yet: decode a token first";
    if (waits_.empty()) return {};
    return error{"sequence " + std::to_string(sequence) + ": " + waits_};
  }

  /// What is left of the rows that were compressed, and where.
  void look_again(llama_seq_id sequence, state& s) {
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) s.begin_anew();
    if (last < 0 || (s.at.compressed == 0 && !reads().any())) return;
    if (probe_ != nullptr) {
      result<rows_in_place> rows = find(sequence, last);
      if (rows) {
        follow(s, *rows, last);
        rows = verify(sequence, s, last, std::move(*rows));
      }
      if (rows) {
        follow_recorded(s, *rows);
        return follow_shift(s, positions_of(*rows));
      }
    }
    if (const result<read_state> read = read_whole(sequence)) {
      recount(s, read->saved);
      follow_shift(s, read->saved.positions());
    }
  }

  report nothing_due(state& s, std::size_t rows) {
    plan none;
    none.clear(rows);
    advance(s.at, none);
    const std::size_t bytes = rows * row_bytes_;
    return {.tokens_before = rows, .tokens_after = rows, .bytes_before = bytes, .bytes_after = bytes};
  }

  // ---- where a sequence lies ----

  /// By what the graphs have shown, which costs nothing; where that leaves a doubt, by what the cache holds.
  result<rows_in_place> find(llama_seq_id sequence, llama_pos last) {
    if (!probe_->obstacle().empty()) return error{probe_->obstacle()};
    const result<std::size_t> cache = base_cache(sequence);
    if (!cache) return error{cache.message()};
    cell_table& table = probe_->caches()[*cache].table;
    row_bytes_ = row_bytes(*cache);
    sighting* s = newest(table, sequence);
    if (s != nullptr && table.known(*s)) {
      if (table.position(s->stream, s->last_cell) == last) return rows_in_place{*cache, s, s->cells};
      // Tokens at the end have been taken back, or so it seems; what is due is verified.
      rows_in_place rows{*cache, s, {}, true};
      llama_pos found = -1;
      for (const std::int32_t cell : s->cells) {
        const llama_pos p = table.position(s->stream, cell);
        if (p <= last && table.written(s->stream, cell) <= s->time) rows.cells.push_back(cell), found = (std::max)(found, p);
      }
      const result<std::size_t> count = count_of(sequence, *cache);
      if (found == last && count && *count == rows.cells.size()) return rows;
    }
    return identify(sequence, *cache, last);
  }

  /// The last sighting that is certainly of this sequence; null where a later one may be.
  sighting* newest(cell_table& table, llama_seq_id sequence) const {
    const auto all = table.sightings();
    for (auto s = all.rbegin(); s != all.rend(); ++s) {
      if (s->stream != stream_of(table, sequence)) continue;
      if (only_one(table) || s->sequence == sequence) return &*s;
      if (s->sequence < 0) return nullptr;
    }
    return nullptr;
  }

  /// Before rows move: all that is there is where it was seen, and no other sequence may be meant.
  result<rows_in_place> verify(llama_seq_id sequence, state& s, llama_pos last, rows_in_place rows) {
    cell_table& table = probe_->caches()[rows.cache].table;
    const result<std::size_t> count = count_of(sequence, rows.cache);
    if (!count) return error{count.message()};
    const bool sure = !rows.trimmed && *count == rows.cells.size() &&
                      (only_one(table) ||
                       (shared_cells(rows.cache) == 0 && (rows.seen->sequence == sequence || alike(table, *count, last) == 1)));
    if (!sure) {
      result<rows_in_place> found = identify(sequence, rows.cache, last);
      if (!found) return found;
      rows = std::move(*found);
      follow(s, rows, last);
    }
    if (status ok = is_alone(sequence, rows); !ok) return error{ok.message()};
    rows.cells = table.rows(rows.seen->stream, std::move(rows.cells));
    return rows;
  }

  /// Whether no other sequence has one of these cells, or waits for a copy of its stream.
  status is_alone(llama_seq_id sequence, const rows_in_place& rows) {
    const cell_table& table = probe_->caches()[rows.cache].table;
    if (llama_n_seq_max(context_) == 1) return {};
    const bool streams = table.streams() > 1, shared = shared_cells(rows.cache) > 0;
    for (llama_seq_id other = 0; other < static_cast<llama_seq_id>(llama_n_seq_max(context_)); ++other) {
      const llama_pos last = llama_memory_seq_pos_max(memory_, other);
      if (other == sequence || last < 0) continue;
      const result<std::size_t> count = count_of(other, rows.cache);
      bool seen = false;
      for (const sighting& s : table.sightings()) {
        if (&s == rows.seen || s.stream != stream_of(table, other) || !count || !table.is_of(s, *count, last)) continue;
        if (!streams && overlap(s, *rows.seen)) return shares(other);
        seen = seen || streams || s.sequence == other;
      }
      if (streams && !seen)
        return error{"sequence " + std::to_string(other) + " may wait for a copy of this one: decode a token of it first"};
      if (shared && !seen) return shares(other);
    }
    return {};
  }

  static error shares(llama_seq_id other) { return {"sequence " + std::to_string(other) + " may share its cells"}; }

  static std::size_t stream_of(const cell_table& table, llama_seq_id sequence) {
    return table.streams() > 1 ? static_cast<std::size_t>(sequence) : 0;
  }

  /// Whether no other sequence can be in the same stream.
  bool only_one(const cell_table& table) const { return table.streams() > 1 || llama_n_seq_max(context_) == 1; }

  /// How many sightings are of so many cells up to this position.
  static std::size_t alike(const cell_table& table, std::size_t count, llama_pos last) {
    std::size_t n = 0;
    for (const sighting& s : table.sightings()) n += table.is_of(s, count, last) ? 1U : 0U;
    return n;
  }

  result<rows_in_place> identify(llama_seq_id sequence, std::size_t cache, llama_pos last) {
    cell_table& table = probe_->caches()[cache].table;
    const result<std::size_t> count = count_of(sequence, cache);
    if (!count) return error{count.message()};
    if (alike(table, *count, last) == 1 && shared_cells(cache) == 0)
      for (sighting& s : table.sightings())
        if (s.stream == stream_of(table, sequence) && table.is_of(s, *count, last) &&
            (s.sequence < 0 || s.sequence == sequence) && table.known(s)) {
          s.sequence = sequence;
          return rows_in_place{cache, &s, s.cells};
        }
    return identify_by_content(sequence, cache);
  }

  /// Whether a sequence has as many cells as a sighting, up to the same position.
  bool looks_like(llama_seq_id sequence, const sighting& s, std::size_t cache) {
    const cell_table& table = probe_->caches()[cache].table;
    if (llama_memory_seq_pos_max(memory_, sequence) != table.position(s.stream, s.last_cell)) return false;
    const result<std::size_t> count = count_of(sequence, cache);
    return count && *count == s.cells.size();
  }

  /// Whether a sighting may be that of another sequence, which may hold the same rows.
  bool is_of_another(llama_seq_id sequence, const sighting& s, std::size_t cache) {
    const cell_table& table = probe_->caches()[cache].table;
    if (only_one(table)) return false;
    for (const sighting& later : table.sightings())  // it is out of date, or another sequence shares its cells
      if (later.time > s.time && overlap(later, s)) return true;
    if (s.sequence >= 0) return s.sequence != sequence;
    std::size_t sequences = 0;
    bool mine = false;
    for (llama_seq_id t = 0; t < static_cast<llama_seq_id>(llama_n_seq_max(context_)); ++t) {
      if (!looks_like(t, s, cache)) continue;
      ++sequences;
      mine = mine || t == sequence;
    }
    return !mine || alike(table, s.cells.size(), table.position(s.stream, s.last_cell)) < sequences;
  }

  static bool overlap(const sighting& a, const sighting& b) {
    return a.stream == b.stream && std::any_of(a.cells.begin(), a.cells.end(), [&](std::int32_t cell) {
             return std::binary_search(b.cells.begin(), b.cells.end(), cell);
           });
  }

  /// Reads the sequence's state and looks for each of its rows in the cells that have been seen.
  result<rows_in_place> identify_by_content(llama_seq_id sequence, std::size_t cache) {
    seen_cache& c = probe_->caches()[cache];
    result<read_state> read = read_whole(sequence);
    if (!read) return error{read.message()};
    std::vector<std::int32_t> found;
    std::size_t track = no_track;
    for (const sighting& s : c.table.sightings()) {
      if (s.stream != stream_of(c.table, sequence) || is_of_another(sequence, s, cache)) continue;
      std::vector<std::int32_t> cells = cells_of(read->saved, c, s);
      if (cells.empty()) continue;
      if (!found.empty() && cells != found)
        return error{"several sequences hold the same rows: decode a token of this one first"};
      found = std::move(cells), track = s.track;
    }
    if (found.empty()) return error{"the cells of sequence " + std::to_string(sequence) + " have not been seen since it changed"};
    const std::size_t stream = stream_of(c.table, sequence);
    for (std::size_t row = 0; row < found.size(); ++row) {
      const llama_pos seen = c.table.position(stream, found[row]);
      if (seen >= 0 && seen != read->saved.positions()[row]) {
        waits_ = "a context shift has not been applied yet: decode a token first";
        return error{waits_};
      }
    }
    sighting& kept = found_at(sequence, c.table, std::move(found), read->saved.positions(), track);
    return rows_in_place{cache, &kept, kept.cells};
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

  /// The cell of each row of the saved sequence, in the order of tokens, all of them among those of a sighting; empty where they
  /// are not, or where equal rows leave a doubt.
  static std::vector<std::int32_t> cells_of(const saved_sequence& saved, const seen_cache& c, const sighting& s) {
    const std::size_t n = saved.tokens(), layers = c.layers.size();
    if (n > s.cells.size() || layers != saved.layers()) return {};
    const cached_layer first = c.layers.front().of_stream(s.stream), last = c.layers.back().of_stream(s.stream);
    const auto same = [&](std::size_t i, std::int32_t cell) {
      const auto of_state = static_cast<std::int32_t>(i);
      return same_row(saved.keys(0), of_state, first.keys, cell) && same_row(saved.keys(layers - 1), of_state, last.keys, cell) &&
             (!saved.has_values() || same_row(saved.values(layers - 1), of_state, last.values, cell));
    };
    // Both are in the order of cells. What fits from the front and from the back is the only way.
    std::vector<std::int32_t> cells(n);
    std::size_t i = 0;
    for (std::size_t at = 0; at < s.cells.size() && i < n; ++at)
      if (same(i, s.cells[at])) cells[i++] = s.cells[at];
    if (i < n) return {};
    for (std::size_t at = s.cells.size(); at > 0 && i > 0; --at)
      if (same(i - 1, s.cells[at - 1]) && cells[--i] != s.cells[at - 1]) return {};
    std::vector<std::int32_t> rows(n);
    for (std::size_t row = 0; row < n; ++row) rows[row] = cells[static_cast<std::size_t>(saved.cells()[row])];
    return rows;
  }

  /// The host may have changed the sequence since the last call: how much of what was compressed is still there, as a prefix.
  void follow(state& s, const rows_in_place& rows, llama_pos last) {
    const cell_table& table = probe_->caches()[rows.cache].table;
    std::size_t met = 0;  // rows of the last call
    bool same = true;
    for (const std::int32_t cell : rows.cells) {
      if (table.written(rows.seen->stream, cell) > s.written) continue;
      same = same && met < s.cells.size() && s.cells[met] == cell;
      ++met;
    }
    const bool elsewhere = s.cells.empty() && !s.marks.empty();  // it was repacked or restored
    if (!same || met != s.cells.size() || elsewhere) {
      const cached_layer l = probe_->caches()[rows.cache].layers.back().of_stream(rows.seen->stream);
      const std::vector<std::int32_t> cells = table.rows(rows.seen->stream, rows.cells);
      recount(s, cells.size(), last, [&](std::size_t row) { return mark_of(marked(l), cells[row]); });
    }
    take_back(s.at, rows.cells.size());
    s.track = rows.seen->track;
    s.cells = rows.cells, s.written = table.written();
    s.fresh = s.uncounted;
    for (const std::int32_t cell : s.cells) s.fresh += table.written(rows.seen->stream, cell) > s.counted_written ? 1U : 0U;
  }

  /// Rows that were compressed are known again by their marks.
  template <class Mark>
  static void recount(state& s, std::size_t rows, llama_pos last, const Mark& mark) {
    std::vector<std::size_t> still;  // which of them
    for (std::size_t row = 0, at = 0; row < rows && row < s.marks.size(); ++row) {
      const auto found = std::find(s.marks.begin() + static_cast<std::ptrdiff_t>(at), s.marks.end(), mark(row));
      if (found == s.marks.end()) break;
      still.push_back(static_cast<std::size_t>(found - s.marks.begin()));
      at = still.back() + 1;
    }
    if (still.empty() && !s.marks.empty()) return s.begin_anew();
    s.at.compressed = still.size();
    // The others may come again: before a context shift is applied, its rows look like tokens taken back.
    s.still = std::move(still);
    take_back(s.at, rows);
    // A new sequence may begin like the old one, whose rows those then are: what was dropped behind them is no part of it.
    const auto seen = static_cast<std::size_t>((std::max)(last, llama_pos{-1}) + 1);
    if (s.still.size() < s.marks.size()) s.at.dropped = seen - (std::min)(seen, rows);
  }

  static void recount(state& s, const saved_sequence& saved) {
    recount(s, saved.tokens(), saved.positions().back(),
            [&](std::size_t row) { return mark_of(marked(saved), saved.cells()[row]); });
  }

  /// Of what is known of moved rows, that of those that are still there.
  static moved_rows still_there(const state& s) {
    const std::size_t before = s.moved.cells.size(), n = s.at.compressed;
    if (before == 0 || s.still.empty()) return s.moved;
    moved_rows left;
    for (std::size_t row = 0; row < n; ++row) left.cells.push_back(s.moved.cells[s.still[row]]);
    for (const std::vector<std::uint32_t>& all : s.moved.positions) {
      std::vector<std::uint32_t>& of_layer = left.positions.emplace_back();
      for (std::size_t head = 0; head < all.size(); head += before)
        for (std::size_t row = 0; row < n; ++row) of_layer.push_back(all[head + s.still[row]]);
    }
    return left;
  }

  /// What has been recorded of rows that the host has removed or shifted since.
  void follow_recorded(const state& s, const rows_in_place& rows) const {
    recording* r = recorded(s);
    if (r == nullptr) return;
    r->follow(probe_->caches()[rows.cache].table.tokens(rows.seen->stream, rows.cells), positions_of(rows));
  }

  // ---- in place ----

  /// The positions of the rows' cells.
  std::vector<llama_pos> positions_of(const rows_in_place& rows) const {
    return probe_->caches()[rows.cache].table.positions(rows.seen->stream, rows.cells);
  }

  template <class Observe>
  result<report> compress_in_place(llama_seq_id sequence, state& s, llama_pos last, const rows_in_place& rows,
                                   const Observe& observe) {
    seen_cache& cache = probe_->caches()[rows.cache];
    const std::size_t stream = rows.seen->stream, n = rows.cells.size();
    const std::vector<llama_pos> positions = positions_of(rows);
    if (positions.front() < 0) return error{"the positions of its tokens have not been seen"};
    std::vector<cached_layer> cached;
    for (const cached_layer& l : cache.layers) cached.push_back(l.of_stream(stream));
    const result<std::vector<layer>> offered = offer(s, cached, rows.cells, positions, last);
    if (!offered) return error{offered.message()};

    // Before anything moves: the positions that will be freed are those of the first candidates, and of no other token.
    const candidates due = policy_.budget.due(s.at, n);
    const std::size_t most = due.rows.size() - (std::min)(due.keep, due.rows.size());
    const std::size_t first = due.rows.begin;
    const auto freed_alone = [&](std::size_t end) {
      return (first == 0 || positions[first - 1] < positions[first]) && (end == n || positions[end - 1] < positions[end]);
    };
    if (const int window = llama_model_n_swa(llama_get_model(context_));
        window > 0 && positions[first + most - 1] > last - window)
      return error{"tokens that the window layers (" + std::to_string(window) + " tokens) still see would go from them too"};
    if (!freed_alone(first + most)) return error{"several tokens have one position"};

    report done{.tokens_before = n, .tokens_after = n, .in_place = true};
    done.bytes_before = n * row_bytes_;
    std::vector<cursor> moved(offered->size(), s.at);
    const auto told = [&](std::size_t i, const plan& applied) { observe(i, applied); };
    if (status ok = lagkv::compress(policy_, *offered, moved, workspace_, {.direction = toward::window, .moved = told}); !ok)
      return error{ok.message()};
    const plan& p = last_plan(workspace_);
    done.tokens_after = moved[0].tokens;
    done.bytes_after = done.tokens_after * row_bytes_;
    done.compressed = true;
    s.at = moved[0];
    s.at.mark = 0;  // of layer 0, while this cursor is that of all layers
    std::vector<std::int32_t> left = rows.cells;
    if (const std::size_t freed = done.tokens_before - done.tokens_after; freed > 0) {
      llama_memory_seq_rm(memory_, sequence, positions[first], positions[first + freed - 1] + 1);
      const auto begin = left.begin() + static_cast<std::ptrdiff_t>(first);
      left.erase(begin, begin + static_cast<std::ptrdiff_t>(freed));
      forget_recorded(s, p, freed);
    }
    note_moved(s, positions, first, done.tokens_before - done.tokens_after);
    s.marks = marks_of(marked(cached.back()), std::span(left).first(s.at.compressed));
    rows.seen->cells = left, rows.seen->last_cell = left.back(), rows.seen->sequence = sequence;
    std::sort(rows.seen->cells.begin(), rows.seen->cells.end());
    s.cells = rows.seen->cells, s.written = cache.table.written();
    return done;
  }

  /// Bytes of a cell in the layers of a cache.
  std::size_t row_bytes(std::size_t cache) const {
    std::size_t n = 0;
    for (const cached_layer& l : probe_->caches()[cache].layers)
      n += llama::row_bytes(l.keys) + (l.has_values() ? llama::row_bytes(l.values) : 0);
    return n;
  }

  // ---- what the size of a state tells, without a copy of it ----

  /// Bytes of a state that follow the first cache: window layers, recurrent ones.
  std::size_t rest_of(llama_seq_id sequence) const {
    if (!has_other_memory()) return 0;
      // In a state of these alone the same header stands before them.
#if defined(LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
    return llama_state_seq_get_size_ext(context_, sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) - header_;
#elif defined(LLAMA_STATE_SEQ_FLAGS_SWA_ONLY)
    return llama_state_seq_get_size_ext(context_, sequence, LLAMA_STATE_SEQ_FLAGS_SWA_ONLY) - header_;
#else
    return saved_sequence::unknown_rest;
#endif
  }

  /// Cells of a sequence in this cache.
  result<std::size_t> count_of(llama_seq_id sequence, std::size_t cache) {
    const std::size_t rest = rest_of(sequence), size = llama_state_seq_get_size(context_, sequence);
    const std::size_t fixed = fixed_bytes(cache), each = state_cell + added_to_cell_ + row_bytes(cache);
    if (rest != saved_sequence::unknown_rest && size >= fixed + rest && (size - fixed - rest) % each == 0)
      return (size - fixed - rest) / each;
    // Models with positions of several sections add to each cell; the first state tells how much.
    const result<read_state> read = read_whole(sequence);
    if (!read) return error{read.message()};
    if (read->saved.payload_bytes() != row_bytes(cache) * read->saved.tokens())
      return error{"rows have " + std::to_string(row_bytes(cache)) + " bytes in the cache and " +
                   std::to_string(read->saved.payload_bytes() / read->saved.tokens()) + " in a state: they are padded"};
    added_to_cell_ = read->saved.added_to_cell();
    return read->saved.tokens();
  }

  std::size_t fixed_bytes(std::size_t cache) const {
    const seen_cache& c = probe_->caches()[cache];
    std::size_t sections = 0;
    for (const cached_layer& l : c.layers) sections += l.has_values() ? 2U : 1U;
    return header_ + 4 + 4 * c.table.streams() + 8 + 12 * sections;
  }

  /// Cells of all sequences of a unified cache together, each counted once, and what they would be if none was shared.
  struct occupancy {
    std::size_t cells = 0, rows = 0;
    /// How many cells are counted more than once.
    std::size_t shared() const { return rows - (std::min)(cells, rows); }
  };
  occupancy occupied(std::size_t cache) {
    occupancy o;
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(llama_n_seq_max(context_)); ++s)
      if (llama_memory_seq_pos_max(memory_, s) >= 0) {
        const result<std::size_t> n = count_of(s, cache);
        if (n) o.rows += *n;
      }
    const std::size_t size = llama_state_seq_get_size(context_, -1), fixed = fixed_bytes(cache) + rest_of(-1) + 4 * o.rows;
    o.cells = size > fixed ? (size - fixed) / (8 + added_to_cell_ + row_bytes(cache)) : 0;
    return o;
  }

  std::size_t shared_cells(std::size_t cache) {
    cell_table& table = probe_->caches()[cache].table;
    if (only_one(table)) return 0;
    const std::size_t shared = occupied(cache).shared();
    if (shared == 0) table.forked(false);
    return shared;
  }

  /// Which of the caches that have been seen is that of the layers with full attention: the one that comes first in a state.
  result<std::size_t> base_cache(llama_seq_id sequence) {
    const auto caches = probe_->caches();
    if (caches.empty()) return error{"nothing has been decoded yet"};
    if (base_ < caches.size()) return base_;
    if (!has_other_memory()) {
      if (caches.size() > 1) return error{"the model has several caches: not taken"};
      return base_ = 0;
    }
    const result<read_state> read = read_whole(sequence);
    if (!read) return error{read.message()};
    for (std::size_t i = 0; i < caches.size(); ++i)
      for (const sighting& s : caches[i].table.sightings())
        if (!cells_of(read->saved, caches[i], s).empty()) {
          added_to_cell_ = read->saved.added_to_cell();
          probe_->set_recorded_cache(i);
          return base_ = i;
        }
    return error{"the cache of the layers with full attention has not been seen"};
  }

  // ---- through the state API ----

  struct read_state {
    std::vector<std::uint8_t> bytes;
    saved_sequence saved;
  };

  result<read_state> read_whole(llama_seq_id sequence) {
    read_state r;
    r.bytes.resize(llama_state_seq_get_size(context_, sequence));
    if (llama_state_seq_get_data(context_, r.bytes.data(), r.bytes.size(), sequence) != r.bytes.size())
      return error{"state: could not be read"};
    header_ = saved_sequence::header_of(r.bytes);
    result<saved_sequence> saved = saved_sequence::parse(r.bytes, rest_of(sequence));
    if (!saved) return error{saved.message()};
    r.saved = std::move(*saved);
    return r;
  }

  template <class Observe>
  result<report> repack(llama_seq_id sequence, state& s, llama_pos last, const Observe& observe) {
    // Most calls find nothing due, and see it without a copy of the state, unless the host renumbers its tokens.
    if (const result<std::size_t> rows = rows_without_probe(sequence, s, last); rows && policy_.budget.due(s.at, *rows).empty())
      return nothing_due(s, *rows);
    result<read_state> read = read_whole(sequence);
    if (!read) return error{read.message()};
    const saved_sequence& saved = read->saved;
    row_bytes_ = saved.payload_bytes() / saved.tokens();
    state_fixed_ = read->bytes.size() - rest_of(sequence) - saved.tokens() * (state_cell + saved.added_to_cell() + row_bytes_);
    added_to_cell_ = saved.added_to_cell();
    recount(s, saved);
    s.offset = last + 1 - static_cast<llama_pos>(saved.tokens());

    report done{.tokens_before = saved.tokens(), .tokens_after = saved.tokens()};
    done.bytes_before = done.bytes_after = saved.payload_bytes();
    if (policy_.budget.due(s.at, saved.tokens()).empty()) return nothing_due(s, saved.tokens());
    std::vector<cached_layer> rows = saved.all_layers();
    if (const seen_cache* base = base_if_seen(); base != nullptr && base->layers.size() == rows.size())
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const cached_layer& seen = base->layers[i];
        rows[i].id = seen.id, rows[i].heads = seen.heads;
        rows[i].keys.hadamard_block = seen.keys.hadamard_block;
        rows[i].values.hadamard_block = seen.values.hadamard_block;
      }
    const result<std::vector<layer>> offered = offer(s, rows, saved.cells(), saved.positions(), last);
    if (!offered) return error{offered.message()};
    std::vector<plan> plans;
    for (const layer& l : *offered) {
      plans.push_back(plan_eviction(policy_, l, s.at, workspace_));
      if (!equal_counts(plans.back(), plans[0])) return unequal();
    }
    done.tokens_after = plans[0].tokens_after();
    std::vector<std::uint8_t> fewer = saved.rebuilt(plans);
    if (status ok = put_back(sequence, saved.tokens(), done.tokens_after, fewer, read->bytes); !ok) return error{ok.message()};
    for (std::size_t i = 0; i < plans.size(); ++i) {
      compact(*(*offered)[i].extra, plans[i], toward::window);
      observe(i, plans[i]);
    }
    forget_recorded(s, plans[0], done.tokens_before - done.tokens_after);
    done.bytes_after = row_bytes_ * done.tokens_after;
    done.compressed = true;
    advance(s.at, plans[0]);
    note_moved(s, saved.positions(), plans[0].candidates.begin, done.tokens_before - done.tokens_after);
    s.offset = last + 1 - static_cast<llama_pos>(done.tokens_after);
    if (const result<saved_sequence> after = saved_sequence::parse(fewer, rest_of(sequence))) lies_elsewhere(sequence, s, *after);
    return done;
  }

  /// The rows of this state have been put into other cells.
  void lies_elsewhere(llama_seq_id sequence, state& s, const saved_sequence& saved) {
    lose_sight_of(sequence);
    s.moved = still_there(s);
    s.marks = marks_of(marked(saved), saved.cells().first(s.at.compressed));
    s.still.clear();
    expect(sequence, saved, track_of(s));
    s.cells.clear();
    s.written = written();
  }

  /// From the size of the state and the positions; nothing where that is not sure.
  result<std::size_t> rows_without_probe(llama_seq_id sequence, state& s, llama_pos last) const {
    const bool unseen = probe_ == nullptr || !probe_->obstacle().empty();
    if (!unseen || row_bytes_ == 0 || state_fixed_ == 0) return error{"not known"};
    const std::size_t rest = rest_of(sequence), size = llama_state_seq_get_size(context_, sequence);
    const std::size_t each = state_cell + added_to_cell_ + row_bytes_;
    if (rest == saved_sequence::unknown_rest || size < state_fixed_ + rest || (size - state_fixed_ - rest) % each != 0)
      return error{"not known"};
    const std::size_t rows = (size - state_fixed_ - rest) / each;
    if (last + 1 - static_cast<llama_pos>(rows) != s.offset) return error{"the host has renumbered tokens"};
    take_back(s.at, rows);
    return rows;
  }

  /// Replaces the sequence by as many rows or fewer, or leaves it as it was.
  status put_back(llama_seq_id sequence, std::size_t before, std::size_t after, const std::vector<std::uint8_t>& fewer,
                  const std::vector<std::uint8_t>& whole) {
    // What it shares with others stays where it is, so that its own copy needs room.
    const std::size_t cells = llama_n_ctx(context_);
    if (const seen_cache* base = base_if_seen(); base != nullptr && !only_one(base->table)) {
      const occupancy o = occupied(base_);
      const std::size_t shared = o.shared(), all = base->table.cells();
      const std::size_t own = before - (std::min)(before, shared);  // at least so many become free
      if (all - (std::min)(all, o.cells) + own < after)
        return error{"sequence " + std::to_string(sequence) + " shares up to " + std::to_string(shared) +
                     " cells with others and needs " + std::to_string(after) + " of its own: only " +
                     std::to_string(all - o.cells + own) + " are free"};
    } else if (probe_ == nullptr && llama_n_seq_max(context_) > 1) {
      std::size_t others = 0;
      for (llama_seq_id t = 0; t < static_cast<llama_seq_id>(llama_n_seq_max(context_)); ++t)
        if (t != sequence && llama_memory_seq_pos_max(memory_, t) >= 0) others += rows_of(t);
      if (cells - (std::min)(cells, others) < after && cells - (std::min)(cells, others + before) < after)
        return error{"sequence " + std::to_string(sequence) + ": up to " + std::to_string(others + before) + " of " +
                     std::to_string(cells) +
                     " cells are in use, too many to be sure that there is room for it (a cache_probe knows)"};
    }
    if (llama_state_seq_set_data(context_, fewer.data(), fewer.size(), sequence) == fewer.size()) return {};
    if (llama_state_seq_set_data(context_, whole.data(), whole.size(), sequence) == whole.size())
      return error{"state: llama.cpp did not take the compressed one; the sequence is as it was"};
    return error{"state: llama.cpp took neither the compressed sequence nor the old one: it is lost"};
  }

  std::size_t rows_of(llama_seq_id sequence) const {
    const std::size_t size = llama_state_seq_get_size(context_, sequence), each = state_cell + added_to_cell_ + row_bytes_;
    return size > state_fixed_ ? (size - state_fixed_) / each : 0;
  }

  /// Looks for rows in the cells that no other sequence is known to have.
  bool place(llama_seq_id sequence, const saved_sequence& saved, seen_cache& c, std::size_t track) const {
    sighting untaken{.stream = stream_of(c.table, sequence)};
    std::vector<bool> taken(c.table.cells());
    for (const sighting& other : c.table.sightings())
      if (other.stream == untaken.stream)
        for (const std::int32_t cell : other.cells) taken[static_cast<std::size_t>(cell)] = true;
    for (std::size_t cell = 0; cell < taken.size(); ++cell)
      if (!taken[cell]) untaken.cells.push_back(static_cast<std::int32_t>(cell));
    std::vector<std::int32_t> rows = cells_of(saved, c, untaken);
    if (rows.empty()) return false;
    const sighting& s = found_at(sequence, c.table, std::move(rows), saved.positions(), track);
    if (track != no_track) c.attention.lies_in(c.table, s, s.cells);
    return true;
  }

  /// The cache of the layers with full attention; null as long as it is not known.
  const seen_cache* base_if_seen() const {
    return probe_ != nullptr && base_ < probe_->caches().size() ? &probe_->caches()[base_] : nullptr;
  }

  /// The same, or until it is known the first one.
  std::size_t base_or_first() const { return base_ != unknown ? base_ : 0; }

  /// Whether each sequence has a part of the cache of its own.
  bool has_streams() const {
    const seen_cache* base = base_if_seen();
    return base != nullptr && base->table.streams() > 1;
  }

  /// Tokens that the cache has taken so far.
  std::uint64_t written() const {
    if (probe_ == nullptr || probe_->caches().empty()) return 0;
    return probe_->caches()[base_or_first()].table.written();
  }

  /// The rows of a state that was set: the next graph shows where they are.
  void expect(llama_seq_id sequence, const saved_sequence& saved, std::size_t track) {
    if (probe_ == nullptr) return;
    const std::size_t cache = base_or_first();
    const bool seen = cache < probe_->caches().size();
    if (seen && probe_->obstacle().empty() && place(sequence, saved, probe_->caches()[cache], track)) return;
    const std::size_t stream = seen ? stream_of(probe_->caches()[cache].table, sequence) : 0;
    probe_->expect(cache, stream, marks_of(saved.keys(saved.layers() - 1), saved.cells()), saved.positions(), track);
  }

  /// The sequence lies elsewhere now, in cells that may have been others'. Of other sequences what certainly holds is kept.
  void lose_sight_of(llama_seq_id sequence) {
    if (probe_ == nullptr) return;
    const auto all = static_cast<llama_seq_id>(llama_n_seq_max(context_));
    for (llama_seq_id t = 0; t < all && base_ == unknown; ++t)
      if (t != sequence && llama_memory_seq_pos_max(memory_, t) >= 0 && base_cache(t)) break;
    for (std::size_t cache = 0; cache < probe_->caches().size(); ++cache) {
      cell_table& table = probe_->caches()[cache].table;
      const auto is_of = [&](const sighting& s, llama_seq_id t) {
        return t != sequence && llama_memory_seq_pos_max(memory_, t) >= 0 && looks_like(t, s, cache);
      };
      // One that is not known to be anybody's stays if another sequence for each that looks like it does, too.
      const auto is_anothers = [&](const sighting& s) {
        std::size_t others = 0;
        for (llama_seq_id t = 0; t < all; ++t) others += is_of(s, t) ? 1U : 0U;
        return others > 0 && others >= alike(table, s.cells.size(), table.position(s.stream, s.last_cell));
      };
      table.retain([&](const sighting& s) {
        const llama_seq_id whose = table.streams() > 1 ? static_cast<llama_seq_id>(s.stream) : s.sequence;
        return cache == base_ && (whose < 0 ? is_anothers(s) : is_of(s, whose));
      });
    }
  }

  // ---- marks ----

  // Of the last layer: in the first one all tokens that are the same word have the same values.
  static const matrix& marked(const cached_layer& l) { return l.has_values() ? l.values : l.keys; }
  static const matrix& marked(const saved_sequence& s) {
    return s.has_values() ? s.values(s.layers() - 1) : s.keys(s.layers() - 1);
  }

  static std::vector<std::uint64_t> marks_of(const matrix& m, std::span<const std::int32_t> cells) {
    std::vector<std::uint64_t> all;
    for (const std::int32_t cell : cells) all.push_back(mark_of(m, cell));
    return all;
  }

  // ---- both ----

  /// Has the probe record what is wanted from now on.
  status record(const wanted& w) {
    if (w.any() && probe_ == nullptr)
      return error{"policy: reads " + std::string(w.queries > 0 ? "queries" : "attention") +
                   ": give the compressor a cache_probe"};
    if (probe_ != nullptr) probe_->record(w);
    return {};
  }

  std::size_t heads_of(const cached_layer& l) const { return l.heads != 0 ? l.heads : heads_; }

  status take_ropes(const std::vector<cached_layer>& layers) {
    result<std::vector<rope>> seen = probe_->ropes(layers, layers[0].keys.width / heads_of(layers[0]));
    if (!seen) return error{seen.message()};
    ropes_ = std::move(*seen);
    return {};
  }

  /// The rows that a plan has freed are gone.
  void forget_recorded(const state& s, const plan& p, std::size_t freed) const {
    recording* r = recorded(s);
    if (r != nullptr && freed > 0) r->erase(p.candidates.begin, freed, p.tokens_before - p.candidates.end);
  }

  /// A budget in bytes becomes a number of tokens as soon as the layers are known.
  status fit_budget(llama_seq_id sequence) {
    if (policy_.budget.as<keep::bytes>() == nullptr) return {};
    const result<read_state> read = read_whole(sequence);
    return read ? fit_to(read->saved.all_layers()) : status(error{read.message()});
  }

  status fit_to(const std::vector<cached_layer>& layers) {
    const result<layer> first = view(layers[0], heads_, {});
    if (!first) return error{first.message()};
    const result<policy> fitted = fit(policy_, *first, layers.size());
    if (!fitted) return error{fitted.message()};
    policy_ = *fitted;
    return {};
  }

  /// All layers as the policy gets them, checked: plan_eviction() and compress() cannot fail afterwards.
  result<std::vector<layer>> offer(state& s, const std::vector<cached_layer>& cached, std::span<const std::int32_t> cells,
                                   std::span<const llama_pos> positions, llama_pos last) {
    recording* seen = recorded(s);
    if (seen == nullptr && reads().any()) return error{"recording: the cells of this sequence have not been seen"};
    if (seen != nullptr) {
      seen->truncate(last + 1);
      if (status ok = seen->check(last, cells.size(), cached.size()); !ok) return error{ok.message()};
    }
    if (policy_.needs.rope || !queries_.empty())
      if (status ok = take_ropes(cached); !ok) return error{ok.message()};
    std::vector<layer> layers(cached.size());
    beside_.assign(cached.size(), extras{});
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (cached[i].heads == 0 && cached[i].keys.width != cached[0].keys.width)
        return error{"cache: its layers differ in width, so their heads are not known: give the compressor a cache_probe"};
      const result<layer> l = view(cached[i], heads_, cells);
      if (!l) return error{l.message()};
      layers[i] = *l;
      if (seen != nullptr) beside_[i] = seen->beside(i);
      beside_[i].protect = s.protect;
      if (policy_.needs.rope) beside_[i].rope = &ropes_[i];
      layers[i].extra = &beside_[i];
      layers[i].index = i;
    }
    if (policy_.needs.rope || follows_rows())
      if (status ok = offer_positions(s, layers, positions); !ok) return error{ok.message()};
    if (!queries_.empty())
      if (status ok = expect_queries(layers, static_cast<std::size_t>(last) + 1); !ok) return error{ok.message()};
    for (const layer& l : layers)
      if (status ok = check(policy_, l); !ok) return error{ok.message()};
    if (policy_.needs.key_statistics && policy_.budget.again())
      if (status ok = accumulate(s, layers, static_cast<std::size_t>(last) + 1); !ok) return error{ok.message()};
    return layers;
  }

  /// Whether the policy reads where rows come from that have moved.
  bool follows_rows() const { return policy_.budget.again() || (policy_.needs.rope && policy_.needs.all_rows); }

  /// The position of each row in each head. `cells`: those of the rows' cells, which the host may have shifted since.
  status offer_positions(state& s, const std::vector<layer>& layers, std::span<const llama_pos> cells) {
    const std::size_t n = cells.size(), rows = follows_rows() ? s.at.compressed : 0;
    if (rows > 0 && (s.moved.cells.size() < rows || s.moved.positions.size() != layers.size()))
      return error{"checkpoint: moved rows: " + std::to_string(s.moved.cells.size()) + " of " +
                   std::to_string(s.moved.positions.size()) + " layers: must be the " + std::to_string(rows) +
                   " that were compressed, of " + std::to_string(layers.size())};
    for (std::size_t i = 0; rows > 0 && i < layers.size(); ++i)
      if (const std::size_t all = layers[i].keys.heads() * s.moved.cells.size(); s.moved.positions[i].size() != all)
        return error{"checkpoint: moved rows: " + std::to_string(s.moved.positions[i].size()) + " positions of layer " +
                     std::to_string(i) + ": must be " + std::to_string(all)};
    follow_shift(s, cells);
    const moved_rows moved = rows > 0 ? still_there(s) : moved_rows{};
    positions_.resize(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const std::size_t heads = layers[i].keys.heads();
      positions_[i].resize(heads * n);
      for (std::size_t head = 0; head < heads; ++head) {
        std::uint32_t* to = positions_[i].data() + head * n;
        for (std::size_t row = 0; row < n; ++row)
          to[row] = row < rows ? moved.positions[i][head * rows + row] : static_cast<std::uint32_t>(cells[row]);
      }
      beside_[i].positions = {positions_[i].data(), static_cast<std::ptrdiff_t>(n)};
    }
    return {};
  }

  /// The host may have shifted the rows' cells to these positions.
  static void follow_shift(state& s, std::span<const llama_pos> cells) {
    const std::size_t n = s.moved.cells.size();
    for (std::size_t row = 0; n > 0 && row < s.at.compressed; ++row) {
      const std::size_t at = s.still.empty() ? row : s.still[row];
      const auto by = static_cast<std::uint32_t>(cells[row]) - static_cast<std::uint32_t>(s.moved.cells[at]);
      for (std::vector<std::uint32_t>& all : s.moved.positions)
        for (std::size_t i = at; i < all.size(); i += n) all[i] += by;
      s.moved.cells[at] = cells[row];
    }
  }

  /// After rows [first, first + freed) of those that were offered are gone: `cells` are the positions of before.
  void note_moved(state& s, std::span<const llama_pos> cells, std::size_t first, std::size_t freed) const {
    s.moved = {}, s.still.clear();
    if (!follows_rows()) return;
    const std::size_t n = cells.size(), moved = s.at.compressed;
    const auto source = [&](std::size_t row) { return row < first ? row : row + freed; };
    for (std::size_t row = 0; row < moved; ++row) s.moved.cells.push_back(cells[source(row)]);
    for (const std::vector<std::uint32_t>& all : positions_) {
      std::vector<std::uint32_t>& of_layer = s.moved.positions.emplace_back();
      for (std::size_t head = 0; head < all.size() / n; ++head)
        for (std::size_t row = 0; row < moved; ++row) of_layer.push_back(all[head * n + source(row)]);
    }
  }

  /// What the queries at the next positions will be like.
  status expect_queries(const std::vector<layer>& layers, std::size_t next) {
    if (queries_.size() != layers.size())
      return error{"query statistics of " + std::to_string(queries_.size()) + " layers: must be those of " +
                   std::to_string(layers.size())};
    expected_.resize(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const query_statistics& s = queries_[i];
      if (s.channels != layers[i].keys.channels() || s.mean.size() != s.heads * s.channels ||
          (!s.covariance.empty() && s.covariance.size() != s.mean.size() * s.channels) ||
          s.factors.size() != s.rank() * s.mean.size())
        return error{"query statistics of layer " + std::to_string(i) + ": channels=" + std::to_string(s.channels) + ", " +
                     std::to_string(s.mean.size()) + " means, " + std::to_string(s.covariance.size()) + " covariances, " +
                     std::to_string(s.factors.size()) + " of factors: must be those of " +
                     std::to_string(layers[i].keys.channels()) + " channels"};
      expected_[i] = moved(s, ropes_[i], next, expected_queries);
      if (const float scale = beside_[i].scale; scale > 0)
        expected_[i].multiply(1 / (scale * std::sqrt(static_cast<float>(s.channels))));
      beside_[i].query_mean = expected_[i].mean_view(), beside_[i].query_covariance = expected_[i].covariance_view();
      beside_[i].query_factors = expected_[i].factors_view();
    }
    return {};
  }

  /// Adds the keys since the last time to the key statistics of each layer.
  status accumulate(state& s, const std::vector<layer>& layers, std::size_t seen) {
    const auto each = [&](std::size_t i) { return layers[i].keys.heads() * key_statistics::size(layers[i].keys.channels()); };
    if (s.key_statistics.empty())
      for (std::size_t i = 0; i < layers.size(); ++i) s.key_statistics.emplace_back(each(i));
    if (s.key_statistics.size() != layers.size())
      return error{"key statistics of " + std::to_string(s.key_statistics.size()) + " layers: must be those of " +
                   std::to_string(layers.size())};
    for (std::size_t i = 0; i < layers.size(); ++i)
      if (s.key_statistics[i].size() != each(i))
        return error{"key statistics of " + std::to_string(s.key_statistics[i].size()) + " numbers a layer: must be " +
                     std::to_string(each(i))};
    const std::size_t added = s.fresh != unknown ? s.fresh : seen > s.counted ? seen - s.counted : 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      beside_[i].key_statistics = {s.key_statistics[i].data()};
      accumulate_key_statistics(policy_, layers[i], s.at, (std::min)(added, layers[i].tokens), workspace_);
    }
    s.counted = seen, s.uncounted = 0;
    s.counted_written = written();
    return {};
  }

  static error unequal() { return {"policy: keeps different numbers of tokens a head, which llama.cpp's cache cannot hold"}; }

  llama_context* context_;
  llama_memory_t memory_;
  std::size_t heads_;                            // of a layer that no graph has shown
  std::size_t base_ = unknown;                   // the cache of the layers with full attention
  std::string waits_;                            // what llama.cpp does at the next decode only; until then nothing can be done
  std::uint64_t copied_at_ = ~std::uint64_t{0};  // tokens that the cache had taken at the last copy()
  std::size_t row_bytes_ = 0, state_fixed_ = 0, added_to_cell_ = 0, header_ = state_header;
  policy policy_;
  cache_probe* probe_;
  lagkv::workspace workspace_;
  std::vector<extras> beside_;  // what the layers of a call point to
  std::vector<std::vector<std::uint32_t>> positions_;
  std::vector<rope> ropes_;
  std::vector<query_statistics> queries_, expected_;  // before RoPE; at the positions to come
  std::map<llama_seq_id, state> sequences_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
