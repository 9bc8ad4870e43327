// StreamingLLM and random: what LagKV is compared with.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include <lagkv/lagkv.hpp>

#include "support/sequence.hpp"

namespace {

using namespace support;
using lagkv::dtype;

std::vector<int> first_and_last(int first, int last, int of) {
  std::vector<int> out(static_cast<std::size_t>(first + last));
  std::iota(out.begin(), out.begin() + first, 0), std::iota(out.begin() + first, out.end(), of - last);
  return out;
}

TEST(streaming_llm, keeps_sinks_and_the_most_recent) {
  const cube x = make_cube(1, 2, 300, 4);
  const lagkv::policy p = named("streaming_llm:sink=4,capacity=50");
  lagkv::workspace ws;
  sequence s(layout::blocks_of_7, dtype::f32, x, x);
  s.append(50, p, ws);
  EXPECT_EQ(s.tokens(), 50U);
  s.append(100, p, ws);
  EXPECT_EQ(s.positions(1), first_and_last(4, 46, 150));
  for (int n = 151; n <= 300; ++n) {  // decode
    s.append(1, p, ws);
    ASSERT_EQ(s.positions(0), first_and_last(4, 46, n));
    ASSERT_EQ(s.at(), (lagkv::cursor{50, static_cast<std::size_t>(n) - 50, 4}));
  }
  EXPECT_TRUE(s.rows_follow_positions());
}

TEST(streaming_llm, keeps_a_share) {
  const cube x = make_cube(2, 1, 200, 4);
  const lagkv::policy p = named("streaming_llm:sink=4,keep=0.29");
  lagkv::workspace ws;
  sequence s(layout::heads_first, dtype::f16, x, x);
  s.append(100, p, ws);
  EXPECT_EQ(s.positions(0), first_and_last(4, 24, 100));
  for (std::size_t n = 101; n <= 200; ++n) {
    s.append(1, p, ws);
    ASSERT_EQ(s.tokens(), static_cast<std::size_t>(0.29 * static_cast<double>(n)));
  }
}

TEST(streaming_llm, never_drops_a_sink) {
  const cube x = make_cube(3, 1, 30, 4);
  lagkv::workspace ws;
  sequence s(layout::heads_first, dtype::f32, x, x);
  s.append(30, named("streaming_llm:sink=10,keep=0.1"), ws);
  EXPECT_EQ(s.positions(0), first_and_last(10, 1, 30)) << "and the last row stays, whatever the budget";
}

TEST(streaming_llm, reads_no_element) {
  const lagkv::tensor nowhere = lagkv::strided<float>(reinterpret_cast<float*>(64), {2, 4}, {4000, 4, 1});
  lagkv::workspace ws;
  EXPECT_EQ(lagkv::plan_eviction(named("streaming_llm:sink=4,capacity=50"), {nowhere, nowhere, 90}, {}, ws).candidates,
            (lagkv::token_range{4, 44}));
}

std::vector<std::uint32_t> kept_at_random(const std::string& text, const cube& x, layout l = layout::heads_first) {
  cache c(l, dtype::f16, x, x);
  lagkv::workspace ws;
  const auto& kept = lagkv::plan_eviction(named(text), c.layer(x.tokens), {}, ws).kept;
  return {kept.begin(), kept.end()};
}

TEST(random, is_reproducible_and_follows_the_seed) {
  const cube x = make_cube(4, 2, 300, 8);
  const auto one = kept_at_random("random:keep=0.5,seed=1", x);
  EXPECT_EQ(one, kept_at_random("random:keep=0.5,seed=1", x));
  for (layout l : all_layouts) EXPECT_EQ(one, kept_at_random("random:keep=0.5,seed=1", x, l)) << l;
  EXPECT_NE(one, kept_at_random("random:keep=0.5,seed=2", x));
  EXPECT_NE(one, kept_at_random("random:keep=0.5,seed=1", make_cube(5, 2, 300, 8))) << "other layers, other tokens";
  const auto half = static_cast<std::ptrdiff_t>(one.size() / 2);
  EXPECT_FALSE(std::equal(one.begin(), one.begin() + half, one.begin() + half)) << "other heads, other tokens";
}

TEST(random, is_uniform_enough) {
  const cube x = make_cube(6, 1, 4000, 2);
  const auto kept = kept_at_random("random:sink=0,recent=1,keep=0.5", x);
  const auto early = std::count_if(kept.begin(), kept.end(), [](std::uint32_t t) { return t < 2000; });
  EXPECT_EQ(kept.size(), 1999U);
  EXPECT_NEAR(static_cast<double>(early), 1000.0, 100.0);
}

TEST(random, keeps_the_share_sinks_and_the_recent) {
  const cube x = make_cube(7, 2, 400, 4);
  const lagkv::policy p = named("random:sink=4,recent=32,keep=0.5");
  lagkv::workspace ws;
  sequence s(layout::tokens_first, dtype::bf16, x, x);
  s.append(67, p, ws);
  EXPECT_EQ(s.tokens(), 67U) << "fewer than two times recent after the sinks";
  for (int call = 0; call < 3; ++call) {
    s.append(111, p, ws);
    ASSERT_EQ(s.tokens(), s.seen() / 2);
    const auto positions = s.positions(1);
    for (int i = 0; i < 4; ++i) ASSERT_EQ(positions[static_cast<std::size_t>(i)], i);
    for (std::size_t i = 1; i <= 32; ++i) ASSERT_EQ(positions[s.tokens() - i], static_cast<int>(s.seen() - i));
    ASSERT_TRUE(std::is_sorted(positions.begin(), positions.end()));
  }
  EXPECT_TRUE(s.rows_follow_positions());
}

}  // namespace
