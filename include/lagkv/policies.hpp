// Part of lagkv (MIT). The list of named policies: a method's file, and its line here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <lagkv/method.hpp>
#include <lagkv/recipes.hpp>
#include <lagkv/score/cur.hpp>
#include <lagkv/score/distinct.hpp>
#include <lagkv/score/expected_attention.hpp>
#include <lagkv/score/h2o.hpp>
#include <lagkv/score/key_diff.hpp>
#include <lagkv/score/key_norm.hpp>
#include <lagkv/score/manifold.hpp>
#include <lagkv/score/novelty.hpp>
#include <lagkv/score/paged_eviction.hpp>
#include <lagkv/score/random.hpp>
#include <lagkv/score/snapkv.hpp>
#include <lagkv/score/tova.hpp>
#include <lagkv/score/value_norm.hpp>

namespace lagkv::inline LAGKV_ABI {

inline constexpr parameter lagkv_parameters[] = {
    {"sink", parameter::kind::count, 16, accepts::count, "first tokens, always kept"},
    {"lag", parameter::kind::count, 1024, accepts::positive, "tokens a partition"},
    {"ratio", parameter::kind::number, 0.5, accepts::share, "share kept of each partition; in the kvpress forms of all tokens"},
    {"value_weight", parameter::kind::number, 1, "must be from 0 to 1000000", "weight of the values' score; 0: keys only"},
    {"form", parameter::kind::word, 0, "paper|local|kvpress|kvpress_cross", "variant"},
    {"unrotate", parameter::kind::word, 0, accepts::yes_no, "judge keys as they were before RoPE"}};

inline constexpr method lagkv_method{
    .name = "lagkv",
    .meaning = "deviation of keys and values from the range of the next partition",
    .source = "arXiv 2504.04704",
    .reads = "keys, values",
    .parameters = std::span(lagkv_parameters).subspan(3, 1),
    .make = [](std::span<const double> v, std::size_t lag) -> result<part> {
      if (lag == 0) return error{"lag=0: lagkv compares partitions: must be 1 or more"};
      return part_of(lag_relative{.lag = lag, .value_weight = static_cast<float>(v[0])});
    },
    .whole_parameters = lagkv_parameters,
    .whole =
        [](std::span<const double> v) {
          result<policy> made = make_lagkv({.sink = static_cast<std::size_t>(v[0]),
                                            .lag = static_cast<std::size_t>(v[1]),
                                            .ratio = v[2],
                                            .value_weight = v[3],
                                            .form = static_cast<lagkv_form>(v[4])});
          if (made && v[5] > 0) *made = unrotated(*made);
          return made;
        },
};

inline constexpr parameter streaming_llm_parameters[] = {
    {"sink", parameter::kind::count, 4, accepts::count, "first tokens, always kept"},
    {"capacity", parameter::kind::count, parameter::none, "must be a whole number, more than sink",
     "tokens kept, sinks included (or give keep)"},
    {"keep", parameter::kind::number, parameter::none, accepts::share, "share kept of all tokens (or give capacity)"}};

inline constexpr method streaming_llm_method{
    .name = "streaming_llm",
    .meaning = "the first and the most recent tokens",
    .source = "arXiv 2309.17453",
    .reads = "nothing",
    .parameters = {},
    .make = nullptr,
    .whole_parameters = streaming_llm_parameters,
    .whole =
        [](std::span<const double> v) {
          streaming_llm_options o{.sink = static_cast<std::size_t>(v[0])};
          if (given(v[1])) o.capacity = static_cast<std::size_t>(v[1]);
          if (given(v[2])) o.keep = v[2];
          return make_streaming_llm(o);
        },
};

/// The methods that parse() knows; leverage, which needs Eigen, is in lagkv/all_methods.hpp.
LAGKV_FN std::span<const method* const> methods();

#if LAGKV_BODIES

namespace detail {

// clang-format off
inline constexpr const method* plain_methods[] = {
    &lagkv_method,
    &streaming_llm_method,
    &snapkv_method,
    &h2o_method,
    &tova_method,
    &key_diff_method,
    &key_norm_method,
    &value_norm_method,
    &cur_method,
    &manifold_method,
    &novelty_method,
    &distinct_method,
    &expected_attention_method,
    &paged_eviction_method,
    &random_method};
// clang-format on

}  // namespace detail

LAGKV_FN std::span<const method* const> methods() { return detail::plain_methods; }

#endif

}  // namespace lagkv::inline LAGKV_ABI
