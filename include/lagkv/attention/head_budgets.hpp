// Part of lagkv (MIT). Which layers and heads need most rows: those that look back most when the model says a text again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <lagkv/attention/attention.hpp>
#include <lagkv/cache/layer.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/result.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The most attention that each of the first n rows of a KV head gets from any query that the layer offers (extras.queries), of
/// any query head of its group: KVzip's importance (arXiv 2505.23416), where the queries are those of the text said again.
/// Refused if the layer offers no queries (nor weights), or has no such head or fewer rows in use, or check() refuses it.
inline result<std::vector<float>> most_attention(const layer& l, std::size_t head, std::size_t n, workspace& ws) {
  if (status s = check(l); !s) return error{s.message()};
  if (offered_queries(l) == 0) return error{"queries: the layer offers none: importance is the attention that they pay"};
  if (head >= l.keys.heads()) return detail::refuse({"head=", head, ": must be below the ", l.keys.heads(), " of the keys"});
  if (n > l.tokens) return detail::refuse({"rows=", n, ": must be at most the ", l.tokens, " in use"});
  const workspace::frame scratch(ws);
  const float* most = detail::attention_alone(l, head, offered_queries(l), 1, ws, aggregation::max);
  return std::vector<float>(most, most + n);
}

namespace detail {

/// Descending; a NaN becomes the lowest finite number.
inline std::vector<float> most_important_first(std::vector<float> list) {
  for (float& x : list)
    if (is_nan(x)) x = std::numeric_limits<float>::lowest();
  std::sort(list.begin(), list.end(), std::greater<float>());
  return list;
}

}  // namespace detail

/// For each layer the share of its rows that it would keep if `share` of all rows of all layers stayed, the most important
/// ones. For hosts whose layers can hold different numbers of rows: give each layer's policy its own keep::share.
/// importance[layer]: one list, what most_attention() returned, of all heads and texts. Each layer has at least `safeguard` of
/// its even share, and one row; a layer without rows has `share`. A NaN counts as least. share: above 0 and at most 1,
/// safeguard: from 0 to 1; others are refused. Cost: sorts all rows, in 16 bytes each. Source: KVzip (arXiv 2505.23416), whose
/// budget is one for all layers and heads; the safeguard is AdaKV's (arXiv 2407.11550).
inline result<std::vector<double>> layer_shares(std::span<const std::vector<float>> importance, double share,
                                                double safeguard = 0.2) {
  if (!detail::finite(static_cast<float>(share)) || !(share > 0 && share <= 1))
    return detail::refuse({"share=", share, ": must be above 0 and at most 1"});
  if (!detail::finite(static_cast<float>(safeguard)) || !(safeguard >= 0 && safeguard <= 1))
    return detail::refuse({"safeguard=", safeguard, ": must be from 0 to 1"});
  struct candidate {
    float score;
    std::size_t layer;
  };
  std::vector<candidate> rest;
  std::vector<std::size_t> kept(importance.size());
  std::size_t left = 0;
  for (std::size_t i = 0; i < importance.size(); ++i) {
    const std::vector<float> all = detail::most_important_first(importance[i]);
    kept[i] = share_of(safeguard * share, all.size());
    left += share_of(share, all.size()) - kept[i];
    for (std::size_t row = kept[i]; row < all.size(); ++row) rest.push_back({all[row], i});
  }
  std::stable_sort(rest.begin(), rest.end(), [](const candidate& a, const candidate& b) { return a.score > b.score; });
  for (std::size_t i = 0; i < left; ++i) ++kept[rest[i].layer];
  std::vector<double> shares(kept.size(), share);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (importance[i].empty()) continue;
    const double own = (std::max)(static_cast<double>(kept[i]), 1.0) / static_cast<double>(importance[i].size());
    shares[i] = (std::min)(std::nextafter(own, 2.0), 1.0);  // share_of() rounds down
  }
  return shares;
}

/// [layer][head]: the budget of each head, for extras.head_budgets (select=by_head). It is the share of its rows that the head
/// would keep if `share` of all rows of all heads and layers stayed, the most important ones, divided by `share`; the average
/// is 1. importance[layer][head]: what most_attention() returned, of all texts, or an even_sample() of it. least: the share of
/// its rows that each head keeps whatever their importance; give the share that sinks and window take. share: above 0 and at
/// most 1; least: from 0 to share; others are refused. A NaN counts as least important. Cost: sorts all rows. Source: KVzip
/// (arXiv 2505.23416), which has one budget for all layers and heads.
inline result<std::vector<std::vector<float>>> head_budgets(std::span<const std::vector<std::vector<float>>> importance,
                                                            double share, double least = 0) {
  if (!detail::finite(share) || !(share > 0 && share <= 1))
    return detail::refuse({"share=", share, ": must be above 0 and at most 1"});
  if (!detail::finite(least) || !(least >= 0 && least <= share))
    return detail::refuse({"least=", least, ": must be from 0 to the share, ", share});
  struct candidate {
    float score;
    std::size_t head;
    double share;  // of its head's rows
  };
  std::vector<candidate> rest;
  std::vector<double> kept;  // shares, head after head of all layers
  double left = 0;
  for (const std::vector<std::vector<float>>& heads : importance)
    for (const std::vector<float>& unsorted : heads) {
      const std::vector<float> list = detail::most_important_first(unsorted);
      const auto n = static_cast<double>(list.size());
      for (auto row = static_cast<std::size_t>(least * n); row < list.size(); ++row)
        rest.push_back({list[row], kept.size(), 1 / n});
      kept.push_back(list.empty() ? share : least);
      left += share - kept.back();
    }
  std::stable_sort(rest.begin(), rest.end(), [](const candidate& a, const candidate& b) { return a.score > b.score; });
  for (const candidate& c : rest) {
    if (!(left > 0)) break;
    const double more = (std::min)({c.share, left, 1 - kept[c.head]});
    kept[c.head] += more, left -= more;
  }
  std::vector<std::vector<float>> all;
  auto next = kept.begin();
  for (const std::vector<std::vector<float>>& heads : importance) {
    std::vector<float>& of = all.emplace_back();
    for (std::size_t head = 0; head < heads.size(); ++head) of.push_back(static_cast<float>(*next++ / share));
  }
  return all;
}

/// `n` numbers that stand for a longer list: it is sorted, descending, and cut into n equal parts; the middle of each is taken.
/// A list of n numbers or fewer is only sorted. A NaN becomes the lowest finite number.
inline std::vector<float> even_sample(std::vector<float> list, std::size_t n) {
  list = detail::most_important_first(std::move(list));
  if (list.size() <= n) return list;
  std::vector<float> sample;
  for (std::size_t i = 0; i < n; ++i) sample.push_back(list[(2 * i + 1) * list.size() / (2 * n)]);
  return sample;
}

}  // namespace lagkv::inline LAGKV_ABI
