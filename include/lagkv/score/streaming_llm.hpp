// Part of lagkv (MIT). StreamingLLM: the first and the most recent tokens (arXiv 2309.17453).
#pragma once

#include <cstddef>
#include <optional>

#include <lagkv/policy/policy.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The first `sink` tokens and the most recent ones. Give one of the two budgets. No key and no value is read.
struct streaming_llm_options {
  std::size_t sink = 4;                   ///< tokens: the first so many always stay; 0: none
  std::optional<std::size_t> capacity{};  ///< tokens, sinks counted, sink + 1 or more; empty: give keep
  std::optional<double> keep{};           ///< share of all tokens seen, above 0 and at most 1; empty: give capacity
  std::size_t every = 1;                  ///< tokens by which the budget is exceeded when compress() acts, 1 or more
};

inline constexpr parameter streaming_llm_parameters[] = {
    option<&streaming_llm_options::sink>("sink", accepts::count, "first tokens, always kept (the paper's 4)"),
    option<&streaming_llm_options::capacity>("capacity", accepts::count,
                                             "tokens kept, sinks included: more than sink (or give keep)"),
    option<&streaming_llm_options::keep>("keep", accepts::share, "share kept of all tokens (or give capacity)"),
    option<&streaming_llm_options::every>("every", accepts::positive, "compress when so many tokens exceed the budget")};

/// StreamingLLM as a policy. Errors name the option, its value and what is accepted.
LAGKV_EDGE result<policy> make_streaming_llm(const streaming_llm_options& o);

inline constexpr method_entry streaming_llm_entry{
    .name = "streaming_llm",
    .meaning = "the first and the most recent tokens",
    .source = "arXiv 2309.17453",
    .reads = "nothing",
    .whole = table_of<streaming_llm_options>(streaming_llm_parameters),
    .make_whole = [](const void* whole) { return make_streaming_llm(*static_cast<const streaming_llm_options*>(whole)); }};

#if LAGKV_BODIES

LAGKV_EDGE result<policy> make_streaming_llm(const streaming_llm_options& o) {
  if (status s = check(streaming_llm_parameters, &o); !s) return error{s.message()};
  if (o.capacity.has_value() == o.keep.has_value()) return error{"capacity, keep: give one of them"};
  if (o.capacity && *o.capacity <= o.sink)
    return detail::refuse({"capacity=", *o.capacity, ": must be ", o.sink + 1, " or more (sink + 1)"});
  policy p;
  p.budget.sink = o.sink;
  p.budget.keeps = keep::window{.rows = o.capacity.value_or(0), .of_all = o.keep.value_or(0), .every = o.every};
  return p;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
