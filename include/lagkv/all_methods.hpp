// Part of lagkv (MIT). Every method, those that need Eigen too: not in the umbrella, for Eigen takes its time to compile.
//
//   auto policy = lagkv::parse("leverage:keep=0.25", lagkv::all_methods());
#pragma once

#include <array>
#include <cstddef>
#include <iterator>
#include <span>

#include <lagkv/parse.hpp>
#include <lagkv/policies.hpp>
#include <lagkv/score/leverage.hpp>

namespace lagkv {

namespace detail {

inline constexpr const method* eigen_methods[] = {&leverage_method};

/// Both lists in one.
inline constexpr auto with_eigen = [] {
  std::array<const method*, std::size(plain_methods) + std::size(eigen_methods)> list{};
  std::size_t n = 0;
  for (const method* m : plain_methods) list[n++] = m;
  for (const method* m : eigen_methods) list[n++] = m;
  return list;
}();

}  // namespace detail

/// The methods of methods(), and leverage.
inline std::span<const method* const> all_methods() { return detail::with_eigen; }

}  // namespace lagkv
