// Part of lagkv (MIT). ChunkKV: whole chunks of neighbours stay or go (arXiv 2502.00299).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/transform/rank.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The chunks with the best mean score, summed over the heads of the layer, stay whole until the budget is used up; of the
/// next one the best tokens stay. All heads keep the same tokens. Chunks are counted from the first candidate (of each
/// partition); the last may be shorter. Ties go to the earlier. Source: the paper; kvpress 0.5.5, ChunkKVPress (which keeps
/// a number of whole chunks instead of an exact number of tokens).
struct chunks {
  std::size_t length = 20;  ///< tokens; kvpress's default

  /// scores: [heads][candidates], `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out, workspace& ws) const;

 private:
  /// Marks what stays of one partition of n rows.
  void choose(float* sum, float* taken, float* means, float* order, std::size_t n, std::size_t begin, const candidates& c,
              workspace& ws) const;

  /// Marks up to `left` rows more, the best of a chunk where they are fewer than its own; says how many.
  static std::size_t take(token_range rows, const float* sum, float* taken, std::size_t left);

  token_range of(std::size_t chunk, std::size_t n) const;
};

#if LAGKV_BODIES

LAGKV_FN void chunks::operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out,
                                 workspace& ws) const {
  const std::size_t n = c.rows.size(), part = c.group();
  const std::size_t most = (part + length - 1) / length;
  const workspace::frame scratch(ws);
  float* sum = ws.take<float>(2 * n + 2 * most);
  float *taken = sum + n, *means = taken + n, *order = means + most;
  for (std::size_t i = 0; i < n; ++i) {
    sum[i] = taken[i] = 0;
    for (std::size_t head = 0; head < heads; ++head) sum[i] += scores[head * n + i];
  }
  for (std::size_t at = 0; at < n; at += part) choose(sum + at, taken + at, means, order, part, c.rows.begin + at, c, ws);
  for (std::size_t head = 0; head < heads; ++head) {
    std::uint32_t* to = out.row(head);
    for (std::size_t i = 0; i < n; ++i)
      if (taken[i] > 0) *to++ = static_cast<std::uint32_t>(c.rows.begin + i);
  }
}

LAGKV_FN void chunks::choose(float* sum, float* taken, float* means, float* order, std::size_t n, std::size_t begin,
                             const candidates& c, workspace& ws) const {
  std::size_t left = c.keep_of(0, {begin, begin + n});
  for (std::size_t i = 0; i < n && !c.protect.empty(); ++i)
    if (c.is_protected(0, begin + i)) {
      sum[i] = (std::numeric_limits<float>::max)();
      taken[i] = 1, --left;
    }
  const std::size_t count = (n + length - 1) / length;
  for (std::size_t k = 0; k < count; ++k) {
    const token_range rows = of(k, n);
    float total = 0;
    for (std::size_t i = rows.begin; i < rows.end; ++i) total += sum[i] / static_cast<float>(rows.size());
    means[k] = total;
  }
  detail::rank({means, count}, ws);
  for (std::size_t k = 0; k < count; ++k)
    order[count - 1 - static_cast<std::size_t>(means[k] * static_cast<float>(count) + 0.5F)] = static_cast<float>(k);
  for (std::size_t i = 0; i < count && left > 0; ++i) left -= take(of(static_cast<std::size_t>(order[i]), n), sum, taken, left);
}

LAGKV_FN std::size_t chunks::take(token_range rows, const float* sum, float* taken, std::size_t left) {
  std::size_t open = 0;
  for (std::size_t i = rows.begin; i < rows.end; ++i) open += taken[i] > 0 ? 0 : 1;
  const std::size_t n = open < left ? open : left;
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t best = rows.end;
    for (std::size_t i = rows.begin; i < rows.end; ++i)
      if (!(taken[i] > 0) && (best == rows.end || sum[i] > sum[best] || (detail::is_nan(sum[best]) && !detail::is_nan(sum[i]))))
        best = i;
    taken[best] = 1;
  }
  return n;
}

LAGKV_FN token_range chunks::of(std::size_t chunk, std::size_t n) const {
  const std::size_t begin = chunk * length;
  return {begin, begin + length < n ? begin + length : n};
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
