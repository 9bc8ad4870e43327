// Part of lagkv (MIT). The one loop: what is due -> scores -> plan -> moves. For prefill, chunked prefill and decode alike.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <lagkv/cache/cursor.hpp>
#include <lagkv/cache/layer.hpp>
#include <lagkv/detail/function_ref.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/compact.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/policy/method.hpp>
#include <lagkv/policy/policy.hpp>
#include <lagkv/result.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/transform/rank.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

// ---- one layer --------------------------------------------------------------------------------------------------------

/// Drops what is due, moves the rows that stay, advances the cursor; returns the rows now in use. Call it after attention has
/// used the tokens appended (use, then compress). Most calls find nothing due and return after a few comparisons.
///
/// Fails only if the workspace cannot grow (std::bad_alloc), before the first row moves: cache, cursor and side arrays are then
/// as they were. Takes no lock. Side arrays of the extras move with the rows. check() must have accepted the policy for such
/// layers; a call at which something that it reads is missing drops nothing.
std::size_t compress(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction = toward::front);

/// The plan of the last call of compress() or plan_eviction() with this workspace; after a call for all layers, the last layer's.
/// Empty if nothing was due, or the call was refused or failed.
inline const plan& last_plan(workspace& ws) { return ws.kept<plan>(); }

/// Plans without touching the cache, for hosts that move memory themselves and then call advance(). The plan belongs to the
/// workspace and holds until its next use; it is empty if nothing is due.
[[nodiscard]] const plan& plan_eviction(const policy& p, layer l, cursor at, workspace& ws);

/// Moves the cursor past a plan that has been applied, by the rows that `head` keeps.
LAGKV_FN void advance(cursor& at, const plan& applied, std::size_t head);

/// The same for all heads; if they keep different numbers of rows, by the head that keeps most.
LAGKV_FN void advance(cursor& at, const plan& applied);

/// The scores [heads][candidates] as the selector gets them: transformed, and fused if there are several scorers. They belong
/// to the workspace and hold until its next use. Protected rows have their own scores. A policy without a scorer gives zeros.
/// The rows of `c` must be whole groups: its partitions, or all of them at once. Positions are those of `c`, else those that
/// the layer offers, else row + c.positions.dropped.
[[nodiscard]] LAGKV_FN std::span<float> score(const policy& p, const layer& l, const candidates& c, workspace& ws);

// ---- all layers -------------------------------------------------------------------------------------------------------

/// Called with each layer's place in the list and its plan.
using each_plan = detail::function_ref<void(std::size_t layer, const plan& applied)>;

struct compress_options {
  toward direction = toward::front;
  /// All heads of all layers must hold the same number of rows: what would leave different numbers is refused.
  bool equal_counts = true;
  /// Called for each layer before the first row of any layer moves, if something is due: it may change rows that stay
  /// (attention/refit_values.hpp), and copy rows that are shared. Like `moved` it is a reference: the callable must outlive the
  /// call of compress().
  each_plan planned{};
  each_plan moved{};  ///< called for each layer after its rows have moved; with an empty plan where nothing was due
};

/// compress() for all layers of a sequence, layers[i] with cursors[i]: all or nothing. What all layers drop is decided before the
/// first row moves; if it is refused (different counts in heads or layers, another number of cursors, a budget in bytes,
/// something that the policy reads missing where a layer is due, layers that share their first row or a side array) cache and
/// cursors are as they were. The rows now in use are cursors[i].tokens. Budgets that fall from layer to layer are each layer's
/// own.
///
/// An allocation that fails leaves cache, cursors and side arrays as they were, too.
///
/// Cost: what is due is asked twice a layer. The workspace holds the plans of all layers until the first row moves (4 bytes for
/// each candidate that stays), unless each partition is planned by itself from keys and values as they are, all layers are alike,
/// and `planned` is empty.
status compress(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, workspace& ws,
                const compress_options& o = {});

// ---- the host's threads -----------------------------------------------------------------------------------------------

// A parallel_for is any callable run(n, work) of the host's: it calls work(task, worker) once for each task below n, with
// a worker below the number of workspaces given, never the same worker twice at one time, and returns when all are done. A
// loop over tasks on one thread is one: [](std::size_t n, const auto& work) { for (std::size_t i = 0; i < n; ++i) work(i, 0U); }

/// compress() with the heads of the layer shared among workers; the same plan and the same bytes as with one. If nothing is due
/// `run` is not called. The plan is last_plan(workers[0]); all workspaces must be of one target, and scorers, transforms and
/// selectors of the host's own must take being called for different heads at once. What looks across heads (transforms, selection
/// among all candidates) is done by the caller.
template <class ParallelFor>
std::size_t compress(const policy& p, const layer& l, cursor& at, std::span<workspace> workers, const ParallelFor& run,
                     toward direction = toward::front);

/// plan_eviction() with the heads of the layer shared among workers: the same plan. It belongs to workers[0].
template <class ParallelFor>
[[nodiscard]] const plan& plan_eviction(const policy& p, layer l, cursor at, std::span<workspace> workers,
                                        const ParallelFor& run);

/// compress() for all layers of a sequence, all or nothing, with layers shared among workers: the same refusals, cache and
/// cursors as with one. `run` is called twice, to plan and to move; not at all where nothing is due. What it throws while plans
/// are made leaves all as it was. o.planned and o.moved are called by the caller's thread, for one layer after the other.
template <class ParallelFor>
status compress(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, std::span<workspace> workers,
                const ParallelFor& run, const compress_options& o = {});

/// compress() for each layer by itself, layers shared among workers: layers[i] with cursors[i]. For layers that need not agree,
/// those of several sequences, say: nothing is compared, and budgets do not fall from layer to layer (see for_layer()). The rows
/// now in use are cursors[i].tokens.
template <class ParallelFor>
void compress_each(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, std::span<workspace> workers,
                   const ParallelFor& run, toward direction = toward::front);

// ---- not API ----------------------------------------------------------------------------------------------------------

namespace detail {

/// What is done for a head, with the workspace of whoever does it.
using head_work = function_ref<void(std::size_t head, workspace&)>;

/// Calls the work for each head below a number of them.
using each_head_of = function_ref<void(std::size_t heads, head_work)>;

/// Without threads of the host's: all heads one after the other.
struct one_by_one {
  workspace& ws;

  void operator()(std::size_t heads, head_work work) const {
    for (std::size_t head = 0; head < heads; ++head) work(head, ws);
  }
};

template <class ParallelFor>
struct in_parallel {
  const ParallelFor& run;
  std::span<workspace> workers;

  void operator()(std::size_t heads, head_work work) const {
    run(heads, [&](std::size_t head, std::size_t worker) { work(head, workers[worker]); });
  }
};

/// Clears a plan that is being made, unless it is finished: a call that is refused or throws leaves an empty one.
struct unfinished_plan {
  plan& made;
  std::size_t tokens;
  bool finished = false;

  ~unfinished_plan() {
    if (!finished) made.clear(tokens);
  }
};

/// `c`, which the budget says is due, with the positions of this layer and its protected rows counted; nothing if what the policy
/// needs is not there.
LAGKV_FN candidates candidates_of(const policy& p, const layer& l, candidates c);

/// The first of the workers makes the plan.
LAGKV_FN std::size_t compress(const policy& p, const layer& l, cursor& at, std::span<workspace> workers, toward direction,
                              each_head_of each_head);

LAGKV_FN const plan& plan_eviction(const policy& p, const layer& l, const cursor& at, workspace& ws, each_head_of each_head);

/// What is done for a layer, with the workspace of whoever does it; and who calls it for each of them.
using layer_work = head_work;
using each_layer_of = each_head_of;

LAGKV_FN status compress_all(const policy& p, std::span<const layer> layers, std::span<cursor> cursors,
                             std::span<workspace> workers, const compress_options& o, each_layer_of each_layer);

}  // namespace detail

inline std::size_t compress(const policy& p, const layer& l, cursor& at, workspace& ws, toward direction) {
  return detail::compress(p, l, at, {&ws, 1}, direction, detail::one_by_one{ws});
}

template <class ParallelFor>
std::size_t compress(const policy& p, const layer& l, cursor& at, std::span<workspace> workers, const ParallelFor& run,
                     toward direction) {
  return detail::compress(p, l, at, workers, direction, detail::in_parallel<ParallelFor>{run, workers});
}

// Layers are taken by value: g++ 13 warns of a dangling reference otherwise.
inline const plan& plan_eviction(const policy& p, layer l, cursor at, workspace& ws) {
  return detail::plan_eviction(p, l, at, ws, detail::one_by_one{ws});
}

template <class ParallelFor>
const plan& plan_eviction(const policy& p, layer l, cursor at, std::span<workspace> workers, const ParallelFor& run) {
  assert(!workers.empty() && "lagkv: there is no workspace: one a worker");
  return detail::plan_eviction(p, l, at, workers[0], detail::in_parallel<ParallelFor>{run, workers});
}

inline status compress(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, workspace& ws,
                       const compress_options& o) {
  return detail::compress_all(p, layers, cursors, {&ws, 1}, o, detail::one_by_one{ws});
}

template <class ParallelFor>
status compress(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, std::span<workspace> workers,
                const ParallelFor& run, const compress_options& o) {
  return detail::compress_all(p, layers, cursors, workers, o, detail::in_parallel<ParallelFor>{run, workers});
}

template <class ParallelFor>
void compress_each(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, std::span<workspace> workers,
                   const ParallelFor& run, toward direction) {
  assert(layers.size() == cursors.size() && "lagkv: there must be a cursor for each layer");
  run(layers.size(), [&](std::size_t i, std::size_t worker) { compress(p, layers[i], cursors[i], workers[worker], direction); });
}

#if LAGKV_BODIES

namespace detail {

/// Whether all that a policy needs is there at this call.
LAGKV_FN bool met(const policy& p, const layer& l) {
  const needs& n = p.needs;
  if (!positions_suit(p, l) || !knows_protected(p, l) || (n.values && !l.values)) return false;
  if (n.queries == 0 && !n.accumulated_attention && !n.query_statistics && !n.importance && !n.rope && !n.head_budgets)
    return true;
  const extras* e = l.extra;
  if (e == nullptr || (reads_positions(p) && !e->positions)) return false;
  if (n.rope && (e->rope == nullptr || e->rope->pairs == rope::pairing::unnamed)) return false;
  const std::size_t offered = e->weights && e->weights.channels() < l.tokens ? 0 : e->offered();
  return (n.queries == 0 || offered > 0) && (!n.accumulated_attention || e->accumulated_attention || offered >= l.tokens) &&
         (!n.query_statistics || e->query_mean || e->offered(e->queries) > 0) && (!n.calibrated || e->query_mean) &&
         (!n.importance || e->importance) && (!n.head_budgets || e->head_budgets.size() == l.keys.heads());
}

LAGKV_FN candidates candidates_of(const policy& p, const layer& l, candidates c) {
  if (c.empty()) return c;
  if (!met(p, l)) return {};
  if (l.extra == nullptr) return c;
  c.positions.known = l.extra->positions;
  if (p.needs.head_budgets) c.head_budgets = l.extra->head_budgets;
  if (l.extra->protect.empty()) return c;
  c.protect = l.extra->protect;
  if (c.positions.known && c.positions.known.head_stride.value != 0) c.heads = l.keys.heads();
  if (p.budget.as<keep::window>() != nullptr) {  // as many others go in place of those that must stay; the last row stays
    const token_range oldest = c.rows;
    for (std::size_t head = 0; head < c.heads; ++head) {
      std::size_t end = oldest.end;
      for (std::size_t stay = c.count_protected(head, oldest); stay > 0 && end + 1 < l.tokens; ++end)
        if (!c.is_protected(head, end)) --stay;
      c.rows.end = end > c.rows.end ? end : c.rows.end;
    }
  }
  if (p.needs.head_budgets) return c;  // each head counts its own
  const std::size_t group = c.group();
  std::size_t keep = 0;
  for (std::size_t begin = c.rows.begin; begin < c.rows.end; begin += group) keep += c.keep_of({begin, begin + group});
  c.keep = keep;
  return c;
}

/// Protected rows go before all others.
LAGKV_FN void put_protected_first(std::span<float> scores, std::size_t heads, const candidates& c) {
  const std::size_t n = c.rows.size();
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t i = 0; i < n; ++i) {
      float& score = scores[head * n + i];
      score = c.is_protected(head, c.rows.begin + i) ? infinity() : capped(score);
    }
}

/// Partitions that are scored in one call, and moved after it: enough for scorers that read each row once to gain by it, few
/// enough to be still in cache. Blocks of them count from the first partition.
LAGKV_FN std::size_t partitions_together(const layer& l, const candidates& c) {
  constexpr std::size_t least = 8, bytes = std::size_t{1} << 21;
  const std::size_t partition = c.partition * (l.keys.row_bytes() + (l.values ? l.values.row_bytes() : 0));
  const std::size_t fit = bytes / partition;
  return fit > least ? fit : least;
}

/// If nothing stays, or everything, no score is needed.
inline bool needs_scores(const policy& p, const candidates& c) {
  return p.needs.head_budgets || (c.keep != 0 && (c.keep != c.rows.size() || p.budget.even_with_room));
}

/// Whether each partition can be planned and moved by itself.
inline bool by_partition(const policy& p, const candidates& c) {
  return c.partition != 0 && !p.adjust && !p.select && p.fused_count == 0 && !p.needs.all_rows && c.protect.empty();
}

/// The partitions of what is due, in blocks that are scored in one call. The first block is one of the largest, so later ones
/// take no more scratch.
class partition_blocks {
 public:
  partition_blocks(const layer& l, const candidates& c, toward direction)
      : partitions_(c.rows.size() / c.partition), together_(partitions_together(l, c)), direction_(direction) {}

  std::size_t count() const { return (partitions_ + together_ - 1) / together_; }

  /// The partitions of block i. Blocks go by ascending for toward::front, descending for toward::window, as the moves need.
  token_range of(std::size_t i) const {
    if (direction_ == toward::front) {
      const std::size_t first = i * together_;
      return {first, first + together_ < partitions_ ? first + together_ : partitions_};
    }
    const std::size_t end = partitions_ - i * together_;
    return {end > together_ ? end - together_ : 0, end};
  }

 private:
  std::size_t partitions_, together_;
  toward direction_;
};

/// Plans a block of partitions of one head, each partition by itself.
LAGKV_FN void plan_block(const policy& p, const layer& l, const candidates& c, std::size_t head, token_range block, plan& out,
                         workspace& ws) {
  const shown seen(l, c.positions, p.pre_rope, ws);
  const token_range rows{c.rows.begin + block.begin * c.partition, c.rows.begin + block.end * c.partition};
  const workspace::frame scratch(ws);
  const std::span<float> scores{ws.take<float>(rows.size()), rows.size()};
  p.score(*seen, head, rows, scores, ws);
  for (std::size_t j = block.begin; j < block.end; ++j)
    top_k::pick(scores.data() + (j - block.begin) * c.partition, c.partition, c.keep_each, c.rows.begin + j * c.partition,
                out.row(head) + j * c.keep_each, ws);
}

/// The scores of one scorer for a head.
LAGKV_FN void score_head(const scorer& score, key_view keys, const layer& l, const candidates& c, std::size_t head,
                         std::span<float> out, workspace& ws) {
  const workspace::frame scratch(ws);
  if (score)
    score(*shown(l, c.positions, keys, ws), head, c.rows, out, ws);
  else
    for (float& s : out) s = 0;
}

/// The transformed scores of one scorer for all heads.
LAGKV_FN void score_all(const scorer& score, key_view keys, const transforms& adjust, const layer& l, const candidates& c,
                        std::span<float> out, workspace& ws, each_head_of each_head) {
  const std::size_t n = c.rows.size(), heads = l.keys.heads();
  each_head(heads,
            [&](std::size_t head, workspace& own_ws) { score_head(score, keys, l, c, head, out.subspan(head * n, n), own_ws); });
  const workspace::frame scratch(ws);
  adjust(out, heads, c, ws);
}

/// A head's scores become ranks, 0 to below 1, as one scorer of a fusion has them. For the best: minus the share of the budget at
/// which a token would come in, were it this scorer's alone; a scorer without weight brings in none.
LAGKV_FN void weigh(std::span<float> scores, const candidates& c, fusion by, double weight, workspace& ws) {
  rank_each(scores, 1, c, ws);
  const auto w = static_cast<float>(weight);
  for (float& r : scores) r = by == fusion::sum ? w * r : (r - 1) / w;
}

/// What two scorers say together, into `scores`. A row that is NaN to one of them goes first.
LAGKV_FN void fuse(fusion by, std::span<float> scores, std::span<const float> more) {
  const auto fused = [by](float a, float b) {
    if (is_nan(a) || is_nan(b)) return not_a_number();
    return by == fusion::sum ? a + b : a > b ? a : b;
  };
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = fused(scores[i], more[i]);
}

LAGKV_FN void score(const policy& p, const layer& l, const candidates& c, std::span<float> scores, workspace& ws,
                    each_head_of each_head) {
  if (p.fused_count == 0) return score_all(p.score, p.pre_rope, p.adjust, l, c, scores, ws, each_head);
  const std::size_t heads = l.keys.heads(), n = c.rows.size();
  const std::span<const method> others{p.fused, p.fused_count};
  bool adjusted = static_cast<bool>(p.adjust);
  for (const method& m : others) adjusted = adjusted || m.adjust;
  if (!adjusted)  // all scorers look at a head while its rows are in cache
    return each_head(heads, [&](std::size_t head, workspace& own_ws) {
      const workspace::frame scratch(own_ws);
      const std::span<float> own = scores.subspan(head * n, n), more{own_ws.take<float>(n), n};
      score_head(p.score, p.pre_rope, l, c, head, own, own_ws);
      weigh(own, c, p.by, p.weight, own_ws);
      for (const method& m : others) {
        score_head(m.score, m.pre_rope, l, c, head, more, own_ws);
        weigh(more, c, p.by, m.weight, own_ws);
        fuse(p.by, own, more);
      }
    });
  score_all(p.score, p.pre_rope, p.adjust, l, c, scores, ws, each_head);
  each_head(heads, [&](std::size_t head, workspace& own_ws) { weigh(scores.subspan(head * n, n), c, p.by, p.weight, own_ws); });
  const workspace::frame scratch(ws);
  const std::span<float> more{ws.take<float>(heads * n), heads * n};
  for (const method& m : others) {
    score_all(m.score, m.pre_rope, m.adjust, l, c, more, ws, each_head);
    each_head(heads, [&](std::size_t head, workspace& own_ws) {
      weigh(more.subspan(head * n, n), c, p.by, m.weight, own_ws);
      fuse(p.by, scores.subspan(head * n, n), more.subspan(head * n, n));
    });
  }
}

/// Scores of all candidates, then the rows that the selector takes.
LAGKV_FN void plan_whole(const policy& p, const layer& l, const candidates& c, plan& out, workspace& ws, each_head_of each_head) {
  const std::size_t heads = l.keys.heads(), all = heads * c.rows.size();
  const std::span<float> scores{ws.take<float>(all), all};
  score(p, l, c, scores, ws, each_head);
  if (!c.protect.empty()) put_protected_first(scores, heads, c);
  if (p.select)
    p.select(scores, heads, c, out, ws);
  else
    top_k{}(scores, heads, c, out, ws);
}

/// Fills in the plan of what is due.
LAGKV_FN void plan_due(const policy& p, const layer& l, const candidates& c, plan& out, workspace& ws, each_head_of each_head) {
  out.reset(c.rows, l.tokens, l.keys.heads(), c.keep);
  if (!needs_scores(p, c)) {
    for (std::size_t head = 0; head < out.heads(); ++head)
      for (std::size_t i = 0; i < c.keep; ++i) out.row(head)[i] = static_cast<std::uint32_t>(c.rows.begin + i);
  } else if (by_partition(p, c)) {
    each_head(out.heads(), [&](std::size_t head, workspace& own_ws) {
      const partition_blocks blocks(l, c, toward::front);
      for (std::size_t i = 0; i < blocks.count(); ++i) plan_block(p, l, c, head, blocks.of(i), out, own_ws);
    });
  } else {
    plan_whole(p, l, c, out, ws, each_head);
  }
}

/// Moves the kept rows of one partition next to those of the partitions before (or behind) it.
LAGKV_FN void move_partition(const tensor& x, std::size_t head, std::size_t index, std::span<const std::uint32_t> kept,
                             const candidates& c, toward direction) {
  const std::size_t behind = c.keep - (index + 1) * c.keep_each;
  const std::size_t begin = c.rows.begin + index * c.partition;
  const token_range place{c.rows.begin + index * c.keep_each, c.rows.end - behind};
  move_kept(x, head, kept, {begin, begin + c.partition}, place, direction, false);
}

/// Makes room for the scratch of all that is still to be planned, once a block has been: from then on rows move, and nothing is
/// to fail.
LAGKV_FN void make_room(const layer& l, std::size_t peak, workspace& ws) {
  ws.reserve(peak + 2 * (room_of_rows(l.keys) + (l.values ? room_of_rows(l.values) : 0)));
}

/// Plans one head by partition and moves the kept rows while they are in cache. `planned` blocks have been already;
/// before_moving() is called when the first is.
LAGKV_FN void plan_and_move(const policy& p, const layer& l, const candidates& c, std::size_t head, plan& out, workspace& ws,
                            toward direction, std::size_t planned, function_ref<void()> before_moving) {
  const std::size_t count = c.rows.size() / c.partition;
  const auto move = [&](std::size_t index) {
    const std::span<const std::uint32_t> kept(out.row(head) + index * c.keep_each, c.keep_each);
    move_partition(l.keys, head, index, kept, c, direction);
    if (l.values) move_partition(l.values, head, index, kept, c, direction);
  };
  std::size_t moved = count;
  const partition_blocks blocks(l, c, direction);
  for (std::size_t i = 0; i < blocks.count(); ++i) {
    const token_range block = blocks.of(i);
    if (i >= planned) plan_block(p, l, c, head, block, out, ws);
    if (i == 0) before_moving();
    if (direction == toward::front) {
      for (std::size_t j = block.begin; j < block.end; ++j) move(j);
      continue;
    }
    // Rows that move up may land in their own partition, the reference of the one before: the first one of a block waits
    // until the block before it has been scored.
    for (const std::size_t stay = block.begin == 0 ? 0 : block.begin + 1; moved > stay;) move(--moved);
  }
  if (direction == toward::window) return;
  const auto follow = [&](const tensor& x) {
    move_window(out, head, [&](std::size_t from, std::size_t to, std::size_t n) { move_rows(x, head, from, to, n); });
  };
  follow(l.keys);
  if (l.values) follow(l.values);
}

/// Plans all heads by partition and moves what stays: all scratch is there before the first row moves.
LAGKV_FN void plan_and_move_all(const policy& p, const layer& l, const candidates& c, plan& out, std::span<workspace> workers,
                                toward direction, each_head_of each_head) {
  if (workers.size() == 1) {  // one head after the other
    bool room = false;
    each_head(out.heads(), [&](std::size_t head, workspace& ws) {
      plan_and_move(p, l, c, head, out, ws, direction, 0, [&] {
        if (!room) make_room(l, ws.peak(), ws);
        room = true;
      });
    });
    return;
  }
  for (workspace& ws : workers.subspan(1)) const workspace::frame from_now_on(ws);
  each_head(out.heads(), [&](std::size_t head, workspace& ws) {
    plan_block(p, l, c, head, partition_blocks(l, c, direction).of(0), out, ws);
  });
  std::size_t peak = 0;
  for (const workspace& ws : workers) peak = ws.peak() > peak ? ws.peak() : peak;
  for (workspace& ws : workers) {
    make_room(l, peak, ws);
    static_cast<void>(shown(l, c.positions, p.pre_rope, ws));  // a worker may get its first head only now
  }
  each_head(out.heads(), [&](std::size_t head, workspace& ws) { plan_and_move(p, l, c, head, out, ws, direction, 1, [] {}); });
}

#if defined(NDEBUG)
inline void expect_rows_apart(const layer&) {}
inline void expect_room_beside(const layer&) {}
inline void expect_same_sequence(const layer&, const cursor&) {}
inline void remember_sequence(const layer&, cursor&, const plan&, toward) {}
#else
/// A number that row `row` of the values, which hosts leave as they are, is known by again; never 0.
inline std::uint32_t mark_of(const layer& l, std::size_t row) {
  const tile t = l.values.at(0, {row, row + 1});
  const std::size_t unit = size_of(l.values.type());
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (std::size_t u = 0; u < l.values.row_units(); ++u) {
    const std::byte* at = t.data + static_cast<std::ptrdiff_t>(u) * t.channel_stride * static_cast<std::ptrdiff_t>(unit);
    for (std::size_t i = 0; i < unit; ++i) hash = (hash ^ static_cast<std::uint32_t>(at[i])) * 16777619U;
  }
  return hash | 1U;
}

inline void expect_rows_apart(const layer& l) {
  assert(first_rows_apart(l) &&
         "lagkv: values lie in the rows of the keys, which would move twice: latent rows (MLA) are keys without values");
}

inline void expect_room_beside(const layer& l) {
  const auto suits = [&](std::ptrdiff_t stride) { return l.keys.heads() == 1 || stride == 0 || magnitude(stride) >= l.tokens; };
  assert((l.extra == nullptr || suits(l.extra->positions.head_stride.value)) &&
         "lagkv: positions: head_stride is less than the rows in use: check() with the most rows that the layer will have");
  assert((l.extra == nullptr || suits(l.extra->accumulated_attention.head_stride.value)) &&
         "lagkv: accumulated_attention: head_stride is less than the rows in use: check() with the most rows");
}

inline void expect_same_sequence(const layer& l, const cursor& at) {
  assert(at.tokens <= l.tokens &&
         "lagkv: the cursor has more rows than the layer: take_back(), take_out(), or a cursor{} for a new sequence");
  assert((at.mark == 0 || !l.values || at.mark == mark_of(l, at.compressed - 1)) &&
         "lagkv: the cursor is of another sequence: a new sequence needs a cursor{}");
}

inline void remember_sequence(const layer& l, cursor& at, const plan& applied, toward direction) {
  at.mark = 0;
  if (!l.values || at.compressed == 0 || applied.empty()) return;
  const bool up = direction == toward::window && !applied.of(0).empty();
  const std::size_t row = up ? applied.candidates.end - 1 : applied.candidates.begin + applied.of(0).size() - 1;
  if (at.compressed == applied.candidates.begin + applied.of(0).size()) at.mark = mark_of(l, row);
}
#endif

LAGKV_FN std::size_t compress(const policy& p, const layer& l, cursor& at, std::span<workspace> workers, toward direction,
                              each_head_of each_head) {
  assert(!workers.empty() && "lagkv: there is no workspace: one a worker");
  workspace& ws = workers[0];
  plan& out = ws.kept<plan>();
  const auto nothing = [&] {
    out.clear(l.tokens);
    advance(at, out, 0);
    return at.tokens;
  };
  expect_same_sequence(l, at);
  const candidates due = p.budget.due(at, l.tokens);
  if (due.empty()) return nothing();  // most calls end here
  const candidates c = candidates_of(p, l, due);
  if (c.empty()) return nothing();
  expect_rows_apart(l);
  expect_room_beside(l);
  unfinished_plan guard{out, l.tokens};
  const workspace::frame scratch(ws);
  if (by_partition(p, c) && needs_scores(p, c)) {
    out.reset(c.rows, l.tokens, l.keys.heads(), c.keep);
    plan_and_move_all(p, l, c, out, workers, direction, each_head);
  } else {
    plan_due(p, l, c, out, ws, each_head);
    each_head(out.heads(), [&](std::size_t head, workspace&) {
      compact(l.keys, head, out, direction);
      if (l.values) compact(l.values, head, out, direction);
    });
  }
  if (l.extra != nullptr) compact(*l.extra, out, direction);
  advance(at, out);
  remember_sequence(l, at, out, direction);
  guard.finished = true;
  return at.tokens;
}

/// Whether a layer takes the scratch that another has taken, but for room_of_rows().
LAGKV_FN bool alike(const tensor& a, const tensor& b) {
  return static_cast<bool>(a) == static_cast<bool>(b) && a.heads() == b.heads() && a.channels() == b.channels() &&
         a.type() == b.type() && a.has_scale() == b.has_scale() && a.hadamard_block() == b.hadamard_block();
}

/// Whether a layer's rows may move as soon as they are planned, since those of the layers after it take no more scratch.
LAGKV_FN bool moves_at_once(const policy& p, const candidates& c) {
  const needs& n = p.needs;
  return by_partition(p, c) && needs_scores(p, c) && n.queries == 0 && !n.accumulated_attention && !n.query_statistics && !n.rope;
}

/// What is due of all layers.
struct due_layers {
  bool any = false;         ///< something of one of them
  bool at_once = true;      ///< rows may move as soon as they are planned: no later layer needs more scratch
  std::size_t differs = 0;  ///< the first layer in which other rows are due than in layer 0; or how many layers there are
  std::size_t rows = 0, rows_there = 0;  ///< that layer 0 would keep, and that one
};

/// The plans of all layers, in the workspace.
struct layer_plans {
  std::vector<plan> of{};
};

/// The policy of layer i of n.
class own_policy {
 public:
  own_policy(const policy& p, std::size_t i, std::size_t n) : all_(p) {
    if (p.budget.slope.sloped()) own_.emplace(for_layer(p, i, n));
  }

  const policy& operator*() const { return own_ ? *own_ : all_; }

 private:
  const policy& all_;
  std::optional<policy> own_{};  // a copy only where layers differ: most calls find nothing due
};

/// The layers of a sequence, each with its cursor. Methods that treat layers unlike are told the place in the list, where the
/// host gives no layer.index.
struct sequence_layers {
  const policy& p;
  std::span<const layer> layers;
  std::span<const cursor> cursors;

  own_policy own(std::size_t i) const { return {p, i, layers.size()}; }

  layer at(std::size_t i) const {
    layer l = layers[i];
    if (l.index == 0) l.index = i;
    return l;
  }

  /// Refuses a layer in which something is due and something that the policy reads is missing.
  status met() const;

  due_layers due() const;

  /// Refuses layers in which other rows are due than in layer 0.
  status check_equal(const due_layers& found) const;
};

LAGKV_FN status sequence_layers::met() const {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const own_policy mine = own(i);
    if (!detail::met(*mine, layers[i]) && !(*mine).budget.due(cursors[i], layers[i].tokens).empty())
      return refuse({"layer ", i, ": something that the policy reads is missing (check() says what): nothing moved"});
  }
  return {};
}

LAGKV_FN due_layers sequence_layers::due() const {
  due_layers found{.differs = layers.size()};
  candidates first{};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const own_policy mine = own(i);
    const layer& l = layers[i];
    const candidates c = candidates_of(*mine, l, (*mine).budget.due(cursors[i], l.tokens));
    if (i == 0) first = c;
    const bool same = c.rows == first.rows && c.keep == first.keep && l.tokens == layers[0].tokens;
    const std::size_t rows = l.tokens - (c.rows.size() - c.keep);
    if (i == 0) found.rows = rows;
    if (!same && found.differs > i) found.differs = i, found.rows_there = rows;
    found.any = found.any || !c.empty();
    found.at_once =
        found.at_once && same && moves_at_once(*mine, c) && alike(l.keys, layers[0].keys) && alike(l.values, layers[0].values);
  }
  return found;
}

/// Layer i would have another number of rows than layer 0.
LAGKV_EDGE error unequal(std::size_t i, const char* what, std::size_t rows, std::size_t rows_of_first) {
  return refuse({"layer ", i, ": ", what, rows, " rows, layer 0 ", rows_of_first,
                 ": nothing moved (equal_counts=false takes layers of different lengths)"});
}

LAGKV_EDGE status sequence_layers::check_equal(const due_layers& found) const {
  const std::size_t i = found.differs;
  if (i == layers.size()) return {};
  if (layers[i].tokens != layers[0].tokens) return unequal(i, "has ", layers[i].tokens, layers[0].tokens);
  if (found.rows_there != found.rows) return unequal(i, "would keep ", found.rows_there, found.rows);
  return refuse({"layer ", i, ": other rows are due than in layer 0 (its cursor is at another place): nothing moved"});
}

/// Refuses plans, of layers or their heads, that leave different numbers of rows.
LAGKV_EDGE status check_equal(std::span<const plan> plans) {
  for (std::size_t i = 0; i < plans.size(); ++i) {
    if (equal_counts(plans[i], plans[0])) continue;
    for (std::size_t head = 1; head < plans[i].heads(); ++head)
      if (plans[i].tokens_after(head) != plans[i].tokens_after())
        return refuse({"layer ", i, ": head 0 would keep ", plans[i].tokens_after(), " rows, head ", head, " ",
                       plans[i].tokens_after(head), ": nothing moved (equal_counts=false takes heads of different lengths)"});
    return unequal(i, "would keep ", plans[i].tokens_after(), plans[0].tokens_after());
  }
  return {};
}

/// Decides what all layers drop, then moves it.
LAGKV_FN status compress_checked(const sequence_layers& all, std::span<cursor> cursors, std::span<workspace> workers,
                                 const compress_options& o, each_layer_of each_layer) {
  const std::span<const layer> layers = all.layers;
  if (status s = all.met(); !s) return s;
  const due_layers due = all.due();
  const bool chosen = due.any && all.p.select;  // what a selector leaves is known only by its plans
  if (o.equal_counts && !chosen)
    if (status s = all.check_equal(due); !s) return s;
  if (due.any)
    if (status s = check_rows_apart(layers, workers[0]); !s) return s;
  if (!due.any || (due.at_once && !o.planned && workers.size() == 1)) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      lagkv::compress(*all.own(i), all.at(i), cursors[i], workers[0], o.direction);
      if (o.moved) o.moved(i, last_plan(workers[0]));
    }
    return {};
  }
  for (std::size_t i = 0; i < layers.size(); ++i) expect_same_sequence(layers[i], cursors[i]);
  std::vector<plan>& plans = workers[0].kept<layer_plans>().of;
  if (plans.size() < layers.size()) plans.resize(layers.size());
  each_layer(layers.size(), [&](std::size_t i, workspace& ws) {
    plans[i] = plan_eviction(*all.own(i), all.at(i), cursors[i], ws, one_by_one{ws});
  });
  if (o.equal_counts)
    if (status s = check_equal(std::span(plans).first(layers.size())); !s) return s;
  workers[0].kept<plan>() = plans[layers.size() - 1];  // the last that can fail: o.planned may change values
  for (std::size_t i = 0; i < layers.size() && o.planned; ++i) o.planned(i, plans[i]);
  each_layer(layers.size(), [&](std::size_t i, workspace&) {
    const layer& l = layers[i];
    if (!plans[i].empty()) expect_rows_apart(l), expect_room_beside(l);
    compact(l, plans[i], o.direction);
    if (l.extra != nullptr) compact(*l.extra, plans[i], o.direction);
    advance(cursors[i], plans[i]);
    if (!plans[i].empty()) remember_sequence(l, cursors[i], plans[i], o.direction);
  });
  for (std::size_t i = 0; i < layers.size() && o.moved; ++i) o.moved(i, plans[i]);
  return {};
}

LAGKV_FN const plan& plan_eviction(const policy& p, const layer& l, const cursor& at, workspace& ws, each_head_of each_head) {
  unfinished_plan guard{ws.kept<plan>(), l.tokens};
  plan& out = guard.made;
  const candidates c = candidates_of(p, l, p.budget.due(at, l.tokens));
  if (c.empty()) return out;  // cleared by the guard
  const workspace::frame scratch(ws);
  plan_due(p, l, c, out, ws, each_head);
  guard.finished = true;
  return out;
}

LAGKV_FN status compress_all(const policy& p, std::span<const layer> layers, std::span<cursor> cursors,
                             std::span<workspace> workers, const compress_options& o, each_layer_of each_layer) {
  if (workers.empty()) return error{"workspaces=0: must be 1 or more, one a worker"};
  unfinished_plan guard{workers[0].kept<plan>(), 0};
  status done;
  if (layers.size() != cursors.size())
    done = refuse({"cursors=", cursors.size(), ": must be ", layers.size(), ", one a layer"});
  else if (p.budget.as<keep::bytes>() != nullptr)
    done = is_in_bytes();
  else
    done = compress_checked({p, layers, cursors}, cursors, workers, o, each_layer);
  guard.finished = static_cast<bool>(done) && !layers.empty();
  return done;
}

}  // namespace detail

LAGKV_FN void advance(cursor& at, const plan& applied, std::size_t head) {
  at.tokens = applied.tokens_after(head);
  at.dropped += applied.tokens_before - at.tokens;
  if (!applied.empty()) at.compressed = applied.candidates.begin + applied.of(head).size(), at.mark = 0;
  if (at.compressed > at.tokens) at.compressed = at.tokens, at.mark = 0;  // the host took tokens back
}

LAGKV_FN void advance(cursor& at, const plan& applied) {
  std::size_t longest = 0;
  for (std::size_t head = 1; head < applied.heads(); ++head)
    if (applied.of(head).size() > applied.of(longest).size()) longest = head;
  advance(at, applied, longest);
}

LAGKV_FN std::span<float> score(const policy& p, const layer& l, const candidates& c, workspace& ws) {
  struct buffer {
    detail::vector<float> scores{};
  };
  detail::vector<float>& scores = ws.kept<buffer>().scores;
  scores.resize(l.keys.heads() * c.rows.size());
  candidates placed = c;
  if (l.extra != nullptr && !c.positions.known) placed.positions.known = l.extra->positions;
  const workspace::frame scratch(ws);
  detail::score(p, l, placed, scores, ws, detail::one_by_one{ws});
  return scores;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
