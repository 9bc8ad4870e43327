// Part of lagkv (MIT). LagKV's score (arXiv 2504.04704, section 3; reference code: lag_kv.py, _get_states_score).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

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
/// Cost a head: each row is read once, from the last partition to the first; one partition, the last reference, once more.
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
    add(l.keys, head, judged, key_weight, out.data(), ws);
    if (value_weight != 0.0F) add(l.values, head, judged, value_weight, out.data(), ws);
  }

 private:
  /// Descending: the rows of a partition are judged by the range of the one read before, and give the range for the next.
  void add(const tensor& x, std::size_t head, token_range judged, float weight, float* scores, workspace& ws) const {
    const std::size_t channels = x.channels();
    ranges of_reference{ws.floats(workspace::range_low, 2 * channels), ws.floats(workspace::range_high, 2 * channels)};
    ranges of_own{of_reference.lo + channels, of_reference.hi + channels};
    if (reference == against::next) range_of(x, head, {judged.end, judged.end + lag}, of_reference, ws);
    for (std::size_t begin = judged.end; begin > judged.begin;) {
      begin -= lag;
      const token_range partition{begin, begin + lag};
      if (reference == against::own) {
        range_of(x, head, partition, of_reference, ws);
        add(x, head, partition, partition, of_reference, nullptr, weight, scores + (begin - judged.begin), ws);
      } else {
        add(x, head, partition, {begin + lag, begin + 2 * lag}, of_reference, begin > judged.begin ? &of_own : nullptr, weight,
            scores + (begin - judged.begin), ws);
        std::swap(of_reference, of_own);
      }
    }
  }

  struct ranges {
    float *lo, *hi;

    void reset(std::size_t channels) const {
      constexpr float infinity = std::numeric_limits<float>::infinity();
      for (std::size_t c = 0; c < channels; ++c) lo[c] = infinity, hi[c] = -infinity;
    }
  };

  static void range_of(const tensor& x, std::size_t head, token_range tokens, const ranges& to, workspace& ws) {
    to.reset(x.channels());
    for_each_rows(x, head, tokens, ws, [&](const simd::rows& rows, std::size_t) { ws.kernels().range(rows, to.lo, to.hi); });
  }

  /// One partition; `by` is the range of the rows `other`, and is used up. Fills in its own range where it is asked for; then
  /// the partition before it is judged next.
  void add(const tensor& x, std::size_t head, token_range partition, token_range other, const ranges& by, const ranges* own,
           float weight, float* scores, workspace& ws) const {
    const token_range next = own != nullptr ? token_range{partition.begin - lag, partition.begin} : token_range{};
    const simd::kernel_table& kernels = ws.kernels();
    const std::size_t channels = x.channels();
    float* deviation = ws.floats(workspace::deviation, lag);
    simd::normal form = kernels.normalise(channels, by.lo, by.hi);
    if (form == simd::normal::not_finite) {
      finite_range(x, head, other, by.lo, by.hi, ws);
      form = kernels.normalise(channels, by.lo, by.hi);
    }
    if (own != nullptr) own->reset(channels);
    for_each_rows_and_next(x, head, partition, next, ws, [&](const simd::rows& rows, std::size_t offset) {
      kernels.deviation(rows, by.lo, by.hi, form, deviation + offset, own != nullptr ? own->lo : nullptr,
                        own != nullptr ? own->hi : nullptr);
    });
    kernels.add_softmax(deviation, lag, weight, scores);
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
