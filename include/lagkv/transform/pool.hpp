// Part of lagkv (MIT). A transform: scores averaged over neighbours, all alike.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/transform/sums.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Average over `width` neighbours (odd) among the candidates, or in the partition: fewer at its ends. Scores that are not finite
/// stay as they are, and others are averaged as if those were absent. A few additions a score, whatever the width.
struct pool {
  std::size_t width = 5;
  /// Beyond the ends are zeros, which count: SnapKV's (arXiv 2404.14469), by torch's avg_pool1d. For scores of 0 and above: those
  /// below 0 would be highest at the ends.
  bool zeros_beyond = false;

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
  const std::size_t n = scores.size(), reach = width / 2 < n ? width / 2 : n - 1, rows = n + reach;
  const workspace::frame scratch(ws);
  auto* finite = ws.take<detail::finite_sum>(2 * rows);
  detail::finite_sum* boxes = finite + rows;
  detail::finite_only(scores, rows, finite);
  detail::sums_back(finite, rows, 2 * reach, boxes);
  for (std::size_t i = 0; i < n; ++i) {
    if (!detail::finite(scores[i])) continue;
    const std::size_t from = i > reach ? i - reach : 0, to = i + reach < n ? i + reach : n - 1;
    const detail::finite_sum box = boxes[i + reach];
    const double there = static_cast<double>(to - from + 1), all = zeros_beyond ? static_cast<double>(width) : there;
    scores[i] = static_cast<float>(box.sum * (there / box.count) / all);
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
