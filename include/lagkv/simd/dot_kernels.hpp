// Part of lagkv (MIT). Rows against vectors: attention, cosines.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Sums are taken in f32 and follow IEEE rules: a channel that is NaN makes its sums NaN.
struct dot_kernels {
  /// out[v * pitch + t] = sum over channels of x[t][c] * vectors[v][c], for `count` dense vectors of x.channels floats; pitch
  /// is at least x.tokens. Each product of a row and a vector is the same to the bit whatever others are in the call.
  void (*dots)(const rows& x, const float* vectors, std::size_t count, float* out, std::size_t pitch);
};

template <>
LAGKV_FN const dot_kernels& kernels<dot_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/dot_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(dot_kernels)
#endif
