// Part of lagkv (MIT). The heart: a policy is retention x scorer x selector; judge() plans, step() plans and moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <lagkv/compact.hpp>
#include <lagkv/core.hpp>
#include <lagkv/detail/function_ref.hpp>
#include <lagkv/detail/message.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/layer.hpp>
#include <lagkv/method.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/score/moments.hpp>
#include <lagkv/score/rank.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/unrotate.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How several scorers decide together, each by its ranks within a partition (or the judged range of a head).
enum class fusion : std::uint8_t {
  sum,  ///< the weighted sum of the ranks: a token must please all
  best  ///< the best of the ranks: a token must please one; each scorer has a share of the budget, in proportion to its weight
};

/// A method, as one value: copy it freely, share it among threads. make_policy() in recipes.hpp builds one from a scorer,
/// parse() from a string.
struct policy {
  static constexpr std::size_t most_fused = 3;

  retention retain{};
  scorer score{};       ///< not called where nothing or everything is kept
  transforms adjust{};  ///< optional
  selector select{};    ///< optional; default top_k
  lagkv::needs needs{};
  key_view unrotated = nullptr;  ///< unrotated_keys: `score` is shown keys as they were before RoPE
  /// The selector may keep different numbers of rows a head. Such plans are for judge() and compact(): see check().
  bool ragged = false;
  /// Further scorers, fused with `score`.
  part fused[most_fused];
  std::size_t fused_count = 0;
  double weight = 1;  ///< of `score` in the fusion
  lagkv::fusion by = lagkv::fusion::sum;
};

/// Whether `p` can work on this layer and finds what it needs. Call it where a cache is set up; afterwards step() cannot
/// fail. Hosts that hold heads of different lengths say so by `any_length`; all others have policies refused that need it.
LAGKV_EDGE status check(const policy& p, const layer& l, bool any_length = false);

namespace detail {

/// Where what a policy needs is not there at this call, nothing is judged.
LAGKV_FN bool met(const needs& n, const layer& l);

/// `d`, which the policy's retention says is due, with the positions of this layer and its protected rows counted; nothing where
/// what the policy needs is not there.
LAGKV_FN due due_of(const policy& p, const layer& l, due d);

/// Protected rows go before all others.
LAGKV_FN void spare(std::span<float> scores, std::size_t heads, const due& d);

/// Partitions that are scored in one call, and moved after it: enough for scorers that read each row once to gain by it, few
/// enough to be still in cache. Blocks of them count from the first partition.
LAGKV_FN std::size_t partitions_together(const layer& l, const due& d);

/// A layer as a scorer is shown it.
class shown {
 public:
  shown(const layer& l, const row_positions& positions, key_view keys, workspace& ws) : seen_(&l) {
    if (keys == nullptr) return;
    rotated_ = {l.extra->rope, positions};
    turned_ = l;
    turned_.keys = keys(l, rotated_, ws);
    seen_ = &turned_;
  }
  shown(const shown&) = delete;
  shown& operator=(const shown&) = delete;

  const layer& operator*() const { return *seen_; }

 private:
  const layer* seen_;
  rotated rotated_{};
  layer turned_{};
};

/// Judges the partitions of one head, each by itself, a block of them at a time, and calls done(first, end) with the
/// partitions of a block. Blocks go by ascending for toward::front, descending for toward::window, as the moves need.
LAGKV_FN void judge_partitions(const policy& p, const layer& l, const due& d, std::size_t head, plan& out, workspace& ws,
                               toward direction, function_ref<void(std::size_t first, std::size_t end)> done);

/// Where nothing stays, or everything, no score is needed.
inline bool needs_scores(const due& d) { return d.keep != 0 && d.keep != d.judged.size(); }

/// Whether each partition can be judged and moved by itself.
inline bool by_partition(const policy& p, const due& d) {
  return d.partition != 0 && !p.adjust && !p.select && p.fused_count == 0 && !p.needs.all_rows && d.protect.empty();
}

/// What is done for a head, with the workspace of whoever does it.
using head_work = function_ref<void(std::size_t head, workspace&)>;

/// Calls the work for each head below a number of them.
using each_head_of = function_ref<void(std::size_t heads, head_work)>;

/// Where no host gives threads: all heads one after the other.
struct one_by_one {
  workspace& ws;

  void operator()(std::size_t heads, head_work work) const {
    for (std::size_t head = 0; head < heads; ++head) work(head, ws);
  }
};

LAGKV_FN void score_all(const scorer& score, key_view unrotated, const transforms& adjust, const layer& l, const due& d,
                        std::span<float> out, workspace& ws, each_head_of each_head);

/// Ranks, 0 to below 1, as one scorer of a fusion has them. For the best: minus the share of the budget at which a token
/// would come in, were it this scorer's alone; a scorer without weight brings in none.
LAGKV_FN void weigh(std::span<float> ranks, fusion by, double weight);

LAGKV_FN std::span<float> score(const policy& p, const layer& l, const due& d, workspace& ws, each_head_of each_head);

}  // namespace detail

/// The scores of what is due, [heads][judged], as the selector gets them: transformed, and fused where there are several
/// scorers. They are the workspace's and hold until its next use. Does not look at protected rows, nor whether scores are
/// needed. A policy without a scorer gives zeros.
inline std::span<float> score(const policy& p, const layer& l, const due& d, workspace& ws) {
  return detail::score(p, l, d, ws, detail::one_by_one{ws});
}

/// Moves the cursor past a plan that has been applied, as `head` has it.
LAGKV_FN void advance(cursor& at, const plan& applied, std::size_t head);

/// The same for all heads; where they differ, for the one that keeps most.
LAGKV_FN void advance(cursor& at, const plan& applied);

namespace detail {

LAGKV_FN void judge_whole(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, each_head_of each_head);

/// How any of the scorers is shown keys, where one asks for it.
LAGKV_FN key_view view_of_keys(const policy& p);

/// Fills in the plan of what is due.
LAGKV_FN void judge_due(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, each_head_of each_head);

/// Moves the kept rows of one partition next to those of the partitions before (or behind) it.
LAGKV_FN void move_partition(const tensor& x, std::size_t head, std::size_t index, std::span<const std::uint32_t> kept,
                             const due& d, toward direction);

/// Judges one head by partition and moves the kept rows while they are in cache.
LAGKV_FN void judge_and_move(const policy& p, const layer& l, const due& d, std::size_t head, plan& out, workspace& ws,
                             toward direction);

LAGKV_FN std::size_t step(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction, each_head_of each_head);

}  // namespace detail

/// Plans without touching the cache. The plan is the workspace's and holds until its next use; it is empty where nothing is
/// due. For hosts that move memory themselves; tell the cursor with advance().
LAGKV_FN const plan& judge(const policy& p, layer l, cursor at, workspace& ws);

/// Adds the last n rows, but the sinks, to extras.moments, as `p` reads keys: call it before step() with the tokens appended
/// since the last time. Nothing where the layer has no moments. Tokens that the host takes back stay counted.
LAGKV_FN void observe_keys(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws);

/// Judges what is due, moves the kept rows, advances the cursor; returns the rows now in use. Prefill, chunked prefill and
/// decode are this one call: make it after attention has used the tokens appended (use, then compress). Most calls find
/// nothing due and return after a few comparisons. Never fails, throws or locks; allocates only to grow the workspace.
/// extras.mass and extras.positions move with the rows.
inline std::size_t step(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction = toward::front) {
  return detail::step(p, l, at, ws, direction, detail::one_by_one{ws});
}

/// `p` for one layer of `layers`: where its budgets fall from layer to layer, this one's. Hosts whose layers must hold equal
/// numbers of tokens refuse policies whose retain.slope.used().
LAGKV_FN policy for_layer(policy p, std::size_t layer, std::size_t layers);

/// `p` with a budget in bytes for `layers` layers like `l` made a number of tokens; other policies as they are.
LAGKV_EDGE result<policy> fit(policy p, const layer& l, std::size_t layers);

#if LAGKV_BODIES

LAGKV_EDGE status check(const policy& p, const layer& l, bool any_length) {
  if (status s = check(l); !s) return s;
  const retention& r = p.retain;
  const extras* e = l.extra;
  if (!p.score && !r.oldest_first) return error{"policy: has no scorer"};
  if (r.lag == 0 && r.kind == budget::share_of_partition && !r.oldest_first)
    return error{"lag=0: must be 1 or more where each partition keeps a share"};
  if (r.kind == budget::bytes) return error{"budget: is in bytes: make it a number of tokens by fit()"};
  if (p.ragged && !any_length) return error{"policy: keeps different numbers of tokens a head, which this cache cannot hold"};
  if (p.needs.values && !l.values) return error{"values: the policy reads them, the layer has none"};
  if (p.needs.queries > 0 && !(e != nullptr && (e->queries || e->weights)))
    return detail::refuse({"queries: the policy reads those of the last ", p.needs.queries,
                           " tokens, or their attention weights; the layer has none (layer.extra)"});
  if (p.needs.mass && !(e != nullptr && (e->mass || e->queries || e->weights)))
    return error{
        "mass: the policy reads the attention of all tokens (or their queries, or weights); the layer has none "
        "(layer.extra)"};
  if (p.needs.statistics && !(e != nullptr && (e->query_mean || e->queries)))
    return error{"query_mean: the policy reads statistics of queries, or queries; the layer has none (layer.extra)"};
  if (p.needs.calibrated && !(e != nullptr && e->query_mean))
    return error{"query_mean: the policy reads statistics of the model's queries; the layer has none (layer.extra)"};
  if (p.needs.rope) {
    if (e == nullptr || e->rope == nullptr)
      return error{
          "rope: the policy judges keys without their positions; the layer does not tell which embedding they carry "
          "(layer.extra)"};
    if (status s = check(*e->rope, l.keys.channels()); !s) return detail::refuse({"rope: ", s.message()});
    if ((r.again || p.needs.all_rows) && !e->positions)
      return error{"rope: the policy reads rows that have been judged before, so it needs extras.positions to turn them back"};
  }
  if (e != nullptr && !e->protect.empty() && r.again && !e->positions)
    return error{"protect: the policy judges rows again, so it needs extras.positions to know them"};
  if (l.tokens > (std::numeric_limits<std::uint32_t>::max)())
    return detail::refuse({"tokens=", l.tokens, ": must be at most 4294967295"});
  return {};
}

namespace detail {

LAGKV_FN bool met(const needs& n, const layer& l) {
  if (n.queries == 0 && !n.mass && !n.statistics) return true;
  const extras* e = l.extra;
  if (e == nullptr) return false;
  const std::size_t offered = e->weights && e->weights.channels() < l.tokens ? 0 : e->offered();
  return (n.queries == 0 || offered > 0) && (!n.mass || e->mass || offered >= l.tokens) &&
         (!n.statistics || e->query_mean || (e->queries && offered > 0)) && (!n.calibrated || e->query_mean);
}

LAGKV_FN due due_of(const policy& p, const layer& l, due d) {
  if (d.empty()) return d;
  if (!met(p.needs, l)) return {};
  if (l.extra == nullptr) return d;
  d.positions.known = l.extra->positions;
  if (l.extra->protect.empty()) return d;
  d.protect = l.extra->protect;
  if (p.retain.oldest_first) {  // as many others go in place of those that must stay
    for (std::size_t stay = d.count_spared(0, d.judged); stay > 0 && d.judged.end < l.tokens; ++d.judged.end)
      if (!d.spares(0, d.judged.end)) --stay;
  }
  const std::size_t part = d.part();
  std::size_t keep = 0;  // protected positions are in all heads: the counts are those of the first
  for (std::size_t begin = d.judged.begin; begin < d.judged.end; begin += part) keep += d.keep_of(0, {begin, begin + part});
  d.keep = keep;
  return d;
}

LAGKV_FN void spare(std::span<float> scores, std::size_t heads, const due& d) {
  const std::size_t n = d.judged.size();
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t i = 0; i < n; ++i) {
      float& score = scores[head * n + i];
      if (d.spares(head, d.judged.begin + i))
        score = infinity();
      else if (score > (std::numeric_limits<float>::max)())
        score = (std::numeric_limits<float>::max)();
    }
}

LAGKV_FN std::size_t partitions_together(const layer& l, const due& d) {
  constexpr std::size_t least = 8, bytes = std::size_t{1} << 21;
  const std::size_t partition = d.partition * (l.keys.row_bytes() + (l.values ? l.values.row_bytes() : 0));
  const std::size_t fit = bytes / partition;
  return fit > least ? fit : least;
}

LAGKV_FN void judge_partitions(const policy& p, const layer& l, const due& d, std::size_t head, plan& out, workspace& ws,
                               toward direction, function_ref<void(std::size_t first, std::size_t end)> done) {
  const std::size_t count = d.judged.size() / d.partition, together = partitions_together(l, d);
  const std::size_t blocks = (count + together - 1) / together;
  const shown seen(l, d.positions, p.unrotated, ws);
  for (std::size_t i = 0; i < blocks; ++i) {
    const std::size_t first = (direction == toward::front ? i : blocks - 1 - i) * together;
    const std::size_t end = first + together < count ? first + together : count;
    const token_range rows{d.judged.begin + first * d.partition, d.judged.begin + end * d.partition};
    const std::span<float> scores{ws.floats(workspace::scores, rows.size()), rows.size()};
    p.score(*seen, head, rows, scores, ws);
    for (std::size_t j = first; j < end; ++j)
      top_k::pick(scores.data() + (j - first) * d.partition, d.partition, d.keep_each, d.judged.begin + j * d.partition,
                  out.row(head) + j * d.keep_each, ws);
    done(first, end);
  }
}

LAGKV_FN void score_all(const scorer& score, key_view unrotated, const transforms& adjust, const layer& l, const due& d,
                        std::span<float> out, workspace& ws, each_head_of each_head) {
  const std::size_t n = d.judged.size(), heads = l.keys.heads();
  each_head(heads, [&](std::size_t head, workspace& own_ws) {
    const std::span<float> own = out.subspan(head * n, n);
    if (score)
      score(*shown(l, d.positions, unrotated, own_ws), head, d.judged, own, own_ws);
    else
      for (float& s : own) s = 0;
  });
  adjust(out, heads, d, ws);
}

LAGKV_FN void weigh(std::span<float> ranks, fusion by, double weight) {
  const auto w = static_cast<float>(weight);
  for (float& r : ranks) r = by == fusion::sum ? w * r : (r - 1) / w;
}

LAGKV_FN std::span<float> score(const policy& p, const layer& l, const due& d, workspace& ws, each_head_of each_head) {
  const std::size_t heads = l.keys.heads(), all = heads * d.judged.size();
  const std::span<float> scores{ws.floats(workspace::scores, all), all};
  score_all(p.score, p.unrotated, p.adjust, l, d, scores, ws, each_head);
  if (p.fused_count == 0) return scores;
  rank_each(scores, heads, d, ws);
  weigh(scores, p.by, p.weight);
  for (std::size_t i = 0; i < p.fused_count; ++i) {
    const std::span<float> more{ws.floats(workspace::fused, all), all};
    score_all(p.fused[i].score, p.fused[i].unrotated, p.fused[i].adjust, l, d, more, ws, each_head);
    rank_each(more, heads, d, ws);
    weigh(more, p.by, p.fused[i].weight);
    for (std::size_t j = 0; j < all; ++j)
      scores[j] = p.by == fusion::sum ? scores[j] + more[j] : scores[j] > more[j] ? scores[j] : more[j];
  }
  return scores;
}

}  // namespace detail

LAGKV_FN void advance(cursor& at, const plan& applied, std::size_t head) {
  at.tokens = applied.tokens_after(head);
  at.dropped += applied.tokens_before - at.tokens;
  if (!applied.empty()) at.judged = applied.judged.begin + applied.of(head).size();
  if (at.judged > at.tokens) at.judged = at.tokens;  // the host took tokens back
}

LAGKV_FN void advance(cursor& at, const plan& applied) {
  std::size_t longest = 0;
  for (std::size_t head = 1; head < applied.heads(); ++head)
    if (applied.of(head).size() > applied.of(longest).size()) longest = head;
  advance(at, applied, longest);
}

namespace detail {

LAGKV_FN void judge_whole(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, each_head_of each_head) {
  const std::size_t heads = l.keys.heads();
  const std::span<float> scores = score(p, l, d, ws, each_head);
  if (!d.protect.empty()) spare(scores, heads, d);
  if (p.select)
    p.select(scores, heads, d, out, ws);
  else
    top_k{}(scores, heads, d, out, ws);
}

LAGKV_FN key_view view_of_keys(const policy& p) {
  key_view view = p.unrotated;
  for (std::size_t i = 0; i < p.fused_count && view == nullptr; ++i) view = p.fused[i].unrotated;
  return view;
}

LAGKV_FN void judge_due(const policy& p, const layer& l, const due& d, plan& out, workspace& ws, each_head_of each_head) {
  out.reset(d.judged, l.tokens, l.keys.heads(), d.keep);
  if (!needs_scores(d)) {
    for (std::size_t head = 0; head < out.heads(); ++head)
      for (std::size_t i = 0; i < d.keep; ++i) out.row(head)[i] = static_cast<std::uint32_t>(d.judged.begin + i);
  } else if (by_partition(p, d)) {
    each_head(out.heads(), [&](std::size_t head, workspace& own_ws) {
      judge_partitions(p, l, d, head, out, own_ws, toward::front, [](std::size_t, std::size_t) {});
    });
  } else {
    judge_whole(p, l, d, out, ws, each_head);
  }
}

LAGKV_FN void move_partition(const tensor& x, std::size_t head, std::size_t index, std::span<const std::uint32_t> kept,
                             const due& d, toward direction) {
  const std::size_t behind = d.keep - (index + 1) * d.keep_each;
  const std::size_t begin = d.judged.begin + index * d.partition;
  const token_range place{d.judged.begin + index * d.keep_each, d.judged.end - behind};
  move_kept(x, head, kept, {begin, begin + d.partition}, place, direction, false);
}

LAGKV_FN void judge_and_move(const policy& p, const layer& l, const due& d, std::size_t head, plan& out, workspace& ws,
                             toward direction) {
  const std::size_t count = d.judged.size() / d.partition;
  const auto move = [&](std::size_t index) {
    const std::span<const std::uint32_t> kept(out.row(head) + index * d.keep_each, d.keep_each);
    move_partition(l.keys, head, index, kept, d, direction);
    if (l.values) move_partition(l.values, head, index, kept, d, direction);
  };
  std::size_t moved = count;
  judge_partitions(p, l, d, head, out, ws, direction, [&](std::size_t first, std::size_t end) {
    if (direction == toward::front) {
      for (std::size_t i = first; i < end; ++i) move(i);
      return;
    }
    // Rows that move up may land in their own partition, the reference of the one before: the first one of a block waits
    // until the block before it has been judged.
    for (const std::size_t stay = first == 0 ? 0 : first + 1; moved > stay;) move(--moved);
  });
  if (direction == toward::window) return;
  const auto follow = [&](const tensor& x) {
    move_window(out, head, [&](std::size_t from, std::size_t to, std::size_t n) { move_rows(x, head, from, to, n); });
  };
  follow(l.keys);
  if (l.values) follow(l.values);
}

LAGKV_FN std::size_t step(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction, each_head_of each_head) {
  plan& out = ws.decision;
  const auto nothing = [&] {
    out.clear(l.tokens);
    advance(at, out, 0);
    return at.tokens;
  };
  const due now = p.retain.due(at, l.tokens);
  if (now.empty()) return nothing();  // most calls end here
  const due d = due_of(p, l, now);
  if (d.empty()) return nothing();
  if (by_partition(p, d) && needs_scores(d)) {
    out.reset(d.judged, l.tokens, l.keys.heads(), d.keep);
    each_head(out.heads(), [&](std::size_t head, workspace& own_ws) { judge_and_move(p, l, d, head, out, own_ws, direction); });
  } else {
    judge_due(p, l, d, out, ws, each_head);
    each_head(out.heads(), [&](std::size_t head, workspace&) {
      compact(l.keys, head, out, direction);
      if (l.values) compact(l.values, head, out, direction);
    });
  }
  if (l.extra != nullptr) compact(*l.extra, out, direction);
  advance(at, out);
  return at.tokens;
}

}  // namespace detail

LAGKV_FN void observe_keys(const policy& p, const layer& l, const cursor& at, std::size_t n, workspace& ws) {
  if (l.extra == nullptr || !l.extra->moments || n == 0) return;
  const detail::shown seen(l, {l.extra->positions, at.dropped}, detail::view_of_keys(p), ws);
  const std::size_t last = n < l.tokens ? l.tokens - n : 0, begin = last > p.retain.sink ? last : p.retain.sink;
  for (std::size_t head = 0; head < l.keys.heads() && begin < l.tokens; ++head)
    detail::add_moments((*seen).keys, head, {begin, l.tokens}, 1, l.extra->moments.of(head, l.keys.channels()), ws);
}

LAGKV_FN policy for_layer(policy p, std::size_t layer, std::size_t layers) {
  p.retain.slope.layer = layer;
  p.retain.slope.layers = layers;
  return p;
}

LAGKV_EDGE result<policy> fit(policy p, const layer& l, std::size_t layers) {
  if (p.retain.kind != budget::bytes) return p;
  const std::size_t token = layers * l.keys.heads() * (l.keys.row_bytes() + (l.values ? l.values.row_bytes() : 0));
  const auto capacity = static_cast<std::size_t>(token == 0 ? 0 : p.retain.amount / static_cast<double>(token));
  const std::size_t least = p.retain.sink + p.retain.recent + 1;
  if (capacity < least)
    return detail::refuse(
        {"budget: holds ", capacity, " tokens of ", token, " bytes: must hold ", least, " or more (sink + recent + 1)"});
  p.retain.kind = budget::capacity;
  p.retain.amount = static_cast<double>(capacity);
  return p;
}

LAGKV_FN const plan& judge(const policy& p, layer l, cursor at, workspace& ws) {  // by value: g++ 13 warns of dangling else
  plan& out = ws.decision;
  const due d = detail::due_of(p, l, p.retain.due(at, l.tokens));
  if (d.empty()) {
    out.clear(l.tokens);
    return out;
  }
  detail::judge_due(p, l, d, out, ws, detail::one_by_one{ws});
  return out;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
