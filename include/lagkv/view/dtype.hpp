// Part of lagkv (MIT). Element types of a cache: plain numbers, bytes with a scale beside them, ggml's blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Element types of a cache. All arithmetic is done in f32; rows move as they are stored.
///
/// A row of channels consists of units: an element each, or a block of 32 elements with its own scale for the types of ggml
/// (their layout: ggml-common.h). All strides count units.
enum class dtype : std::uint8_t { f32, f16, bf16, fp8_e4m3, fp8_e5m2, int8, uint8, q8_0, q4_0, q4_1, q5_0, q5_1 };

/// An IEEE binary16 element, as stored. Only its size and bits matter: any 2-byte type of the host can be viewed as f16.
struct f16 {
  std::uint16_t bits;
};

/// A bfloat16 element (the upper half of an f32), as stored.
struct bf16 {
  std::uint16_t bits;
};

/// 8 bits of sign, 4 of exponent, 3 of mantissa: up to 448, no infinity, NaN is 0x7f (PyTorch's float8_e4m3fn).
struct fp8_e4m3 {
  std::uint8_t bits;
};

/// The upper half of an f16 (PyTorch's float8_e5m2).
struct fp8_e5m2 {
  std::uint8_t bits;
};

/// 32 elements q * scale.
struct q8_0 {
  f16 scale;
  std::int8_t q[32];
};

/// 32 elements (q - 8) * scale; element i < 16 is the low half of byte i, element i + 16 its high half.
struct q4_0 {
  f16 scale;
  std::uint8_t q[16];
};

/// 32 elements q * scale + least, in the order of q4_0.
struct q4_1 {
  f16 scale, least;
  std::uint8_t q[16];
};

/// 32 elements (q - 16) * scale: four bits of each as in q4_0, the fifth of element i is bit i of `high` (little endian).
struct q5_0 {
  f16 scale;
  std::uint8_t high[4];
  std::uint8_t q[16];
};

/// 32 elements q * scale + least, the bits as in q5_0.
struct q5_1 {
  f16 scale, least;
  std::uint8_t high[4];
  std::uint8_t q[16];
};

namespace detail {

struct dtype_facts {
  const char* name;
  std::uint8_t bytes;     // of a unit
  std::uint8_t elements;  // of a unit
};

inline constexpr dtype_facts facts[] = {{"f32", 4, 1},      {"f16", 2, 1},    {"bf16", 2, 1},   {"fp8_e4m3", 1, 1},
                                        {"fp8_e5m2", 1, 1}, {"int8", 1, 1},   {"uint8", 1, 1},  {"q8_0", 34, 32},
                                        {"q4_0", 18, 32},   {"q4_1", 20, 32}, {"q5_0", 22, 32}, {"q5_1", 24, 32}};

constexpr const dtype_facts& facts_of(dtype type) { return facts[static_cast<std::size_t>(type)]; }

}  // namespace detail

/// Bytes of one unit.
constexpr std::size_t size_of(dtype type) { return detail::facts_of(type).bytes; }

/// Elements of one unit: 1, or those of a block.
constexpr std::size_t elements_of(dtype type) { return detail::facts_of(type).elements; }

constexpr const char* name(dtype type) { return detail::facts_of(type).name; }

/// Whether elements are numbers by themselves that arithmetic may be written back to (keys given new positions, say).
constexpr bool is_float(dtype type) { return type <= dtype::bf16; }

/// Whether elements are bytes, which mean numbers only together with a scale that lies elsewhere.
constexpr bool is_byte(dtype type) { return type >= dtype::fp8_e4m3 && type <= dtype::uint8; }

namespace detail {

template <dtype D>
struct dtype_constant {
  static constexpr dtype value = D;
};

}  // namespace detail

/// dtype_of<T>::value is the dtype whose unit is a T.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> : detail::dtype_constant<dtype::f32> {};
template <>
struct dtype_of<f16> : detail::dtype_constant<dtype::f16> {};
template <>
struct dtype_of<bf16> : detail::dtype_constant<dtype::bf16> {};
template <>
struct dtype_of<fp8_e4m3> : detail::dtype_constant<dtype::fp8_e4m3> {};
template <>
struct dtype_of<fp8_e5m2> : detail::dtype_constant<dtype::fp8_e5m2> {};
template <>
struct dtype_of<std::int8_t> : detail::dtype_constant<dtype::int8> {};
template <>
struct dtype_of<std::uint8_t> : detail::dtype_constant<dtype::uint8> {};
template <>
struct dtype_of<q8_0> : detail::dtype_constant<dtype::q8_0> {};
template <>
struct dtype_of<q4_0> : detail::dtype_constant<dtype::q4_0> {};
template <>
struct dtype_of<q4_1> : detail::dtype_constant<dtype::q4_1> {};
template <>
struct dtype_of<q5_0> : detail::dtype_constant<dtype::q5_0> {};
template <>
struct dtype_of<q5_1> : detail::dtype_constant<dtype::q5_1> {};

}  // namespace lagkv::inline LAGKV_ABI
