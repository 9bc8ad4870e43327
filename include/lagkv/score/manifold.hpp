// Part of lagkv (MIT). ManifoldKV: keys far from the centroid (arXiv 2602.08343).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |k - c|, c = mean key of the reference: all rows in use, or the next partition; with `window`, of the row's own window
/// (WindowedManifoldKV, for long contexts). Reads each key twice.
struct manifold_score {
  std::size_t window = 0;  ///< tokens, counted from the first candidate (of each partition); 0: one centroid. Paper: 4096
  std::size_t lag = 0;     ///< tokens a partition; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const manifold_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0 && s.window == 0}}; }

inline constexpr parameter manifold_parameters[] = {
    option<&manifold_score::window>("window", accepts::count, "tokens that share a centroid; 0: one centroid")};

inline constexpr method_entry manifold_entry = entry_of<manifold_score>(
    {.name = "manifold", .meaning = "keys far from the centroid", .source = "arXiv 2602.08343", .reads = "keys"},
    manifold_parameters);

#if LAGKV_BODIES

LAGKV_FN void manifold_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                         workspace& ws) const {
  const workspace::frame scratch(ws);
  float* centre = ws.take<float>(l.keys.channels());
  const auto score = [&](token_range part, token_range reference) {
    mean_of_rows(l.keys, head, reference, centre, ws, [](float) { return 1.0F; });
    float* scores = out.data() + (part.begin - candidates.begin);
    for_each_rows(l.keys, head, part, ws, [&](const simd::rows& rows, std::size_t offset) {
      ws.kernels<simd::row_kernels>().distances(rows, nullptr, centre, nullptr, scores + offset);
    });
  };
  for_each_reference(l, candidates, lag, [&](token_range part, token_range reference) {
    if (window == 0) return score(part, reference);
    for (token_range own = part; own.begin < part.end; own.begin = own.end) {
      own.end = window < part.end - own.begin ? own.begin + window : part.end;
      score(own, own);
    }
  });
  for (float& s : out) s = detail::norm(s);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
