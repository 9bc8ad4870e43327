// The program of README.md.
#include <gtest/gtest.h>

#include "README/includes.inc"

namespace {

#define main program
#include "README/in-your-engine-1.inc"
#undef main

TEST(readme, program) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(program(), 0);
  // 16 sinks, 30 partitions of 128 that keep 32 each, a window of 128 + 16.
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "1120 rows in use; the next token has position 4000\n");
}

}  // namespace
