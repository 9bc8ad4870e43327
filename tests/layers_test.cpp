// All layers at once, what a budget needs at most, the life of a cursor, and faults that have been mended, each by its whole
// kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/offer.hpp"
#include "support/sequence.hpp"

namespace {

using namespace support;
using lagkv::cursor;
using lagkv::dtype;
using lagkv::layer;
using lagkv::toward;

/// Layers of other numbers, whose bytes can be compared.
struct layers_of_numbers {
  std::vector<cache> memory;

  explicit layers_of_numbers(std::size_t count, std::size_t tokens = 300) {
    for (std::size_t i = 0; i < count; ++i)
      memory.emplace_back(layout::heads_first, dtype::f32, make_cube(20 + 2 * static_cast<unsigned>(i), 2, tokens, 8),
                          make_cube(21 + 2 * static_cast<unsigned>(i), 2, tokens, 8));
  }
  std::vector<layer> views(std::size_t tokens) {
    std::vector<layer> out;
    for (cache& c : memory) out.push_back(c.layer(tokens));
    return out;
  }
  std::vector<std::vector<row_bits>> rows(std::size_t tokens) {
    std::vector<std::vector<row_bits>> out(memory.size());
    for (std::size_t i = 0; i < memory.size(); ++i)
      for (std::size_t h = 0; h < 2; ++h)
        for (std::size_t t = 0; t < tokens; ++t)
          out[i].push_back(memory[i].keys.row(h, t)), out[i].push_back(memory[i].values.row(h, t));
    return out;
  }
};

// ---- all layers -------------------------------------------------------------------------------------------------------

TEST(layers, are_compressed_as_each_by_itself) {
  for (const char* text : {"lagkv:sink=2,lag=20,ratio=0.5", "novelty:pre_rope=no,recent=8,keep=0.4", "cur:recent=8,capacity=90",
                           "cur:recent=8,capacity=90,select=chunks", "streaming_llm:capacity=70"})
    for (toward direction : {toward::front, toward::window}) {
      const lagkv::policy p = named(text);
      layers_of_numbers together(3), alone(3);
      std::vector<cursor> a(3), b(3);
      lagkv::workspace ws;
      std::vector<std::size_t> told;
      const auto moved = [&](std::size_t i, const lagkv::plan& applied) {
        told.push_back(i);
        ASSERT_EQ(applied.heads(), 2U);
      };
      ASSERT_TRUE(lagkv::compress(p, together.views(300), a, ws, {.direction = direction, .moved = moved}));
      std::vector<layer> views = alone.views(300);
      for (std::size_t i = 0; i < 3; ++i) lagkv::compress(p, views[i], b[i], ws, direction);
      EXPECT_EQ(a, b) << text;
      EXPECT_EQ(together.rows(300), alone.rows(300)) << text;
      EXPECT_EQ(told, (std::vector<std::size_t>{0, 1, 2}));
    }
}

// Layers that need other scratch than the first, or are further on, are planned before any row moves: the outcome is the same.
TEST(layers, that_differ_are_compressed_as_each_by_itself) {
  constexpr std::size_t tokens = 300;
  const auto numbers = [](unsigned seed, std::size_t channels) { return make_cube(seed, 2, tokens, channels); };
  const auto offered = [&](dtype type, std::size_t channels) {
    return asked_cache(layout::heads_first, type, numbers(1, channels), numbers(2, channels), make_cube(3, 4, tokens, channels));
  };
  for (const char* text :
       {"lagkv:sink=2,lag=20,ratio=0.5", "lagkv:sink=2,lag=20,pre_rope=yes", "key_norm:lag=20,keep=0.5", "snapkv:lag=20,keep=0.5",
        "h2o:lag=20,keep=0.5", "expected_attention:lag=20,keep=0.5", "cur:keep=0.5", "cur:capacity=90,select=chunks"})
    for (const toward direction : {toward::front, toward::window})
      for (int other = 0; other < 6; ++other) {
        SCOPED_TRACE(std::string(text) + ", other " + std::to_string(other));
        const lagkv::policy p = named(text);
        const auto run = [&](bool together) {
          asked_cache first = offered(dtype::f32, 8), second = offered(other == 1 ? dtype::f16 : dtype::f32, other == 2 ? 16 : 8);
          std::vector<layer> views{first.layer(tokens), second.layer(tokens)};
          std::vector<cursor> at(2);
          if (other == 3) views[1].tokens = tokens - 7;  // of partitions the same are due
          if (other == 4) at[0].compressed = 2, at[1].compressed = 22;
          if (other == 5 && !p.needs.values) views[1].values = {};
          lagkv::workspace ws;
          if (together) {
            EXPECT_TRUE(lagkv::compress(p, views, at, ws, {.direction = direction, .equal_counts = false}));
          } else {
            for (std::size_t i = 0; i < 2; ++i) lagkv::compress(p, views[i], at[i], ws, direction);
          }
          EXPECT_LT(at[0].tokens, tokens);
          EXPECT_LT(at[1].tokens, tokens);
          std::vector<row_bits> rows;
          for (asked_cache* c : {&first, &second})
            for (std::size_t h = 0; h < 2; ++h)
              for (std::size_t t = 0; t < tokens; ++t)
                rows.push_back(c->kv.keys.row(h, t)), rows.push_back(c->kv.values.row(h, t));
          return std::pair(rows, at);
        };
        const auto together = run(true), alone = run(false);
        EXPECT_EQ(together.first, alone.first);
        EXPECT_EQ(together.second, alone.second);
      }
}

// Elements that need more to be numbers than those of the first layer.
TEST(layers, of_bytes_are_compressed_as_each_by_itself) {
  constexpr std::size_t tokens = 200, d = 8;
  const float factor[] = {0.5F};
  const lagkv::policy p = named("lagkv:sink=2,lag=20,ratio=0.5,value_weight=0");
  for (int other = 0; other < 3; ++other) {
    const auto run = [&](bool together) {
      std::vector<std::vector<std::int8_t>> bytes(2, std::vector<std::int8_t>(2 * tokens * d));
      std::mt19937 random(6);
      for (auto& layer_bytes : bytes)
        for (std::int8_t& b : layer_bytes) b = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
      const auto whole = [&](std::size_t i) {
        return lagkv::strided<std::int8_t>(bytes[i].data(), {2, d}, {tokens * d, d, 1}, tokens);
      };
      std::vector<layer> views{{whole(0), {}, tokens}, {whole(1), {}, tokens}};
      if (other == 1) views[1].keys = lagkv::scaled(whole(1), lagkv::shared_scales{factor});
      if (other == 2) views[1].keys = lagkv::hadamard(whole(1), 4);
      std::vector<cursor> at(2);
      lagkv::workspace ws;
      if (together) {
        EXPECT_TRUE(lagkv::compress(p, views, at, ws));
      } else {
        for (std::size_t i = 0; i < 2; ++i) lagkv::compress(p, views[i], at[i], ws);
      }
      EXPECT_LT(at[1].tokens, tokens);
      return std::pair(bytes, at);
    };
    EXPECT_EQ(run(true), run(false)) << other;
  }
}

TEST(layers, of_which_nothing_is_due_stay_as_they_are) {
  for (const char* text : {"cur:recent=8,capacity=90", "cur:recent=8,capacity=90,select=chunks", "lagkv:sink=2,lag=20",
                           "h2o:capacity=90", "key_norm:sink=2,recent=4,capacity=90,pyramid=20"})
    for (const std::size_t tokens : {std::size_t{0}, std::size_t{1}, std::size_t{30}}) {
      SCOPED_TRACE(std::string(text) + ", " + std::to_string(tokens));
      layers_of_numbers x(3);
      std::vector<layer> views = x.views(tokens);  // h2o: without attention, which is not read
      std::vector<cursor> at(3);
      const auto before = x.rows(tokens);
      lagkv::workspace ws;
      std::size_t told = 0;
      const auto moved = [&](std::size_t, const lagkv::plan& applied) { told += applied.empty() ? 1U : 0U; };
      EXPECT_EQ(lagkv::compress(named(text), views, at, ws, {.moved = moved}).message(), "");
      EXPECT_EQ(told, 3U);
      EXPECT_EQ(at, std::vector<cursor>(3, cursor{.tokens = tokens}));
      EXPECT_EQ(x.rows(tokens), before);
    }
}

// Partitions are scored in blocks, of at least eight: of rows so wide that eight are more than the 2 MiB of a block too. Blocks
// that are whole, lack one partition or hold one more; with a workspace that has planned nothing before.
TEST(layers, wide_rows_at_once_are_compressed_as_in_steps) {
  constexpr std::size_t lag = 16, tokens = 4 + 21 * lag, channels = 4096;
  const cube k = make_cube(31, 1, tokens, channels), v = make_cube(32, 1, tokens, channels);
  const lagkv::policy p = named("lagkv:sink=4,lag=16,ratio=0.25");
  cache steps(layout::heads_first, dtype::f32, k, v);
  cursor by_steps;
  lagkv::workspace ws;
  std::size_t rows = 0;
  for (std::size_t seen = 1; seen <= tokens; ++seen) {
    steps.keys.put(k, seen - 1, rows), steps.values.put(v, seen - 1, rows);
    rows = lagkv::compress(p, steps.layer(rows + 1), by_steps, ws);
    const std::size_t due = seen < 4 + 2 * lag ? 0 : (seen - 4) / lag - 1;
    if ((seen - 4) % lag != 0 || (due != 7 && due != 8 && due != 9 && due != 15 && due != 20)) continue;
    for (const toward direction : {toward::front, toward::window}) {
      SCOPED_TRACE(std::to_string(due) + (direction == toward::front ? " partitions, front" : " partitions, window"));
      cache once(layout::heads_first, dtype::f32, k, v);
      cursor at;
      lagkv::workspace fresh;
      ASSERT_EQ(lagkv::compress(p, once.layer(seen), at, fresh, direction), rows);
      EXPECT_EQ(at, by_steps);
      const std::size_t gap = direction == toward::window ? seen - rows : 0;  // the rows that went are in front of the others
      for (std::size_t t = 0; t < rows; ++t) {
        const std::size_t from = t < 4 ? t : t + gap;
        ASSERT_EQ(once.keys.row(0, from), steps.keys.row(0, t)) << t;
        ASSERT_EQ(once.values.row(0, from), steps.values.row(0, t)) << t;
      }
    }
  }
}

/// Rows in two pieces, in each of which they lie at a distance of its own.
struct two_pieces {
  float* data;
  std::size_t split, slots, width, steps[2];

  dtype type() const { return dtype::f32; }
  std::size_t heads() const { return 1; }
  std::size_t channels() const { return width; }
  std::size_t capacity() const { return slots; }
  std::size_t step(std::size_t token) const { return steps[token < split ? 0 : 1]; }
  float* row(std::size_t t) const { return data + (t < split ? t * steps[0] : split * steps[0] + (t - split) * steps[1]); }
  lagkv::tile at(std::size_t, lagkv::token_range tokens) const {
    const std::size_t end = tokens.begin < split && split < tokens.end ? split : tokens.end;
    return {reinterpret_cast<std::byte*>(row(tokens.begin)), end - tokens.begin, static_cast<std::ptrdiff_t>(step(tokens.begin)),
            1};
  }
  lagkv::status check(std::size_t) const { return {}; }
};

// A tile says at which stride its own tokens lie, and another run may have another: wherever they meet, the same rows stay.
TEST(views, runs_may_have_strides_of_their_own) {
  constexpr std::size_t tokens = 120, d = 8;
  const cube x[] = {make_cube(33, 1, tokens, d), make_cube(34, 1, tokens, d)};
  struct way {
    std::size_t split, steps[2];
  };
  std::vector<way> ways;
  for (const std::size_t split : {0U, 1U, 20U, 22U, 33U, 40U, 60U, 100U, 119U, 120U})
    ways.push_back({split, {d, d + 3}}), ways.push_back({split, {d + 3, d}});
  for (const char* text : {"lagkv:sink=0,lag=20,ratio=0.5", "key_norm:sink=0,recent=4,keep=0.5",
                           "key_norm:sink=2,recent=4,lag=20", "streaming_llm:sink=3,capacity=60"})
    for (const toward direction : {toward::front, toward::window})
      for (const way& w : ways) {
        SCOPED_TRACE(std::string(text) + ", split " + std::to_string(w.split) + " of steps " + std::to_string(w.steps[0]));
        std::vector<float> memory[2];
        std::vector<two_pieces> pieces;
        for (std::size_t side = 0; side < 2; ++side) {
          memory[side].assign(tokens * (d + 3), -1);
          pieces.push_back({memory[side].data(), w.split, tokens, d, {w.steps[0], w.steps[1]}});
          for (std::size_t t = 0; t < tokens; ++t) std::copy_n(x[side].row(0, t), d, pieces[side].row(t));
        }
        cache plain(layout::heads_first, dtype::f32, x[0], x[1]);
        const lagkv::policy p = named(text);
        cursor a, b;
        lagkv::workspace ws;
        const std::size_t rows = lagkv::compress(p, plain.layer(tokens), a, ws, direction);
        ASSERT_EQ(lagkv::compress(p, {pieces[0], pieces[1], tokens}, b, ws, direction), rows);
        ASSERT_LT(rows, tokens);
        EXPECT_EQ(a, b);
        const bool front = direction == toward::front;  // else the rows behind the sinks lie up to the last
        for (std::size_t t = front ? 0 : tokens - rows + p.budget.sink; t < (front ? rows : tokens); ++t)
          for (std::size_t side = 0; side < 2; ++side) {
            row_bits bits(d);
            std::memcpy(bits.data(), pieces[side].row(t), d * sizeof(float));
            ASSERT_EQ(bits, (side == 0 ? plain.keys : plain.values).row(0, t)) << "side " << side << ", row " << t;
          }
      }
}

/// Says whether it has been asked for rows that there are not, for none, or for those of another head.
struct watchful {
  float* data;
  std::size_t in_use, width;
  std::ptrdiff_t token_stride, channel_stride;
  bool* wrong;

  dtype type() const { return dtype::f32; }
  std::size_t heads() const { return 2; }
  std::size_t channels() const { return width; }
  std::size_t capacity() const { return in_use; }
  lagkv::tile at(std::size_t head, lagkv::token_range tokens) const {
    if (head >= 2 || tokens.begin >= tokens.end || tokens.end > in_use) *wrong = true;
    float* of_head = data + head * in_use * width + static_cast<std::ptrdiff_t>(tokens.begin) * token_stride;
    return {reinterpret_cast<std::byte*>(of_head), tokens.end - tokens.begin, token_stride, channel_stride};
  }
  lagkv::status check(std::size_t) const { return {}; }
};

// A view of the host's is asked for what view/tensor.hpp says: a head that it has, and one row or more of those in use.
TEST(views, are_asked_for_rows_in_use_only) {
  constexpr std::size_t tokens = 120, d = 8;
  const cube q = make_cube(35, 4, tokens, d);
  std::vector<std::string> texts{"lagkv:sink=2,lag=20,ratio=0.3",   "lagkv:sink=0,lag=20,ratio=0.01",
                                 "lagkv:sink=0,lag=1,ratio=1",      "streaming_llm:sink=3,capacity=60",
                                 "streaming_llm:sink=0,capacity=1", "key_norm:sink=0,recent=0,keep=0.5,select=adaptive"};
  for (const lagkv::method_entry* m : every_method())
    if (m->make != nullptr && m->name != "lagkv")
      for (const char* more : {":sink=2,recent=0,keep=0.5", ":sink=2,recent=4,lag=20,keep=0.3", ":sink=0,recent=4,capacity=60"})
        texts.push_back(std::string(m->name) + more);
  for (const std::string& text : texts)
    for (const toward direction : {toward::front, toward::window})
      for (const bool transposed : {false, true}) {
        SCOPED_TRACE(text + (transposed ? ", transposed" : ""));
        std::vector<float> k = make_cube(33, 2, tokens, d).x, v = make_cube(34, 2, tokens, d).x;
        bool wrong = false;
        const auto view = [&](std::vector<float>& x) {
          return watchful{x.data(), tokens, d, transposed ? 1 : std::ptrdiff_t{d}, transposed ? std::ptrdiff_t{tokens} : 1,
                          &wrong};
        };
        asked_cache offers(layout::heads_first, dtype::f32, cube(2, tokens, d), cube(2, tokens, d), q);
        layer l = offers.layer(tokens);
        l.keys = view(k), l.values = view(v);
        std::vector<std::uint32_t> positions(2 * tokens);
        for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % tokens);
        offers.extras.positions = {positions.data(), tokens};
        const lagkv::policy p = named_any(text);
        ASSERT_EQ(check(p, l, true).message(), "");
        cursor at;
        lagkv::workspace ws;
        lagkv::compress(p, l, at, ws, direction);
        EXPECT_TRUE(at.tokens < tokens || p.budget.lag() == 1);
        EXPECT_FALSE(wrong);
      }
}

TEST(plans, that_are_empty_move_nothing) {
  layers_of_numbers x(1);
  const auto before = x.rows(300);
  std::vector<float> attention(600, 1);
  std::vector<std::uint32_t> positions(600);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i);
  const std::vector<std::uint32_t> known = positions;
  lagkv::plan nothing;
  nothing.clear(300);
  lagkv::extras e;
  for (const std::ptrdiff_t stride : {0, 300})
    for (const toward direction : {toward::front, toward::window}) {
      e.accumulated_attention = {attention.data(), stride};
      e.positions = {positions.data(), stride};
      lagkv::compact(e, nothing, direction);
      lagkv::compact(x.views(300)[0], nothing, direction);
      lagkv::compact(x.memory[0].keys.view(), 1, nothing, direction);
    }
  EXPECT_EQ(x.rows(300), before);
  EXPECT_EQ(positions, known);
  EXPECT_EQ(nothing.source(0, 7), 7U);
  EXPECT_EQ(nothing.rows(0).size(), nothing.tokens_before);
}

// Whatever a plan held before: none of it is left.
TEST(plans, that_are_reset_are_as_new) {
  for (const std::size_t before : {0U, 1U, 4U, 9U}) {
    lagkv::plan p{.candidates = {5, 6}, .tokens_before = 7, .kept = {}, .first = {}};
    for (std::size_t i = 0; i < before; ++i) p.first.push_back(70 + i), p.kept.push_back(5);
    p.reset({2, 12}, 20, 3, 4);
    for (std::size_t h = 0; h < 3; ++h)
      for (std::size_t i = 0; i < 4; ++i) p.row(h)[i] = static_cast<std::uint32_t>(2 + h + 2 * i);
    EXPECT_EQ(p.heads(), 3U);
    EXPECT_EQ(p.candidates, (lagkv::token_range{2, 12}));
    ASSERT_EQ(p.kept.size(), 12U);
    for (std::size_t h = 0; h < 3; ++h) {
      EXPECT_EQ(p.tokens_after(h), 14U);
      ASSERT_EQ(p.of(h).size(), 4U);
      for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(p.of(h)[i], 2 + h + 2 * i);
    }
    p.clear(9);
    EXPECT_TRUE(p.empty());
    EXPECT_EQ(p.heads(), 0U);
    EXPECT_EQ(p.tokens_after(), 9U);
  }
}

TEST(plans, of_heads_of_different_lengths_advance_by_the_longest) {
  lagkv::plan p{.candidates = {2, 8}, .tokens_before = 10, .kept = {}, .first = {}};
  for (const std::uint32_t row : {2U, 3U, 4U, 5U, 6U, 3U}) p.kept.push_back(row);
  for (const std::size_t first : {0U, 1U, 5U, 6U}) p.first.push_back(first);
  cursor at;
  lagkv::advance(at, p);
  EXPECT_EQ(at, (cursor{.tokens = 8, .dropped = 2, .compressed = 6}));
  lagkv::plan q{.candidates = {2, 8}, .tokens_before = 10, .kept = {}, .first = {}};
  for (const std::uint32_t row : {2U, 3U}) q.kept.push_back(row);
  for (const std::size_t first : {0U, 2U}) q.first.push_back(first);
  EXPECT_FALSE(lagkv::equal_counts(p, q));
  EXPECT_FALSE(lagkv::equal_counts(q, p));
  EXPECT_TRUE(lagkv::equal_counts(q, q));
  lagkv::plan fewer = q;
  fewer.kept.pop_back(), fewer.first[1] = 1;
  EXPECT_FALSE(lagkv::equal_counts(q, fewer));
  // The host took tokens back, and nothing is due.
  cursor back{.tokens = 10, .dropped = 0, .compressed = 8};
  lagkv::plan nothing;
  nothing.clear(5);
  lagkv::advance(back, nothing);
  EXPECT_EQ(back.compressed, 5U);
}

// A protected row stays before one that a scorer puts at infinity.
TEST(protect, goes_before_any_score) {
  layers_of_numbers x(1);
  const std::uint32_t stay[] = {50, 51, 299};
  lagkv::extras e;
  e.protect = stay;
  layer l = x.views(300)[0];
  l.extra = &e;
  lagkv::policy p = named("key_norm:sink=4,recent=8,keep=0.05");
  p.score = [](const layer&, std::size_t, lagkv::token_range, std::span<float> out, lagkv::workspace&) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = i % 3 == 0 ? infinity : i % 3 == 1 ? -infinity : std::nanf("");
  };
  lagkv::workspace ws;
  const lagkv::plan plan = lagkv::plan_eviction(p, l, {}, ws);
  ASSERT_EQ(plan.of(0).size(), 3U);
  const std::vector<std::uint32_t> kept(plan.kept.begin(), plan.kept.end());
  EXPECT_EQ(std::vector<std::uint32_t>(plan.of(0).begin(), plan.of(0).end()), (std::vector<std::uint32_t>{4, 50, 51}));
  std::vector<std::uint32_t> positions(600);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % 300);
  e.positions = {positions.data(), 300};
  const lagkv::plan same = lagkv::plan_eviction(p, l, {}, ws);
  EXPECT_EQ(std::vector<std::uint32_t>(same.kept.begin(), same.kept.end()), kept);
}

TEST(score, is_not_asked_for_where_nothing_or_everything_is_kept) {
  int calls = 0;
  for (const char* text :
       {"streaming_llm:sink=4,capacity=40", "lagkv:sink=4,lag=16,ratio=1", "key_norm:sink=4,recent=8,keep=0.5"}) {
    layers_of_numbers x(1);
    lagkv::policy p = named(text);
    calls = 0;
    p.score = [count = &calls](const layer&, std::size_t, lagkv::token_range, std::span<float> out, lagkv::workspace&) {
      ++*count;
      for (float& f : out) f = 0;
    };
    lagkv::workspace ws;
    cursor at;
    lagkv::compress(p, x.views(300)[0], at, ws);
    EXPECT_EQ(calls > 0, text[0] == 'k') << text;
  }
}

TEST(rows, move_where_only_one_of_a_partition_stays) {
  const lagkv::policy p = named("lagkv:sink=4,lag=16,ratio=0.0625");
  layers_of_numbers x(1);
  lagkv::workspace ws;
  const lagkv::plan plan = lagkv::plan_eviction(p, x.views(300)[0], {}, ws);
  std::vector<row_bits> wanted;
  for (std::size_t h = 0; h < 2; ++h)
    for (const std::uint32_t row : plan.rows(h)) wanted.push_back(x.memory[0].keys.row(h, row));
  cursor at;
  const std::size_t left = lagkv::compress(p, x.views(300)[0], at, ws);
  ASSERT_EQ(left, plan.tokens_after());
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t i = 0; i < left; ++i) ASSERT_EQ(x.memory[0].keys.row(h, i), wanted[h * left + i]) << h << ", " << i;
}

TEST(positions, of_all_heads_in_one_array_move_once) {
  const lagkv::policy p = named("streaming_llm:sink=4,capacity=200");
  // What moves overlaps where it goes: a second time would spoil it.
  for (const toward direction : {toward::front, toward::window}) {
    layers_of_numbers x(1);
    std::vector<std::uint32_t> positions(300), wanted;
    for (std::uint32_t i = 0; i < 300; ++i) {
      positions[i] = 2 * i + 7;
      if (i < 4 || i >= 104) wanted.push_back(positions[i]);
    }
    lagkv::extras e;
    e.positions = {positions.data(), 0};
    layer l = x.views(300)[0];
    l.extra = &e;
    lagkv::workspace ws;
    cursor at;
    ASSERT_EQ(lagkv::compress(p, l, at, ws, direction), 200U);
    if (direction == toward::window) positions.erase(positions.begin() + 4, positions.end() - 196);  // the sinks stay in front
    positions.resize(200);
    EXPECT_EQ(positions, wanted);
  }
}

// Whether partitions are planned by themselves or all rows together: all plans are there before the first row moves.
TEST(layers, are_shown_with_their_plans_before_any_row_moves) {
  for (const char* text :
       {"lagkv:sink=2,lag=20,ratio=0.5", "novelty:pre_rope=no,recent=8,keep=0.4", "streaming_llm:capacity=70"}) {
    layers_of_numbers x(3);
    const auto before = x.rows(300);
    std::vector<cursor> at(3);
    lagkv::workspace ws;
    std::vector<std::size_t> told;
    std::vector<lagkv::plan> planned;
    const auto show = [&](std::size_t i, const lagkv::plan& p) {
      EXPECT_EQ(x.rows(300), before) << text;
      told.push_back(i), planned.push_back(p);
    };
    const auto moved = [&](std::size_t i, const lagkv::plan& p) {
      told.push_back(10 + i);
      EXPECT_TRUE(std::ranges::equal(p.kept, planned[i].kept)) << text;
    };
    std::vector<layer> views = x.views(300);
    ASSERT_TRUE(lagkv::compress(named(text), views, at, ws, {.planned = show, .moved = moved}));
    EXPECT_EQ(told, (std::vector<std::size_t>{0, 1, 2, 10, 11, 12})) << text;
    EXPECT_EQ(planned.front().tokens_after(), at[0].tokens);
    views = x.views(at[0].tokens);
    told.clear();
    ASSERT_TRUE(lagkv::compress(named(text), views, at, ws, {.planned = show}));
    EXPECT_TRUE(told.empty()) << text << ": nothing is due";
  }
}

TEST(layers, are_told_apart_by_their_place_in_the_list) {
  const auto kept = [](std::size_t count, std::size_t index_of_first, const char* more) {
    layers_of_numbers x(count);
    std::vector<layer> views = x.views(300);
    views[0].index = index_of_first;
    std::vector<cursor> at(count);
    std::vector<std::vector<std::uint32_t>> rows;
    lagkv::workspace ws;
    const auto note = [&](std::size_t, const lagkv::plan& p) { rows.emplace_back(p.kept.begin(), p.kept.end()); };
    EXPECT_TRUE(lagkv::compress(named(std::string("stripes:keep=0.25") + more), views, at, ws, {.moved = note}));
    return rows;
  };
  for (const char* more : {"", ",lag=30"}) {
    const auto three = kept(3, 0, more);
    EXPECT_NE(three[0], three[1]) << more;
    EXPECT_NE(three[1], three[2]) << more;
    EXPECT_EQ(kept(1, 2, more)[0], three[2]) << more << ": what the host says counts";
  }
}

TEST(layers, of_none_the_plan_is_empty) {
  layers_of_numbers x(1);
  lagkv::workspace ws;
  cursor at;
  const lagkv::policy p = named("cur:recent=8,capacity=90");
  ASSERT_EQ(lagkv::compress(p, x.views(300)[0], at, ws), 90U);
  ASSERT_FALSE(lagkv::last_plan(ws).empty());
  EXPECT_TRUE(lagkv::compress(p, std::span<const layer>{}, std::span<cursor>{}, ws));
  EXPECT_TRUE(lagkv::last_plan(ws).empty()) << "nothing was due";
}

TEST(layers, nothing_moves_if_they_would_keep_different_numbers) {
  const auto refused = [](const lagkv::policy& p, std::vector<cursor> at, std::size_t tokens_of_last, const char* why) {
    layers_of_numbers x(3);
    std::vector<layer> views = x.views(300);
    views[2].tokens = tokens_of_last;
    const auto before = x.rows(300);
    const std::vector<cursor> cursors = at;
    lagkv::workspace ws;
    const lagkv::status s = lagkv::compress(p, views, at, ws);
    EXPECT_NE(s.message().find(why), std::string::npos) << s.message();
    EXPECT_EQ(x.rows(300), before);
    EXPECT_EQ(at, cursors);
    EXPECT_TRUE(lagkv::last_plan(ws).empty());
  };
  const lagkv::policy plain = named("cur:recent=8,capacity=90");
  refused(plain, std::vector<cursor>(2), 300, "cursors=2: must be 3, one a layer");
  const std::string way_out = " rows, layer 0 300: nothing moved (equal_counts=false takes layers of different lengths)";
  refused(plain, std::vector<cursor>(3), 299, ("layer 2: has 299" + way_out).c_str());
  refused(named("cur:recent=8,capacity=90,pyramid=20"), std::vector<cursor>(3), 300, "layer 1: would keep 90 rows, layer 0 1");
  std::vector<cursor> elsewhere(3);
  elsewhere[1] = {.tokens = 300, .compressed = 40};
  refused(named("cur:recent=8,keep=0.3"), elsewhere, 300, "layer 1: ");
  refused(named("cur:recent=8,keep=0.5,select=adaptive"), std::vector<cursor>(3), 300, "layer 0: head 0 would keep 1");
  lagkv::policy own = plain;
  own.select = [](std::span<const float> scores, std::size_t heads, const lagkv::candidates& c, lagkv::plan& out,
                  lagkv::workspace& ws) {
    lagkv::top_k{}(scores, heads, c, out, ws);
    out.kept.pop_back(), --out.first[heads];
  };
  refused(own, std::vector<cursor>(3), 300,
          "layer 0: head 0 would keep 90 rows, head 1 89: nothing moved (equal_counts=false takes heads of different lengths)");
  refused(named("key_norm:budget_mb=0.01"), std::vector<cursor>(3), 300, "budget: is in bytes");
  refused(named("novelty:keep=0.5"), std::vector<cursor>(3), 300, "layer 0: something that the policy reads is missing");
  refused(named("snapkv:keep=0.5"), std::vector<cursor>(3), 300, "layer 0: something that the policy reads is missing");
}

TEST(layers, that_share_an_array_are_refused_where_rows_would_move) {
  using layer_list = std::vector<layer>;
  const auto compressed = [](void (*share)(layer_list&), std::size_t tokens, bool by_threads) {
    layers_of_numbers x(3);
    layer_list views = x.views(tokens);
    share(views);
    const auto before = x.rows(tokens);
    std::vector<cursor> at(3);
    std::vector<lagkv::workspace> workers(2);
    const auto in_turn = [](std::size_t n, const auto& work) {
      for (std::size_t i = 0; i < n; ++i) work(i, i % 2);
    };
    const lagkv::policy p = named("cur:recent=8,capacity=90");
    const lagkv::status s =
        by_threads ? lagkv::compress(p, views, at, std::span(workers), in_turn) : lagkv::compress(p, views, at, workers[0]);
    EXPECT_TRUE(s || (x.rows(tokens) == before && at == std::vector<cursor>(3) && lagkv::last_plan(workers[0]).empty()));
    return s.message();
  };
  const auto twice = [](const char* where) {
    return std::string("layer 2: its ") + where + " do, and would move twice: nothing moved";
  };
  for (const bool by_threads : {false, true}) {
    EXPECT_EQ(compressed([](layer_list& l) { l[2] = l[0]; }, 300, by_threads), twice("keys lie where the keys of layer 0"));
    EXPECT_EQ(compressed([](layer_list& l) { l[2].values = l[1].values; }, 300, by_threads),
              twice("values lie where the values of layer 1"));
    EXPECT_EQ(compressed([](layer_list& l) { l[2].keys = l[1].values; }, 300, by_threads),
              twice("keys lie where the values of layer 1"));
    EXPECT_EQ(compressed([](layer_list& l) { l[2].values = l[0].keys; }, 300, by_threads),
              twice("values lie where the keys of layer 0"));
    static std::vector<std::uint32_t> positions;
    static std::vector<float> attention;
    static lagkv::extras one, other;
    positions.assign(3 * 300, 7), attention.assign(3 * 300, 1.0F);
    one = other = {};
    const auto share_beside = [](layer_list& l) { l[0].extra = &one, l[1].extra = nullptr, l[2].extra = &other; };
    one.positions = other.positions = {positions.data(), 300};
    EXPECT_EQ(compressed(share_beside, 300, by_threads), twice("positions lie where the positions of layer 0"));
    EXPECT_EQ(compressed(share_beside, 60, by_threads), "") << "nothing is due";
    other.positions = {}, one.accumulated_attention = other.accumulated_attention = {attention.data(), 300};
    EXPECT_EQ(compressed(share_beside, 300, by_threads),
              twice("rows of accumulated attention lie where the rows of accumulated attention of layer 0"));
    other.accumulated_attention = {};
    EXPECT_EQ(compressed(share_beside, 300, by_threads), "");
    EXPECT_EQ(compressed([](layer_list& l) { l[2] = l[0]; }, 60, by_threads), "") << "nothing is due";
    EXPECT_EQ(compressed([](layer_list&) {}, 300, by_threads), "");
  }
}

TEST(layers, are_refused_without_a_workspace) {
  layers_of_numbers x(3);
  const auto before = x.rows(300);
  std::vector<cursor> at(3);
  const auto never = [](std::size_t, const auto&) { ADD_FAILURE(); };
  EXPECT_EQ(lagkv::compress(named("cur:recent=8,capacity=90"), x.views(300), at, std::span<lagkv::workspace>{}, never).message(),
            "workspaces=0: must be 1 or more, one a worker");
  EXPECT_EQ(x.rows(300), before);
  EXPECT_EQ(at, std::vector<cursor>(3));
}

TEST(layers, drop_nothing_at_a_call_at_which_something_is_missing) {
  const cube k = make_cube(1, 2, 300, 16), v = make_cube(2, 2, 300, 16), q = make_cube(3, 4, 300, 16);
  static float nothing;  // rows of it: 0
  std::vector<std::uint32_t> positions(2 * 300);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % 300);
  for (const char* text : {"novelty:keep=0.5", "novelty:capacity=100", "snapkv:keep=0.5", "h2o:keep=0.5", "tova:capacity=100",
                           "expected_attention:keep=0.5", "fuse:novelty+snapkv,keep=0.5", "kvzap:keep=0.5"}) {
    const lagkv::policy p = named_any(text);
    asked_cache whole(layout::heads_first, dtype::f32, k, v, q);
    const auto all = [&](asked_cache& c) {
      layer l = c.layer(300);
      c.extras.positions = {positions.data(), 300};
      return l;
    };
    ASSERT_TRUE(check(p, all(whole))) << text << ": " << check(p, all(whole)).message();
    const std::vector<void (*)(asked_cache&)> removals = {
        [](asked_cache& c) { c.extras.rope = nullptr; },
        [](asked_cache& c) { c.rope.pairs = lagkv::rope::pairing::unnamed; },
        [](asked_cache& c) { c.extras.positions = {}; },
        [](asked_cache& c) { c.extras.queries = {}; },
        [](asked_cache& c) { c.extras.query_count = 0, c.extras.queries = {}; },
        [](asked_cache& c) { c.extras.importance = {}; },
        [](asked_cache& c) {
          c.extras.queries = lagkv::strided<float>(&nothing, {4, 16}, {16, 16}, 0);
        },
        [](asked_cache& c) {
          c.extras.weights = lagkv::strided<float>(&nothing, {4, 300}, {300, 300}, 0);
        },
    };
    for (std::size_t i = 0; i < removals.size(); ++i) {
      asked_cache c(layout::heads_first, dtype::f32, k, v, q);
      layer l = all(c);
      removals[i](c);
      const bool complete = static_cast<bool>(check(p, l));
      cursor at;
      lagkv::workspace ws;
      const std::size_t left = lagkv::compress(p, l, at, ws);
      EXPECT_EQ(left < 300, complete) << text << ", removal " << i << ": " << check(p, l).message();
    }
  }
}

// Where check() refuses, a call drops nothing; where it does not, the call drops something.
TEST(layers, drop_nothing_without_values_or_what_tells_protected_rows) {
  const cube x = make_cube(1, 2, 300, 16);
  const std::vector<std::uint32_t> stay{50, 51};
  const auto compress = [&](const char* text, bool values, bool protect, bool known) {
    SCOPED_TRACE(std::string(text) + (values ? ", values" : "") + (protect ? ", protected" : "") + (known ? ", positions" : ""));
    const lagkv::policy p = named(text);
    cache c(layout::heads_first, dtype::f32, x, x);
    std::vector<std::uint32_t> positions(2 * 300);
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % 300);
    lagkv::extras e;
    if (protect) e.protect = stay;
    if (known) e.positions = {positions.data(), 300};
    layer l = c.layer(300);
    if (!values) l.values = {};
    if (protect || known) l.extra = &e;
    const bool usable = static_cast<bool>(check(p, l));
    std::vector<cursor> at(2);
    lagkv::workspace ws;
    EXPECT_EQ(static_cast<bool>(lagkv::compress(p, std::span(&l, 1), std::span(at).first(1), ws)), usable);
    EXPECT_TRUE(usable || at[0] == cursor{});
    EXPECT_EQ(lagkv::compress(p, l, at[1], ws) < 300, usable) << check(p, l).message();
  };
  for (const char* text :
       {"lagkv:lag=16", "key_diff:keep=0.5", "key_diff:capacity=100", "random:capacity=64", "value_norm:keep=0.5",
        "fuse:key_diff+value_norm,keep=0.5", "streaming_llm:capacity=64", "key_norm:capacity=90,select=chunks"})
    for (const int given : {0, 1, 2, 3, 4, 5, 6, 7}) compress(text, (given & 1) != 0, (given & 2) != 0, (given & 4) != 0);
}

TEST(layers, drop_nothing_by_queries_where_they_must_be_the_models) {
  const lagkv::policy p = named("expected_attention:keep=0.5,calibrated=yes");
  std::vector<float> mean(4 * 16, 1);
  for (const bool given : {false, true}) {
    asked_cache c(layout::heads_first, dtype::f32, make_cube(1, 2, 300, 16), make_cube(2, 2, 300, 16), make_cube(3, 4, 300, 16));
    layer l = c.layer(300);
    if (given) c.extras.query_mean = lagkv::strided<float>(mean.data(), {4, 16}, {16, 16, 1}, 1);
    EXPECT_EQ(static_cast<bool>(check(p, l)), given);
    cursor at;
    lagkv::workspace ws;
    EXPECT_EQ(lagkv::compress(p, l, at, ws) < 300, given);
  }
}

// Weights of fewer tokens than there are by now are not enough, however many rows of them.
TEST(layers, drop_nothing_by_weights_of_too_few_tokens) {
  const cube k = make_cube(1, 2, 300, 16), w = make_cube(3, 4, 300, 299);
  for (const char* text : {"snapkv:keep=0.5", "h2o:keep=0.5", "tova:capacity=100"}) {
    asked_cache c(layout::heads_first, dtype::f32, k, k, w);
    layer l = c.layer(300);
    c.extras.weights = c.extras.queries, c.extras.queries = {};
    EXPECT_FALSE(check(named(text), l));
    const row_bits before = c.kv.keys.row(0, 299);
    cursor at;
    lagkv::workspace ws;
    EXPECT_EQ(lagkv::compress(named(text), l, at, ws), 300U) << text;
    EXPECT_EQ(at, cursor{.tokens = 300});
    EXPECT_EQ(c.kv.keys.row(0, 299), before);
  }
}

// The array that the spans are cut from goes on: with a layer that cannot be scored, one that would keep another number, and one
// of nothing.
TEST(layers, beyond_the_span_are_not_looked_at) {
  const cube k = make_cube(1, 2, 300, 16), v = make_cube(2, 2, 300, 16), q = make_cube(3, 4, 300, 16);
  for (const char* text : {"snapkv:keep=0.5", "h2o:keep=0.5", "key_norm:keep=0.5,select=chunks", "lagkv:sink=2,lag=20"}) {
    const lagkv::policy p = named(text);
    asked_cache without(layout::heads_first, dtype::f32, k, v, q);
    const std::vector<layer> others{without.layer(300), without.layer(77), {}};
    without.extras.queries = {}, without.extras.query_count = 0;
    lagkv::workspace ws;
    for (const layer& other : others) {
      asked_cache c(layout::heads_first, dtype::f32, k, v, q);
      std::vector<layer> some{c.layer(300), other};
      std::vector<cursor> own(2);
      const lagkv::status done = lagkv::compress(p, std::span(some).first(1), std::span(own).first(1), ws);
      EXPECT_TRUE(done) << text << ": " << done.message();
      EXPECT_LT(own[0].tokens, 300U) << text;
      EXPECT_EQ(own[1], cursor{}) << text;
    }
  }
}

TEST(layers, queries_of_too_few_tokens_are_refused_before_the_run) {
  asked_cache c(layout::heads_first, dtype::f32, make_cube(1, 2, 300, 16), make_cube(2, 2, 300, 16), make_cube(3, 4, 64, 16));
  const lagkv::status s = check(named("h2o:keep=0.5"), c.layer(300));
  EXPECT_NE(s.message().find("queries=64: the policy reads those of all 300 tokens"), std::string::npos) << s.message();
  EXPECT_TRUE(check(named("snapkv:keep=0.5"), c.layer(300)));
}

TEST(layers, side_arrays_whose_heads_overlap_are_refused) {
  layers_of_numbers x(1);
  std::vector<layer> views = x.views(300);
  std::vector<float> attention(600);
  std::vector<std::uint32_t> positions(600);
  lagkv::extras beside;
  views[0].extra = &beside;
  const lagkv::policy p = named("key_norm:keep=0.5,heads=shared");
  const auto said = [&](std::ptrdiff_t of_attention, std::ptrdiff_t of_positions) {
    beside.accumulated_attention = {attention.data(), of_attention}, beside.positions = {positions.data(), of_positions};
    return check(p, views[0]).message();
  };
  EXPECT_EQ(said(300, 300), "");
  EXPECT_EQ(said(300, 0), "");
  EXPECT_NE(said(300, 299).find("positions: head_stride=299: must be at least the 300"), std::string::npos);
  EXPECT_NE(said(0, 300).find("accumulated_attention: head_stride=0: must be at least the 300"), std::string::npos);
  EXPECT_NE(said(299, 300).find("accumulated_attention: head_stride=299"), std::string::npos);
}

TEST(layers, may_keep_different_numbers_if_the_host_can_hold_them) {
  layers_of_numbers x(3);
  std::vector<cursor> at(3);
  lagkv::workspace ws;
  ASSERT_TRUE(
      lagkv::compress(named("cur:sink=0,recent=8,capacity=90,pyramid=20"), x.views(300), at, ws, {.equal_counts = false}));
  EXPECT_GT(at[0].tokens, at[1].tokens);
  EXPECT_GT(at[1].tokens, at[2].tokens);
  EXPECT_LE(at[0].tokens + at[1].tokens + at[2].tokens, 270U);
  EXPECT_GE(at[0].tokens + at[1].tokens + at[2].tokens, 268U);
}

// ---- what to allocate -------------------------------------------------------------------------------------------------

TEST(peak_rows, is_never_exceeded_and_not_far_above) {
  const char* texts[] = {"full",
                         "lagkv:sink=3,lag=16,ratio=0.25",
                         "lagkv:sink=3,lag=16,ratio=0.25,form=kvpress",
                         "key_norm:recent=10,keep=0.3",
                         "key_norm:sink=0,recent=0,keep=0.01",
                         "key_norm:recent=0,recent_share=0.5,keep=0.5",
                         "key_norm:recent=10,keep=0.3,pyramid=20",
                         "key_norm:recent=0,recent_share=0.5,keep=0.3,pyramid=20",
                         "key_norm:recent=10,capacity=50,recent_share=0.5,pyramid=20",
                         "key_norm:recent=10,capacity=50",
                         "key_norm:recent=10,capacity=50,every=9",
                         "key_norm:recent=10,capacity=50,recent_share=0.8",
                         "h2o:capacity=64",
                         "key_norm:recent=10,keep=0.3,select=adaptive",
                         "key_norm:recent=10,capacity=50,select=adaptive",
                         "key_norm:recent=10,capacity=50,every=9,select=adaptive,safeguard=0",
                         "streaming_llm:capacity=40",
                         "streaming_llm:capacity=40,every=7",
                         "streaming_llm:keep=0.2",
                         "streaming_llm:sink=60,keep=0.1"};
  std::mt19937 random(3);
  for (const char* text : texts) {
    const lagkv::policy p = named_any(text);
    for (std::size_t chunk : {std::size_t{1}, std::size_t{7}, std::size_t{100}, std::size_t{500}}) {
      const std::size_t tokens = 500, limit = lagkv::peak_rows(p, chunk, tokens);
      std::size_t most = 0;
      for (int run = 0; run < 20; ++run) {
        const bool even = run == 0;
        for (std::size_t layer = 0; layer < 3; ++layer) {
          const lagkv::budget b = lagkv::for_layer(p, layer, 3).budget;
          cursor at;
          std::size_t rows = 0, seen = 0;
          bool of_all_heads = p.ragged;  // the first plan: one head may keep all its rows; from then on each is by itself
          while (seen < tokens) {
            std::size_t n = even ? chunk : 1 + random() % chunk;
            n = std::min(n, tokens - seen);
            rows += n, seen += n;
            most = std::max(most, rows);
            const lagkv::candidates c = b.due(at, rows);
            const std::size_t stay = of_all_heads ? c.rows.size() : c.keep;
            of_all_heads = of_all_heads && c.empty();
            rows -= c.rows.size() - stay;
            if (!c.empty()) at.compressed = c.rows.begin + stay;
            at.tokens = rows, at.dropped = seen - rows;
          }
        }
      }
      EXPECT_LE(most, limit) << text << ", chunks of " << chunk;
      EXPECT_LE(limit, 2 * most + 2) << text << ", chunks of " << chunk;
    }
  }
  EXPECT_EQ(lagkv::peak_rows(named("key_norm:capacity=100,every=8"), 16, 100000), 100U + 7 + 16);
  EXPECT_EQ(lagkv::peak_rows(named("full"), 16, 1234), 1234U);
  EXPECT_EQ(lagkv::peak_rows(named("key_norm:sink=100,recent=50,keep=0.01"), 1, 500), 100U + 2 * 50 + 1) << "the sinks outweigh";
}

// A head whose values are a hundred times the others' takes nearly all of the budget of the first plan.
TEST(peak_rows, of_heads_of_their_own_budgets_are_all) {
  for (const char* budget : {"keep=0.25", "capacity=100", "keep=0.25,lag=16"})
    EXPECT_EQ(lagkv::peak_rows(named(std::string("key_norm:select=by_head,") + budget), 512, 4096), 4096U) << budget;
}

TEST(peak_rows, has_room_for_a_head_that_keeps_all) {
  constexpr std::size_t chunk = 512, heads = 2, room = 4 * chunk;
  const lagkv::policy p = named("value_norm:capacity=256,select=adaptive,safeguard=0");
  cube k = make_cube(61, heads, room, 8), v = make_cube(62, heads, room, 8);
  for (std::size_t i = 0; i < v.x.size() / heads; ++i) v.x[i] *= 100;
  cache c(layout::heads_first, dtype::f32, k, v);
  lagkv::workspace ws;
  std::size_t most = 0;
  const lagkv::plan first = lagkv::plan_eviction(p, c.layer(chunk), {}, ws);
  for (std::size_t h = 0; h < heads; ++h) most = std::max(most, first.tokens_after(h) + chunk);
  EXPECT_GT(most, 256 + chunk);
  EXPECT_LE(most, lagkv::peak_rows(p, chunk, 100000));
}

// ---- policies without scores ------------------------------------------------------------------------------------------

TEST(full, drops_nothing_and_needs_nothing) {
  const lagkv::policy p = named("full");
  layers_of_numbers x(1);
  const auto before = x.rows(300);
  cursor at;
  lagkv::workspace ws;
  ASSERT_TRUE(check(p, x.views(300)[0]));
  EXPECT_EQ(lagkv::compress(p, x.views(300)[0], at, ws), 300U);
  EXPECT_TRUE(lagkv::last_plan(ws).empty());
  EXPECT_EQ(x.rows(300), before);
  EXPECT_EQ(lagkv::parse("full:keep=1").message(), "full: unknown key 'keep': there are none");
}

TEST(streaming_llm, moves_its_window_in_steps) {
  const cube x = make_cube(1, 1, 120, 4);
  lagkv::workspace ws;
  sequence s(layout::heads_first, dtype::f32, x, x);
  std::size_t moves = 0;
  for (int n = 1; n <= 120; ++n) {
    const std::size_t before = s.at().dropped;
    s.append(1, named("streaming_llm:sink=4,capacity=40,every=10"), ws);
    moves += s.at().dropped > before ? 1U : 0U;
    ASSERT_LT(s.tokens(), 50U);
  }
  EXPECT_EQ(moves, 8U) << "80 tokens go, 10 at a time";
}

TEST(budgets, the_last_row_stays_whatever_is_asked_for) {
  for (const lagkv::method_entry* m : every_method()) {
    if (m->name == "full" || m->name == "lagkv") continue;
    for (const char* keep : {"0.001", "0.5", "0.9"})
      for (std::size_t n = 1; n < 120; n += n < 9 ? 1 : 37) {
        const bool whole = m->make_whole != nullptr;
        const std::string text = std::string(m->name) + ":sink=0,keep=" + keep + (whole ? "" : ",recent=0,recent_share=0");
        const lagkv::budget b = named_any(text).budget;
        const lagkv::candidates c = b.due({}, n);
        const std::size_t left = n - c.rows.size() + c.keep;
        ASSERT_GE(left, 1U) << text << ", " << n;
        if (left == 1 && n > 1) {
          ASSERT_EQ(c.rows.end, n - 1) << text << ": the one that stays is the last";
        }
      }
  }
}

// A head of more than 2 MiB is scored and moved in several blocks of partitions.
TEST(blocks, leave_what_each_partition_leaves) {
  constexpr std::size_t n = 6000, d = 64, lag = 16, kept = 8, sink = 3;
  const cube k = make_cube(45, 1, n, d), v = make_cube(46, 1, n, d);
  const lagkv::policy p = named("lagkv:sink=3,lag=16,ratio=0.5");
  const lagkv::candidates due = p.budget.due({}, n);
  lagkv::workspace ws;
  std::vector<std::uint32_t> expected;
  cache whole(layout::heads_first, dtype::f32, k, v);
  const auto scores = lagkv::score(p, whole.layer(n), due, ws);
  for (std::size_t at = 0; at < due.rows.size(); at += lag) {
    std::vector<std::uint32_t> rows(lag);
    for (std::size_t i = 0; i < lag; ++i) rows[i] = static_cast<std::uint32_t>(at + i);
    std::stable_sort(rows.begin(), rows.end(), [&](std::uint32_t a, std::uint32_t b) { return scores[a] > scores[b]; });
    std::sort(rows.begin(), rows.begin() + kept);
    for (std::size_t i = 0; i < kept; ++i) expected.push_back(rows[i] + static_cast<std::uint32_t>(sink));
  }
  for (const toward direction : {toward::front, toward::window}) {
    cache c(layout::heads_first, dtype::f32, k, v);
    cursor at;
    const std::size_t left = lagkv::compress(p, c.layer(n), at, ws, direction);
    const lagkv::plan plan = lagkv::last_plan(ws);
    ASSERT_EQ(std::vector<std::uint32_t>(plan.of(0).begin(), plan.of(0).end()), expected);
    ASSERT_EQ(left, sink + expected.size() + n - due.rows.end);
    for (std::size_t i = 0; i < left; ++i) {
      const std::size_t row = direction == toward::front || i < sink ? i : i + n - left;
      ASSERT_EQ(c.keys.row(0, row), whole.keys.row(0, plan.source(0, i))) << "row " << i;
      ASSERT_EQ(c.values.row(0, row), whole.values.row(0, plan.source(0, i))) << "row " << i;
    }
  }
}

TEST(budgets, the_one_candidate_that_stays_is_the_best) {
  const cube k = make_cube(43, 2, 60, 8), v = make_cube(44, 2, 60, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  for (const char* select : {"top_k", "adaptive,safeguard=1"}) {
    SCOPED_TRACE(select);
    const lagkv::policy p = named(std::string("key_norm:capacity=21,sink=16,recent=4,select=") + select);
    lagkv::workspace ws, other;
    const lagkv::candidates due = p.budget.due({}, 60);
    ASSERT_EQ(due.keep, 1U);
    const auto scores = lagkv::score(p, c.layer(60), due, ws);
    const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(60), {}, other);
    for (std::size_t h = 0; h < 2; ++h) {
      const auto own = scores.subspan(h * due.rows.size(), due.rows.size());
      const auto best = static_cast<std::size_t>(std::max_element(own.begin(), own.end()) - own.begin());
      ASSERT_EQ(plan.of(h).size(), 1U);
      EXPECT_EQ(plan.of(h)[0], due.rows.begin + best);
    }
  }
}

// ---- one bad row ------------------------------------------------------------------------------------------------------

TEST(nonfinite_rows, go_first_and_take_no_neighbour_along) {
  const std::size_t tokens = 400, bad = 200;
  for (float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F})
    for (const char* method : {"key_norm", "key_diff", "manifold", "nested", "novelty:pre_rope=no,heads=own", "cur"})
      for (const char* transform : {"", "pool=9", "smooth=4"}) {
        const std::string text = std::string(method) + (std::string(method).find(':') == std::string::npos ? ":" : ",") +
                                 "keep=0.9," + (*transform != 0 ? std::string(transform) + "," : "") + "sink=0";
        const lagkv::policy p = named(text);
        const auto kept_beside = [&](bool with) {
          cube k = make_cube(9, 1, tokens, 16);
          for (float& x : k.x) x += 0.5F;
          if (with) std::fill_n(k.x.begin() + bad * 16, 16, value);
          cache c(layout::heads_first, dtype::f32, k, make_cube(10, 1, tokens, 16));
          lagkv::workspace ws;
          const lagkv::plan& plan = plan_eviction(p, c.layer(tokens), {}, ws);
          EXPECT_FALSE(plan.empty()) << text;
          if (plan.empty()) return std::size_t{0};
          const auto kept = plan.of(0);
          const auto stays = [&](std::size_t row) { return std::find(kept.begin(), kept.end(), row) != kept.end(); };
          EXPECT_FALSE(with && stays(bad)) << text << ", " << value;
          std::size_t beside = 0;
          for (std::size_t row = bad - 4; row <= bad + 4; ++row) beside += row != bad && stays(row) ? 1U : 0U;
          return beside;
        };
        EXPECT_GE(kept_beside(true) + 2, kept_beside(false)) << text << ", " << value;
      }
}

// ---- a cursor's life --------------------------------------------------------------------------------------------------

TEST(cursor, equals_another_of_the_same_counts) {
  const cursor c{50, 30, 20};
  EXPECT_EQ(c, (cursor{50, 30, 20, 7})) << "marks are of debug builds";
  for (const cursor& other : {cursor{51, 30, 20}, {50, 31, 20}, {50, 30, 21}}) EXPECT_FALSE(c == other);
}

TEST(cursor, takes_rows_back_and_goes_on_as_if_they_had_not_been) {
  const cube x = make_cube(5, 2, 200, 8);
  const lagkv::policy p = named("lagkv:sink=2,lag=16,ratio=0.5");
  lagkv::workspace ws;
  sequence plain(layout::heads_first, dtype::f32, x, x), other(layout::heads_first, dtype::f32, x, x);
  plain.append(100, p, ws), other.append(100, p, ws);
  cursor c = other.at();
  cursor more = c;
  more.tokens += 5;
  lagkv::take_back(more, c.tokens);
  EXPECT_EQ(more, c);
  lagkv::take_back(more, c.compressed - 3);
  EXPECT_EQ(more.compressed, c.compressed - 3);
  EXPECT_EQ(more.tokens, c.compressed - 3);
  EXPECT_EQ(more.dropped, c.dropped) << "what went does not come back";
  lagkv::take_back(more, 1000);
  EXPECT_EQ(more.tokens, c.compressed - 3) << "rows are only taken back";
}

// Tokens appended since the last call leave no trace when they are taken out and the gap is closed. If it is kept they count as
// dropped: the same rows stay where the budget is no share of all tokens.
TEST(cursor, takes_tokens_out_and_goes_on_as_if_they_had_never_been) {
  const std::size_t n = 300, appended = 90;
  const cube x = make_cube(5, 2, n, 8);
  for (const char* text : {"lagkv:sink=2,lag=16,ratio=0.5", "key_norm:keep=0.3,recent=9,sink=1", "key_norm:capacity=60,recent=9",
                           "streaming_llm:sink=4,capacity=70", "key_norm:lag=16,keep=0.5", "full"})
    for (const auto& [begin, end] : {std::pair{70, 90}, {62, 75}, {89, 90}, {80, 80}})
      for (const lagkv::gap positions : {lagkv::gap::closed, lagkv::gap::kept}) {
        const lagkv::policy p = named(text);
        const std::size_t a = static_cast<std::size_t>(begin), b = static_cast<std::size_t>(end);
        cube rest(2, n - (b - a), 8);
        for (std::size_t h = 0; h < 2; ++h)
          for (std::size_t t = 0; t < n; ++t)
            if (t < a || t >= b) std::copy_n(x.row(h, t), 8, rest.row(h, t < a ? t : t - (b - a)));
        lagkv::workspace ws;
        sequence edited(layout::heads_first, dtype::f32, x, x), plain(layout::heads_first, dtype::f32, rest, rest);
        const auto append = [&](std::size_t tokens) { edited.append(tokens, p, ws), plain.append(tokens, p, ws); };
        append(60);
        const std::size_t gone = edited.at().dropped;
        edited.append_only(appended - 60), plain.append_only(appended - 60 - (b - a));
        edited.take_out(a - gone, b - gone, positions);
        append(0);
        for (std::size_t i = appended; i < n; i += 30) append(30);

        const bool of_all_tokens = std::string(text).find("keep=0.3") != std::string::npos;
        EXPECT_TRUE(edited.rows_follow_positions()) << text;
        EXPECT_EQ(edited.at().seen(), positions == lagkv::gap::kept ? n : n - (b - a)) << text;
        if (positions == lagkv::gap::kept && of_all_tokens) continue;
        EXPECT_EQ(edited.at().tokens, plain.at().tokens) << text;
        EXPECT_EQ(edited.at().compressed, plain.at().compressed) << text;
        for (std::size_t h = 0; h < 2; ++h) {
          std::vector<int> expected = plain.positions(h);
          for (int& t : expected) t += t < begin ? 0 : end - begin;
          EXPECT_EQ(edited.positions(h), expected) << text << ", [" << begin << ", " << end << ")";
        }
      }
}

TEST(cursor, counts_what_is_taken_out_among_survivors_and_rows_appended_since) {
  const cursor before{60, 40, 20, 7};
  const auto after = [&](std::size_t begin, std::size_t end, lagkv::gap positions) {
    cursor at = before;
    lagkv::take_out(at, begin, end, positions);
    return at;
  };
  using enum lagkv::gap;
  EXPECT_EQ(after(5, 9, closed), (cursor{56, 40, 16}));
  EXPECT_EQ(after(5, 9, kept), (cursor{56, 44, 16}));
  EXPECT_EQ(after(18, 25, closed), (cursor{53, 40, 18}));
  EXPECT_EQ(after(0, 70, closed), (cursor{0, 40, 0}));
  EXPECT_EQ(after(55, 65, closed), (cursor{55, 40, 20}));
  EXPECT_EQ(after(70, 80, closed), before) << "appended since the last call, and never counted";
  EXPECT_EQ(after(70, 80, kept), (cursor{60, 50, 20})) << "the position of the next token stays: ten more are before it";
  for (const auto& [begin, end] : {std::pair{30, 30}, {9, 5}})
    EXPECT_EQ(after(static_cast<std::size_t>(begin), static_cast<std::size_t>(end), kept), before);
  cursor behind_the_gap{100, 0, 0};
  lagkv::take_out(behind_the_gap, 40, 60, kept);
  cursor at_the_gap = behind_the_gap, before_it = behind_the_gap;
  lagkv::take_back(at_the_gap, 40), lagkv::take_back(before_it, 30);
  EXPECT_EQ(at_the_gap.seen(), 60U);
  EXPECT_EQ(before_it.seen(), 50U) << "docs/cursor.md: no further than the gap, for the next token is number 30";
  EXPECT_EQ(after(5, 9, closed).mark, 0U) << "another row is the last survivor's";
  EXPECT_EQ(after(20, 25, closed).mark, 7U);
}

// docs/cursor.md: as many tokens as the window holds may be taken back after any call.
TEST(cursor, is_never_within_the_window) {
  const cube x = make_cube(1, 1, 400, 4);
  for (const auto& [text, window] : {std::pair<const char*, std::size_t>{"key_norm:keep=0.3,recent=9", 9},
                                     {"key_norm:keep=0.3", 32},
                                     {"key_norm:keep=0.3,recent=0", 0},
                                     {"key_norm:capacity=60,recent=9", 9},
                                     {"key_norm:capacity=60,every=7", 32},
                                     {"key_norm:capacity=60,recent_share=0.5", 32},
                                     {"key_norm:keep=0.5,lag=16", 16},
                                     {"lagkv:lag=16", 16},
                                     {"key_norm:capacity=60,recent=9,pyramid=20", 9},
                                     {"key_norm:keep=0.3,recent=9,pyramid=20", 9},
                                     {"streaming_llm:sink=4,capacity=20", 16},
                                     {"key_norm:keep=0.3,recent=9,select=chunks", 9}})
    for (const std::size_t prompt : {std::size_t{1}, std::size_t{100}, std::size_t{300}}) {
      const lagkv::policy p = lagkv::for_layer(named(text), 2, 3);
      cache c(layout::heads_first, dtype::f32, x, x);
      cursor at;
      lagkv::workspace ws;
      std::size_t tokens = prompt;
      while (at.seen() < 400) {
        tokens = lagkv::compress(p, c.layer(tokens), at, ws) + 1;
        ASSERT_TRUE(at.compressed == 0 || at.tokens - at.compressed >= window) << text << ", token " << at.seen();
      }
      EXPECT_GT(at.dropped, 0U) << text;
    }
}

TEST(rope, must_name_its_pairs) {
  lagkv::rope r{.base = 1e4};
  EXPECT_EQ(lagkv::check(r, 8).message(),
            "pairs: must be named: rope::pairing::halves (Hugging Face, NeoX) or rope::pairing::neighbours (llama.cpp's norm)");
  layers_of_numbers x(1);
  lagkv::extras e;
  e.rope = &r;
  layer l = x.views(300)[0];
  l.extra = &e;
  EXPECT_NE(check(named("novelty"), l).message().find("rope: pairs: must be named"), std::string::npos);
  r.pairs = lagkv::rope::pairing::neighbours;
  EXPECT_TRUE(check(named("novelty"), l));
}

TEST(rope, is_not_changed_under_a_hadamard_matrix) {
  std::vector<float> k(64);
  const lagkv::rope r{.pairs = lagkv::rope::pairing::halves};
  const lagkv::strided<float> rows(k.data(), {1, 8}, {8, 8, 1}, 8);
  EXPECT_TRUE(lagkv::check(r, lagkv::tensor(rows)));
  EXPECT_EQ(lagkv::check(r, lagkv::tensor(lagkv::hadamard(rows, 8))).message(),
            "keys: are stored under a Hadamard matrix, in which RoPE cannot be changed in place");
}

TEST(views, take_any_integer_type) {
  std::vector<float> k(2 * 10 * 4);
  const int heads = 2, channels = 4;
  const unsigned capacity = 10;
  const long token = channels;
  const short head = 40;
  const lagkv::shape shape{heads, channels};
  const lagkv::strides strides{.head = head, .token = token};
  const lagkv::side_array<float> side{k.data(), capacity};
  const lagkv::tensor t = lagkv::strided<float>(k.data(), shape, strides, capacity);
  EXPECT_TRUE(t.check(10));
  EXPECT_EQ(t.heads(), 2U);
  EXPECT_EQ(side.of(1), k.data() + 10);
}

// ---- the workspace ----------------------------------------------------------------------------------------------------

TEST(workspace, frames_give_back_what_was_taken_in_them) {
  lagkv::workspace ws;
  for (int round = 0; round < 3; ++round) {
    const lagkv::workspace::frame outer(ws);
    float* a = ws.take<float>(100);
    std::fill_n(a, 100, 1.0F);
    for (int i = 0; i < 5; ++i) {
      const lagkv::workspace::frame inner(ws);
      double* b = ws.take<double>(100000 * static_cast<std::size_t>(i + 1));
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b) % 64, 0U);
      std::fill_n(b, 100000, 2.0);
    }
    EXPECT_EQ(std::count(a, a + 100, 1.0F), 100) << "what is in use never moves";
  }
}

TEST(workspace, reserves_what_is_then_there_without_a_move) {
  lagkv::workspace ws;
  const lagkv::workspace::frame outer(ws);
  ws.reserve(1000);
  auto* const first = ws.take<std::byte>(1000);
  ws.reserve(100000), ws.reserve(50000), ws.reserve(100000), ws.reserve(100);
  auto* const second = ws.take<std::byte>(100000);
  std::fill_n(first, 1000, std::byte{1}), std::fill_n(second, 100000, std::byte{2});
  auto* const third = ws.take<std::byte>(300000);
  std::fill_n(third, 300000, std::byte{3});
  EXPECT_TRUE(std::all_of(first, first + 1000, [](std::byte b) { return b == std::byte{1}; }));
  EXPECT_TRUE(std::all_of(second, second + 100000, [](std::byte b) { return b == std::byte{2}; }));
  EXPECT_GE(ws.peak(), 401000U);
}

TEST(workspace, keeps_one_object_of_each_type) {
  struct one {
    int x = 1;
  };
  struct two {
    int x = 2;
  };
  lagkv::workspace ws;
  ws.kept<one>().x = 7;
  EXPECT_EQ(ws.kept<two>().x, 2);
  EXPECT_EQ(ws.kept<one>().x, 7);
  lagkv::workspace copy = ws, moved = std::move(ws);
  EXPECT_EQ(copy.kept<one>().x, 1) << "a copy has its own";
  EXPECT_EQ(moved.kept<one>().x, 7);
}

}  // namespace
