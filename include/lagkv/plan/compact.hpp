// Part of lagkv (MIT). Applies a plan to memory: rows move in place, without a second buffer.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>

#include <lagkv/cache/layer.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Where the kept candidates go.
///  front   down to its beginning, and the window follows: the rows in use are the first plan.tokens_after() again
///  window  up to its end, where the window lies and stays: plan.candidates.size() - kept rows become free,
///          right after the tokens before the range. For hosts whose cells carry positions, and for rings.
enum class toward : std::uint8_t { front, window };

namespace detail {

LAGKV_FN void move_row(const tensor& x, const tile& from, const tile& to, std::size_t token);

/// Moves rows [from, from + n) of a head to [to, to + n), without their scales; the two may overlap.
LAGKV_FN void move_elements(const tensor& x, std::size_t head, std::size_t from, std::size_t to, std::size_t n);

/// Moves rows [from, from + n) of a head to [to, to + n), and their scales; the two may overlap.
LAGKV_FN void move_rows(const tensor& x, std::size_t head, std::size_t from, std::size_t to, std::size_t n);

/// Calls move(from, to, n) for each run of neighbours among `kept`, in an order that never overwrites a row still wanted.
template <class Move>
void for_each_move(std::span<const std::uint32_t> kept, token_range candidates, toward direction, const Move& move) {
  const std::size_t n = kept.size();
  if (direction == toward::front) {
    for (std::size_t i = 0, run = 0; i < n; i += run) {
      for (run = 1; i + run < n && kept[i + run] == kept[i] + run;) ++run;
      move(std::size_t{kept[i]}, candidates.begin + i, run);
    }
  } else {
    for (std::size_t left = n, run = 0; left > 0; left -= run) {
      for (run = 1; run < left && kept[left - run - 1] + run == kept[left - 1];) ++run;
      move(std::size_t{kept[left - run]}, candidates.end - (n - left) - run, run);
    }
  }
}

/// Copies n bytes of a row to another place: the two are apart.
LAGKV_FN void copy_row(std::byte* to, const std::byte* from, std::size_t n);

/// Moves the rows `kept` of one head, all of them `candidates`, to one end of `place`, which lies within the rows that
/// have been dealt with. Rows that are `cold`, not in the caches, are asked for before they are copied: they lie scattered, and
/// no processor foresees where.
LAGKV_FN void move_kept(const tensor& x, std::size_t head, std::span<const std::uint32_t> kept, token_range candidates,
                        token_range place, toward direction, bool cold);

/// The window of one head, which follows the kept rows to the front.
template <class Move>
void move_window(const plan& p, std::size_t head, const Move& move) {
  move(p.candidates.end, p.candidates.begin + p.of(head).size(), p.tokens_before - p.candidates.end);
}

/// The rows of one head that `p` moves: kept ones, then the window where it follows.
template <class Move>
void for_each_move(const plan& p, std::size_t head, toward direction, const Move& move) {
  if (p.empty()) return;
  for_each_move(p.of(head), p.candidates, direction, move);
  if (direction == toward::front) move_window(p, head, move);
}

}  // namespace detail

/// Moves the rows of one head of `x` by `p`. Reads and writes each kept row once; allocates nothing. `x` has the heads of the
/// plan and addresses p.tokens_before tokens. Heads may be moved at the same time by several threads.
LAGKV_FN void compact(const tensor& x, std::size_t head, const plan& p, toward direction = toward::front);

/// Those of every head.
inline void compact(const tensor& x, const plan& p, toward direction = toward::front) {
  for (std::size_t head = 0; head < p.heads(); ++head) compact(x, head, p, direction);
}

/// Keys and values.
LAGKV_FN void compact(const layer& l, const plan& p, toward direction = toward::front);

/// The side array of one head, an entry a token (positions, accumulated attention), by what that head keeps: entry `token` is
/// data[token * token_stride]. Where one array serves all heads their plans must be equal: give it once, with head 0.
template <class T>
void compact(T* data, std::size_t head, const plan& p, toward direction = toward::front, std::ptrdiff_t token_stride = 1) {
  detail::for_each_move(p, head, direction, [&](std::size_t from, std::size_t to, std::size_t n) {
    const auto at = [&](std::size_t i) -> T& { return data[static_cast<std::ptrdiff_t>(i) * token_stride]; };
    if (to < from)
      for (std::size_t i = 0; i < n; ++i) at(to + i) = at(from + i);
    else if (to > from)
      for (std::size_t i = n; i-- > 0;) at(to + i) = at(from + i);
  });
}

/// The side arrays of a layer: accumulated attention and positions. compress() does it; after a plan of plan_eviction() it is the
/// host's to do.
LAGKV_FN void compact(const extras& e, const plan& p, toward direction = toward::front);

namespace detail {

/// Whether all heads keep the same rows.
LAGKV_FN bool same_for_all_heads(const plan& p);

/// Whether the first key and the first value lie apart, so that no row moves twice: of latent rows (MLA) a host may show a part
/// as values, too. Plans may be made of such a layer. Rows that meet elsewhere are not found.
LAGKV_FN bool first_rows_apart(const layer& l);

/// Refuses a layer that it does not hold for.
LAGKV_FN status check_rows_apart(const layer& l);

/// Refuses layers of which two share their first row, of keys, values or a side array that moves. Rows that meet elsewhere are
/// not found. numbers: what messages call the layers; empty: their places in the list.
LAGKV_FN status check_rows_apart(std::span<const layer> layers, workspace& ws, std::span<const std::size_t> numbers = {});

}  // namespace detail

#if LAGKV_BODIES

namespace detail {

LAGKV_FN void move_row(const tensor& x, const tile& from, const tile& to, std::size_t token) {
  const auto unit = static_cast<std::ptrdiff_t>(size_of(x.type())), t = static_cast<std::ptrdiff_t>(token);
  const std::byte* source = from.data + t * from.token_stride * unit;
  std::byte* target = to.data + t * to.token_stride * unit;
  if (from.channel_stride == 1 && to.channel_stride == 1)
    std::memmove(target, source, x.row_bytes());
  else
    copy_strided(source, from.channel_stride, target, to.channel_stride, x.row_units(), size_of(x.type()));
}

LAGKV_FN void move_elements(const tensor& x, std::size_t head, std::size_t from, std::size_t to, std::size_t n) {
  if (from == to) return;
  const auto dense = [&](const tile& t) {
    return t.channel_stride == 1 && t.token_stride == static_cast<std::ptrdiff_t>(x.row_units());
  };
  if (to < from) {
    for (std::size_t done = 0; done < n;) {
      const tile source = x.at(head, {from + done, from + n}), target = x.at(head, {to + done, to + n});
      const std::size_t run = source.tokens < target.tokens ? source.tokens : target.tokens;
      if (dense(source) && dense(target))
        std::memmove(target.data, source.data, run * x.row_bytes());
      else
        for (std::size_t i = 0; i < run; ++i) move_row(x, source, target, i);
      done += run;
    }
    return;
  }
  const tile source = x.at(head, {from, from + n}), target = x.at(head, {to, to + n});
  if (source.tokens == n && target.tokens == n) {
    if (dense(source) && dense(target))
      std::memmove(target.data, source.data, n * x.row_bytes());
    else
      for (std::size_t i = n; i-- > 0;) move_row(x, source, target, i);
    return;
  }
  for (std::size_t i = n; i-- > 0;)  // runs start at their first token, so backwards it goes row by row
    move_row(x, x.at(head, {from + i, from + i + 1}), x.at(head, {to + i, to + i + 1}), 0);
}

LAGKV_FN void move_rows(const tensor& x, std::size_t head, std::size_t from, std::size_t to, std::size_t n) {
  move_elements(x, head, from, to, n);
  if (x.has_scale())
    if (const tensor scales = x.scales()) move_elements(scales, head, from, to, n);
}

LAGKV_FN void copy_row(std::byte* to, const std::byte* from, std::size_t n) {
  constexpr std::size_t line = 64;  // of a size that compilers know: no call, unlike a memcpy of n
  std::size_t i = 0;
  for (; i + line <= n; i += line) std::memcpy(to + i, from + i, line);
  if (i < n) std::memcpy(to + i, from + i, n - i);
}

LAGKV_FN void move_kept(const tensor& x, std::size_t head, std::span<const std::uint32_t> kept, token_range candidates,
                        token_range place, toward direction, bool cold) {
  const std::size_t n = kept.size();
  if (n == 0) return;
  const std::size_t ahead = cold ? 12 : n;  // rows asked for and not copied yet
  const std::size_t first = direction == toward::front ? place.begin : place.end - n;
  const tile source = x.at(head, candidates), target = x.at(head, {first, first + n});
  if (source.channel_stride != 1 || target.channel_stride != 1 || x.has_scale()) {  // rows in pieces
    for_each_move(kept, place, direction,
                  [&](std::size_t from, std::size_t to, std::size_t run) { move_rows(x, head, from, to, run); });
    return;
  }
  const std::size_t bytes = x.row_bytes();
  const auto move_each = [&](const auto& source_of, const auto& move) {
    if (direction == toward::front) {
      for (std::size_t i = 0; i < n; ++i) {
        if (i + ahead < n) fetch_row(source_of(i + ahead), bytes);
        move(i);
      }
    } else {
      for (std::size_t i = n; i-- > 0;) {
        if (i >= ahead) fetch_row(source_of(i - ahead), bytes);
        move(i);
      }
    }
  };
  if (source.tokens < candidates.size() || target.tokens < n) {  // in blocks
    const auto row = [&](std::size_t token) { return x.at(head, {token, token + 1}); };
    return move_each([&](std::size_t i) { return row(kept[i]).data; },
                     [&](std::size_t i) {
                       if (kept[i] != first + i) move_row(x, row(kept[i]), row(first + i), 0);
                     });
  }
  const auto unit = static_cast<std::ptrdiff_t>(size_of(x.type()));
  const std::ptrdiff_t step = source.token_stride * unit, target_step = target.token_stride * unit;  // of runs that may differ
  const auto begin = static_cast<std::ptrdiff_t>(candidates.begin);
  const auto from = [&](std::size_t i) { return source.data + (static_cast<std::ptrdiff_t>(kept[i]) - begin) * step; };
  move_each(from, [&](std::size_t i) {
    std::byte* to = target.data + static_cast<std::ptrdiff_t>(i) * target_step;
    if (to != from(i)) copy_row(to, from(i), bytes);
  });
}

}  // namespace detail

LAGKV_FN void compact(const tensor& x, std::size_t head, const plan& p, toward direction) {
  if (p.empty()) return;
  detail::move_kept(x, head, p.of(head), p.candidates, p.candidates, direction, true);
  if (direction == toward::front)
    detail::move_window(p, head,
                        [&](std::size_t from, std::size_t to, std::size_t n) { detail::move_rows(x, head, from, to, n); });
}

LAGKV_FN void compact(const layer& l, const plan& p, toward direction) {
  compact(l.keys, p, direction);
  if (l.values) compact(l.values, p, direction);
}

namespace detail {

LAGKV_FN bool same_for_all_heads(const plan& p) {
  bool same = true;
  for (std::size_t head = 1; head < p.heads() && same; ++head) {
    const auto first = p.of(0), other = p.of(head);
    same = first.size() == other.size();
    for (std::size_t i = 0; i < first.size() && same; ++i) same = first[i] == other[i];
  }
  return same;
}

LAGKV_FN bool first_rows_apart(const layer& l) {
  if (!l.values || l.tokens == 0) return true;
  const auto apart = [](const tensor& x, const tensor& from) {  // whether x begins in no unit of the first row of `from`
    const auto first = reinterpret_cast<std::uintptr_t>(x.at(0, {0, 1}).data);
    const tile row = from.at(0, {0, 1});
    const std::size_t unit = size_of(from.type());
    const std::ptrdiff_t step = row.channel_stride * static_cast<std::ptrdiff_t>(unit);
    for (std::size_t u = 0; u < from.row_units(); ++u)
      if (first - reinterpret_cast<std::uintptr_t>(row.data + static_cast<std::ptrdiff_t>(u) * step) < unit) return false;
    return true;
  };
  return apart(l.values, l.keys) && apart(l.keys, l.values);
}

LAGKV_FN status check_rows_apart(const layer& l) {
  if (first_rows_apart(l)) return {};
  return refuse({"values: lie in the rows of the keys, which would move twice: latent rows (MLA) are keys without values"});
}

LAGKV_FN status check_rows_apart(std::span<const layer> layers, workspace& ws, std::span<const std::size_t> numbers) {
  constexpr const char* arrays[] = {"keys", "values", "rows of accumulated attention", "positions"};
  constexpr std::size_t n = std::size(arrays);
  const auto number = [&](std::size_t i) { return numbers.empty() ? i : numbers[i]; };
  const auto row = [](const tensor& x) -> const void* { return x ? x.at(0, {0, 1}).data : nullptr; };
  const workspace::frame scratch(ws);
  const void** first = ws.take<const void*>(n * layers.size());  // of each array of each layer; null: there is none
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const layer& l = layers[i];
    const bool any = l.tokens != 0, beside = any && l.extra != nullptr;
    const void** own = first + n * i;
    own[0] = any ? row(l.keys) : nullptr, own[1] = any ? row(l.values) : nullptr;
    own[2] = beside ? l.extra->accumulated_attention.data : nullptr, own[3] = beside ? l.extra->positions.data : nullptr;
    for (std::size_t a = 0; a < n; ++a)
      for (std::size_t j = 0; own[a] != nullptr && j < n * i; ++j)
        if (own[a] == first[j])
          return refuse({"layer ", number(i), ": its ", arrays[a], " lie where the ", arrays[j % n], " of layer ", number(j / n),
                         " do, and would move twice: nothing moved"});
  }
  return {};
}

}  // namespace detail

LAGKV_FN void compact(const extras& e, const plan& p, toward direction) {
  const auto follow = [&](const auto& side) {
    if (!side) return;
    assert((side.head_stride != 0 || detail::same_for_all_heads(p)) && "head_stride=0, but heads keep different tokens");
    const std::size_t arrays = side.head_stride == 0 ? 1 : p.heads();
    for (std::size_t head = 0; head < arrays; ++head) compact(side.of(head), head, p, direction);
  };
  follow(e.accumulated_attention);
  follow(e.positions);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
