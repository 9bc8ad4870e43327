// Two translation units with the umbrella, one of them built for AVX2 together with Eigen: one program, whichever comes first.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "two_units.hpp"

TEST(two_units, link_run_and_agree) {
  std::vector<float> keys(100 * 24);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(static_cast<float>(i * i % 1009));
  std::vector<std::uint32_t> plain(100), wide(100);
  plain.resize(kept_by_plain_unit(keys.data(), 100, 24, plain.data()));
  wide.resize(kept_by_wide_unit(keys.data(), 100, 24, wide.data()));
  EXPECT_EQ(plain.size(), 5U * 4);
  EXPECT_EQ(plain, wide);
}
