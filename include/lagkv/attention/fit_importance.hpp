// Part of lagkv (MIT). How much a model that says a text again looks back at each token (its importance): a map that predicts it
// from keys and values. head_budgets.hpp measures it. Needs Eigen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <lagkv/attention/head_budgets.hpp>
#include <lagkv/attention/importance.hpp>
#include <lagkv/rows/matrix.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Fits the importance_map of a layer: sums over any number of texts, then map().
class importance_fit {
 public:
  importance_fit(std::size_t heads, std::size_t key_channels, std::size_t value_channels)
      : heads_(heads), keys_(key_channels), values_(value_channels), sums_(heads, detail::matrix::Zero(width(), width())) {}

  /// Adds the rows `used` of a head: keys before RoPE, values, and importance[row], what most_attention() returned (below 1e-6 it
  /// counts as 1e-6). Rows that are not finite are passed over. Keys and values of other channels, fewer rows or fewer heads, and
  /// importance of fewer rows, are refused. In doubles; cost n (channels of key and value)^2.
  status add(const tensor& keys, const tensor& values, std::size_t head, token_range used, std::span<const float> importance,
             workspace& ws) {
    if (head >= heads_) return detail::refuse({"head=", head, ": must be below the ", heads_, " of the fit"});
    if (status s = check_side("keys", keys, keys_, head, used.end); !s) return s;
    if (values_ > 0)
      if (status s = check_side("values", values, values_, head, used.end); !s) return s;
    if (importance.size() < used.end)
      return detail::refuse({"importance of ", importance.size(), " rows: must be of at least ", used.end});
    detail::matrix all(static_cast<Eigen::Index>(used.size()), width());
    const auto fill = [&](const tensor& x, Eigen::Index at) {
      for_each_row(x, head, used, ws, [&](std::size_t i, std::span<const float> row) {
        for (std::size_t c = 0; c < row.size(); ++c)
          all(static_cast<Eigen::Index>(i), at + static_cast<Eigen::Index>(c)) = static_cast<double>(row[c]);
      });
    };
    fill(keys, 0);
    if (values_ > 0) fill(values, static_cast<Eigen::Index>(keys_));
    for (Eigen::Index i = 0; i < all.rows(); ++i) {
      all(i, width() - 2) = std::log((std::max)(1e-6, static_cast<double>(importance[used.begin + static_cast<std::size_t>(i)])));
      all(i, width() - 1) = 1;
      if (!detail::all_finite(all, i)) all.row(i).setZero();
    }
    sums_[head].noalias() += all.transpose() * all;
    return {};
  }

  /// The map, by ridge regression of the logarithm of importance; `ridge` in variances of a channel. A channel whose standard
  /// deviation is below a millionth of its root mean square counts for nothing. Cost (channels of key and
  /// value)^3 for each head.
  importance_map map(double ridge = 0.03) const {
    importance_map out{heads_, keys_, values_, {}};
    const Eigen::Index n = width() - 2;
    for (const detail::matrix& s : sums_) {
      const double count = (std::max)(1.0, s(n + 1, n + 1));
      const Eigen::VectorXd mean = s.row(n + 1).head(n + 1).transpose() / count;
      Eigen::MatrixXd spread = s.topLeftCorner(n + 1, n + 1) / count - mean * mean.transpose();
      Eigen::VectorXd unit = Eigen::VectorXd::Zero(n + 1);
      unit(n) = 1;
      for (Eigen::Index c = 0; c < n; ++c)
        if (spread(c, c) > 1e-12 * s(c, c) / count) unit(c) = 1 / std::sqrt(spread(c, c));
      spread = unit.asDiagonal() * spread * unit.asDiagonal();
      const Eigen::VectorXd w =
          unit.head(n).asDiagonal() * Eigen::MatrixXd(spread.topLeftCorner(n, n) + ridge * Eigen::MatrixXd::Identity(n, n))
                                          .ldlt()
                                          .solve(spread.col(n).head(n));
      for (Eigen::Index c = 0; c < n; ++c) out.weights.push_back(static_cast<float>(w(c)));
      out.weights.push_back(static_cast<float>(mean(n) - w.dot(mean.head(n))));
    }
    return out;
  }

 private:
  static status check_side(const char* name, const tensor& x, std::size_t channels, std::size_t head, std::size_t rows) {
    if (!x) return detail::refuse({name, ": there are none"});
    if (x.channels() != channels)
      return detail::refuse({name, ": channels=", x.channels(), ": must be the ", channels, " of the fit"});
    if (head >= x.heads()) return detail::refuse({name, ": heads=", x.heads(), ": must be more than head=", head});
    if (status s = x.check(rows); !s) return detail::refuse({name, ": ", s.message()});
    return {};
  }

  Eigen::Index width() const { return static_cast<Eigen::Index>(keys_ + values_ + 2); }

  std::size_t heads_, keys_, values_;
  std::vector<detail::matrix> sums_;  // of each head: products of all pairs of key, value, logarithm of importance, and 1
};

}  // namespace lagkv::inline LAGKV_ABI
