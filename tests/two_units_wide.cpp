// Eigen picks its own vector code by the flags of this file alone, and the library must not mind.
#include <Eigen/Dense>

#include <lagkv/lagkv.hpp>

std::vector<std::uint32_t> kept_by_wide_unit(std::vector<float> keys, std::size_t tokens);

std::vector<std::uint32_t> kept_by_wide_unit(std::vector<float> keys, std::size_t tokens) {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix x =
      1.0F * Eigen::Map<matrix>(keys.data(), static_cast<Eigen::Index>(tokens), static_cast<Eigen::Index>(keys.size() / tokens));
  const lagkv::strided<float> view(const_cast<float*>(x.data()), {1, keys.size() / tokens}, {0, x.cols(), 1}, tokens);
  lagkv::workspace ws;
  return lagkv::judge(*lagkv::parse("lagkv:sink=4,lag=16,ratio=0.25"), {view, view, tokens}, {}, ws).kept;
}
