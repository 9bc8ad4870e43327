// What scores go through before tokens are picked, against plain definitions in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"

namespace {

using namespace support;

std::vector<float> numbers(unsigned seed, std::size_t n) {
  const cube x = make_cube(seed, 1, n, 1);
  return x.x;
}

/// The triangle, with what is not finite left out.
std::vector<double> triangle(const std::vector<float>& x, std::size_t begin, std::size_t end, std::size_t reach) {
  std::vector<double> out;
  for (std::size_t i = begin; i < end; ++i) {
    double sum = 0, weight = 0;
    for (std::size_t j = begin; j < end; ++j) {
      const std::size_t d = i > j ? i - j : j - i;
      if (d > reach || !std::isfinite(x[j])) continue;
      sum += static_cast<double>(reach + 1 - d) * static_cast<double>(x[j]), weight += static_cast<double>(reach + 1 - d);
    }
    out.push_back(std::isfinite(x[i]) ? sum / weight : static_cast<double>(x[i]));
  }
  return out;
}

TEST(smooth, is_a_triangle_among_the_candidates_or_in_the_partition) {
  lagkv::workspace ws;
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t reach : {0U, 1U, 2U, 8U, 50U, 1000U})
    for (std::size_t n : {1U, 2U, 7U, 30U, 60U})
      for (std::size_t partition : {std::size_t{0}, n})
        for (bool broken : {false, true}) {
          const std::size_t heads = 3, ranges = partition != 0 ? 2 : 1, all = ranges * n;
          std::vector<float> scores = numbers(11, heads * all);
          if (broken) scores[all / 2] = nan, scores[all - 1] = -std::numeric_limits<float>::infinity();
          const std::vector<float> before = scores;
          const lagkv::candidates due{.rows = {4, 4 + all}, .keep = 1, .partition = partition};
          lagkv::smooth{reach}(scores, heads, due, ws);
          for (std::size_t at = 0; at < heads * all; at += n) {
            const std::vector<double> exact = triangle(before, at, at + n, reach);
            for (std::size_t i = 0; i < n; ++i) {
              if (std::isfinite(exact[i]))
                ASSERT_NEAR(scores[at + i], exact[i], 1e-5) << reach << " " << n << " " << at + i;
              else
                ASSERT_TRUE(same_bits(scores[at + i], before[at + i]));
            }
          }
        }
}

// Memory goes by the number of scores, however long the reach.
TEST(smooth, of_any_reach_takes_little_memory) {
  for (const std::size_t reach : {std::size_t{0x7fffffff}, ~std::size_t{0} / 4}) {
    std::vector<float> scores{1, 5, 2, 8};
    lagkv::workspace ws;
    lagkv::smooth{reach}(scores, 1, {.rows = {0, 4}, .keep = 1}, ws);
    for (const float s : scores) EXPECT_NEAR(s, 4.0, 1e-6) << "nearly the same weight for all";
    EXPECT_GT(ws.peak(), 0U);
    EXPECT_LE(ws.peak(), 1000U);
  }
}

// A huge score has its part in those within reach and leaves no trace in others.
TEST(smooth, a_huge_score_leaves_nothing_behind) {
  for (const std::size_t at : {0U, 3U, 50U, 99U})
    for (const std::size_t reach : {1U, 4U, 16U}) {
      std::vector<float> scores = numbers(12, 100), plain = scores;
      scores[at] = 3e38F;
      lagkv::workspace ws;
      const lagkv::candidates due{.rows = {0, 100}, .keep = 1};
      lagkv::smooth{reach}(scores, 1, due, ws);
      lagkv::smooth{reach}(plain, 1, due, ws);
      for (std::size_t i = 0; i < 100; ++i)
        if ((i > at ? i - at : at - i) > reach) {
          ASSERT_TRUE(same_bits(scores[i], plain[i])) << at << ", reach " << reach << ", score " << i;
        }
    }
}

// Infinities are numbers above and below all others; a NaN is below them all. In whatever order they come.
TEST(rank, of_infinities_is_that_of_numbers) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();
  const std::vector<float> ascending{std::numeric_limits<float>::quiet_NaN(), -infinity, -most, -1, 0, 1e-40F, 1, most, infinity};
  const std::size_t n = ascending.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    std::vector<float> scores;
    for (const std::size_t i : order) scores.push_back(ascending[i]);
    lagkv::workspace ws;
    lagkv::rank_in_partition{n}(scores, 1, {.rows = {0, n}, .keep = 1}, ws);
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_FLOAT_EQ(scores[i], static_cast<float>(order[i]) / static_cast<float>(n)) << "seed " << seed << ", score " << i;
  }
}

// Of few scores and of many, spread widely or alike but for a few bits, all the same, with ties, zeros of both signs and NaN.
TEST(rank, is_the_place_in_a_stable_sort) {
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937 draw(5);
  const auto below = [](float a, float b) { return std::isnan(b) ? false : std::isnan(a) || a < b; };
  const std::vector<std::function<float()>> kinds{
      [&] { return std::ldexp(static_cast<float>(draw() % 2001) - 1000.0F, static_cast<int>(draw() % 40) - 20); },
      [&] { return 1.0F + std::ldexp(static_cast<float>(draw() % 512), -23); },  // the lowest digit alone
      [&] { return std::ldexp(1.0F, static_cast<int>(draw() % 200) - 100); },    // the highest alone
      [&] { return 3.0F; },
      [&] { return draw() % 2 != 0 ? 0.0F : -0.0F; },
      [&] { return draw() % 3 == 0 ? nan : static_cast<float>(draw() % 7); }};
  for (const std::size_t n : {1U, 2U, 3U, 255U, 2047U, 2048U, 2049U, 5000U})
    for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
      std::vector<float> scores(n);
      for (float& v : scores) v = kinds[kind]();
      std::vector<std::size_t> order(n);
      for (std::size_t i = 0; i < n; ++i) order[i] = n - 1 - i;  // of equal ones the earlier comes later
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return below(scores[a], scores[b]); });
      lagkv::workspace ws;
      std::vector<float> ranks = scores;
      lagkv::rank_in_partition{n}(ranks, 1, {.rows = {0, n}, .keep = 1}, ws);
      for (std::size_t i = 0; i < n; ++i)
        ASSERT_EQ(ranks[order[i]], static_cast<float>(i) / static_cast<float>(n)) << n << " scores of kind " << kind;
    }
}

// One bad score, whatever it goes through: the order of the others is as if it were not there, and it comes last.
TEST(transforms, a_bad_score_leaves_those_of_other_tokens_alone) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::size_t bad : {0U, 7U, 31U}) {
    std::vector<float> scores = numbers(13, 2 * 32);
    scores[bad] = nan;
    std::vector<float> shared = scores, ranks = scores;
    lagkv::workspace ws;
    const lagkv::candidates due{.rows = {0, 32}, .keep = 1};
    lagkv::mean_of_heads{}(shared, 2, due, ws);
    for (std::size_t i = 0; i < 32; ++i) {
      if (i == bad) {
        EXPECT_TRUE(std::isnan(shared[i])) << "bad in one head: it goes first in all";
      } else {
        EXPECT_NEAR(shared[i], (scores[i] + scores[32 + i]) / 2, 1e-6);
      }
    }
    lagkv::detail::rank_each(ranks, 2, due, ws);
    EXPECT_TRUE(std::isnan(ranks[bad])) << "bad to one scorer of a fusion: it goes first";
    for (std::size_t i = 0; i < 32; ++i)
      for (std::size_t j = 0; j < 32; ++j)
        if (i != bad && j != bad && scores[i] > scores[j]) {
          EXPECT_GT(ranks[i], ranks[j]);
        }
    std::vector<float> within(scores.begin(), scores.begin() + 32);
    lagkv::rank_in_partition{32}(within, 1, due, ws);
    EXPECT_EQ(within[bad], 0.0F);
  }
}

/// The mean over `width` neighbours, those that are not finite left out; beyond the ends are zeros, or nothing.
std::vector<double> box(const std::vector<float>& x, std::size_t begin, std::size_t end, const lagkv::pool& p) {
  std::vector<double> out;
  for (std::size_t i = begin; i < end; ++i) {
    double sum = 0, all = 0, good = 0;
    for (std::size_t j = begin; j < end; ++j) {
      if ((i > j ? i - j : j - i) > p.width / 2) continue;
      ++all;
      if (std::isfinite(x[j])) sum += static_cast<double>(x[j]), ++good;
    }
    const double divided_by = p.zeros_beyond ? static_cast<double>(p.width) : all;
    out.push_back(std::isfinite(x[i]) ? sum * all / good / divided_by : static_cast<double>(x[i]));
  }
  return out;
}

TEST(pool, is_a_box_among_the_candidates_or_in_the_partition) {
  lagkv::workspace ws;
  for (std::size_t width : {1U, 3U, 5U, 17U, 101U, 4097U})
    for (std::size_t n : {1U, 2U, 7U, 30U, 60U})
      for (unsigned form = 0; form < 4; ++form) {
        const bool broken = form % 2 == 1;
        const lagkv::pool pool{width, form / 2 == 1};
        std::vector<float> scores = numbers(17, 4 * n);
        if (broken) scores[n / 2] = std::numeric_limits<float>::quiet_NaN(), scores[2 * n - 1] = lagkv::detail::infinity();
        const std::vector<float> before = scores;
        pool(scores, 2, {.rows = {4, 4 + 2 * n}, .keep = 1, .partition = n}, ws);
        for (std::size_t at = 0; at < 4 * n; at += n) {
          const std::vector<double> exact = box(before, at, at + n, pool);
          for (std::size_t i = 0; i < n; ++i) {
            if (std::isfinite(exact[i]))
              ASSERT_NEAR(scores[at + i], exact[i], 1e-5) << width << " " << n << " " << at + i;
            else
              ASSERT_TRUE(same_bits(scores[at + i], before[at + i]));
          }
        }
      }
}

// A million scores, each averaged over all: in a time that goes by their number alone, and little memory.
TEST(pool, of_any_width_costs_the_same) {
  std::vector<float> scores(1000000, 2.0F);
  for (const std::size_t width : {std::size_t{1000001}, std::size_t{0x7fffffff}, ~std::size_t{0}}) {
    std::vector<float> pooled = scores;
    lagkv::workspace ws;
    lagkv::pool{width, true}(pooled, 1, {.rows = {0, scores.size()}, .keep = 1}, ws);
    EXPECT_LE(ws.peak(), 64 * scores.size() + 1000);
    EXPECT_FLOAT_EQ(pooled[500000], static_cast<float>(2e6 / static_cast<double>(width)));
    lagkv::pool{width}(pooled = scores, 1, {.rows = {0, scores.size()}, .keep = 1}, ws);
    EXPECT_EQ(pooled, scores);
  }
}

// What stays goes by differences of scores: an average of scores that are all the same is that score, at the ends too.
TEST(transforms, leave_scores_that_are_all_the_same) {
  constexpr std::size_t n = 40;
  lagkv::workspace ws;
  const auto averages = {lagkv::transform(lagkv::pool{5}), lagkv::transform(lagkv::pool{101}), lagkv::transform(lagkv::smooth{3}),
                         lagkv::transform(lagkv::smooth{100}), lagkv::transform(lagkv::mean_of_heads{})};
  for (const float same : {-8.0F, 0.0F, 3.0F})
    for (const std::size_t partition : {0U, 8U})
      for (const lagkv::transform& average : averages) {
        std::vector<float> scores(2 * n, same);
        average(scores, 2, {.rows = {4, 4 + n}, .keep = 1, .partition = partition}, ws);
        for (const float s : scores) EXPECT_FLOAT_EQ(s, same);
      }
}

// The same of the rows that stay: scores below 0, as most methods have.
TEST(transforms, of_scores_below_zero_favour_no_end_of_a_partition) {
  constexpr std::size_t n = 96, lag = 32;
  cube k(1, n, 4), v(1, n, 4);
  for (std::size_t t = 0; t < n; ++t) k.row(0, t)[0] = t % lag >= 12 && t % lag < 20 ? 1.0F : 2.0F;  // short keys stay
  cache c(layout::heads_first, lagkv::dtype::f32, k, v);
  for (const char* text : {"key_norm:sink=0,lag=32,keep=0.25,pool=3", "key_norm:sink=0,lag=32,keep=0.25,smooth=1"}) {
    lagkv::workspace ws;
    const lagkv::plan& plan = plan_eviction(named(text), c.layer(n), {}, ws);
    ASSERT_EQ(plan.of(0).size(), 16U) << text;
    for (const std::uint32_t row : plan.of(0)) EXPECT_TRUE(row % lag >= 12 && row % lag < 20) << text << ": " << row;
  }
}

TEST(smooth, of_heads_that_agree_is_that_of_each) {
  lagkv::workspace ws;
  std::vector<float> one = numbers(12, 3 * 40), other = one;
  const lagkv::candidates due{.rows = {0, 40}, .keep = 1};
  lagkv::mean_of_heads{}(one, 3, due, ws);
  other = one;
  lagkv::smooth{5}(one, 3, due, ws);
  lagkv::smooth{5, true}(other, 3, due, ws);
  EXPECT_EQ(one, other);
}

TEST(mean_of_heads, is_the_mean_and_the_same_for_all) {
  lagkv::workspace ws;
  std::vector<float> scores = numbers(13, 4 * 21);
  const std::vector<float> before = scores;
  lagkv::mean_of_heads{}(scores, 4, {.rows = {0, 21}, .keep = 1}, ws);
  for (std::size_t i = 0; i < 21; ++i) {
    double sum = 0;
    for (std::size_t h = 0; h < 4; ++h) sum += static_cast<double>(before[h * 21 + i]);
    for (std::size_t h = 0; h < 4; ++h) {
      ASSERT_NEAR(scores[h * 21 + i], sum / 4, 1e-5);
      ASSERT_EQ(scores[h * 21 + i], scores[i]);
    }
  }
}

// ---- as keys of a policy --------------------------------------------------------------------------------------------

std::vector<float> scores_of(const std::string& text, const cube& k) {
  cache c(layout::heads_first, lagkv::dtype::f32, k, k);
  lagkv::workspace ws;
  const auto s = lagkv::score(named(text), c.layer(k.tokens), {.rows = {0, k.tokens}, .keep = 1}, ws);
  return {s.begin(), s.end()};
}

TEST(policy_keys, smooth_and_shared_heads_are_the_transforms) {
  const cube k = make_cube(14, 3, 50, 8);
  const lagkv::candidates due{.rows = {0, 50}, .keep = 1};
  lagkv::workspace ws;
  std::vector<float> own = scores_of("key_diff", k), smoothed = own, agreed = own;
  lagkv::smooth{3}(smoothed, 3, due, ws);
  lagkv::mean_of_heads{}(agreed, 3, due, ws);
  EXPECT_EQ(scores_of("key_diff:smooth=3", k), smoothed);
  EXPECT_EQ(scores_of("key_diff:heads=shared", k), agreed);
  lagkv::smooth{3}(agreed, 3, due, ws);
  EXPECT_EQ(scores_of("key_diff:heads=shared,smooth=3", k), agreed);
  EXPECT_EQ(scores_of("key_diff:heads=own,smooth=0", k), own);
}

TEST(policy_keys, a_method_has_its_own_where_none_are_given) {
  const cube k = make_cube(15, 3, 50, 8);
  EXPECT_EQ(scores_of("novelty:pre_rope=no", k), scores_of("novelty:pre_rope=no,heads=shared,smooth=8", k));
  EXPECT_NE(scores_of("novelty:pre_rope=no", k), scores_of("novelty:pre_rope=no,heads=own", k));
  EXPECT_NE(scores_of("novelty:pre_rope=no", k), scores_of("novelty:pre_rope=no,smooth=0", k));
}

TEST(policy_keys, a_method_with_too_many_transforms_is_refused) {
  lagkv::method m = lagkv::method_of(lagkv::key_norm_score{});
  const auto twice = [](std::span<float> scores, std::size_t, const lagkv::candidates&, lagkv::workspace&) {
    for (float& s : scores) s *= 2;
  };
  ASSERT_TRUE(m.adjust.then(twice) && m.adjust.then(twice));
  const lagkv::policy_options all{.pool = 3, .smooth = 2, .heads = lagkv::deciding_heads::shared};
  const auto made = lagkv::make_policy(m, all);
  ASSERT_TRUE(made) << made.message();
  EXPECT_EQ(made->adjust.size(), 5U);
  ASSERT_TRUE(m.adjust.then(twice));
  const std::string refused = "transforms: the method has 3 of its own: with pool, heads and smooth there must be at most 5";
  EXPECT_EQ(lagkv::make_policy(m, all).message(), refused);
  const lagkv::method two[] = {lagkv::method_of(lagkv::key_norm_score{}), m};
  EXPECT_EQ(lagkv::make_fusion(two, all).message(), refused);
  EXPECT_TRUE(lagkv::make_policy(m, {.pool = 3, .smooth = 2}));
}

TEST(policy_keys, each_scorer_of_a_fusion_is_smoothed_before_it_is_ranked) {
  const cube k = make_cube(16, 1, 40, 8);
  const lagkv::candidates due{.rows = {0, 40}, .keep = 1};
  lagkv::workspace ws;
  std::vector<float> sum(40);
  for (const char* text : {"key_diff:smooth=2", "key_norm:smooth=2"}) {
    std::vector<float> one = scores_of(text, k);
    lagkv::detail::rank_each(one, 1, due, ws);
    for (std::size_t i = 0; i < 40; ++i) sum[i] += one[i];
  }
  EXPECT_EQ(scores_of("fuse:key_diff+key_norm,smooth=2", k), sum);
}

}  // namespace
