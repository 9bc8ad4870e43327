// Part of lagkv (MIT). The best tokens of each head, in each partition or in the whole judged range.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/plan.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

/// Ties go to the earlier token; a NaN is below every number. About log2(n) passes over n integers in cache.
struct top_k {
  /// scores: [heads][judged], `out` has been reset for them.
  void operator()(std::span<const float> scores, std::size_t heads, const due& d, plan& out, workspace& ws) const {
    const std::size_t n = d.judged.size(), part = d.partition != 0 ? d.partition : n;
    const std::size_t each = d.partition != 0 ? d.keep_each : d.keep;
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t p = 0; p < n / part; ++p)
        pick(scores.data() + head * n + p * part, part, each, d.judged.begin + p * part, out.row(head) + p * each, ws);
  }

  /// The k best of n scores whose first one is of row `base`.
  static void pick(const float* scores, std::size_t n, std::size_t k, std::size_t base, std::uint32_t* out, workspace& ws) {
    ws.kernels().top_k(scores, n, k, static_cast<std::uint32_t>(base), ws.keys(n), out);
  }
};

}  // namespace lagkv
