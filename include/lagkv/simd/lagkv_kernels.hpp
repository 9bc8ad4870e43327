// Part of lagkv (MIT). LagKV's score: the range of a reference, and the deviation of rows from it.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// What normalise() has made.
enum class normal : std::uint8_t {
  not_finite,  ///< nothing: a bound is not finite
  plain,       ///< z - 1/2 = (x - shift) * inverse - 1/2: for rows of f32
  fused        ///< z - 1/2 = x * inverse + shift: for rows of f16 and bf16
};

/// What lagkv_score is made of.
struct lagkv_kernels {
  /// lo[c] = min(lo[c], x[.][c]), hi[c] = max(...); NaN is passed over, infinities count.
  void (*range)(const rows& x, float* lo, float* hi);

  /// Makes of the range of each channel what deviation() takes: of lo the shift, of hi the inverse of the width. A channel
  /// whose width is 0, or has no finite inverse, gets 0 for both: its z is 0. Where a bound is not finite nothing is changed.
  /// For 16-bit rows the answer is `plain` where fusing would lose digits: such rows must be widened to f32.
  normal (*normalise)(std::size_t channels, dtype type, float* lo, float* hi);

  /// deviation[t] = unbiased standard deviation over channels of z = (x[t][c] - lo[c]) / (hi[c] - lo[c]), with what
  /// normalise() has made of lo and hi for the type of x; not finite where a channel is not; 0 for one channel. In the same
  /// reading it extends the range own_lo, own_hi by the rows, as range() does.
  void (*deviation)(const rows& x, const float* shift, const float* inverse, float* deviation, float* own_lo, float* own_hi);
};

template <>
LAGKV_FN const lagkv_kernels& kernels<lagkv_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/lagkv_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(lagkv_kernels)
#endif
