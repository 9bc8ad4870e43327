// Part of lagkv (MIT). Leverage: keys that the others cannot make up for (part of Compactor, arXiv 2507.08143). Needs Eigen.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include <Eigen/Cholesky>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/matrix.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// x (X^T X + ridge I)^-1 x^T, x = k - mean, X the rows of the reference less their mean: all rows in use, or the next
/// partition. By Cholesky, in doubles. With `sketch` columns of a Gaussian projection in place of the channels: then d is
/// that many, and the scores are approximate. A row that is not finite, or whose square is not in f32, is passed over in the
/// reference, and goes first. Cost: n d^2 + d^3 / 3. Source: the paper; kvpress 0.5.5, LeverageScorePress, which takes keys
/// before RoPE and a sketch of 48. Eigen may allocate.
struct leverage_score {
  std::size_t lag = 0;     ///< tokens a partition; 0: all candidates at once
  std::size_t sketch = 0;  ///< columns; 0, or as many as channels or more: exact
  double ridge = 0.01;
  std::uint64_t seed = 0;  ///< of the projection

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const {
    constexpr std::size_t together = detail::matrix_rows;
    constexpr double least = 1e-12;
    const std::size_t channels = l.keys.channels();
    const bool exact = sketch == 0 || sketch >= channels;
    const std::size_t width = exact ? channels : sketch;
    const auto d = static_cast<Eigen::Index>(width), c = static_cast<Eigen::Index>(channels);
    const workspace::frame scratch(ws);
    double* memory = ws.take<double>(width * width + channels * width + together * (channels + width));
    Eigen::Map<Eigen::MatrixXd> gram(memory, d, d);
    Eigen::Map<Eigen::MatrixXd> projection(memory + width * width, c, d);
    double* rows = memory + width * width + channels * width;
    double* narrow = rows + together * channels;
    if (!exact) draw(projection);
    float* mean = ws.take<float>(channels);

    // Whether a row, and its square in f32, are finite: an infinity need not become NaN below.
    const auto counts = [](const Eigen::Map<detail::matrix>& x, Eigen::Index i) {
      return detail::all_finite(x, i) && detail::finite(static_cast<float>(x.row(i).squaredNorm()));
    };
    const auto projected = [&](const Eigen::Map<detail::matrix>& x) {
      Eigen::Map<detail::matrix> to(exact ? rows : narrow, x.rows(), d);
      if (!exact) to.noalias() = x * projection;
      return to;
    };
    for_each_reference(l, candidates, lag, [&](token_range part, token_range reference) {
      mean_of_rows(l.keys, head, reference, mean, ws, [](float) { return 1.0F; });
      gram.setIdentity();
      gram *= ridge;
      detail::for_each_matrix(l.keys, head, reference, mean, ws, rows, [&](Eigen::Map<detail::matrix>& x, std::size_t) {
        for (Eigen::Index i = 0; i < x.rows(); ++i)
          if (!counts(x, i)) x.row(i).setZero();
        gram.selfadjointView<Eigen::Lower>().rankUpdate(projected(x).transpose());
      });
      if (const double own = least * gram.trace(); own > ridge)
        gram.diagonal().array() += own;  // else rounding may exceed the ridge
      const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>> cholesky(gram);
      float* scores = out.data() + (part.begin - candidates.begin);
      detail::for_each_matrix(l.keys, head, part, mean, ws, rows, [&](Eigen::Map<detail::matrix>& x, std::size_t offset) {
        for (Eigen::Index i = 0; i < x.rows(); ++i) {
          float& score = scores[offset + static_cast<std::size_t>(i)];
          score = counts(x, i) ? 0.0F : detail::not_a_number();
          if (detail::is_nan(score)) x.row(i).setZero();
        }
        Eigen::Map<detail::matrix> y = projected(x);
        cholesky.matrixL().solveInPlace(y.transpose());
        for (Eigen::Index i = 0; i < y.rows(); ++i)
          if (float& score = scores[offset + static_cast<std::size_t>(i)]; !detail::is_nan(score))
            score = static_cast<float>(y.row(i).squaredNorm());
      });
    });
  }

 private:
  /// Independent normal numbers (Box and Muller), scaled so that lengths are kept in the mean.
  template <class Matrix>
  void draw(Matrix& to) const {
    std::uint64_t state = seed;
    const auto uniform = [&state] {  // (0, 1)
      const std::uint64_t x = detail::split_mix(state);
      state += detail::split_mix_step;
      return (static_cast<double>(x >> 11) + 0.5) * 0x1p-53;
    };
    const double scale = 1 / std::sqrt(static_cast<double>(to.cols()));
    for (Eigen::Index i = 0; i < to.size(); ++i) {
      const double radius = std::sqrt(-2 * std::log(uniform())), angle = 6.283185307179586 * uniform();
      to.data()[i] = scale * radius * std::cos(angle);
    }
  }
};

inline method method_of(const leverage_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0}}; }

inline constexpr parameter leverage_parameters[] = {
    option<&leverage_score::sketch>("sketch", accepts::count, "columns of a Gaussian projection; 0: exact (kvpress: 48)"),
    option<&leverage_score::ridge>("ridge", accepted{accepted::kind::number, 0, 1e6, true}, "added to the diagonal"),
    option<&leverage_score::seed>("seed", accepts::seed, "another projection")};

constexpr std::span<const parameter> options_of(const leverage_score&) { return leverage_parameters; }

inline constexpr method_entry leverage_entry = entry_of<leverage_score>(
    {.name = "leverage", .meaning = "keys that the others cannot make up for", .source = "arXiv 2507.08143", .reads = "keys"},
    leverage_parameters);

}  // namespace lagkv::inline LAGKV_ABI
