// The code of docs/offers.md: one host that offers all of it, in the page's order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <lagkv/attention/estimate_queries.hpp>
#include <lagkv/attention/fit_importance.hpp>
#include <lagkv/attention/refit_values.hpp>
#include <lagkv/lagkv.hpp>

#include "offers/includes.inc"

namespace {

constexpr std::size_t heads = 2, query_heads = 4, channels = 16, capacity = 400;

std::vector<float> normal(std::size_t n) {
  static std::mt19937 random(1);
  std::normal_distribution<float> x;
  std::vector<float> out(n);
  for (float& f : out) f = x(random);
  return out;
}

/// The page's first block: a layer whose offers come later.
void refused(const lagkv::result<lagkv::policy>& policy, const std::string& message) {
  const auto refuse = [&](const std::string& why) { EXPECT_EQ(why, message); };
  std::vector<float> k = normal(heads * capacity * channels);
  const lagkv::strided<float> keys(k.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity);
  const auto& values = keys;
  const std::size_t tokens = 300;
#include "offers/what-a-host-may-offer-1.inc"
  FAIL() << "not refused";
}

TEST(offers, what_is_missing_is_named) {
  refused(lagkv::parse("snapkv"),
          "queries: the policy reads those of the last 64 tokens, or their attention weights; the layer offers none");
}

struct host {
  lagkv::result<lagkv::policy> policy;
  std::vector<float> k = normal(heads * capacity * channels), v = normal(heads * capacity * channels);
  lagkv::strided<float> keys{k.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity};
  lagkv::strided<float> values{v.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity};
  std::size_t tokens = 300;
  lagkv::extras offers{};
  lagkv::cursor cursor{};
  lagkv::workspace workspace{};

  explicit host(const char* text) : policy(lagkv::parse(text)) {}

  lagkv::layer layer() const { return {keys, values, tokens, &offers}; }
  std::string missing() const { return check(*policy, layer()).message(); }
  std::size_t compress() { return lagkv::compress(*policy, layer(), cursor, workspace); }
};

TEST(offers, rope) {
  host my("novelty:keep=0.25");
  EXPECT_NE(my.missing(), "");
  lagkv::extras& offers = my.offers;
#include "offers/rope-1.inc"
  EXPECT_EQ(my.missing(), "");
  EXPECT_EQ(my.compress(), 75U);
  const lagkv::rope unnamed{.base = 10000};
  offers.rope = &unnamed;
  EXPECT_NE(my.missing().find("pairs: must be named"), std::string::npos);
}

TEST(offers, queries) {
  constexpr std::size_t n = 64;
  std::vector<float> all = normal(query_heads * n * channels);
  host my("snapkv:keep=0.25"), ring("snapkv:keep=0.25");
  {
    float* q = all.data();
    lagkv::extras& offers = my.offers;
#include "offers/queries-1.inc"
  }
  ASSERT_EQ(my.missing(), "");
  // The same queries, the oldest in slot 10.
  const std::size_t next = 10;
  std::vector<float> turned(all.size());
  for (std::size_t head = 0; head < query_heads; ++head)
    for (std::size_t i = 0; i < n; ++i)
      std::copy_n(all.data() + (head * n + i) * channels, channels, turned.data() + (head * n + (i + next) % n) * channels);
  {
    float* q = turned.data();
    const std::size_t count = n;
    lagkv::extras& offers = ring.offers;
#include "offers/queries-2.inc"
  }
  ASSERT_EQ(ring.missing(), "");
  ring.k = my.k, ring.v = my.v;
  ring.keys = {ring.k.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity};
  ring.values = {ring.v.data(), {heads, channels}, {.head = capacity * channels, .token = channels}, capacity};
  EXPECT_EQ(my.compress(), 75U);
  EXPECT_EQ(ring.compress(), 75U);
  EXPECT_EQ(my.k, ring.k);
}

// Pushes and take-backs in any order: offered are the newest queries that are still valid and that the ring has held ever since,
// oldest first.
TEST(offers, queries_in_a_ring) {
  std::mt19937 random(2);
  const auto below = [&](std::size_t most) { return random() % most; };
  for (const std::size_t n : {1U, 2U, 7U, 8U}) {
    std::vector<float> all(query_heads * n * channels, -1);
    float* q = all.data();
    std::size_t next = 0, count = 0;
    std::vector<float> valid;  // the number of each token in the cache
    std::size_t held = 0;      // of them, the last ones, those in the ring
    lagkv::workspace workspace;
    float token = 0;
#include "offers/queries-3.inc"
    for (int step = 0; step < 3000; ++step) {
      if (below(4) != 0) {
        for (std::size_t head = 0; head < query_heads; ++head) std::fill_n(q + (head * n + next) * channels, channels, token);
        written();
        valid.push_back(token++), held = std::min(held + 1, n);
      } else {
        const std::size_t tokens = std::min(below(2 * n + 2), valid.size());
        taken_back(tokens);
        valid.resize(valid.size() - tokens), held -= std::min(held, tokens);
      }
      ASSERT_EQ(count, held) << n << " slots, step " << step;
      if (count == 0) continue;
      lagkv::extras offers;
#include "offers/queries-2.inc"
      ASSERT_TRUE(offers.queries.check(n));
      std::vector<float> offered;
      lagkv::for_each_row(offers.queries, query_heads - 1, {0, offers.offered()}, workspace,
                          [&](std::size_t, std::span<const float> row) { offered.push_back(row[channels - 1]); });
      ASSERT_EQ(offered, std::vector<float>(valid.end() - static_cast<std::ptrdiff_t>(held), valid.end()))
          << n << " slots, step " << step;
    }
  }
}

TEST(offers, refit) {
  constexpr std::size_t n = 64;
  host my("snapkv:keep=0.25");
  std::vector<float> q = normal(query_heads * n * channels);
  lagkv::extras& offers = my.offers;
  offers.queries = lagkv::strided<float>(q.data(), {query_heads, channels}, {.head = n * channels, .token = channels}, n);
  const lagkv::layer layer = my.layer();
  lagkv::cursor& cursor = my.cursor;
  lagkv::workspace& workspace = my.workspace;
  const auto& policy = my.policy;
  const std::vector<float> before = my.v;
#include "offers/values-that-make-up-for-rows-that-go-1.inc"
  EXPECT_TRUE(refitted) << refitted.message();
  EXPECT_EQ(cursor.tokens, 75U);
  const auto row = my.v.begin() + 10 * channels;  // of a kept candidate
  EXPECT_EQ(std::search(before.begin(), before.end(), row, row + channels), before.end()) << "its value is as it was";
}

TEST(offers, weights) {
  constexpr std::size_t n = 8, tokens = 300;
  std::vector<float> weights(query_heads * n * tokens, 1.0F / tokens);
  float* w = weights.data();
  host my("snapkv:window=8,keep=0.25");
  lagkv::extras& offers = my.offers;
#include "offers/attention-weights-1.inc"
  EXPECT_EQ(my.missing(), "");
  EXPECT_EQ(my.compress(), 75U);
}

TEST(offers, accumulated_attention) {
  host my("h2o:capacity=100");
  std::vector<float> attention(heads * capacity), q = normal(query_heads * 300 * channels);
  const std::size_t n = 300;
  lagkv::extras& offers = my.offers;
  offers.queries = lagkv::strided<float>(q.data(), {query_heads, channels}, {.head = 300 * channels, .token = channels}, n);
  const lagkv::layer layer = my.layer();
  lagkv::cursor& cursor = my.cursor;
  lagkv::workspace& workspace = my.workspace;
  std::size_t& tokens = my.tokens;
  const auto& policy = my.policy;
#include "offers/accumulated-attention-1.inc"
  EXPECT_EQ(tokens, 100U);
  for (std::size_t head = 0; head < heads; ++head) {
    EXPECT_GT(attention[head * capacity + 99], 0.0F);
    EXPECT_EQ(attention[head * capacity + 100], 0.0F);
  }
}

TEST(offers, key_statistics) {
  static const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  host my("novelty:keep=0.25");
  lagkv::extras& offers = my.offers;
  offers.rope = &rope;
  const std::size_t n = 300;
  const lagkv::layer layer = my.layer();
  const lagkv::cursor& cursor = my.cursor;
  lagkv::workspace& workspace = my.workspace;
  const auto& policy = my.policy;
#include "offers/key-statistics-1.inc"
  EXPECT_EQ(sums[2 * channels], 300.0 - 4) << "all keys but the sinks";
  EXPECT_EQ(my.compress(), 75U);
}

TEST(offers, importance) {
  static const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  host my("kvzap:keep=0.25");
  lagkv::extras& offers = my.offers;
  offers.rope = &rope;
  lagkv::workspace& workspace = my.workspace;
  const std::size_t n = 100;
  std::vector<float> q = normal(query_heads * n * channels);
  offers.queries = lagkv::strided<float>(q.data(), {query_heads, channels}, {.head = n * channels, .token = channels}, n);
  const lagkv::layer layer = my.layer();
  const lagkv::tensor keys_before_rope = layer.keys;
  const auto refuse = [](const std::string& why) { FAIL() << why; };
  EXPECT_NE(my.missing(), "");
#include "offers/importance-1.inc"
  EXPECT_EQ(my.missing(), "");
  EXPECT_EQ(my.compress(), 75U);
}

/// What a host whose layers hold different numbers of rows was refused, or nothing.
std::string share(const std::vector<std::vector<float>>& importance, const lagkv::policy& policy,
                  std::vector<lagkv::layer>& layers) {
  std::vector<lagkv::cursor> cursors(layers.size());
  lagkv::workspace workspace;
  const auto refuse = [](const std::string& why) { return why; };
#include "offers/importance-2.inc"
  return {};
}

TEST(offers, importance_of_layers) {
  host my("key_diff:keep=0.25,sink=0,recent=0");
  std::vector<lagkv::layer> layers(2, my.layer());
  const std::size_t n = layers[0].tokens;
  EXPECT_EQ(share({std::vector<float>(n, 0.5F), std::vector<float>(n, 0.1F)}, *my.policy, layers), "");
  EXPECT_EQ(layers[0].tokens, n * 45 / 100) << "all but what is safe of the other";
  EXPECT_EQ(layers[1].tokens, n * 5 / 100);
}

/// The prompt of a host whose heads hold different numbers of rows: what it was refused, or nothing.
struct uneven_host {
  std::vector<lagkv::layer> layers;
  std::vector<lagkv::extras> offers{layers.size()};
  std::vector<std::vector<lagkv::cursor>> cursors{layers.size(), std::vector<lagkv::cursor>(heads)};
  std::vector<std::vector<lagkv::policy>> policies{layers.size(), std::vector<lagkv::policy>(heads)};

  std::string take_prompt(const std::vector<std::vector<std::vector<float>>>& importance, const lagkv::policy& policy) {
    for (std::size_t i = 0; i < layers.size(); ++i) layers[i].extra = &offers[i];
    lagkv::workspace workspace;
    const auto refuse = [](const std::string& why) { return why; };
#include "offers/head-budgets-1.inc"
    return {};
  }
};

TEST(offers, budgets_of_heads) {
  host my("key_diff:keep=0.25,select=by_head"), other("key_diff:keep=0.25,select=by_head");
  uneven_host uneven{{my.layer(), other.layer()}};
  const std::vector<float> much(300, 0.9F), little(300, 0.1F);
  std::vector<std::uint32_t> positions(heads * capacity);
  for (std::size_t i = 0; i < heads * capacity; ++i) positions[i] = static_cast<std::uint32_t>(i % capacity);
  uneven.offers[0].positions = {positions.data(), capacity};
  ASSERT_EQ(uneven.take_prompt({{much, little}, {little, little}}, *my.policy), "");
  for (std::size_t h = 0; h < heads; ++h)
    EXPECT_EQ(positions[h * capacity + uneven.cursors[0][h].tokens - 1], 299U) << "positions move with the rows of head " << h;
  EXPECT_EQ(uneven.cursors[0][0].tokens, 300U - 3 * 36) << "all that the others need not have";
  std::size_t rows = 0;
  for (const auto& of_layer : uneven.cursors)
    for (const lagkv::cursor& c : of_layer) rows += c.tokens;
  EXPECT_EQ(rows, 4 * 75U) << "as many as with equal budgets";

  // Each head goes on by itself.
  lagkv::workspace workspace;
  const lagkv::strided<float> little_head(my.k.data() + capacity * channels, {1, channels}, {0, channels, 1}, capacity);
  lagkv::cursor& at = uneven.cursors[0][1];
  const std::size_t before = at.tokens;
  EXPECT_LE(lagkv::compress(uneven.policies[0][1], {little_head, {}, before + 90}, at, workspace), before + 40);
}

TEST(offers, which_policy_for_head_budgets_needs_rope_and_positions) {
  host my("key_diff:pre_rope=yes,keep=0.25,select=by_head");
  static const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  const std::vector<float> budgets(heads, 1.0F);
  std::vector<std::uint32_t> positions(heads * capacity);
  const auto accepted = [&] { return static_cast<bool>(check(*my.policy, my.layer(), true)); };
  my.offers.head_budgets = budgets, my.offers.rope = &rope;
  EXPECT_FALSE(accepted());
  my.offers.positions = {positions.data(), capacity};
  EXPECT_TRUE(accepted());
}

TEST(offers, query_statistics) {
  static const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  host my("expected_attention:calibrated=yes,keep=0.25");
  lagkv::extras& offers = my.offers;
  lagkv::workspace& workspace = my.workspace;
  const lagkv::cursor& cursor = my.cursor;
  const std::size_t n = 100;
  std::vector<float> q = normal(query_heads * n * channels);
  const lagkv::strides distance{.head = n * channels, .token = channels};
  const lagkv::strided<float> queries_before_rope(q.data(), {query_heads, channels}, distance, n);
  EXPECT_NE(my.missing(), "");
#include "offers/query-statistics-1.inc"
  EXPECT_EQ(my.missing(), "");
  EXPECT_EQ(my.compress(), 75U);
}

TEST(offers, positions_and_protected_tokens) {
  host my("key_diff:capacity=100");
  lagkv::extras& offers = my.offers;
  std::vector<std::uint32_t> positions(heads * capacity);
#include "offers/protected-tokens-1.inc"
  EXPECT_NE(my.missing(), "") << "positions";
  for (std::uint32_t position = 0; position < 300; ++position) {
    const std::size_t row = position;
#include "offers/positions-1.inc"
  }
#include "offers/scale-1.inc"
  EXPECT_EQ(my.missing(), "");
  EXPECT_EQ(my.compress(), 100U);
  for (std::size_t h = 0; h < heads; ++h)
    for (const std::uint32_t p : system_prompt)
      EXPECT_TRUE(std::binary_search(&positions[h * capacity], &positions[h * capacity + 100], p));
}

}  // namespace
