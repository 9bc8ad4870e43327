// Part of lagkv (MIT). Values of large norm change what attention gives.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/method.hpp>
#include <lagkv/score/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |v|. Reads each value once. The factor that VATP (arXiv 2406.12335) gives attention scores, alone (it takes the 1-norm).
struct value_norm {
  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const;
};

inline part part_of(const value_norm& s) { return {.score = s, .needs = {.values = true}}; }

inline constexpr method value_norm_method{
    .name = "value_norm",
    .meaning = "large norm of the value",
    .source = "after arXiv 2406.12335",
    .reads = "values",
    .parameters = {},
    .make = [](std::span<const double>, std::size_t) -> result<part> { return part_of(value_norm{}); },
};

#if LAGKV_BODIES

LAGKV_FN void value_norm::operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out,
                                     workspace& ws) const {
  squares_of_rows(l.values, head, judged, out.data(), ws);
  for (float& score : out) score = detail::norm(score);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
