// Part of lagkv (MIT). Each head keeps its own number of rows: budgets that were learnt once a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Each head keeps its best rows by a budget of its own: candidates.head_budgets[head] times the policy's budget, sinks and
/// window included (with partitions: times what stays of each). A head that would drop no more rows than its multiple keeps
/// all. Ties go to the earlier token. Each head keeps its protected rows, and one row at least. The plans are ragged: a policy
/// with this selector sets policy.ragged and needs.head_budgets. Sources: DuoAttention (arXiv 2410.10819), whose heads keep all
/// or little; KVzip (arXiv 2505.23416), which has one budget for all heads and layers.
struct by_head {
  /// scores: [heads][candidates]. `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out, workspace& ws) const;

 private:
  /// Rows that a head keeps of a group of `n`, if a multiple of 1 means `keep` of them and `beside` others.
  static std::size_t rows_of(float multiple, std::size_t keep, std::size_t n, std::size_t beside) {
    const double even = static_cast<double>(keep + beside), all = static_cast<double>(n + beside),
                 m = static_cast<double>(multiple);
    if (m * (even + 1) >= all) return n;
    const auto rows = static_cast<std::size_t>(m * even + 0.5);
    return rows > beside ? rows - beside : 0;
  }
};

#if LAGKV_BODIES

LAGKV_FN void by_head::operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out,
                                  workspace& ws) const {
  const std::size_t n = c.rows.size(), part = c.group(), beside = c.partition != 0 ? 0 : out.tokens_before - n;
  out.kept.resize(heads * n);
  std::size_t count = 0;
  for (std::size_t head = 0; head < heads; ++head) {
    out.first[head] = count;
    for (std::size_t at = 0; at < n; at += part) {
      const std::size_t begin = c.rows.begin + at, held = c.count_protected(head, {begin, begin + part});
      std::size_t rows = rows_of(c.head_budgets[head], c.partition != 0 ? c.keep_each : c.keep, part, beside);
      if (rows < held) rows = held;
      if (rows == 0 && n == out.tokens_before && at + part == n && count == out.first[head]) rows = 1;
      top_k::pick(scores.data() + head * n + at, part, rows, begin, out.kept.data() + count, ws);
      count += rows;
    }
  }
  out.first[heads] = count;
  out.kept.resize(count);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
