// Part of lagkv (MIT). Attention that queries to come are expected to pay (arXiv 2510.00636).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/attention/attention.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/score_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

/// Of a symmetric matrix [n][n] that is a covariance, vectors whose products f f^T add up to it: out[j] = column j of its
/// Cholesky factor, times `by`. Columns that depend on those before are 0. The matrix is overwritten. Cost n^3 / 3.
LAGKV_FN void factor(double* square, std::size_t n, float by, float* out);

/// Mean, and population covariance where asked for, of the first n rows of a head that are finite.
LAGKV_FN void mean_and_covariance(const tensor& x, std::size_t head, std::size_t n, double* mean, double* covariance,
                                  workspace& ws);

}  // namespace detail

/// Were the queries to come normal with mean m and covariance S, a key would have the mean weight exp(s m.k + s^2 k^T S k / 2)
/// with s = 1 / sqrt(d) (or extras.scale): its softmax over the candidates, mean over the query heads of the group, times the
/// norm of the value.
/// m and S are extras.query_mean and query_covariance (estimate_queries.hpp makes them), or a few query_factors that S is made
/// of; without either it counts as 0. Where the host gives no mean they are those of the queries that it offers, as they are; not
/// where they must be `calibrated`.
/// Cost: n d (1 + r) for each query head, r the number of factors, d for a covariance (and d^3 / 3). Source: the paper; kvpress
/// 0.5.5, ExpectedAttentionPress; the factors are this project's.
struct expected_attention_score {
  std::size_t lag = 0;  ///< tokens a partition; 0: all candidates at once
  bool covariance = true;
  bool values = true;
  double epsilon = 0;       ///< added to the weight before it is multiplied by the norm of the value
  bool calibrated = false;  ///< only by the mean that the host gives

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  std::size_t rank(const extras& e, std::size_t channels) const;

  /// The mean of a query head times s, and the factors of its covariance times s / sqrt(2): a logit is the product with the first
  /// and the squares of the products with the others.
  static void read(const layer& l, std::size_t query_head, std::size_t factors, float* out, workspace& ws);
};

inline method method_of(const expected_attention_score& s) {
  return {.score = s, .needs = {.values = s.values, .query_statistics = true, .calibrated = s.calibrated}};
}

inline constexpr parameter expected_attention_parameters[] = {
    option<&expected_attention_score::covariance>("covariance", accepts::yes_no, "use the covariance of the queries"),
    option<&expected_attention_score::values>("values", accepts::yes_no, "times the norm of the value"),
    option<&expected_attention_score::epsilon>("epsilon", accepts::weight, "added to the weight before that"),
    option<&expected_attention_score::calibrated>("calibrated", accepts::yes_no,
                                                  "only by statistics that the host has of the model's queries")};

constexpr std::span<const parameter> options_of(const expected_attention_score&) { return expected_attention_parameters; }

inline constexpr method_entry expected_attention_entry =
    entry_of<expected_attention_score>({.name = "expected_attention",
                                        .meaning = "attention that queries to come are expected to pay",
                                        .source = "arXiv 2510.00636",
                                        .reads = "keys, values, statistics of the queries (or queries)"},
                                       expected_attention_parameters);

#if LAGKV_BODIES

namespace detail {

LAGKV_FN void factor(double* square, std::size_t n, float by, float* out) {
  double most = 0;
  for (std::size_t i = 0; i < n; ++i) most = square[i * n + i] > most ? square[i * n + i] : most;
  for (std::size_t j = 0; j < n; ++j, out += n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = 0.0F;
    const double pivot = square[j * n + j];
    if (!(pivot > 1e-12 * most)) continue;
    const double length = __builtin_sqrt(pivot);
    for (std::size_t i = j; i < n; ++i) {
      square[i * n + j] /= length;
      out[i] = by * static_cast<float>(square[i * n + j]);
    }
    for (std::size_t i = j + 1; i < n; ++i)
      for (std::size_t k = j + 1; k <= i; ++k) square[i * n + k] -= square[i * n + j] * square[k * n + j];
  }
}

LAGKV_FN void mean_and_covariance(const tensor& x, std::size_t head, std::size_t n, double* mean, double* covariance,
                                  workspace& ws) {
  const std::size_t channels = x.channels();
  double count = 0;
  for (std::size_t c = 0; c < channels; ++c) mean[c] = 0;
  const auto each = [&](const auto& use) {
    for_each_row(x, head, {0, n}, ws, [&](std::size_t, std::span<const float> row) {
      bool good = true;
      for (const float v : row) good = good && finite(v);
      if (good) use(row);
    });
  };
  each([&](std::span<const float> row) {
    for (std::size_t c = 0; c < channels; ++c) mean[c] += static_cast<double>(row[c]);
    ++count;
  });
  for (std::size_t c = 0; c < channels && count > 0; ++c) mean[c] /= count;
  if (covariance == nullptr) return;
  for (std::size_t i = 0; i < channels * channels; ++i) covariance[i] = 0;
  each([&](std::span<const float> row) {
    for (std::size_t a = 0; a < channels; ++a) {
      const double share = (static_cast<double>(row[a]) - mean[a]) / count;
      for (std::size_t b = 0; b <= a; ++b) covariance[a * channels + b] += share * (static_cast<double>(row[b]) - mean[b]);
    }
  });
}

}  // namespace detail

LAGKV_FN void expected_attention_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                                   workspace& ws) const {
  const extras& e = *l.extra;
  const tensor& side = e.query_mean ? e.query_mean : e.queries;
  const std::size_t channels = l.keys.channels(), group = side.heads() / l.keys.heads(), n = out.size();
  const std::size_t each = 1 + rank(e, channels);  // vectors of a query head: the mean, then the factors
  const workspace::frame scratch(ws);
  float* vectors = ws.take<float>(group * each * channels);
  for (std::size_t g = 0; g < group; ++g) read(l, head * group + g, each - 1, vectors + g * each * channels, ws);

  float* logits = ws.take<float>(group * n);
  for_each_rows_and_next(l.keys, head, candidates, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
    const workspace::frame own(ws);
    float* products = ws.take<float>(group * each * detail::piece_rows(l.keys.row_bytes()));
    ws.kernels<simd::dot_kernels>().dots(rows, vectors, group * each, products, rows.tokens);
    for (std::size_t g = 0; g < group; ++g) {
      float* logit = logits + g * n + offset;
      for (std::size_t i = 0; i < rows.tokens; ++i) logit[i] = products[i];
      products += rows.tokens;
      for (std::size_t v = 1; v < each; ++v, products += rows.tokens)
        for (std::size_t i = 0; i < rows.tokens; ++i) logit[i] += products[i] * products[i];
    }
  });

  for (float& score : out) score = 0;
  const std::size_t part = lag == 0 ? n : lag;
  for (std::size_t g = 0; g < group; ++g)
    for (std::size_t at = 0; at < n; at += part)
      ws.kernels<simd::score_kernels>().add_softmax(logits + g * n + at, part, 1.0F / static_cast<float>(group), out.data() + at);
  detail::mark_bad_keys(l, head, candidates, out, ws);
  if (!values) return;
  float* norms = ws.take<float>(n);
  squares_of_rows(l.values, head, candidates, norms, ws);
  for (std::size_t i = 0; i < n; ++i) out[i] = (out[i] + static_cast<float>(epsilon)) * detail::norm(norms[i]);
}

LAGKV_FN std::size_t expected_attention_score::rank(const extras& e, std::size_t channels) const {
  if (!covariance) return 0;
  if (e.query_mean && e.query_factors) return e.query_factors.capacity();
  return !e.query_mean || e.query_covariance ? channels : 0;
}

LAGKV_FN void expected_attention_score::read(const layer& l, std::size_t query_head, std::size_t factors, float* out,
                                             workspace& ws) {
  const extras& e = *l.extra;
  const std::size_t channels = l.keys.channels();
  const float scale = e.logit_scale(channels);
  const float spread = scale * __builtin_sqrtf(0.5F);
  const auto copy = [&](const tensor& x, std::size_t n, float by, auto* to) {
    for_each_row(x, query_head, {0, n}, ws, [&](std::size_t i, std::span<const float> row) {
      for (std::size_t c = 0; c < channels; ++c) to[i * channels + c] = by * row[c];
    });
  };
  if (e.query_mean) {
    copy(e.query_mean, 1, scale, out);
    if (factors == 0) return;
    if (e.query_factors) return copy(e.query_factors, factors, spread, out + channels);
  }
  const workspace::frame scratch(ws);
  double* square = ws.take<double>(channels * (channels + 1));
  double* mean = square + channels * channels;
  if (e.query_mean) {
    copy(e.query_covariance, channels, 1.0F, square);
  } else {
    detail::mean_and_covariance(e.queries, query_head, e.offered(e.queries), mean, factors > 0 ? square : nullptr, ws);
    for (std::size_t c = 0; c < channels; ++c) out[c] = scale * static_cast<float>(mean[c]);
  }
  if (factors > 0) detail::factor(square, channels, spread, out + channels);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
