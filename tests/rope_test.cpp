// Re-rotated keys against complex arithmetic in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <lagkv/plan/compact.hpp>
#include <lagkv/plan/rerotate.hpp>
#include <lagkv/view/strided.hpp>

#include "support/rotation.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::rope;

/// Within a rounding to the type, f32 arithmetic, and what `earlier` roundings may have left.
void expect_near(const std::vector<double>& found, const std::vector<double>& exact, dtype type, int earlier = 0) {
  const double half = type == dtype::f16 ? 0x1p-11 : type == dtype::bf16 ? 0x1p-8 : 0;
  double square = 0;
  for (double v : exact) square += v * v;
  const double all = (half * earlier + 3e-7) * std::sqrt(square);
  for (std::size_t c = 0; c < exact.size(); ++c)
    ASSERT_NEAR(found[c], exact[c], half * std::fabs(exact[c]) + all) << "channel " << c;
}

constexpr std::size_t channels = 16;

TEST(rope, angle_of_a_pair) {
  const std::vector<float> factors{1, 1, 8};
  const rope r{.base = 1000, .pairs = lagkv::rope::pairing::halves, .factors = factors, .position_scale = 0.5F};
  EXPECT_DOUBLE_EQ(r.angle(0, 6), 0.5);
  EXPECT_DOUBLE_EQ(r.angle(1, 6), 0.05);
  EXPECT_DOUBLE_EQ(r.angle(2, 6), 0.005 / 8);
  EXPECT_DOUBLE_EQ((rope{.pairs = lagkv::rope::pairing::halves, .dims = 4}.angle(1, 6)), 0.01);
}

TEST(rope, check_names_the_value_and_the_limit) {
  host memory(layout::heads_first, dtype::f16, 2, 3, 16);
  const lagkv::tensor keys = memory.view();
  const std::vector<float> factors(8, 1.0F), odd{1, 1, 0, 1, 1, 1, 1, 1};
  const auto message = [&](const rope& r, const lagkv::tensor& k) { return lagkv::check(r, k).message(); };
  EXPECT_TRUE(lagkv::check(rope{.pairs = lagkv::rope::pairing::halves}, keys));
  EXPECT_TRUE(lagkv::check(rope{.pairs = lagkv::rope::pairing::halves, .dims = 16, .factors = factors}, keys));
  EXPECT_TRUE(lagkv::check(rope{.pairs = lagkv::rope::pairing::halves, .dims = 2}, keys));
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves}, {}), "keys: the tensor is empty");
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves, .dims = 18}, keys),
            "dims=18: must be at most the 16 channels of the keys");
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves, .dims = 7}, keys), "dims=7: must be even");
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves}, host(layout::heads_first, dtype::f16, 1, 1, 5).view()),
            "dims=5: must be even");
  EXPECT_EQ(message(rope{.base = 0, .pairs = lagkv::rope::pairing::halves}, keys), "base=0: must be above 0 and finite");
  EXPECT_EQ(message(rope{.base = HUGE_VAL, .pairs = lagkv::rope::pairing::halves}, keys), "base=inf: must be above 0 and finite");
  EXPECT_FALSE(lagkv::check(rope{.base = std::nan(""), .pairs = lagkv::rope::pairing::halves}, keys));
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves, .position_scale = -1}, keys),
            "position_scale=-1: must be above 0 and finite");
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves, .dims = 8, .factors = factors}, keys),
            "factors of 8: must be 4, one a pair");
  EXPECT_EQ(message(rope{.pairs = lagkv::rope::pairing::halves, .factors = odd}, keys),
            "factors[2]=0: must be above 0 and finite");
}

struct rerotate : testing::TestWithParam<lagkv::simd::target> {
  lagkv::workspace ws{GetParam()};
};

TEST_P(rerotate, one_key) {
  const cube x = make_cube(1, 2, 5, channels);
  for (dtype type : all_types)
    for (const rope& r : ropes(channels))
      for (std::ptrdiff_t shift : {1, -1, 7, -16, -17, -300, 100000}) {
        SCOPED_TRACE(std::string(lagkv::name(type)) + " shift " + std::to_string(shift));
        host keys(layout::heads_first, type, x);
        const host before = keys;
        lagkv::rerotate(keys.view(), 1, 3, shift, r, ws);
        const auto key = values_of(before, 1, 3);
        expect_near(values_of(keys, 1, 3), turned(key, static_cast<double>(shift), r), type);
        for (std::size_t h = 0; h < 2; ++h)
          for (std::size_t t = 0; t < 5; ++t)
            for (std::size_t c = h == 1 && t == 3 ? r.rotated(channels) : 0; c < channels; ++c)
              ASSERT_EQ(keys.row(h, t)[c], before.row(h, t)[c]) << "head " << h << " row " << t << " channel " << c;
        if (HasFatalFailure()) return;
      }
}

TEST_P(rerotate, a_shift_of_zero_leaves_every_bit) {
  for (dtype type : all_types) {
    host keys(layout::heads_first, type, make_cube(2, 1, 2, channels));
    keys.set(0, 1, 3, type == dtype::f32 ? 0xffa00001U : type == dtype::f16 ? 0xfd01U : 0xffa1U);  // a signalling NaN
    const row_bits before = keys.row(0, 1);
    lagkv::rerotate(keys.view(), 0, 1, 0, {}, ws);
    EXPECT_EQ(keys.row(0, 1), before);
  }
}

TEST_P(rerotate, shifts_add_up) {
  const cube x = make_cube(3, 1, 2, channels);
  for (dtype type : all_types)
    for (const rope& r : ropes(channels)) {
      host twice(layout::heads_first, type, x), once(layout::heads_first, type, x);
      lagkv::rerotate(twice.view(), 0, 0, -1234, r, ws), lagkv::rerotate(twice.view(), 0, 0, 1000, r, ws);
      lagkv::rerotate(once.view(), 0, 0, -234, r, ws);
      expect_near(values_of(twice, 0, 0), values_of(once, 0, 0), type, 2);
    }
}

TEST_P(rerotate, from_one_position_to_another) {
  const cube raw = make_cube(4, 1, 1, channels);
  std::vector<double> key(raw.row(0, 0), raw.row(0, 0) + channels);
  for (dtype type : all_types)
    for (const rope& r : ropes(channels))
      for (auto [p, q] : {std::pair{5000, 12}, {0, 70000}, {31, 30}}) {
        host keys(layout::heads_first, type, 1, 1, channels);
        const auto at_p = turned(key, p, r);
        for (std::size_t c = 0; c < channels; ++c) keys.set(0, 0, c, encoded(type, static_cast<float>(at_p[c])));
        lagkv::rerotate(keys.view(), 0, 0, q - p, r, ws);
        expect_near(values_of(keys, 0, 0), turned(key, q, r), type, 1);
      }
}

/// The plan of heads that keep these rows of [begin, end).
lagkv::plan plan_of(lagkv::token_range candidates, std::size_t tokens, const std::vector<std::vector<std::uint32_t>>& kept) {
  lagkv::plan p;
  p.candidates = candidates, p.tokens_before = tokens;
  for (const auto& of_head : kept) {
    p.kept.insert(p.kept.end(), of_head.begin(), of_head.end());
    p.first.push_back(p.kept.size());
  }
  return p;
}

/// Rows 4 to 60 of 64 are candidates: nothing moves at first, then runs, gaps, and a gap wider than the others.
lagkv::plan rectangular() { return plan_of({4, 60}, 64, {{4, 5, 6, 9, 10, 13, 45, 46, 59}, {5, 7, 8, 9, 20, 21, 30, 40, 50}}); }
lagkv::plan ragged() { return plan_of({4, 60}, 64, {{4, 5, 9, 44}, {}, {7, 8, 9, 20, 21, 30, 57}}); }

TEST_P(rerotate, by_a_plan) {
  for (const lagkv::plan& p : {rectangular(), ragged()})
    for (dtype type : all_types)
      for (const rope& r : ropes(channels)) {
        host keys(layout::heads_first, type, make_cube(5, p.heads(), 64, channels));
        lagkv::compact(keys.view(), p);
        const host before = keys;
        lagkv::rerotate(keys.view(), p, r, ws);
        for (std::size_t h = 0; h < p.heads(); ++h)
          for (std::size_t i = 0; i < 64; ++i) {
            SCOPED_TRACE(std::string(lagkv::name(type)) + " head " + std::to_string(h) + " row " + std::to_string(i));
            if (i >= p.tokens_after(h) || p.source(h, i) == i) {
              ASSERT_EQ(keys.row(h, i), before.row(h, i)) << "stays where it was";
              continue;
            }
            const auto key = values_of(before, h, i);
            const double shift = static_cast<double>(i) - static_cast<double>(p.source(h, i));
            expect_near(values_of(keys, h, i), turned(key, shift, r), type);
            if (HasFatalFailure()) return;
          }
      }
}

TEST_P(rerotate, is_the_same_in_every_layout) {
  const lagkv::plan p = ragged();
  const cube x = make_cube(6, p.heads(), 64, channels);
  for (dtype type : all_types)
    for (const rope& r : ropes(channels)) {
      host expected(layout::heads_first, type, x);
      lagkv::rerotate(expected.view(), p, r, ws), lagkv::rerotate(expected.view(), 2, 1, 5, r, ws);
      for (layout l : all_layouts) {
        host keys(l, type, x);
        lagkv::rerotate(keys.view(), p, r, ws), lagkv::rerotate(keys.view(), 2, 1, 5, r, ws);
        for (std::size_t h = 0; h < p.heads(); ++h)
          for (std::size_t i = 0; i < 64; ++i)
            ASSERT_EQ(keys.row(h, i), expected.row(h, i)) << l << " head " << h << " row " << i;
        ASSERT_TRUE(keys.intact()) << l;
      }
    }
}

TEST_P(rerotate, a_plan_that_drops_nothing_leaves_every_bit) {
  host keys(layout::heads_first, dtype::f16, make_cube(7, 2, 8, channels));
  const host before = keys;
  lagkv::plan p;
  p.clear(8);
  lagkv::rerotate(keys.view(), p, {}, ws);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(keys.row(1, i), before.row(1, i));
}

TEST_P(rerotate, attention_sees_neighbours_where_tokens_lie_side_by_side) {
  // Keys before RoPE, and a query: after compaction their products are those of a text that never had the dropped tokens.
  const lagkv::plan p = ragged();
  const cube raw = make_cube(8, p.heads(), 64, channels), queries = make_cube(9, 1, 1, channels);
  const std::vector<double> query(queries.row(0, 0), queries.row(0, 0) + channels);
  for (const rope& r : ropes(channels)) {
    const auto key = [&](std::size_t h, std::size_t t) { return std::vector<double>(raw.row(h, t), raw.row(h, t) + channels); };
    host keys(layout::tokens_first, dtype::f32, p.heads(), 64, channels);
    for (std::size_t h = 0; h < p.heads(); ++h)
      for (std::size_t t = 0; t < 64; ++t) {
        const auto at_t = turned(key(h, t), static_cast<double>(t), r);
        for (std::size_t c = 0; c < channels; ++c) keys.set(h, t, c, encoded(dtype::f32, static_cast<float>(at_t[c])));
      }
    lagkv::compact(keys.view(), p);
    lagkv::rerotate(keys.view(), p, r, ws);
    for (std::size_t h = 0; h < p.heads(); ++h) {
      const std::size_t n = p.tokens_after(h);
      const auto next = turned(query, static_cast<double>(n), r);
      for (std::size_t i = 0; i < n; ++i) {
        const auto found = values_of(keys, h, i);
        // Only the distance counts: the query at 0, the key as far before it as the row is before the next.
        const auto exact = turned(key(h, p.source(h, i)), static_cast<double>(i) - static_cast<double>(n), r);
        double product = 0, expected = 0, size = 0;
        for (std::size_t c = 0; c < channels; ++c) {
          product += next[c] * found[c], expected += query[c] * exact[c];
          size += std::fabs(next[c] * found[c]);
        }
        ASSERT_NEAR(product, expected, 1e-6 * (1 + size)) << "head " << h << " row " << i;
      }
    }
  }
}

TEST_P(rerotate, stays_exact_over_a_long_text) {
  // Every other token goes: the shift grows by one position a row, a hundred thousand times over.
  constexpr std::size_t tokens = 200'000;
  lagkv::plan p;
  p.reset({0, tokens - 10}, tokens, 1, (tokens - 10) / 2);
  for (std::size_t i = 0; i < p.kept.size(); ++i) p.kept[i] = static_cast<std::uint32_t>(2 * i);
  std::vector<float> memory(2 * tokens);
  for (std::size_t i = 0; i < tokens; ++i) memory[2 * i] = 1;
  const rope r{.pairs = lagkv::rope::pairing::halves};
  lagkv::rerotate(lagkv::strided<float>(memory.data(), {1, 2}, {0, 2}, tokens), p, r, ws);
  for (std::size_t i = 0; i < p.tokens_after(); i += i + 20 < p.tokens_after() ? 997U : 1U) {
    const auto exact = turned({1, 0}, static_cast<double>(i) - static_cast<double>(p.source(0, i)), r);
    ASSERT_NEAR(memory[2 * i], exact[0], 7e-8) << i;
    ASSERT_NEAR(memory[2 * i + 1], exact[1], 7e-8) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(simd, rerotate, testing::ValuesIn(targets()), target_name{});

}  // namespace
