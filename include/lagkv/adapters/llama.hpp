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
// are decoded after the compressor is made; others slow nothing down. Those that read keys as they were before RoPE (recommended,
// novelty, distinct, kvzap, pre_rope=yes) need it for the rotary embedding of each layer, which it takes from the first graph.
// Those that read statistics of the model's queries (calibrated=yes) get them with make(); calibration.hpp counts them.
//
// Taken: caches of f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 and q5_1 (keys and values may differ), with or without flash
// attention, on any backend. Quantised rows move as they are. llama.cpp stores most of them under a Hadamard matrix: the
// probe sees it and policies get rows without it; without a probe they are scored as stored. Refused, with the sequence left
// as it was: other types, blocks that span tokens, models with recurrent layers alone. Of models with window layers or recurrent
// ones the layers with full attention are compressed, the others left alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/compression.hpp>
#include <lagkv/adapters/llama/in_place.hpp>
#include <lagkv/adapters/llama/offers.hpp>
#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/progress.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/repack.hpp>
#include <lagkv/adapters/llama/report.hpp>
#include <lagkv/adapters/llama/sizes.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/whereabouts.hpp>
#include <lagkv/attention/importance.hpp>
#include <lagkv/attention/query_statistics.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Compresses the sequences of one context. All layers and heads keep the same number of tokens, but each chooses its own.
/// Use it from the thread that decodes.
class compressor {
 public:
  /// Fails if the model's memory is of an unknown kind or cannot hold what the policy keeps, or if the policy reads what cannot
  /// be recorded. `context` and `probe` must outlive the compressor. From now on the probe records what this policy reads, and
  /// nothing else. queries: for each layer the statistics of its queries before RoPE (calibration.hpp); policies that read
  /// statistics then take these, moved to the 512 positions that come next, and nothing is recorded for them. importance: for
  /// each layer the map that `kvzap` reads.
  static result<compressor> make(llama_context* context, const policy& p, cache_probe* probe = nullptr,
                                 std::vector<query_statistics> queries = {}, std::vector<importance_map> importance = {}) {
    const llama_model* model = llama_get_model(context);
    if (llama_model_is_recurrent(model)) return error{"model: has recurrent memory, no cache of keys and values"};
    if (llama_get_memory(context) == nullptr || !llama_model_has_decoder(model))
      return error{"model: keeps no tokens: an encoder has no cache"};
    if (llama_model_n_head_kv(model) < 1) return error{"model: has no KV heads"};
    if (p.ragged) return unequal();
    if (p.budget.slope.sloped())
      return error{"policy: layers keep different numbers of tokens (pyramid), which llama.cpp's cache cannot hold"};
    if (p.needs.rope && probe == nullptr)
      return error{"policy: reads keys as they were before RoPE: give the compressor a cache_probe, which sees their embedding"};
    if (p.needs.calibrated && queries.empty())
      return error{"policy: reads statistics of the model's queries: give them to make() (calibration.hpp)"};
    if (p.needs.importance && importance.empty())
      return error{"policy: reads the map of importance that was fitted to the model: give it to make() (calibration.hpp)"};
    if (!p.needs.query_statistics) queries.clear();
    if (!p.needs.importance) importance.clear();
    if (!queries.empty() && probe == nullptr)
      return error{"policy: reads statistics of queries: give the compressor a cache_probe, which sees their embedding"};
    if (probe != nullptr) probe->set_context(context);
    compressor made(context, p, probe, std::move(queries), std::move(importance));
    if (status ok = made.record(); !ok) return error{ok.message()};
    return made;
  }

  /// Positions of `sequence` that are never dropped, in place of those given before: as llama.cpp says them when compress() is
  /// called. After a context shift give them anew.
  void protect(llama_seq_id sequence, std::vector<std::uint32_t> positions) {
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    sequences_[sequence].protect = std::move(positions);
  }

  /// From now on compress() calls this for each layer, with its plan, before any row moves; it may change rows that stay, by
  /// refit_values() for example. What it reads must be recorded: raise needs.queries of the policy that make() gets.
  void set_before_moving(before_moving call) { change_ = std::move(call); }

  /// Drops what is due of `sequence`. Call it after llama_decode has used the new tokens. If it fails the sequence is as it was.
  /// `observe(layer, plan)` is called for each layer after all is done; if it throws, the sequence stays compressed.
  ///
  /// What the host has done since (tokens taken back, a span removed, a context shift) is seen in the cache. In place needs a
  /// probe and a cache in host memory. A sequence that shares cells with another (llama_memory_seq_cp) is repacked, which gives
  /// it cells of its own.
  template <class Observe>
  result<report> compress(llama_seq_id sequence, way how, const Observe& observe) {
    if (status ok = in_range(sequence); !ok) return error{ok.message()};
    progress& s = sequences_[sequence];
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) {  // it is empty: what comes is a new one
      s.begin_anew();
      return report{};
    }
    s.fresh = progress::unknown;
    where_.look_anew();
    if (status ok = fit_budget(sequence); !ok) return error{ok.message()};
    const compression call = call_for(sequence, s);
    std::string obstacle = "no cache_probe was given";
    bool followed = false;
    if (where_.has_probe()) {
      const auto due = [&](std::size_t rows) { return !offers_.rules().budget.due(s.at, rows).empty(); };
      const auto none = [&](std::size_t rows) { return call.nothing_due(rows, row_bytes(*where_.base())); };
      result<seen_rows> seen = find(sequence, s, last);
      if (seen && !due(seen->cells().size())) return none(seen->cells().size());
      const result<certain_rows> rows = seen ? make_sure(sequence, s, last, std::move(*seen), followed) : error{seen.message()};
      if (rows && !due(rows->cells.size())) return none(rows->cells.size());
      if (status ok = where_.waits_for_nothing(sequence); !ok) return error{ok.message()};
      if (!rows) {
        obstacle = rows.message();
        if (!followed) take_track(sequence, s);
      } else if (how != way::repack) {
        bool moved = false;
        result<report> done = compress_in_place(call, *rows, observe, moved);
        if (done || moved || how == way::in_place) return done;
      }
    }
    if (how == way::in_place) return error{"in place: " + obstacle};
    return repack(call, followed, observe);
  }

  result<report> compress(llama_seq_id sequence, way how = way::automatic) { return compress(sequence, how, unobserved{}); }

  /// Puts the rows of a sequence into adjacent cells, as repack does; no row changes. Attention reads up to the highest cell in
  /// use, so tokens are decoded faster afterwards if compression in place has left holes. Call it once, between a prompt that was
  /// compressed in chunks and its answer. Costs a copy of the sequence's state and back, or nothing if the cells are adjacent
  /// already. If it fails the sequence is as it was.
  status defragment(llama_seq_id sequence) {
    if (status ok = in_range(sequence); !ok) return ok;
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) return {};
    progress& s = sequences_[sequence];
    s.fresh = progress::unknown;
    where_.look_anew();
    if (where_.has_probe()) {
      if (const result<seen_rows> rows = find(sequence, s, last)) {
        const auto [low, high] = std::minmax_element(rows->cells().begin(), rows->cells().end());
        if (static_cast<std::size_t>(*high - *low) + 1 == rows->cells().size()) return {};
      }
      if (status ok = where_.waits_for_nothing(sequence); !ok) return ok;
    }
    const result<read_state> read = where_.states().read(sequence);
    if (!read) return error{read.message()};
    const saved_sequence& saved = read->saved;
    const compression call = call_for(sequence, s);
    s.follow(saved);
    where_.tell_apart(sequence);
    if (status ok = put_back(call, saved.tokens(), saved.tokens(), read->bytes, read->bytes); !ok) return ok;
    // Nothing says when the rows in these cells were written.
    const auto end = static_cast<std::size_t>(last) + 1;
    s.uncounted = (std::min)(s.fresh != progress::unknown ? s.fresh : end - (std::min)(s.counted, end), saved.tokens());
    s.counted_written = where_.written();
    note_new_cells(call, saved);
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
    if (!in_range(sequence) || (!sequences_.contains(sequence) && !offers_.reads().any())) return {};
    progress& s = sequences_[sequence];
    s.fresh = progress::unknown;
    look_again(sequence, s);
    checkpoint c = s;
    const llama_pos end = llama_memory_seq_pos_max(memory_, sequence) + 1;
    if (s.fresh != progress::unknown)  // restore() tells rows that are in no statistics by this number
      c.counted = static_cast<std::size_t>(end) - (std::min)(s.fresh, static_cast<std::size_t>(end));
    c.moved = s.still_there();
    if (const recording* r = where_.recorded(s.track)) {
      c.recorded = *r;
      c.recorded.truncate(end);
    }
    return c;
  }

  /// Call it for each sequence when the whole context has been loaded anew (llama_state_set_data). Without a probe, call it also
  /// when a sequence is cleared or its tokens are replaced; a probe sees that.
  void forget(llama_seq_id sequence) {
    sequences_.erase(sequence);
    where_.lose_sight_of(sequence);
  }

  /// Call it after llama_memory_seq_cp(from, to) of a whole sequence or a part.
  void copy(llama_seq_id from, llama_seq_id to) {
    if (from == to) return;
    progress& copied = sequences_[to] = sequences_[from];
    copied
        .cells = {};  // its rows are known by their marks, in cells of any age: only what is written from now on is none of them
    copied.written = where_.written();
    copied.track = where_.copied(from, to, copied.track);
  }

  /// Call it after llama_state_seq_set_data(sequence, bytes), with what save() gave beside the bytes ({} if they have never been
  /// compressed). If the policy reads queries or attention, c.recorded must have them. Compression goes on from there, in place
  /// once the sequence has been found in the cache, at the latest when its next token is decoded. The next compress() refuses key
  /// statistics of other layers, heads or channels than the cache has, and leaves the sequence as it was. If restore() fails,
  /// nothing is known of the sequence that was not known before.
  status restore(llama_seq_id sequence, std::span<const std::uint8_t> bytes, const checkpoint& c) {
    if (status ok = in_range(sequence); !ok) return ok;
    const result<saved_sequence> saved =
        saved_sequence::parse({const_cast<std::uint8_t*>(bytes.data()), bytes.size()},  // only read
                              where_.states().have_other_memory() ? saved_sequence::unknown_rest : 0);
    if (!saved) return error{saved.message()};
    if (c.at.compressed > c.at.tokens || c.at.compressed > saved->tokens())
      return error{"checkpoint: compressed=" + std::to_string(c.at.compressed) + ": must be at most its " +
                   std::to_string(c.at.tokens) + " tokens and the state's " + std::to_string(saved->tokens())};
    if (!c.moved.cells.empty() && c.moved.cells.size() != c.at.compressed)
      return error{"checkpoint: moved rows: " + std::to_string(c.moved.cells.size()) + ": must be the " +
                   std::to_string(c.at.compressed) + " that were compressed"};
    // Whole heads: save() and defragment() take rows out of each before compress() knows how many heads there are.
    for (std::size_t i = 0; i < c.moved.positions.size() && !c.moved.cells.empty(); ++i)
      if (const std::size_t n = c.moved.positions[i].size(); n % c.moved.cells.size() != 0)
        return error{"checkpoint: moved rows: " + std::to_string(n) + " positions of layer " + std::to_string(i) +
                     ": must be a multiple of the " + std::to_string(c.moved.cells.size()) + " rows"};
    progress& s = sequences_[sequence];
    s.begin_anew();
    static_cast<checkpoint&>(s) = c;
    s.marks = marks_of(marked(*saved), saved->cells().first(c.at.compressed));
    s.offset = saved->positions().back() + 1 - static_cast<llama_pos>(saved->tokens());
    const auto end = static_cast<std::size_t>(saved->positions().back()) + 1;
    s.uncounted = (std::min)(end - (std::min)(s.counted, end), saved->tokens());
    s.written = s.counted_written = where_.written();
    where_.lose_sight_of(sequence);
    s.track = where_.new_track(std::exchange(s.recorded, {}));
    where_.expect(sequence, *saved, s.track);
    return {};
  }

  lagkv::workspace& workspace() { return workspace_; }

 private:
  compressor(llama_context* context, const policy& p, cache_probe* probe, std::vector<query_statistics> queries,
             std::vector<importance_map> importance)
      : context_(context),
        memory_(llama_get_memory(context)),
        probe_(probe),
        where_(context, probe),
        offers_(context, p, probe, std::move(queries), std::move(importance)) {}

  compression call_for(llama_seq_id sequence, progress& s) {
    return {context_, sequence, s, where_, offers_, workspace_, change_};
  }

  status in_range(llama_seq_id sequence) const {
    if (sequence >= 0 && static_cast<std::uint32_t>(sequence) < llama_n_seq_max(context_)) return {};
    return error{"sequence " + std::to_string(sequence) + ": must be from 0 to " + std::to_string(llama_n_seq_max(context_) - 1)};
  }

  /// Has the probe record what is wanted from now on.
  status record() {
    const wanted w = offers_.reads();
    if (w.any() && probe_ == nullptr)
      return error{"policy: reads " + std::string(w.queries > 0 ? "queries" : "attention") +
                   ": give the compressor a cache_probe"};
    if (probe_ != nullptr) probe_->record(w);
    return {};
  }

  status fit_budget(llama_seq_id sequence) {
    if (offers_.fits()) return {};
    const result<read_state> read = where_.states().read(sequence);
    return read ? offers_.fit_to(read->saved.all_layers()) : status(error{read.message()});
  }

  /// Where the rows of a sequence were seen; what was compressed follows what the host has done to them.
  result<seen_rows> find(llama_seq_id sequence, progress& s, llama_pos last) {
    result<seen_rows> rows = where_.find(sequence, last);
    if (rows) follow(s, *rows, last);
    return rows;
  }

  void follow(progress& s, const seen_rows& rows, llama_pos last) {
    const seen_cache& cache = *where_.base();
    const std::size_t stream = rows.seen->stream;
    s.follow(cache.table, stream, rows.cells(), last, cache.layers.back().of_stream(stream));
    s.track = rows.seen->track;
  }

  /// Where its rows lie for certain; what was recorded follows, too. `followed`: what was compressed has done so, for certain,
  /// also if other sequences have a part in these rows.
  result<certain_rows> make_sure(llama_seq_id sequence, progress& s, llama_pos last, seen_rows seen, bool& followed) {
    const result<seen_rows> sure = where_.make_sure(sequence, last, std::move(seen));
    if (!sure) return error{sure.message()};
    follow(s, *sure, last);
    followed = true;
    if (status ok = where_.is_alone(sequence, *sure); !ok) return error{ok.message()};
    certain_rows rows = where_.in_order(*sure);
    if (recording* r = where_.recorded(s.track))
      r->follow(where_.base()->table.tokens(rows.seen->stream, rows.cells), rows.positions);
    return rows;
  }

  /// Finds what is recorded of a sequence that has been followed by its state.
  void take_track(llama_seq_id sequence, progress& s) {
    if (const std::size_t track = where_.track_by_content(sequence); track != no_track) s.track = track;
  }

  /// What is left of the rows that were compressed, and where.
  void look_again(llama_seq_id sequence, progress& s) {
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) s.begin_anew();
    if (last < 0 || (s.at.compressed == 0 && !offers_.reads().any())) return;
    where_.look_anew();
    bool followed = false;
    if (where_.has_probe()) {
      result<seen_rows> seen = find(sequence, s, last);
      if (seen)
        if (const result<certain_rows> rows = make_sure(sequence, s, last, std::move(*seen), followed))
          return s.follow_shift(rows->positions);
    }
    if (where_.waits_for_copy()) return;  // what was compressed is not to be looked for among other rows
    if (const result<read_state> read = where_.states().read(sequence)) {
      if (!followed) {
        s.follow(read->saved);
        take_track(sequence, s);
      }
      s.follow_shift(read->saved.positions());
    }
  }

  llama_context* context_;
  llama_memory_t memory_;
  cache_probe* probe_;
  whereabouts where_;
  offers offers_;
  before_moving change_;
  lagkv::workspace workspace_;
  std::map<llama_seq_id, progress> sequences_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
