// Part of lagkv (MIT). The named policies: documented options in, a policy or the reason why not out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <lagkv/core.hpp>
#include <lagkv/detail/message.hpp>
#include <lagkv/method.hpp>
#include <lagkv/policy.hpp>
#include <lagkv/score/lag_relative.hpp>
#include <lagkv/score/pool.hpp>
#include <lagkv/score/rank.hpp>
#include <lagkv/select/adaptive.hpp>
#include <lagkv/select/chunks.hpp>

namespace lagkv::inline LAGKV_ABI {

/// The forms of LagKV in use.
enum class lagkv_form : std::uint8_t {
  paper,         ///< each partition keeps its int(ratio * lag) best (arXiv 2504.04704 and its code)
  local,         ///< the paper's variant LocalKV: normalised by the partition itself
  kvpress,       ///< ranks within the partition compete over the whole judged range (kvpress 0.5.5, LagKVPress)
  kvpress_cross  ///< scores compete over the whole judged range (LagKVPress(cross_scoring=True))
};

/// LagKV. Defaults are those of the reference code, lag_kv.py; the paper's RULER tables use lag 128.
///
/// The paper's warning (section 4.2): quality needs ratio * lag well above the length in tokens of the span that must
/// survive. A 64-digit pass key of 64 tokens is lost at lag 128, ratio 0.25 (32 tokens stay of each partition).
struct lagkv_options {
  std::size_t sink = 16;      ///< first tokens, always kept
  std::size_t lag = 1024;     ///< tokens a partition
  double ratio = 0.5;         ///< share kept: of each partition; in the kvpress forms of all tokens seen
  double value_weight = 1.0;  ///< score = keys + value_weight * values; 0: values are not read
  lagkv_form form = lagkv_form::paper;
};

/// StreamingLLM (arXiv 2309.17453): the first `sink` tokens and the most recent ones. Give one of the two budgets.
struct streaming_llm_options {
  std::size_t sink = 4;                   ///< the paper's
  std::optional<std::size_t> capacity{};  ///< rows kept, sinks included
  std::optional<double> keep{};           ///< share kept of all tokens seen
};

/// How a policy picks by scores.
enum class selection : std::uint8_t {
  top_k,    ///< the best tokens of each head
  chunks,   ///< whole chunks of neighbours, the same for all heads (ChunkKV)
  adaptive  ///< the best of all heads together, so that heads keep different numbers (AdaKV)
};

/// How many tokens stay, and how they are picked: what every scored method shares. Give at most one of keep, capacity and
/// budget_mb; none means keep = 0.5.
struct policy_options {
  std::size_t sink = 4;  ///< first tokens, always kept (StreamingLLM's number)
  /// Last tokens, always kept: the window. Not given: the method's own, 32 for most.
  std::optional<std::size_t> recent{};
  /// 0: all tokens between sinks and window are judged at once, against all tokens in use. Else partitions of that many
  /// tokens are judged one by one, each against the next, as LagKV does; the last one is the window.
  std::size_t lag = 0;
  std::optional<double> keep{};           ///< share of all tokens seen, or (with lag) of each partition; none is judged twice
  std::optional<std::size_t> capacity{};  ///< rows kept; survivors are judged again with the tokens that come
  std::optional<double> budget_mb{};      ///< the same in 10^6 bytes for all layers together: fit() makes it a capacity
  std::size_t every = 1;                  ///< with capacity: judge when so many rows exceed it
  /// The window is at least this share of the budget. Not given: the method's own, 0 for most, 0.5 for h2o.
  std::optional<double> recent_share{};
  std::size_t pool = 1;  ///< average scores over so many neighbours (odd)
  /// Average scores over so many neighbours on each side, the nearer the more. Not given: the method's own, 0 for most.
  std::optional<std::size_t> smooth{};
  /// All heads of a layer keep the same tokens, by the mean of their scores. Not given: the method's own, no for most.
  std::optional<bool> agree{};
  /// Judge keys as they were before RoPE, which extras.rope tells. Not given: the method's own, no for most.
  std::optional<bool> unrotate{};
  selection select = selection::top_k;
  std::size_t chunk = 20;  ///< tokens a chunk
  double safeguard = 0.2;  ///< share of its even part that each head keeps for sure
  double pyramid = 0;      ///< beta of budgets that fall from layer to layer (PyramidKV: 20); 0: all equal
};

namespace detail {

inline constexpr std::size_t most_tokens = 0x7fffffff;

LAGKV_EDGE status check_count(const char* name, std::size_t value, std::size_t least);

LAGKV_EDGE status check_odd(const char* name, std::size_t value);

LAGKV_EDGE status check_share(const char* name, double value);

}  // namespace detail

/// LagKV as a policy.
LAGKV_EDGE result<policy> make_lagkv(const lagkv_options& o = {});

/// `p`, whose scorer is shown keys as they were before RoPE; reads extras.rope. (make_policy() has an option for it.)
LAGKV_EDGE policy unrotated(policy p);

/// StreamingLLM as a policy. Needs no scores: no key and no value is read.
LAGKV_EDGE result<policy> make_streaming_llm(const streaming_llm_options& o);

namespace detail {

/// What a method's scores go through before tokens are picked, and how its scorer is shown the keys.
LAGKV_EDGE status adjust(part& method, const policy_options& o);

}  // namespace detail

/// A policy from a method's part. Where its scorer works in partitions their length must be o.lag.
LAGKV_EDGE result<policy> make_policy(const part& method, const policy_options& o = {});

/// A policy from a scorer; its lag, where it has one, is that of the options.
template <class Scorer>
requires(!std::is_same_v<Scorer, part>) result<policy> make_policy(Scorer s, const policy_options& o = {}) {
  if constexpr (requires { s.lag = o.lag; }) s.lag = o.lag;
  return make_policy(part_of(s), o);
}

/// A policy from two to four methods, whose scorers work in partitions of o.lag. With fusion::best a method whose weight is a
/// share w of the sum of the weights has at least its int(w * kept) best tokens kept; what two methods choose counts once, and
/// makes room for the next of both.
LAGKV_EDGE result<policy> make_fusion(std::span<const part> parts, const policy_options& o = {}, fusion by = fusion::sum);

#if LAGKV_BODIES

namespace detail {

LAGKV_EDGE status check_count(const char* name, std::size_t value, std::size_t least) {
  if (value >= least && value <= most_tokens) return {};
  if (value < least) return refuse({name, "=", value, ": must be ", least, " or more"});
  return refuse({name, "=", value, ": must be at most ", most_tokens});
}

LAGKV_EDGE status check_odd(const char* name, std::size_t value) {
  if (value % 2 == 1 && value <= most_tokens) return {};
  return detail::refuse({name, "=", value, ": must be an odd number"});
}

LAGKV_EDGE status check_share(const char* name, double value) {
  if (value > 0 && value <= 1) return {};
  return detail::refuse({name, "=", value, ": must be above 0 and at most 1"});
}

}  // namespace detail

LAGKV_EDGE result<policy> make_lagkv(const lagkv_options& o) {
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if (status s = detail::check_count("lag", o.lag, 1); !s) return error{s.message()};
  if (status s = detail::check_share("ratio", o.ratio); !s) return error{s.message()};
  if (!(o.value_weight >= 0 && o.value_weight <= 1e6))
    return detail::refuse({"value_weight=", o.value_weight, ": must be from 0 to 1000000"});
  const bool of_all = o.form == lagkv_form::kvpress || o.form == lagkv_form::kvpress_cross;
  const float half = of_all ? 0.5F : 1.0F;  // kvpress takes the mean of both parts
  policy p;
  p.retain = {
      .sink = o.sink, .lag = o.lag, .kind = of_all ? budget::share_of_all : budget::share_of_partition, .amount = o.ratio};
  p.score = lag_relative{.lag = o.lag,
                         .value_weight = half * static_cast<float>(o.value_weight),
                         .reference = o.form == lagkv_form::local ? lag_relative::against::own : lag_relative::against::next,
                         .key_weight = half};
  if (o.form == lagkv_form::kvpress) p.adjust = rank_in_partition{o.lag};
  p.needs.values = o.value_weight > 0;
  return p;
}

LAGKV_EDGE policy unrotated(policy p) {
  p.unrotated = unrotated_keys;
  p.needs.rope = true;
  return p;
}

LAGKV_EDGE result<policy> make_streaming_llm(const streaming_llm_options& o) {
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if (o.capacity.has_value() == o.keep.has_value()) return error{"capacity, keep: give one of them"};
  policy p;
  p.retain = {.sink = o.sink, .kind = budget::share_of_all, .amount = o.keep.value_or(0), .oldest_first = true};
  if (o.capacity) {
    if (status s = detail::check_count("capacity", *o.capacity, o.sink + 1); !s) return error{s.message()};
    p.retain.kind = budget::capacity;
    p.retain.amount = static_cast<double>(*o.capacity);
  } else if (status s = detail::check_share("keep", *o.keep); !s) {
    return error{s.message()};
  }
  return p;
}

namespace detail {

LAGKV_EDGE status adjust(part& method, const policy_options& o) {
  const std::size_t reach = o.smooth.value_or(method.smooth);
  const bool agree = o.agree.value_or(method.agree);
  if (status s = check_count("smooth", reach, 0); !s) return s;
  if (o.unrotate) method.unrotated = *o.unrotate ? unrotated_keys : nullptr;
  if (method.unrotated != nullptr && (method.needs.queries > 0 || method.needs.mass || method.needs.statistics))
    return error{"unrotate: queries meet keys as they are: not with a method that reads attention"};
  method.needs.rope = method.unrotated != nullptr;
  if (o.pool > 1) method.adjust.then(pool{o.pool});
  if (agree) method.adjust.then(mean_of_heads{});
  if (reach > 0) method.adjust.then(smooth{reach, agree});
  return {};
}

}  // namespace detail

LAGKV_EDGE result<policy> make_policy(const part& method, const policy_options& o) {
  const std::size_t recent = o.recent.value_or(method.recent);
  const double recent_share = o.recent_share.value_or(method.recent_share);
  const int budgets = (o.keep ? 1 : 0) + (o.capacity ? 1 : 0) + (o.budget_mb ? 1 : 0);
  if (budgets > 1) return error{"keep, capacity, budget_mb: give one of them"};
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if (status s = detail::check_count("recent", recent, 0); !s) return error{s.message()};
  if (status s = detail::check_count("lag", o.lag, 0); !s) return error{s.message()};
  if (status s = detail::check_count("every", o.every, 1); !s) return error{s.message()};
  if (status s = detail::check_count("chunk", o.chunk, 1); !s) return error{s.message()};
  if (status s = detail::check_odd("pool", o.pool); !s) return error{s.message()};
  for (auto [name, value] : {std::pair{"recent_share", recent_share}, {"safeguard", o.safeguard}})
    if (!(value >= 0 && value <= 1)) return detail::refuse({name, "=", value, ": must be from 0 to 1"});
  if (!(o.pyramid >= 1 && o.pyramid <= 1e6) && (o.pyramid > 0 || !(o.pyramid >= 0)))
    return detail::refuse({"pyramid=", o.pyramid, ": must be 0, or from 1 to 1000000"});
  if (o.lag != 0 && (o.capacity || o.budget_mb)) return detail::refuse({"lag=", o.lag, ": a partition keeps a share: give keep"});
  if (o.lag != 0 && o.pyramid > 0)
    return detail::refuse({"lag=", o.lag, ": a partition keeps the same share in all layers: not with pyramid"});

  policy p;
  p.retain = {.sink = o.sink, .lag = o.lag, .recent = recent, .every = o.every};
  p.retain.recent_share = recent_share, p.retain.slope.beta = o.pyramid;
  if (o.capacity) {
    if (status s = detail::check_count("capacity", *o.capacity, o.sink + recent + 1); !s)
      return detail::refuse({s.message(), " (sink + recent + 1)"});
    p.retain.kind = budget::capacity, p.retain.amount = static_cast<double>(*o.capacity), p.retain.again = true;
  } else if (o.budget_mb) {
    if (!(*o.budget_mb > 0 && *o.budget_mb <= 1e9))
      return detail::refuse({"budget_mb=", *o.budget_mb, ": must be above 0 and at most 1000000000"});
    p.retain.kind = budget::bytes, p.retain.amount = *o.budget_mb * 1e6, p.retain.again = true;
  } else {
    const double keep = o.keep.value_or(0.5);
    if (status s = detail::check_share("keep", keep); !s) return error{s.message()};
    p.retain.kind = o.lag != 0 ? budget::share_of_partition : budget::share_of_all, p.retain.amount = keep;
  }
  part adjusted = method;
  if (status s = detail::adjust(adjusted, o); !s) return error{s.message()};
  p.score = adjusted.score, p.adjust = adjusted.adjust, p.needs = adjusted.needs, p.weight = adjusted.weight;
  p.unrotated = adjusted.unrotated;
  if (o.select == selection::chunks) p.select = chunks{o.chunk};
  if (o.select == selection::adaptive) p.select = adaptive{o.safeguard}, p.ragged = true;
  return p;
}

LAGKV_EDGE result<policy> make_fusion(std::span<const part> parts, const policy_options& o, fusion by) {
  constexpr std::size_t most = policy::most_fused + 1;
  if (parts.size() < 2 || parts.size() > most) return detail::refuse({"methods=", parts.size(), ": must be from 2 to ", most});
  part first = parts[0];
  for (const part& other : parts.subspan(1)) first.recent = first.recent > other.recent ? first.recent : other.recent;
  first.recent_share = 0;
  result<policy> made = make_policy(first, o);
  if (!made) return made;
  for (const part& each : parts)
    if (!(each.weight >= 0 && each.weight <= 1e6)) return detail::refuse({"weight=", each.weight, ": must be from 0 to 1000000"});
  policy p = *made;
  p.by = by;
  for (const part& other : parts.subspan(1)) {
    part& next = p.fused[p.fused_count++];
    next = other;
    if (status s = detail::adjust(next, o); !s) return error{s.message()};
    p.needs = p.needs | next.needs;
  }
  return p;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
