// Part of lagkv (MIT). The named policies: documented options in, a policy or the reason why not out.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>

#include <lagkv/core.hpp>
#include <lagkv/policy.hpp>
#include <lagkv/score/lag_relative.hpp>
#include <lagkv/score/random.hpp>
#include <lagkv/score/rank.hpp>

namespace lagkv {

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
  std::size_t sink = 4;      ///< the paper's
  std::size_t capacity = 0;  ///< rows kept, sinks included
  double keep = 0;           ///< share kept of all tokens seen
};

/// Random tokens stay, beside the sinks and the recent ones: the baseline to beat.
struct random_options {
  std::size_t sink = 4;
  std::size_t recent = 32;  ///< last tokens, not judged; tokens are judged when at least as many have come before them
  double keep = 0.5;        ///< share kept of all tokens seen
  std::uint64_t seed = 0;
};

namespace detail {

inline std::string text(double x) {
#if defined(__cpp_lib_to_chars)
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, x).ptr};  // the shortest that reads back as x
#else
  return std::to_string(x);
#endif
}

inline constexpr std::size_t most_tokens = 0x7fffffff;

inline status check_count(const char* name, std::size_t value, std::size_t least) {
  if (value >= least && value <= most_tokens) return {};
  const std::string found = std::string(name) + "=" + std::to_string(value);
  if (value < least) return error{found + ": must be " + std::to_string(least) + " or more"};
  return error{found + ": must be at most " + std::to_string(most_tokens)};
}

inline status check_share(const char* name, double value) {
  if (value > 0 && value <= 1) return {};
  return error{std::string(name) + "=" + text(value) + ": must be above 0 and at most 1"};
}

}  // namespace detail

/// LagKV as a policy.
inline result<policy> make_lagkv(const lagkv_options& o = {}) {
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if (status s = detail::check_count("lag", o.lag, 1); !s) return error{s.message()};
  if (status s = detail::check_share("ratio", o.ratio); !s) return error{s.message()};
  if (!(o.value_weight >= 0 && o.value_weight <= 1e6))
    return error{"value_weight=" + detail::text(o.value_weight) + ": must be from 0 to 1000000"};
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

/// StreamingLLM as a policy. Needs no scores: no key and no value is read.
inline result<policy> make_streaming_llm(const streaming_llm_options& o) {
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if ((o.capacity == 0) == (o.keep == 0)) return error{"capacity, keep: give one of them"};
  policy p;
  p.retain = {.sink = o.sink, .kind = budget::share_of_all, .amount = o.keep, .oldest_first = true};
  if (o.capacity != 0) {
    if (status s = detail::check_count("capacity", o.capacity, o.sink + 1); !s) return error{s.message()};
    p.retain.kind = budget::capacity;
    p.retain.amount = static_cast<double>(o.capacity);
  } else if (status s = detail::check_share("keep", o.keep); !s) {
    return error{s.message()};
  }
  return p;
}

/// The random baseline as a policy.
inline result<policy> make_random(const random_options& o = {}) {
  if (status s = detail::check_count("sink", o.sink, 0); !s) return error{s.message()};
  if (status s = detail::check_count("recent", o.recent, 1); !s) return error{s.message()};
  if (status s = detail::check_share("keep", o.keep); !s) return error{s.message()};
  policy p;
  p.retain = {.sink = o.sink, .recent = o.recent, .kind = budget::share_of_all, .amount = o.keep};
  p.score = random_score{o.seed};
  return p;
}

}  // namespace lagkv
