// Part of lagkv (MIT). A transform: scores averaged over neighbours, all alike.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Average over `width` neighbours (odd) among the candidates, or in the partition, with zeros beyond its ends, always divided by
/// `width`. Scores that are not finite stay as they are, and others are averaged as if those were absent.
/// Source: SnapKV (arXiv 2404.14469); torch's avg_pool1d.
struct pool {
  std::size_t width = 5;

  void operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const {
    apply(scores, c.partition != 0 ? c.partition : scores.size() / heads, ws);
  }

  /// Within each `group` of the scores by itself.
  void apply(std::span<float> scores, std::size_t group, workspace& ws) const {
    for (std::size_t at = 0; at < scores.size(); at += group) average(scores.subspan(at, group), ws);
  }

 private:
  void average(std::span<float> scores, workspace& ws) const;
};

#if LAGKV_BODIES

LAGKV_FN void pool::average(std::span<float> scores, workspace& ws) const {
  const std::size_t n = scores.size(), reach = width / 2;
  const workspace::frame scratch(ws);
  float* before = ws.take<float>(n);
  for (std::size_t i = 0; i < n; ++i) before[i] = scores[i];
  for (std::size_t i = 0; i < n; ++i) {
    if (!detail::finite(before[i])) continue;
    const std::size_t from = i > reach ? i - reach : 0, to = i + reach < n ? i + reach : n - 1;
    float sum = 0;
    std::size_t absent = 0;
    for (std::size_t j = from; j <= to; ++j) {
      if (detail::finite(before[j]))
        sum += before[j];
      else
        ++absent;
    }
    const std::size_t all = to - from + 1;
    if (absent != 0) sum *= static_cast<float>(all) / static_cast<float>(all - absent);
    scores[i] = sum / static_cast<float>(width);
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
