// Compiled without a warning that is about vectors as arguments: here all is inlined, nothing is passed.
#include "support/sixteen_lanes.hpp"

#define LAGKV_INLINE [[gnu::always_inline]] inline
#define LAGKV_LANES 16
#define LAGKV_X86 0
#define LAGKV_TARGET target::avx512

namespace lagkv::simd::sixteen_lanes {
#include <lagkv/simd/vectors.inl>
LAGKV_INLINE vec widen_halves(halves h) { return widen_by_bits(h); }
LAGKV_INLINE vec root(vec v) {
  for (int i = 0; i < 16; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#include <lagkv/simd/kernels.inl>
}  // namespace lagkv::simd::sixteen_lanes

#undef LAGKV_INLINE
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET

namespace support {
const lagkv::simd::kernel_table& sixteen_lanes() { return lagkv::simd::sixteen_lanes::table; }
}  // namespace support
