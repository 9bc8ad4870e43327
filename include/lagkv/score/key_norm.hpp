// Part of lagkv (MIT). Keys of small norm are attended to (arXiv 2406.11430).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// -|k|. Reads each key once. Source: kvpress 0.5.5, KnormPress. The paper leaves the first two layers whole: do not offer
/// them.
struct key_norm_score {
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline constexpr method_entry key_norm_entry = entry_of<key_norm_score>(
    {.name = "key_norm", .meaning = "small norm of the key", .source = "arXiv 2406.11430", .reads = "keys"});

#if LAGKV_BODIES

LAGKV_FN void key_norm_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                         workspace& ws) const {
  squares_of_rows(l.keys, head, candidates, out.data(), ws);
  for (float& score : out) score = -detail::norm(score);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
