// Part of lagkv (MIT). TOVA: what the last query attends to (arXiv 2401.06104).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/attention/attention.hpp>
#include <lagkv/policy/registry.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Attention weights of the last query, mean over the query heads of the KV head. The method shares them among heads, so that it
/// is the mean over all query heads of the layer. Cost: one pass over the keys. Source: the paper; kvpress 0.5.5, TOVAPress.
struct tova_score {
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const tova_score& s) {
  return {.score = s, .needs = {.all_rows = true, .queries = 1}, .recent = 1, .shared_heads = true};
}

inline constexpr method_entry tova_entry =
    entry_of<tova_score>({.name = "tova",
                          .meaning = "attention of the last query, mean over heads",
                          .source = "arXiv 2401.06104",
                          .reads = "keys, query (or attention weights) of the last token"});

#if LAGKV_BODIES

LAGKV_FN void tova_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                     workspace& ws) const {
  const workspace::frame scratch(ws);
  const float* weights = detail::attention_alone(l, head, 1, group_share(l), ws);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = weights[candidates.begin + i];
  detail::mark_bad_keys(l, head, candidates, out, ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
