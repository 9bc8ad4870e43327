// Part of lagkv (MIT). H2O: what all queries so far attended to, the heavy hitters (arXiv 2306.14048).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/attention/attention.hpp>
#include <lagkv/policy/registry.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Attention that a row has received from all queries so far, mean over the query heads of the group:
/// extras.accumulated_attention if the host offers it (accumulate() adds to it, compress() moves it with the rows), else from the
/// queries or weights that are offered. Costs nothing with accumulated attention, else tokens^2 / 2 weights.
struct h2o_score {
  enum class form : std::uint8_t {
    sum,  ///< the paper's
    mean  ///< divided by the number of queries that saw the row (kvpress 0.5.5, ObservedAttentionPress)
  };
  form how = form::sum;

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  /// Queries from the row's own on. Rows behind one that is a candidate for the first time are all still there.
  static std::size_t seen_by(const layer& l, std::size_t head, std::size_t row);
};

/// Half of the budget goes to the most recent tokens, as in the paper.
inline method method_of(const h2o_score& s) {
  return {.score = s,
          .needs = {.all_rows = true, .accumulated_attention = true, .positions = s.how == h2o_score::form::mean},
          .recent = 1,
          .recent_share = 0.5};
}

inline constexpr parameter h2o_parameters[] = {option<&h2o_score::how>(
    "form", accepts::word("sum|mean"), "sum of the attention, or its mean over the queries that saw the token")};

inline constexpr method_entry h2o_entry =
    entry_of<h2o_score>({.name = "h2o",
                         .meaning = "attention of all queries so far",
                         .source = "arXiv 2306.14048",
                         .reads = "accumulated attention (or queries, or attention weights, of all tokens)"},
                        h2o_parameters);

#if LAGKV_BODIES

LAGKV_FN void h2o_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                    workspace& ws) const {
  const workspace::frame scratch(ws);
  const side_array<float>& kept = l.extra->accumulated_attention;
  const float* sums = kept ? kept.of(head) : detail::attention_alone(l, head, l.tokens, group_share(l), ws);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t row = candidates.begin + i;
    out[i] = how == form::mean ? sums[row] / static_cast<float>(seen_by(l, head, row)) : sums[row];
  }
  detail::mark_bad_keys(l, head, candidates, out, ws);
}

LAGKV_FN std::size_t h2o_score::seen_by(const layer& l, std::size_t head, std::size_t row) {
  const side_array<std::uint32_t>& positions = l.extra->positions;
  return positions ? positions.of(head)[l.tokens - 1] - positions.of(head)[row] + 1 : l.tokens - row;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
