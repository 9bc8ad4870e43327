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

/// A score's place among the others in the upper half, its index in the lower.
using ordered = std::uint64_t;

constexpr std::size_t index_of(ordered x) { return static_cast<std::uint32_t>(x); }

/// The scores in ascending order, taken from ws. Of equal scores the earlier comes later; a NaN is below every number. A radix
/// sort: three passes over n integers (four over few, whose digits are shorter), and none for a digit that all have.
LAGKV_FN const ordered* ascending(std::span<const float> scores, workspace& ws);

/// score -> (number of scores below it) / n, as ascending() orders them: 0 to below 1. Neighbours in a list of more than 2^24
/// scores may get the same rank, which is a float.
LAGKV_FN void rank(std::span<float> scores, workspace& ws, bool keep_nan = false);

/// Within each partition of what is due, or among all candidates of each head. A NaN stays one.
LAGKV_FN void rank_each(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws);

}  // namespace detail

/// A transform: score -> (number of scores below it in its partition) / lag, which is above 0 and divides the candidates. Source:
/// kvpress 0.5.5, lagkv_press.py (argsort of argsort).
struct rank_in_partition {
  std::size_t lag = 128;

  void operator()(std::span<float> scores, std::size_t, const candidates&, workspace& ws) const {
    for (std::size_t begin = 0; begin < scores.size(); begin += lag) detail::rank(scores.subspan(begin, lag), ws);
  }
};

#if LAGKV_BODIES

namespace detail {

/// A radix sort of `from` by the upper halves, in digits of so many bits, with room for as many in `to`; returns the one in which
/// they are in order.
template <unsigned Bits>
ordered* sort_by_digits(ordered* from, ordered* to, std::size_t n) {
  constexpr std::size_t passes = (32 + Bits - 1) / Bits;
  constexpr std::uint32_t digits = 1U << Bits;
  const auto digit = [](ordered x, std::size_t pass) {
    return static_cast<std::uint32_t>(x >> (32 + pass * Bits)) & (digits - 1);
  };
  std::uint32_t counts[passes][digits] = {};
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t pass = 0; pass < passes; ++pass) ++counts[pass][digit(from[i], pass)];
  for (std::size_t pass = 0; pass < passes; ++pass) {
    std::uint32_t* place = counts[pass];
    if (n == 0 || place[digit(from[0], pass)] == n) continue;
    std::uint32_t before = 0;
    for (std::size_t d = 0; d < digits; ++d) {
      const std::uint32_t here = place[d];
      place[d] = before, before += here;
    }
    for (std::size_t i = 0; i < n; ++i) to[place[digit(from[i], pass)]++] = from[i];
    ordered* other = from;
    from = to, to = other;
  }
  return from;
}

LAGKV_FN const ordered* ascending(std::span<const float> scores, workspace& ws) {
  constexpr std::size_t many = 2048;  // from there on longer digits save more than their counts cost
  const std::size_t n = scores.size();
  ordered* list = ws.take<ordered>(2 * n);
  for (std::size_t i = 0; i < n; ++i) {  // the last first: of equal scores it ranks lowest
    const std::size_t index = n - 1 - i;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &scores[index], sizeof bits);
    if (bits == 0x80000000U) bits = 0;  // -0 beside +0
    const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
    const std::uint32_t place = nan ? 0 : (bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U));
    list[i] = (ordered{place} << 32) | index;
  }
  return n < many ? sort_by_digits<8>(list, list + n, n) : sort_by_digits<11>(list, list + n, n);
}

LAGKV_FN void rank(std::span<float> scores, workspace& ws, bool keep_nan) {
  constexpr float below_one = 0x1.fffffep-1F;
  const std::size_t n = scores.size();
  const workspace::frame scratch(ws);
  const ordered* order = ascending(scores, ws);
  for (std::size_t i = 0; i < n; ++i) {
    float& score = scores[index_of(order[i])];
    const float share = static_cast<float>(i) / static_cast<float>(n);
    if (!keep_nan || !is_nan(score)) score = share < below_one ? share : below_one;
  }
}

LAGKV_FN void rank_each(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) {
  const std::size_t n = c.rows.size(), part = c.group();
  for (std::size_t at = 0; at < heads * n; at += part) rank(scores.subspan(at, part), ws, true);
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
