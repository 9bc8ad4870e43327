// Part of lagkv (MIT). Every method, those that need Eigen too: not in the umbrella, for Eigen takes its time to compile.
//
//   auto policy = lagkv::parse("leverage:keep=0.25", lagkv::methods_with_eigen());
#pragma once

#include <span>
#include <vector>

#include <lagkv/methods.hpp>
#include <lagkv/score/leverage.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The methods of methods(), and leverage.
inline std::span<const method_entry* const> methods_with_eigen() {
  static const std::vector<const method_entry*> all = [] {
    std::vector<const method_entry*> list(methods().begin(), methods().end());
    list.push_back(&leverage_entry);
    return list;
  }();
  return all;
}

}  // namespace lagkv::inline LAGKV_ABI
