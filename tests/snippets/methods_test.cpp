// The code of docs/methods.md.
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "methods/includes.inc"

namespace {

TEST(methods, by_options) {
#include "methods/strings-1.inc"
  ASSERT_TRUE(policy) << policy.message();
  EXPECT_EQ(policy->budget.recent, 64U);
}

/// What a host of several layers was refused, or nothing.
std::string budgets(const lagkv::result<lagkv::policy>& policy, std::vector<lagkv::layer>& layers) {
  std::vector<lagkv::cursor> cursors(layers.size());
  lagkv::workspace workspace;
  const auto refuse = [](const std::string& why) { return why; };
#include "methods/budgets-in-bytes-pyramid-1.inc"
  return {};
}

TEST(methods, budgets_in_bytes_and_pyramid) {
  constexpr std::size_t heads = 2, channels = 16, rows = 1000;
  std::vector<float> k(heads * rows * channels);
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<float>(i * 2654435761U % 1000) - 500.0F;
  const lagkv::strided<float> view(k.data(), {heads, channels}, {.head = rows * channels, .token = channels}, rows);
  std::vector<lagkv::layer> layers(3, lagkv::layer{view, {}, rows});
  const std::size_t token = 3 * heads * channels * sizeof(float);  // of all layers
  ASSERT_EQ(budgets(lagkv::parse("key_diff:pyramid=20,budget_mb=" + std::to_string(0.000001 * 500 * token)), layers), "");
  EXPECT_GT(layers[0].tokens, layers[1].tokens);
  EXPECT_GT(layers[1].tokens, layers[2].tokens);
  EXPECT_NEAR(static_cast<double>(layers[1].tokens), 500, 2);
  EXPECT_NE(budgets(lagkv::parse("key_diff:budget_mb=0.001"), layers), "") << "too small";
  EXPECT_FALSE(check(*lagkv::parse("key_diff:budget_mb=1"), layers[0])) << "not fitted";
}

}  // namespace
