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
/// reach + 1 - d: a triangle. Scores that are not finite stay as they are and weigh nothing for others. A few additions a
/// score, whatever the reach.
struct smooth {
  std::size_t reach = 8;
  bool shared = false;  ///< all heads have the same scores: those of the first are smoothed for all

  void operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const;

 private:
  void average(std::span<float> scores, workspace& ws) const;
};

namespace detail {

/// The finite scores in some rows: their sum, and how many they are.
struct finite_sum {
  double sum = 0, count = 0;

  friend finite_sum operator+(finite_sum a, finite_sum b) { return {a.sum + b.sum, a.count + b.count}; }
};

/// out[i] = x[i - reach] + ... + x[i] of n, without those before the first: sums of blocks, in which nothing is taken away again,
/// so that a huge number leaves no digits behind in others.
LAGKV_FN void sums_back(const finite_sum* x, std::size_t n, std::size_t reach, finite_sum* out);

}  // namespace detail

#if LAGKV_BODIES

namespace detail {

LAGKV_FN void sums_back(const finite_sum* x, std::size_t n, std::size_t reach, finite_sum* out) {
  const std::size_t length = reach + 1;
  finite_sum before{};
  for (std::size_t i = 0; i < n; ++i) out[i] = before = i % length == 0 ? x[i] : before + x[i];  // from the block's start
  for (std::size_t end = (n - 1) / length * length; end >= length; end -= length) {
    finite_sum rest{};  // of the block [end - length, end), from behind: what the next block's rows look back to
    for (std::size_t back = 1; back < length; ++back) {
      rest = rest + x[end - back];
      if (const std::size_t i = end - back + reach; i < n) out[i] = rest + out[i];
    }
  }
}

}  // namespace detail

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
  for (std::size_t i = 0; i < rows; ++i)
    finite[i] = i < n && detail::finite(scores[i]) ? detail::finite_sum{static_cast<double>(scores[i]), 1} : detail::finite_sum{};
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
