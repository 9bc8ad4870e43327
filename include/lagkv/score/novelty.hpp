// Part of lagkv (MIT). Novelty: keys that are unusual for their sequence, as they were before RoPE.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/mean_and_variance.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// sqrt(mean over channels of (u - m)^2 / v), u = k / |k|; m and v are what detail::usual() says of the candidates and the rows
/// behind them (so without the sinks), or of the next partition. A channel that hardly varies counts for nothing; a zero key is u
/// = 0; a key that is not finite takes no part and gets NaN, so it goes first.
///
/// Reads each key once, and up to 8,191 of a head twice; values never. The method's own adjustments: keys before RoPE, the mean
/// over the heads of a layer, and a triangle over 8 neighbours on each side; docs/research.md says what each of them gives.
/// Source: this project.
struct novelty_score {
  std::size_t lag = 0;  ///< tokens a partition; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const novelty_score& s) {
  return {.score = s, .needs = {.key_statistics = true}, .pre_rope = pre_rope_keys, .shared_heads = true, .smooth = 8};
}

inline constexpr method_entry novelty_entry = entry_of<novelty_score>(
    {.name = "novelty",
     .meaning = "keys that are unusual for their sequence, without their positions, smoothed, the same for all heads",
     .source = "this project",
     .reads = "keys and their RoPE"});

#if LAGKV_BODIES

LAGKV_FN void novelty_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                        workspace& ws) const {
  const std::size_t channels = l.keys.channels();
  const workspace::frame scratch(ws);
  float* mean = ws.take<float>(2 * channels);
  float* weights = mean + channels;
  const auto score = [&](token_range part, token_range reference) {
    const std::size_t varying = detail::usual(l, head, reference, mean, weights, ws);
    float* scores = out.data() + (part.begin - candidates.begin);
    for_each_rows_and_next(l.keys, head, part, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
      ws.kernels<simd::row_kernels>().distances(rows, detail::inverse_norms(rows, ws), mean, weights, scores + offset);
    });
    const float share = varying > 0 ? 1.0F / static_cast<float>(varying) : 0.0F;
    for (std::size_t i = 0; i < part.size(); ++i) scores[i] = detail::norm(scores[i] * share);
  };
  if (lag == 0) return score(candidates, {candidates.begin, l.tokens});
  for_each_reference(l, candidates, lag, score);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
