// Part of lagkv (MIT). Which kernels this CPU can run.
#pragma once

#include <cstdint>

#include <lagkv/simd/kernel_table.hpp>

#if !defined(LAGKV_SEPARATE_KERNELS)
#include <lagkv/simd/targets.hpp>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lagkv::simd {

namespace detail {

#if defined(__x86_64__)
// CPUID and XGETBV by hand: __builtin_cpu_supports answers 0 to everything in some compilers' run times, and only XCR0
// tells whether the operating system saves the wide registers.
inline std::uint64_t saved_registers() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

inline target widest() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return target::sse2;
  const auto bit = [](unsigned word, int n) { return ((word >> n) & 1U) != 0; };
  const bool f16c = bit(c, 29), fma = bit(c, 12), avx = bit(c, 28), osxsave = bit(c, 27);
  if (!(osxsave && avx && fma && f16c) || (saved_registers() & 0x06) != 0x06) return target::sse2;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return target::sse2;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
  return avx512 && (saved_registers() & 0xe6) == 0xe6 ? target::avx512 : target::avx2;
}
#elif defined(__aarch64__)
inline target widest() { return target::neon; }
#else
inline target widest() { return target::scalar; }
#endif

}  // namespace detail

/// The widest target that this CPU and its operating system run. Probed once.
inline target best() {
  static const target found = detail::widest();
  return found;
}

/// Whether the kernels of `t` can run here.
inline bool supported(target t) {
#if defined(__x86_64__)
  return t <= best();  // each x86 target includes the ones before it
#elif defined(__aarch64__)
  return t == target::scalar || t == target::neon;
#else
  return t == target::scalar;
#endif
}

/// The kernels of `t`; those of best() where `t` cannot run here. Where LAGKV_SEPARATE_KERNELS is defined, they are compiled
/// once, in <lagkv/simd/kernels.cpp>, and not in each file that includes this one.
#if defined(LAGKV_SEPARATE_KERNELS)
const kernel_table& kernels(target t);
#else
inline const kernel_table& kernels(target t) { return detail::table_of(supported(t) ? t : best()); }
#endif

}  // namespace lagkv::simd
