// Part of lagkv (MIT). What the queries of a model usually are, for policies that expect their attention.
#pragma once

#include <cstddef>
#include <vector>

#include <lagkv/view/rope.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Mean and covariance of the queries of a layer, or the mean and a few vectors of which the covariance is made (nearly). After
/// moved() extras.query_mean and query_covariance or query_factors are views of them. estimate_queries.hpp makes them.
struct query_statistics {
  std::size_t heads = 0;  ///< query heads
  std::size_t channels = 0;
  std::vector<float> mean;        ///< [heads][channels]
  std::vector<float> covariance;  ///< [heads][channels][channels], symmetric; or empty
  std::vector<float> factors{};   ///< [heads][rank][channels]; or empty

  std::size_t rank() const { return mean.empty() ? 0 : factors.size() / mean.size(); }

  /// Those of queries that are `by` times as large.
  void multiply(float by);

  tensor mean_view() const { return view(mean, 1); }
  tensor covariance_view() const { return view(covariance, channels); }
  tensor factors_view() const { return view(factors, rank()); }

 private:
  tensor view(const std::vector<float>& x, std::size_t rows) const;
};

namespace detail {

/// Mean over the positions [first, first + n) of the cosine and sine of position * angle; of `first` alone if n is 0.
struct mean_turn {
  double cosine, sine;
  double length;  ///< of both, with its sign: the same for every `first`

  mean_turn(double angle, std::size_t first, std::size_t n) {
    const double count = n > 0 ? static_cast<double>(n) : 1;
    const double middle = (static_cast<double>(first) + (count - 1) / 2) * angle;
    const double one = __builtin_sin(angle / 2), all = __builtin_sin(count * angle / 2);
    length = __builtin_fabs(one) < 1e-9 ? 1 : all / (count * one);  // below that it is 1 for any n in use
    cosine = length * __builtin_cos(middle), sine = length * __builtin_sin(middle);
  }

  /// Turns n pairs of numbers, x[at.first] and x[at.second] and so on, `step` from pair to pair.
  template <class T>
  void turn(T* x, rope::channel_pair at, std::size_t n, std::size_t step) const {
    for (std::size_t i = 0; i < n * step; i += step) {
      T &one = x[at.first + i], &other = x[at.second + i];
      const auto a = static_cast<double>(one), b = static_cast<double>(other);
      one = static_cast<T>(cosine * a - sine * b), other = static_cast<T>(sine * a + cosine * b);
    }
  }
};

}  // namespace detail

/// Positions to come that the adapters look at; kvpress's.
inline constexpr std::size_t expected_queries = 512;

/// Statistics of queries before RoPE, moved by the mean rotation of the positions [first, first + future), or by that of `first`
/// if future is 0: what queries to come will be like. Source: ExpectedAttention (arXiv 2510.00636), kvpress 0.5.5. In doubles;
/// cost d^2, or d for each factor, of each query head.
LAGKV_FN query_statistics moved(const query_statistics& s, const rope& r, std::size_t first, std::size_t future);

#if LAGKV_BODIES

LAGKV_FN void query_statistics::multiply(float by) {
  for (float& x : mean) x *= by;
  for (float& x : covariance) x *= by * by;
  for (float& x : factors) x *= by;
}

LAGKV_FN tensor query_statistics::view(const std::vector<float>& x, std::size_t rows) const {
  if (x.empty()) return {};
  const auto c = static_cast<std::ptrdiff_t>(channels);
  return strided<float>(const_cast<float*>(x.data()), {heads, channels}, {static_cast<std::ptrdiff_t>(rows) * c, c, 1}, rows);
}

LAGKV_FN query_statistics moved(const query_statistics& s, const rope& r, std::size_t first, std::size_t future) {
  const std::size_t d = s.channels, square = s.covariance.empty() ? 0 : d;
  query_statistics out = s;
  std::vector<double> matrix(square * d);
  std::vector<detail::mean_turn> turns;
  for (std::size_t j = 0; j < r.rotated(d) / 2; ++j) turns.emplace_back(r.angle(j, d), first, future);
  for (std::size_t head = 0; head < s.heads; ++head) {
    float *mean = out.mean.data() + head * d, *factors = out.factors.data() + head * s.rank() * d,
          *covariance = out.covariance.data() + head * square * d;
    for (std::size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<double>(covariance[i]);
    for (std::size_t j = 0; j < turns.size(); ++j) {
      const rope::channel_pair at = r.pair(j, d);
      turns[j].turn(mean, at, 1, d);
      turns[j].turn(factors, at, s.rank(), d);
      turns[j].turn(matrix.data(), {at.first * square, at.second * square}, square, 1);  // rows, then columns
      turns[j].turn(matrix.data(), at, square, d);
    }
    for (std::size_t i = 0; i < matrix.size(); ++i) covariance[i] = static_cast<float>(matrix[i]);
  }
  return out;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
