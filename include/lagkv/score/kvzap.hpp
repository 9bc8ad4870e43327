// Part of lagkv (MIT). KVzap: importance that a linear map reads off a key and its value (arXiv 2601.07891).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// a.k + b.v + c: the logarithm of how much attention a token will get when it is looked back at, by the map a, b, c of its head
/// (extras.importance), k being the key before RoPE. A row that is not finite gets NaN, so it goes first.
///
/// Cost: one product a row, of keys and values. Source: the paper, whose map reads the layer's hidden states: keys and values are
/// linear in them, and a cache has them. attention/fit_importance.hpp fits it.
struct kvzap_score {
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;
};

inline method method_of(const kvzap_score& s) {
  return {.score = s, .needs = {.values = true, .importance = true}, .pre_rope = pre_rope_keys};
}

inline constexpr method_entry kvzap_entry =
    entry_of<kvzap_score>({.name = "kvzap",
                           .meaning = "attention to come, read off key and value by a map "
                                      "that was fitted to the model",
                           .source = "arXiv 2601.07891",
                           .reads = "keys and their RoPE, values, the map"});

#if LAGKV_BODIES

LAGKV_FN void kvzap_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                      workspace& ws) const {
  const std::size_t keys = l.keys.channels(), width = l.extra->importance.channels();
  const workspace::frame scratch(ws);
  float* map = ws.take<float>(width);
  for_each_row(l.extra->importance, head, {0, 1}, ws, [&](std::size_t, std::span<const float> row) {
    for (std::size_t c = 0; c < width; ++c) map[c] = row[c];
  });
  for (float& score : out) score = map[width - 1];
  const auto add = [&](const tensor& x, const float* weights) {
    for_each_rows_and_next(x, head, candidates, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
      const workspace::frame own(ws);
      float* products = ws.take<float>(detail::piece_rows(x.row_bytes()));  // the same for every run
      ws.kernels<simd::dot_kernels>().dots(rows, weights, 1, products, rows.tokens);
      for (std::size_t i = 0; i < rows.tokens; ++i) out[offset + i] += products[i];
    });
  };
  add(l.keys, map);
  add(l.values, map + keys);
  for (float& score : out)
    if (!detail::finite(score)) score = detail::not_a_number();
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
