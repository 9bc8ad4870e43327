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
#include <lagkv/detail/message.hpp>
#include <lagkv/method.hpp>
#include <lagkv/policies.hpp>
#include <lagkv/recipes.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Keys that every scored method and every fusion takes beside its own: policy_options.
inline constexpr parameter shared_parameters[] = {
    {"sink", parameter::kind::count, 4, accepts::count, "first tokens, always kept"},
    {"recent", parameter::kind::count, parameter::none, accepts::count,
     "last tokens, always kept (default: the method's own, 32 for most)"},
    {"lag", parameter::kind::count, 0, accepts::count, "tokens a partition, judged against the next one; 0: all tokens at once"},
    {"keep", parameter::kind::number, parameter::none, accepts::share,
     "share kept of all tokens, with lag of each partition (default 0.5, or give capacity or budget_mb)"},
    {"capacity", parameter::kind::count, parameter::none, "must be a whole number, more than sink + recent",
     "tokens kept; survivors are judged again"},
    {"budget_mb", parameter::kind::number, parameter::none, "must be above 0 and at most 1000000000",
     "the same in 10^6 bytes for all layers together"},
    {"every", parameter::kind::positive, 1, accepts::positive, "with capacity: judge when so many tokens exceed it"},
    {"recent_share", parameter::kind::number, parameter::none, "must be from 0 to 1",
     "share of the budget that the last tokens take at least (default: the method's own, 0 for most)"},
    {"pool", parameter::kind::odd, 1, accepts::odd, "neighbours that scores are averaged over"},
    {"smooth", parameter::kind::count, parameter::none, accepts::count,
     "neighbours on each side that scores are averaged over, the nearer the more (default: the method's own, 0 for most)"},
    {"agree", parameter::kind::word, parameter::none, accepts::yes_no,
     "all heads of a layer keep the same tokens (default: the method's own, no for most)"},
    {"unrotate", parameter::kind::word, parameter::none, accepts::yes_no,
     "judge keys as they were before RoPE (default: the method's own, no for most)"},
    {"select", parameter::kind::word, 0, "top_k|chunks|adaptive", "how tokens are picked by their scores"},
    {"chunk", parameter::kind::positive, 20, accepts::positive, "with select=chunks: tokens a chunk"},
    {"safeguard", parameter::kind::number, 0.2, "must be from 0 to 1",
     "with select=adaptive: share of its even part that each head keeps for sure"},
    {"pyramid", parameter::kind::number, 0, "must be 0, or from 1 to 1000000",
     "beta of budgets that fall from layer to layer; 0: all equal"}};

/// Keys of fuse beside the shared ones and those of its methods.
inline constexpr parameter fuse_parameters[] = {
    {"of", parameter::kind::text, parameter::none, "must be two to four methods, such as lagkv+key_diff",
     "the methods; 'of=' may be left out where it comes first"},
    {"weights", parameter::kind::text, parameter::none, "must be as many numbers as methods, such as 1+0.5",
     "what their ranks are multiplied with; by=best: their shares of the budget, in proportion (default 1 each)"},
    {"by", parameter::kind::word, 0, "sum|best", "a token is worth the sum of its ranks, or the best of them"}};

namespace detail {

/// The next part of `text` up to `separator`, taken off it.
LAGKV_EDGE std::string_view take(std::string_view& text, char separator);

/// A plain decimal number; nothing where it is none. Independent of the locale.
LAGKV_EDGE std::optional<double> number(std::string_view text);

LAGKV_EDGE result<double> parse_value(const parameter& p, std::string_view text);

/// The values of one list of parameters, with what a string gives them.
struct settings {
  static constexpr std::size_t most = 20;

  std::span<const parameter> parameters{};
  double values[most] = {};
  bool given[most] = {};

  settings() = default;
  explicit settings(std::span<const parameter> list) : parameters(list) {
    for (std::size_t i = 0; i < list.size(); ++i) values[i] = list[i].initial;
  }

  std::span<const double> all() const { return {values, parameters.size()}; }

  /// Whether the key is one of them; then `outcome` tells whether its value is accepted.
  bool set(std::string_view key, std::string_view text, status& outcome);
};

LAGKV_EDGE policy_options options_of(std::span<const double> v);

/// Sets each key=value in all the lists that have the key.
LAGKV_EDGE status assign(std::string_view text, std::span<settings> lists);

LAGKV_EDGE const method* find(std::string_view name, std::span<const method* const> known);

LAGKV_EDGE error unknown_method(std::string_view name, std::span<const method* const> known, bool fusable);

/// One scored method.
LAGKV_EDGE result<policy> parse_scored(const method& m, std::string_view text);

/// What `of`, `weights` and `by` say, taken off the rest of the string.
struct fusion_text {
  std::string_view of{}, weights{}, by{};
  std::string rest{};
};

LAGKV_EDGE fusion_text split_fusion(std::string_view text);

/// The fusion of several; each key goes to every method that has it.
LAGKV_EDGE result<policy> parse_fusion(std::string_view text, std::span<const method* const> known);

LAGKV_EDGE result<policy> parse_whole(const method& m, std::string_view text);

}  // namespace detail

/// name:key=value,key=value   Keys in any order; those not given have their defaults. Every policy, with its keys, is in
/// docs/methods.md; `known` lists them as data.
///
///  lagkv:sink=16,lag=1024,ratio=0.5,value_weight=1,form=paper
///  streaming_llm:sink=4,capacity=512
///  snapkv:window=32,kernel=5,keep=0.25           shared keys: sink, recent, lag, keep, capacity, budget_mb ...
///  key_diff:lag=128,keep=0.25                    against the next partition, as LagKV
///  fuse:lagkv+key_diff,lag=128,weights=1+0.5     sum of ranks; each key goes to every method that has it
///  fuse:novelty+cur,by=best,weights=3+1          three quarters of the budget by novelty, a quarter by cur
LAGKV_EDGE result<policy> parse(std::string_view text, std::span<const method* const> known = methods());

#if LAGKV_BODIES

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
  const std::string copy(text);
  char* end = nullptr;
  value = std::strtod(copy.c_str(), &end);
  if (copy.empty() || end != copy.c_str() + copy.size()) return {};
#endif
  return value;
}

LAGKV_EDGE result<double> parse_value(const parameter& p, std::string_view text) {
  const std::string found = std::string(p.key) + "=" + std::string(text);
  if (p.type == parameter::kind::word) {
    std::string_view words = p.range;
    for (double index = 0; !words.empty(); ++index)
      if (take(words, '|') == text) return index;
    std::string accepted(p.range);
    for (std::size_t bar = accepted.find('|'); bar != std::string::npos; bar = accepted.find('|')) accepted.replace(bar, 1, ", ");
    return detail::refuse({found, ": must be one of ", accepted});
  }
  const std::optional<double> value = number(text);
  const bool whole = value && *value >= 0 && *value <= 0x1p53 && !(__builtin_floor(*value) < *value);
  using kind = parameter::kind;
  const bool fits = p.type == kind::count      ? whole
                    : p.type == kind::positive ? whole && *value >= 1
                    : p.type == kind::odd      ? whole && __builtin_fmod(*value, 2) > 0
                                               : value && (given(p.initial) || *value >= 0);  // -1: not given
  if (!fits) return detail::refuse({found, ": ", p.range});
  return *value;
}

LAGKV_EDGE bool settings::set(std::string_view key, std::string_view text, status& outcome) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].key != key) continue;
    const std::string name(key);
    if (text.empty()) {
      outcome = detail::refuse({name, ": has no value: write ", name, "=..."});
    } else if (given[i]) {
      outcome = detail::refuse({name, ": is given twice"});
    } else if (const result<double> parsed = parse_value(parameters[i], text); !parsed) {
      outcome = error{parsed.message()};
    } else {
      values[i] = *parsed;
      given[i] = true;
    }
    return true;
  }
  return false;
}

LAGKV_EDGE policy_options options_of(std::span<const double> v) {
  const auto count = [](double x) { return static_cast<std::size_t>(x); };
  policy_options o;
  o.sink = count(v[0]);
  if (given(v[1])) o.recent = count(v[1]);
  o.lag = count(v[2]);
  if (given(v[3])) o.keep = v[3];
  if (given(v[4])) o.capacity = count(v[4]);
  if (given(v[5])) o.budget_mb = v[5];
  o.every = count(v[6]);
  if (given(v[7])) o.recent_share = v[7];
  o.pool = count(v[8]);
  if (given(v[9])) o.smooth = count(v[9]);
  if (given(v[10])) o.agree = v[10] > 0;
  if (given(v[11])) o.unrotate = v[11] > 0;
  o.select = static_cast<selection>(v[12]);
  o.chunk = count(v[13]), o.safeguard = v[14], o.pyramid = v[15];
  return o;
}

LAGKV_EDGE status assign(std::string_view text, std::span<settings> lists) {
  for (bool more = true; more;) {
    more = text.find(',') != std::string_view::npos;
    std::string_view value = take(text, ',');
    const std::string_view key = take(value, '=');
    bool known = false;
    status outcome;
    for (settings& s : lists) known = s.set(key, value, outcome) || known;
    if (!outcome) return outcome;
    if (known) continue;
    std::string names;
    for (const settings& s : lists)
      for (const parameter& p : s.parameters) names.append(names.empty() ? "" : ", ").append(p.key);
    return detail::refuse({"unknown key '", key, "': must be one of ", names});
  }
  return {};
}

LAGKV_EDGE const method* find(std::string_view name, std::span<const method* const> known) {
  for (const method* m : known)
    if (m->name == name) return m;
  return nullptr;
}

LAGKV_EDGE error unknown_method(std::string_view name, std::span<const method* const> known, bool fusable) {
  std::string text = fusable ? "unknown method '" : "unknown policy '";
  text.append(name).append("': must be one of ").append(fusable ? "" : "fuse, ");
  const char* comma = "";
  for (const method* m : known) {
    if (fusable && m->make == nullptr) continue;
    text.append(comma).append(m->name);
    comma = ", ";
  }
  if (find("leverage", known) == nullptr) text += " (leverage: include lagkv/all_methods.hpp)";
  return {text};
}

LAGKV_EDGE result<policy> parse_scored(const method& m, std::string_view text) {
  settings lists[] = {settings(shared_parameters), settings(m.parameters)};
  if (!text.empty())
    if (status s = assign(text, lists); !s) return error{s.message()};
  const policy_options options = options_of(lists[0].all());
  result<part> made = m.make(lists[1].all(), options.lag);
  return made ? make_policy(*made, options) : error{made.message()};
}

LAGKV_EDGE fusion_text split_fusion(std::string_view text) {
  fusion_text out;
  for (bool first = true; !text.empty(); first = false) {
    const std::string_view item = take(text, ',');
    std::string_view value = item;
    const std::string_view key = take(value, '=');
    if (first && item.find('=') == std::string_view::npos)
      out.of = item;
    else if (key == "of" && out.of.empty())
      out.of = value;
    else if (key == "weights" && out.weights.empty())
      out.weights = value;
    else if (key == "by" && out.by.empty())
      out.by = value;
    else
      out.rest.append(out.rest.empty() ? "" : ",").append(item);
  }
  return out;
}

LAGKV_EDGE result<policy> parse_fusion(std::string_view text, std::span<const method* const> known) {
  constexpr std::size_t most = policy::most_fused + 1;
  const fusion_text given = split_fusion(text);
  settings lists[most + 1] = {settings(shared_parameters)};
  const method* methods[most] = {};
  std::size_t count = 0;
  for (std::string_view names = given.of; !names.empty(); ++count) {
    const std::string_view name = take(names, '+');
    const method* found = find(name, known);
    if (found == nullptr || found->make == nullptr) return unknown_method(name, known, true);
    if (count == most) return detail::refuse({"of: ", fuse_parameters[0].range});
    methods[count] = found;
    lists[count + 1] = settings(found->parameters);
  }
  if (count < 2) return detail::refuse({"of: ", fuse_parameters[0].range});
  if (!given.rest.empty())
    if (status s = assign(given.rest, std::span(lists, count + 1)); !s) return error{s.message()};

  const policy_options options = options_of(lists[0].all());
  part parts[most];
  std::string_view weights = given.weights;
  for (std::size_t i = 0; i < count; ++i) {
    result<part> made = methods[i]->make(lists[i + 1].all(), options.lag);
    if (!made) return error{made.message()};
    parts[i] = *made;
    if (given.weights.empty()) continue;
    const std::optional<double> weight = number(take(weights, '+'));
    if (!weight || (i + 1 == count) != weights.empty()) return detail::refuse({"weights: ", fuse_parameters[1].range});
    parts[i].weight = *weight;
  }
  if (given.by.empty()) return make_fusion({parts, count}, options);
  const result<double> by = parse_value(fuse_parameters[2], given.by);
  return by ? make_fusion({parts, count}, options, static_cast<fusion>(*by)) : error{by.message()};
}

LAGKV_EDGE result<policy> parse_whole(const method& m, std::string_view text) {
  settings own[] = {settings(m.whole_parameters)};
  if (!text.empty())
    if (status s = assign(text, own); !s) return error{s.message()};
  return m.whole(own[0].all());
}

}  // namespace detail

LAGKV_EDGE result<policy> parse(std::string_view text, std::span<const method* const> known) {
  const bool has_colon = text.find(':') != std::string_view::npos;
  const std::string_view name = detail::take(text, ':');
  const bool fusion = name == "fuse";
  const method* found = detail::find(name, known);
  if (found == nullptr && !fusion) return detail::unknown_method(name, known, false);
  const std::string who = std::string(name) + ": ";
  if (has_colon && text.empty()) return detail::refuse({who, "a key=value must follow the colon"});
  result<policy> made = fusion                    ? detail::parse_fusion(text, known)
                        : found->whole != nullptr ? detail::parse_whole(*found, text)
                                                  : detail::parse_scored(*found, text);
  if (!made) return detail::refuse({who, made.message()});
  return made;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
