// Part of lagkv (MIT). Elements of every type to f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Adjacent elements.
struct widen_kernels {
  /// out[i] = x[i] as f32, for n adjacent elements: whole blocks where the type has them. Scales that lie elsewhere are not
  /// applied. The dtype tells how each is read (q4_1, q5_1: one rounding where the target has it, else two).
  void (*widen)(const void* x, dtype type, std::size_t n, float* out);
};

template <>
LAGKV_FN const widen_kernels& kernels<widen_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/widen_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(widen_kernels)
#endif
