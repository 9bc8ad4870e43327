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
// as it was: other types, blocks that span tokens, models with sliding-window layers, recurrent and hybrid models, models
// whose layers differ in width.
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

/// What compression knows of a sequence, to be saved beside its state: plain data.
struct checkpoint {
  cursor at{};                                        ///< how far it has been compressed
  std::vector<std::vector<double>> key_statistics{};  ///< of each layer, dropped keys too (extras.key_statistics),
                                                      ///< if the policy reads them
  std::size_t counted = 0;                            ///< tokens of the sequence that are in them
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
    if (llama_model_is_hybrid(model)) return error{"model: has hybrid memory: not taken"};
    if (const int window = llama_model_n_swa(model); window > 0)
      return error{"model: has sliding-window layers (" + std::to_string(window) + " tokens): not taken"};
    if (llama_model_n_head_kv(model) < 1) return error{"model: has no KV heads"};
    if (p.ragged) return unequal();
    if (p.budget.slope.beta > 1)
      return error{"policy: layers keep different numbers of tokens (pyramid), which llama.cpp's cache cannot hold"};
    if (p.needs.rope && probe == nullptr)
      return error{"policy: reads keys as they were before RoPE: give the compressor a cache_probe, which sees their embedding"};
    if (p.needs.calibrated && queries.empty())
      return error{"policy: reads statistics of the model's queries: give them to make() (calibration.hpp)"};
    if (!p.needs.query_statistics) queries.clear();
    if (!queries.empty() && probe == nullptr)
      return error{"policy: reads statistics of queries: give the compressor a cache_probe, which sees their embedding"};
    compressor made(context, p, probe, std::move(queries));
    if (status ok = made.record(made.reads()); !ok) return error{ok.message()};
    return made;
  }

  /// Positions of `sequence` that are never dropped, in place of those given before. If survivors are candidates again
  /// (capacity=, budget_mb=), give them before the first token: their places are then recorded.
  status protect(llama_seq_id sequence, std::vector<std::uint32_t> positions) {
    wanted w = reads();
    w.positions = w.positions || (policy_.budget.again() && !positions.empty());
    if (status ok = record(w); !ok) return ok;
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    sequences_[sequence].protect = std::move(positions);
    return {};
  }

  /// Drops what is due of `sequence`. Call it after llama_decode has used the new tokens. Where it fails the
  /// sequence is as it was. `observe(layer, plan)` is called for each layer with what it keeps.
  ///
  /// In place needs a probe, a cache in host memory, one sequence a context (n_seq_max 1), and positions 0, 1, 2, ... of
  /// which the host has taken back none but the last. A sequence that shares cells with another (llama_memory_seq_cp)
  /// must be repacked: that gives it cells of its own.
  template <class Observe>
  result<report> compress(llama_seq_id sequence, way how, const Observe& observe) {
    const llama_pos last = llama_memory_seq_pos_max(memory_, sequence);
    if (last < 0) return report{};
    state& s = sequences_[sequence];
    if (status ok = fit_budget(sequence); !ok) return error{ok.message()};
    take_back(s.at, expected_tokens(s, last));
    if (is_before_due(s, last)) return nothing_due(s, last);
    if (how != way::repack) {
      result<report> done = compress_in_place(sequence, s, last, observe);
      if (done || how == way::in_place) return done;
    }
    return repack(sequence, s, last, observe);
  }

  result<report> compress(llama_seq_id sequence, way how = way::automatic) {
    return compress(sequence, how, [](std::size_t, const plan&) {});
  }

  /// How far a sequence has been compressed.
  cursor at(llama_seq_id sequence) const {
    const auto found = sequences_.find(sequence);
    return found == sequences_.end() ? cursor{} : found->second.at;
  }

  /// Save it beside llama_state_seq_get_data(sequence), for restore().
  checkpoint save(llama_seq_id sequence) const {
    const auto found = sequences_.find(sequence);
    return found == sequences_.end() ? checkpoint{} : checkpoint(found->second);
  }

  /// Call it when a sequence is cleared or its tokens are replaced.
  void forget(llama_seq_id sequence) { sequences_.erase(sequence); }

  /// Call it after llama_memory_seq_cp(from, to) of a whole sequence.
  void copy(llama_seq_id from, llama_seq_id to) { sequences_[to] = sequences_[from]; }

  /// Call it after llama_state_seq_set_data(sequence, bytes), with what save() gave beside the bytes ({} where they have never
  /// been compressed), and where the policy reads it, with the probe's recording of then. Compression goes on from there; in
  /// place only where the sequence is found to lie in cells 0, 1, 2, ... of an otherwise empty cache. Key statistics of other
  /// layers, heads or channels than the cache has are refused by the next compress(), with the sequence left as it was.
  status restore(llama_seq_id sequence, std::span<const std::uint8_t> bytes, const checkpoint& c, const recording* r = nullptr) {
    const result<saved_sequence> saved =
        saved_sequence::parse({const_cast<std::uint8_t*>(bytes.data()), bytes.size()});  // only read
    if (!saved) return error{saved.message()};
    state& s = sequences_[sequence];
    static_cast<checkpoint&>(s) = c;
    adopt(s, *saved);
    if (probe_ != nullptr) probe_->set_recorded(r != nullptr ? *r : recording{});
    return {};
  }

  lagkv::workspace& workspace() { return workspace_; }

 private:
  struct state : checkpoint {
    std::vector<llama_pos> positions;    ///< of the rows after the last compression in place, ascending
    std::vector<std::uint32_t> protect;  ///< ascending
  };

  compressor(llama_context* context, const policy& p, cache_probe* probe, std::vector<query_statistics> queries)
      : context_(context),
        memory_(llama_get_memory(context)),
        heads_(static_cast<std::size_t>(llama_model_n_head_kv(llama_get_model(context)))),
        policy_(p),
        probe_(probe),
        queries_(std::move(queries)) {}

  wanted reads() const { return wanted_by(policy_, !queries_.empty()); }

  /// Rows in use, if positions run on from the dropped ones as they do unless the host renumbers them.
  static std::size_t expected_tokens(const state& s, llama_pos last) {
    const auto seen = static_cast<std::size_t>(last) + 1;
    return seen > s.at.dropped ? seen - s.at.dropped : 0;
  }

  bool is_before_due(const state& s, llama_pos last) const { return policy_.budget.due(s.at, expected_tokens(s, last)).empty(); }

  report nothing_due(state& s, llama_pos last) {
    const std::size_t n = expected_tokens(s, last);
    plan none;
    none.clear(n);
    advance(s.at, none);
    const std::size_t bytes = probe_ != nullptr ? n * row_bytes() : 0;
    return {.tokens_before = n, .tokens_after = n, .bytes_before = bytes, .bytes_after = bytes};
  }

  // ---- in place ----

  template <class Observe>
  result<report> compress_in_place(llama_seq_id sequence, state& s, llama_pos last, const Observe& observe) {
    if (probe_ == nullptr) return error{"in place: no cache_probe was given"};
    if (!probe_->obstacle().empty()) return error{"in place: " + probe_->obstacle()};
    if (probe_->layers().empty()) return error{"in place: nothing has been decoded yet"};
    if (llama_n_seq_max(context_) != 1)
      return error{"in place: n_seq_max=" + std::to_string(llama_n_seq_max(context_)) + ": must be 1"};

    std::vector<llama_pos> positions = s.positions;
    while (!positions.empty() && positions.back() > last) positions.pop_back();
    for (llama_pos p = positions.empty() ? 0 : positions.back() + 1; p <= last; ++p) positions.push_back(p);
    std::vector<std::int32_t> cells(positions.size());
    for (std::size_t i = 0; i < cells.size(); ++i) {
      cells[i] = probe_->cell_of(positions[i]);
      if (cells[i] < 0) return error{"in place: the cell of position " + std::to_string(positions[i]) + " has not been seen"};
    }
    const result<std::size_t> in_use = cells_in_use(sequence);
    if (!in_use) return error{in_use.message()};
    if (*in_use != cells.size())
      return error{"in place: " + std::to_string(cells.size()) + " cells have been seen, " + std::to_string(*in_use) +
                   " are in use"};

    const result<std::vector<layer>> offered = offer(s, probe_->layers(), cells, last);
    if (!offered) return error{offered.message()};
    const std::vector<layer>& layers = *offered;

    report done{.tokens_before = cells.size(), .tokens_after = cells.size(), .in_place = true};
    done.bytes_before = done.tokens_before * row_bytes();
    std::vector<cursor> moved(layers.size(), s.at);
    const auto told = [&](std::size_t i, const plan& applied) { observe(i, applied); };
    if (status ok = lagkv::compress(policy_, layers, moved, workspace_, {.direction = toward::window, .moved = told}); !ok)
      return error{ok.message()};
    const plan& p = last_plan(workspace_);
    done.tokens_after = moved[0].tokens;
    done.bytes_after = done.tokens_after * row_bytes();
    done.compressed = true;
    const std::size_t freed = done.tokens_before - done.tokens_after;
    if (freed > 0) {
      const auto first = positions.begin() + static_cast<std::ptrdiff_t>(p.candidates.begin);
      const auto end = first + static_cast<std::ptrdiff_t>(freed);
      llama_memory_seq_rm(memory_, sequence, *first, *(end - 1) + 1);
      positions.erase(first, end);
      forget_recorded(p, freed);
    }
    s.at = moved[0];
    s.at.mark = 0;  // of layer 0, while this cursor is that of all layers
    s.positions = std::move(positions);
    return done;
  }

  /// Bytes of a cell in all layers.
  std::size_t row_bytes() const {
    std::size_t n = 0;
    for (const auto& l : probe_->layers()) {
      n += ggml_row_size(l.keys.type, static_cast<std::int64_t>(l.keys.width));
      if (l.has_values()) n += ggml_row_size(l.values.type, static_cast<std::int64_t>(l.values.width));
    }
    return n;
  }

  /// From the size of the state, which costs no copy: what the probe has seen must be all that is there.
  result<std::size_t> cells_in_use(llama_seq_id sequence) const {
    std::size_t sections = 0;
    for (const auto& l : probe_->layers()) sections += l.has_values() ? 2U : 1U;
    const std::size_t fixed = 24 + 12 * sections, each = 12 + row_bytes();
    const std::size_t size = llama_state_seq_get_size(context_, sequence);
    if (size < fixed || (size - fixed) % each != 0) return error{"in place: the state has a form that lagkv does not know"};
    return (size - fixed) / each;
  }

  // ---- through the state API ----

  template <class Observe>
  result<report> repack(llama_seq_id sequence, state& s, llama_pos last, const Observe& observe) {
    std::vector<std::uint8_t> bytes(llama_state_seq_get_size(context_, sequence));
    if (llama_state_seq_get_data(context_, bytes.data(), bytes.size(), sequence) != bytes.size())
      return error{"state: could not be read"};
    const result<saved_sequence> saved = saved_sequence::parse(bytes);
    if (!saved) return error{saved.message()};

    report done{.tokens_before = saved->tokens(), .tokens_after = saved->tokens()};
    done.bytes_before = done.bytes_after = saved->payload_bytes();
    if (policy_.budget.due(s.at, saved->tokens()).empty()) return done;
    std::vector<cached_layer> rows = saved->all_layers();
    if (probe_ != nullptr && probe_->layers().size() == rows.size())
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i].keys.hadamard_block = probe_->layers()[i].keys.hadamard_block;
        rows[i].values.hadamard_block = probe_->layers()[i].values.hadamard_block;
      }
    const result<std::vector<layer>> offered = offer(s, rows, saved->cells(), last);
    if (!offered) return error{offered.message()};
    std::vector<plan> plans;
    for (const layer& l : *offered) {
      plans.push_back(plan_eviction(policy_, l, s.at, workspace_));
      if (!equal_counts(plans.back(), plans[0])) return unequal();
    }
    std::vector<std::uint8_t> fewer = saved->rebuilt(plans);
    if (llama_state_seq_set_data(context_, fewer.data(), fewer.size(), sequence) != fewer.size()) {
      llama_state_seq_set_data(context_, bytes.data(), bytes.size(), sequence);
      return error{"state: llama.cpp did not take the compressed one"};
    }
    for (std::size_t i = 0; i < plans.size(); ++i) {
      compact(*(*offered)[i].extra, plans[i], toward::window);
      observe(i, plans[i]);
    }
    done.tokens_after = plans[0].tokens_after();
    forget_recorded(plans[0], done.tokens_before - done.tokens_after);
    done.bytes_after = done.bytes_before / done.tokens_before * done.tokens_after;
    done.compressed = true;
    advance(s.at, plans[0]);
    if (const result<saved_sequence> after = saved_sequence::parse(fewer)) adopt(s, *after);
    return done;
  }

  /// After a state was set: its cells are known to the probe again if they are 0, 1, 2, ..., which the keys of the first
  /// layer tell. Else the next compression goes through the state API again.
  void adopt(state& s, const saved_sequence& saved) {
    s.positions.assign(saved.positions().begin(), saved.positions().end());
    if (probe_ == nullptr || probe_->layers().empty() || !probe_->obstacle().empty()) return;
    const matrix &cached = probe_->layers().front().keys, &given = saved.keys(0);
    std::vector<std::int32_t> cell_of;
    const std::size_t bytes = saved.tokens() * ggml_row_size(given.type, static_cast<std::int64_t>(given.width));
    if (cached.type == given.type && cached.width == given.width && std::memcmp(cached.data, given.data, bytes) == 0) {
      cell_of.assign(static_cast<std::size_t>(s.positions.back()) + 1, -1);
      for (std::size_t i = 0; i < s.positions.size(); ++i) cell_of[static_cast<std::size_t>(s.positions[i])] = saved.cells()[i];
    }
    probe_->set_cells(std::move(cell_of));
  }

  // ---- both ----

  /// Has the probe record what is wanted from now on.
  status record(const wanted& w) {
    if (w.any() && probe_ == nullptr)
      return error{"policy: reads " +
                   std::string(w.queries > 0             ? "queries"
                               : w.accumulated_attention ? "attention"
                                                         : "positions of rows") +
                   ": give the compressor a cache_probe"};
    if (w.any() && llama_n_seq_max(context_) != 1)
      return error{"recording: n_seq_max=" + std::to_string(llama_n_seq_max(context_)) + ": must be 1"};
    if (probe_ != nullptr) probe_->record(w);
    return {};
  }

  status take_ropes(std::size_t layers, std::size_t channels) {
    result<std::vector<rope>> seen = probe_->ropes(layers, channels);
    if (!seen) return error{seen.message()};
    ropes_ = std::move(*seen);
    return {};
  }

  /// The rows that a plan has freed are gone.
  void forget_recorded(const plan& p, std::size_t freed) {
    if (probe_ != nullptr && freed > 0) probe_->recorded().erase(p.candidates.begin, freed, p.tokens_before - p.candidates.end);
  }

  /// A budget in bytes becomes a number of tokens as soon as the layers are known.
  status fit_budget(llama_seq_id sequence) {
    if (policy_.budget.as<keep::bytes>() == nullptr) return {};
    if (probe_ != nullptr && !probe_->layers().empty()) return fit_to(probe_->layers());
    std::vector<std::uint8_t> bytes(llama_state_seq_get_size(context_, sequence));
    llama_state_seq_get_data(context_, bytes.data(), bytes.size(), sequence);
    const result<saved_sequence> saved = saved_sequence::parse(bytes);
    return saved ? fit_to(saved->all_layers()) : status(error{saved.message()});
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
                                   llama_pos last) {
    recording* recorded = probe_ != nullptr && probe_->recorded().what().any() ? &probe_->recorded() : nullptr;
    if (recorded != nullptr) {
      recorded->truncate(last + 1);
      if (status ok = recorded->check(last, cells.size(), cached.size()); !ok) return error{ok.message()};
    }
    if (policy_.needs.rope || !queries_.empty())
      if (status ok = take_ropes(cached.size(), cached[0].keys.width / heads_); !ok) return error{ok.message()};
    std::vector<layer> layers(cached.size());
    beside_.assign(cached.size(), extras{});
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (cached[i].keys.width != cached[0].keys.width)
        return error{"cache: its layers differ in width, so their heads are not known: not taken"};
      const result<layer> l = view(cached[i], heads_, cells);
      if (!l) return error{l.message()};
      layers[i] = *l;
      if (recorded != nullptr) beside_[i] = recorded->beside(i);
      beside_[i].protect = s.protect;
      if (policy_.needs.rope) beside_[i].rope = &ropes_[i];
      layers[i].extra = &beside_[i];
    }
    if (!queries_.empty())
      if (status ok = expect_queries(layers, static_cast<std::size_t>(last) + 1); !ok) return error{ok.message()};
    if (status ok = check(policy_, layers[0]); !ok) return error{ok.message()};  // the others are of the same form
    if (policy_.needs.key_statistics && policy_.budget.again())
      if (status ok = accumulate(s, layers, static_cast<std::size_t>(last) + 1); !ok) return error{ok.message()};
    return layers;
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
    const std::size_t each = heads_ * key_statistics::size(layers[0].keys.channels());
    if (s.key_statistics.empty()) s.key_statistics.assign(layers.size(), std::vector<double>(each));
    if (s.key_statistics.size() != layers.size())
      return error{"key statistics of " + std::to_string(s.key_statistics.size()) + " layers: must be those of " +
                   std::to_string(layers.size())};
    for (const auto& of_layer : s.key_statistics)
      if (of_layer.size() != each)
        return error{"key statistics of " + std::to_string(of_layer.size()) + " numbers a layer: must be " +
                     std::to_string(each)};
    for (std::size_t i = 0; i < layers.size(); ++i) {
      beside_[i].key_statistics = {s.key_statistics[i].data()};
      accumulate_key_statistics(policy_, layers[i], s.at, seen > s.counted ? seen - s.counted : 0, workspace_);
    }
    s.counted = seen;
    return {};
  }

  static error unequal() { return {"policy: keeps different numbers of tokens a head, which llama.cpp's cache cannot hold"}; }

  llama_context* context_;
  llama_memory_t memory_;
  std::size_t heads_;
  policy policy_;
  cache_probe* probe_;
  lagkv::workspace workspace_;
  std::vector<extras> beside_;  // what the layers of a call point to
  std::vector<rope> ropes_;
  std::vector<query_statistics> queries_, expected_;  // before RoPE; at the positions to come
  std::map<llama_seq_id, state> sequences_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
