// The code of docs/adapters.md that needs no more than Eigen.
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "adapters/includes.inc"

namespace {

TEST(adapters, eigen) {
  const Eigen::Index tokens = 100, heads = 2, channels = 32;
  const std::size_t used = 75;
  std::vector<Eigen::half> memory(2 * 100 * 2 * 32);
  Eigen::half *k = memory.data(), *v = k + 100 * 2 * 32;
#include "adapters/eigen-1.inc"
  EXPECT_TRUE(check(*lagkv::parse("lagkv:lag=16"), layer));
}

}  // namespace
