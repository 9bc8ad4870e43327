// Part of lagkv (MIT). KeyDiff: keys unlike the average key (arXiv 2504.15364).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/away_from_mean.hpp>

namespace lagkv::inline LAGKV_ABI {

/// -cos(k, a), a = mean of k / |k| over the reference: all rows in use, or the next partition. 0 where k or a is 0.
/// Reads each key twice. Source: the paper, section 3; kvpress 0.5.5, KeyDiffPress.
struct key_diff_score {
  std::size_t lag = 0;  ///< tokens a partition; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const key_diff_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0}}; }

inline constexpr method_entry key_diff_entry = entry_of<key_diff_score>(
    {.name = "key_diff", .meaning = "keys that point away from the mean key", .source = "arXiv 2504.15364", .reads = "keys"});

#if LAGKV_BODIES

LAGKV_FN void key_diff_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                         workspace& ws) const {
  for_each_reference(l, candidates, lag, [&](token_range part, token_range reference) {
    detail::away_from_mean(l.keys, head, part, reference, out.data() + (part.begin - candidates.begin), ws);
  });
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
