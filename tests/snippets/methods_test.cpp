// The code of docs/methods.md.
#include <gtest/gtest.h>

#include <lagkv/lagkv.hpp>

#include "methods/includes.inc"

namespace {

TEST(methods, by_options) {
#include "methods/strings-1.inc"
  ASSERT_TRUE(policy) << policy.message();
  EXPECT_EQ(policy->budget.recent, 64U);
}

}  // namespace
