// Part of lagkv (MIT). What is done with scores: softmax, and the best of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Over arrays of f32.
struct score_kernels {
  /// out[t] += weight * softmax(x)[t]. Entries that are not finite take no part and get nothing. x is overwritten.
  void (*add_softmax)(float* x, std::size_t n, float weight, float* out);

  /// The indices of the k largest of n scores, ascending, each plus `base`; ties go to the earlier, NaN is below all.
  /// `keys` is scratch for n values. k <= n.
  void (*top_k)(const float* scores, std::size_t n, std::size_t k, std::uint32_t base, std::int32_t* keys, std::uint32_t* out);
};

template <>
LAGKV_FN const score_kernels& kernels<score_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/score_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(score_kernels)
#endif
