// Part of lagkv (MIT). The vectors of each target. For the files that make kernels of them; not API.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/rows.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LAGKV_INLINE [[gnu::always_inline]] inline

#define LAGKV_PER_TARGET <lagkv/simd/vectors.inl>
#include <lagkv/simd/each_target.inl>
#undef LAGKV_PER_TARGET
