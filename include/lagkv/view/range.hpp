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

/// A number of things; takes any integer type of the host.
struct extent {
  std::size_t value = 0;

  constexpr extent() = default;
  template <std::integral T>
  constexpr extent(T n) : value(static_cast<std::size_t>(n)) {}
  constexpr operator std::size_t() const noexcept { return value; }
};

/// A signed number of units from one thing to the next; takes any integer type of the host.
struct distance {
  std::ptrdiff_t value = 0;

  constexpr distance() = default;
  template <std::integral T>
  constexpr distance(T n) : value(static_cast<std::ptrdiff_t>(n)) {}
  constexpr operator std::ptrdiff_t() const noexcept { return value; }
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
  side_array<std::uint32_t> known{};  ///< the host's own; else row + dropped, which holds for rows that are candidates once
  std::size_t dropped = 0;

  std::size_t of(std::size_t head, std::size_t row) const { return known ? known.of(head)[row] : row + dropped; }
};

}  // namespace lagkv::inline LAGKV_ABI
