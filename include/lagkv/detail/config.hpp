// Part of lagkv (MIT). What compilers must offer, and the two modes: in headers, or compiled once (LAGKV_COMPILED). Not API.
#pragma once

#include <lagkv/version.hpp>

#if defined(_MSC_VER) && !defined(__clang__)
#error "lagkv: MSVC's cl has no vector types of GCC's kind: compile with clang-cl, which comes with Visual Studio"
#elif __cplusplus < 202002L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#error "lagkv: this file must be compiled as C++20 (-std=c++20); other files of the program need not be"
#else
#define LAGKV_USABLE 1
#endif

// LAGKV_COMPILED, defined for all files of a program that links lagkv::kernels (or compiles lagkv/lagkv.cpp and
// lagkv/simd/kernels.cpp): whatever is not a template of the host's is compiled once. LAGKV_BODIES, LAGKV_KERNEL_BODIES: whether
// this file compiles functions, and kernels. LAGKV_FN stands before each such function.
#if defined(LAGKV_COMPILED)
#define LAGKV_MODE _compiled
#define LAGKV_FN
#if defined(LAGKV_COMPILING)
#define LAGKV_BODIES 1
#else
#define LAGKV_BODIES 0
#endif
#if defined(LAGKV_COMPILING_KERNELS)
#define LAGKV_KERNEL_BODIES 1
#else
#define LAGKV_KERNEL_BODIES 0
#endif
#else
#define LAGKV_FN inline
#define LAGKV_BODIES 1
#define LAGKV_KERNEL_BODIES 1
#endif

// Functions at the edge: parsing, checking, messages. They are compiled for size, which takes less time, too.
#define LAGKV_EDGE [[gnu::cold]] LAGKV_FN

// A parameter that must live as long as what is made of it: Clang warns where it does not.
#if defined(__clang__)
#define LAGKV_OUTLIVES [[clang::lifetimebound]]
#else
#define LAGKV_OUTLIVES
#endif

// All is declared in an inline namespace named after the version and the mode, so that two minor versions, or two modes, in one
// program are a link error where they meet, and apart where they do not.
//
// Headers only, the mode is what the file's flags let the compiler use. A linker keeps one copy of an inline function, of any
// file: without this, one that was compiled for a newer processor could serve the whole program.
#if !defined(LAGKV_MODE)
#if defined(__x86_64__) || defined(__i386__)
#if defined(__AVX512VBMI__) || defined(__AVX512VNNI__) || defined(__AVX512BF16__) || defined(__AVX512FP16__) ||              \
    defined(__AVX512IFMA__) || defined(__AVXVNNI__) || defined(__AVXIFMA__) || defined(__AVX10_1__) || defined(__APX_F__) || \
    defined(__GFNI__) || defined(__VAES__) || defined(__FMA4__) || defined(__XOP__)
#define LAGKV_MODE _x86_newer
#elif defined(__AVX512F__)
#define LAGKV_MODE _x86_v4
#elif defined(__AVX__) || defined(__BMI__) || defined(__LZCNT__) || defined(__MOVBE__)
#define LAGKV_MODE _x86_v3
#elif defined(__SSE3__) || defined(__POPCNT__)
#define LAGKV_MODE _x86_v2
#elif defined(__i386__) && defined(__SSE2__)
#define LAGKV_MODE _x86_sse2
#endif
#elif defined(__aarch64__)
#if defined(__ARM_FEATURE_SVE)
#define LAGKV_MODE _arm_sve
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC) || defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_ATOMICS)
#define LAGKV_MODE _arm_v8_2
#endif
#elif defined(__riscv_vector)
#define LAGKV_MODE _riscv_v
#elif defined(__wasm_simd128__)
#define LAGKV_MODE _simd128
#endif
#endif
#if !defined(LAGKV_MODE)
#define LAGKV_MODE
#endif

#define LAGKV_JOIN_3(major, minor, mode) v##major##_##minor##mode
#define LAGKV_JOIN_2(major, minor, mode) LAGKV_JOIN_3(major, minor, mode)
#define LAGKV_ABI LAGKV_JOIN_2(LAGKV_VERSION_MAJOR, LAGKV_VERSION_MINOR, LAGKV_MODE)
