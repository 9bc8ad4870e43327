// Part of lagkv (MIT). AdaKV: the heads of a layer share one budget (arXiv 2407.11550).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Each head keeps its int(safeguard * keep) best rows; the rest of the budget of all heads goes to the best of the other rows,
/// whichever head they are of. Ties go to the earlier head, then token. With a `threshold` the budget is the most that stays:
/// of the other rows only those that score as much or more (set budget.even_with_room then). A head that would be left empty
/// keeps its best row. The plans are ragged: a policy with this selector sets policy.ragged. Source: the paper, algorithm 1;
/// kvpress 0.5.5, AdaKVPress; thresholds: KVzap (arXiv 2601.07891).
struct adaptive {
  double safeguard = 0.2;
  std::optional<float> threshold{};

  /// scores: [heads][candidates]. `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out, workspace& ws) const;

 private:
  bool reaches(float score) const { return !threshold || (!detail::is_nan(score) && score >= *threshold); }

  /// Takes the best of n rows, if none is taken; says whether it has.
  static bool keep_one(const float* scores, float* taken, std::size_t n);

  /// The heads * keep best of [heads][n], as indices; the first safe ones of each head go before all others, by infinity.
  void choose(float* scores, std::size_t heads, std::size_t n, std::size_t keep, std::uint32_t* best, workspace& ws) const;
};

#if LAGKV_BODIES

LAGKV_FN void adaptive::operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out,
                                   workspace& ws) const {
  const std::size_t n = c.rows.size(), part = c.group();
  const workspace::frame scratch(ws);
  float* taken = ws.take<float>(heads * n + heads * part);
  float* pooled = taken + heads * n;
  for (std::size_t i = 0; i < heads * n; ++i) taken[i] = 0;
  for (std::size_t at = 0; at < n; at += part) {
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t i = 0; i < part; ++i) {
        const float score = scores[head * n + at + i];  // infinity is for protected rows, and safe ones
        pooled[head * part + i] = c.protect.empty() ? detail::capped(score) : score;
      }
    const std::size_t begin = c.rows.begin + at, keep = c.keep_of({begin, begin + part});
    choose(pooled, heads, part, keep, out.kept.data(), ws);
    for (std::size_t i = 0; i < heads * keep; ++i)
      if (reaches(pooled[out.kept[i]])) taken[out.kept[i] / part * n + at + out.kept[i] % part] = 1;
  }
  std::size_t more = 0;
  for (std::size_t head = 0; head < heads && n == out.tokens_before; ++head)
    more += keep_one(scores.data() + head * n, taken + head * n, n) ? 1U : 0U;
  if (more > 0) out.kept.resize(out.kept.size() + more);
  std::size_t count = 0;
  for (std::size_t head = 0; head < heads; ++head) {
    out.first[head] = count;
    for (std::size_t i = 0; i < n; ++i)
      if (taken[head * n + i] > 0) out.kept[count++] = static_cast<std::uint32_t>(c.rows.begin + i);
  }
  out.first[heads] = count;
  out.kept.resize(count);  // fewer than were made room for, if some do not reach the threshold
}

LAGKV_FN bool adaptive::keep_one(const float* scores, float* taken, std::size_t n) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (taken[i] > 0) return false;
    if (!detail::is_nan(scores[i]) && (detail::is_nan(scores[best]) || scores[i] > scores[best])) best = i;
  }
  taken[best] = 1;
  return true;
}

LAGKV_FN void adaptive::choose(float* scores, std::size_t heads, std::size_t n, std::size_t keep, std::uint32_t* best,
                               workspace& ws) const {
  const std::size_t share = safeguard > 0 ? share_of(safeguard, keep) : 0, safe = share < keep ? share : keep;
  for (std::size_t head = 0; head < heads && safe > 0; ++head) {
    top_k::pick(scores + head * n, n, safe, head * n, best, ws);
    for (std::size_t i = 0; i < safe; ++i) scores[best[i]] = detail::infinity();
  }
  top_k::pick(scores, heads * n, heads * keep, 0, best, ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
