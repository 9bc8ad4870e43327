// Keys shown without their positions: against complex arithmetic in double, and against keys that never were rotated.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/methods_oracle.hpp"
#include "support/offer.hpp"
#include "support/rotation.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::rope;

/// Positions of a few rows: neighbours, gaps, blocks skipped, back to the start, far away.
std::vector<std::uint32_t> some_positions(std::size_t n) {
  std::vector<std::uint32_t> out;
  std::mt19937 random(3);
  std::uint32_t p = 0;
  for (std::size_t i = 0; i < n; ++i) {
    out.push_back(p);
    p += i % 11 == 10 ? static_cast<std::uint32_t>(random() % 200) : i % 5 == 4 ? 7U : 1U;
    if (i == n / 2) p = 1000000;
  }
  out.back() = 3;
  return out;
}

/// Whether a row has these numbers, as far as f32 tells.
testing::AssertionResult is_near(std::span<const float> row, const std::vector<double>& exact) {
  double most = 0;
  for (double x : exact) most = std::max(most, std::fabs(x));
  for (std::size_t c = 0; c < exact.size(); ++c)
    if (!(std::fabs(row[c] - exact[c]) <= 4e-7 * most))
      return testing::AssertionFailure() << "channel " << c << ": " << row[c] << ", not " << exact[c];
  return testing::AssertionSuccess();
}

class pre_rope : public testing::TestWithParam<lagkv::simd::target> {};

TEST_P(pre_rope, rows_of_every_view_type_and_embedding) {
  lagkv::workspace ws(GetParam());
  std::size_t which = 0;
  for (std::size_t channels : {10U, 16U, 38U, 64U, 128U})
    for (const rope& r : ropes(channels))
      for (dtype type : all_types) {
        const layout l = all_layouts[which++ % std::size(all_layouts)];
        SCOPED_TRACE(std::string(name(l)) + " " + lagkv::name(type) + " " + std::to_string(channels));
        const std::size_t heads = 2, tokens = 60;
        host memory(l, type, make_cube(5, heads, tokens, channels));
        std::vector<std::uint32_t> positions = some_positions(2 * tokens);
        const lagkv::rotated how{&r, {{positions.data(), static_cast<std::ptrdiff_t>(tokens)}}};
        const lagkv::tensor keys = lagkv::pre_rope(memory.view(), how, ws);
        for (std::size_t h = 0; h < heads; ++h)
          lagkv::for_each_row(keys, h, {1, tokens}, ws, [&](std::size_t i, std::span<const float> row) {
            const std::vector<double> exact = turned(values_of(memory, h, i + 1), -1.0 * positions[h * tokens + i + 1], r);
            ASSERT_EQ(row.size(), exact.size());
            ASSERT_TRUE(is_near(row, exact)) << h << ", " << i;
          });
        ASSERT_TRUE(memory.intact());
      }
}

// Rows that a sample takes: positions in blocks that are skipped at a steady pace, so that each turn follows from the last; then
// at another pace, back, and far away.
TEST_P(pre_rope, blocks_skipped_at_a_steady_pace) {
  lagkv::workspace ws(GetParam());
  const std::size_t tokens = 4000, channels = 16;
  const rope r{.base = 1e6F, .pairs = lagkv::rope::pairing::halves};
  host memory(layout::heads_first, dtype::f32, make_cube(6, 1, tokens, channels));
  for (std::size_t together : {1U, 2U, 64U, 80U})
    for (std::uint32_t skipped : {64U, 100U, 192U, 1000U, 400000U}) {
      std::vector<std::uint32_t> positions(tokens);
      std::uint32_t p = 16;
      for (std::size_t i = 0; i < tokens; ++i) {
        positions[i] = p;
        p += i % together == together - 1 ? (i < tokens / 2 ? skipped : skipped / 3 + 70) : 1;
        if (i == tokens / 4 || i == 3 * tokens / 4) p /= 3;
      }
      const lagkv::rotated how{&r, {{positions.data(), 0}}};
      lagkv::for_each_row(lagkv::pre_rope(memory.view(), how, ws), 0, {0, tokens}, ws,
                          [&](std::size_t i, std::span<const float> row) {
                            const std::vector<double> exact = turned(values_of(memory, 0, i), -1.0 * positions[i], r);
                            ASSERT_TRUE(is_near(row, exact)) << together << " by " << skipped << ", row " << i;
                          });
    }
}

// A workspace that has been elsewhere, at another pace, gives the same bits.
TEST_P(pre_rope, nothing_is_left_of_what_was_read_before) {
  const std::size_t tokens = 600, channels = 64;
  const rope r{.base = 1e4F, .pairs = lagkv::rope::pairing::halves};
  host memory(layout::heads_first, dtype::f32, make_cube(8, 2, tokens, channels));
  lagkv::workspace used(GetParam());
  std::mt19937 random(5);
  for (int run = 0; run < 20; ++run) {
    std::vector<std::uint32_t> positions(2 * tokens);
    const auto pace = static_cast<std::uint32_t>(64 * (1 + random() % 5));
    for (std::size_t i = 0; i < 2 * tokens; ++i)
      positions[i] = 100000 + static_cast<std::uint32_t>(i % tokens) * pace + static_cast<std::uint32_t>(random() % 2);
    const lagkv::rotated how{&r, {{positions.data(), static_cast<std::ptrdiff_t>(tokens)}}};
    const auto rows = [&](lagkv::workspace& ws) {
      std::vector<float> all;
      for (std::size_t h = 0; h < 2; ++h)
        lagkv::for_each_row(lagkv::pre_rope(memory.view(), how, ws), h, {0, tokens}, ws,
                            [&](std::size_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
      return all;
    };
    lagkv::workspace fresh(GetParam());
    ASSERT_EQ(rows(used), rows(fresh)) << run;
  }
}

TEST_P(pre_rope, rows_without_known_positions_count_from_those_dropped) {
  lagkv::workspace ws(GetParam());
  const rope r{.base = 5000, .pairs = lagkv::rope::pairing::halves};
  host memory(layout::blocks_of_7, dtype::f32, make_cube(6, 1, 150, 32));
  const lagkv::rotated how{&r, {{}, 999}};
  lagkv::for_each_row(lagkv::pre_rope(memory.view(), how, ws), 0, {0, 150}, ws, [&](std::size_t i, std::span<const float> row) {
    const std::vector<double> exact = turned(values_of(memory, 0, i), -(999.0 + static_cast<double>(i)), r);
    for (std::size_t c = 0; c < 32; ++c) ASSERT_NEAR(row[c], exact[c], 1e-5) << i;
  });
}

TEST_P(pre_rope, a_workspace_follows_its_embeddings) {
  lagkv::workspace ws(GetParam());
  std::vector<float> factors{1, 1, 1, 1};
  const rope a{.base = 100, .pairs = lagkv::rope::pairing::halves, .factors = factors},
      b{.base = 100, .pairs = lagkv::rope::pairing::halves};
  host memory(layout::heads_first, dtype::f32, make_cube(7, 1, 3, 8));
  const auto first_row = [&](const rope& r) {
    const lagkv::rotated how{&r, {{}, 70}};
    std::vector<float> out;
    lagkv::for_each_row(lagkv::pre_rope(memory.view(), how, ws), 0, {2, 3}, ws,
                        [&](std::size_t, std::span<const float> row) { out.assign(row.begin(), row.end()); });
    return out;
  };
  const auto once = first_row(a);
  EXPECT_EQ(once, first_row(b));
  factors[2] = 3;  // in place: the same pointer
  EXPECT_NE(once, first_row(a));
  EXPECT_EQ(once, first_row(b));
  // Each number of an embedding by itself: as with a workspace that has seen no other.
  std::vector<rope> others(5, b);
  others[0].base = 50, others[1].pairs = lagkv::rope::pairing::neighbours, others[2].dims = 4, others[3].position_scale = 0.5F;
  others[4].factors = factors;
  for (const rope& r : others) {
    EXPECT_EQ(once, first_row(b));
    const auto after_another = first_row(r);
    EXPECT_NE(once, after_another);
    ws = lagkv::workspace(GetParam());
    EXPECT_EQ(after_another, first_row(r));
  }
  const std::vector<float> divisors{1, 2, 3, 1};  // as many
  rope other = others[4];
  other.factors = divisors;
  const auto by_others = first_row(others[4]);
  EXPECT_NE(by_others, first_row(other));
  EXPECT_EQ(by_others, first_row(others[4]));
}

// Keys of bytes with scales, or under a Hadamard matrix, are made numbers first: as keys that hold these numbers.
TEST_P(pre_rope, keys_that_are_no_floats_are_those_of_their_numbers) {
  constexpr std::size_t tokens = 45, d = 16;
  std::vector<std::int8_t> bytes(2 * tokens * d);
  std::mt19937 random(5);
  for (std::int8_t& b : bytes) b = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  const float factors[] = {0.03F, 0.11F}, zeros[] = {3, -5};
  cube numbers(2, tokens, d);
  for (std::size_t i = 0; i < numbers.x.size(); ++i) {
    const std::size_t head = i / (tokens * d);
    numbers.x[i] = (static_cast<float>(bytes[i]) - zeros[head]) * factors[head];
  }
  host plain(layout::heads_first, dtype::f32, numbers);
  constexpr auto step = static_cast<std::ptrdiff_t>(d);
  const lagkv::tensor scaled = lagkv::scaled(lagkv::strided<std::int8_t>(bytes.data(), {2, d}, {tokens * step, step, 1}, tokens),
                                             lagkv::shared_scales{factors, 1, zeros});
  ASSERT_TRUE(scaled.check(tokens));
  cube integers(2, tokens, d), under_matrix(2, tokens, d);
  std::copy(bytes.begin(), bytes.end(), integers.x.begin());
  for (std::size_t i = 0; i < integers.x.size(); i += 4) {  // halves of integers: exact
    const float *x = &integers.x[i], a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], e = x[2] - x[3];
    float* to = &under_matrix.x[i];
    to[0] = (a + c) / 2, to[1] = (b + e) / 2, to[2] = (a - c) / 2, to[3] = (b - e) / 2;
  }
  host whole(layout::heads_first, dtype::f32, integers);
  const lagkv::strided<float> stored(under_matrix.x.data(), {2, d}, {tokens * step, step, 1}, tokens);
  for (const rope& r : ropes(d)) {
    const lagkv::rotated how{&r, {{}, 70}};
    lagkv::workspace ws(GetParam());
    const auto rows = [&](const lagkv::tensor& x) {
      std::vector<float> out;
      const lagkv::tensor keys = lagkv::pre_rope(x, how, ws);
      for (std::size_t h = 0; h < 2; ++h)
        lagkv::for_each_row(keys, h, {3, tokens}, ws,
                            [&](std::size_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
      return out;
    };
    EXPECT_EQ(rows(scaled), rows(plain.view()));
    EXPECT_EQ(rows(lagkv::hadamard(stored, 4)), rows(whole.view()));
  }
}

INSTANTIATE_TEST_SUITE_P(all, pre_rope, testing::ValuesIn(targets()), target_name());

// ---- policies -------------------------------------------------------------------------------------------------------

/// Keys before and after RoPE, [heads][tokens][channels].
struct pair_of_cubes {
  cube plain, rotated;
};

pair_of_cubes rotated_cubes(const rope& r, std::size_t heads, std::size_t tokens, std::size_t channels) {
  pair_of_cubes out{make_cube(8, heads, tokens, channels), cube(heads, tokens, channels)};
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* row = out.plain.row(h, t);
      const auto exact = turned({row, row + channels}, static_cast<double>(t), r);
      for (std::size_t c = 0; c < channels; ++c) out.rotated.row(h, t)[c] = static_cast<float>(exact[c]);
    }
  return out;
}

/// Those that score keys alone, or keys and values.
const char* const policies[] = {"novelty:sink=3,recent=5,keep=0.4",
                                "novelty:heads=own,smooth=0,sink=3,recent=5,keep=0.4",
                                "novelty:sink=3,lag=20,keep=0.4",
                                "distinct:sink=3,recent=5,keep=0.4",
                                "key_diff:pre_rope=yes,sink=3,recent=5,keep=0.4",
                                "key_diff:pre_rope=yes,lag=20,smooth=4,heads=shared,keep=0.4",
                                "manifold:pre_rope=yes,recent=5,keep=0.4",
                                "lagkv:sink=3,lag=20,ratio=0.4,pre_rope=yes",
                                "lagkv:sink=3,lag=20,ratio=0.4,form=kvpress,pre_rope=yes",
                                "fuse:lagkv+key_diff,pre_rope=yes,lag=20,keep=0.4"};

std::string without(std::string text) {
  const std::string key = "pre_rope=yes";
  const std::size_t at = text.find(key);
  if (at != std::string::npos) return text.replace(at, key.size(), "pre_rope=no");
  return text.insert(text.find(':') + 1, "pre_rope=no,");
}

class policies_without_positions : public testing::TestWithParam<const char*> {};

TEST_P(policies_without_positions, see_what_they_would_see_without_rope) {
  for (const rope& r : ropes(24))
    for (auto target : targets()) {
      SCOPED_TRACE(lagkv::simd::name(target));
      const std::size_t heads = 3, tokens = 130;
      const pair_of_cubes k = rotated_cubes(r, heads, tokens, 24);
      const cube v = make_cube(9, heads, tokens, 16);
      cache before(layout::heads_first, dtype::f32, k.plain, v), after(layout::tokens_first, dtype::f32, k.rotated, v);
      const lagkv::policy p = named(GetParam()), plain = named(without(GetParam()));
      lagkv::extras e;
      e.rope = &r;
      std::vector<std::uint32_t> positions(heads * tokens);
      for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % tokens);
      if (p.needs.all_rows) e.positions = {positions.data(), tokens};
      lagkv::layer seen = after.layer(tokens);
      seen.extra = &e;
      ASSERT_EQ(check(p, seen).message(), "");
      lagkv::workspace one(target), other(target);
      const lagkv::candidates due = p.budget.due({}, tokens);
      ASSERT_FALSE(due.empty());
      const auto a = lagkv::score(p, seen, due, one), b = lagkv::score(plain, before.layer(tokens), due, other);
      double most = 0;
      for (float x : b) most = std::max(most, std::fabs(static_cast<double>(x)));
      for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 2e-5 * most) << i;
      // A position of the first key tells the two apart: all of these do read it.
      const auto rotated = lagkv::score(plain, after.layer(tokens), due, other);
      double differ = 0;
      for (std::size_t i = 0; i < a.size(); ++i) differ = std::max(differ, std::fabs(static_cast<double>(a[i] - rotated[i])));
      EXPECT_GT(differ, 1e-3 * most);
    }
}

TEST_P(policies_without_positions, go_on_while_decoding) {
  // The same tokens at once and in pieces; rows that are candidates later have positions that their row numbers do not tell.
  const rope r{.base = 1000, .pairs = rope::pairing::neighbours};
  const std::size_t heads = 2, tokens = 130;
  const pair_of_cubes k = rotated_cubes(r, heads, tokens, 24);
  const cube v = make_cube(9, heads, tokens, 16);
  cache before(host(layout::heads_first, dtype::f32, heads, tokens, 24),
               host(layout::heads_first, dtype::f32, heads, tokens, 16));
  cache after(host(layout::padded, dtype::f32, heads, tokens, 24), host(layout::padded, dtype::f32, heads, tokens, 16));
  lagkv::extras e;
  e.rope = &r;
  std::vector<std::uint32_t> positions(heads * tokens);
  const lagkv::policy p = named(GetParam()), plain = named(without(GetParam()));
  if (p.needs.all_rows) e.positions = {positions.data(), tokens};  // it reads survivors
  lagkv::workspace one, other;
  lagkv::cursor at, there;
  std::size_t seen = 0;
  for (std::size_t n : {70U, 1U, 1U, 30U, 28U}) {
    for (std::size_t i = 0; i < n; ++i, ++seen) {
      before.keys.put(k.plain, seen, there.tokens + i), before.values.put(v, seen, there.tokens + i);
      after.keys.put(k.rotated, seen, at.tokens + i), after.values.put(v, seen, at.tokens + i);
      for (std::size_t h = 0; h < heads; ++h) positions[h * tokens + at.tokens + i] = static_cast<std::uint32_t>(seen);
    }
    lagkv::layer l = after.layer(at.tokens + n), m = before.layer(there.tokens + n);
    l.extra = &e;
    ASSERT_EQ(check(p, l).message(), "");
    lagkv::compress(p, l, at, one);
    lagkv::compress(plain, m, there, other);
    ASSERT_EQ(at, there);
    ASSERT_EQ(lagkv::last_plan(one).kept, lagkv::last_plan(other).kept) << "after " << seen;
  }
  EXPECT_GT(at.dropped, 0U);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t row = 0; row < at.tokens; ++row) ASSERT_EQ(after.values.row(h, row), before.values.row(h, row));
}

INSTANTIATE_TEST_SUITE_P(all, policies_without_positions, testing::ValuesIn(policies),
                         [](const auto& i) { return "policy" + std::to_string(i.index); });

TEST(pre_rope, survivors_are_scored_again_at_their_own_positions) {
  const rope r{.base = 1000, .pairs = lagkv::rope::pairing::halves};
  const std::size_t heads = 2, tokens = 160;
  const pair_of_cubes k = rotated_cubes(r, heads, tokens, 24);
  cache before(host(layout::heads_first, dtype::f32, heads, tokens, 24), host(layout::heads_first, dtype::f32, heads, tokens, 4));
  cache after(host(layout::heads_first, dtype::f32, heads, tokens, 24), host(layout::heads_first, dtype::f32, heads, tokens, 4));
  const cube v = make_cube(9, heads, tokens, 4);
  std::vector<std::uint32_t> positions(heads * tokens);
  lagkv::extras e;
  e.rope = &r, e.positions = {positions.data(), tokens};
  const std::string text = "novelty:heads=own,sink=3,recent=5,capacity=40,every=4";
  const lagkv::policy p = named(text), plain = named(without(text));
  lagkv::workspace one, other;
  lagkv::cursor at, there;
  for (std::size_t seen = 0; seen < tokens; ++seen) {
    before.keys.put(k.plain, seen, there.tokens), before.values.put(v, seen, there.tokens);
    after.keys.put(k.rotated, seen, at.tokens), after.values.put(v, seen, at.tokens);
    for (std::size_t h = 0; h < heads; ++h) positions[h * tokens + at.tokens] = static_cast<std::uint32_t>(seen);
    lagkv::layer l = after.layer(at.tokens + 1), m = before.layer(there.tokens + 1);
    l.extra = &e;
    ASSERT_EQ(check(p, l).message(), "");
    lagkv::compress(p, l, at, one);
    lagkv::compress(plain, m, there, other);
    ASSERT_EQ(lagkv::last_plan(one).kept, lagkv::last_plan(other).kept) << seen;
    ASSERT_LE(at.tokens, 43U);
  }
}

TEST(key_statistics, are_those_of_all_keys_whatever_was_dropped) {
  const rope r{.base = 1000, .pairs = rope::pairing::neighbours};
  const std::size_t heads = 2, tokens = 400, channels = 24, sink = 3;
  const pair_of_cubes k = rotated_cubes(r, heads, tokens, channels);
  const cube v = make_cube(9, heads, tokens, 4);
  const lagkv::policy p = named("novelty:heads=own,smooth=0,sink=3,recent=5,capacity=60,every=4");
  for (std::vector<std::size_t> pieces : {std::vector<std::size_t>{400}, {100, 200, 100}, std::vector<std::size_t>(400, 1)}) {
    cache c(host(layout::heads_first, dtype::f32, heads, tokens, channels),
            host(layout::heads_first, dtype::f32, heads, tokens, 4));
    std::vector<std::uint32_t> positions(heads * tokens);
    std::vector<double> statistics(heads * lagkv::key_statistics::size(channels));
    lagkv::extras e;
    e.rope = &r, e.positions = {positions.data(), tokens}, e.key_statistics = {statistics.data()};
    lagkv::workspace ws;
    lagkv::cursor at;
    std::size_t seen = 0;
    for (std::size_t n : pieces) {
      for (std::size_t i = 0; i < n; ++i, ++seen) {
        c.keys.put(k.rotated, seen, at.tokens + i), c.values.put(v, seen, at.tokens + i);
        for (std::size_t h = 0; h < heads; ++h) positions[h * tokens + at.tokens + i] = static_cast<std::uint32_t>(seen);
      }
      lagkv::layer l = c.layer(at.tokens + n);
      l.extra = &e;
      ASSERT_EQ(check(p, l).message(), "");
      lagkv::accumulate_key_statistics(p, l, at, n, ws);
      lagkv::compress(p, l, at, ws);
    }
    ASSERT_LE(at.tokens, 63U);
    // The sums, in double, over keys that never were rotated; without the sinks.
    for (std::size_t h = 0; h < heads; ++h) {
      const double* found = lagkv::key_statistics{statistics.data()}.of(h, channels);
      std::vector<double> sum(channels), square(channels);
      for (std::size_t t = sink; t < tokens; ++t) {
        double length = 0;
        for (std::size_t c0 = 0; c0 < channels; ++c0) length += std::pow(static_cast<double>(k.plain.row(h, t)[c0]), 2);
        for (std::size_t c0 = 0; c0 < channels; ++c0) {
          const double u = static_cast<double>(k.plain.row(h, t)[c0]) / std::sqrt(length);
          sum[c0] += u, square[c0] += u * u;
        }
      }
      for (std::size_t c0 = 0; c0 < channels; ++c0) {
        ASSERT_NEAR(found[c0], sum[c0], 1e-4) << c0;
        ASSERT_NEAR(found[channels + c0], square[c0], 1e-4) << c0;
      }
      ASSERT_EQ(found[2 * channels], static_cast<double>(tokens - sink));
    }
    // And they are what rows are compared with: the scores are those against all tokens, dropped ones too.
    lagkv::layer l = c.layer(at.tokens);
    l.extra = &e;
    lagkv::candidates due{.rows = {sink, at.tokens - 5}, .keep = 1};
    due.positions = {e.positions, at.dropped};
    const auto scores = lagkv::score(p, l, due, ws);
    for (std::size_t h = 0; h < heads; ++h) {
      const auto exact = novelty_scores(k.plain, h, {sink, tokens}, {sink, tokens});
      for (std::size_t i = 0; i < due.rows.size(); ++i) {
        const double right = exact[positions[h * tokens + sink + i] - sink];
        ASSERT_NEAR(scores[h * due.rows.size() + i], right, 1e-4 * right) << i;
      }
    }
  }
}

TEST(key_statistics, a_late_token_displaces_an_early_survivor) {
  // Usual tokens, one unusual early and a more unusual one late; the best of both stay, whenever they came.
  const std::size_t tokens = 300, channels = 16;
  cube k(1, tokens, channels);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (float& x : k.x) x = 1 + 0.1F * normal(random);
  for (std::size_t t : {40U, 250U})
    for (std::size_t c = 0; c < channels; c += t == 40 ? 4 : 2) k.row(0, t)[c] = -3;
  cache c(host(layout::heads_first, dtype::f32, 1, tokens, channels), host(layout::heads_first, dtype::f32, 1, tokens, channels));
  const lagkv::policy p = named("novelty:pre_rope=no,smooth=0,sink=1,recent=8,capacity=11,every=1");
  std::vector<double> statistics(lagkv::key_statistics::size(channels));
  std::vector<std::uint32_t> positions(tokens);
  lagkv::extras e;
  e.key_statistics = {statistics.data()}, e.positions = {positions.data(), 0};
  lagkv::workspace ws;
  lagkv::cursor at;
  bool early_stayed = false;
  for (std::size_t seen = 0; seen < tokens; ++seen) {
    c.keys.put(k, seen, at.tokens), c.values.put(k, seen, at.tokens);
    positions[at.tokens] = static_cast<std::uint32_t>(seen);
    lagkv::layer l = c.layer(at.tokens + 1);
    l.extra = &e;
    lagkv::accumulate_key_statistics(p, l, at, 1, ws);
    lagkv::compress(p, l, at, ws);
    const auto has = [&](std::uint32_t t) {
      return std::find(positions.begin(), positions.begin() + 11, t) != positions.begin() + 11;
    };
    if (seen == 200) early_stayed = has(40);
    if (seen == tokens - 1) {
      EXPECT_TRUE(has(250));
      EXPECT_TRUE(has(40)) << "two places are free of the window";
    }
  }
  EXPECT_TRUE(early_stayed);
}

TEST(pre_rope, a_method_may_read_the_embedding_by_itself) {
  const lagkv::method own{.score = lagkv::key_norm_score{}, .needs = {.rope = true}};
  EXPECT_TRUE(lagkv::make_policy(own)->needs.rope);
  EXPECT_TRUE(lagkv::make_policy(own, {.pre_rope = false})->needs.rope);
  EXPECT_FALSE(lagkv::make_policy(lagkv::method_of(lagkv::novelty_score{}), {.pre_rope = false})->needs.rope);
}

TEST(pre_rope, what_is_missing_is_named) {
  const rope odd{.pairs = lagkv::rope::pairing::halves, .dims = 7}, good{.pairs = lagkv::rope::pairing::halves};
  host keys(layout::heads_first, dtype::f16, 1, 9, 16);
  lagkv::extras e;
  lagkv::layer l{keys.view(), {}, 9};
  const std::string none = "rope: the policy reads keys as they were before RoPE; the layer does not say which they carry";
  EXPECT_EQ(check(named("novelty"), l).message(), none);
  l.extra = &e;
  EXPECT_EQ(check(named("novelty"), l).message(), none);
  e.rope = &odd;
  EXPECT_EQ(check(named("novelty"), l).message(), "rope: dims=7: must be even");
  e.rope = &good;
  EXPECT_EQ(check(named("novelty"), l).message(), "");
  EXPECT_EQ(check(named("novelty:capacity=64"), l).message(),
            "rope: the policy reads rows that have been candidates before, so it needs positions to undo it");
  EXPECT_NE(check(named("key_diff:pre_rope=yes"), l).message(), "");
  std::vector<std::uint32_t> positions(9);
  e.positions = {positions.data(), 9};
  EXPECT_EQ(check(named("novelty:capacity=64"), l).message(), "");
  EXPECT_EQ(lagkv::parse("snapkv:pre_rope=yes").message(),
            "snapkv: pre_rope=yes: queries meet keys as they are: not with a method that reads attention");
  EXPECT_EQ(lagkv::parse("fuse:key_diff+h2o,pre_rope=yes").message(),
            "fuse: pre_rope=yes: queries meet keys as they are: not with a method that reads attention");
}

}  // namespace
