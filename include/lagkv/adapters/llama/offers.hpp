// Part of lagkv (MIT). The layers of a sequence as a policy gets them: its rows, and what it reads beside them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/accumulate.hpp>
#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/progress.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/attention/importance.hpp>
#include <lagkv/attention/query_statistics.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Rows of a sequence, in the order of tokens.
struct offered_rows {
  std::vector<cached_layer> layers{};
  std::span<const std::int32_t> cells{};
  std::span<const llama_pos> positions{};  ///< of the cells
  recording* recorded = nullptr;           ///< queries and attention; null: nothing is recorded
  std::uint64_t written = 0;               ///< tokens that the cache has taken
};

class offers {
 public:
  /// `queries`: of each layer what its queries usually are, before RoPE, or nothing; `importance`: its map, or nothing;
  /// `head_budgets`: [layer][head], or empty.
  offers(llama_context* context, const policy& p, const cache_probe* probe, std::vector<query_statistics> queries,
         std::vector<importance_map> importance, std::vector<std::vector<float>> head_budgets = {})
      : heads_(static_cast<std::size_t>(llama_model_n_head_kv(llama_get_model(context)))),
        policy_(p),
        probe_(probe),
        queries_(std::move(queries)),
        importance_(std::move(importance)),
        head_budgets_(std::move(head_budgets)) {}

  const lagkv::policy& rules() const { return policy_; }

  /// What has to be recorded for them.
  wanted reads() const { return wanted_by(policy_, !queries_.empty()); }

  /// A budget in bytes becomes a number of tokens as soon as the layers are known.
  bool fits() const { return policy_.budget.as<keep::bytes>() == nullptr; }
  status fit_to(const std::vector<cached_layer>& layers) {
    const result<layer> first = view(layers[0], heads_, {});
    if (!first) return error{first.message()};
    const result<policy> fitted = fit(policy_, *first, layers.size());
    if (!fitted) return error{fitted.message()};
    policy_ = *fitted;
    return {};
  }

  /// All layers, checked: plan_eviction() and compress() cannot fail afterwards. They hold until the next call.
  result<std::vector<layer>> make(progress& s, const offered_rows& r, workspace& ws) {
    const llama_pos last = r.positions.back();
    if (r.recorded == nullptr && reads().any())
      return error{
          "recording: there is none of this sequence: make the compressor before the first token, give restore() the recording"};
    if (r.recorded != nullptr) {
      r.recorded->truncate(last + 1);
      if (status ok = r.recorded->check(last, r.cells.size(), r.layers.size()); !ok) return error{ok.message()};
    }
    if (policy_.needs.rope || !queries_.empty())
      if (status ok = take_ropes(r.layers); !ok) return error{ok.message()};
    if (!importance_.empty() && importance_.size() != r.layers.size())
      return error{"maps of importance of " + std::to_string(importance_.size()) + " layers: must be those of " +
                   std::to_string(r.layers.size())};
    if (!head_budgets_.empty() && head_budgets_.size() != r.layers.size())
      return error{"budgets of the heads of " + std::to_string(head_budgets_.size()) + " layers: must be those of " +
                   std::to_string(r.layers.size())};
    std::vector<layer> layers(r.layers.size());
    beside_.assign(layers.size(), extras{});
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (r.layers[i].heads == 0 && r.layers[i].keys.width != r.layers[0].keys.width)
        return error{"cache: its layers differ in width, so their heads are not known: give the compressor a cache_probe"};
      const result<layer> l = view(r.layers[i], heads_, r.cells);
      if (!l) return error{l.message()};
      layers[i] = *l;
      if (r.recorded != nullptr) {
        if (status ok = r.recorded->check_heads(i, layers[i].keys.heads()); !ok) return error{ok.message()};
        beside_[i] = r.recorded->beside(i);
      }
      beside_[i].protect = s.protect;
      if (policy_.needs.rope) beside_[i].rope = &ropes_[i];
      layers[i].extra = &beside_[i];
      layers[i].index = i;
      if (!importance_.empty()) beside_[i].importance = importance_[i].view();
      if (!head_budgets_.empty()) beside_[i].head_budgets = head_budgets_[i];
    }
    // Protected rows are named as llama.cpp does: the cursor's count follows neither shifts nor spans that were removed.
    if (policy_.needs.rope || follows_rows() || !s.protect.empty())
      if (status ok = offer_positions(s, layers, r.positions); !ok) return error{ok.message()};
    if (!queries_.empty())
      if (status ok = expect_queries(layers, static_cast<std::size_t>(last) + 1); !ok) return error{ok.message()};
    for (const layer& l : layers)
      if (status ok = check(policy_, l, policy_.ragged); !ok) return error{ok.message()};
    if (policy_.needs.key_statistics && policy_.budget.again())
      if (status ok = accumulate(s, layers, static_cast<std::size_t>(last) + 1, r.written, ws); !ok) return error{ok.message()};
    return layers;
  }

  /// Rows [first, first + freed) of those that were offered are gone; `cells` are the positions of their cells of before.
  void note_moved(progress& s, std::span<const llama_pos> cells, std::size_t first, std::size_t freed) const {
    if (follows_rows())
      s.note_moved(cells, positions_, first, freed);
    else
      s.forget_moved();
  }

 private:
  std::size_t heads_of(const cached_layer& l) const { return l.heads != 0 ? l.heads : heads_; }

  status take_ropes(const std::vector<cached_layer>& layers) {
    result<std::vector<rope>> seen = probe_->ropes(layers, layers[0].keys.width / heads_of(layers[0]));
    if (!seen) return error{seen.message()};
    ropes_ = std::move(*seen);
    return {};
  }

  /// Whether the policy reads where rows come from that have moved.
  bool follows_rows() const { return policy_.budget.again() || (policy_.needs.rope && policy_.needs.all_rows); }

  /// The position of each row in each head. `cells`: those of the rows' cells, which the host may have shifted since.
  status offer_positions(progress& s, const std::vector<layer>& layers, std::span<const llama_pos> cells) {
    const std::size_t n = cells.size(), rows = follows_rows() ? s.at.compressed : 0;
    if (rows > 0 && (s.moved.cells.size() < rows || s.moved.positions.size() != layers.size()))
      return error{"checkpoint: moved rows: " + std::to_string(s.moved.cells.size()) + " of " +
                   std::to_string(s.moved.positions.size()) + " layers: must be the " + std::to_string(rows) +
                   " that were compressed, of " + std::to_string(layers.size())};
    for (std::size_t i = 0; rows > 0 && i < layers.size(); ++i)
      if (const std::size_t all = layers[i].keys.heads() * s.moved.cells.size(); s.moved.positions[i].size() != all)
        return error{"checkpoint: moved rows: " + std::to_string(s.moved.positions[i].size()) + " positions of layer " +
                     std::to_string(i) + ": must be " + std::to_string(all)};
    s.follow_shift(cells);
    const moved_rows moved = rows > 0 ? s.still_there() : moved_rows{};
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
  status accumulate(progress& s, const std::vector<layer>& layers, std::size_t seen, std::uint64_t written, workspace& ws) {
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
    const std::size_t added = s.fresh != progress::unknown ? s.fresh : seen > s.counted ? seen - s.counted : 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      beside_[i].key_statistics = {s.key_statistics[i].data()};
      accumulate_key_statistics(policy_, layers[i], s.at, (std::min)(added, layers[i].tokens), ws);
    }
    s.counted = seen, s.uncounted = 0;
    s.counted_written = written;
    return {};
  }

  std::size_t heads_;  // of a layer that no graph has shown
  policy policy_;
  const cache_probe* probe_;
  std::vector<extras> beside_;  // what the layers of a call point to
  std::vector<std::vector<std::uint32_t>> positions_;
  std::vector<rope> ropes_;
  std::vector<query_statistics> queries_, expected_;  // before RoPE; at the positions to come
  std::vector<importance_map> importance_;
  std::vector<std::vector<float>> head_budgets_;  // of each layer
};

}  // namespace lagkv::inline LAGKV_ABI::llama
