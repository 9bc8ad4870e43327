// Part of lagkv (MIT). ManifoldKV: keys far from the centroid (arXiv 2602.08343).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/method.hpp>
#include <lagkv/score/rows.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |k - c|, c = mean key of the reference: all rows in use, or the next partition; with `window`, of the row's own window
/// (WindowedManifoldKV, for long contexts). Reads each key twice.
struct manifold {
  std::size_t window = 0;  ///< tokens, counted from the first judged row (of each partition); 0: one centroid. Paper: 4096
  std::size_t lag = 0;     ///< tokens a partition; 0: the whole judged range at once

  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const;
};

inline part part_of(const manifold& s) { return {.score = s, .needs = {.all_rows = s.lag == 0 && s.window == 0}}; }

inline constexpr parameter manifold_parameters[] = {
    {"window", parameter::kind::count, 0, accepts::count, "tokens that share a centroid; 0: one centroid"}};

inline constexpr method manifold_method{
    .name = "manifold",
    .meaning = "keys far from the centroid",
    .source = "arXiv 2602.08343",
    .reads = "keys",
    .parameters = manifold_parameters,
    .make = [](std::span<const double> v, std::size_t lag) -> result<part> {
      return part_of(manifold{static_cast<std::size_t>(v[0]), lag});
    },
};

#if LAGKV_BODIES

LAGKV_FN void manifold::operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out,
                                   workspace& ws) const {
  float* centre = ws.floats(workspace::reference, l.keys.channels());
  const auto score = [&](token_range part, token_range reference) {
    mean_of_rows(l.keys, head, reference, centre, ws, [](float) { return 1.0F; });
    float* scores = out.data() + (part.begin - judged.begin);
    for_each_rows(l.keys, head, part, ws, [&](const simd::rows& rows, std::size_t offset) {
      ws.kernels<simd::row_kernels>().distances(rows, nullptr, centre, nullptr, scores + offset);
    });
  };
  for_each_reference(l, judged, lag, [&](token_range part, token_range reference) {
    if (window == 0) return score(part, reference);
    for (std::size_t at = part.begin; at < part.end; at += window) {
      const token_range own{at, at + window < part.end ? at + window : part.end};
      score(own, own);
    }
  });
  for (float& s : out) s = detail::norm(s);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
