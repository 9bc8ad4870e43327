// Part of lagkv (MIT). NestedKV: keys unlike the mean of the whole, of their block and of their window (arXiv 2605.26678).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/away_from_mean.hpp>
#include <lagkv/transform/rank.hpp>

namespace lagkv::inline LAGKV_ABI {

/// With u = k / |k| and three anchors a, the means of u over all rows in use (whole), over the row's block, and over the last
/// `window` rows up to its own: s = -cos(u, a), brought to [0, 1] over the candidates of the head. The score is
///     (1 - g) * sum of w s + g * max of s,
/// w the softmax over anchors of log(prior) + 3 * (mean of the best tenth - mean of the worst tenth of s), prior 0.4, 0.4, 0.2;
/// g = sigmoid(10 * (d - 0.6)), d the standard deviation of the three s, brought to [0, 1] and less its mean, 0 at least. What
/// differs by 1e-6 at most, which may be rounding, is brought to 0.
///
/// A key that is not finite takes no part and gets NaN, so it goes first. Reads each key four times. Source: the paper, sections
/// 2.2 to 2.4 and appendix A, whose constants these are; where it is silent: blocks count from row 0, a tenth is its mean, keys
/// are taken as they are stored, sinks belong to the anchors only. The paper adds budgets by head: select=adaptive.
struct nested_score {
  std::size_t block = 0;    ///< rows a block; 0: a 32nd of the rows in use, at least 128 and at most 256
  std::size_t window = 64;  ///< rows of the window, the row's own included

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  static constexpr std::size_t anchors = 3;
  static constexpr float prior[anchors] = {0.4F, 0.4F, 0.2F};

  void away_from_blocks(const layer& l, std::size_t head, token_range candidates, float* out, workspace& ws) const;
  void away_from_window(const layer& l, std::size_t head, token_range candidates, float* out, workspace& ws) const;

  /// x -> (x - least) / (most - least) over the finite ones; 0 if they are all alike, but for rounding.
  static void bring_to_one(std::span<float> x);

  /// Mean of the best tenth of x, less that of the worst.
  static float spread(std::span<const float> x, workspace& ws);
};

inline method method_of(const nested_score& s) { return {.score = s, .needs = {.all_rows = true}}; }

inline constexpr parameter nested_parameters[] = {
    option<&nested_score::block>("block", accepts::count,
                                 "rows that share an anchor; 0: a 32nd of the rows in use, at least 128 and at most 256"),
    option<&nested_score::window>("window", accepts::positive, "last rows that share an anchor, the row's own included")};

constexpr std::span<const parameter> options_of(const nested_score&) { return nested_parameters; }

inline constexpr method_entry nested_entry =
    entry_of<nested_score>({.name = "nested",
                            .meaning = "keys unlike the mean of the whole, of their block and of their window",
                            .source = "arXiv 2605.26678",
                            .reads = "keys"},
                           nested_parameters);

#if LAGKV_BODIES

LAGKV_FN void nested_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                       workspace& ws) const {
  const std::size_t n = out.size();
  const workspace::frame scratch(ws);
  float* away = ws.take<float>(anchors * n);
  detail::away_from_mean(l.keys, head, candidates, {0, l.tokens}, away, ws);
  away_from_blocks(l, head, candidates, away + n, ws);
  away_from_window(l, head, candidates, away + 2 * n, ws);

  float weights[anchors], total = 0;
  for (std::size_t a = 0; a < anchors; ++a) {
    const std::span<float> own{away + a * n, n};
    bring_to_one(own);
    weights[a] = prior[a] * __builtin_expf(3 * spread(own, ws));
    total += weights[a];
  }
  float* blend = ws.take<float>(n);
  float* most = ws.take<float>(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float s[anchors] = {away[i], away[n + i], away[2 * n + i]};
    const float mean = (s[0] + s[1] + s[2]) / 3;
    blend[i] = (weights[0] * s[0] + weights[1] * s[1] + weights[2] * s[2]) / total;
    most[i] = s[0] > s[1] ? (s[0] > s[2] ? s[0] : s[2]) : (s[1] > s[2] ? s[1] : s[2]);
    const float square = (s[0] - mean) * (s[0] - mean) + (s[1] - mean) * (s[1] - mean) + (s[2] - mean) * (s[2] - mean);
    out[i] = __builtin_sqrtf(square);
  }
  bring_to_one(out);
  double sum = 0, count = 0;
  for (const float d : out)
    if (detail::finite(d)) sum += static_cast<double>(d), ++count;
  const float usual = count > 0 ? static_cast<float>(sum / count) : 0.0F;
  for (std::size_t i = 0; i < n; ++i) {
    if (!detail::finite(out[i])) continue;
    const float surprise = out[i] > usual ? out[i] - usual : 0.0F, gate = 1 / (1 + __builtin_expf(-10 * (surprise - 0.6F)));
    out[i] = (1 - gate) * blend[i] + gate * most[i];
  }
}

LAGKV_FN void nested_score::away_from_blocks(const layer& l, std::size_t head, token_range candidates, float* out,
                                             workspace& ws) const {
  const std::size_t share = l.tokens / 32, length = block != 0 ? block : share < 128 ? 128 : share > 256 ? 256 : share;
  for (std::size_t begin = candidates.begin / length * length; begin < candidates.end; begin += length) {
    const token_range all{begin, begin + length < l.tokens ? begin + length : l.tokens};
    const token_range own{begin > candidates.begin ? begin : candidates.begin,
                          all.end < candidates.end ? all.end : candidates.end};
    detail::away_from_mean(l.keys, head, own, all, out + (own.begin - candidates.begin), ws);
  }
}

LAGKV_FN void nested_score::away_from_window(const layer& l, std::size_t head, token_range candidates, float* out,
                                             workspace& ws) const {
  const std::size_t all = candidates.end < window ? candidates.end : window, length = all > 0 ? all : 1;
  const std::size_t channels = l.keys.channels(), first = candidates.begin + 1 > length ? candidates.begin + 1 - length : 0;
  const workspace::frame scratch(ws);
  float* units = ws.take<float>(length * channels);  // row r in place r % length
  double* sum = ws.take<double>(channels);
  for (std::size_t c = 0; c < channels; ++c) sum[c] = 0;
  for (std::size_t i = 0; i < length * channels; ++i) units[i] = 0;
  for_each_row(l.keys, head, {first, candidates.end}, ws, [&](std::size_t i, std::span<const float> row) {
    float square = 0;
    for (const float x : row) square += x * x;
    const bool good = detail::finite(square);
    const float factor = good && square > 0 ? 1 / __builtin_sqrtf(square) : 0.0F;
    float* unit = units + (first + i) % length * channels;
    double product = 0, square_of_sum = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      const float now = good ? row[c] * factor : 0.0F;
      sum[c] += static_cast<double>(now) - static_cast<double>(unit[c]);
      unit[c] = now;
      product += static_cast<double>(now) * sum[c], square_of_sum += sum[c] * sum[c];
    }
    if (first + i < candidates.begin) return;
    const auto cosine = static_cast<float>(square_of_sum > 0 ? product / __builtin_sqrt(square_of_sum) : 0.0);
    out[first + i - candidates.begin] = good ? -cosine : detail::not_a_number();
  });
}

LAGKV_FN void nested_score::bring_to_one(std::span<float> x) {
  float least = detail::infinity(), most = -least;
  for (const float v : x)
    if (detail::finite(v)) least = v < least ? v : least, most = v > most ? v : most;
  constexpr float alike = 1e-6F;  // cosines that differ by less may differ by rounding alone
  const float width = most - least;
  for (float& v : x)
    if (detail::finite(v)) v = width > alike ? (v - least) / width : 0.0F;
}

LAGKV_FN float nested_score::spread(std::span<const float> x, workspace& ws) {
  const workspace::frame scratch(ws);
  std::size_t finite = 0;
  for (const float v : x) finite += detail::finite(v) ? 1U : 0U;
  if (finite == 0) return 0;
  const detail::ordered* order = detail::ascending(x, ws);
  const std::size_t tenth = finite < 15 ? 1 : (finite + 5) / 10, lowest = x.size() - finite;
  double best = 0, worst = 0;
  for (std::size_t i = 0; i < tenth; ++i) {
    best += static_cast<double>(x[detail::index_of(order[x.size() - 1 - i])]);
    worst += static_cast<double>(x[detail::index_of(order[lowest + i])]);
  }
  return static_cast<float>((best - worst) / static_cast<double>(tenth));
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
