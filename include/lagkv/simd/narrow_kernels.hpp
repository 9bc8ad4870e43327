// Part of lagkv (MIT). f32 to the elements that a cache may be written in.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Adjacent elements.
struct narrow_kernels {
  /// out[i] = x[i] rounded to the nearest element, ties to even, for n adjacent elements of f32, f16 or bf16. What is too large
  /// becomes an infinity; NaN stays NaN, with its sign, its payload is lost (not for f32, which is copied). All targets give the
  /// same bits.
  void (*narrow)(const float* x, dtype type, std::size_t n, void* out);
};

template <>
LAGKV_FN const narrow_kernels& kernels<narrow_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/narrow_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(narrow_kernels)
#endif
