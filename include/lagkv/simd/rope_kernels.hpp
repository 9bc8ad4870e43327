// Part of lagkv (MIT). Rows as they were before RoPE.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// The turns of rows by their positions p = coarse + fine: cosines, then sines, of each pair's angle. Where the pairs are
/// neighbours, each cosine stands twice, and each sine is followed by its negative.
struct turn {
  std::size_t dims;
  bool neighbours;           ///< channels (2j, 2j + 1) are a pair; else (j, j + dims / 2)
  const float* coarse;       ///< [2][dims / 2, neighbours: dims], of a part of the positions that all rows have
  const float* const* fine;  ///< one a row, likewise, of the rest
};

/// What reads keys without their positions.
struct rope_kernels {
  /// out[t] = row t as it was before RoPE, dense; channels from by.dims on as they are. Apart from x. squares[t] = the
  /// sum of its squares.
  void (*inverse_rotate)(const rows& x, const turn& by, float* out, float* squares);
};

template <>
LAGKV_FN const rope_kernels& kernels<rope_kernels>(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

#if LAGKV_KERNEL_BODIES
#include <lagkv/simd/vectors.hpp>
#define LAGKV_PER_TARGET <lagkv/simd/rope_kernels.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET

LAGKV_KERNELS_OF(rope_kernels)
#endif
