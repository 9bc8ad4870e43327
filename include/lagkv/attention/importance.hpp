// Part of lagkv (MIT). A map that predicts from a token's key and value how much attention it will get.
#pragma once

#include <cstddef>
#include <vector>

#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The map of a layer: for each head the factors of the channels of a key (before RoPE) and of its value, then a constant. The
/// sum is the logarithm of the most attention that the token will get. fit_importance.hpp fits it, extras.importance is its
/// view.
struct importance_map {
  std::size_t heads = 0, key_channels = 0, value_channels = 0;
  std::vector<float> weights;  ///< [heads][key_channels + value_channels + 1]

  std::size_t width() const { return key_channels + value_channels + 1; }

  /// Valid as long as the weights are; empty if there are not heads * width() of them.
  tensor view() const;
};

#if LAGKV_BODIES

LAGKV_FN tensor importance_map::view() const {
  if (weights.size() != heads * width()) return {};
  const auto n = static_cast<std::ptrdiff_t>(width());
  return strided<float>(const_cast<float*>(weights.data()), {heads, width()}, {n, n, 1}, 1);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
