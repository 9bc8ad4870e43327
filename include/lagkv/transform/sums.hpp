// Part of lagkv (MIT). Sums of scores over neighbours, in a few additions a score.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

/// The finite scores in some rows: their sum, and how many they are.
struct finite_sum {
  double sum = 0, count = 0;

  friend finite_sum operator+(finite_sum a, finite_sum b) { return {a.sum + b.sum, a.count + b.count}; }
};

/// out[i] = x[i - reach] + ... + x[i] of n, without those before the first: sums of blocks, in which nothing is taken away again,
/// so that a huge number leaves no digits behind in others.
LAGKV_FN void sums_back(const finite_sum* x, std::size_t n, std::size_t reach, finite_sum* out);

/// Each finite score alone, then nothing up to `rows`.
LAGKV_FN void finite_only(std::span<const float> scores, std::size_t rows, finite_sum* out);

}  // namespace detail

#if LAGKV_BODIES

namespace detail {

LAGKV_FN void sums_back(const finite_sum* x, std::size_t n, std::size_t reach, finite_sum* out) {
  const std::size_t length = reach + 1;
  finite_sum before{};
  for (std::size_t i = 0; i < n; ++i) out[i] = before = i % length == 0 ? x[i] : before + x[i];  // from the block's start
  for (std::size_t end = (n - 1) / length * length; end >= length; end -= length) {
    finite_sum rest{};  // of the block [end - length, end), from behind: what the next block's rows look back to
    for (std::size_t back = 1; back < length; ++back) {
      rest = rest + x[end - back];
      if (const std::size_t i = end - back + reach; i < n) out[i] = rest + out[i];
    }
  }
}

LAGKV_FN void finite_only(std::span<const float> scores, std::size_t rows, finite_sum* out) {
  for (std::size_t i = 0; i < rows; ++i)
    out[i] = i < scores.size() && finite(scores[i]) ? finite_sum{static_cast<double>(scores[i]), 1} : finite_sum{};
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
