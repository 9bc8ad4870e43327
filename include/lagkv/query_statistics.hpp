// Part of lagkv (MIT). Statistics of the queries to come, from queries that there have been: once a model, or once a prompt.
// Needs Eigen.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <Eigen/Core>

#include <lagkv/rope.hpp>
#include <lagkv/score/matrix.hpp>
#include <lagkv/strided.hpp>
#include <lagkv/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

/// Mean and covariance of the queries at positions to come: extras.query_mean and extras.query_covariance are views of them.
struct query_statistics {
  std::size_t heads = 0;  ///< query heads
  std::size_t channels = 0;
  std::vector<float> mean;        ///< [heads][channels]
  std::vector<float> covariance;  ///< [heads][channels][channels]

  tensor mean_view() const { return view(mean, 1); }
  tensor covariance_view() const { return view(covariance, channels); }

 private:
  tensor view(const std::vector<float>& x, std::size_t rows) const {
    const auto c = static_cast<std::ptrdiff_t>(channels);
    return strided<float>(const_cast<float*>(x.data()), {heads, channels}, {static_cast<std::ptrdiff_t>(rows) * c, c, 1}, rows);
  }
};

/// From queries before RoPE [query heads][n][channels], of which `used` count (the first few tokens of a prompt are unlike
/// the rest: kvpress leaves out 4): their mean and population covariance, moved by the mean rotation of the positions
/// [first, first + future). Source: ExpectedAttention (arXiv 2510.00636); kvpress 0.5.5, whose future is 512. In doubles;
/// cost n d^2 + d^3 for each query head.
inline query_statistics estimate_queries(const tensor& queries, token_range used, const rope& r, std::size_t first,
                                         std::size_t future, workspace& ws) {
  const std::size_t channels = queries.channels();
  const auto d = static_cast<Eigen::Index>(channels);
  query_statistics out{queries.heads(), channels, {}, {}};
  out.mean.resize(out.heads * channels);
  out.covariance.resize(out.heads * channels * channels);

  Eigen::MatrixXd rotation = Eigen::MatrixXd::Identity(d, d);
  const std::size_t dims = r.rotated(channels);
  for (std::size_t pair = 0; pair < dims / 2; ++pair) {
    const bool halves = r.pairs == rope::pairing::halves;
    const auto a = static_cast<Eigen::Index>(halves ? pair : 2 * pair);
    const auto b = static_cast<Eigen::Index>(halves ? pair + dims / 2 : 2 * pair + 1);
    const double step = r.angle(pair, channels);
    double cosine = 0, sine = 0;
    for (std::size_t p = first; p < first + future; ++p) {
      const double angle = static_cast<double>(p) * step;
      cosine += std::cos(angle), sine += std::sin(angle);
    }
    rotation(a, a) = rotation(b, b) = cosine / static_cast<double>(future);
    rotation(b, a) = sine / static_cast<double>(future);
    rotation(a, b) = -rotation(b, a);
  }

  Eigen::VectorXd mean(d);
  Eigen::MatrixXd covariance(d, d);
  std::vector<double> rows(detail::matrix_rows * channels);
  for (std::size_t head = 0; head < out.heads; ++head) {
    detail::moments_of(queries, head, used, mean, &covariance, rows.data(), ws);
    mean = rotation * mean;
    covariance = rotation * covariance * rotation.transpose();
    for (std::size_t i = 0; i < channels; ++i)
      out.mean[head * channels + i] = static_cast<float>(mean(static_cast<Eigen::Index>(i)));
    for (std::size_t i = 0; i < channels * channels; ++i)
      out.covariance[head * channels * channels + i] = static_cast<float>(covariance.data()[i]);
  }
  return out;
}

}  // namespace lagkv
