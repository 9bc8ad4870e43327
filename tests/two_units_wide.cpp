// Eigen picks its own vector code by the flags of this file alone, and the library must not mind.
#include <Eigen/Dense>

#include <lagkv/lagkv.hpp>

#include "two_units.hpp"

std::size_t kept_by_wide_unit(float* keys, std::size_t tokens, std::size_t channels, std::uint32_t* kept) {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  matrix x = 1.0F * Eigen::Map<matrix>(keys, static_cast<Eigen::Index>(tokens), static_cast<Eigen::Index>(channels));
  const lagkv::strided<float> view(x.data(), {1, channels}, {0, x.cols(), 1}, tokens);
  lagkv::workspace ws;
  const lagkv::plan& plan =
      lagkv::plan_eviction(*lagkv::make_lagkv({.sink = 4, .lag = 16, .ratio = 0.25}), {view, view, tokens}, {}, ws);
  for (const std::uint32_t row : plan.kept) *kept++ = row;
  return plan.kept.size();
}
