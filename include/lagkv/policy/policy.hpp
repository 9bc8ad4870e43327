// Part of lagkv (MIT). A policy: budget, scorer, transforms and selector as one value; whether it can work on a layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/budget.hpp>
#include <lagkv/policy/method.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/rope.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How several scorers decide together, each by its ranks within a partition (or among all candidates of a head).
enum class fusion : std::uint8_t {
  sum,  ///< the weighted sum of the ranks: a token must please all
  best  ///< the best of the ranks: a token must please one; each scorer has a share of the budget, in proportion to its weight
};

/// Which tokens stay, as one value: copy it freely, share it among threads. parse() makes one of a string, make_policy() of a
/// scorer and options.
struct policy {
  static constexpr std::size_t most_fused = 3;

  lagkv::budget budget{};
  scorer score{};       ///< not called if nothing or everything is kept
  transforms adjust{};  ///< optional
  selector select{};    ///< optional; default top_k
  lagkv::needs needs{};
  key_view pre_rope = nullptr;  ///< pre_rope_keys: `score` is shown keys as they were before RoPE
  /// The selector may keep different numbers of rows in each head. Such plans are for plan_eviction() and compact(): see check().
  bool ragged = false;
  /// All heads of a layer keep the same rows, by shared scores or a selector that looks at all heads. If false they may differ
  /// (unless nothing is scored, or there is one head), and each head needs positions of its own: see check().
  bool same_rows = false;
  lagkv::fusion by = lagkv::fusion::sum;  ///< how `score` and `fused` decide together
  /// Further scorers, fused with `score`.
  method fused[most_fused];
  std::size_t fused_count = 0;
  double weight = 1;  ///< of `score` in the fusion
};

/// Whether `p` can work on this layer and finds what it needs. Call it when a cache is set up, with the most rows that the layer
/// will have (with fewer it cannot see that arrays are too small), and with all that will be offered; afterwards compress() fails
/// only if memory runs out. It also refuses budgets that make no sense (a share that is not above 0 and at most 1, every=0), and
/// ragged policies unless any_length is true: the host can hold heads of different lengths.
LAGKV_EDGE status check(const policy& p, const layer& l, bool any_length = false);

/// The most rows that a layer has in use at once, if a sequence of at most `tokens` tokens comes in pieces of at most `chunk`
/// tokens (a prompt is one piece unless the host splits it) and compress() is called after each: what to allocate. Protected
/// tokens are not counted. If budgets fall from layer to layer, it is the number of the largest layer; with head budgets it is
/// `tokens`, since a head may keep all. `tokens` above 4294967295, which check() refuses, count as so many. Cost: a few
/// operations.
[[nodiscard]] LAGKV_EDGE std::size_t peak_rows(const policy& p, std::size_t chunk, std::size_t tokens);

/// `p` with the budget of one layer, if budgets fall from layer to layer; else `p`. layer: 0 to layers - 1; a larger one counts
/// as the last. Hosts whose layers must hold equal numbers of tokens refuse policies whose budget.slope.sloped().
[[nodiscard]] LAGKV_FN policy for_layer(policy p, std::size_t layer, std::size_t layers);

/// `p`, a policy with select=by_head, for one head by itself: with `multiple` times its budget (the head's entry of
/// extras.head_budgets), and without select=by_head. The first time, compress all heads of a layer together; from then on they
/// have different lengths, and each is a layer of one head with a cursor of its own. multiple: 0 or more; others count as 0. A
/// share that is all but for the rounding of a float is all; what partitions keep is rounded to the nearest row. fit() a budget
/// in bytes first.
[[nodiscard]] LAGKV_FN policy for_head(policy p, double multiple);

/// `p` with its budget in bytes turned into rows, for `layers` layers like `l` (a row's scales count); other policies as they
/// are. Refused if the budget holds fewer rows than sinks, window and one more.
LAGKV_EDGE result<policy> fit(policy p, const layer& l, std::size_t layers);

/// `p` with a scorer that is shown keys as they were before RoPE; it reads extras.rope. Refused for scorers that read attention:
/// queries meet keys as they are.
LAGKV_EDGE result<policy> pre_rope(policy p);

namespace detail {

/// Refuses a budget that no cache can keep.
LAGKV_EDGE status check_budget(const budget& b);

/// Whether the policy reads the positions of rows that have been candidates before.
LAGKV_FN bool reads_positions(const policy& p);

/// Whether positions, where there are any, are of each head if heads keep different rows.
LAGKV_FN bool positions_suit(const policy& p, const layer& l);

/// Whether protected rows, if there are any, can be told among survivors that are candidates again.
LAGKV_FN bool knows_protected(const policy& p, const layer& l);

/// Refuses keys before RoPE for a scorer that reads attention.
LAGKV_EDGE status check_pre_rope(const needs& n);

/// The error of a budget in bytes where one of rows is needed.
LAGKV_EDGE error is_in_bytes();

}  // namespace detail

#if LAGKV_BODIES

LAGKV_EDGE result<policy> pre_rope(policy p) {
  if (status s = detail::check_pre_rope(p.needs); !s) return error{s.message()};
  p.pre_rope = pre_rope_keys;
  p.needs.rope = true;
  return p;
}

namespace detail {

/// Refuses a share that is not above 0, or 0 where `zero` is accepted, and at most 1.
LAGKV_EDGE status check_share(std::string_view name, double x, bool zero = false) {
  const bool within = (zero ? x >= 0 : x > 0) && x <= 1;
  if (within && !is_nan(static_cast<float>(x))) return {};  // -ffast-math may take a NaN to be within
  return refuse({name, "=", x, zero ? ": must be from 0 to 1" : ": must be above 0 and at most 1"});
}

LAGKV_EDGE status check_pre_rope(const needs& n) {
  if (n.queries == 0 && !n.accumulated_attention && !n.query_statistics) return {};
  return error{"pre_rope=yes: queries meet keys as they are: not with a method that reads attention"};
}

LAGKV_EDGE error is_in_bytes() { return {"budget: is in bytes: make it a number of rows by fit()"}; }

/// Refuses numbers of tokens that no cache holds, and 0 of those that must be 1 or more.
LAGKV_EDGE status check_count(std::string_view name, std::size_t n, std::size_t least = 0) {
  constexpr std::size_t most = (std::numeric_limits<std::uint32_t>::max)();
  if (n < least) return refuse({name, "=", n, ": must be ", least, " or more"});
  if (n > most) return refuse({name, "=", n, ": must be at most ", most});
  return {};
}

/// Whether sinks, window and one more row fit into a capacity.
LAGKV_EDGE status check_capacity(const budget& b, std::size_t rows) {
  const std::size_t window = b.recent_rows(rows);
  if (b.sink + window < rows) return {};
  if (window == b.recent) return refuse({"capacity=", rows, ": must be ", b.sink + window + 1, " or more (sink + recent + 1)"});
  return refuse({"capacity=", rows, ": must be more than sink=", b.sink, " and the window of ", window,
                 " (recent_share=", b.recent_share, ")"});
}

/// Refuses what no string can say of a budget, but a host can write; and budgets that can never hold.
LAGKV_EDGE status check_budget(const budget& b) {
  if (status s = check_share("recent_share", b.recent_share, true); !s) return s;
  if (status s = check_count("sink", b.sink); !s) return s;
  if (status s = check_count("recent", b.recent); !s) return s;
  if (const auto* each = b.as<keep::partitions>()) {
    if (each->lag == 0) return error{"lag=0: must be 1 or more if each partition keeps a share"};
    if (status s = check_count("lag", each->lag); !s) return s;
    return check_share("ratio", each->ratio);
  }
  if (const auto* share = b.as<keep::share>()) {
    if (status s = check_count("lag", share->lag); !s) return s;
    if (status s = check_share("of_all", share->of_all); !s) return s;
    // Nothing goes before there are twice as many as the window holds, which is keep * recent_share of all.
    if (share->lag == 0 && share->of_all < 1 && !(share->of_all * b.recent_share < 0.5))
      return refuse({"keep=", share->of_all, ", recent_share=", b.recent_share,
                     ": nothing would ever go: their product must be below 0.5"});
    return {};
  }
  if (const auto* rows = b.as<keep::capacity>()) {
    if (status s = check_count("every", rows->every, 1); !s) return s;
    if (status s = check_count("capacity", rows->rows); !s) return s;
    return check_capacity(b, rows->rows);
  }
  if (const auto* bytes = b.as<keep::bytes>()) return check_count("every", bytes->every, 1);
  if (const auto* window = b.as<keep::window>()) {
    if (status s = check_count("every", window->every, 1); !s) return s;
    if (window->rows == 0) return check_share("of_all", window->of_all);
    if (status s = check_count("capacity", window->rows); !s) return s;
    if (window->rows <= b.sink) return refuse({"capacity=", window->rows, ": must be ", b.sink + 1, " or more (sink + 1)"});
  }
  return {};
}

/// Whether all heads of the layer keep the same rows.
LAGKV_FN bool keeps_same_rows(const policy& p, const layer& l) {
  return p.same_rows || l.keys.heads() == 1 || p.budget.as<keep::window>() != nullptr ||
         p.budget.as<keep::everything>() != nullptr;
}

LAGKV_FN bool reads_positions(const policy& p) {
  return (p.needs.rope && (p.budget.again() || p.needs.all_rows)) || (p.needs.positions && p.budget.again());
}

LAGKV_FN bool positions_suit(const policy& p, const layer& l) {
  const extras* e = l.extra;
  return e == nullptr || !e->positions || e->positions.head_stride.value != 0 || keeps_same_rows(p, l);
}

LAGKV_FN bool knows_protected(const policy& p, const layer& l) {
  const extras* e = l.extra;
  return e == nullptr || e->protect.empty() || !p.budget.again() || e->positions;
}

/// Whether the layer has positions where the policy reads them, and such as suit it.
LAGKV_EDGE status check_positions(const policy& p, const layer& l) {
  if (!positions_suit(p, l))
    return refuse({"positions: head_stride=0: the policy keeps different tokens in each head: must be at least the ", l.tokens,
                   " rows in use"});
  if (!reads_positions(p) || (l.extra != nullptr && l.extra->positions)) return {};
  if (p.needs.rope)
    return error{"rope: the policy reads rows that have been candidates before, so it needs positions to undo it"};
  return error{"positions: the policy reads those of survivors that are candidates again; the layer offers none"};
}

/// Whether the layer says which embedding its keys carry, if the policy reads it.
LAGKV_EDGE status check_rope(const policy& p, const layer& l) {
  if (!p.needs.rope) return {};
  const extras* e = l.extra;
  if (e == nullptr || e->rope == nullptr)
    return error{"rope: the policy reads keys as they were before RoPE; the layer does not say which they carry"};
  if (status s = check(*e->rope, l.keys.channels()); !s) return refuse({"rope: ", s.message()});
  return {};
}

}  // namespace detail

LAGKV_EDGE status check(const policy& p, const layer& l, bool any_length) {
  if (status s = check(l); !s) return s;
  const budget& b = p.budget;
  const extras* e = l.extra;
  if (!p.score && b.as<keep::window>() == nullptr && b.as<keep::everything>() == nullptr) return error{"policy: has no scorer"};
  if (status s = detail::check_budget(b); !s) return s;
  if (b.as<keep::bytes>() != nullptr) return detail::is_in_bytes();
  if (p.ragged && !any_length) return error{"policy: keeps different numbers of tokens a head, which this cache cannot hold"};
  if (p.needs.values && !l.values) return error{"values: the policy reads them, the layer has none"};
  if (p.needs.queries > 0 && !(e != nullptr && e->offered() > 0))
    return detail::refuse({"queries: the policy reads those of the last ", p.needs.queries,
                           " tokens, or their attention weights; the layer offers none"});
  if (p.needs.accumulated_attention && !(e != nullptr && (e->accumulated_attention || e->queries || e->weights)))
    return error{
        "accumulated_attention: the policy reads the attention of all tokens (or their queries, or weights); the layer offers "
        "none"};
  if (p.needs.accumulated_attention && !e->accumulated_attention && e->offered() < l.tokens)
    return detail::refuse({e->weights ? "weights=" : "queries=", e->offered(), ": the policy reads those of all ", l.tokens,
                           " tokens, or the attention that each row has received (accumulated_attention)"});
  if (p.needs.query_statistics && !(e != nullptr && (e->query_mean || e->offered(e->queries) > 0)))
    return error{"query_mean: the policy reads statistics of queries, or queries; the layer offers none"};
  if (p.needs.calibrated && !(e != nullptr && e->query_mean))
    return error{"query_mean: the policy reads statistics of the model's queries; the layer offers none"};
  if (p.needs.importance && !(e != nullptr && e->importance))
    return error{"importance: the policy reads the map that was fitted to the model; the layer offers none"};
  if (p.needs.head_budgets && !(e != nullptr && !e->head_budgets.empty()))
    return error{"head_budgets: the policy reads the budget of each head; the layer offers none"};
  if (status s = detail::check_rope(p, l); !s) return s;
  if (status s = detail::check_positions(p, l); !s) return s;
  if (!detail::knows_protected(p, l))
    return error{"protect: survivors are candidates again, so the policy needs positions to know protected ones"};
  if (status s = detail::check_count("tokens", l.tokens); !s) return s;
  if (p.ragged && l.tokens > (std::numeric_limits<std::uint32_t>::max)() / l.keys.heads())
    return detail::refuse({"tokens=", l.tokens, ": heads of different lengths must have at most 4294967295 rows together, not ",
                           l.keys.heads(), " times as many"});
  return {};
}

LAGKV_EDGE std::size_t peak_rows(const policy& p, std::size_t chunk, std::size_t tokens) {
  using count = std::uint64_t;  // of numbers below 2^32: no sum or product wraps
  constexpr std::size_t most = (std::numeric_limits<std::uint32_t>::max)();
  if (tokens > most) tokens = most;
  if (p.needs.head_budgets) return tokens;  // a head may keep all
  const budget& b = p.budget;
  const auto larger = [](count x, count y) { return x > y ? x : y; };
  const auto within = [&](count rows) { return rows < tokens ? rows : tokens; };  // more rows than tokens are as many
  const count sink = within(b.sink);
  count rest = tokens;  // the most rows after a call, if the sequence goes on for ever
  if (const auto* each = b.as<keep::partitions>()) {
    const count lag = within(each->lag), partitions = lag != 0 ? (tokens - sink) / lag : 0;
    rest = sink + partitions * within(share_of(each->ratio, each->lag)) + 2 * lag;
  } else if (const auto* share = b.as<keep::share>()) {
    const std::size_t average = share_of(share->of_all, tokens);
    const count goal = within(average), window = within(b.recent_rows(average));
    // Nothing goes before there are two units of candidates behind what stays.
    rest = larger(goal, sink) + 2 * (share->lag != 0 ? within(share->lag) : larger(window, 1));
    if (b.slope.sloped()) rest = larger(rest, 2 * goal + 2 * window);
  } else if (const auto* rows = b.as<keep::capacity>()) {
    const count goal = within(rows->rows), outside = sink + within(b.recent_rows(rows->rows));
    rest = larger(b.slope.sloped() ? 2 * goal : goal, outside) + within(rows->every - 1);
  } else if (const auto* window = b.as<keep::window>()) {
    const count goal = within(window->rows != 0 ? window->rows : share_of(window->of_all, tokens));
    rest = larger(goal, sink + 1) + within(window->every - 1);
  }
  const auto sized = [](auto n) {  // GCC warns of a cast to the same type
    if constexpr (std::is_same_v<decltype(n), std::size_t>)
      return n;
    else
      return static_cast<std::size_t>(n);
  };
  const auto and_chunk = [&](count rows) { return chunk >= tokens || rows >= tokens - chunk ? tokens : sized(rows) + chunk; };
  return and_chunk(p.ragged ? and_chunk(rest) : rest);  // the first plan of all heads may leave one of them all that it has
}

LAGKV_FN policy for_layer(policy p, std::size_t layer, std::size_t layers) {
  p.budget.slope.layer = layer;
  p.budget.slope.layers = layers;
  return p;
}

LAGKV_FN policy for_head(policy p, double multiple) {
  if (p.needs.head_budgets) p.select = {}, p.ragged = p.needs.head_budgets = false;
  const double m = detail::finite(multiple) && multiple > 0 ? multiple : 0;
  constexpr double all = 1 - 1e-6;  // less a rounding to f32: a head that is to keep all loses none
  const auto share = [&](double x) { return x * m < all ? (x * m > 1e-9 ? x * m : 1e-9) : 1.0; };
  const auto ratio = [&](const keep::partitions& b) {  // to the nearest row of what a partition keeps, as by_head
    const double even = static_cast<double>(share_of(b.ratio, b.lag)), own = __builtin_floor(m * even + 0.5);
    const double exact = share(b.ratio), lag = static_cast<double>(b.lag);
    return !(exact < 1) || own >= lag ? 1.0 : own > 0 ? __builtin_nextafter(own / lag, 1.0) : 1e-9;  // share_of() rounds down
  };
  const std::size_t least = p.budget.sink + p.budget.recent + 1;
  const auto rows = [&](std::size_t n) {
    const double scaled = static_cast<double>(n) * m, most = 4294967295.0;
    const auto whole = static_cast<std::size_t>(scaled < most ? scaled + 0.5 : most);
    return whole > least ? whole : least;
  };
  if (const auto* b = p.budget.as<keep::partitions>()) p.budget.keeps = keep::partitions{b->lag, ratio(*b)};
  if (const auto* b = p.budget.as<keep::share>()) p.budget.keeps = keep::share{share(b->of_all), b->lag};
  if (const auto* b = p.budget.as<keep::capacity>()) p.budget.keeps = keep::capacity{rows(b->rows), b->every};
  if (const auto* b = p.budget.as<keep::window>())
    p.budget.keeps = keep::window{b->rows != 0 ? rows(b->rows) : 0, share(b->of_all), b->every};
  return p;
}

LAGKV_EDGE result<policy> fit(policy p, const layer& l, std::size_t layers) {
  const auto* bytes = p.budget.as<keep::bytes>();
  if (bytes == nullptr) return p;
  if (status s = detail::check_count("layers", layers, 1); !s) return error{s.message()};
  if (!detail::finite(bytes->amount) || !(bytes->amount > 0))
    return detail::refuse({"bytes=", bytes->amount, ": must be above 0"});
  const auto row = [](const tensor& x) { return x.row_bytes() + x.scales().row_bytes(); };  // 0 of what is not there
  const std::size_t token = layers * l.keys.heads() * (row(l.keys) + row(l.values));
  const double fit = token == 0 ? 0 : bytes->amount / static_cast<double>(token), most = 4294967295.0;
  const auto rows = static_cast<std::size_t>(fit < most ? fit : most);
  const std::size_t least = p.budget.sink + p.budget.recent + 1;
  if (rows < least)
    return detail::refuse(
        {"budget: holds ", rows, " tokens of ", token, " bytes: must hold ", least, " or more (sink + recent + 1)"});
  p.budget.keeps = keep::capacity{rows, bytes->every};
  if (status s = detail::check_budget(p.budget); !s)
    return detail::refuse({"budget: holds ", rows, " tokens of ", token, " bytes: ", s.message()});
  return p;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
