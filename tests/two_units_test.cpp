// Two translation units with the umbrella, one of them built for AVX2 together with Eigen: one program.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

std::vector<std::uint32_t> kept_by_plain_unit(std::vector<float> keys, std::size_t tokens);
std::vector<std::uint32_t> kept_by_wide_unit(std::vector<float> keys, std::size_t tokens);

TEST(two_units, link_run_and_agree) {
  std::vector<float> keys(100 * 24);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(static_cast<float>(i * i % 1009));
  const auto kept = kept_by_plain_unit(keys, 100);
  EXPECT_EQ(kept.size(), 5U * 4);
  EXPECT_EQ(kept, kept_by_wide_unit(keys, 100));
}
