// Part of lagkv (MIT). Norms, distances and means of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Sums over the channels of each row, or over rows; norms from such sums.
struct row_kernels {
  // The sums are taken in f32 and follow IEEE rules: a channel that is NaN makes its sums NaN.

  /// out[t] = sum over channels of x[t][c]^2.
  void (*squares)(const rows& x, float* out);

  /// out[t] = sum over channels of weights[c] * (x[t][c] * factors[t] - centre[c])^2; null factors or weights are 1.
  void (*distances)(const rows& x, const float* factors, const float* centre, const float* weights, float* out);

  /// sum[c] += weights[t] * x[t][c], for one t after the other: the same to the bit however the rows are cut into calls.
  void (*add_rows)(const rows& x, const float* weights, float* sum);

  /// Of y = factors[t] * x[t][c]: sum[c] += y, square[c] += y^2, likewise.
  void (*add_statistics)(const rows& x, const float* factors, float* sum, float* square);

  // Of n squares of norms, 0 or more, infinite or NaN.

  /// Each becomes 1 / its root: 0 for 0, NaN where it is not finite.
  void (*inverse_roots)(float* squares, std::size_t n);

  /// out[t] += weight * root of scale * squares[t], NaN where that product is not finite.
  void (*add_roots)(const float* squares, std::size_t n, float scale, float weight, float* out);
};

template <>
LAGKV_FN const row_kernels& kernels<row_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/row_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(row_kernels)
#endif
