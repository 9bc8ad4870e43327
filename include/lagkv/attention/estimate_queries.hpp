// Part of lagkv (MIT). Statistics of queries from queries that there have been: once a model, or once a prompt. Needs Eigen.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include <lagkv/attention/query_statistics.hpp>
#include <lagkv/rows/matrix.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Adds up the queries of a layer: those of a prompt, or over any number of texts those of a model.
class query_moments {
 public:
  query_moments(std::size_t heads, std::size_t channels)
      : heads_(heads), channels_(channels), counts_(heads), sums_(heads * (channels + 1) * channels) {}

  /// Queries before RoPE [query heads][n][channels], of which `used` count (the first few tokens of a text are unlike the rest:
  /// kvpress leaves out 4). Rows that are not finite are passed over. In doubles; cost n d^2 for each query head. Views of other
  /// heads or channels change nothing.
  void add(const tensor& queries, token_range used, workspace& ws) {
    if (queries.heads() != heads_ || queries.channels() != channels_) return;
    const auto d = static_cast<Eigen::Index>(channels_);
    const workspace::frame scratch(ws);
    double* rows = ws.take<double>(detail::matrix_rows * channels_);
    for (std::size_t head = 0; head < heads_; ++head) {
      Eigen::Map<Eigen::VectorXd> sum(sums_.data() + head * (channels_ + 1) * channels_, d);
      Eigen::Map<Eigen::MatrixXd> products(sum.data() + channels_, d, d);
      detail::for_each_matrix(queries, head, used, nullptr, ws, rows, [&](Eigen::Map<detail::matrix>& m, std::size_t) {
        for (Eigen::Index i = 0; i < m.rows(); ++i) {
          if (detail::all_finite(m, i))
            ++counts_[head];
          else
            m.row(i).setZero();
        }
        sum += m.colwise().sum().transpose();
        products.noalias() += m.transpose() * m;
      });
    }
  }

  /// Mean and population covariance of all that has been added; 0 where nothing has.
  query_statistics statistics() const {
    query_statistics out{heads_, channels_, {}, {}, {}};
    out.mean.resize(heads_ * channels_), out.covariance.resize(heads_ * channels_ * channels_);
    for (std::size_t head = 0; head < heads_; ++head) {
      const double *sum = sums_.data() + head * (channels_ + 1) * channels_, *products = sum + channels_;
      const double n = counts_[head] > 0 ? static_cast<double>(counts_[head]) : 1.0;
      for (std::size_t i = 0; i < channels_; ++i) {
        out.mean[head * channels_ + i] = static_cast<float>(sum[i] / n);
        for (std::size_t j = 0; j < channels_; ++j)
          out.covariance[(head * channels_ + i) * channels_ + j] =
              static_cast<float>(products[i * channels_ + j] / n - sum[i] / n * (sum[j] / n));
      }
    }
    return out;
  }

 private:
  std::size_t heads_, channels_;
  std::vector<std::size_t> counts_;
  std::vector<double> sums_;  // [heads][1 + channels][channels]: of the queries, of their products
};

/// With `rank` factors in place of the covariance: those that add up to the most of it after moved() to `future` positions, which
/// averages quick pairs away, and so to about the same scores at rank / channels of the cost (docs/research.md has figures). They
/// are for moved() with the same rope and future. Statistics without a covariance stay as they are. In doubles; cost d^3 for each
/// query head.
inline query_statistics factored(const query_statistics& s, const rope& r, std::size_t future, std::size_t rank) {
  constexpr double gone = 1e-3;  // a pair that keeps less of its length counts for nothing
  if (s.covariance.empty()) return s;
  const std::size_t channels = s.channels, dims = r.rotated(channels);
  const auto d = static_cast<Eigen::Index>(channels);
  Eigen::VectorXd length = Eigen::VectorXd::Ones(d);
  for (std::size_t j = 0; j < dims / 2; ++j) {
    const auto [a, b] = r.pair(j, channels);
    length(static_cast<Eigen::Index>(a)) = length(static_cast<Eigen::Index>(b)) =
        std::abs(detail::mean_turn(r.angle(j, channels), 0, future).length);
  }
  query_statistics out{s.heads, channels, s.mean, {}, {}};
  rank = rank < channels ? rank : channels;
  for (std::size_t head = 0; head < s.heads; ++head) {
    const Eigen::MatrixXd covariance =
        Eigen::Map<const Eigen::MatrixXf>(s.covariance.data() + head * channels * channels, d, d).cast<double>();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> found(length.asDiagonal() * covariance * length.asDiagonal());
    for (std::size_t f = 0; f < rank; ++f) {  // ascending eigenvalues: the last are the largest
      const Eigen::Index at = d - 1 - static_cast<Eigen::Index>(f);
      const double size = std::sqrt(found.eigenvalues()(at) > 0 ? found.eigenvalues()(at) : 0.0);
      for (Eigen::Index c = 0; c < d; ++c)
        out.factors.push_back(length(c) < gone ? 0.0F : static_cast<float>(size * found.eigenvectors()(c, at) / length(c)));
    }
  }
  return out;
}

/// Of one prompt's queries, moved to the positions [first, first + future): as query_moments and moved() have them.
inline query_statistics estimate_queries(const tensor& queries, token_range used, const rope& r, std::size_t first,
                                         std::size_t future, workspace& ws) {
  query_moments all(queries.heads(), queries.channels());
  all.add(queries, used, ws);
  return moved(all.statistics(), r, first, future);
}

}  // namespace lagkv::inline LAGKV_ABI
