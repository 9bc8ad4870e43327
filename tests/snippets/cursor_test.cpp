// The code of docs/cursor.md: one sequence, in the page's order.
#include <gtest/gtest.h>

#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "cursor/includes.inc"

namespace {

constexpr std::size_t heads = 2, channels = 16, capacity = 700, prompt_length = 600;

struct host {
  std::vector<float> k = std::vector<float>(heads * capacity * channels), v = k;

  host() {
    std::mt19937 random(1);
    std::normal_distribution<float> x;
    for (float& f : k) f = x(random);
    for (float& f : v) f = x(random);
  }

  lagkv::layer operator()(std::size_t tokens) {
    const auto rows = [](std::vector<float>& of) {
      return lagkv::strided<float>(of.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity);
    };
    return {rows(k), rows(v), tokens};
  }
};

/// Whether the page's host gave up.
bool refused(const lagkv::cursor& cursor, lagkv::cursor& back) {
  const auto refuse = [](const std::string&) { return true; };
#include "cursor/saved-1.inc"
  back = *loaded;
  return false;
}

TEST(cursor, life) {
  const auto policy = lagkv::parse("key_diff:keep=0.25");
  lagkv::workspace workspace;
  host view;
#include "cursor/a-new-sequence-1.inc"
  EXPECT_EQ(tokens, 150U);
  EXPECT_EQ(cursor.seen(), 600U);

  std::vector<std::size_t> appended;
  const auto append = [&](std::size_t row, std::size_t position) { appended.insert(appended.end(), {row, position}); };
#include "cursor/appending-1.inc"
  EXPECT_EQ(appended, (std::vector<std::size_t>{150, 600, 151, 601, 152, 602, 153, 603}));
  EXPECT_EQ(tokens, 154U) << "fewer candidates than the window holds";
  EXPECT_EQ(cursor.seen(), 604U);

#include "cursor/taking-back-1.inc"
  EXPECT_EQ(cursor.tokens, 152U);
  EXPECT_EQ(cursor.seen(), 602U);

  const std::size_t compressed = cursor.compressed;
  const auto remove_rows = [](std::size_t, std::size_t) {};
#include "cursor/taking-out-1.inc"
  EXPECT_EQ(tokens, 52U);
  EXPECT_EQ(cursor.compressed, compressed - 100);
  EXPECT_EQ(cursor.seen(), 602U);

#include "cursor/fork-1.inc"
  EXPECT_EQ(other, cursor);

  lagkv::cursor back;
  EXPECT_FALSE(refused(cursor, back));
  EXPECT_EQ(back, cursor);

#include "cursor/a-new-prompt-an-old-cursor-1.inc"
  EXPECT_EQ(cursor.seen(), 0U);
}

/// A host of three layers: what it was refused, or nothing.
std::string layers_together(const lagkv::result<lagkv::policy>& policy, std::vector<lagkv::layer>& layers,
                            std::vector<lagkv::cursor>& cursors) {
  lagkv::workspace workspace;
  const auto refuse = [](const std::string& why) { return why; };
#include "cursor/all-layers-at-once-1.inc"
  return {};
}

TEST(cursor, all_layers_at_once) {
  const auto policy = lagkv::parse("key_diff:keep=0.25");
  host a, b, c;
  std::vector<lagkv::layer> layers{a(600), b(600), c(600)};
  std::vector<lagkv::cursor> cursors(3);
  ASSERT_EQ(layers_together(policy, layers, cursors), "");
  for (const lagkv::layer& l : layers) EXPECT_EQ(l.tokens, 150U);

  layers[1].tokens = 650;
  const std::vector<float> before = b.k;
  EXPECT_NE(layers_together(policy, layers, cursors), "") << "different counts";
  EXPECT_EQ(b.k, before);
  EXPECT_EQ(layers[1].tokens, 650U);

  lagkv::workspace workspace;
  std::size_t told = 0;
  const auto tell_device = [&](std::size_t i, const lagkv::plan& applied) { told += applied.empty() == (i != 1) ? 1U : 0U; };
#include "cursor/all-layers-at-once-2.inc"
  EXPECT_TRUE(done) << done.message();
  EXPECT_EQ(told, 3U);
  EXPECT_LT(cursors[1].tokens, 650U);

  EXPECT_NE(layers_together(lagkv::parse("key_diff:budget_mb=1"), layers, cursors), "") << "bytes";
}

/// What the page says of rows that may be taken back.
bool too_far(const lagkv::cursor& cursor, std::size_t rows_left) {
  const auto start_again = [] { return true; };
#include "cursor/taking-back-2.inc"
  return false;
}

TEST(cursor, too_far_back) {
  EXPECT_FALSE(too_far({.tokens = 200, .dropped = 100, .compressed = 150}, 150));
  EXPECT_TRUE(too_far({.tokens = 200, .dropped = 100, .compressed = 150}, 149));
}

TEST(cursor, peak_rows) {
  const auto policy = lagkv::parse("key_diff:capacity=1024");
#include "cursor/how-many-rows-to-allocate-1.inc"
  EXPECT_EQ(rows, 1024U + 512U);
}

/// What the page says of `keep` at every token: the cache grows for 32 calls and shrinks at the next.
TEST(cursor, candidates_of_keep_come_in_groups) {
  const auto policy = lagkv::parse("key_diff:keep=0.25");
  lagkv::workspace workspace;
  lagkv::cursor cursor;
  host view;
  std::size_t tokens = compress(*policy, view(600), cursor, workspace);
  ASSERT_EQ(tokens, 150U);
  for (std::size_t i = 1; i < 32; ++i) {
    tokens = compress(*policy, view(tokens + 1), cursor, workspace);
    ASSERT_EQ(tokens, 150 + i);
  }
  EXPECT_EQ(compress(*policy, view(tokens + 1), cursor, workspace), 632U / 4);
}

}  // namespace
