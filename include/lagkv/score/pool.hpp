// Part of lagkv (MIT). Transforms over neighbours and over heads.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/retention.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

/// A transform: average over `width` neighbours (odd) in the judged range, or in the partition, with zeros beyond its ends,
/// always divided by `width`.
/// Source: SnapKV (arXiv 2404.14469); torch's avg_pool1d.
struct pool {
  std::size_t width = 5;

  void operator()(std::span<float> scores, std::size_t heads, const due& d, workspace& ws) const {
    apply(scores, d.partition != 0 ? d.partition : scores.size() / heads, ws);
  }

  /// Within each `part` of the scores by itself.
  void apply(std::span<float> scores, std::size_t part, workspace& ws) const {
    for (std::size_t at = 0; at < scores.size(); at += part) average(scores.subspan(at, part), ws);
  }

 private:
  void average(std::span<float> scores, workspace& ws) const {
    const std::size_t n = scores.size(), reach = width / 2;
    float* before = ws.floats(workspace::rows_own, n);
    for (std::size_t i = 0; i < n; ++i) before[i] = scores[i];
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t from = i > reach ? i - reach : 0, to = i + reach < n ? i + reach : n - 1;
      float sum = 0;
      for (std::size_t j = from; j <= to; ++j) sum += before[j];
      scores[i] = sum / static_cast<float>(width);
    }
  }
};

/// A transform: every head gets the mean over the heads of the layer, so that all keep the same tokens.
struct mean_of_heads {
  void operator()(std::span<float> scores, std::size_t heads, const due&, workspace&) const {
    const std::size_t n = scores.size() / heads;
    for (std::size_t i = 0; i < n; ++i) {
      float sum = 0;
      for (std::size_t head = 0; head < heads; ++head) sum += scores[head * n + i];
      for (std::size_t head = 0; head < heads; ++head) scores[head * n + i] = sum / static_cast<float>(heads);
    }
  }
};

}  // namespace lagkv
