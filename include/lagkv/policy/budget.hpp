// Part of lagkv (MIT). How many tokens stay, and when the others go. Plain data; reads no cache.
#pragma once

#include <cstddef>
#include <variant>

#include <lagkv/cache/cursor.hpp>
#include <lagkv/plan/candidates.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Budgets that fall from layer to layer (PyramidKV, arXiv 2406.02069). Beside sinks and window, the first layer keeps 2 -
/// 1/beta times the average, the last 1/beta times; the steps between are equal. Each is rounded down, so all layers together
/// keep at most what they would without a slope. The window is that of the average. The slope is less steep if the first layer
/// could not hold that much, or the last would keep less than one row.
struct pyramid {
  double beta = 0;        ///< 0: not used; 1: no slope; the paper's is 20
  std::size_t layer = 0;  ///< below `layers`; a larger one counts as the last
  std::size_t layers = 1;

  /// Whether layers are to keep different numbers of rows; holds before for_layer() has said which layer it is.
  bool sloped() const noexcept { return beta > 1; }

  /// Whether this layer's number differs from the average: sloped(), and for_layer() has said which of several layers it is.
  bool used() const noexcept { return sloped() && layers > 1; }

  /// What this layer keeps, as a multiple of the average; the first has at most `most` times the average, 1 or more.
  double factor(double most) const {
    const double steep = 2 - 1 / beta, first = steep < most ? steep : most;
    const std::size_t last = layers - 1, own = layer < last ? layer : last;
    return first - 2 * (first - 1) * static_cast<double>(own) / static_cast<double>(last);
  }
};

/// What stays of the tokens between sinks and window: one of these kinds.
namespace keep {

/// int(ratio * lag) of each partition of `lag` tokens. The tokens after the part already compressed form partitions; all but
/// the last whole one are candidates, once ever, as soon as there are two. The last and what follows it are the window.
struct partitions {
  std::size_t lag = 1024;
  double ratio = 0.5;
};

/// int(of_all * tokens seen) rows, sinks and window included. Tokens between the part already compressed and the window are
/// candidates, once ever, as soon as they are as many as the window; with `lag` they are whole partitions, as above.
struct share {
  double of_all = 0.5;
  std::size_t lag = 0;
};

/// `rows` rows. All tokens between sinks and window are candidates, survivors of earlier times too, whenever the rows in use
/// exceed the budget by `every` or more.
struct capacity {
  std::size_t rows = 0;
  std::size_t every = 1;
};

/// A capacity of so many bytes in all layers together: fit() makes it one of rows.
struct bytes {
  double amount = 0;
  std::size_t every = 1;
};

/// The sinks and the most recent tokens: `rows` rows, or if that is 0 the share of_all of the tokens seen. The oldest go first,
/// whenever the rows in use exceed the budget by `every` or more.
struct window {
  std::size_t rows = 0;
  double of_all = 0;
  std::size_t every = 1;
};

/// All tokens.
struct everything {};

}  // namespace keep

/// What a policy keeps: the first `sink` tokens, the last ones (the window), and of those between as many as `keeps` says. At
/// least one row always stays.
struct budget {
  std::size_t sink = 16;
  std::size_t recent = 0;   ///< the window, if `keeps` does not say it
  double recent_share = 0;  ///< the window is at least this share of the budget
  std::variant<keep::partitions, keep::share, keep::capacity, keep::bytes, keep::window, keep::everything> keeps{};
  pyramid slope{};
  /// With a share: candidates are due where it has room for all of them, too, for a selector that keeps fewer (a threshold).
  bool even_with_room = false;

  /// What it keeps, if that is a Kind; else null.
  template <class Kind>
  const Kind* as() const noexcept {
    return std::get_if<Kind>(&keeps);
  }

  /// Length of the partitions; 0 if there are none.
  std::size_t lag() const noexcept {
    if (const auto* p = as<keep::partitions>()) return p->lag;
    const auto* s = as<keep::share>();
    return s != nullptr ? s->lag : 0;
  }

  /// Whether survivors are candidates again.
  bool again() const noexcept { return as<keep::capacity>() != nullptr || as<keep::bytes>() != nullptr; }

  /// What may go now: a few comparisons, no loop. `tokens` are the rows in use.
  candidates due(const cursor& at, std::size_t tokens) const;

  /// The window of a budget of `goal` rows.
  std::size_t recent_rows(std::size_t goal) const {
    const std::size_t least = recent_share > 0 ? share_of(recent_share, goal) : 0;
    return least > recent ? least : recent;
  }

 private:
  static candidates due_partitions(const keep::partitions& p, std::size_t begin, std::size_t tokens);
  candidates due_share(const keep::share& s, std::size_t begin, std::size_t tokens, std::size_t seen) const;
  candidates due_capacity(const keep::capacity& c, std::size_t tokens, std::size_t seen) const;
  static candidates due_window(const keep::window& w, std::size_t begin, std::size_t tokens, std::size_t seen);

  /// What this layer has of a goal that is the average of all layers, beside sinks and a window of `last` rows.
  std::size_t sloped(std::size_t goal, std::size_t last, std::size_t seen) const;

  static std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }
};

#if LAGKV_BODIES

LAGKV_FN candidates budget::due(const cursor& at, std::size_t tokens) const {
  const std::size_t done = at.compressed < tokens ? at.compressed : tokens, begin = done > sink ? done : sink;
  const std::size_t seen = tokens + at.dropped;
  candidates c{};
  if (const keep::partitions* p = as<keep::partitions>())
    c = due_partitions(*p, begin, tokens);
  else if (const keep::share* s = as<keep::share>())
    c = due_share(*s, begin, tokens, seen);
  else if (const keep::capacity* rows = as<keep::capacity>())
    c = due_capacity(*rows, tokens, seen);
  else if (const keep::window* w = as<keep::window>())
    c = due_window(*w, begin, tokens, seen);
  c.positions.dropped = at.dropped;
  return c;
}

LAGKV_FN candidates budget::due_partitions(const keep::partitions& p, std::size_t begin, std::size_t tokens) {
  if (tokens < begin || (tokens - begin) / p.lag < 2) return {};
  const std::size_t count = (tokens - begin) / p.lag - 1, each = share_of(p.ratio, p.lag);
  return {.rows = {begin, begin + count * p.lag}, .keep = count * each, .partition = p.lag, .keep_each = each};
}

LAGKV_FN candidates budget::due_share(const keep::share& s, std::size_t begin, std::size_t tokens, std::size_t seen) const {
  const std::size_t average = share_of(s.of_all, seen);
  std::size_t last = recent_rows(average), goal = sloped(average, last, seen);
  if (goal <= 1) goal = 1, last = last > 1 ? last : 1;  // the last row stays
  if (tokens <= begin || (tokens <= goal && !even_with_room)) return {};
  const std::size_t unit = s.lag != 0 ? s.lag : last;
  if (tokens - begin < unit || tokens - begin - unit < unit) return {};  // so end is beyond begin
  const std::size_t end = s.lag != 0 ? begin + ((tokens - begin) / s.lag - 1) * s.lag : tokens - last;
  const std::size_t beyond = tokens > goal ? tokens - goal : 0;
  return {.rows = {begin, end}, .keep = end - begin - least(beyond, end - begin)};
}

LAGKV_FN candidates budget::due_capacity(const keep::capacity& c, std::size_t tokens, std::size_t seen) const {
  const std::size_t last = recent_rows(c.rows), goal = sloped(c.rows, last, seen);
  if (tokens <= sink || tokens <= goal || tokens - goal < c.every) return {};
  const std::size_t end = tokens > last ? tokens - last : 0;
  if (end <= sink) return {};
  return {.rows = {sink, end}, .keep = end - sink - least(tokens - goal, end - sink)};
}

LAGKV_FN candidates budget::due_window(const keep::window& w, std::size_t begin, std::size_t tokens, std::size_t seen) {
  const std::size_t wanted = w.rows != 0 ? w.rows : share_of(w.of_all, seen), goal = wanted > 1 ? wanted : 1;
  if (tokens <= begin + 1 || tokens <= goal || tokens - goal < w.every) return {};
  return {.rows = {begin, begin + least(tokens - goal, tokens - begin - 1)}};  // the last row stays
}

LAGKV_FN std::size_t budget::sloped(std::size_t goal, std::size_t last, std::size_t seen) const {
  if (!slope.used()) return goal;
  const std::size_t outside = sink + last;
  if (goal <= outside || seen <= goal) return goal;
  constexpr double rounding = 1e-6;  // a whole number stays one
  const double average = static_cast<double>(goal - outside), room = static_cast<double>(seen - outside) / average;
  const double steepest = 2 - 1 / average;  // the last layer keeps one row
  const auto own = static_cast<std::size_t>(average * slope.factor(room < steepest ? room : steepest) + rounding);
  return outside + own;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
