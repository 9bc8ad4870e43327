// Part of lagkv (MIT). Redundancy: keys that say what others say too, but for the latest of them (R-KV, arXiv 2505.24133).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/away_from_mean.hpp>
#include <lagkv/rows/mean_and_variance.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Minus the sum of the cosines of a key to all others, divided by the number of rows. For each row, the latest other row that is
/// alike (cosine above `similar`) is spared: this cosine does not count against it. So of three or more copies the latest scores
/// highest (two score alike). If no rows are alike the order is that of `key_diff` (with lag 0).
///
/// The others are all rows in use, or those of the partition and of the next one. R-KV subtracts these scores from the
/// attention by recent queries; here that is a fusion, by ranks: fuse:snapkv+redundancy,weights=1+9. A key that is not finite
/// takes no part and gets NaN, so it goes first.
///
/// Cost: reads each key twice; then for each row products with rows from the last one back until one is alike. In most caches
/// that is one of the last few; n^2 d flops at worst. Scratch: rows * channels floats. Source: the paper, section 3.3; its code,
/// cal_similarity() in rkv/utils.py. Where no row is alike that code makes an exception of row 0, and here is none.
struct redundancy_score {
  double similar = 0.5;  ///< cosine above which keys are alike, 0 to 1
  std::size_t lag = 0;   ///< tokens a partition; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  /// The rows of `all` at unit length, dense, 0 for those that are 0 or not finite; lengths[i]: 1, 0 if it is 0, or NaN.
  static const float* unit_rows(const tensor& keys, std::size_t head, token_range all, float* lengths, workspace& ws);

  /// Adds to taken[j] the cosines of all rows to which row j is the last other row alike.
  void add_latest(const float* units, std::size_t n, std::size_t channels, float* taken, workspace& ws) const;
};

inline method method_of(const redundancy_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0}}; }

inline constexpr parameter redundancy_parameters[] = {
    option<&redundancy_score::similar>("similar", accepts::fraction, "cosine above which keys are alike")};

constexpr std::span<const parameter> options_of(const redundancy_score&) { return redundancy_parameters; }

inline constexpr method_entry redundancy_entry =
    entry_of<redundancy_score>({.name = "redundancy",
                                .meaning = "keys unlike all others, and the latest of those that are alike",
                                .source = "arXiv 2505.24133",
                                .reads = "keys"},
                               redundancy_parameters);

#if LAGKV_BODIES

LAGKV_FN const float* redundancy_score::unit_rows(const tensor& keys, std::size_t head, token_range all, float* lengths,
                                                  workspace& ws) {
  const std::size_t channels = keys.channels();
  float* units = ws.take<float>(all.size() * channels);
  for_each_rows_and_next(keys, head, all, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
    const float* factors = detail::inverse_norms(rows, ws);
    const auto* at = static_cast<const std::byte*>(rows.data);
    for (std::size_t i = 0; i < rows.tokens; ++i, at += rows.stride * static_cast<std::ptrdiff_t>(size_of(rows.type))) {
      float* unit = units + (offset + i) * channels;
      if (!detail::finite(factors[i])) {
        for (std::size_t c = 0; c < channels; ++c) unit[c] = 0.0F;
        lengths[offset + i] = detail::not_a_number();
        continue;
      }
      ws.kernels<simd::widen_kernels>().widen(at, rows.type, channels, unit);
      for (std::size_t c = 0; c < channels; ++c) unit[c] *= factors[i];
      lengths[offset + i] = factors[i] > 0 ? 1.0F : 0.0F;
    }
  });
  return units;
}

LAGKV_FN void redundancy_score::add_latest(const float* units, std::size_t n, std::size_t channels, float* taken,
                                           workspace& ws) const {
  constexpr std::size_t many = 16, looked_at = 32;  // rows that look back together, and rows that they look at
  const auto limit = static_cast<float>(similar);
  const workspace::frame scratch(ws);
  float* cosines = ws.take<float>(many * looked_at);
  for (std::size_t first = 0; first < n; first += many) {
    const std::size_t count = n - first < many ? n - first : many;
    std::uint32_t searching = (1U << count) - 1;
    for (std::size_t end = n; end > 0 && searching != 0;) {
      const std::size_t begin = end > looked_at ? end - looked_at : 0, some = end - begin;
      const simd::rows back{units + begin * channels, dtype::f32, some, channels, static_cast<std::ptrdiff_t>(channels)};
      ws.kernels<simd::dot_kernels>().dots(back, units + first * channels, count, cosines, some);
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = some; j-- > 0 && (searching >> i & 1U) != 0;) {
          if (!(cosines[i * some + j] > limit) || begin + j == first + i) continue;
          taken[begin + j] += cosines[i * some + j];
          searching &= ~(1U << i);
        }
      }
      end = begin;
    }
  }
}

LAGKV_FN void redundancy_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                           workspace& ws) const {
  const std::size_t channels = l.keys.channels();
  for_each_reference(l, candidates, lag, [&](token_range part, token_range reference) {
    const token_range all{lag == 0 ? reference.begin : part.begin, reference.end};
    const std::size_t n = all.size();
    const workspace::frame scratch(ws);
    float* lengths = ws.take<float>(3 * n + channels);
    float *cosines = lengths + n, *taken = cosines + n, *mean = taken + n;
    detail::mean_direction(l.keys, head, all, mean, ws);
    const float* units = unit_rows(l.keys, head, all, lengths, ws);
    std::size_t finite = 0;
    for (std::size_t i = 0; i < n; ++i) taken[i] = 0, finite += detail::finite(lengths[i]) ? 1U : 0U;
    ws.kernels<simd::dot_kernels>().dots({units, dtype::f32, n, channels, static_cast<std::ptrdiff_t>(channels)}, mean, 1,
                                         cosines, n);
    add_latest(units, n, channels, taken, ws);
    const float by = finite > 0 ? 1 / static_cast<float>(finite) : 0.0F;
    for (std::size_t i = 0; i < part.size(); ++i) {
      const std::size_t row = part.begin - all.begin + i;
      out[part.begin - candidates.begin + i] = (lengths[row] + taken[row]) * by - cosines[row];  // a NaN stays one
    }
  });
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
