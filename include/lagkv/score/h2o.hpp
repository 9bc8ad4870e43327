// Part of lagkv (MIT). H2O: what all queries so far attended to, the heavy hitters (arXiv 2306.14048).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/attention.hpp>
#include <lagkv/method.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Attention that a row has received from all queries so far, mean over the query heads of the group: extras.mass where the
/// host lets lagkv keep it (observe() adds to it, step() compacts it), else from the queries or weights that are offered.
/// Cost: nothing with a mass; else that of add_attention() with tokens^2 / 2 weights.
struct h2o {
  enum class form : std::uint8_t {
    sum,  ///< the paper's
    mean  ///< divided by the number of queries that saw the row (kvpress 0.5.5, ObservedAttentionPress)
  };
  form how = form::sum;

  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const;

 private:
  /// Queries from the row's own on. Rows behind one that is judged for the first time are all still there.
  static std::size_t seen_by(const layer& l, std::size_t head, std::size_t row);
};

/// Half of the budget goes to the most recent tokens, as in the paper.
inline part part_of(const h2o& s) {
  return {.score = s, .needs = {.all_rows = true, .mass = true}, .recent = 1, .recent_share = 0.5};
}

inline constexpr parameter h2o_parameters[] = {
    {"form", parameter::kind::word, 0, "sum|mean", "sum of the attention, or its mean over the queries that saw the token"}};

inline constexpr method h2o_method{
    .name = "h2o",
    .meaning = "attention of all queries so far",
    .source = "arXiv 2306.14048",
    .reads = "running attention mass (or queries, or attention weights, of all tokens)",
    .parameters = h2o_parameters,
    .make = [](std::span<const double> v, std::size_t) -> result<part> { return part_of(h2o{static_cast<h2o::form>(v[0])}); },
};

#if LAGKV_BODIES

LAGKV_FN void h2o::operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const {
  const float* mass = l.extra->mass ? l.extra->mass.of(head) : detail::attention_alone(l, head, l.tokens, group_share(l), ws);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t row = judged.begin + i;
    out[i] = how == form::mean ? mass[row] / static_cast<float>(seen_by(l, head, row)) : mass[row];
  }
}

LAGKV_FN std::size_t h2o::seen_by(const layer& l, std::size_t head, std::size_t row) {
  const side_array<std::uint32_t>& positions = l.extra->positions;
  return positions ? positions.of(head)[l.tokens - 1] - positions.of(head)[row] + 1 : l.tokens - row;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
