// Part of lagkv (MIT). The full cache: what every method is compared with.
#pragma once

#include <lagkv/policy/policy.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Keeps every token: compress() never has anything to do.
inline policy make_full() {
  policy p;
  p.budget.keeps = keep::everything{};
  return p;
}

inline constexpr method_entry full_entry{.name = "full",
                                         .meaning = "all tokens: the cache without compression",
                                         .source = "",
                                         .reads = "nothing",
                                         .make_whole = [](const void*) -> result<policy> { return make_full(); }};

}  // namespace lagkv::inline LAGKV_ABI
