// Part of lagkv (MIT). The best tokens of each head, in each partition or of all candidates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/simd/score_kernels.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Ties go to the earlier token; a NaN is below every number. About log2(n) passes over n integers in cache.
struct top_k {
  /// scores: [heads][candidates], `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out, workspace& ws) const;

  /// The k best of n scores whose first one is of row `base`.
  static void pick(const float* scores, std::size_t n, std::size_t k, std::size_t base, std::uint32_t* out, workspace& ws) {
    const workspace::frame scratch(ws);
    ws.kernels<simd::score_kernels>().top_k(scores, n, k, static_cast<std::uint32_t>(base), ws.take<std::int32_t>(n), out);
  }
};

#if LAGKV_BODIES

LAGKV_FN void top_k::operator()(std::span<const float> scores, std::size_t heads, const candidates& c, plan& out,
                                workspace& ws) const {
  const std::size_t n = c.rows.size(), part = c.group();
  const simd::score_kernels& kernels = ws.kernels<simd::score_kernels>();
  const workspace::frame scratch(ws);
  std::int32_t* order = ws.take<std::int32_t>(part);
  for (std::size_t head = 0; head < heads; ++head) {
    std::uint32_t* to = out.row(head);
    for (std::size_t at = 0; at < n; at += part) {
      const std::size_t begin = c.rows.begin + at, keep = c.keep_of({begin, begin + part});
      kernels.top_k(scores.data() + head * n + at, part, keep, static_cast<std::uint32_t>(begin), order, to);
      to += keep;
    }
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
