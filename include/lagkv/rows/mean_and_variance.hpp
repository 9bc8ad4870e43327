// Part of lagkv (MIT). Statistics of keys: mean and variance of each channel, at unit length.
#pragma once

#include <cstddef>

#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI::detail {

/// 1 / |x| of each row; NaN if the norm is not finite. Taken from ws.
LAGKV_FN float* inverse_norms(const simd::rows& rows, workspace& ws);

/// Adds the rows of `tokens` to `sums`, which are as key_statistics has them: of 64 neighbours in `every` * 64 each. Rows that
/// are not finite are passed over.
LAGKV_FN void add_statistics(const tensor& x, std::size_t head, token_range tokens, std::size_t every, double* sums,
                             workspace& ws);

/// Of sums the mean of each channel and the inverse of its variance, 0 if the variance is below 1e-6 of the mean square (a
/// constant channel). Returns how many are not 0.
LAGKV_FN std::size_t mean_and_inverse_variance(const double* sums, std::size_t channels, float* mean, float* inverse);

/// Adds to the variance of each channel that varies `ridge` times the mean of these variances, of which `inverse` holds the
/// inverses. Returns the sum of variance * inverse: what (x - mean)^2 * inverse adds up to in a usual row.
LAGKV_FN float add_ridge(float ridge, std::size_t varying, std::size_t channels, float* inverse);

/// About so many rows tell what is usual, where there are more.
inline constexpr std::size_t usual_rows = 1024;

/// What rows usually are: of u = x / |x| the mean of each channel and the inverse of its variance, over the rows of `reference`,
/// from 1,536 of them on over 768 to 1,280 evenly spread ones. Returns how many channels vary.
LAGKV_FN std::size_t usual(const tensor& x, std::size_t head, token_range reference, float* mean, float* inverse, workspace& ws);

/// The same of the keys of a layer; with extras.key_statistics, unless they count no key yet, over all keys that the sequence has
/// had.
LAGKV_FN std::size_t usual_keys(const layer& l, std::size_t head, token_range reference, float* mean, float* inverse,
                                workspace& ws);

#if LAGKV_BODIES

LAGKV_FN float* inverse_norms(const simd::rows& rows, workspace& ws) {
  float* out = ws.take<float>(rows.tokens);
  squares(rows, out, ws);
  ws.kernels<simd::row_kernels>().inverse_roots(out, rows.tokens);
  return out;
}

LAGKV_FN void add_statistics(const tensor& x, std::size_t head, token_range tokens, std::size_t every, double* sums,
                             workspace& ws) {
  constexpr std::size_t together = 64;  // sums of f32 over so many rows, of double over all
  const std::size_t channels = x.channels();
  const workspace::frame scratch(ws);
  float* part = ws.take<float>(2 * channels);
  const auto block_at = [&](std::size_t at) {
    const std::size_t begin = at < tokens.end ? at : tokens.end, left = tokens.end - begin;
    return token_range{begin, begin + (together < left ? together : left)};
  };
  for (token_range some = block_at(tokens.begin), next; some.begin < tokens.end; some = next) {
    next = block_at(some.begin + every * together);
    for (std::size_t c = 0; c < 2 * channels; ++c) part[c] = 0.0F;
    for_each_rows_and_next(x, head, some, next, ws, [&](const simd::rows& rows, std::size_t) {
      const workspace::frame own(ws);
      for_each_finite_run(rows, inverse_norms(rows, ws), [&](const simd::rows& run, const float* factors) {
        ws.kernels<simd::row_kernels>().add_statistics(run, factors, part, part + channels);
        sums[2 * channels] += static_cast<double>(run.tokens);
      });
    });
    for (std::size_t c = 0; c < 2 * channels; ++c) sums[c] += static_cast<double>(part[c]);
  }
}

LAGKV_FN std::size_t mean_and_inverse_variance(const double* sums, std::size_t channels, float* mean, float* inverse) {
  constexpr double nothing = 1e-6, least = 1e-30;  // of a channel's own square; of rows of length 1, so that inverses fit f32
  const double count = sums[2 * channels], n = count > 0 ? count : 1.0;
  std::size_t varying = 0;
  for (std::size_t c = 0; c < channels; ++c) {
    const double m = sums[c] / n, square = sums[channels + c] / n, variance = square - m * m;
    const bool varies = variance > nothing * square && variance > least;
    mean[c] = static_cast<float>(m), inverse[c] = varies ? static_cast<float>(1 / variance) : 0.0F;
    varying += varies ? 1U : 0U;
  }
  return varying;
}

LAGKV_FN float add_ridge(float ridge, std::size_t varying, std::size_t channels, float* inverse) {
  if (!(ridge > 0)) return static_cast<float>(varying);
  float sum = 0, usual_sum = 0;
  for (std::size_t c = 0; c < channels; ++c) sum += inverse[c] > 0 ? 1 / inverse[c] : 0.0F;
  const float more = varying > 0 ? ridge * sum / static_cast<float>(varying) : 0.0F;
  for (std::size_t c = 0; c < channels; ++c) {
    if (!(inverse[c] > 0)) continue;
    const float variance = 1 / inverse[c];
    inverse[c] = 1 / (variance + more), usual_sum += variance * inverse[c];
  }
  return usual_sum;
}

LAGKV_FN std::size_t usual(const tensor& x, std::size_t head, token_range reference, float* mean, float* inverse, workspace& ws) {
  const std::size_t channels = x.channels(), n = reference.size();
  const workspace::frame scratch(ws);
  double* sums = ws.take<double>(key_statistics::size(channels));
  for (std::size_t i = 0; i < key_statistics::size(channels); ++i) sums[i] = 0;
  const std::size_t every = (n + usual_rows / 2) / usual_rows;
  add_statistics(x, head, reference, every != 0 ? every : 1, sums, ws);
  return mean_and_inverse_variance(sums, channels, mean, inverse);
}

LAGKV_FN std::size_t usual_keys(const layer& l, std::size_t head, token_range reference, float* mean, float* inverse,
                                workspace& ws) {
  const std::size_t channels = l.keys.channels();
  if (l.extra != nullptr && l.extra->key_statistics)
    if (const double* sums = l.extra->key_statistics.of(head, channels); sums[2 * channels] > 0)
      return mean_and_inverse_variance(sums, channels, mean, inverse);
  return usual(l.keys, head, reference, mean, inverse, ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI::detail
