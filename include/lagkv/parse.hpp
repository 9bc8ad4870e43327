// Part of lagkv (MIT). "name:key=value,key=value" -> a policy, or a message that names the culprit and what is accepted.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#include <lagkv/core.hpp>
#include <lagkv/recipes.hpp>

namespace lagkv {

/// One key of a policy string.
struct parameter {
  enum class kind : std::uint8_t { count, number, word };

  std::string_view key;
  kind type;
  double initial;          ///< value where the string does not give the key; for words the index of one
  std::string_view range;  ///< what is accepted, in words; for words the words themselves, separated by '|'
  std::string_view meaning;
};

/// One policy that parse() knows.
struct named_policy {
  static constexpr std::size_t max_parameters = 8;

  std::string_view name;
  std::string_view meaning;
  std::string_view source;
  std::span<const parameter> parameters;
  /// `values` has one entry a parameter, in their order.
  result<policy> (*make)(std::span<const double> values);
};

/// All of them, for parse(), help texts and documentation.
inline std::span<const named_policy> named_policies();

namespace detail {

inline constexpr std::string_view share_range = "must be above 0 and at most 1";
inline constexpr std::string_view count_range = "must be a whole number, 0 or more";

inline constexpr parameter lagkv_parameters[] = {
    {"sink", parameter::kind::count, 16, count_range, "first tokens, always kept"},
    {"lag", parameter::kind::count, 1024, "must be a whole number, 1 or more", "tokens a partition"},
    {"ratio", parameter::kind::number, 0.5, share_range, "share kept of each partition; in the kvpress forms of all tokens"},
    {"value_weight", parameter::kind::number, 1, "must be from 0 to 1000000", "weight of the values' score; 0: keys only"},
    {"form", parameter::kind::word, 0, "paper|local|kvpress|kvpress_cross", "variant"}};

inline constexpr parameter streaming_llm_parameters[] = {
    {"sink", parameter::kind::count, 4, count_range, "first tokens, always kept"},
    {"capacity", parameter::kind::count, 0, "must be a whole number, more than sink",
     "tokens kept, sinks included (or give keep)"},
    {"keep", parameter::kind::number, 0, share_range, "share kept of all tokens (or give capacity)"}};

inline constexpr parameter random_parameters[] = {
    {"sink", parameter::kind::count, 4, count_range, "first tokens, always kept"},
    {"recent", parameter::kind::count, 32, "must be a whole number, 1 or more", "last tokens, not judged"},
    {"keep", parameter::kind::number, 0.5, share_range, "share kept of all tokens"},
    {"seed", parameter::kind::count, 0, count_range, "another seed, other tokens"}};

inline constexpr named_policy policies[] = {
    {"lagkv", "deviation of keys and values from the range of the next partition", "arXiv 2504.04704", lagkv_parameters,
     [](std::span<const double> v) {
       return make_lagkv({.sink = static_cast<std::size_t>(v[0]),
                          .lag = static_cast<std::size_t>(v[1]),
                          .ratio = v[2],
                          .value_weight = v[3],
                          .form = static_cast<lagkv_form>(v[4])});
     }},
    {"streaming_llm", "the first and the most recent tokens", "arXiv 2309.17453", streaming_llm_parameters,
     [](std::span<const double> v) {
       return make_streaming_llm(
           {.sink = static_cast<std::size_t>(v[0]), .capacity = static_cast<std::size_t>(v[1]), .keep = v[2]});
     }},
    {"random", "random tokens, the baseline to beat", "", random_parameters, [](std::span<const double> v) {
       return make_random({.sink = static_cast<std::size_t>(v[0]),
                           .recent = static_cast<std::size_t>(v[1]),
                           .keep = v[2],
                           .seed = static_cast<std::uint64_t>(v[3])});
     }}};

/// The next part of `text` up to `separator`, taken off it.
inline std::string_view take(std::string_view& text, char separator) {
  const std::size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
  return part;
}

template <class Items, class Name>
std::string list(const Items& items, const Name& name_of) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + std::string(name_of(item));
  return text;
}

/// A plain decimal number; nothing where it is none. Independent of the locale.
inline std::optional<double> number(std::string_view text) {
  double value = 0;
#if defined(__cpp_lib_to_chars)
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc{} || end != text.data() + text.size()) return {};
#else
  const std::string copy(text);
  char* end = nullptr;
  value = std::strtod(copy.c_str(), &end);
  if (copy.empty() || end != copy.c_str() + copy.size()) return {};
#endif
  return value;
}

inline result<double> parse_value(const parameter& p, std::string_view text) {
  const std::string found = std::string(p.key) + "=" + std::string(text);
  if (p.type == parameter::kind::word) {
    std::string_view words = p.range;
    for (double index = 0; !words.empty(); ++index)
      if (take(words, '|') == text) return index;
    std::string accepted(p.range);
    for (std::size_t bar = accepted.find('|'); bar != std::string::npos; bar = accepted.find('|')) accepted.replace(bar, 1, ", ");
    return error{found + ": must be one of " + accepted};
  }
  const std::optional<double> value = number(text);
  if (!value || (p.type == parameter::kind::count &&
                 !(*value >= 0 && *value <= 0x1p53 && *value == static_cast<double>(static_cast<std::uint64_t>(*value)))))
    return error{found + ": " + std::string(p.range)};
  return *value;
}

}  // namespace detail

inline std::span<const named_policy> named_policies() { return detail::policies; }

/// lagkv:sink=16,lag=1024,ratio=0.5,value_weight=1,form=paper   form: paper, local, kvpress, kvpress_cross
/// streaming_llm:sink=4,capacity=512                            or keep=0.5 in place of capacity
/// random:sink=4,recent=32,keep=0.5,seed=0
/// Keys may come in any order; those not given have the values above.
inline result<policy> parse(std::string_view text) {
  const bool has_colon = text.find(':') != std::string_view::npos;
  const std::string_view name = detail::take(text, ':');
  const named_policy* found = nullptr;
  for (const named_policy& n : named_policies())
    if (n.name == name) found = &n;
  if (found == nullptr)
    return error{"unknown policy '" + std::string(name) + "': must be one of " +
                 detail::list(named_policies(), [](const named_policy& n) { return n.name; })};
  const std::string who = std::string(name) + ": ";
  if (has_colon && text.empty()) return error{who + "a key=value must follow the colon"};

  double values[named_policy::max_parameters] = {};
  bool given[named_policy::max_parameters] = {};
  for (std::size_t i = 0; i < found->parameters.size(); ++i) values[i] = found->parameters[i].initial;
  while (has_colon) {
    const bool more = text.find(',') != std::string_view::npos;
    std::string_view value = detail::take(text, ',');
    const bool has_value = value.find('=') != std::string_view::npos;
    const std::string_view key = detail::take(value, '=');
    std::size_t index = 0;
    while (index < found->parameters.size() && found->parameters[index].key != key) ++index;
    if (index == found->parameters.size())
      return error{who + "unknown key '" + std::string(key) + "': must be one of " +
                   detail::list(found->parameters, [](const parameter& p) { return p.key; })};
    const parameter& p = found->parameters[index];
    if (!has_value || value.empty()) return error{std::string(key) + ": has no value: write " + std::string(key) + "=..."};
    if (given[index]) return error{std::string(key) + ": is given twice"};
    given[index] = true;
    result<double> parsed = detail::parse_value(p, value);
    if (!parsed) return error{parsed.message()};
    values[index] = *parsed;
    if (!more) break;
  }
  return found->make({values, found->parameters.size()});
}

}  // namespace lagkv
