// Part of lagkv (MIT). All methods, and the policies that strings name by them.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <lagkv/policy/parse.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>
#include <lagkv/score/cur.hpp>
#include <lagkv/score/distinct.hpp>
#include <lagkv/score/expected_attention.hpp>
#include <lagkv/score/full.hpp>
#include <lagkv/score/h2o.hpp>
#include <lagkv/score/key_diff.hpp>
#include <lagkv/score/key_norm.hpp>
#include <lagkv/score/kvzap.hpp>
#include <lagkv/score/lagkv.hpp>
#include <lagkv/score/manifold.hpp>
#include <lagkv/score/nested.hpp>
#include <lagkv/score/novelty.hpp>
#include <lagkv/score/paged_eviction.hpp>
#include <lagkv/score/random.hpp>
#include <lagkv/score/recommended.hpp>
#include <lagkv/score/redundancy.hpp>
#include <lagkv/score/snapkv.hpp>
#include <lagkv/score/streaming_llm.hpp>
#include <lagkv/score/stripes.hpp>
#include <lagkv/score/tova.hpp>
#include <lagkv/score/value_norm.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The methods that parse() knows; methods_with_eigen.hpp has those that need Eigen too.
LAGKV_FN std::span<const method_entry* const> methods();

/// The policy that a text describes: "lagkv:lag=1024,ratio=0.25", "snapkv:keep=0.25", "fuse:novelty+cur,keep=0.25",
/// "streaming_llm:capacity=512", "full", "recommended:keep=0.25". policy/parse.hpp says how they are written, docs/methods.md
/// lists all keys.
LAGKV_EDGE result<policy> parse(std::string_view text);

namespace detail {

/// The methods that only methods_with_eigen.hpp has.
inline constexpr std::string_view needing_eigen[] = {"leverage"};

}  // namespace detail

#if LAGKV_BODIES

namespace detail {

// clang-format off
inline constexpr const method_entry* all_entries[] = {
    &recommended_entry,
    &full_entry,
    &lagkv_entry,
    &streaming_llm_entry,
    &snapkv_entry,
    &h2o_entry,
    &tova_entry,
    &key_diff_entry,
    &key_norm_entry,
    &value_norm_entry,
    &cur_entry,
    &manifold_entry,
    &nested_entry,
    &novelty_entry,
    &distinct_entry,
    &redundancy_entry,
    &expected_attention_entry,
    &kvzap_entry,
    &paged_eviction_entry,
    &stripes_entry,
    &random_entry};
// clang-format on

}  // namespace detail

LAGKV_FN std::span<const method_entry* const> methods() { return detail::all_entries; }

LAGKV_EDGE result<policy> parse(std::string_view text) {
  result<policy> made = parse(text, methods());
  if (made) return made;
  for (const std::string_view name : detail::needing_eigen)
    if (made.message().find(detail::joined({"'", name, "': must be one of"})) != std::string::npos)
      return detail::refuse({name, " needs Eigen: include lagkv/methods_with_eigen.hpp, parse(text, methods_with_eigen())"});
  return made;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
