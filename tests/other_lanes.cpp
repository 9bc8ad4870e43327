// Compiled without a warning that is about vectors as arguments: here nearly all is inlined, and called in this file alone.
#include <lagkv/simd/vectors.hpp>

#include "support/kernels.hpp"

#define LAGKV_ISA 0
#define LAGKV_READS_16_BITS 1

namespace lagkv::inline LAGKV_ABI::simd::sixteen_lanes {
#define LAGKV_LANES 16
#include "all_kernels.inl"
#undef LAGKV_LANES
}  // namespace lagkv::inline LAGKV_ABI::simd::sixteen_lanes

namespace lagkv::inline LAGKV_ABI::simd::one_lane {
#define LAGKV_LANES 1
#include "all_kernels.inl"
#undef LAGKV_LANES
}  // namespace lagkv::inline LAGKV_ABI::simd::one_lane

namespace support {

kernel_table sixteen_lanes() { return simd::sixteen_lanes::all(); }
kernel_table one_lane() { return simd::one_lane::all(); }

}  // namespace support
