// Part of lagkv (MIT). PagedEviction's score: long values under short keys (arXiv 2509.04377).
#pragma once

#include <cstddef>
#include <limits>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |v| / |k|; by a key of zeros 0 if the value is zeros too, else the largest number. Reads each key and value once. The paper
/// lets whole pages go while decoding: select=chunks, with chunk the tokens of a page.
struct paged_eviction_score {
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const paged_eviction_score& s) { return {.score = s, .needs = {.values = true}}; }

inline constexpr method_entry paged_eviction_entry =
    entry_of<paged_eviction_score>({.name = "paged_eviction",
                                    .meaning = "norm of the value over that of the key",
                                    .source = "arXiv 2509.04377",
                                    .reads = "keys, values"});

#if LAGKV_BODIES

LAGKV_FN void paged_eviction_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                               workspace& ws) const {
  const workspace::frame scratch(ws);
  float* keys = ws.take<float>(out.size());
  squares_of_rows(l.keys, head, candidates, keys, ws);
  squares_of_rows(l.values, head, candidates, out.data(), ws);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float value = detail::norm(out[i]), key = detail::norm(keys[i]), score = value / key;
    const bool bad_row = detail::is_nan(value) || detail::is_nan(key);
    out[i] = bad_row || detail::finite(score) ? score : value > 0 ? (std::numeric_limits<float>::max)() : 0.0F;
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
