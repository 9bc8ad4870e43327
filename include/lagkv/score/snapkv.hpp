// Part of lagkv (MIT). SnapKV: what the last queries attend to (arXiv 2404.14469).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/attention/attention.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/transform/pool.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Mean, over the last `window` queries and the query heads of the group, of the attention weights, averaged over `kernel`
/// neighbours. Cost: add_attention(). Source: the paper; kvpress 0.5.5, SnapKVPress, whose defaults these are. The largest weight
/// in place of the mean is what DefensiveKV (arXiv 2510.13334) begins with.
struct snapkv_score {
  std::size_t window = 64;  ///< queries; fewer where fewer are offered
  std::size_t kernel = 5;   ///< odd; 1: no pooling
  aggregation aggregate = aggregation::mean;
  std::size_t lag = 0;  ///< tokens a partition, beyond which neighbours do not count; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const snapkv_score& s) {
  return {.score = s, .needs = {.all_rows = true, .queries = s.window}, .recent = s.window};
}

inline constexpr parameter snapkv_parameters[] = {
    option<&snapkv_score::window>("window", accepts::positive, "queries that vote"),
    option<&snapkv_score::kernel>("kernel", accepts::odd, "neighbours that scores are averaged over"),
    option<&snapkv_score::aggregate>("aggregate", accepts::word("mean|max"), "of the queries' weights")};

constexpr std::span<const parameter> options_of(const snapkv_score&) { return snapkv_parameters; }

inline constexpr method_entry snapkv_entry =
    entry_of<snapkv_score>({.name = "snapkv",
                            .meaning = "attention of the last queries",
                            .source = "arXiv 2404.14469",
                            .reads = "keys, queries (or attention weights) of the last `window` tokens"},
                           snapkv_parameters);

#if LAGKV_BODIES

LAGKV_FN void snapkv_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                       workspace& ws) const {
  const std::size_t offered = offered_queries(l), queries = offered < window ? offered : window;
  const workspace::frame scratch(ws);
  const float share = aggregate == aggregation::mean ? group_share(l) / static_cast<float>(queries) : 1.0F;
  const float* weights = detail::attention_alone(l, head, queries, share, ws, aggregate);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = weights[candidates.begin + i];
  detail::mark_bad_keys(l, head, candidates, out, ws);
  if (kernel > 1) pool{.width = kernel, .zeros_beyond = true}.apply(out, lag != 0 ? lag : out.size(), ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
