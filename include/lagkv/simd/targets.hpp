// Part of lagkv (MIT). The include site of the kernels: each instruction set is a region compiled for it, whatever flags
// the host is built with. Only load, fma, min, max and sqrt differ; the rest is kernels.inl.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/core.hpp>
#include <lagkv/simd/kernel_table.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LAGKV_INLINE [[gnu::always_inline]] inline

// f16 and bf16 without conversion instructions, by integer arithmetic; also right where denormals are flushed to zero.
#define LAGKV_WIDEN_BY_BITS(wide, half)                                                                   \
  const ivec sign = (half & 0x8000) << 16, magnitude = (half & 0x7fff) << 13;                             \
  const ivec normal = magnitude + (112 << 23);                                                            \
  const vec small = from_bits_of(magnitude + (113 << 23)) - 6.103515625e-05F;                             \
  const ivec is_small = mask_of(magnitude < (1 << 23)), is_special = mask_of(magnitude >= (31 << 23));    \
  const ivec wide = sign | (((normal + (is_special & (112 << 23))) & ~is_small) | (bits_of(small) & is_small))

// ---- scalar: plain C++, one lane ------------------------------------------------------------------------------------

namespace lagkv::simd::scalar {
using vec = float;
using ivec = std::int32_t;
inline constexpr std::size_t lanes = 1;
LAGKV_INLINE vec from_bits_of(ivec v) { return __builtin_bit_cast(vec, v); }
LAGKV_INLINE ivec bits_of(vec v) { return __builtin_bit_cast(ivec, v); }
LAGKV_INLINE ivec mask_of(bool condition) { return condition ? -1 : 0; }
LAGKV_INLINE ivec widened(const void* p) {
  std::uint16_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return half;
}
LAGKV_INLINE vec load(const float* p) {
  vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LAGKV_INLINE ivec loadi(const std::int32_t* p) { return *p; }
LAGKV_INLINE vec load(const bf16* p) { return from_bits_of(static_cast<ivec>(static_cast<std::uint32_t>(widened(p)) << 16)); }
LAGKV_INLINE vec load(const f16* p) {
  const ivec half = widened(p);
  LAGKV_WIDEN_BY_BITS(wide, half);
  return from_bits_of(wide);
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
LAGKV_INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
LAGKV_INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }
LAGKV_INLINE vec vsqrt(vec a) { return __builtin_sqrtf(a); }
#define LAGKV_LANES 1
#define LAGKV_TARGET target::scalar
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_TARGET
}  // namespace lagkv::simd::scalar

#if defined(__x86_64__)

// ---- sse2: every x86-64 ---------------------------------------------------------------------------------------------

namespace lagkv::simd::sse2 {
typedef float vec __attribute__((vector_size(16)));
typedef std::int32_t ivec __attribute__((vector_size(16)));
typedef std::uint16_t halves __attribute__((vector_size(8)));
inline constexpr std::size_t lanes = 4;
LAGKV_INLINE vec from_bits_of(ivec v) { return __builtin_bit_cast(vec, v); }
LAGKV_INLINE ivec bits_of(vec v) { return __builtin_bit_cast(ivec, v); }
LAGKV_INLINE ivec mask_of(ivec condition) { return condition; }
LAGKV_INLINE ivec widened(const void* p) {
  halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, ivec);
}
LAGKV_INLINE vec load(const float* p) { return _mm_loadu_ps(p); }
LAGKV_INLINE ivec loadi(const std::int32_t* p) { return (ivec)_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
LAGKV_INLINE vec load(const bf16* p) { return from_bits_of(widened(p) << 16); }
LAGKV_INLINE vec load(const f16* p) {
  const ivec half = widened(p);
  LAGKV_WIDEN_BY_BITS(wide, half);
  return from_bits_of(wide);
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
LAGKV_INLINE vec vmin(vec a, vec b) { return _mm_min_ps(a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return _mm_max_ps(a, b); }
LAGKV_INLINE vec vsqrt(vec a) { return _mm_sqrt_ps(a); }
#define LAGKV_LANES 4
#define LAGKV_TARGET target::sse2
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
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
typedef float vec __attribute__((vector_size(32)));
typedef std::int32_t ivec __attribute__((vector_size(32)));
inline constexpr std::size_t lanes = 8;
LAGKV_INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
LAGKV_INLINE ivec loadi(const std::int32_t* p) { return (ivec)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
LAGKV_INLINE vec load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
LAGKV_INLINE vec load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
LAGKV_INLINE vec vmin(vec a, vec b) { return _mm256_min_ps(a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
LAGKV_INLINE vec vsqrt(vec a) { return _mm256_sqrt_ps(a); }
#define LAGKV_LANES 8
#define LAGKV_TARGET target::avx2
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
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
typedef float vec __attribute__((vector_size(64)));
typedef std::int32_t ivec __attribute__((vector_size(64)));
inline constexpr std::size_t lanes = 16;
// The maskz forms: g++ 12 warns of an uninitialised value inside the plain ones.
inline constexpr __mmask16 all = 0xffff;
LAGKV_INLINE vec load(const float* p) { return _mm512_loadu_ps(p); }
LAGKV_INLINE ivec loadi(const std::int32_t* p) { return (ivec)_mm512_loadu_si512(p); }
LAGKV_INLINE vec load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, half), 16));
}
LAGKV_INLINE vec load(const f16* p) {
  return _mm512_maskz_cvtph_ps(all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
LAGKV_INLINE vec vmin(vec a, vec b) { return _mm512_maskz_min_ps(all, a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return _mm512_maskz_max_ps(all, a, b); }
LAGKV_INLINE vec vsqrt(vec a) { return _mm512_maskz_sqrt_ps(all, a); }
#define LAGKV_LANES 16
#define LAGKV_TARGET target::avx512
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
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
typedef float vec __attribute__((vector_size(16)));
typedef std::int32_t ivec __attribute__((vector_size(16)));
inline constexpr std::size_t lanes = 4;
LAGKV_INLINE uint16x4_t halves(const void* p) {
  uint16x4_t h;
  __builtin_memcpy(&h, p, sizeof h);
  return h;
}
LAGKV_INLINE vec load(const float* p) { return (vec)vld1q_f32(p); }
LAGKV_INLINE ivec loadi(const std::int32_t* p) { return (ivec)vld1q_s32(p); }
LAGKV_INLINE vec load(const bf16* p) { return (vec)vreinterpretq_f32_u32(vshll_n_u16(halves(p), 16)); }
LAGKV_INLINE vec load(const f16* p) { return (vec)vcvt_f32_f16(vreinterpret_f16_u16(halves(p))); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
LAGKV_INLINE vec vmin(vec a, vec b) { return (vec)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return (vec)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
LAGKV_INLINE vec vsqrt(vec a) { return (vec)vsqrtq_f32((float32x4_t)a); }
#define LAGKV_LANES 4
#define LAGKV_TARGET target::neon
#include <lagkv/simd/kernels.inl>
#undef LAGKV_LANES
#undef LAGKV_TARGET
}  // namespace lagkv::simd::neon

#endif

#undef LAGKV_WIDEN_BY_BITS
#undef LAGKV_INLINE
