// Part of lagkv (MIT). Ranks in place of scores, so that partitions, or scorers, compete as equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

/// The scores in ascending order, as pairs of a key and an index, taken from ws: index i of the order is at [2 * i + 1]. Of equal
/// scores the earlier comes later; a NaN is below every number. A radix sort: four passes over n integers.
LAGKV_FN const std::uint32_t* ascending(std::span<const float> scores, workspace& ws);

/// score -> (number of scores below it) / n, as ascending() orders them. Neighbours in a list of more than 2^24 scores may
/// get the same rank, which is a float.
LAGKV_FN void rank(std::span<float> scores, workspace& ws, bool keep_nan = false);

/// Within each partition of what is due, or among all candidates of each head. A NaN stays one.
LAGKV_FN void rank_each(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws);

}  // namespace detail

/// A transform: score -> (number of scores below it in its partition) / lag. Source: kvpress 0.5.5, lagkv_press.py (argsort
/// of argsort).
struct rank_in_partition {
  std::size_t lag = 128;

  void operator()(std::span<float> scores, std::size_t, const candidates&, workspace& ws) const {
    for (std::size_t begin = 0; begin < scores.size(); begin += lag) detail::rank(scores.subspan(begin, lag), ws);
  }
};

#if LAGKV_BODIES

namespace detail {

LAGKV_FN const std::uint32_t* ascending(std::span<const float> scores, workspace& ws) {
  const std::size_t n = scores.size();
  auto* keys = ws.take<std::uint32_t>(4 * n);
  std::uint32_t *from = keys, *to = keys + 2 * n;  // pairs: key, index
  for (std::size_t i = 0; i < n; ++i) {            // the last first: of equal scores it ranks lowest
    const std::size_t index = n - 1 - i;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &scores[index], sizeof bits);
    if (bits == 0x80000000U) bits = 0;  // -0 beside +0
    const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
    from[2 * i] = nan ? 0 : (bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U));
    from[2 * i + 1] = static_cast<std::uint32_t>(index);
  }
  for (int shift = 0; shift < 32; shift += 8) {
    std::size_t place[257] = {};
    for (std::size_t i = 0; i < n; ++i) ++place[((from[2 * i] >> shift) & 255U) + 1];
    for (std::size_t b = 0; b < 256; ++b) place[b + 1] += place[b];
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t at = 2 * place[(from[2 * i] >> shift) & 255U]++;
      to[at] = from[2 * i], to[at + 1] = from[2 * i + 1];
    }
    std::uint32_t* other = from;
    from = to, to = other;
  }
  return from;
}

LAGKV_FN void rank(std::span<float> scores, workspace& ws, bool keep_nan) {
  const std::size_t n = scores.size();
  const workspace::frame scratch(ws);
  const std::uint32_t* order = ascending(scores, ws);
  for (std::size_t i = 0; i < n; ++i) {
    float& score = scores[order[2 * i + 1]];
    if (!keep_nan || !is_nan(score)) score = static_cast<float>(i) / static_cast<float>(n);
  }
}

LAGKV_FN void rank_each(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) {
  const std::size_t n = c.rows.size(), part = c.group();
  for (std::size_t at = 0; at < heads * n; at += part) rank(scores.subspan(at, part), ws, true);
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
