// Part of lagkv (MIT). A transform: all heads of a layer keep the same tokens.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/plan/candidates.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Every head gets the mean of the scores over the heads of the layer.
struct mean_of_heads {
  void operator()(std::span<float> scores, std::size_t heads, const candidates&, workspace&) const;

  /// The scores of the first head for all.
  static void copy_to_all(std::span<float> scores, std::size_t heads);
};

#if LAGKV_BODIES

LAGKV_FN void mean_of_heads::operator()(std::span<float> scores, std::size_t heads, const candidates&, workspace&) const {
  const std::size_t n = scores.size() / heads;
  for (std::size_t head = 1; head < heads; ++head)
    for (std::size_t i = 0; i < n; ++i) scores[i] += scores[head * n + i];
  for (std::size_t i = 0; i < n; ++i) scores[i] /= static_cast<float>(heads);
  copy_to_all(scores, heads);
}

LAGKV_FN void mean_of_heads::copy_to_all(std::span<float> scores, std::size_t heads) {
  const std::size_t n = scores.size() / heads;
  for (std::size_t head = 1; head < heads; ++head)
    for (std::size_t i = 0; i < n; ++i) scores[head * n + i] = scores[i];
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
