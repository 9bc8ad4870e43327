// Part of lagkv (MIT). Novelty: keys that are unusual for their sequence, as they were before RoPE.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/mean_and_variance.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// s(K) + w s(V) with s = sqrt(sum over channels of (u - m)^2 / (v + r)) over the root of its mean square, u = k / |k|; m and v,
/// mean and variance of a channel, are what detail::usual_keys() says of the candidates and the rows behind them (so without the
/// sinks), or of the next partition; r is `ridge` times the mean of v. Without a ridge all channels count alike, with a large one
/// by their variance. A channel that hardly varies counts for nothing; a zero row is u = 0; a row that is not finite takes no
/// part and gets NaN, so it goes first.
///
/// Reads each key once, and up to 1,535 of a head twice; likewise values if they have a weight. The method's own adjustments:
/// keys before RoPE, the mean over the heads of a layer, and a triangle over 8 neighbours on each side; docs/research.md says
/// what each of them gives. Source: this project.
struct novelty_score {
  std::size_t lag = 0;      ///< tokens a partition; 0: all candidates at once
  double ridge = 0;         ///< added to the variance of each channel, in mean variances
  double value_weight = 0;  ///< w; 0: values are not read

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  /// Adds `weight` times the novelty of the rows `part` to out, `varying` channels being those of mean and inverse that count.
  void add(const tensor& x, std::size_t head, token_range part, std::size_t varying, const float* mean, float* inverse,
           float weight, float* out, workspace& ws) const;
};

inline method method_of(const novelty_score& s) {
  return {.score = s,
          .needs = {.values = s.value_weight > 0, .key_statistics = true},
          .pre_rope = pre_rope_keys,
          .shared_heads = true,
          .smooth = 8};
}

inline constexpr parameter novelty_parameters[] = {
    option<&novelty_score::ridge>("ridge", accepts::weight, "added to the variance of each channel, in mean variances"),
    option<&novelty_score::value_weight>("value_weight", accepts::weight, "weight of the values' score; 0: values are not read")};

constexpr std::span<const parameter> options_of(const novelty_score&) { return novelty_parameters; }

inline constexpr method_entry novelty_entry = entry_of<novelty_score>(
    {.name = "novelty",
     .meaning = "keys that are unusual for their sequence, without their positions, smoothed, the same for all heads",
     .source = "this project",
     .reads = "keys and their RoPE; values if they have a weight"},
    novelty_parameters);

#if LAGKV_BODIES

LAGKV_FN void novelty_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                        workspace& ws) const {
  const bool values = value_weight > 0;
  const std::size_t channels = l.keys.channels(), more = values ? l.values.channels() : 0;
  const workspace::frame scratch(ws);
  float* mean = ws.take<float>(2 * (channels > more ? channels : more));
  const auto score = [&](token_range part, token_range reference) {
    float* scores = out.data() + (part.begin - candidates.begin);
    for (std::size_t i = 0; i < part.size(); ++i) scores[i] = 0;
    const std::size_t varying = detail::usual_keys(l, head, reference, mean, mean + channels, ws);
    add(l.keys, head, part, varying, mean, mean + channels, 1, scores, ws);
    if (!values) return;
    const std::size_t varying_values = detail::usual(l.values, head, reference, mean, mean + more, ws);
    add(l.values, head, part, varying_values, mean, mean + more, static_cast<float>(value_weight), scores, ws);
  };
  if (lag == 0) return score(candidates, {candidates.begin, l.tokens});
  for_each_reference(l, candidates, lag, score);
}

LAGKV_FN void novelty_score::add(const tensor& x, std::size_t head, token_range part, std::size_t varying, const float* mean,
                                 float* inverse, float weight, float* out, workspace& ws) const {
  const float usual = detail::add_ridge(static_cast<float>(ridge), varying, x.channels(), inverse);
  const float share = usual > 0 ? 1 / usual : 0.0F;
  for_each_rows_and_next(x, head, part, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
    const workspace::frame own(ws);
    float* distances = ws.take<float>(rows.tokens);
    const simd::row_kernels& kernels = ws.kernels<simd::row_kernels>();
    kernels.distances(rows, detail::inverse_norms(rows, ws), mean, inverse, distances);
    kernels.add_roots(distances, rows.tokens, share, weight, out + offset);
  });
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
