// Part of lagkv (MIT). TOVA: what the last query attends to (arXiv 2401.06104).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/attention.hpp>
#include <lagkv/method.hpp>
#include <lagkv/score/pool.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Attention weights of the last query, mean over all query heads of the layer: part_of() adds mean_of_heads. Cost: one pass
/// over the keys. Source: the paper; kvpress 0.5.5, TOVAPress.
struct tova {
  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const;
};

inline part part_of(const tova& s) {
  return {.score = s, .adjust = mean_of_heads{}, .needs = {.all_rows = true, .queries = 1}, .recent = 1};
}

inline constexpr method tova_method{
    .name = "tova",
    .meaning = "attention of the last query, mean over heads",
    .source = "arXiv 2401.06104",
    .reads = "keys, query (or attention weights) of the last token",
    .parameters = {},
    .make = [](std::span<const double>, std::size_t) -> result<part> { return part_of(tova{}); },
};

#if LAGKV_BODIES

LAGKV_FN void tova::operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const {
  const float* weights = detail::attention_alone(l, head, 1, group_share(l), ws);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = weights[judged.begin + i];
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
