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
  const workspace::frame scratch(ws);
  std::size_t* keep = ws.take<std::size_t>(n > 0 ? n / part : 0);  // of each partition: counted once for all heads
  for (std::size_t at = 0; at < n; at += part) keep[at / part] = c.keep_of({c.rows.begin + at, c.rows.begin + at + part});
  for (std::size_t head = 0; head < heads; ++head) {  // head by head: in the order in which the scores lie
    std::uint32_t* to = out.row(head);
    for (std::size_t at = 0; at < n; at += part) {
      pick(scores.data() + head * n + at, part, keep[at / part], c.rows.begin + at, to, ws);
      to += keep[at / part];
    }
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
