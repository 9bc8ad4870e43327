// Part of lagkv (MIT). All that is not a template of the host's, for a program whose files are compiled with LAGKV_COMPILED. Add
// this file and lagkv/simd/kernels.cpp to the sources of the program, or link lagkv::kernels.
#if !defined(LAGKV_COMPILED)
#error "lagkv: define LAGKV_COMPILED for all files of the program, or leave this one out"
#endif
#define LAGKV_COMPILING

#include <lagkv/lagkv.hpp>

#if !LAGKV_BODIES
#error "lagkv: a header of lagkv was included before this file: no precompiled header and no unity build for it"
#endif
