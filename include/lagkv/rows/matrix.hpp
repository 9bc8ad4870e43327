// Part of lagkv (MIT). Rows as Eigen's matrices, for the methods that do linear algebra.
#pragma once

#include <cstddef>
#include <span>

#include <Eigen/Core>

#include <lagkv/rows/rows.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Whether all of row i are finite; by their bits, whatever the flags of the host.
template <class Rows>
bool all_finite(const Rows& x, Eigen::Index i) {
  for (Eigen::Index c = 0; c < x.cols(); ++c)
    if (!finite(x(i, c))) return false;
  return true;
}

/// Rows that are turned into doubles at a time.
inline constexpr std::size_t matrix_rows = 64;

/// Calls use(rows, offset) for the rows of `tokens`, less `minus` where that is given, as doubles in `memory`, which has room
/// for matrix_rows of them.
template <class Use>
void for_each_matrix(const tensor& x, std::size_t head, token_range tokens, const float* minus, workspace& ws, double* memory,
                     const Use& use) {
  const std::size_t channels = x.channels();
  for (std::size_t begin = tokens.begin; begin < tokens.end; begin += matrix_rows) {
    const token_range some{begin, begin + matrix_rows < tokens.end ? begin + matrix_rows : tokens.end};
    Eigen::Map<matrix> rows(memory, static_cast<Eigen::Index>(some.size()), static_cast<Eigen::Index>(channels));
    for_each_row(x, head, some, ws, [&](std::size_t i, std::span<const float> row) {
      for (std::size_t c = 0; c < channels; ++c)
        memory[i * channels + c] = static_cast<double>(row[c]) - static_cast<double>(minus != nullptr ? minus[c] : 0.0F);
    });
    use(rows, begin - tokens.begin);
  }
}

}  // namespace detail

}  // namespace lagkv::inline LAGKV_ABI
