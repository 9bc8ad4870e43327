// Part of lagkv (MIT). The method that is recommended, under a name that stays if another one turns out better.
#pragma once

#include <lagkv/policy/registry.hpp>
#include <lagkv/score/novelty.hpp>

namespace lagkv::inline LAGKV_ABI {

/// novelty:ridge=1,value_weight=1,recent_share=0.25. docs/methods.md has the figures behind it. In a later version it may stand
/// for another method: to keep this one, write it in full.
struct recommended_score : novelty_score {
  constexpr recommended_score() : novelty_score{.ridge = 1, .value_weight = 1} {}
};

inline method method_of(const recommended_score& s) {
  method m = method_of(static_cast<const novelty_score&>(s));
  m.recent_share = 0.25;
  return m;
}

inline constexpr method_entry recommended_entry = entry_of<recommended_score>(
    {.name = "recommended",
     .meaning = "keys and values that are unusual for their sequence: what to take if you cannot measure",
     .source = "this project",
     .reads = "keys and their RoPE, values"});

}  // namespace lagkv::inline LAGKV_ABI
