// Included by other_lanes.cpp once for each number of lanes.
#include <lagkv/simd/vectors.inl>

#include <lagkv/simd/dot_kernels.inl>
#include <lagkv/simd/lagkv_kernels.inl>
#include <lagkv/simd/narrow_kernels.inl>
#include <lagkv/simd/rope_kernels.inl>
#include <lagkv/simd/row_kernels.inl>
#include <lagkv/simd/score_kernels.inl>
#include <lagkv/simd/widen_kernels.inl>

inline support::kernel_table all() {
  return {lagkv_kernels_table, score_kernels_table, widen_kernels_table, narrow_kernels_table,
          row_kernels_table,   dot_kernels_table,   rope_kernels_table};
}
