// Part of lagkv (MIT). The include site of the kernels: each instruction set is a region compiled for it, whatever flags
// the host is built with.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/core.hpp>
#include <lagkv/simd/kernel_table.hpp>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LAGKV_INLINE [[gnu::always_inline]] inline

// Each target says what fma is: left to itself, a compiler contracts a * b + c in one loop and not in another (GCC does so
// for plain floats that it vectorises, and by -mtune), and a row's result would depend on the loop that it went through.

// ---- scalar: plain C++ ----------------------------------------------------------------------------------------------

namespace lagkv::simd::scalar {
#define LAGKV_LANES 1
#define LAGKV_X86 0
#define LAGKV_TARGET target::scalar
#include <lagkv/simd/vectors.inl>
LAGKV_INLINE vec widen_halves(halves h) { return widen_by_bits(h); }
LAGKV_INLINE vec root(vec v) { return __builtin_sqrtf(v); }
#if defined(__FP_FAST_FMAF)
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_fmaf(a, b, c); }
#else
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET
}  // namespace lagkv::simd::scalar

#if defined(__x86_64__)

// ---- sse2: every x86-64 ---------------------------------------------------------------------------------------------

namespace lagkv::simd::sse2 {
#define LAGKV_LANES 4
#define LAGKV_X86 1
#define LAGKV_TARGET target::sse2
#include <lagkv/simd/vectors.inl>
LAGKV_INLINE vec widen_halves(halves h) { return widen_by_bits(h); }
LAGKV_INLINE vec root(vec v) { return __builtin_ia32_sqrtps(v); }
#if defined(__FMA__)  // the host's own flags
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_ia32_vfmaddps(a, b, c); }
#else
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET
}  // namespace lagkv::simd::sse2

// ---- avx2 + fma + f16c ----------------------------------------------------------------------------------------------

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace lagkv::simd::avx2 {
#define LAGKV_LANES 8
#define LAGKV_X86 1
#define LAGKV_TARGET target::avx2
#include <lagkv/simd/vectors.inl>
typedef short signed_halves __attribute__((vector_size(16)));
LAGKV_INLINE vec widen_halves(halves h) { return __builtin_ia32_vcvtph2ps256((signed_halves)h); }
LAGKV_INLINE vec root(vec v) { return __builtin_ia32_sqrtps256(v); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_ia32_vfmaddps256(a, b, c); }
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET
}  // namespace lagkv::simd::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// ---- avx512: F, BW, DQ, VL ------------------------------------------------------------------------------------------

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
namespace lagkv::simd::avx512 {
#define LAGKV_LANES 16
#define LAGKV_X86 1
#define LAGKV_TARGET target::avx512
#if defined(__clang__)
inline constexpr unsigned short all = 0xffff;
#else
inline constexpr short all = -1;
#endif
inline constexpr int current_rounding = 4;
#include <lagkv/simd/vectors.inl>
typedef short signed_halves __attribute__((vector_size(32)));
LAGKV_INLINE vec widen_halves(halves h) {
  return __builtin_ia32_vcvtph2ps512_mask((signed_halves)h, vec{}, all, current_rounding);
}
LAGKV_INLINE vec root(vec v) {
#if defined(__clang__)
  return __builtin_ia32_sqrtps512(v, current_rounding);
#else
  return __builtin_ia32_sqrtps512_mask(v, vec{}, all, current_rounding);
#endif
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_ia32_vfmaddps512_mask(a, b, c, all, current_rounding); }
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET
}  // namespace lagkv::simd::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__)

// ---- neon: every aarch64 --------------------------------------------------------------------------------------------

namespace lagkv::simd::neon {
#define LAGKV_LANES 4
#define LAGKV_X86 0
#define LAGKV_TARGET target::neon
#include <lagkv/simd/vectors.inl>
LAGKV_INLINE vec widen_halves(halves h) { return (vec)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)h)); }
LAGKV_INLINE vec root(vec v) { return (vec)vsqrtq_f32((float32x4_t)v); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_X86
#undef LAGKV_TARGET
}  // namespace lagkv::simd::neon

#endif

#undef LAGKV_INLINE

namespace lagkv::simd::detail {

/// The kernels of `t`, whether they can run here or not; the plain ones where this build has none of that name.
inline const kernel_table& table_of(target t) {
  switch (t) {
#if defined(__x86_64__)
    case target::sse2:
      return sse2::table;
    case target::avx2:
      return avx2::table;
    case target::avx512:
      return avx512::table;
#elif defined(__aarch64__)
    case target::neon:
      return neon::table;
#endif
    default:
      return scalar::table;
  }
}

}  // namespace lagkv::simd::detail
