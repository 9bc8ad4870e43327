// Part of lagkv (MIT). Novelty: keys that are unusual for their sequence, as they were before their positions turned them.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/method.hpp>
#include <lagkv/score/rows.hpp>

namespace lagkv {

/// sqrt(mean over channels of (u - m)^2 / v), u = k / |k|; m and v are the mean and the variance of each channel of u over the
/// judged rows and those behind them (so without the sinks), or over the next partition; of more than 8,192 rows, over 4,096
/// to 8,192 of them, evenly spread. A channel that hardly varies counts for nothing; a zero key is u = 0; a key that is not
/// finite takes no part and gets NaN, so it goes first.
///
/// Reads each key once, and up to 8,192 of a head twice; values never. The method's own adjustments: keys unrotated, the mean
/// over the heads of a layer, and a triangle over 8 neighbours on each side; docs/research.md says what each of them gives.
/// Source: this project.
struct novelty {
  static constexpr std::size_t most_rows = 4096;  ///< that moments are taken from, unless there are less than twice as many

  std::size_t lag = 0;  ///< tokens a partition; 0: the whole judged range at once

  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const {
    const std::size_t channels = l.keys.channels();
    float* mean = ws.floats(workspace::reference, 2 * channels);
    float* weights = mean + channels;
    const auto score = [&](token_range part, token_range reference) {
      const std::size_t varying = moments(l.keys, head, reference, mean, weights, ws);
      float* scores = out.data() + (part.begin - judged.begin);
      for_each_rows_and_next(l.keys, head, part, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
        ws.kernels().distances(rows, inverse_norms(rows, ws), mean, weights, scores + offset);
      });
      const float share = varying > 0 ? 1.0F / static_cast<float>(varying) : 0.0F;
      for (std::size_t i = 0; i < part.size(); ++i) scores[i] = detail::norm(scores[i] * share);
    };
    if (lag == 0) return score(judged, {judged.begin, l.tokens});
    for_each_reference(l, judged, lag, score);
  }

 private:
  /// NaN where the norm is not finite. Valid until the next call.
  static float* inverse_norms(const simd::rows& rows, workspace& ws) {
    float* out = ws.floats(workspace::per_row, rows.tokens);
    ws.kernels().squares(rows, out);
    for (std::size_t i = 0; i < rows.tokens; ++i) {
      const float norm = detail::norm(out[i]);
      out[i] = norm == 0 ? 0.0F : 1 / norm;
    }
    return out;
  }

  /// Of u over the rows of `tokens`: the mean of each channel and the inverse of its variance, 0 where that is nothing beside
  /// the mean square. Returns how many are not 0.
  static std::size_t moments(const tensor& x, std::size_t head, token_range tokens, float* mean, float* inverse, workspace& ws) {
    constexpr std::size_t together = 128;  // sums of f32 over so many rows, of double over all
    constexpr double nothing = 1e-6;
    const std::size_t channels = x.channels();
    const std::size_t every = tokens.size() >= 2 * most_rows ? tokens.size() / most_rows : 1;
    double* sums = ws.doubles(2 * channels);
    float* part = ws.floats(workspace::range_low, 2 * channels);
    std::size_t used = 0;
    for (std::size_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
    for (std::size_t begin = tokens.begin; begin < tokens.end; begin += every * together) {
      const token_range some{begin, begin + together < tokens.end ? begin + together : tokens.end};
      for (std::size_t c = 0; c < 2 * channels; ++c) part[c] = 0.0F;
      for_each_rows_and_next(x, head, some, {}, ws, [&](const simd::rows& rows, std::size_t) {
        detail::for_each_finite_run(rows, inverse_norms(rows, ws), [&](const simd::rows& run, const float* factors) {
          ws.kernels().add_moments(run, factors, part, part + channels);
          used += run.tokens;
        });
      });
      for (std::size_t c = 0; c < 2 * channels; ++c) sums[c] += static_cast<double>(part[c]);
    }
    std::size_t varying = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      const double n = used > 0 ? static_cast<double>(used) : 1.0;
      const double m = sums[c] / n, square = sums[channels + c] / n, variance = square - m * m;
      const bool varies = variance > nothing * square;
      mean[c] = static_cast<float>(m), inverse[c] = varies ? static_cast<float>(1 / variance) : 0.0F;
      varying += varies ? 1U : 0U;
    }
    return varying;
  }
};

inline part part_of(const novelty& s) { return {.score = s, .unrotated = true, .agree = true, .smooth = 8}; }

inline constexpr method novelty_method{
    .name = "novelty",
    .meaning = "keys that are unusual for their sequence, without their positions, smoothed, the same for all heads",
    .source = "this project",
    .reads = "keys and their RoPE",
    .parameters = {},
    .make = [](std::span<const double>, std::size_t lag) -> result<part> { return part_of(novelty{lag}); },
};

}  // namespace lagkv
