// Part of lagkv (MIT). PagedEviction's score: long values under short keys (arXiv 2509.04377).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/method.hpp>
#include <lagkv/score/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |v| / |k|. Reads each key and value once. The paper lets whole pages go while decoding: select=chunks, with chunk the tokens
/// of a page.
struct paged_eviction {
  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const;
};

inline part part_of(const paged_eviction& s) { return {.score = s, .needs = {.values = true}}; }

inline constexpr method paged_eviction_method{
    .name = "paged_eviction",
    .meaning = "norm of the value over that of the key",
    .source = "arXiv 2509.04377",
    .reads = "keys, values",
    .parameters = {},
    .make = [](std::span<const double>, std::size_t) -> result<part> { return part_of(paged_eviction{}); },
};

#if LAGKV_BODIES

LAGKV_FN void paged_eviction::operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out,
                                         workspace& ws) const {
  float* keys = ws.floats(workspace::deviation, out.size());
  squares_of_rows(l.keys, head, judged, keys, ws);
  squares_of_rows(l.values, head, judged, out.data(), ws);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = detail::norm(out[i]) / detail::norm(keys[i]);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
