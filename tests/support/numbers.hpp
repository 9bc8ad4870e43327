// f32 <-> element bits by arithmetic on exponents: shares nothing with the library's bit tricks and instructions.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <lagkv/view/dtype.hpp>

namespace support {

struct format {
  int exponent_bits, mantissa_bits;
};

inline format format_of(lagkv::dtype type) { return type == lagkv::dtype::f16 ? format{5, 10} : format{8, 7}; }

/// The value of an element.
inline float decoded(lagkv::dtype type, std::uint32_t bits) {
  if (type == lagkv::dtype::f32) return std::bit_cast<float>(bits);
  const auto [eb, mb] = format_of(type);
  const int special = (1 << eb) - 1, bias = special / 2;
  const int exponent = static_cast<int>(bits >> mb) & special;
  const int mantissa = static_cast<int>(bits) & ((1 << mb) - 1);
  double x = 0;
  if (exponent == special)
    x = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  else if (exponent == 0)
    x = std::ldexp(mantissa, 1 - bias - mb);
  else
    x = std::ldexp(mantissa + (1 << mb), exponent - bias - mb);
  return static_cast<float>((bits & 0x8000U) != 0 ? -x : x);
}

/// The nearest element, ties to even.
inline std::uint32_t encoded(lagkv::dtype type, float value) {
  if (type == lagkv::dtype::f32) return std::bit_cast<std::uint32_t>(value);
  const auto [eb, mb] = format_of(type);
  const std::uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
  const auto infinity = static_cast<std::uint32_t>(((1 << eb) - 1) << mb);
  if (std::isnan(value)) return sign | infinity | (1U << (mb - 1));
  if (std::isinf(value)) return sign | infinity;
  if (value == 0.0F) return sign;
  const int bias = (1 << (eb - 1)) - 1, least = 1 - bias;
  const int exponent = std::ilogb(value) < least ? least : std::ilogb(value);
  const double steps = std::nearbyint(std::ldexp(std::fabs(static_cast<double>(value)), mb - exponent));
  // The implicit bit, and a carry into the exponent, add up by themselves.
  const std::uint32_t bits = static_cast<std::uint32_t>(steps) + (static_cast<std::uint32_t>(exponent + bias - 1) << mb);
  return sign | (bits < infinity ? bits : infinity);
}

inline float rounded(lagkv::dtype type, float x) { return decoded(type, encoded(type, x)); }

inline bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

/// |a - b| over |b|.
inline double relative(double a, double b) { return a == b ? 0.0 : std::fabs(a - b) / std::fabs(b); }

}  // namespace support
