// Part of lagkv (MIT). From a method and options to a policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

#include <lagkv/policy/policy.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>
#include <lagkv/select/adaptive.hpp>
#include <lagkv/select/by_head.hpp>
#include <lagkv/select/chunks.hpp>
#include <lagkv/transform/mean_of_heads.hpp>
#include <lagkv/transform/pool.hpp>
#include <lagkv/transform/smooth.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How a policy picks by scores.
enum class selection : std::uint8_t {
  top_k,     ///< the best tokens of each head
  chunks,    ///< whole chunks of neighbours, the same for all heads (ChunkKV)
  adaptive,  ///< the best of all heads together, so that heads keep different numbers (AdaKV)
  by_head    ///< the best tokens of each head, by budgets of its own (extras.head_budgets)
};

/// Whose scores decide in a head.
enum class deciding_heads : std::uint8_t {
  own,    ///< its own
  shared  ///< the mean over the heads of the layer: all keep the same tokens
};

/// How many tokens stay, and how they are picked: what every scored method shares. Give at most one of keep, capacity and
/// budget_mb; none of them means keep = 0.5.
struct policy_options {
  std::size_t sink = 4;                 ///< tokens: the first so many always stay; 0: none
  std::optional<std::size_t> recent{};  ///< tokens: the last so many always stay (not with lag, whose last partition does);
                                        ///< empty: the method's own, 32 for most
  std::size_t lag = 0;                  ///< tokens a partition; 0: all between sinks and window are scored at once
  std::optional<double> keep{};  ///< share of all tokens (with lag of each partition), above 0, at most 1; empty: as said above
  std::optional<std::size_t> capacity{};  ///< tokens, at least sink + recent + 1; empty: no such budget
  std::optional<double> budget_mb{};      ///< 10^6 bytes of all layers together, above 0: see fit(); empty: no such budget
  std::size_t every = 1;                  ///< tokens by which capacity is exceeded when compress() acts, 1 or more
  std::optional<double> recent_share{};   ///< the window is at least this share of the budget, 0 to 1 (not with lag); empty: the
                                          ///< method's own (with selection::by_head 0)
  std::size_t pool = 1;                   ///< tokens that a score is averaged over, its own in the middle: odd; 1: its own
  std::optional<std::size_t> smooth{};    ///< neighbours on each side that smooth it; 0: none; empty: the method's own
  std::optional<deciding_heads> heads{};  ///< whose scores decide; empty: the method's own, deciding_heads::own for most
  std::optional<bool> pre_rope{};         ///< whether keys are scored as before RoPE; empty: the method's own, no for most
  selection select = selection::top_k;    ///< how tokens are picked by their scores
  std::size_t chunk = 20;                 ///< tokens a chunk of selection::chunks, 1 or more
  double safeguard = 0.2;                 ///< share of its even part that a head keeps with selection::adaptive, 0 to 1
  std::optional<double> threshold{};      ///< score below which even less stays than the budget says, with selection::adaptive
  std::optional<double> pyramid{};        ///< beta of pyramid, 1 (no slope) to 1e6; empty: layers have equal budgets
};

/// Key, member, range and meaning of each of them.
inline constexpr parameter policy_parameters[] = {
    option<&policy_options::sink>("sink", accepts::count, "first tokens, always kept (attention sinks)"),
    option<&policy_options::recent>("recent", accepts::count,
                                    "last tokens, always kept: the window (default: the method's own, 32 for most); not with "
                                    "lag"),
    option<&policy_options::lag>("lag", accepts::count,
                                 "tokens a partition: each is scored against the next one, the last is the window; 0: all tokens "
                                 "between sinks and window are scored at once, against all tokens in use"),
    option<&policy_options::keep>("keep", accepts::share,
                                  "share kept of all tokens, or with lag of each partition; no token is a candidate twice, and "
                                  "none before there are twice as many as the window or the partition holds (default 0.5)"),
    option<&policy_options::capacity>(
        "capacity", accepts::count,
        "tokens kept, more than sink + recent; survivors are candidates again with the tokens that come"),
    option<&policy_options::budget_mb>("budget_mb", accepted{accepted::kind::number, 0, 1e9, true},
                                       "the same in 10^6 bytes for all layers together"),
    option<&policy_options::every>("every", accepts::positive, "with capacity: compress when so many tokens exceed it"),
    option<&policy_options::recent_share>(
        "recent_share", accepts::fraction,
        "share of the budget that the window is at least (default: the method's own, 0 for most and in fusions); not "
        "with lag"),
    option<&policy_options::pool>("pool", accepts::odd, "neighbours that scores are averaged over"),
    option<&policy_options::smooth>(
        "smooth", accepts::count,
        "neighbours on each side that scores are averaged over, the nearer the more (default: the method's own, 0 for most)"),
    option<&policy_options::heads>("heads", accepts::word("own|shared"),
                                   "shared: all heads of a layer keep the same tokens, by the mean of their scores (default: the "
                                   "method's own, own for most)"),
    option<&policy_options::pre_rope>("pre_rope", accepts::yes_no,
                                      "score keys as they were before RoPE (default: the method's own, no for most)"),
    option<&policy_options::select>("select", accepts::word("top_k|chunks|adaptive|by_head"),
                                    "how tokens are picked by their scores"),
    option<&policy_options::chunk>("chunk", accepts::positive, "with select=chunks: tokens a chunk"),
    option<&policy_options::safeguard>("safeguard", accepts::fraction,
                                       "with select=adaptive: share of its even part that each head keeps for sure"),
    option<&policy_options::threshold>(
        "threshold", accepts::number(-1e5, 1e5),
        "with select=adaptive: scores below it (after transforms and fusion) go even where the budget "
        "has room, but for each head's safe rows (default: none)"),
    option<&policy_options::pyramid>("pyramid", accepts::number(1, 1e6),
                                     "beta of budgets that fall from layer to layer (PyramidKV: 20; default: all equal)")};

inline constexpr option_table shared_options = table_of<policy_options>(policy_parameters);

/// A policy from a method. If its scorer works in partitions, their length must be o.lag. Errors name the option, its value and
/// what is accepted.
LAGKV_EDGE result<policy> make_policy(const method& m, const policy_options& o = {});

/// A policy from a scorer; its lag, if it has one, becomes that of the options. Its own options are checked as those of a string
/// are, if options_of() has their table.
template <class Scorer>
requires(!std::is_same_v<Scorer, method>) result<policy> make_policy(Scorer s, const policy_options& o = {}) {
  if constexpr (requires { s.lag = o.lag; }) s.lag = o.lag;
  if constexpr (requires { options_of(s); })
    if (status refused = check(options_of(s), &s); !refused) return error{refused.message()};
  return make_policy(method_of(s), o);
}

/// A policy from two to four methods, whose scorers work in partitions of o.lag. With fusion::best a method whose weight is a
/// share w of the sum of the weights has at least its int(w * kept) best tokens kept; a token that two methods choose counts
/// once, which makes room for the next of both. Weights that are all below 1e-20 are divided by the largest. The window is the
/// largest `recent` of the methods, unless o.recent is given; their own recent_share does not count.
LAGKV_EDGE result<policy> make_fusion(std::span<const method> methods, const policy_options& o = {}, fusion by = fusion::sum);

#if LAGKV_BODIES

namespace detail {

/// What a method's scores go through before tokens are picked, and how its scorer is shown the keys.
LAGKV_EDGE status adjust(method& m, const policy_options& o) {
  const std::size_t reach = o.smooth.value_or(m.smooth);
  const bool shared = o.heads ? *o.heads == deciding_heads::shared : m.shared_heads;
  if (o.pre_rope) m.pre_rope = *o.pre_rope ? pre_rope_keys : nullptr;
  m.shared_heads = shared;
  if (m.pre_rope != nullptr)
    if (status s = check_pre_rope(m.needs); !s) return s;
  m.needs.rope = m.needs.rope || m.pre_rope != nullptr;  // a scorer may read extras.rope by itself
  const std::size_t own = m.adjust.size();
  const bool held = (o.pool <= 1 || m.adjust.then(pool{o.pool})) && (!shared || m.adjust.then(mean_of_heads{})) &&
                    (reach == 0 || m.adjust.then(smooth{reach, shared}));
  if (!held)
    return refuse({"transforms: the method has ", own, " of its own: with pool, heads and smooth there must be at most ",
                   transforms::most});
  return {};
}

LAGKV_EDGE result<budget> make_budget(const method& m, const policy_options& o) {
  const bool by_head = o.select == selection::by_head;  // a share of the even budget is more than small heads hold
  if (by_head && o.recent_share.value_or(0) > 0)
    return refuse({"recent_share=", *o.recent_share, ": heads have windows of one length: not with select=by_head"});
  if (by_head && o.pyramid)
    return refuse({"pyramid=", *o.pyramid, ": head budgets say what layers keep: not with select=by_head"});
  budget b{.sink = o.sink,
           .recent = o.recent.value_or(m.recent),
           .recent_share = o.recent_share.value_or(by_head ? 0 : m.recent_share)};
  if ((o.keep ? 1 : 0) + (o.capacity ? 1 : 0) + (o.budget_mb ? 1 : 0) > 1)
    return error{"keep, capacity, budget_mb: give one of them"};
  if (o.every != policy_options{}.every && !o.capacity && !o.budget_mb)
    return refuse({"every=", o.every, ": is for capacity and budget_mb: give one of them"});
  if (o.lag != 0 && (o.capacity || o.budget_mb)) return refuse({"lag=", o.lag, ": a partition keeps a share: give keep"});
  if (o.lag != 0 && o.pyramid)
    return refuse({"lag=", o.lag, ": a partition keeps the same share in all layers: not with pyramid"});
  if (o.pyramid) b.slope.beta = *o.pyramid;
  const double share = o.keep.value_or(0.5);
  if (o.capacity)
    b.keeps = keep::capacity{*o.capacity, o.every};
  else if (o.budget_mb)
    b.keeps = keep::bytes{*o.budget_mb * 1e6, o.every};
  else if (o.lag != 0)
    b.keeps = keep::partitions{o.lag, share};
  else
    b.keeps = keep::share{share};
  if (status s = check_budget(b); !s) return error{s.message()};
  return b;
}

}  // namespace detail

LAGKV_EDGE result<policy> make_policy(const method& m, const policy_options& o) {
  if (status s = check(policy_parameters, &o); !s) return error{s.message()};
  const result<budget> keeps = detail::make_budget(m, o);
  if (!keeps) return error{keeps.message()};
  method adjusted = m;
  if (status s = detail::adjust(adjusted, o); !s) return error{s.message()};
  policy p;
  p.budget = *keeps;
  p.score = adjusted.score, p.adjust = adjusted.adjust, p.needs = adjusted.needs, p.weight = adjusted.weight;
  p.pre_rope = adjusted.pre_rope;
  p.same_rows = o.select == selection::chunks || (o.select == selection::top_k && adjusted.shared_heads);
  if (o.select == selection::chunks) p.select = chunks{o.chunk};
  if (o.chunk != policy_options{}.chunk && o.select != selection::chunks)
    return detail::refuse({"chunk=", o.chunk, ": is the length of chunks: give select=chunks"});
  if (detail::differ(o.safeguard, policy_options{}.safeguard) && o.select != selection::adaptive)
    return detail::refuse({"safeguard=", o.safeguard, ": is a share of uneven heads: give select=adaptive"});
  if (o.threshold && o.select != selection::adaptive)
    return detail::refuse({"threshold=", *o.threshold, ": heads would keep different numbers of tokens: give select=adaptive"});
  if (o.select == selection::adaptive)
    p.select = adaptive{o.safeguard, o.threshold ? std::optional(static_cast<float>(*o.threshold)) : std::nullopt},
    p.ragged = true, p.budget.even_with_room = o.threshold.has_value();
  if (o.select == selection::by_head) p.select = by_head{}, p.ragged = p.needs.head_budgets = true;
  return p;
}

LAGKV_EDGE result<policy> make_fusion(std::span<const method> methods, const policy_options& o, fusion by) {
  constexpr std::size_t most = policy::most_fused + 1;
  if (methods.size() < 2 || methods.size() > most)
    return detail::refuse({"methods=", methods.size(), ": must be from 2 to ", most});
  double heaviest = 0;
  for (const method& m : methods) {
    if (!detail::fits(accepts::weight, m.weight)) return detail::refuse({"weight=", m.weight, ": ", text(accepts::weight)});
    heaviest = m.weight > heaviest ? m.weight : heaviest;
  }
  if (!(heaviest > 0)) return error{"weights: all are 0: one at least must be above"};
  const double unit = heaviest < 1e-20 ? heaviest : 1;  // ranks times less would be too small for f32
  method first = methods[0];
  first.weight /= unit;
  for (const method& other : methods.subspan(1)) first.recent = first.recent > other.recent ? first.recent : other.recent;
  first.recent_share = 0;
  result<policy> made = make_policy(first, o);
  if (!made) return made;
  policy p = *made;
  p.by = by;
  for (const method& other : methods.subspan(1)) {
    method& next = p.fused[p.fused_count++];
    next = other;
    next.weight /= unit;
    if (status s = detail::adjust(next, o); !s) return error{s.message()};
    p.needs = p.needs | next.needs;
    p.same_rows = p.same_rows && (next.shared_heads || o.select == selection::chunks);
  }
  return p;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
