// Part of lagkv (MIT). A transform: scores averaged over neighbours, the nearer the more.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/transform/mean_of_heads.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The average over the neighbours within `reach` among the candidates, or in the partition. A neighbour at distance d weighs
/// reach + 1 - d: a triangle. Scores that are not finite stay as they are and weigh nothing for others. Two running sums,
/// whatever the reach.
struct smooth {
  std::size_t reach = 8;
  bool shared = false;  ///< all heads have the same scores: those of the first are smoothed for all

  void operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const;

 private:
  /// A triangle is a box of reach + 1 that looks back, then one that looks ahead.
  void average(std::span<float> scores, workspace& ws) const;
};

#if LAGKV_BODIES

LAGKV_FN void smooth::operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const {
  const std::size_t n = scores.size() / heads, group = c.partition != 0 ? c.partition : n;
  const std::span<float> own = shared ? scores.first(n) : scores;
  for (std::size_t at = 0; at < own.size(); at += group) average(own.subspan(at, group), ws);
  if (shared) mean_of_heads::copy_to_all(scores, heads);
}

LAGKV_FN void smooth::average(std::span<float> scores, workspace& ws) const {
  const std::size_t n = scores.size();
  const workspace::frame scratch(ws);
  double* boxes = ws.take<double>(2 * (n + reach));  // sum and count of finite scores i - reach .. i
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < n + reach; ++i) {
    if (i < n && detail::finite(scores[i])) sum += static_cast<double>(scores[i]), ++count;
    if (i > reach && detail::finite(scores[i - reach - 1])) sum -= static_cast<double>(scores[i - reach - 1]), --count;
    boxes[2 * i] = sum, boxes[2 * i + 1] = count;
  }
  double total = 0, weight = 0;
  for (std::size_t i = 0; i < reach; ++i) total += boxes[2 * i], weight += boxes[2 * i + 1];
  for (std::size_t i = 0; i < n; ++i) {
    total += boxes[2 * (i + reach)], weight += boxes[2 * (i + reach) + 1];
    if (detail::finite(scores[i])) scores[i] = static_cast<float>(total / weight);
    total -= boxes[2 * i], weight -= boxes[2 * i + 1];
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
