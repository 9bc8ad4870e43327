// Part of lagkv (MIT). The instruction sets, and which of them this CPU can run.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/detail/config.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lagkv::inline LAGKV_ABI::simd {

/// Instruction sets that kernels are built for. Each architecture has a baseline, which all its processors run: sse2 on x86 (32
/// bits too), neon on aarch64, scalar (plain C++) elsewhere. x86-64 has avx2 (AVX2, FMA, F16C) and avx512 (F, BW, DQ, VL) beside
/// it.
enum class target : std::uint8_t { scalar, sse2, avx2, avx512, neon };

/// All of them, the plain one first.
inline constexpr target all_targets[] = {target::scalar, target::sse2, target::avx2, target::avx512, target::neon};

constexpr const char* name(target t) {
  constexpr const char* names[] = {"scalar", "sse2", "avx2", "avx512", "neon"};
  return names[static_cast<std::size_t>(t)];
}

/// Whether kernels of `t` read rows of f16 and bf16 where they lie. Those of targets that nothing makes fast get them in f32.
constexpr bool reads_16_bits(target t) { return t != target::scalar && t != target::sse2; }

#if defined(__x86_64__) || defined(__i386__)
#define LAGKV_BASELINE sse2
#elif defined(__aarch64__)
#define LAGKV_BASELINE neon
#else
#define LAGKV_BASELINE scalar
#endif
inline constexpr target baseline = target::LAGKV_BASELINE;

namespace detail {

#if defined(__x86_64__)
// CPUID and XGETBV by hand: __builtin_cpu_supports answers 0 to everything in some compilers' run times, and only XCR0
// tells whether the operating system saves the wide registers.
inline std::uint64_t saved_registers() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

inline target widest() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return baseline;
  const auto bit = [](unsigned word, int n) { return ((word >> n) & 1U) != 0; };
  const bool f16c = bit(c, 29), fma = bit(c, 12), avx = bit(c, 28), osxsave = bit(c, 27);
  if (!(osxsave && avx && fma && f16c) || (saved_registers() & 0x06) != 0x06) return baseline;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || !bit(b, 5)) return baseline;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
  return avx512 && (saved_registers() & 0xe6) == 0xe6 ? target::avx512 : target::avx2;
}
#else
inline target widest() { return baseline; }
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
  return t >= baseline && t <= best();  // each x86 target includes the ones before it
#else
  return t == baseline;
#endif
}

}  // namespace lagkv::inline LAGKV_ABI::simd
