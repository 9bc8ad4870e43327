// Part of lagkv (MIT). The method that is recommended, under a name that stays if another one turns out better.
#pragma once

#include <lagkv/policy/registry.hpp>
#include <lagkv/score/novelty.hpp>

namespace lagkv::inline LAGKV_ABI {

/// `novelty` with half of the budget for the most recent tokens: novelty:recent_share=0.5. docs/methods.md has the figures that
/// speak for it. Another version may mean another method by it: to keep this one, write what it stands for.
struct recommended_score : novelty_score {};

inline method method_of(const recommended_score& s) {
  method m = method_of(static_cast<const novelty_score&>(s));
  m.recent_share = 0.5;
  return m;
}

inline constexpr method_entry recommended_entry = entry_of<recommended_score>(
    {.name = "recommended",
     .meaning = "provisional: novelty, and half of the budget for the most recent tokens; not for Gemma 3",
     .source = "this project",
     .reads = "keys and their RoPE"});

}  // namespace lagkv::inline LAGKV_ABI
