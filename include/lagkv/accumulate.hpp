// Part of lagkv (MIT). What methods have the host keep for them from call to call.
#pragma once

#include <cstddef>

#include <lagkv/attention/attention.hpp>
#include <lagkv/cache/cursor.hpp>
#include <lagkv/cache/layer.hpp>
#include <lagkv/policy/method.hpp>
#include <lagkv/policy/policy.hpp>
#include <lagkv/rows/mean_and_variance.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Adds the last n tokens to the sums that `p` reads (needs.accumulated_attention, needs.key_statistics) and the layer offers;
/// what is not offered is left out. Call it before compress(), with the tokens appended since the last time; for attention,
/// with their queries or weights. Tokens that the host takes back stay counted.
///
/// Cost: attention of n tokens to all rows (accumulate_attention()); for key statistics, the n rows are read once. Fails only if
/// the workspace cannot grow (std::bad_alloc), before the first sum changes.
LAGKV_FN void accumulate(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws);

/// The part of accumulate() for key statistics: adds the keys of the last n rows, without sinks, as `p` reads keys (before RoPE
/// or after).
LAGKV_FN void accumulate_key_statistics(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws);

#if LAGKV_BODIES

namespace detail {

/// How any of the scorers is shown keys, if one asks for it.
LAGKV_FN key_view view_of_keys(const policy& p) {
  key_view view = p.pre_rope;
  for (std::size_t i = 0; i < p.fused_count && view == nullptr; ++i) view = p.fused[i].pre_rope;
  return view;
}

/// Whether the layer offers statistics to add to, and the embedding where keys are counted as they were before it.
LAGKV_FN bool adds_statistics(const policy& p, const layer& l) {
  const extras* e = l.extra;
  if (e == nullptr || !e->key_statistics) return false;
  return view_of_keys(p) == nullptr || (e->rope != nullptr && e->rope->pairs != rope::pairing::unnamed);
}

/// Makes sure that adding statistics allocates nothing.
LAGKV_FN void room_for_statistics(const layer& l, workspace& ws) {
  ws.reserve(2 * room_of_rows(l.keys) + 2 * l.keys.channels() * sizeof(float));
}

}  // namespace detail

LAGKV_FN void accumulate(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws) {
  const workspace::frame scratch(ws);
  if (p.needs.accumulated_attention && p.needs.key_statistics && detail::adds_statistics(p, l)) {
    detail::room_for_statistics(l, ws);  // before the first sum changes
    static_cast<void>(detail::shown(l, {l.extra->positions, at.dropped}, detail::view_of_keys(p), ws));
  }
  if (p.needs.accumulated_attention) accumulate_attention(l, n, ws);
  if (p.needs.key_statistics) accumulate_key_statistics(p, l, at, n, ws);
}

LAGKV_FN void accumulate_key_statistics(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws) {
  if (n == 0 || !detail::adds_statistics(p, l)) return;
  const detail::shown seen(l, {l.extra->positions, at.dropped}, detail::view_of_keys(p), ws);
  const workspace::frame scratch(ws);
  detail::room_for_statistics(l, ws);
  const std::size_t last = n < l.tokens ? l.tokens - n : 0, begin = last > p.budget.sink ? last : p.budget.sink;
  for (std::size_t head = 0; head < l.keys.heads() && begin < l.tokens; ++head)
    detail::add_statistics((*seen).keys, head, {begin, l.tokens}, 1, l.extra->key_statistics.of(head, l.keys.channels()), ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
