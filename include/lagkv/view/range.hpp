// Part of lagkv (MIT). Tokens of a cache by the rows that they lie in, and numbers that belong to them.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Tokens [begin, end) of a cache, counted in rows as they lie in memory (not in positions for RoPE).
struct token_range {
  std::size_t begin = 0;
  std::size_t end = 0;

  constexpr std::size_t size() const noexcept { return end - begin; }
  constexpr bool empty() const noexcept { return begin == end; }
  friend constexpr bool operator==(token_range, token_range) = default;
};

namespace detail {

/// A T that takes any integer type of the host, in braces too.
template <class T>
struct any_integer {
  T value = 0;

  constexpr any_integer() = default;
  template <std::integral Integer>
  constexpr any_integer(Integer n) : value(static_cast<T>(n)) {}
  constexpr operator T() const noexcept { return value; }
};

}  // namespace detail

/// A number of things.
struct extent : detail::any_integer<std::size_t> {
  using any_integer::any_integer;
};

/// A signed number of units from one thing to the next.
struct distance : detail::any_integer<std::ptrdiff_t> {
  using any_integer::any_integer;
};

/// A number for each token, in the host's memory: entry (head, row) is data[head * head_stride + row]. compress() moves the
/// numbers with the rows.
template <class T>
struct side_array {
  T* data = nullptr;
  distance head_stride = 0;  ///< 0: one row of numbers for all heads, which then must keep the same tokens

  explicit operator bool() const noexcept { return data != nullptr; }
  T* of(std::size_t head) const { return data + static_cast<std::ptrdiff_t>(head) * head_stride.value; }
};

/// Which position each row holds.
struct row_positions {
  side_array<std::uint32_t> known{};  ///< the host's; if empty, row + dropped, which holds for rows that are candidates once
  std::size_t dropped = 0;

  std::size_t of(std::size_t head, std::size_t row) const { return known ? known.of(head)[row] : row + dropped; }
};

}  // namespace lagkv::inline LAGKV_ABI
