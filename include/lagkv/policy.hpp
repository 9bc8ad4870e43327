// Part of lagkv (MIT). The heart: a policy is retention x scorer x selector; judge() plans, step() plans and moves.
#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <string>

#include <lagkv/callable.hpp>
#include <lagkv/compact.hpp>
#include <lagkv/core.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

/// out[i] = how much token judged.begin + i of this head matters; higher stays. Reads the judged rows and those behind them
/// (rows before them may have moved), writes nothing but `out`.
using scorer = callable<void(const layer&, std::size_t head, token_range judged, std::span<float> out, workspace&)>;

/// Changes the scores of one head's judged range.
using transform = callable<void(std::span<float> scores, const due&, workspace&)>;

/// scores [heads][judged] -> the rows of a plan that has been reset for them.
using selector = callable<void(std::span<const float> scores, std::size_t heads, const due&, plan&, workspace&)>;

/// What a policy reads beside the keys.
struct needs {
  bool values = false;
};

/// A method, as one value: copy it freely, share it among threads. make_lagkv() and its like in recipes.hpp build the
/// named ones, parse() builds them from a string.
struct policy {
  retention retain;
  scorer score;      ///< not called where nothing or everything is kept
  transform adjust;  ///< optional
  selector select;   ///< optional; default top_k
  lagkv::needs needs;
};

/// Whether `p` can work on this layer. Call it where a cache is set up; afterwards step() cannot fail.
inline status check(const policy& p, const layer& l) {
  if (status s = check(l); !s) return s;
  const retention& r = p.retain;
  if (!p.score && !r.oldest_first) return error{"policy: has no scorer"};
  if (r.lag == 0 && r.kind == budget::share_of_partition && !r.oldest_first)
    return error{"lag=0: must be 1 or more where each partition keeps a share"};
  if (p.needs.values && !l.values) return error{"values: the policy reads them, the layer has none"};
  if (l.tokens > std::numeric_limits<std::uint32_t>::max())
    return error{"tokens=" + std::to_string(l.tokens) + ": must be at most 4294967295"};
  return {};
}

namespace detail {

/// Judges each partition of each head by itself, and calls done(head, partition) while it is in cache. Partitions go by
/// ascending for toward::front, descending for toward::window, as the moves need.
template <class Done>
void judge_partitions(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, toward direction,
                      const Done& done) {
  const std::size_t count = d.judged.size() / d.partition;
  const std::span<float> scores{ws.floats(workspace::scores, d.partition), d.partition};
  for (std::size_t head = 0; head < l.keys.heads(); ++head)
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t index = direction == toward::front ? i : count - 1 - i;
      const std::size_t begin = d.judged.begin + index * d.partition;
      p.score(l, head, {begin, begin + d.partition}, scores, ws);
      top_k::pick(scores.data(), d.partition, d.keep_each, begin, out.row(head) + index * d.keep_each, ws);
      done(head, index);
    }
}

/// Where nothing stays, or everything, no score is needed.
inline bool needs_scores(const due& d) { return d.keep != 0 && d.keep != d.judged.size(); }

inline bool by_partition(const policy& p, const due& d) { return d.partition != 0 && !p.adjust && !p.select; }

inline void judge_whole(const policy& p, const layer& l, const due& d, plan& out, workspace& ws) {
  const std::size_t n = d.judged.size(), heads = l.keys.heads();
  const std::span<float> scores{ws.floats(workspace::scores, heads * n), heads * n};
  for (std::size_t head = 0; head < heads; ++head) {
    p.score(l, head, d.judged, scores.subspan(head * n, n), ws);
    if (p.adjust) p.adjust(scores.subspan(head * n, n), d, ws);
  }
  if (p.select)
    p.select(scores, heads, d, out, ws);
  else
    top_k{}(scores, heads, d, out, ws);
}

/// Fills in the plan of what is due.
inline void judge_due(const policy& p, const layer& l, const due& d, plan& out, workspace& ws) {
  out.reset(d.judged, l.tokens, l.keys.heads(), d.keep);
  if (!needs_scores(d)) {
    for (std::size_t head = 0; head < out.heads(); ++head)
      for (std::size_t i = 0; i < d.keep; ++i) out.row(head)[i] = static_cast<std::uint32_t>(d.judged.begin + i);
  } else if (by_partition(p, d)) {
    judge_partitions(p, l, d, out, ws, toward::front, [](std::size_t, std::size_t) {});
  } else {
    judge_whole(p, l, d, out, ws);
  }
}

/// Moves the kept rows of one partition next to those of the partitions before (or behind) it.
inline void move_partition(const tensor& x, std::size_t head, std::size_t index, std::span<const std::uint32_t> kept,
                           const due& d, toward direction) {
  const std::size_t behind = d.keep - (index + 1) * d.keep_each;
  const token_range target{d.judged.begin + index * d.keep_each, d.judged.end - behind};
  for_each_move(kept, target, direction,
                [&](std::size_t from, std::size_t to, std::size_t n) { move_rows(x, head, from, to, n); });
}

/// Judges by partition and moves each while it is in cache.
inline void judge_and_move(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, toward direction) {
  out.reset(d.judged, l.tokens, l.keys.heads(), d.keep);
  const std::size_t count = d.judged.size() / d.partition;
  const auto move = [&](std::size_t head, std::size_t index) {
    const std::span<const std::uint32_t> kept(out.row(head) + index * d.keep_each, d.keep_each);
    move_partition(l.keys, head, index, kept, d, direction);
    if (l.values) move_partition(l.values, head, index, kept, d, direction);
  };
  judge_partitions(p, l, d, out, ws, direction, [&](std::size_t head, std::size_t index) {
    if (direction == toward::front) return move(head, index);
    // Rows that move up may land in their own partition, the reference of the one before, which is judged first.
    if (index + 1 < count) move(head, index + 1);
    if (index == 0) move(head, 0);
  });
  if (direction == toward::window) return;
  for (std::size_t head = 0; head < l.keys.heads(); ++head) {
    const auto follow = [&](const tensor& x) {
      move_window(out, head, [&](std::size_t from, std::size_t to, std::size_t n) { move_rows(x, head, from, to, n); });
    };
    follow(l.keys);
    if (l.values) follow(l.values);
  }
}

}  // namespace detail

/// Plans without touching the cache. The plan is the workspace's and holds until its next use; it is empty where nothing is
/// due. For hosts that move memory themselves; tell the cursor with advance().
inline const plan& judge(const policy& p, layer l, cursor at, workspace& ws) {  // by value: g++ 13 warns of dangling else
  plan& out = ws.decision;
  const due d = p.retain.due(at, l.tokens);
  if (d.empty()) {
    out.clear(l.tokens);
    return out;
  }
  detail::judge_due(p, l, d, out, ws);
  return out;
}

/// Moves the cursor past a plan that has been applied.
inline void advance(cursor& at, const plan& applied) {
  at.tokens = applied.tokens_after();
  at.dropped += applied.tokens_before - at.tokens;
  if (!applied.empty()) at.judged = applied.judged.begin + applied.of(0).size();
  if (at.judged > at.tokens) at.judged = at.tokens;  // the host took tokens back
}

/// Judges what is due, moves the kept rows, advances the cursor; returns the rows now in use. Prefill, chunked prefill and
/// decode are this one call: make it after attention has used the tokens appended (use, then compress). Most calls find
/// nothing due and return after a few comparisons. Never fails, throws or locks; allocates only to grow the workspace.
inline std::size_t step(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction = toward::front) {
  const due d = p.retain.due(at, l.tokens);
  plan& out = ws.decision;
  if (d.empty()) {
    out.clear(l.tokens);
    advance(at, out);
    return at.tokens;
  }
  if (detail::by_partition(p, d) && detail::needs_scores(d)) {
    detail::judge_and_move(p, l, d, out, ws, direction);
  } else {
    detail::judge_due(p, l, d, out, ws);
    compact(l, out, direction);
  }
  advance(at, out);
  return at.tokens;
}

}  // namespace lagkv
