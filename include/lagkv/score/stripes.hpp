// Part of lagkv (MIT). Stripes: an even sample of the text, another one in each head, so that every token survives somewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/policy/registry.hpp>

namespace lagkv::inline LAGKV_ABI {

/// 1 - frac(floor(p / run) * 0.618... + (head + frac(layer * 0.754...)) / heads), p the position of a row (its index, if the host
/// offers no extras.positions), layer that of layer.index. The first number is the golden section: whatever share s of the rows
/// stays, what stays of a head is spread evenly (gaps of at most three lengths), and with s = 1 / heads each run of tokens stays
/// in about one head of each layer. A larger share has all rows of a smaller one. Reads no row. Cost: n operations a head.
///
/// By itself it is a baseline, like `random`; beside a score (fuse:novelty+stripes,by=best) it is a floor for ordinary tokens.
/// Source: this project; the sequence is Weyl's.
struct stripes_score {
  std::size_t run = 1;  ///< neighbours that stay or go together, 1 or more

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline constexpr parameter stripes_parameters[] = {
    option<&stripes_score::run>("run", accepts::positive, "neighbours that stay or go together")};

constexpr std::span<const parameter> options_of(const stripes_score&) { return stripes_parameters; }

inline constexpr method_entry stripes_entry =
    entry_of<stripes_score>({.name = "stripes",
                             .meaning = "an even sample of the tokens, another one in each head: a floor beside a score",
                             .source = "this project",
                             .reads = "nothing"},
                            stripes_parameters);

#if LAGKV_BODIES

LAGKV_FN void stripes_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                        workspace&) const {
  constexpr double golden = 0.61803398874989485, plastic = 0.75487766624669276;
  const auto fraction = [](double x) { return x - __builtin_floor(x); };
  const double first =
      (static_cast<double>(head) + fraction(static_cast<double>(l.index) * plastic)) / static_cast<double>(l.keys.heads());
  const row_positions at{.known = l.extra != nullptr ? l.extra->positions : side_array<std::uint32_t>{}, .dropped = 0};
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t place = at.of(head, candidates.begin + i) / run;
    out[i] = static_cast<float>(1 - fraction(static_cast<double>(place) * golden + first));
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
