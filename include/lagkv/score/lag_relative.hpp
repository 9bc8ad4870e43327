// Part of lagkv (MIT). LagKV's score (arXiv 2504.04704, section 3; reference code: lag_kv.py, _get_states_score).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <lagkv/method.hpp>
#include <lagkv/score/rows.hpp>

namespace lagkv {

/// Scores a partition of `lag` tokens against the next one: with lo and hi the least and greatest value of each channel
/// there, z = (x - lo) / (hi - lo), and s = softmax over the partition's tokens of the standard deviation of z over
/// channels,
///     score = key_weight * s(keys) + value_weight * s(values); each s sums to 1 over a partition.
///
/// Where the paper leaves it open:
///  - A channel that is constant in the reference (or whose range is too small or large for f32) counts as z = 0. Both
///    reference codes divide by zero there.
///  - Values that are not finite are passed over in the reference. A token whose own keys (values) are not finite, or
///    overflow when normalised, has s(keys) = 0 (s(values) = 0) and takes no part in the softmax: it goes first, and the
///    other tokens are scored as if it were absent.
///
/// Cost a head: each row is read twice, once as reference and once as judged, the second time from cache.
struct lag_relative {
  enum class against : std::uint8_t {
    next,  ///< the paper's
    own    ///< the variant LocalKV of the same paper: the partition itself
  };

  std::size_t lag = 1024;
  float value_weight = 1.0F;  ///< 0: values are not read
  against reference = against::next;
  float key_weight = 1.0F;

  /// `judged` is whole partitions; the reference of the last one lies behind it, within layer.tokens.
  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const {
    for (float& score : out) score = 0.0F;
    for (std::size_t begin = judged.begin; begin < judged.end; begin += lag) {
      const token_range partition{begin, begin + lag};
      float* scores = out.data() + (begin - judged.begin);
      add(l.keys, head, partition, key_weight, scores, ws);
      if (value_weight != 0.0F) add(l.values, head, partition, value_weight, scores, ws);
    }
  }

 private:
  void add(const tensor& x, std::size_t head, token_range partition, float weight, float* scores, workspace& ws) const {
    const simd::kernel_table& kernels = ws.kernels();
    float* lo = ws.floats(workspace::range_low, x.channels());
    float* hi = ws.floats(workspace::range_high, x.channels());
    float* deviation = ws.floats(workspace::deviation, lag);
    const simd::normal form =
        normalise(x, head, reference == against::own ? partition : token_range{partition.end, partition.end + lag}, lo, hi, ws);
    for_each_rows(x, head, partition, ws,
                  [&](const simd::rows& rows, std::size_t offset) { kernels.deviation(rows, lo, hi, form, deviation + offset); });
    kernels.add_softmax(deviation, lag, weight, scores);
  }

  static simd::normal normalise(const tensor& x, std::size_t head, token_range tokens, float* lo, float* hi, workspace& ws) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const std::size_t channels = x.channels();
    dtype type = x.type();
    for (std::size_t c = 0; c < channels; ++c) lo[c] = infinity, hi[c] = -infinity;
    for_each_rows(x, head, tokens, ws, [&](const simd::rows& rows, std::size_t) {
      ws.kernels().range(rows, lo, hi);
      type = rows.type;
    });
    const simd::normal form = ws.kernels().normalise(channels, type, lo, hi);
    if (form != simd::normal::not_finite) return form;
    finite_range(x, head, tokens, lo, hi, ws);
    return ws.kernels().normalise(channels, type, lo, hi);
  }

  /// The range of each channel over its finite values; 0, 0 where there is none. Off the common path.
  static void finite_range(const tensor& x, std::size_t head, token_range tokens, float* lo, float* hi, workspace& ws) {
    constexpr float most = std::numeric_limits<float>::max();
    const std::size_t channels = x.channels();
    for (std::size_t c = 0; c < channels; ++c) lo[c] = most, hi[c] = -most;
    for_each_row(x, head, tokens, ws, [&](std::size_t, std::span<const float> row) {
      for (std::size_t c = 0; c < channels; ++c) {
        if (!detail::finite(row[c])) continue;
        lo[c] = row[c] < lo[c] ? row[c] : lo[c];
        hi[c] = row[c] > hi[c] ? row[c] : hi[c];
      }
    });
    for (std::size_t c = 0; c < channels; ++c)
      if (lo[c] > hi[c]) lo[c] = hi[c] = 0.0F;
  }
};

inline part part_of(const lag_relative& s) { return {.score = s, .needs = {.values = s.value_weight != 0}}; }

}  // namespace lagkv
