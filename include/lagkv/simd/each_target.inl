// Part of lagkv (MIT). Includes the file LAGKV_PER_TARGET once for each target of this architecture, inside the target's
// namespace and compiled for its instructions, whatever flags the file that includes this is compiled with. It finds
//   LAGKV_LANES   floats a vector; 1: plain floats
//   LAGKV_ISA     which instructions it may name: 0 none, 2 AVX2, 3 AVX-512, 4 NEON
//   LAGKV_READS_16_BITS   1: kernels read rows of f16 and bf16, too; 0: they get all rows in f32, which is less to compile where
//                         nothing converts them quickly (see simd::reads_16_bits())
// Functions in there are called from their own target only, or through pointers. No lambdas: they would lose the target.

#define LAGKV_READS_16_BITS (LAGKV_ISA != 0)

#if defined(__x86_64__) || defined(__i386__)

// The baseline names no instruction: compilers make SSE2 of four lanes. Newer ones that the flags of the file allow are switched
// off, so that its numbers are the same in every file. 32 bits: SSE2 in place of x87, whose numbers depend on what is spilled.
#if defined(__x86_64__) && defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64,no-sse3,no-popcnt,no-lzcnt,no-bmi,no-bmi2"))), \
                             apply_to = function)
#elif defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64")
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("sse2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("sse2,fpmath=sse")
#endif
namespace lagkv::inline LAGKV_ABI::simd::sse2 {
#define LAGKV_LANES 4
#define LAGKV_ISA 0
static_assert(reads_16_bits(target::sse2) == LAGKV_READS_16_BITS);
#include LAGKV_PER_TARGET
#undef LAGKV_LANES
#undef LAGKV_ISA
}  // namespace lagkv::inline LAGKV_ABI::simd::sse2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace lagkv::inline LAGKV_ABI::simd::avx2 {
#define LAGKV_LANES 8
#define LAGKV_ISA 2
static_assert(reads_16_bits(target::avx2) == LAGKV_READS_16_BITS);
#include LAGKV_PER_TARGET
#undef LAGKV_LANES
#undef LAGKV_ISA
}  // namespace lagkv::inline LAGKV_ABI::simd::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
namespace lagkv::inline LAGKV_ABI::simd::avx512 {
#define LAGKV_LANES 16
#define LAGKV_ISA 3
static_assert(reads_16_bits(target::avx512) == LAGKV_READS_16_BITS);
#include LAGKV_PER_TARGET
#undef LAGKV_LANES
#undef LAGKV_ISA
}  // namespace lagkv::inline LAGKV_ABI::simd::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

#elif defined(__aarch64__)

namespace lagkv::inline LAGKV_ABI::simd::neon {
#define LAGKV_LANES 4
#define LAGKV_ISA 4
static_assert(reads_16_bits(target::neon) == LAGKV_READS_16_BITS);
#include LAGKV_PER_TARGET
#undef LAGKV_LANES
#undef LAGKV_ISA
}  // namespace lagkv::inline LAGKV_ABI::simd::neon

#else

namespace lagkv::inline LAGKV_ABI::simd::scalar {
#define LAGKV_LANES 1
#define LAGKV_ISA 0
static_assert(reads_16_bits(target::scalar) == LAGKV_READS_16_BITS);
#include LAGKV_PER_TARGET
#undef LAGKV_LANES
#undef LAGKV_ISA
}  // namespace lagkv::inline LAGKV_ABI::simd::scalar

#endif

#undef LAGKV_READS_16_BITS
