// Part of lagkv (MIT). The kernels of all families, for a program whose files are compiled with LAGKV_COMPILED. Add this file and
// lagkv/lagkv.cpp to the sources of the program, or link lagkv::kernels.
#if !defined(LAGKV_COMPILED)
#error "lagkv: define LAGKV_COMPILED for all files of the program, or leave this one out"
#endif
#define LAGKV_COMPILING_KERNELS

#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/lagkv_kernels.hpp>
#include <lagkv/simd/narrow_kernels.hpp>
#include <lagkv/simd/rope_kernels.hpp>
#include <lagkv/simd/row_kernels.hpp>
#include <lagkv/simd/score_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>

#if !LAGKV_KERNEL_BODIES
#error "lagkv: a header of lagkv was included before this file: no precompiled header and no unity build for it"
#endif
