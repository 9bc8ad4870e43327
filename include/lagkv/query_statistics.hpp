// Part of lagkv (MIT). What the queries of a model usually are, for policies that expect their attention.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <lagkv/rope.hpp>
#include <lagkv/strided.hpp>
#include <lagkv/tensor.hpp>

namespace lagkv {

/// Mean and covariance of the queries of a layer. After moved() extras.query_mean and extras.query_covariance are views of them.
/// estimate_queries.hpp makes them.
struct query_statistics {
  std::size_t heads = 0;  ///< query heads
  std::size_t channels = 0;
  std::vector<float> mean;        ///< [heads][channels]
  std::vector<float> covariance;  ///< [heads][channels][channels], symmetric

  /// Those of queries that are `by` times as large.
  void multiply(float by) {
    for (float& x : mean) x *= by;
    for (float& x : covariance) x *= by * by;
  }

  tensor mean_view() const { return view(mean, 1); }
  tensor covariance_view() const { return view(covariance, channels); }

 private:
  tensor view(const std::vector<float>& x, std::size_t rows) const {
    const auto c = static_cast<std::ptrdiff_t>(channels);
    return strided<float>(const_cast<float*>(x.data()), {heads, channels}, {static_cast<std::ptrdiff_t>(rows) * c, c, 1}, rows);
  }
};

namespace detail {

/// Mean over the positions [first, first + n) of the cosine and sine of position * angle.
struct mean_turn {
  double cosine, sine;

  mean_turn(double angle, std::size_t first, std::size_t n) {
    const double middle = (static_cast<double>(first) + (static_cast<double>(n) - 1) / 2) * angle;
    const double one = std::sin(angle / 2), all = std::sin(static_cast<double>(n) * angle / 2);
    const double length =
        std::abs(one) < 1e-9 ? 1 : all / (static_cast<double>(n) * one);  // below that it is 1 - 1e-12 for n = 4096
    cosine = length * std::cos(middle), sine = length * std::sin(middle);
  }

  /// Turns n pairs of numbers that lie `step` apart.
  void turn(double* a, double* b, std::size_t n, std::size_t step) const {
    for (std::size_t i = 0; i < n * step; i += step) {
      const double x = a[i], y = b[i];
      a[i] = cosine * x - sine * y, b[i] = sine * x + cosine * y;
    }
  }
};

}  // namespace detail

/// Statistics of queries before RoPE, moved by the mean rotation of the positions [first, first + future): what queries to come
/// will be like. Source: ExpectedAttention (arXiv 2510.00636); kvpress 0.5.5, whose future is 512. In doubles; cost d^2 for each
/// query head.
inline query_statistics moved(const query_statistics& s, const rope& r, std::size_t first, std::size_t future) {
  const std::size_t d = s.channels, pairs = r.rotated(d) / 2;
  query_statistics out = s;
  std::vector<double> x(d * (d + 1));  // the mean, then the covariance
  for (std::size_t head = 0; head < s.heads; ++head) {
    float *mean = out.mean.data() + head * d, *covariance = out.covariance.data() + head * d * d;
    for (std::size_t i = 0; i < d; ++i) x[i] = static_cast<double>(mean[i]);
    for (std::size_t i = 0; i < d * d; ++i) x[d + i] = static_cast<double>(covariance[i]);
    for (std::size_t j = 0; j < pairs; ++j) {
      const bool halves = r.pairs == rope::pairing::halves;
      const std::size_t a = halves ? j : 2 * j, b = halves ? j + pairs : 2 * j + 1;
      const detail::mean_turn t(r.angle(j, d), first, future);
      t.turn(&x[a], &x[b], 1, 1);
      t.turn(&x[d + a * d], &x[d + b * d], d, 1);  // rows, then columns
      t.turn(&x[d + a], &x[d + b], d, d);
    }
    for (std::size_t i = 0; i < d; ++i) mean[i] = static_cast<float>(x[i]);
    for (std::size_t i = 0; i < d * d; ++i) covariance[i] = static_cast<float>(x[d + i]);
  }
  return out;
}

}  // namespace lagkv
