// Quantised rows: what their bytes mean, in double, and caches of them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "cube.hpp"

namespace support {

inline constexpr lagkv::dtype byte_types[] = {lagkv::dtype::fp8_e4m3, lagkv::dtype::fp8_e5m2, lagkv::dtype::int8,
                                              lagkv::dtype::uint8};
inline constexpr lagkv::dtype block_types[] = {lagkv::dtype::q8_0, lagkv::dtype::q4_0, lagkv::dtype::q4_1, lagkv::dtype::q5_0,
                                               lagkv::dtype::q5_1};

/// The value of a byte, without its scale.
inline double byte_value(lagkv::dtype type, std::uint8_t b) {
  if (type == lagkv::dtype::int8) return b < 128 ? b : b - 256;
  if (type == lagkv::dtype::uint8) return b;
  const int mantissa_bits = type == lagkv::dtype::fp8_e4m3 ? 3 : 2, bias = type == lagkv::dtype::fp8_e4m3 ? 7 : 15;
  const int exponent = (b & 0x7f) >> mantissa_bits, mantissa = b & ((1 << mantissa_bits) - 1);
  const double sign = (b & 0x80) != 0 ? -1 : 1;
  if (type == lagkv::dtype::fp8_e4m3 && (b & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  if (type == lagkv::dtype::fp8_e5m2 && exponent == 31)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

/// Element i of a block, from its bytes.
inline double block_value(lagkv::dtype type, const std::byte* block, std::size_t i) {
  using lagkv::dtype;
  const auto byte = [&](std::size_t at) { return std::to_integer<unsigned>(block[at]); };
  const auto half = [&](std::size_t at) { return static_cast<double>(decoded(dtype::f16, byte(at) | byte(at + 1) << 8)); };
  if (type == dtype::q8_0) return byte_value(dtype::int8, static_cast<std::uint8_t>(byte(2 + i))) * half(0);
  const bool has_least = type == dtype::q4_1 || type == dtype::q5_1, five = type == dtype::q5_0 || type == dtype::q5_1;
  const std::size_t high = has_least ? 4 : 2, low = high + (five ? 4 : 0);
  unsigned q = i < 16 ? byte(low + i) & 15 : byte(low + i - 16) >> 4;
  if (five) q |= ((byte(high + i / 8) >> (i % 8)) & 1) << 4;
  if (has_least) return q * half(0) + half(2);
  return (static_cast<double>(q) - (five ? 16 : 8)) * half(0);
}

/// A random unit: scales are f16 of ordinary size.
inline void random_unit(lagkv::dtype type, std::mt19937& random, std::byte* out) {
  for (std::size_t i = 0; i < lagkv::size_of(type); ++i) out[i] = static_cast<std::byte>(random());
  if (lagkv::elements_of(type) == 1) {
    while (!std::isfinite(byte_value(type, std::to_integer<std::uint8_t>(*out)))) *out = static_cast<std::byte>(random());
    return;
  }
  for (std::size_t at : {0U, 2U}) {
    if (at == 2 && type != lagkv::dtype::q4_1 && type != lagkv::dtype::q5_1) continue;
    const float scale =
        std::exp(static_cast<float>(random() % 1000) / 250.0F - 4.0F) * (at == 2 && random() % 2 == 0 ? -1.0F : 1.0F);
    const auto bits = static_cast<std::uint16_t>(encoded(lagkv::dtype::f16, scale));
    std::memcpy(out + at, &bits, sizeof bits);
  }
}

}  // namespace support
