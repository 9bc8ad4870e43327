// Part of lagkv (MIT). A value, or the reason why there is none; and how such reasons are written.
#pragma once

#include <cassert>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Why something was refused: names the culprit, its value and the limit.
struct error {
  std::string message{};
};

/// A value, or the reason why there is none. Made at the edges (parsing, checking), never on the hot path.
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) : value_(std::move(value)) {}
  result(lagkv::error e) : message_(std::move(e.message)) {}

  explicit operator bool() const noexcept { return value_.has_value(); }
  /// Only if the result holds a value: debug builds stop otherwise.
  T& operator*() { return expect_value(), *value_; }
  const T& operator*() const { return expect_value(), *value_; }
  T* operator->() { return expect_value(), &*value_; }
  const T* operator->() const { return expect_value(), &*value_; }
  /// Empty where the result holds a value.
  const std::string& message() const noexcept { return message_; }

 private:
  void expect_value() const { assert(value_ && "lagkv: the result has no value: look at message()"); }

  std::optional<T> value_{};
  std::string message_{};
};

/// Nothing, or the reason why not.
template <>
class [[nodiscard]] result<void> {
 public:
  result() = default;
  result(lagkv::error e) : failed_(true), message_(std::move(e.message)) {}

  explicit operator bool() const noexcept { return !failed_; }
  const std::string& message() const noexcept { return message_; }

 private:
  bool failed_ = false;
  std::string message_{};
};

using status = result<void>;

// Messages are put together in one place: a concatenation at each refusal costs every file that includes lagkv more code than
// what it refuses.
namespace detail {

/// The shortest text that reads back as x.
std::string text(double x);

/// Text or a number of a message; refers to the text.
class piece {
 public:
  piece(std::string_view text) : text_(text), kind_(kind::text) {}
  piece(const char* text) : piece(std::string_view(text)) {}
  piece(const std::string& text) : piece(std::string_view(text)) {}
  template <std::integral T>
  piece(T n) : whole_(static_cast<std::uint64_t>(n)), kind_(n < T{} ? kind::negative : kind::whole) {}
  template <std::floating_point T>
  piece(T x) : number_(static_cast<double>(x)), kind_(kind::number) {}

  void append_to(std::string& out) const;

 private:
  enum class kind : std::uint8_t { text, whole, negative, number };

  std::string_view text_{};
  std::uint64_t whole_ = 0;
  double number_ = 0;
  kind kind_;
};

/// "tokens=", 7, ": must be at most ", 5 -> that text, in one.
std::string joined(std::initializer_list<piece> pieces);

/// The error of that text.
error refuse(std::initializer_list<piece> pieces);

#if LAGKV_BODIES

LAGKV_EDGE std::string text(double x) {
  if (x > -1e15 && x < 1e15 && !(__builtin_floor(x) < x)) return joined({static_cast<std::int64_t>(x)});
#if defined(__cpp_lib_to_chars)
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, x).ptr};
#else  // libc++
  char digits[32] = {};
  for (int precision = 1; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, x);
    if (!(std::strtod(digits, nullptr) < x) && !(std::strtod(digits, nullptr) > x)) break;
  }
  for (char& c : digits)
    if (c == ',') c = '.';  // the point of the host's locale
  return digits;
#endif
}

LAGKV_EDGE void piece::append_to(std::string& out) const {
  if (kind_ == kind::text) {
    out.append(text_);
    return;
  }
  if (kind_ == kind::number) {
    out.append(text(number_));
    return;
  }
  char digits[20];
  char* first = digits + sizeof digits;
  std::uint64_t left = kind_ == kind::negative ? 0 - whole_ : whole_;
  do *--first = static_cast<char>('0' + left % 10);
  while ((left /= 10) != 0);
  if (kind_ == kind::negative) out.push_back('-');
  out.append(first, static_cast<std::size_t>(digits + sizeof digits - first));
}

LAGKV_EDGE std::string joined(std::initializer_list<piece> pieces) {
  std::string text;
  for (const piece& p : pieces) p.append_to(text);
  return text;
}

LAGKV_EDGE error refuse(std::initializer_list<piece> pieces) { return {joined(pieces)}; }

#endif

}  // namespace detail

}  // namespace lagkv::inline LAGKV_ABI
