// Part of lagkv (MIT). KeyDiff: keys unlike the average key (arXiv 2504.15364).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// -cos(k, a), a = mean of k / |k| over the reference: all rows in use, or the next partition. 0 where k or a is 0.
/// Reads each key twice. Source: the paper, section 3; kvpress 0.5.5, KeyDiffPress.
struct key_diff_score {
  std::size_t lag = 0;  ///< tokens a partition; 0: the whole judged range at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const key_diff_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0}}; }

inline constexpr method_entry key_diff_entry =
    entry_of<key_diff_score>({.name = "key_diff",
                   .meaning = "keys that point away from the mean key",
                   .source = "arXiv 2504.15364",
                   .reads = "keys"});

#if LAGKV_BODIES

LAGKV_FN void key_diff_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                   workspace& ws) const {
  const std::size_t channels = l.keys.channels();
  for_each_reference(l, candidates, lag, [&](token_range part, token_range reference) {
    const workspace::frame scratch(ws);
    float* anchor = ws.take<float>(channels);
    mean_of_rows(l.keys, head, reference, anchor, ws,
                 [](float square) { return square > 0 ? 1 / __builtin_sqrtf(square) : 0.0F; });
    float square = 0;
    ws.kernels<simd::row_kernels>().squares({anchor, dtype::f32, 1, channels, 0}, &square);
    float* scores = out.data() + (part.begin - candidates.begin);
    float* norms = ws.take<float>(part.size());
    for_each_rows(l.keys, head, part, ws, [&](const simd::rows& rows, std::size_t offset) {
      detail::squares(rows, norms + offset, ws);
      ws.kernels<simd::dot_kernels>().dots(rows, anchor, 1, scores + offset, part.size());
    });
    for (std::size_t i = 0; i < part.size(); ++i) {
      const float norm = detail::norm(norms[i]) * __builtin_sqrtf(square);  // NaN if a square overflows, so that it goes first
      scores[i] = norm > 0 ? -scores[i] / norm : norm;
    }
  });
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
