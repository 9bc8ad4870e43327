#include "uneven.hpp"

#include <lagkv/attention/head_budgets.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "host/stopwatch.hpp"

namespace eval {
namespace {

using head_budgets = std::vector<std::vector<float>>;

// Of each head, for a budget that keeps this share of all rows.
head_budgets budgets(const host::calibration& counted, const lagkv::policy& rules, std::size_t tokens) {
  if (!rules.needs.head_budgets) return {};
  const lagkv::candidates due = rules.budget.due({}, tokens);
  const auto n = static_cast<double>(tokens);
  const std::size_t beside = tokens - due.rows.size();  // sinks and window
  auto made =
      lagkv::head_budgets(counted.head_importance, static_cast<double>(beside + due.keep) / n, static_cast<double>(beside) / n);
  if (!made) throw std::invalid_argument(made.message());
  return *made;
}

// Cells of each head that a plan has no use for.
std::vector<std::vector<std::int32_t>> cells_that_go(const lagkv::plan& p) {
  std::vector<std::vector<std::int32_t>> all(p.heads());
  for (std::size_t head = 0; head < p.heads(); ++head) {
    const auto kept = p.of(head);
    for (std::size_t row = p.candidates.begin; row < p.candidates.end; ++row)
      if (!std::binary_search(kept.begin(), kept.end(), static_cast<std::uint32_t>(row)))
        all[head].push_back(static_cast<std::int32_t>(row));
  }
  return all;
}

}  // namespace

std::string uneven_obstacle(const host::named_policy& policy, host::session& s, bool transposed, bool chunks) {
  if (!transposed) return "heads of different lengths: give --transposed";
  if (chunks) return "heads of different lengths: not with --chunk";
  if (!s.probe().obstacle().empty()) return "heads of different lengths: " + s.probe().obstacle();
  if (policy.change) return "heads of different lengths: not with refit";
  if (policy.rules.needs.head_budgets && s.counted().head_importance.empty())
    return "select=by_head: give --calibration a file of calibrate --count importance";
  return {};
}

// A sequence that was restored into an empty cache lies in its first cells, in the order of its tokens.
host::compression hide_what_goes(host::session& s, const host::named_policy& policy, const host::saved_sequence& saved) {
  const host::stopwatch watch;
  std::vector<std::uint8_t> bytes = saved.state;
  const auto state = lagkv::llama::saved_sequence::parse(bytes, lagkv::llama::saved_sequence::unknown_rest);
  if (!state) throw std::invalid_argument(state.message());
  const std::size_t n = state->tokens();
  host::calibration counted = host::counted_for(s, policy.rules);
  lagkv::llama::offers offers(s.get(), policy.rules, &s.probe(), std::move(counted.queries), std::move(counted.importance),
                              budgets(counted, policy.rules, n));
  lagkv::llama::offered_rows rows{state->all_layers(), state->cells(), state->positions()};
  if (const lagkv::status found = lagkv::llama::find_recorded_cache(s.get(), s.probe()); !found)
    throw std::invalid_argument(found.message());
  const std::span<const lagkv::llama::cached_layer> seen = s.probe().layers();
  if (!lagkv::llama::take_seen(rows.layers, seen))
    throw std::invalid_argument(policy.name + ": the model's layers have not been seen");
  lagkv::llama::recording recorded = saved.attention;
  if (offers.reads().any()) rows.recorded = &recorded;
  lagkv::llama::progress begun;
  lagkv::workspace ws;
  const auto layers = offers.make(begun, rows, ws);
  if (!layers) throw std::invalid_argument(policy.name + ": " + layers.message());
  std::size_t kept = 0, heads = 0, each = 0;
  for (std::size_t i = 0; i < layers->size(); ++i) {
    const lagkv::layer& l = (*layers)[i];
    const lagkv::plan& plan = lagkv::plan_eviction(lagkv::for_layer(policy.rules, i, layers->size()), l, {}, ws);
    for (std::size_t head = 0; head < l.keys.heads(); ++head) kept += plan.tokens_after(plan.empty() ? 0 : head);
    heads += l.keys.heads();
    each += (l.keys.row_bytes() + l.values.row_bytes()) * l.keys.heads();
    if (!plan.empty()) s.hidden().hide(seen[i].id, cells_that_go(plan));
  }
  const std::size_t after = (kept + heads / 2) / heads;
  return {n, after, n * each, after * each, watch.seconds()};
}

}  // namespace eval
