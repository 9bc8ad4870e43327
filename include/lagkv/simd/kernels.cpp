// Part of lagkv (MIT). The kernels compiled once, for a program whose files are compiled with LAGKV_SEPARATE_KERNELS: each of
// those takes a fifth of the time. Add this file to the sources of the program, or link lagkv::kernels.
#if !defined(LAGKV_SEPARATE_KERNELS)
#error "define LAGKV_SEPARATE_KERNELS for all files of the program (or leave this one out)"
#endif

#include <lagkv/simd/dispatch.hpp>
#include <lagkv/simd/targets.hpp>

namespace lagkv::simd {

const kernel_table& kernels(target t) { return detail::table_of(supported(t) ? t : best()); }

}  // namespace lagkv::simd
