// Part of lagkv (MIT). Values of large norm change what attention gives.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// |v|. Reads each value once. The factor that VATP (arXiv 2406.12335) gives attention scores, alone (it takes the 1-norm).
struct value_norm_score {
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const value_norm_score& s) { return {.score = s, .needs = {.values = true}}; }

inline constexpr method_entry value_norm_entry = entry_of<value_norm_score>(
    {.name = "value_norm", .meaning = "large norm of the value", .source = "after arXiv 2406.12335", .reads = "values"});

#if LAGKV_BODIES

LAGKV_FN void value_norm_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                           workspace& ws) const {
  squares_of_rows(l.values, head, candidates, out.data(), ws);
  for (float& score : out) score = detail::norm(score);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
