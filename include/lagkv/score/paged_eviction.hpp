// Part of lagkv (MIT). PagedEviction's score: long values under short keys (arXiv 2509.04377).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |v| / |k|. Reads each key and value once. The paper lets whole pages go while decoding: select=chunks, with chunk the tokens
/// of a page.
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
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = detail::norm(out[i]) / detail::norm(keys[i]);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
