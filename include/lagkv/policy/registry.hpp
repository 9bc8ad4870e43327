// Part of lagkv (MIT). Options and methods as data: from these tables come the parser, the defaults, the range checks and the
// lists.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/method.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

struct policy;

/// Which values an option may have.
struct accepted {
  enum class kind : std::uint8_t { whole, odd, number, word, text };

  kind type = kind::number;
  double least = 0;
  double most = 0;
  bool above = false;        ///< more than `least`
  std::string_view words{};  ///< of a word, separated by '|'; its value is its index. Of a text: what it must be.
};

namespace accepts {

inline constexpr double most_tokens = 0x7fffffff;

constexpr accepted whole(double least, double most = most_tokens) { return {accepted::kind::whole, least, most}; }
constexpr accepted number(double least, double most) { return {accepted::kind::number, least, most}; }
constexpr accepted text(std::string_view must_be) { return {accepted::kind::text, 0, 0, false, must_be}; }
constexpr accepted word(std::string_view words) { return {accepted::kind::word, 0, 0, false, words}; }

inline constexpr accepted count = whole(0);
inline constexpr accepted positive = whole(1);
inline constexpr accepted odd{accepted::kind::odd, 1, most_tokens};
inline constexpr accepted share{accepted::kind::number, 0, 1, true};  // above 0
inline constexpr accepted fraction = number(0, 1);
inline constexpr accepted weight = number(0, 1e6);
inline constexpr accepted seed = whole(0, 0x1p53);
inline constexpr accepted yes_no = word("no|yes");

}  // namespace accepts

/// "must be a whole number from 0 to 2147483647": what is accepted, in words.
std::string text(const accepted& a);

namespace detail {
bool fits(const accepted& a, double value);

/// The part of `text` up to `separator`, taken off it.
std::string_view take(std::string_view& text, char separator);

/// A plain decimal number; nothing if it is none. Independent of the locale.
std::optional<double> number(std::string_view text);

/// The value of an option; for a word its index.
result<double> parse_value(std::string_view key, const accepted& a, std::string_view value);
}  // namespace detail

namespace detail {

/// The value of an option as a number; not given only if it is a std::optional that is empty.
struct option_value {
  double number = 0;
  bool given = true;
};

template <class T>
option_value read(const T& x) {
  return {static_cast<double>(x)};
}
template <class T>
option_value read(const std::optional<T>& x) {
  return x ? read(*x) : option_value{0, false};
}

template <class T>
void write(T& x, double value) {
  x = static_cast<T>(value);
}
inline void write(bool& x, double value) { x = value > 0; }
template <class T>
void write(std::optional<T>& x, double value) {
  write(x.emplace(), value);
}

template <class Options, class T>
Options options_of(T Options::*);

/// Reads the member into `value`, or writes it.
template <auto Member>
void access(void* options, option_value& value, bool writes) {
  auto& x = static_cast<decltype(options_of(Member))*>(options)->*Member;
  if (writes)
    write(x, value.number);
  else
    value = read(x);
}

}  // namespace detail

/// One option: a key of policy strings and a member of an options struct.
struct parameter {
  std::string_view key;
  accepted accepts;
  std::string_view meaning;
  void (*access)(void* options, detail::option_value& value, bool writes);

  /// Whether it has a value in these options.
  bool given(const void* options) const { return read(options).given; }
  /// Its value, if it has one; of a word the index.
  double get(const void* options) const { return read(options).number; }
  void set(void* options, double value) const {
    detail::option_value v{value};
    access(options, v, true);
  }

 private:
  detail::option_value read(const void* options) const {
    detail::option_value v;
    access(const_cast<void*>(options), v, false);  // only read
    return v;
  }
};

/// option<&options::window>("window", accepts::positive, "tokens that vote"): its default is the member's.
template <auto Member>
constexpr parameter option(std::string_view key, const accepted& a, std::string_view meaning) {
  return {key, a, meaning, detail::access<Member>};
}

/// Refuses the first value that is not accepted: "lag=0: must be ...". Options that are not given are passed over.
status check(std::span<const parameter> table, const void* options);

/// A table of options, and the struct that it speaks of.
struct option_table {
  static constexpr std::size_t most_bytes = 256;

  std::span<const parameter> parameters{};
  void (*make)(void* at) = nullptr;  ///< a struct of defaults, in most_bytes bytes at `at`; null: there are no options
};

template <class Options>
constexpr option_table table_of(std::span<const parameter> parameters) {
  static_assert(std::is_trivially_copyable_v<Options> && sizeof(Options) <= option_table::most_bytes);
  return {parameters, [](void* at) {
            const Options defaults{};
            std::memcpy(at, &defaults, sizeof defaults);  // as policy/callable.hpp
          }};
}

/// Options of one table, with their defaults, and what a string sets of them.
class option_values {
 public:
  option_values() = default;
  explicit option_values(const option_table& table) : parameters_(table.parameters) {
    if (table.make != nullptr) table.make(bytes_);
  }

  const void* get() const { return bytes_; }
  std::span<const parameter> parameters() const { return parameters_; }

  /// Whether the key is one of them; then `outcome` tells whether its value, as text, is accepted.
  bool set(std::string_view key, std::string_view value, status& outcome);

 private:
  std::span<const parameter> parameters_{};
  std::uint64_t set_ = 0;  // a bit for each
  alignas(std::max_align_t) unsigned char bytes_[option_table::most_bytes] = {};
};

/// A method by name.
struct method_entry {
  std::string_view name;
  std::string_view meaning;
  std::string_view source;
  std::string_view reads;  ///< in words
  option_table own{};      ///< options beside policy_options
  /// `lag`: length of the partitions, 0: none. Null: the method has no scores, so that it takes part in no fusion.
  result<method> (*make)(const void* own, std::size_t lag) = nullptr;
  option_table whole{};  ///< in place of policy_options and own, of a method whose budget is its own
  result<policy> (*make_whole)(const void* whole) = nullptr;
};

namespace detail {

template <class Scorer>
result<method> method_from(const void* own, std::size_t lag) {
  Scorer s = *static_cast<const Scorer*>(own);
  if constexpr (requires { s.lag = lag; }) s.lag = lag;
  return method_of(s);
}

}  // namespace detail

/// The entry of a scorer whose members are its options; one named `lag` is set to the length of the partitions.
template <class Scorer>
constexpr method_entry entry_of(method_entry e, std::span<const parameter> parameters = {}) {
  e.own = table_of<Scorer>(parameters);
  e.make = detail::method_from<Scorer>;
  return e;
}

#if LAGKV_BODIES

LAGKV_EDGE std::string text(const accepted& a) {
  using kind = accepted::kind;
  if (a.type == kind::odd) return "must be an odd number";
  if (a.type == kind::text) return std::string(a.words);
  if (a.type == kind::word) {
    std::string words = "must be one of " + std::string(a.words);
    for (std::size_t bar = words.find('|'); bar != std::string::npos; bar = words.find('|')) words.replace(bar, 1, ", ");
    return words;
  }
  const char* what = a.type == kind::whole ? "must be a whole number" : "must be";
  if (a.above) return detail::joined({what, " above ", a.least, " and at most ", a.most});
  return detail::joined({what, " from ", a.least, " to ", a.most});
}

namespace detail {

LAGKV_EDGE bool fits(const accepted& a, double value) {
  using kind = accepted::kind;
  if (a.type == kind::word || a.type == kind::text) return true;
  if (!finite(value) || !(value >= a.least && value <= a.most) || (a.above && !(value > a.least))) return false;
  if (a.type == kind::odd && !(__builtin_fmod(value, 2) > 0)) return false;
  return a.type == kind::number || !(__builtin_floor(value) < value);
}

}  // namespace detail

namespace detail {

LAGKV_EDGE std::string_view take(std::string_view& text, char separator) {
  const std::size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
  return part;
}

LAGKV_EDGE std::optional<double> number(std::string_view text) {
  double value = 0;
#if defined(__cpp_lib_to_chars)
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc{} || end != text.data() + text.size()) return {};
#else
  if (text.empty() || text.front() == '+' || text.find_first_not_of("0123456789.eE+-") != text.npos) return {};
  char half[8] = {};  // "0.5", with the point of the host's locale
  std::snprintf(half, sizeof half, "%.1f", 0.5);
  std::string copy(text);
  for (char& c : copy)
    if (c == '.') c = half[1];
  char* end = nullptr;
  value = std::strtod(copy.c_str(), &end);
  if (end != copy.c_str() + copy.size()) return {};
#endif
  return value;
}

LAGKV_EDGE result<double> parse_value(std::string_view key, const accepted& a, std::string_view value) {
  std::optional<double> read;
  if (a.type == accepted::kind::word) {
    std::string_view words = a.words;
    for (double index = 0; !words.empty() && !read; ++index)
      if (take(words, '|') == value) read = index;
  } else {
    read = number(value);
  }
  if (!read || !fits(a, *read)) return refuse({key, "=", value, ": ", text(a)});
  return *read;
}

}  // namespace detail

LAGKV_EDGE bool option_values::set(std::string_view key, std::string_view value, status& outcome) {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const parameter& p = parameters_[i];
    if (p.key != key) continue;
    if (value.empty()) {
      outcome = detail::refuse({key, ": has no value: write ", key, "=..."});
    } else if ((set_ >> i & 1U) != 0) {
      outcome = detail::refuse({key, ": is given twice"});
    } else if (const result<double> parsed = detail::parse_value(key, p.accepts, value); !parsed) {
      outcome = error{parsed.message()};
    } else {
      p.set(bytes_, *parsed);
      set_ |= std::uint64_t{1} << i;
    }
    return true;
  }
  return false;
}

LAGKV_EDGE status check(std::span<const parameter> table, const void* options) {
  for (const parameter& p : table)
    if (p.given(options) && !detail::fits(p.accepts, p.get(options)))
      return detail::refuse({p.key, "=", p.get(options), ": ", text(p.accepts)});
  return {};
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
