// Part of lagkv (MIT). "name:key=value,key=value" -> a policy, or a message that names the culprit and what is accepted.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <lagkv/policy/options.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

/// A key that fuse takes beside policy_options and the options of its methods.
struct fusion_parameter {
  std::string_view key;
  std::string_view initial;
  accepted accepts;
  std::string_view meaning;
};

inline constexpr fusion_parameter fusion_parameters[] = {
    {"of", "...", accepts::text("must be two to four methods joined by +"),
     "the methods; 'of=' may be left out if it comes first"},
    {"weights", "...", accepts::text("must be as many numbers as methods, such as 1+0.5"),
     "what their ranks are multiplied with; by=best: their shares of the budget, in proportion (default 1 each)"},
    {"by", "sum", accepts::word("sum|best"), "a token is worth the sum of its ranks, or the best of them"}};

/// The policy that a text describes, of the methods `known`. Keys may stand in any order; those not given have their defaults.
/// docs/methods.md lists all of them. methods.hpp has parse(text), which knows all methods.
///
///  name                          the method with its defaults
///  name:keep=0.25                a share of all tokens; policy_options, and the method's own options
///  name:lag=128,keep=0.25        a share of each partition of 128 tokens
///  fuse:a+b,weights=1+0.5        the sum of ranks; each key goes to every method that has it
///  fuse:a+b,by=best,weights=3+1  three quarters of the budget by a, a quarter by b
LAGKV_EDGE result<policy> parse(std::string_view text, std::span<const method_entry* const> known);

#if LAGKV_BODIES

namespace detail {

/// Sets each key=value in all the tables that have the key.
LAGKV_EDGE status assign(std::string_view text, std::span<option_values> tables) {
  for (bool more = !text.empty(); more;) {
    more = text.find(',') != std::string_view::npos;
    std::string_view value = take(text, ',');
    const std::string_view key = take(value, '=');
    bool known = false;
    status outcome;
    for (option_values& t : tables) known = t.set(key, value, outcome) || known;
    if (!outcome) return outcome;
    if (known) continue;
    std::string names;
    for (const option_values& t : tables)
      for (const parameter& p : t.parameters()) names.append(names.empty() ? "" : ", ").append(p.key);
    if (names.empty()) return refuse({"unknown key '", key, "': there are none"});
    return refuse({"unknown key '", key, "': must be one of ", names});
  }
  return {};
}

LAGKV_EDGE const method_entry* find(std::string_view name, std::span<const method_entry* const> known) {
  for (const method_entry* m : known)
    if (m->name == name) return m;
  return nullptr;
}

LAGKV_EDGE error unknown_method(std::string_view name, std::span<const method_entry* const> known, bool fusable) {
  std::string text = fusable ? "unknown method '" : "unknown policy '";
  text.append(name).append("': must be one of ").append(fusable ? "" : "fuse, ");
  const char* comma = "";
  for (const method_entry* m : known) {
    if (fusable && m->make == nullptr) continue;
    text.append(comma).append(m->name);
    comma = ", ";
  }
  return {text};
}

inline const policy_options& policy_options_of(const option_values& v) { return *static_cast<const policy_options*>(v.get()); }

LAGKV_EDGE result<policy> parse_scored(const method_entry& m, std::string_view text) {
  option_values tables[] = {option_values(shared_options), option_values(m.own)};
  if (status s = assign(text, tables); !s) return error{s.message()};
  const policy_options& options = policy_options_of(tables[0]);
  result<method> made = m.make(tables[1].get(), options.lag);
  return made ? make_policy(*made, options) : error{made.message()};
}

LAGKV_EDGE result<policy> parse_whole(const method_entry& m, std::string_view text) {
  option_values tables[] = {option_values(m.whole)};
  if (status s = assign(text, tables); !s) return error{s.message()};
  return m.make_whole(tables[0].get());
}

/// What `of`, `weights` and `by` say, taken off the rest of the string.
struct fusion_text {
  std::string_view of{}, weights{}, by{};
  std::string rest{};
};

LAGKV_EDGE result<fusion_text> split_fusion(std::string_view text) {
  fusion_text out;
  std::string_view* const own[] = {&out.of, &out.weights, &out.by};  // as in fusion_parameters
  bool first = true;
  for (bool more = !text.empty(); more; first = false) {
    more = text.find(',') != std::string_view::npos;
    const std::string_view item = take(text, ',');
    if (item.empty()) return error{"a key=value must stand before and after each comma"};
    std::string_view value = item, key = take(value, '=');
    if (first && item.find('=') == std::string_view::npos) key = fusion_parameters[0].key, value = item;
    std::size_t i = 0;
    while (i < std::size(own) && fusion_parameters[i].key != key) ++i;
    if (i == std::size(own)) {
      out.rest.append(out.rest.empty() ? "" : ",").append(item);
      continue;
    }
    if (value.empty()) return refuse({key, ": has no value: write ", key, "=..."});
    if (!own[i]->empty()) return refuse({key, ": is given twice"});
    *own[i] = value;
  }
  return out;
}

/// The fusion of several; each key goes to every method that has it.
LAGKV_EDGE result<policy> parse_fusion(std::string_view text, std::span<const method_entry* const> known) {
  constexpr std::size_t most = policy::most_fused + 1;
  const result<fusion_text> split = split_fusion(text);
  if (!split) return error{split.message()};
  const fusion_text& given = *split;
  option_values tables[most + 1] = {option_values(shared_options)};
  const method_entry* entries[most] = {};
  std::size_t count = 0;
  const auto refused = [](std::size_t own) {
    return refuse({fusion_parameters[own].key, ": ", lagkv::text(fusion_parameters[own].accepts)});
  };
  if (given.of.ends_with('+')) return refused(0);
  if (given.weights.ends_with('+')) return refused(1);
  for (std::string_view names = given.of; !names.empty(); ++count) {
    const std::string_view name = take(names, '+');
    const method_entry* found = find(name, known);
    if (found == nullptr || found->make == nullptr) return unknown_method(name, known, true);
    if (count == most) return refused(0);
    entries[count] = found;
    tables[count + 1] = option_values(found->own);
  }
  if (count < 2) return refused(0);
  if (status s = assign(given.rest, std::span(tables, count + 1)); !s) return error{s.message()};

  const policy_options& options = policy_options_of(tables[0]);
  method methods[most];
  std::string_view weights = given.weights;
  for (std::size_t i = 0; i < count; ++i) {
    result<method> made = entries[i]->make(tables[i + 1].get(), options.lag);
    if (!made) return error{made.message()};
    methods[i] = *made;
    if (given.weights.empty()) continue;
    const std::optional<double> weight = number(take(weights, '+'));
    if (!weight || (i + 1 == count) != weights.empty()) return refused(1);
    methods[i].weight = *weight;
  }
  if (given.by.empty()) return make_fusion({methods, count}, options);
  const result<double> by = parse_value("by", fusion_parameters[2].accepts, given.by);
  return by ? make_fusion({methods, count}, options, static_cast<fusion>(*by)) : error{by.message()};
}

}  // namespace detail

LAGKV_EDGE result<policy> parse(std::string_view text, std::span<const method_entry* const> known) {
  const bool has_colon = text.find(':') != std::string_view::npos;
  const std::string_view name = detail::take(text, ':');
  const bool fusion = name == "fuse";
  const method_entry* found = detail::find(name, known);
  if (found == nullptr && !fusion) return detail::unknown_method(name, known, false);
  if (has_colon && text.empty()) return detail::refuse({name, ": a key=value must follow the colon"});
  result<policy> made = fusion                         ? detail::parse_fusion(text, known)
                        : found->make_whole != nullptr ? detail::parse_whole(*found, text)
                                                       : detail::parse_scored(*found, text);
  if (!made) return detail::refuse({name, ": ", made.message()});
  return made;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
