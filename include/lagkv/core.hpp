// Part of lagkv (MIT). Words that every other header uses: ranges, results; element types in dtype.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include <lagkv/detail/config.hpp>
#include <lagkv/dtype.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Tokens [begin, end) of a cache, counted in rows as they lie in memory (not in positions for RoPE).
struct token_range {
  std::size_t begin = 0;
  std::size_t end = 0;

  constexpr std::size_t size() const { return end - begin; }
  constexpr bool empty() const { return begin == end; }
  friend constexpr bool operator==(token_range, token_range) = default;
};

/// A number a token, in the host's memory: entry (head, row) is data[head * head_stride + row]. step() keeps it in line with
/// the rows.
template <class T>
struct side_array {
  T* data = nullptr;
  std::ptrdiff_t head_stride = 0;  ///< 0: one row of numbers for all heads, which then must keep the same tokens

  explicit operator bool() const { return data != nullptr; }
  T* of(std::size_t head) const { return data + static_cast<std::ptrdiff_t>(head) * head_stride; }
};

/// Which position each row holds.
struct row_positions {
  side_array<std::uint32_t> known{};  ///< where the host keeps them; else row + dropped, right for rows not judged before
  std::size_t dropped = 0;

  std::size_t of(std::size_t head, std::size_t row) const { return known ? known.of(head)[row] : row + dropped; }
};

/// Why something was refused: names the culprit, its value and the limit.
struct error {
  std::string message{};
};

/// A value, or the reason why there is none. Made at the edges (parsing, checking), never on the hot path.
template <class T>
class result {
 public:
  result(T value) : value_(std::move(value)) {}
  result(lagkv::error e) : message_(std::move(e.message)) {}

  explicit operator bool() const { return value_.has_value(); }
  /// Only where the result holds a value.
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  /// Empty where the result holds a value.
  const std::string& message() const { return message_; }

 private:
  std::optional<T> value_{};
  std::string message_{};
};

/// Nothing, or the reason why not.
template <>
class result<void> {
 public:
  result() = default;
  result(lagkv::error e) : failed_(true), message_(std::move(e.message)) {}

  explicit operator bool() const { return !failed_; }
  const std::string& message() const { return message_; }

 private:
  bool failed_ = false;
  std::string message_{};
};

using status = result<void>;

}  // namespace lagkv::inline LAGKV_ABI
