// Part of lagkv (MIT). Attention that queries to come are expected to pay (arXiv 2510.00636). Needs Eigen.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include <lagkv/method.hpp>
#include <lagkv/score/matrix.hpp>
#include <lagkv/score/rows.hpp>

namespace lagkv {

/// Were the queries to come normal with mean m and covariance S, a key would have the mean weight exp(s m.k + s^2 k^T S k / 2)
/// with s = 1 / sqrt(d) (or extras.scale): its softmax over what is judged, mean over the query heads of the group, times the
/// norm of the value.
/// m and S are extras.query_mean and query_covariance (estimate_queries.hpp makes them); without a covariance it counts as 0.
/// Where the host gives no mean they are those of the queries that it offers, as they are; not where they must be `calibrated`.
/// Cost: n d^2 for each query head, n d without covariance. Source: the paper; kvpress 0.5.5, ExpectedAttentionPress. Eigen
/// may allocate.
struct expected_attention {
  std::size_t lag = 0;  ///< tokens a partition; 0: the whole judged range at once
  bool covariance = true;
  bool values = true;
  double epsilon = 0;       ///< added to the weight before it is multiplied by the norm of the value
  bool calibrated = false;  ///< only by the mean that the host gives

  void operator()(const layer& l, std::size_t head, token_range judged, std::span<float> out, workspace& ws) const {
    constexpr std::size_t together = detail::matrix_rows;
    const extras& e = *l.extra;
    const tensor& side = e.query_mean ? e.query_mean : e.queries;
    const std::size_t channels = l.keys.channels(), group = side.heads() / l.keys.heads();
    const auto d = static_cast<Eigen::Index>(channels);
    const double scale = e.scale > 0 ? static_cast<double>(e.scale) : 1 / std::sqrt(static_cast<double>(channels));
    double* memory = ws.doubles(channels * (channels + 1 + 2 * together));
    Eigen::Map<Eigen::MatrixXd> spread(memory, d, d);
    Eigen::Map<Eigen::VectorXd> mean(memory + channels * channels, d);
    double* rows = memory + channels * (channels + 1);
    Eigen::Map<detail::matrix> product(rows + together * channels, static_cast<Eigen::Index>(together), d);
    float* logits = ws.floats(workspace::logits, out.size());
    for (float& score : out) score = 0;

    for (std::size_t g = 0; g < group; ++g) {
      const bool spreads = statistics(l, head * group + g, mean, spread, rows, ws);
      detail::for_each_matrix(l.keys, head, judged, nullptr, ws, rows,
                              [&](const Eigen::Map<detail::matrix>& k, std::size_t offset) {
                                auto y = product.topRows(k.rows());
                                if (spreads) y.noalias() = k * spread;
                                for (Eigen::Index i = 0; i < k.rows(); ++i) {
                                  double logit = scale * k.row(i).dot(mean);
                                  if (spreads) logit += scale * scale / 2 * y.row(i).dot(k.row(i));
                                  logits[offset + static_cast<std::size_t>(i)] = static_cast<float>(logit);
                                }
                              });
      const std::size_t part = lag == 0 ? out.size() : lag;
      for (std::size_t at = 0; at < out.size(); at += part)
        ws.kernels().add_softmax(logits + at, part, 1.0F / static_cast<float>(group), out.data() + at);
    }
    if (!values) return;
    float* norms = ws.floats(workspace::deviation, out.size());
    squares_of_rows(l.values, head, judged, norms, ws);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = (out[i] + static_cast<float>(epsilon)) * detail::norm(norms[i]);
  }

 private:
  /// Fills in mean and covariance of one query head; false where the covariance counts as 0.
  template <class Vector, class Matrix>
  bool statistics(const layer& l, std::size_t query_head, Vector& mean, Matrix& spread, double* rows, workspace& ws) const {
    const extras& e = *l.extra;
    const auto read = [&](const tensor& x, std::size_t n, double* to) {
      for_each_row(x, query_head, {0, n}, ws, [&](std::size_t i, std::span<const float> row) {
        for (std::size_t c = 0; c < row.size(); ++c) to[i * row.size() + c] = static_cast<double>(row[c]);
      });
    };
    if (e.query_mean) {
      read(e.query_mean, 1, mean.data());
      if (covariance && e.query_covariance) read(e.query_covariance, l.keys.channels(), spread.data());  // symmetric
      return covariance && e.query_covariance;
    }
    detail::moments_of(e.queries, query_head, {0, e.offered()}, mean, covariance ? &spread : nullptr, rows, ws);
    return covariance;
  }
};

inline part part_of(const expected_attention& s) {
  return {.score = s, .needs = {.values = s.values, .statistics = true, .calibrated = s.calibrated}};
}

inline constexpr parameter expected_attention_parameters[] = {
    {"covariance", parameter::kind::word, 1, accepts::yes_no, "use the covariance of the queries"},
    {"values", parameter::kind::word, 1, accepts::yes_no, "times the norm of the value"},
    {"epsilon", parameter::kind::number, 0, "must be from 0 to 1000000", "added to the weight before that"},
    {"calibrated", parameter::kind::word, 0, accepts::yes_no, "only by statistics that the host has of the model's queries"}};

inline constexpr method expected_attention_method{
    .name = "expected_attention",
    .meaning = "attention that queries to come are expected to pay",
    .source = "arXiv 2510.00636",
    .reads = "keys, values, statistics of the queries (or queries)",
    .parameters = expected_attention_parameters,
    .make = [](std::span<const double> v, std::size_t lag) -> result<part> {
      if (!(v[2] >= 0 && v[2] <= 1e6))
        return error{"epsilon=" + std::to_string(v[2]) + ": " + std::string(expected_attention_parameters[2].range)};
      return part_of(expected_attention{lag, v[0] != 0, v[1] != 0, v[2], v[3] != 0});
    },
};

}  // namespace lagkv
