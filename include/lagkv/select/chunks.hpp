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
/// next one the best tokens stay. All heads keep the same tokens: a row that is protected in one head stays in all, beyond the
/// budget where there are more such rows. A row that is NaN in one head goes before all others and has no part in the mean of its
/// chunk; infinities count as the largest numbers. Chunks are counted from the first candidate (of each partition); the last may
/// be shorter. Ties go to the earlier. Source: the paper; kvpress 0.5.5, ChunkKVPress (which keeps a number of whole chunks
/// instead of an exact number of tokens).
struct chunks {
  std::size_t length = 20;  ///< tokens, 1 or more; kvpress's default

  /// scores: [heads][candidates]. `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out, workspace& ws) const;

 private:
  /// Marks what stays of one partition of n rows.
  void choose(float* sum, float* taken, std::size_t n, std::size_t begin, const candidates& c, workspace& ws) const;

  /// Marks up to `left` rows more, the best of a chunk where they are fewer than its own; says how many. Those that are NaN only
  /// if they are asked for.
  static std::size_t take(token_range rows, const float* sum, float* taken, std::size_t left, bool nan, workspace& ws);

  /// Infinities as the largest numbers.
  static float finite_unless_nan(float x) { return -detail::capped(-detail::capped(x)); }

  std::size_t each() const { return length > 0 ? length : 1; }
  token_range of(std::size_t chunk, std::size_t n) const;
};

#if LAGKV_BODIES

LAGKV_FN void chunks::operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out,
                                 workspace& ws) const {
  const std::size_t n = c.rows.size(), part = c.group();
  const workspace::frame scratch(ws);
  float* sum = ws.take<float>(2 * n);
  float* taken = sum + n;
  for (std::size_t i = 0; i < n; ++i) {
    sum[i] = taken[i] = 0;
    for (std::size_t head = 0; head < heads; ++head) sum[i] += finite_unless_nan(scores[head * n + i]);
    sum[i] = finite_unless_nan(sum[i]);
  }
  for (std::size_t at = 0; at < n; at += part) choose(sum + at, taken + at, part, c.rows.begin + at, c, ws);
  std::size_t keep = 0;
  for (std::size_t i = 0; i < n; ++i) keep += taken[i] > 0 ? 1U : 0U;
  if (keep != c.keep) out.reset(c.rows, out.tokens_before, heads, keep);  // more rows are protected, of different heads
  for (std::size_t head = 0; head < heads; ++head) {
    std::uint32_t* to = out.row(head);
    for (std::size_t i = 0; i < n; ++i)
      if (taken[i] > 0) *to++ = static_cast<std::uint32_t>(c.rows.begin + i);
  }
}

LAGKV_FN void chunks::choose(float* sum, float* taken, std::size_t n, std::size_t begin, const candidates& c,
                             workspace& ws) const {
  std::size_t left = c.keep_of({begin, begin + n});
  for (std::size_t i = 0; i < n && !c.protect.empty(); ++i)
    for (std::size_t head = 0; head < c.heads; ++head)
      if (c.is_protected(head, begin + i)) {
        sum[i] = (std::numeric_limits<float>::max)();
        taken[i] = 1, left -= left > 0 ? 1U : 0U;
        break;
      }
  const std::size_t count = n / each() + (n % each() != 0 ? 1 : 0);
  const workspace::frame scratch(ws);
  const std::span<float> means{ws.take<float>(count), count};
  for (std::size_t k = 0; k < count; ++k) {
    const token_range rows = of(k, n);
    std::size_t good = 0;
    for (std::size_t i = rows.begin; i < rows.end; ++i) good += detail::finite(sum[i]) ? 1U : 0U;
    float total = 0;
    for (std::size_t i = rows.begin; i < rows.end; ++i)
      if (detail::finite(sum[i])) total += sum[i] / static_cast<float>(good);
    means[k] = good > 0 ? total : detail::not_a_number();
  }
  const detail::ordered* order = detail::ascending(means, ws);
  const std::size_t longest = of(0, n).size();
  ws.reserve(3 * (longest * sizeof(float) + 64));  // of take(), also where no chunk is cut: later calls need no more
  for (const bool nan : {false, true})
    for (std::size_t i = count; i-- > 0 && left > 0;) left -= take(of(detail::index_of(order[i]), n), sum, taken, left, nan, ws);
}

LAGKV_FN std::size_t chunks::take(token_range rows, const float* sum, float* taken, std::size_t left, bool nan, workspace& ws) {
  const auto open = [&](std::size_t i) { return !(taken[i] > 0) && detail::is_nan(sum[i]) == nan; };
  std::size_t all = 0;
  for (std::size_t i = rows.begin; i < rows.end; ++i) all += open(i) ? 1U : 0U;
  if (all <= left) {
    for (std::size_t i = rows.begin; i < rows.end; ++i)
      if (open(i)) taken[i] = 1;
    return all;
  }
  const workspace::frame scratch(ws);
  float* scores = ws.take<float>(rows.size());
  std::uint32_t* best = ws.take<std::uint32_t>(left);
  for (std::size_t i = rows.begin; i < rows.end; ++i) {
    const float score = nan ? 0 : sum[i];  // of rows that are NaN the earliest
    scores[i - rows.begin] = open(i) ? score : detail::not_a_number();
  }
  top_k::pick(scores, rows.size(), left, rows.begin, best, ws);
  for (std::size_t k = 0; k < left; ++k) taken[best[k]] = 1;
  return left;
}

LAGKV_FN token_range chunks::of(std::size_t chunk, std::size_t n) const {
  const std::size_t begin = chunk * each();
  return {begin, each() < n - begin ? begin + each() : n};
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
