// Part of lagkv (MIT). Questions about numbers that hold under any flags of the host, -ffast-math too; random numbers. Not API.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI::detail {

// On bits: a compiler that was told that there are no infinities takes `x - x == 0` for true.
inline bool finite(float x) { return (__builtin_bit_cast(std::uint32_t, x) & 0x7f800000U) != 0x7f800000U; }
inline bool finite(double x) { return (__builtin_bit_cast(std::uint64_t, x) >> 52U & 0x7ffU) != 0x7ffU; }
inline bool is_nan(float x) { return (__builtin_bit_cast(std::uint32_t, x) & 0x7fffffffU) > 0x7f800000U; }

// From bits, too: Clang warns of the standard library's in a file built with -ffast-math.
inline float infinity() { return __builtin_bit_cast(float, 0x7f800000U); }
inline float not_a_number() { return __builtin_bit_cast(float, 0x7fc00000U); }

/// Infinity as the largest number; others, NaN too, as they are.
inline float capped(float x) { return finite(x) || is_nan(x) || x < 0 ? x : __builtin_bit_cast(float, 0x7f7fffffU); }

/// The norm from its square; NaN, which goes first, where that is not finite.
inline float norm(float square) { return finite(square) ? __builtin_sqrtf(square) : not_a_number(); }

/// Whether two numbers, neither of which is NaN, are not the same.
inline bool differ(double a, double b) { return a < b || b < a; }

inline std::size_t magnitude(std::ptrdiff_t x) { return x < 0 ? 0 - static_cast<std::size_t>(x) : static_cast<std::size_t>(x); }

/// Whether n things of `bytes` at such a stride, in units of as many bytes, lie within what a pointer can count.
inline bool addressable(std::size_t n, std::ptrdiff_t stride, std::size_t bytes) {
  constexpr std::size_t most = ~std::size_t{0} / 2;
  const std::size_t step = magnitude(stride), units = most / bytes;
  return step <= units && (n <= 1 || step == 0 || n - 1 <= units / step);
}

inline constexpr std::uint64_t split_mix_step = 0x9e3779b97f4a7c15U;

/// The number that SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) draws in state x.
LAGKV_FN std::uint64_t split_mix(std::uint64_t x);

#if LAGKV_BODIES

LAGKV_FN std::uint64_t split_mix(std::uint64_t x) {
  x += split_mix_step;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI::detail
