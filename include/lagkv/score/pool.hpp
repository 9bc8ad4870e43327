// Part of lagkv (MIT). Transforms over neighbours and over heads.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/retention.hpp>
#include <lagkv/score/rows.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

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
  void average(std::span<float> scores, workspace& ws) const;
};

/// A transform: every head gets the mean over the heads of the layer, so that all keep the same tokens.
struct mean_of_heads {
  void operator()(std::span<float> scores, std::size_t heads, const due&, workspace&) const;

  /// The scores of the first head for all.
  static void copy_to_all(std::span<float> scores, std::size_t heads);
};

/// A transform: the average over the neighbours within `reach` in the judged range, or in the partition, that at distance d
/// weighs reach + 1 - d: a triangle. Scores that are not finite stay as they are and weigh nothing for others. Two running
/// sums, whatever the reach.
struct smooth {
  std::size_t reach = 8;
  bool agreed = false;  ///< all heads have the same scores: those of the first are smoothed for all

  void operator()(std::span<float> scores, std::size_t heads, const due& d, workspace& ws) const;

 private:
  /// A triangle is a box of reach + 1 that looks back, then one that looks ahead.
  void average(std::span<float> scores, workspace& ws) const;
};

#if LAGKV_BODIES

LAGKV_FN void pool::average(std::span<float> scores, workspace& ws) const {
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

LAGKV_FN void mean_of_heads::operator()(std::span<float> scores, std::size_t heads, const due&, workspace&) const {
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

LAGKV_FN void smooth::operator()(std::span<float> scores, std::size_t heads, const due& d, workspace& ws) const {
  const std::size_t n = scores.size() / heads, part = d.partition != 0 ? d.partition : n;
  const std::span<float> own = agreed ? scores.first(n) : scores;
  for (std::size_t at = 0; at < own.size(); at += part) average(own.subspan(at, part), ws);
  if (agreed) mean_of_heads::copy_to_all(scores, heads);
}

LAGKV_FN void smooth::average(std::span<float> scores, workspace& ws) const {
  const std::size_t n = scores.size();
  double* boxes = ws.doubles(2 * (n + reach));  // sum and count of finite scores i - reach .. i
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
