// Part of lagkv (MIT). A transform: scores averaged over neighbours, the nearer the more.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/transform/mean_of_heads.hpp>
#include <lagkv/transform/sums.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The average over the neighbours within `reach` among the candidates, or in the partition. A neighbour at distance d weighs
/// reach + 1 - d: a triangle. Scores that are not finite stay as they are and weigh nothing for others. A few additions a
/// score, whatever the reach.
struct smooth {
  std::size_t reach = 8;
  bool shared = false;  ///< all heads have the same scores: those of the first are smoothed for all

  void operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const;

 private:
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
  // A triangle is a box of reach + 1 that looks back, then one that looks ahead. Of a longer reach than there are scores the part
  // that reaches beyond them weighs all alike.
  const std::size_t n = scores.size(), inside = reach < n ? reach : n - 1, rows = n + inside;
  const workspace::frame scratch(ws);
  auto* finite = ws.take<detail::finite_sum>(3 * rows);
  detail::finite_sum *boxes = finite + rows, *triangles = boxes + rows, all{};
  detail::finite_only(scores, rows, finite);
  for (std::size_t i = 0; i < n; ++i) all = all + finite[i];
  detail::sums_back(finite, rows, inside, boxes);
  detail::sums_back(boxes, rows, inside, triangles);
  const auto beyond = static_cast<double>(reach - inside);
  for (std::size_t i = 0; i < n; ++i) {
    const detail::finite_sum t = triangles[i + inside];
    if (detail::finite(scores[i])) scores[i] = static_cast<float>((t.sum + beyond * all.sum) / (t.count + beyond * all.count));
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
