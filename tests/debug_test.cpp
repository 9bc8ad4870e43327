// What debug builds notice: broken contracts. Headers only, without NDEBUG.
#if defined(NDEBUG)
#error "compile without NDEBUG"
#endif
#include <gtest/gtest.h>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::cursor;
using lagkv::toward;

constexpr std::size_t rows = 200;

struct compressed_once {
  cache memory{layout::heads_first, lagkv::dtype::f16, make_cube(1, 2, rows, 8), make_cube(2, 2, rows, 8)};
  lagkv::policy policy = *lagkv::parse("lagkv:sink=2,lag=16,ratio=0.5");
  lagkv::workspace ws{};
  cursor at{};
  std::size_t tokens;

  explicit compressed_once(toward direction = toward::front)
      : tokens(lagkv::compress(policy, memory.layer(150), at, ws, direction)) {}
};

TEST(debug_death, a_cursor_of_another_sequence_is_noticed) {
  compressed_once c;
  ASSERT_NE(c.at.mark, 0U);
  cache other(layout::heads_first, lagkv::dtype::f16, make_cube(3, 2, rows, 8), make_cube(4, 2, rows, 8));
  EXPECT_DEATH(lagkv::compress(c.policy, other.layer(180), c.at, c.ws), "of another sequence");
  EXPECT_DEATH(lagkv::compress(c.policy, other.layer(c.tokens - 1), c.at, c.ws), "take_back");
}

// In each way that a call for all layers goes: a layer planned and moved after the other, all planned first, shared among
// workers.
TEST(debug_death, a_cursor_of_another_sequence_is_noticed_by_calls_for_all_layers) {
  const auto run = [](std::size_t n, const auto& work) {
    for (std::size_t i = 0; i < n; ++i) work(i, i % 2);
  };
  const auto planned = [](std::size_t, const lagkv::plan&) {};
  for (const char* text : {"lagkv:sink=2,lag=16,ratio=0.5", "key_norm:sink=2,recent=8,keep=0.5", "random:capacity=60,recent=8",
                           "key_norm:recent=8,keep=0.5,select=chunks", "streaming_llm:sink=2,capacity=60"})
    for (const int way : {0, 1, 2})
      for (const toward direction : {toward::front, toward::window}) {
        const lagkv::policy p = *lagkv::parse(text);
        const auto compress = [&](std::vector<cache>& c, std::size_t tokens, std::vector<cursor>& at) {
          lagkv::workspace ws[2];
          const std::vector<lagkv::layer> two{c[0].layer(tokens), c[1].layer(tokens)};
          const lagkv::compress_options o{.direction = direction};
          if (way == 0) return static_cast<bool>(lagkv::compress(p, two, at, ws[0], o));
          if (way == 1)
            return static_cast<bool>(lagkv::compress(p, two, at, ws[0], {.direction = direction, .planned = planned}));
          return static_cast<bool>(lagkv::compress(p, two, at, std::span(ws), run, o));
        };
        const auto sequence = [](unsigned seed) {
          std::vector<cache> layers;
          for (unsigned i = seed; i < seed + 4; i += 2)
            layers.emplace_back(layout::heads_first, lagkv::dtype::f16, make_cube(i, 2, rows, 8), make_cube(i + 1, 2, rows, 8));
          return layers;
        };
        std::vector<cache> memory = sequence(1), other = sequence(5);
        std::vector<cursor> at(2), fresh(2);
        ASSERT_TRUE(compress(memory, 150, at)) << text;
        const std::size_t left = at[0].tokens;
        ASSERT_LT(left, 150U) << text;
        for (const cursor& c : at) ASSERT_NE(c.mark, 0U) << text << " way " << way;
        EXPECT_DEATH(compress(other, 180, at), "of another sequence") << text << " way " << way;
        EXPECT_DEATH(compress(other, left - 1, at), "take_back") << text << " way " << way;
        EXPECT_TRUE(compress(other, 180, fresh)) << text;
      }
}

TEST(debug_death, positions_that_heads_share_must_be_those_of_all) {
  cache memory(layout::heads_first, lagkv::dtype::f32, make_cube(1, 2, rows, 8), make_cube(2, 2, rows, 8));
  std::vector<std::uint32_t> positions(rows);
  lagkv::extras offers;
  offers.positions = {positions.data(), 0};
  lagkv::layer l = memory.layer(rows);
  l.extra = &offers;
  lagkv::workspace ws;
  cursor at;
  EXPECT_EQ(lagkv::compress(*lagkv::parse("key_norm:keep=0.5"), l, at, ws), rows);  // check() refuses it
  const lagkv::plan plan = plan_eviction(*lagkv::parse("key_norm:keep=0.5"), memory.layer(rows), {}, ws);
  EXPECT_DEATH(lagkv::compact(offers, plan), "heads keep different tokens");  // a plan applied by hand
  at = {};
  EXPECT_EQ(lagkv::compress(*lagkv::parse("key_norm:keep=0.5,heads=shared"), l, at, ws), rows / 2);
}

// The latent rows of an MLA layer hold its values: as values of their own they would move twice.
TEST(debug_death, values_that_lie_in_the_rows_of_the_keys_are_noticed) {
  struct part {
    std::size_t first, channels;
    std::ptrdiff_t step;
  };
  constexpr std::size_t of_layer = 2 * rows * 24;
  std::vector<float> memory(2 * of_layer, 1.0F);
  const auto view = [&](const part& x, std::size_t layer) {
    return lagkv::strided<float>(memory.data() + layer * of_layer + x.first, {2, x.channels}, {rows * 24, 24, x.step}, rows);
  };
  const lagkv::policy p = *lagkv::parse("lagkv:sink=2,lag=16,ratio=0.5");
  const auto compress = [&](const part& k, const part& v, int mode) {
    lagkv::workspace ws;
    std::vector<cursor> at(2);
    const std::vector<lagkv::layer> two{{view(k, 0), view(v, 0), 150}, {view(k, 1), view(v, 1), 150}};
    const auto planned = [](std::size_t, const lagkv::plan&) {};
    bool done = true;
    if (mode == 0) lagkv::compress(p, two[0], at[0], ws);
    if (mode == 1) done = static_cast<bool>(lagkv::compress(p, two, at, ws));
    if (mode == 2) done = static_cast<bool>(lagkv::compress(p, two, at, ws, {.planned = planned}));
    if (mode == 3) done = !lagkv::plan_eviction(p, two[0], {}, ws).empty();
    EXPECT_TRUE(done) << mode;
  };
  for (const int mode : {0, 1, 2}) {
    EXPECT_DEATH(compress({0, 24, 1}, {0, 24, 1}, mode), "move twice") << mode;
    EXPECT_DEATH(compress({0, 24, 1}, {0, 16, 1}, mode), "move twice") << mode;
    EXPECT_DEATH(compress({0, 24, 1}, {8, 16, 1}, mode), "move twice") << mode;
    EXPECT_DEATH(compress({8, 16, 1}, {0, 24, 1}, mode), "move twice") << mode;
    EXPECT_DEATH(compress({23, 24, -1}, {0, 8, 1}, mode), "move twice") << mode;
    compress({0, 12, 1}, {12, 12, 1}, mode);  // a value behind its key
    compress({0, 12, 2}, {1, 12, 2}, mode);   // between its channels
  }
  compress({0, 24, 1}, {0, 16, 1}, 3);  // a plan moves nothing
}

TEST(debug_death, workspaces_and_cursors_that_are_not_there_are_noticed) {
  compressed_once c;
  const std::vector<lagkv::layer> two(2, c.memory.layer(150));
  std::vector<cursor> one(1);
  const auto run = [](std::size_t n, const auto& work) {
    for (std::size_t i = 0; i < n; ++i) work(i, 0U);
  };
  EXPECT_DEATH(lagkv::compress(c.policy, two[0], one[0], std::span<lagkv::workspace>{}, run), "no workspace");
  EXPECT_DEATH(lagkv::compress_each(c.policy, two, one, std::span(&c.ws, 1), run), "a cursor for each layer");
}

TEST(debug_death, a_refusal_is_not_to_be_taken_for_a_value) {
  const auto refused = lagkv::parse("no_such_policy");
  EXPECT_DEATH((void)*refused, "has no value");
  EXPECT_DEATH((void)refused->ragged, "has no value");
  EXPECT_FALSE((*lagkv::parse("full")).ragged);
}

TEST(debug_death, what_is_right_is_let_pass) {
  for (toward direction : {toward::front, toward::window}) {
    compressed_once c(direction);
    const lagkv::plan& plan = lagkv::last_plan(c.ws);
    cursor again = c.at;
    if (direction == toward::window) {  // as a host does: the rows before the hole move up to it
      const std::size_t freed = plan.tokens_before - c.tokens;
      for (std::size_t h = 0; h < 2; ++h)
        for (std::size_t to = 0; to < c.tokens; ++to) {
          const std::size_t from = to < plan.candidates.begin ? to : to + freed;
          for (host* x : {&c.memory.keys, &c.memory.values}) {
            const row_bits bits = x->row(h, from);
            for (std::size_t i = 0; i < bits.size(); ++i) x->set(h, to, i, bits[i]);
          }
        }
    }
    lagkv::compress(c.policy, c.memory.layer(c.tokens), again, c.ws);
    lagkv::compress(c.policy, c.memory.layer(c.tokens + 5), again, c.ws);
    lagkv::take_back(again, c.tokens + 1);
    lagkv::compress(c.policy, c.memory.layer(c.tokens + 1), again, c.ws);
    lagkv::take_back(again, 20);  // into the survivors
    lagkv::compress(c.policy, c.memory.layer(60), again, c.ws);
    lagkv::take_out(again, 10, 15, lagkv::gap::closed);  // of the survivors
    lagkv::compress(c.policy, c.memory.layer(60), again, c.ws);
    lagkv::cursor loaded = *lagkv::load_cursor(lagkv::save(again));
    lagkv::compress(c.policy, c.memory.layer(90), loaded, c.ws);
    SUCCEED();
  }
}

}  // namespace
