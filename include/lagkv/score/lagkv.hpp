// Part of lagkv (MIT). LagKV: deviation of keys and values from the range of the next partition (arXiv 2504.04704).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/policy.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/lagkv_kernels.hpp>
#include <lagkv/simd/score_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>
#include <lagkv/transform/rank.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Source: the paper, section 3; reference code lag_kv.py, _get_states_score.
///
/// Scores a partition of `lag` tokens against the next one: with lo and hi the least and greatest value of each channel
/// there, z = (x - lo) / (hi - lo), and s = softmax over the partition's tokens of the standard deviation of z over
/// channels,
///     score = key_weight * s(keys) + value_weight * s(values); each s sums to 1 over a partition.
///
/// Where the paper leaves it open:
///  - A channel that is constant in the reference (or whose range is too small or large for f32) counts as z = 0. Both
///    reference codes divide by zero there.
///  - Values that are not finite are passed over in the reference. A token whose own keys (values) are not finite, or
///    overflow when normalised, has s(keys) = 0 (s(values) = 0) and takes no part in the softmax: it goes first, and the
///    other tokens are scored as if it were absent.
///
/// Cost a head: each row is read once, from the last partition to the first; one partition, the last reference, once more.
struct lagkv_score {
  enum class against : std::uint8_t {
    next,  ///< the paper's
    own    ///< the variant LocalKV of the same paper: the partition itself
  };

  std::size_t lag = 1024;
  float value_weight = 1.0F;  ///< 0: values are not read
  against reference = against::next;
  float key_weight = 1.0F;

  /// `candidates` are whole partitions; the reference of the last one lies behind it, within layer.tokens.
  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  /// Descending: the rows of a partition are scored by the range of the one read before, and give the range for the next.
  void add(const tensor& x, std::size_t head, token_range candidates, float weight, float* scores, workspace& ws) const;

  struct ranges {
    float *lo, *hi;

    void reset(std::size_t channels) const {
      const float infinity = detail::infinity();
      for (std::size_t c = 0; c < channels; ++c) lo[c] = infinity, hi[c] = -infinity;
    }
  };

  static void range_of(const tensor& x, std::size_t head, token_range tokens, const ranges& to, workspace& ws);

  /// One partition; `by` is the range of the rows `other`, and is used up; `own` becomes that of the partition. `then` will be
  /// scored next.
  void add(const tensor& x, std::size_t head, token_range partition, token_range other, token_range then, const ranges& by,
           const ranges& own, float weight, float* scores, workspace& ws) const;

  static simd::rows in_f32(const simd::rows& r, workspace& ws);

  /// The range of each channel over its finite values; 0, 0 where there is none. Off the common path.
  static void finite_range(const tensor& x, std::size_t head, token_range tokens, float* lo, float* hi, workspace& ws);
};

inline method method_of(const lagkv_score& s) { return {.score = s, .needs = {.values = detail::differ(s.value_weight, 0)}}; }

/// The forms of LagKV in use.
enum class lagkv_form : std::uint8_t {
  paper,         ///< each partition keeps its int(ratio * lag) best (arXiv 2504.04704 and its code)
  local,         ///< the paper's variant LocalKV: normalised by the partition itself
  kvpress,       ///< ranks within the partition compete over all candidates (kvpress 0.5.5, LagKVPress)
  kvpress_cross  ///< scores compete over all candidates (LagKVPress(cross_scoring=True))
};

/// LagKV as the paper has it. Defaults are those of the reference code, lag_kv.py; the paper's RULER tables use lag 128.
///
/// The paper's warning (section 4.2): quality needs ratio * lag well above the length in tokens of the span that must
/// survive. A 64-digit pass key of 64 tokens is lost at lag 128, ratio 0.25 (32 tokens stay of each partition).
struct lagkv_options {
  std::size_t sink = 16;      ///< tokens: the first so many always stay; 0: none
  std::size_t lag = 1024;     ///< tokens a partition, 1 or more
  double ratio = 0.5;         ///< share kept of each partition, above 0 and at most 1; in the kvpress forms of all tokens seen
  double value_weight = 1.0;  ///< of the values' score beside the keys' 1, 0 to 1e6; 0: values are not read
  lagkv_form form = lagkv_form::paper;  ///< the variant
};

inline constexpr parameter lagkv_parameters[] = {
    option<&lagkv_options::sink>("sink", accepts::count, "first tokens, always kept"),
    option<&lagkv_options::lag>("lag", accepts::positive, "tokens a partition"),
    option<&lagkv_options::ratio>("ratio", accepts::share,
                                  "share kept of each partition; in the kvpress forms of all tokens seen"),
    option<&lagkv_options::value_weight>("value_weight", accepts::weight, "weight of the values' score; 0: values are not read"),
    option<&lagkv_options::form>("form", accepts::word("paper|local|kvpress|kvpress_cross"), "variant")};

/// What strings say of LagKV. (In C++ keys before RoPE are asked for by pre_rope(policy), so that a file without them does not
/// compile the kernels for them.)
struct lagkv_string_options {
  lagkv_options options{};  // first: its parameters find it at the address of this
  bool pre_rope = false;
};

/// lagkv_parameters, and one more.
inline constexpr auto lagkv_string_parameters = [] {
  std::array<parameter, std::size(lagkv_parameters) + 1> all{};
  for (std::size_t i = 0; i < std::size(lagkv_parameters); ++i) all[i] = lagkv_parameters[i];
  all.back() = option<&lagkv_string_options::pre_rope>("pre_rope", accepts::yes_no, "score keys as they were before RoPE");
  return all;
}();

inline constexpr parameter lagkv_score_parameters[] = {
    option<&lagkv_score::value_weight>("value_weight", accepts::weight, "weight of the values' score; 0: values are not read")};

/// Beside its options, the length of the partitions, without which there is nothing to score against.
inline constexpr auto lagkv_score_checks = [] {
  return std::array<parameter, 2>{lagkv_score_parameters[0],
                                  option<&lagkv_score::lag>("lag", accepts::positive, "tokens a partition")};
}();

constexpr std::span<const parameter> options_of(const lagkv_score&) { return lagkv_score_checks; }

/// LagKV as a policy. Errors name the option, its value and what is accepted.
LAGKV_EDGE result<policy> make_lagkv(const lagkv_options& o = {});

inline constexpr method_entry lagkv_entry = [] {
  method_entry e = entry_of<lagkv_score>({.name = "lagkv",
                                          .meaning = "deviation of keys and values from the range of the next partition",
                                          .source = "arXiv 2504.04704",
                                          .reads = "keys, values"},
                                         lagkv_score_parameters);
  e.make = [](const void* own, std::size_t lag) -> result<method> {
    if (lag == 0) return error{"lag=0: lagkv compares partitions: must be 1 or more"};
    return detail::method_from<lagkv_score>(own, lag);
  };
  e.whole = table_of<lagkv_string_options>(lagkv_string_parameters);
  e.make_whole = [](const void* whole) {
    const auto& o = *static_cast<const lagkv_string_options*>(whole);
    const result<policy> made = make_lagkv(o.options);
    return made && o.pre_rope ? pre_rope(*made) : made;
  };
  return e;
}();

#if LAGKV_BODIES

LAGKV_EDGE result<policy> make_lagkv(const lagkv_options& o) {
  if (status s = check(lagkv_parameters, &o); !s) return error{s.message()};
  const bool of_all = o.form == lagkv_form::kvpress || o.form == lagkv_form::kvpress_cross;
  const float half = of_all ? 0.5F : 1.0F;  // kvpress takes the mean of both parts
  policy p;
  p.budget.sink = o.sink;
  if (of_all)
    p.budget.keeps = keep::share{o.ratio, o.lag};
  else
    p.budget.keeps = keep::partitions{o.lag, o.ratio};
  p.score = lagkv_score{.lag = o.lag,
                        .value_weight = half * static_cast<float>(o.value_weight),
                        .reference = o.form == lagkv_form::local ? lagkv_score::against::own : lagkv_score::against::next,
                        .key_weight = half};
  if (o.form == lagkv_form::kvpress) p.adjust = rank_in_partition{o.lag};
  p.needs.values = o.value_weight > 0;
  return p;
}

LAGKV_FN void lagkv_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                      workspace& ws) const {
  for (float& score : out) score = 0.0F;
  add(l.keys, head, candidates, key_weight, out.data(), ws);
  if (detail::differ(value_weight, 0)) add(l.values, head, candidates, value_weight, out.data(), ws);
}

LAGKV_FN void lagkv_score::add(const tensor& x, std::size_t head, token_range candidates, float weight, float* scores,
                               workspace& ws) const {
  const std::size_t channels = x.channels();
  const workspace::frame scratch(ws);
  ranges of_reference{ws.take<float>(2 * channels), ws.take<float>(2 * channels)};
  ranges of_own{of_reference.lo + channels, of_reference.hi + channels};
  if (reference == against::next) range_of(x, head, {candidates.end, candidates.end + lag}, of_reference, ws);
  for (std::size_t begin = candidates.end; begin > candidates.begin;) {
    begin -= lag;
    const token_range partition{begin, begin + lag}, next{begin + lag, begin + 2 * lag};
    const token_range then = begin > candidates.begin ? token_range{begin - lag, begin} : token_range{};
    if (reference == against::own) range_of(x, head, partition, of_reference, ws);
    add(x, head, partition, reference == against::own ? partition : next, then, of_reference, of_own, weight,
        scores + (begin - candidates.begin), ws);
    if (reference == against::next) std::swap(of_reference, of_own);
  }
}

LAGKV_FN void lagkv_score::range_of(const tensor& x, std::size_t head, token_range tokens, const ranges& to, workspace& ws) {
  to.reset(x.channels());
  for_each_rows(x, head, tokens, ws,
                [&](const simd::rows& rows, std::size_t) { ws.kernels<simd::lagkv_kernels>().range(rows, to.lo, to.hi); });
}

LAGKV_FN void lagkv_score::add(const tensor& x, std::size_t head, token_range partition, token_range other, token_range then,
                               const ranges& by, const ranges& own, float weight, float* scores, workspace& ws) const {
  const simd::lagkv_kernels& kernels = ws.kernels<simd::lagkv_kernels>();
  const std::size_t channels = x.channels();
  const workspace::frame scratch(ws);
  float* deviation = ws.take<float>(lag);
  const dtype type = detail::plain(x, ws.target()) ? x.type() : dtype::f32;  // in which rows come
  simd::normal form = kernels.normalise(channels, type, by.lo, by.hi);
  if (form == simd::normal::not_finite) {
    finite_range(x, head, other, by.lo, by.hi, ws);
    form = kernels.normalise(channels, type, by.lo, by.hi);
  }
  own.reset(channels);
  for_each_rows_and_next(x, head, partition, then, ws, [&](const simd::rows& rows, std::size_t offset) {
    const bool wider = form == simd::normal::plain && rows.type != dtype::f32;
    kernels.deviation(wider ? in_f32(rows, ws) : rows, by.lo, by.hi, deviation + offset, own.lo, own.hi);
  });
  ws.kernels<simd::score_kernels>().add_softmax(deviation, lag, weight, scores);
}

LAGKV_FN simd::rows lagkv_score::in_f32(const simd::rows& r, workspace& ws) {
  float* wide = ws.take<float>(r.tokens * r.channels);
  const std::ptrdiff_t step = r.stride * static_cast<std::ptrdiff_t>(size_of(r.type));
  for (std::size_t i = 0; i < r.tokens; ++i)
    ws.kernels<simd::widen_kernels>().widen(static_cast<const std::byte*>(r.data) + static_cast<std::ptrdiff_t>(i) * step, r.type,
                                            r.channels, wide + i * r.channels);
  return {wide, dtype::f32, r.tokens, r.channels, static_cast<std::ptrdiff_t>(r.channels)};
}

LAGKV_FN void lagkv_score::finite_range(const tensor& x, std::size_t head, token_range tokens, float* lo, float* hi,
                                        workspace& ws) {
  constexpr float most = (std::numeric_limits<float>::max)();
  const std::size_t channels = x.channels();
  for (std::size_t c = 0; c < channels; ++c) lo[c] = most, hi[c] = -most;
  for_each_row(x, head, tokens, ws, [&](std::size_t, std::span<const float> row) {
    for (std::size_t c = 0; c < channels; ++c) {
      if (!detail::finite(row[c])) continue;
      lo[c] = row[c] < lo[c] ? row[c] : lo[c];
      hi[c] = row[c] > hi[c] ? row[c] : hi[c];
    }
  });
  for (std::size_t c = 0; c < channels; ++c)
    if (lo[c] > hi[c]) lo[c] = hi[c] = 0.0F;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
