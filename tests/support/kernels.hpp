// The kernels of all families as one table: those of a target, and builds of them that no machine's dispatch would pick.
#pragma once

#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/lagkv_kernels.hpp>
#include <lagkv/simd/narrow_kernels.hpp>
#include <lagkv/simd/rope_kernels.hpp>
#include <lagkv/simd/row_kernels.hpp>
#include <lagkv/simd/score_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>

namespace support {

namespace simd = lagkv::simd;

struct kernel_table : simd::lagkv_kernels,
                      simd::score_kernels,
                      simd::widen_kernels,
                      simd::narrow_kernels,
                      simd::row_kernels,
                      simd::dot_kernels,
                      simd::rope_kernels {};

inline kernel_table kernels_of(simd::target t) {
  return {simd::kernels<simd::lagkv_kernels>(t),  simd::kernels<simd::score_kernels>(t), simd::kernels<simd::widen_kernels>(t),
          simd::kernels<simd::narrow_kernels>(t), simd::kernels<simd::row_kernels>(t),   simd::kernels<simd::dot_kernels>(t),
          simd::kernels<simd::rope_kernels>(t)};
}

/// Without AVX-512's instructions, so that the forms for 16 lanes are tested on every machine.
kernel_table sixteen_lanes();

/// Plain floats: what the targets `scalar` of other architectures run.
kernel_table one_lane();

}  // namespace support
