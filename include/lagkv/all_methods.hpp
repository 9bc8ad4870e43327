// Part of lagkv (MIT). Every method, those that need Eigen too: not in the umbrella, for Eigen takes its time to compile.
//
//   auto policy = lagkv::parse("leverage:keep=0.25", lagkv::all_methods());
#pragma once

#include <span>
#include <vector>

#include <lagkv/parse.hpp>
#include <lagkv/policies.hpp>
#include <lagkv/score/leverage.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The methods of methods(), and leverage.
inline std::span<const method* const> all_methods() {
  static const std::vector<const method*> all = [] {
    std::vector<const method*> list(methods().begin(), methods().end());
    list.push_back(&leverage_method);
    return list;
  }();
  return all;
}

}  // namespace lagkv::inline LAGKV_ABI
