// What turns scores into plans, and budgets into numbers: against the rules in double, and small tables by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include <lagkv/lagkv.hpp>

#include "support/methods_oracle.hpp"
#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::token_range;

std::vector<std::vector<double>> random_scores(std::size_t heads, std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<double>> s(heads, std::vector<double>(n));
  for (auto& head : s)
    for (double& x : head) x = static_cast<double>(random() % 64) / 64;  // many ties
  return s;
}

std::vector<float> flat(const std::vector<std::vector<double>>& s) {
  std::vector<float> out;
  for (const auto& head : s)
    for (double x : head) out.push_back(static_cast<float>(x));
  return out;
}

/// The rows that a selector keeps of each head, counted from the first candidate.
std::vector<std::vector<std::size_t>> kept_by(const lagkv::selector& select, const std::vector<std::vector<double>>& s,
                                              std::size_t keep, std::size_t partition = 0) {
  const std::size_t n = s[0].size();
  lagkv::candidates d{.rows = {7, 7 + n}, .keep = keep};
  if (partition != 0) d.partition = partition, d.keep_each = keep, d.keep = n / partition * keep;
  lagkv::plan p;
  p.reset(d.rows, n + 20, s.size(), d.keep);
  lagkv::workspace ws;
  select(flat(s), s.size(), d, p, ws);
  std::vector<std::vector<std::size_t>> out(s.size());
  for (std::size_t h = 0; h < s.size(); ++h)
    for (std::uint32_t row : p.of(h)) out[h].push_back(row - 7);
  return out;
}

std::vector<std::vector<double>> method_of(const std::vector<std::vector<double>>& s, std::size_t begin, std::size_t n) {
  std::vector<std::vector<double>> out;
  for (const auto& head : s)
    out.emplace_back(head.begin() + static_cast<std::ptrdiff_t>(begin), head.begin() + static_cast<std::ptrdiff_t>(begin + n));
  return out;
}

TEST(chunks, are_those_of_the_rule) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const std::size_t n = 1 + seed * 3, length = 1 + seed % 9, keep = seed * 2 % (n + 1);
    const auto s = random_scores(1 + seed % 3, n, seed);
    const auto rows = chunk_rows(s, length, keep);
    for (const auto& head : kept_by(lagkv::chunks{length}, s, keep)) ASSERT_EQ(head, rows) << n << " rows, chunks of " << length;
  }
}

// A row that is NaN goes before all others, and those of its chunk are judged as if it were not there.
TEST(chunks, a_bad_row_does_not_take_its_chunk_with_it) {
  std::vector<std::vector<double>> s(2, std::vector<double>(40, 1.0));
  for (std::size_t i = 10; i < 20; ++i) s[0][i] = 3;
  s[0][14] = std::nan("");
  for (const auto& head : kept_by(lagkv::chunks{10}, s, 9))
    EXPECT_EQ(head, (std::vector<std::size_t>{10, 11, 12, 13, 15, 16, 17, 18, 19}));
  for (const auto& head : kept_by(lagkv::chunks{10}, s, 39)) {
    EXPECT_EQ(head.size(), 39U);
    EXPECT_FALSE(std::binary_search(head.begin(), head.end(), 14U)) << "it goes first";
  }
}

TEST(chunks, infinities_are_the_largest_numbers) {
  for (const double large : {std::numeric_limits<double>::infinity(), static_cast<double>(std::numeric_limits<float>::max())}) {
    std::vector<std::vector<double>> s(3, std::vector<double>(40, 1.0));
    for (auto& head : s)
      for (std::size_t i = 0; i < 10; ++i) head[10 + i] = large, head[30 + i] = -large;
    for (const auto& head : kept_by(lagkv::chunks{10}, s, 10)) EXPECT_EQ(head.front(), 10U);
    for (const auto& head : kept_by(lagkv::chunks{10}, s, 30)) EXPECT_EQ(head.back(), 29U);
    s[0][5] = large, s[2][5] = -large;
    for (const auto& head : kept_by(lagkv::chunks{10}, s, 39))
      EXPECT_TRUE(std::binary_search(head.begin(), head.end(), 5U)) << "what is the largest to one head and the least to another";
    s[1][15] = std::nan("");
    for (const auto& head : kept_by(lagkv::chunks{10}, s, 39)) EXPECT_FALSE(std::binary_search(head.begin(), head.end(), 15U));
  }
}

// Rows that are protected in one head stay in all, beyond the budget; a chunk of which no row is finite comes last.
TEST(chunks, more_rows_are_protected_than_stay) {
  std::vector<std::uint32_t> positions(2 * 40);
  for (std::size_t i = 0; i < 40; ++i)
    positions[i] = static_cast<std::uint32_t>(i), positions[40 + i] = static_cast<std::uint32_t>(i);
  std::swap(positions[40 + 7], positions[40 + 20]);  // head 1 holds position 7 in row 20
  const std::uint32_t stay[] = {7, 9};
  lagkv::candidates d{.rows = {7, 31}, .keep = 2, .positions = {{positions.data(), 40}}, .protect = stay, .heads = 2};
  std::vector<float> scores(48, 1);
  for (std::size_t i = 4; i < 8; ++i) scores[i] = std::nanf("");
  const auto kept = [&](std::size_t keep) {
    d.keep = keep;
    lagkv::plan p;
    p.reset(d.rows, 40, 2, keep);
    lagkv::workspace ws;
    lagkv::chunks{4}(scores, 2, d, p, ws);
    EXPECT_TRUE(std::equal(p.of(0).begin(), p.of(0).end(), p.of(1).begin(), p.of(1).end()));
    return std::vector<std::uint32_t>(p.of(0).begin(), p.of(0).end());
  };
  EXPECT_EQ(kept(2), (std::vector<std::uint32_t>{7, 9, 20}));
  EXPECT_EQ(kept(1), (std::vector<std::uint32_t>{7, 9, 20}));
  const std::vector<std::uint32_t> most = kept(20);
  for (const std::uint32_t row : {11U, 12U, 13U, 14U}) EXPECT_FALSE(std::binary_search(most.begin(), most.end(), row)) << row;
  EXPECT_EQ(most.size(), 20U);
}

TEST(chunks, of_each_partition) {
  const auto s = random_scores(2, 60, 99);
  std::vector<std::size_t> rows;
  for (std::size_t at = 0; at < 60; at += 20)
    for (std::size_t row : chunk_rows(method_of(s, at, 20), 6, 9)) rows.push_back(at + row);
  for (const auto& head : kept_by(lagkv::chunks{6}, s, 9, 20)) EXPECT_EQ(head, rows);
}

// With NaN, infinities, ties and protected rows: one chunk of all rows keeps what the best rows are.
TEST(chunks, of_all_rows_are_the_best_rows) {
  std::mt19937 random(5);
  for (int run = 0; run < 300; ++run) {
    const std::size_t n = 1 + random() % 90, keep = random() % (n + 1);
    std::vector<float> scores(n);
    for (float& x : scores) {
      const auto kind = random() % 20;
      x = kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -INFINITY : kind == 3 ? -0.0F : static_cast<float>(random() % 9);
    }
    std::vector<std::uint32_t> stay;
    for (std::uint32_t row = 7; row < 7 + n && run % 2 == 0; ++row)
      if (random() % 10 == 0) stay.push_back(row);
    const lagkv::candidates d{.rows = {7, 7 + n}, .keep = std::max(keep, stay.size()), .protect = stay};
    const float most = std::numeric_limits<float>::max();  // as chunks count infinities; protected rows are above them
    std::vector<float> protected_first = scores;
    for (float& x : protected_first) x = std::isnan(x) ? x : std::clamp(x, -most, most);
    for (const std::uint32_t row : stay) protected_first[row - 7] = INFINITY;
    lagkv::workspace ws;
    const auto kept = [&](const lagkv::selector& select, const std::vector<float>& by) {
      lagkv::plan p;
      p.reset(d.rows, n + 20, 1, d.keep);
      select(by, 1, d, p, ws);
      return std::vector<std::uint32_t>(p.of(0).begin(), p.of(0).end());
    };
    ASSERT_EQ(kept(lagkv::chunks{n + random() % 3}, scores), kept(lagkv::top_k{}, protected_first)) << "run " << run;
  }
}

// Of the last chunk the best rows are found in a time that grows as that of the best rows of all: not with the square.
TEST(chunks, that_are_long_take_no_more_time_than_short_ones) {
  constexpr std::size_t n = 100'000;
  const std::vector<float> scores = flat(random_scores(1, n, 7));
  const lagkv::candidates d{.rows = {0, n}, .keep = n / 2};
  const auto seconds = [&](std::size_t length) {
    lagkv::plan p;
    p.reset(d.rows, n, 1, d.keep);
    lagkv::workspace ws;
    const auto begin = std::chrono::steady_clock::now();
    lagkv::chunks{length}(scores, 1, d, p, ws);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  EXPECT_LT(seconds(1'000'000), 50 * seconds(20) + 0.5);
}

TEST(adaptive, is_that_of_the_rule) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const std::size_t n = 2 + seed * 2, keep = seed % (n + 1), heads = 1 + seed % 4;
    const double safeguard = static_cast<double>(seed % 6) / 5;
    const auto s = random_scores(heads, n, seed);
    const auto mask = adakv_mask(s, keep, safeguard);
    const auto found = kept_by(lagkv::adaptive{safeguard}, s, keep);
    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<std::size_t> rows;
      for (std::size_t i = 0; i < n; ++i)
        if (mask[h][i]) rows.push_back(i);
      ASSERT_EQ(found[h], rows) << seed << ", head " << h;
    }
  }
}

TEST(adaptive, without_a_safeguard_a_head_may_keep_nothing) {
  std::vector<std::vector<double>> s(2, std::vector<double>(12, 1.0));
  for (std::size_t i = 0; i < 12; ++i) s[1][i] = 0.5;
  const auto found = kept_by(lagkv::adaptive{0}, s, 6);
  EXPECT_EQ(found[0].size(), 12U);
  EXPECT_EQ(found[1].size(), 0U);
  EXPECT_EQ(kept_by(lagkv::adaptive{0.2}, s, 6)[1].size(), 1U);
}

// The budget is the most that stays; a head's safe rows stay whatever they score, and what is no number never reaches a
// threshold.
TEST(adaptive, a_threshold_takes_what_the_budget_has_room_for) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const std::size_t n = 2 + seed * 2, keep = seed % (n + 1), heads = 1 + seed % 4;
    const double safeguard = static_cast<double>(seed % 6) / 5;
    auto s = random_scores(heads, n, seed);
    s[0][0] = std::nan("");
    const auto threshold = static_cast<float>(s[heads - 1][n / 2]);
    const auto all = kept_by(lagkv::adaptive{safeguard}, s, keep),
               found = kept_by(lagkv::adaptive{safeguard, threshold}, s, keep);
    const auto safe = static_cast<std::size_t>(safeguard * static_cast<double>(keep));
    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<std::size_t> order(n), rows;
      std::iota(order.begin(), order.end(), 0U);
      const auto rank = [&](std::size_t i) { return std::isnan(s[h][i]) ? -1e300 : s[h][i]; };
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rank(a) > rank(b); });
      order.resize(safe);
      for (const std::size_t row : all[h])
        if (s[h][row] >= static_cast<double>(threshold) || std::find(order.begin(), order.end(), row) != order.end())
          rows.push_back(row);
      ASSERT_EQ(found[h], rows) << seed << ", head " << h;
    }
  }
  EXPECT_TRUE(kept_by(lagkv::adaptive{0, 9.0F}, {{1, 2, 3, 4}}, 3)[0].empty()) << "nothing reaches it";
}

// Where the budget has room, too: however the tokens come, what lies below the threshold goes.
// Hosts copy plan.kept as it is.
TEST(adaptive, a_plan_holds_its_rows_and_nothing_behind_them) {
  const cube k = make_cube(76, 3, 120, 8), v = make_cube(77, 3, 120, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  for (const char* text :
       {"key_norm:keep=0.5,select=adaptive,threshold=-2.5,safeguard=0", "key_norm:keep=0.5,select=adaptive",
        "key_norm:keep=0.5,lag=16,select=adaptive,threshold=-2.5", "key_norm:keep=0.5,select=chunks", "key_norm"}) {
    lagkv::workspace ws;
    const lagkv::plan& plan = lagkv::plan_eviction(named(text), c.layer(120), {}, ws);
    EXPECT_FALSE(plan.empty()) << text;
    EXPECT_EQ(plan.kept.size(), plan.first.back()) << text;
    for (const std::uint32_t row : plan.kept) EXPECT_TRUE(row >= plan.candidates.begin && row < plan.candidates.end) << text;
  }
}

TEST(adaptive, a_threshold_counts_however_the_tokens_come) {
  constexpr std::size_t n = 1024;
  for (const char* budget : {"keep=0.9", "keep=1", "keep=0.3", "lag=32,keep=1", "lag=32,keep=0.9"})
    for (const std::size_t piece : {1UL, 7UL, 512UL, n})
      for (const float threshold : {-1e4F, 0.0F}) {  // key_norm: all scores lie between
        lagkv::policy p = named("key_norm:sink=4,recent=32,select=adaptive,safeguard=0,threshold=0," + std::string(budget));
        p.select = lagkv::adaptive{0, threshold};
        cache c(layout::heads_first, lagkv::dtype::f32, make_cube(5, 1, n, 8), make_cube(6, 1, n, 8));
        lagkv::policy without = p;
        without.select = lagkv::adaptive{0}, without.budget.even_with_room = false;
        cache d = c;
        lagkv::workspace ws;
        lagkv::cursor at, of_budget;
        for (std::size_t seen = 0; seen < n; seen += piece) {
          const std::size_t more = std::min(piece, n - seen);
          ASSERT_TRUE(check(p, c.layer(at.tokens + more), true));
          lagkv::compress(p, c.layer(at.tokens + more), at, ws);
          lagkv::compress(without, d.layer(of_budget.tokens + more), of_budget, ws);
        }
        SCOPED_TRACE(std::string(budget) + ", pieces of " + std::to_string(piece));
        if (threshold < 0)
          EXPECT_EQ(at.tokens, of_budget.tokens) << "nothing is below it";
        else
          EXPECT_LT(at.tokens, 4U + 2 * 32 + 1) << "all are: sinks, window and what is not due yet";
      }
}

TEST(adaptive, infinities_of_a_head_do_not_take_another_ones_safe_rows) {
  std::vector<std::vector<double>> s(2, std::vector<double>(40, std::numeric_limits<double>::infinity()));
  for (std::size_t i = 0; i < 40; ++i) s[1][i] = static_cast<double>(i);
  const auto found = kept_by(lagkv::adaptive{0.5}, s, 16);
  EXPECT_EQ(found[0].size(), 24U);
  EXPECT_EQ(found[1], (std::vector<std::size_t>{32, 33, 34, 35, 36, 37, 38, 39}));
}

// Without sinks and window all rows are candidates.
TEST(adaptive, a_head_of_which_nothing_else_is_left_keeps_its_best_row) {
  for (const char* text : {"key_norm:sink=0,recent=0,capacity=8,select=adaptive,safeguard=0",
                           "key_norm:sink=0,recent=0,keep=0.5,select=adaptive,safeguard=0,threshold=100"}) {
    const lagkv::policy p = named(text);
    cube k = make_cube(5, 3, 60, 8);
    for (std::size_t i = 0; i < 60 * 8; ++i) k.x[i] *= 1e-3F, k.x[60 * 8 + i] *= 1e3F;  // head 0 is all good, head 1 all bad
    cache c(layout::heads_first, lagkv::dtype::f32, k, k);
    lagkv::workspace ws;
    const lagkv::plan plan = plan_eviction(p, c.layer(60), {}, ws);
    ASSERT_EQ(plan.heads(), 3U);
    const auto squares = [&](std::size_t h, std::size_t row) {
      double sum = 0;
      for (std::size_t i = 0; i < 8; ++i) sum += static_cast<double>(k.row(h, row)[i]) * static_cast<double>(k.row(h, row)[i]);
      return sum;
    };
    for (std::size_t h = 0; h < 3; ++h) ASSERT_GE(plan.tokens_after(h), 1U) << text << ", head " << h;
    ASSERT_EQ(plan.of(1).size(), 1U) << text;
    for (std::size_t row = 0; row < 60; ++row) EXPECT_LE(squares(1, plan.of(1)[0]), squares(1, row)) << text;
  }
}

/// by_head's rule: what budgets of `even` rows, `beside` of them no candidates, leave a head of n candidates.
std::size_t rows_by_head(double multiple, std::size_t keep, std::size_t n, std::size_t beside) {
  const double even = static_cast<double>(keep + beside), all = static_cast<double>(n + beside);
  if (multiple * (even + 1) >= all) return n;
  return static_cast<std::size_t>(std::max(0.0, std::round(multiple * even) - static_cast<double>(beside)));
}

TEST(by_head, each_head_keeps_the_best_rows_of_its_own_budget) {
  std::mt19937 draw(5);
  for (unsigned seed = 0; seed < 200; ++seed) {
    const std::size_t part = 1 + draw() % 40, parts = 1 + draw() % 3, n = part * parts, keep = draw() % (part + 1);
    const std::size_t heads = 1 + seed % 4, beside = draw() % 2 * 20;
    const bool partitioned = draw() % 2 == 0;
    const auto s = random_scores(heads, n, seed);
    std::vector<float> budgets;
    for (std::size_t h = 0; h < heads; ++h) budgets.push_back(static_cast<float>(draw() % 17) / 4);
    lagkv::candidates c{.rows = {7, 7 + n}, .keep = keep, .head_budgets = budgets};
    if (partitioned) c.partition = part, c.keep_each = keep, c.keep = parts * keep;
    lagkv::plan p;
    p.reset(c.rows, n + beside, heads, c.keep);
    lagkv::workspace ws;
    lagkv::by_head{}(flat(s), heads, c, p, ws);
    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<std::size_t> expected;
      for (std::size_t at = 0; at < n; at += c.group()) {
        std::vector<std::size_t> rows(c.group());
        std::iota(rows.begin(), rows.end(), at);
        std::stable_sort(rows.begin(), rows.end(), [&](std::size_t a, std::size_t b) { return s[h][a] > s[h][b]; });
        rows.resize(rows_by_head(static_cast<double>(budgets[h]), keep, c.group(), partitioned ? 0 : beside));
        std::sort(rows.begin(), rows.end());
        expected.insert(expected.end(), rows.begin(), rows.end());
      }
      std::vector<std::size_t> found;
      for (const std::uint32_t row : p.of(h)) found.push_back(row - 7);
      if (expected.empty() && beside == 0) {
        ASSERT_EQ(found.size(), 1U) << "one row always stays";
        continue;
      }
      ASSERT_EQ(found, expected) << "seed " << seed << ", head " << h << ", budget " << budgets[h];
    }
    ASSERT_EQ(p.kept.size(), p.first[heads]) << "nothing behind its rows";
  }
}

TEST(by_head, budgets_of_one_are_no_budgets_of_heads) {
  const cube k = make_cube(71, 3, 300, 16), v = make_cube(72, 3, 300, 16);
  for (const char* budget : {"keep=0.3", "capacity=90", "keep=0.5,lag=32"}) {
    support::cache own(layout::heads_first, dtype::f32, k, v);
    const std::string text = std::string("key_diff:sink=3,recent=9,") + budget;
    const std::vector<float> budgets(3, 1);
    lagkv::extras e;
    e.head_budgets = budgets;
    lagkv::layer l = own.layer(300);
    l.extra = &e;
    lagkv::workspace ws;
    const lagkv::plan expected = plan_eviction(named(text), l, {}, ws);
    const lagkv::plan& found = plan_eviction(named(text + ",select=by_head"), l, {}, ws);
    EXPECT_EQ(found.kept, expected.kept) << budget;
    EXPECT_EQ(found.first, expected.first) << budget;
  }
}

// Heads that keep all, and heads that keep sinks and window only, beside protected rows.
TEST(by_head, all_or_nothing) {
  const cube k = make_cube(73, 2, 300, 16);
  support::cache own(layout::heads_first, dtype::f32, k, k);
  const std::vector<float> budgets{4, 0};
  const std::vector<std::uint32_t> stay{100, 200};
  lagkv::extras e;
  e.head_budgets = budgets;
  lagkv::layer l = own.layer(300);
  l.extra = &e;
  lagkv::workspace ws;
  for (const char* budget : {"keep=0.25", "capacity=75", "keep=0.01"}) {
    const lagkv::policy p = named(std::string("key_diff:sink=4,recent=10,select=by_head,") + budget);
    const bool tiny = std::string(budget) == "keep=0.01";
    e.protect = {};
    const lagkv::plan plain = plan_eviction(p, l, {}, ws);
    EXPECT_EQ(plain.tokens_after(0), tiny ? 56U : 300U) << budget;
    EXPECT_EQ(plain.tokens_after(1), 14U) << budget;
    if (std::string(budget) != "keep=0.25") continue;
    e.protect = stay;
    EXPECT_EQ(plan_eviction(p, l, {}, ws).tokens_after(1), 16U) << budget;
  }
}

// Rows that must stay are no reason for a larger budget of the other heads.
TEST(by_head, protected_rows_count_in_their_head_alone) {
  const cube k = make_cube(75, 2, 1000, 8);
  support::cache own(layout::heads_first, dtype::f32, k, k);
  const std::vector<float> budgets{2, 1};
  std::vector<std::uint32_t> stay(200);
  std::iota(stay.begin(), stay.end(), 300U);
  lagkv::extras e;
  e.head_budgets = budgets, e.protect = stay;
  lagkv::layer l = own.layer(1000);
  l.extra = &e;
  lagkv::workspace ws;
  const lagkv::plan& p = plan_eviction(named("key_diff:sink=4,recent=32,keep=0.1,select=by_head"), l, {}, ws);
  EXPECT_EQ(p.tokens_after(0), 236U) << "those and 36 beside";
  EXPECT_EQ(p.tokens_after(1), 236U);
}

// Each head goes on by itself as its own budget says, not as the even one does.
TEST(by_head, heads_go_on_by_themselves) {
  constexpr std::size_t first = 400, last = 1200, channels = 8;
  const cube k = make_cube(74, 3, last, channels);
  std::vector<float> memory(3 * last * channels);
  const auto view = [&](std::size_t head, std::size_t count) {
    return lagkv::strided<float>(memory.data() + head * last * channels, {count, channels}, {last * channels, channels}, last);
  };
  const std::vector<float> budgets{0.25F, 1, 4};
  for (const char* budget : {"keep=0.25", "capacity=100"}) {
    for (std::size_t h = 0; h < 3; ++h) std::copy_n(k.row(h, 0), first * channels, memory.data() + h * last * channels);
    const lagkv::policy p = named(std::string("key_diff:sink=4,recent=8,select=by_head,") + budget);
    lagkv::extras e;
    e.head_budgets = budgets;
    lagkv::workspace ws;
    const lagkv::plan plan = plan_eviction(p, {view(0, 3), {}, first, &e}, {}, ws);
    lagkv::compact(view(0, 3), plan);
    for (std::size_t h = 0; h < 3; ++h) {
      const lagkv::policy own = lagkv::for_head(p, static_cast<double>(budgets[h]));
      ASSERT_EQ(check(own, {view(h, 1), {}, first}).message(), "") << "as one head needs nothing more";
      lagkv::cursor at;
      advance(at, plan, h);
      std::size_t rows = at.tokens;
      for (std::size_t t = first; t < last; ++t) {
        std::copy_n(k.row(h, t), channels, memory.data() + (h * last + rows) * channels);
        rows = compress(own, {view(h, 1), {}, rows + 1}, at, ws);
        const double goal =
            std::string(budget) == "keep=0.25" ? 0.25 * budgets[h] * static_cast<double>(t + 1) : 100.0 * budgets[h];
        const double kept = std::min(goal, static_cast<double>(t + 1));
        ASSERT_NEAR(static_cast<double>(rows), kept, 2 + 16) << budget << ", head " << h << ", token " << t;
      }
    }
  }
}

// Whatever lies behind the list in the host's memory, and whichever head's numbers are asked.
TEST(candidates, know_the_protected_positions_of_the_list_and_no_others) {
  std::mt19937 draw(17);
  for (int run = 0; run < 300; ++run) {
    const std::size_t heads = 1 + draw() % 3, rows = 1 + draw() % 40;
    std::vector<std::uint32_t> all, positions;
    for (std::uint32_t p = 0; p < 80; ++p)
      if (draw() % 3 == 0) all.push_back(p);
    for (std::size_t i = 0; i < heads * rows; ++i) positions.push_back(static_cast<std::uint32_t>(draw() % 80));
    const auto list = std::span<const std::uint32_t>(all).first(draw() % (all.size() + 1));
    lagkv::candidates c{.rows = {0, rows}, .protect = list, .heads = heads};
    const std::size_t dropped = draw() % 30;
    const bool known = draw() % 2 == 0;
    c.positions.dropped = dropped;
    if (known) c.positions.known = {positions.data(), static_cast<std::ptrdiff_t>(rows)};
    const std::size_t begin = draw() % rows, end = begin + draw() % (rows - begin + 1);
    std::size_t most = 0;
    for (std::size_t h = 0; h < heads; ++h) {
      std::size_t count = 0;
      for (std::size_t row = begin; row < end; ++row) {
        const bool is = std::count(list.begin(), list.end(), known ? positions[h * rows + row] : row + dropped) > 0;
        ASSERT_EQ(c.is_protected(h, row), is) << "run " << run << ", head " << h << ", row " << row;
        count += is ? 1U : 0U;
      }
      ASSERT_EQ(c.count_protected(h, {begin, end}), count);
      most = std::max(most, count);
    }
    ASSERT_EQ(c.most_protected({begin, end}), most);
    c.keep = draw() % 10;
    ASSERT_EQ(c.keep_of({begin, end}), std::max(c.keep, most));
    c.partition = rows, c.keep_each = draw() % 10;
    ASSERT_EQ(c.keep_of({begin, end}), std::max(c.keep_each, most));
  }
}

TEST(for_head, scales_each_budget) {
  const auto scaled = [](const char* text, double multiple) { return lagkv::for_head(named(text), multiple).budget; };
  EXPECT_DOUBLE_EQ(scaled("key_norm:keep=0.25", 2).as<lagkv::keep::share>()->of_all, 0.5);
  for (const double multiple : {3.9, 4.0, 4.1, 7.0, 9.0})  // a share of more than all is all
    EXPECT_DOUBLE_EQ(scaled("key_norm:keep=0.25", multiple).as<lagkv::keep::share>()->of_all, std::min(1.0, multiple / 4));
  EXPECT_DOUBLE_EQ(scaled("lagkv:ratio=0.25", 2).as<lagkv::keep::partitions>()->ratio, 0.5);
  EXPECT_EQ(scaled("key_norm:capacity=100,every=3", 2.5).as<lagkv::keep::capacity>()->rows, 250U);
  EXPECT_EQ(scaled("key_norm:capacity=100,every=3", 2.5).as<lagkv::keep::capacity>()->every, 3U);
  EXPECT_EQ(scaled("streaming_llm:capacity=100", 0.5).as<lagkv::keep::window>()->rows, 50U);
  EXPECT_DOUBLE_EQ(scaled("streaming_llm:keep=0.5", 0.5).as<lagkv::keep::window>()->of_all, 0.25);
  EXPECT_NE(scaled("full", 2).as<lagkv::keep::everything>(), nullptr);
  float row[4] = {};
  const lagkv::tensor one = lagkv::strided<float>(row, {1, 4}, {4, 4, 1}, 0);
  for (const double odd : {0.0, -1.0, 5.0, std::nan(""), HUGE_VAL})
    for (const char* text : {"key_norm:keep=0.25", "lagkv:ratio=0.25", "key_norm:capacity=100", "streaming_llm:capacity=100",
                             "streaming_llm:keep=0.5"})
      EXPECT_EQ(check(lagkv::for_head(named(text), odd), {one, one, 0}).message(), "") << text << " " << odd;
}

// Budgets are floats: 3.3333333 times 0.3 is less than 1, and 0.48 times 25 of 100 less than 12.
TEST(for_head, a_budget_in_f32_costs_no_row) {
  for (std::size_t share = 1; share <= 100; ++share) {
    const std::string keep = std::to_string(static_cast<double>(share) / 100);
    const auto whole = static_cast<double>(static_cast<float>(100.0 / static_cast<double>(share)));
    EXPECT_DOUBLE_EQ(lagkv::for_head(named("key_norm:keep=" + keep), whole).budget.as<lagkv::keep::share>()->of_all, 1) << keep;
    const lagkv::policy p = named("lagkv:lag=100,ratio=" + keep);
    EXPECT_DOUBLE_EQ(lagkv::for_head(p, whole).budget.as<lagkv::keep::partitions>()->ratio, 1) << keep;
    const std::size_t even = lagkv::share_of(p.budget.as<lagkv::keep::partitions>()->ratio, 100);
    for (std::size_t rows = 0; rows < 100; ++rows) {
      const auto multiple = static_cast<double>(static_cast<float>(rows) / static_cast<float>(even));
      const auto own = *lagkv::for_head(p, multiple).budget.as<lagkv::keep::partitions>();
      const bool all = multiple * p.budget.as<lagkv::keep::partitions>()->ratio > 0.9999;
      ASSERT_EQ(lagkv::share_of(own.ratio, own.lag), all ? 100 : rows) << keep << " times " << multiple;
    }
  }
}

// What a partition keeps of a head is the same whether the head is planned with the others or by itself.
TEST(for_head, partitions_keep_what_by_head_keeps) {
  const auto s = random_scores(1, 128, 75);
  for (const double ratio : {0.25, 0.3, 0.5})
    for (int hundredths = 0; hundredths < 320; hundredths += 3) {
      const float multiple = static_cast<float>(hundredths) / 100;
      lagkv::candidates c{.rows = {4, 132}, .partition = 128, .keep_each = lagkv::share_of(ratio, 128)};
      c.keep = c.keep_each, c.head_budgets = {&multiple, 1};
      lagkv::plan together;
      lagkv::workspace ws;
      together.reset(c.rows, 300, 1, c.keep);
      lagkv::by_head{}(flat(s), 1, c, together, ws);
      const lagkv::policy p = named("key_norm:lag=128,keep=" + std::to_string(ratio));
      const auto own = *lagkv::for_head(p, static_cast<double>(multiple)).budget.as<lagkv::keep::partitions>();
      const std::size_t alone = lagkv::share_of(own.ratio, own.lag), with_others = together.of(0).size();
      EXPECT_TRUE(alone == with_others || (with_others == 128 && alone > 124)) << ratio << " times " << multiple << ": " << alone;
    }
}

TEST(adaptive, in_each_partition) {
  const auto s = random_scores(3, 60, 98);
  const auto found = kept_by(lagkv::adaptive{0.2}, s, 7, 20);
  for (std::size_t at = 0; at < 60; at += 20) {
    const auto mask = adakv_mask(method_of(s, at, 20), 7, 0.2);
    for (std::size_t h = 0; h < 3; ++h)
      for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(mask[h][i], std::binary_search(found[h].begin(), found[h].end(), at + i));
  }
}

// Whatever picks the rows: those that are NaN in all heads go before all others, and where the others are too few some of them
// stay, so that the budget is used up.
TEST(selectors, keep_bad_rows_only_where_no_others_are_left) {
  const lagkv::selector all[] = {lagkv::top_k{}, lagkv::chunks{5}, lagkv::chunks{1}, lagkv::chunks{50}, lagkv::adaptive{0.2}};
  constexpr std::size_t heads = 2, n = 40;
  for (const std::size_t bad : {1U, 7U, 20U, 33U, 40U})
    for (const std::size_t keep : {1U, 7U, 20U, 33U, 39U}) {
      auto s = random_scores(heads, n, static_cast<unsigned>(bad));
      std::vector<std::size_t> rows(n);
      std::iota(rows.begin(), rows.end(), std::size_t{0});
      std::shuffle(rows.begin(), rows.end(), std::mt19937(3));
      for (auto& head : s)
        for (std::size_t i = 0; i < bad; ++i) head[rows[i]] = std::nan("");
      for (std::size_t which = 0; which < std::size(all); ++which) {
        SCOPED_TRACE(std::to_string(bad) + " bad ones, " + std::to_string(keep) + " stay, selector " + std::to_string(which));
        std::size_t kept = 0, kept_bad = 0;
        for (const auto& head : kept_by(all[which], s, keep)) {
          kept += head.size();
          for (const std::size_t row : head) kept_bad += std::isnan(s[0][row]) ? 1U : 0U;
        }
        EXPECT_EQ(kept, heads * keep);
        EXPECT_EQ(kept_bad, heads * (keep > n - bad ? keep - (n - bad) : 0));
      }
    }
}

TEST(pool, is_an_average_of_the_neighbours_that_are_there_or_with_zeros_beyond_the_ends) {
  const std::vector<float> scores{3, 0, 6, 9, 1, 1, 1, 1};
  lagkv::workspace ws;
  std::vector<float> there = scores, zeros = scores;
  lagkv::pool{3}(there, 2, {}, ws);
  EXPECT_EQ(there, (std::vector<float>{1.5F, 3, 5, 7.5F, 1, 1, 1, 1}));
  lagkv::pool{3, true}(zeros, 2, {}, ws);
  EXPECT_EQ(zeros, (std::vector<float>{1, 3, 5, 5, 2.0F / 3, 1, 1, 2.0F / 3}));
}

TEST(pool, stays_within_a_partition) {
  std::vector<float> scores{3, 0, 6, 9, 1, 1, 1, 1};
  lagkv::workspace ws;
  lagkv::pool{3}(scores, 1, {.rows = {0, 8}, .partition = 4}, ws);
  EXPECT_EQ(scores, (std::vector<float>{1.5F, 3, 5, 7.5F, 1, 1, 1, 1}));
}

TEST(mean_of_heads, gives_every_head_the_mean) {
  std::vector<float> scores{1, 2, 3, 5, 6, 7};
  lagkv::workspace ws;
  lagkv::mean_of_heads{}(scores, 2, {}, ws);
  EXPECT_EQ(scores, (std::vector<float>{3, 4, 5, 3, 4, 5}));
}

TEST(fusion, adds_up_ranks_times_weights) {
  const cube k = make_cube(71, 2, 100, 8), v = make_cube(72, 2, 100, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  for (std::size_t lag : {std::size_t{0}, std::size_t{16}}) {
    const lagkv::policy p = named_any("fuse:key_norm+value_norm+cur,weights=1+0.5+2,sink=4,recent=16,lag=" + std::to_string(lag));
    const lagkv::candidates due = p.budget.due({}, 100);
    lagkv::workspace ws;
    const auto found = lagkv::score(p, c.layer(100), due, ws);
    const std::size_t n = due.rows.size(), part = lag != 0 ? lag : n;
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t at = 0; at < n; at += part) {
        const row_range rows{due.rows.begin + at, due.rows.begin + at + part};
        const auto exact =
            rank_fusion({key_norm_scores(k, h, rows), value_norm_scores(v, h, rows), cur_scores(k, v, h, rows)}, {1, 0.5, 2});
        for (std::size_t i = 0; i < part; ++i) ASSERT_NEAR(found[h * n + at + i], exact[i], 1e-6) << lag;
      }
  }
}

// What each scorer ranks best, up to its share, stays; what stays was among the best of one: those that would have come in
// last with any of them.
TEST(fusion, by_best_gives_each_scorer_its_share_of_the_budget) {
  const cube k = make_cube(74, 2, 200, 8), v = make_cube(75, 2, 200, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  for (const double keep : {0.2, 0.5, 0.9})
    for (const double weight : {0.0, 0.5, 3.0}) {
      const lagkv::policy p = named_any("fuse:key_norm+value_norm,by=best,sink=0,recent=0,weights=1+" + std::to_string(weight) +
                                        ",keep=" + std::to_string(keep));
      lagkv::workspace ws;
      const lagkv::plan& plan = lagkv::plan_eviction(p, c.layer(200), {.tokens = 200}, ws);
      for (std::size_t h = 0; h < 2; ++h) {
        const auto kept = plan.of(h);
        const auto n = static_cast<double>(kept.size());
        ASSERT_EQ(n, keep * 200);
        // Of each scorer the tokens, its best first.
        const auto order = [&](const std::vector<double>& scores) {
          std::vector<std::uint32_t> tokens(200);
          std::iota(tokens.begin(), tokens.end(), 0U);
          std::stable_sort(tokens.begin(), tokens.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
          return tokens;
        };
        const auto keys = order(key_norm_scores(k, h, {0, 200})), values = order(value_norm_scores(v, h, {0, 200}));
        const auto from_the_top = [&](const std::vector<std::uint32_t>& of) {
          std::size_t found = 0;
          while (found < of.size() && std::count(kept.begin(), kept.end(), of[found]) == 1) ++found;
          return found;
        };
        const std::size_t by_keys = from_the_top(keys), by_values = from_the_top(values);
        EXPECT_GE(static_cast<double>(by_keys), std::floor(n / (1 + weight))) << keep << ' ' << weight;
        EXPECT_GE(static_cast<double>(by_values), std::floor(n * weight / (1 + weight))) << keep << ' ' << weight;
        std::vector<std::uint32_t> either(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(by_keys));
        if (weight > 0) either.insert(either.end(), values.begin(), values.begin() + static_cast<std::ptrdiff_t>(by_values));
        std::sort(either.begin(), either.end());
        either.erase(std::unique(either.begin(), either.end()), either.end());
        EXPECT_EQ(std::vector<std::uint32_t>(kept.begin(), kept.end()), either) << keep << ' ' << weight;
      }
    }
}

// As many decimal places as weights may have: only their proportion counts.
TEST(fusion, by_weights_of_any_size_keeps_the_same_rows) {
  const cube k = make_cube(76, 2, 300, 8), v = make_cube(77, 2, 300, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  for (const lagkv::fusion by : {lagkv::fusion::sum, lagkv::fusion::best})
    for (const auto& [a, b] : {std::pair{1.0, 1.0}, {3.0, 1.0}, {0.25, 1.0}, {0.0, 1.0}, {1.0, 0.0}}) {
      const auto kept = [&, a = a, b = b](double size) {
        lagkv::method methods[] = {method_of(lagkv::key_diff_score{}), method_of(lagkv::value_norm_score{})};
        methods[0].weight = a * size, methods[1].weight = b * size;
        const auto p = lagkv::make_fusion(methods, {.keep = 0.3}, by);
        EXPECT_TRUE(p) << p.message();
        lagkv::workspace ws;
        return lagkv::plan_eviction(*p, c.layer(300), {}, ws).kept;
      };
      const auto wanted = kept(1);
      for (const double size : {0x1p15, 0x1p-20, 0x1p-65, 0x1p-70, 0x1p-126, 0x1p-148, 0x1p-500, 0x1p-1060}) {
        const auto found = kept(size);
        EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin(), wanted.end()))
            << a << " to " << b << ", " << size << (by == lagkv::fusion::sum ? ", sum" : ", best");
      }
    }
}

// ---- budgets --------------------------------------------------------------------------------------------------------

lagkv::budget retention_of(const std::string& text) { return named_any(text).budget; }

TEST(budgets, capacity_makes_everything_between_sinks_and_window_a_candidate_again) {
  const lagkv::budget r = retention_of("key_norm:sink=4,recent=10,capacity=50");
  EXPECT_TRUE(r.due({}, 50).empty());
  const lagkv::candidates d = r.due({.tokens = 50, .dropped = 30, .compressed = 40}, 51);
  EXPECT_EQ(d.rows, (token_range{4, 41}));
  EXPECT_EQ(d.keep, 36U);
  EXPECT_EQ(r.due({}, 300).keep, 36U);
  const lagkv::budget lazy = retention_of("key_norm:sink=4,recent=10,capacity=50,every=8");
  EXPECT_TRUE(lazy.due({}, 57).empty());
  EXPECT_EQ(lazy.due({}, 58).keep, 36U);
}

TEST(budgets, a_share_of_the_budget_can_be_the_window) {
  const lagkv::budget r = retention_of("h2o:sink=0,keep=0.5");
  EXPECT_EQ(r.due({}, 100).rows, (token_range{0, 75})) << "half of 50";
  EXPECT_EQ(r.due({}, 100).keep, 25U);
  EXPECT_EQ(retention_of("h2o:sink=4,capacity=64").due({}, 100).rows, (token_range{4, 68}));
  EXPECT_EQ(retention_of("key_norm:recent=8,recent_share=0.1,keep=0.5").due({}, 100).rows, (token_range{4, 92}));
}

TEST(budgets, pyramids_fall_by_equal_steps_and_add_up) {
  lagkv::policy p = named_any("key_norm:sink=4,recent=16,keep=0.25,pyramid=20");
  std::vector<std::size_t> kept;
  for (std::size_t i = 0; i < 9; ++i) kept.push_back(lagkv::for_layer(p, i, 9).budget.due({}, 1000).keep);
  // 250 - 20 = 230 on average; 1.95 times in the first layer, 0.05 times in the last, rounded down.
  EXPECT_EQ(kept.front(), 448U);
  EXPECT_EQ(kept[4], 230U);
  EXPECT_EQ(kept.back(), 11U);
  std::size_t sum = 0;
  for (std::size_t k : kept) sum += k;
  EXPECT_LE(sum, 9U * 230);
  EXPECT_GT(sum, 9U * 229);
  for (std::size_t i = 1; i < 9; ++i) EXPECT_NEAR(static_cast<double>(kept[i - 1]) - static_cast<double>(kept[i]), 54.6, 1);

  p.budget.keeps = lagkv::keep::share{0.8};  // 1.95 times 780 is more than there is: the first layer keeps all
  EXPECT_TRUE(lagkv::for_layer(p, 0, 9).budget.due({}, 1000).empty());
  EXPECT_EQ(lagkv::for_layer(p, 8, 9).budget.due({}, 1000).keep, 580U);
  EXPECT_EQ(p.budget.due({}, 1000).keep, 780U) << "one layer has no slope";
}

// Whatever the budget: each layer has its sinks, the window of the average and a row more; they fall; all together have at most
// what they would have without a slope, and less than a row a layer less.
TEST(budgets, pyramids_keep_at_most_the_average_and_a_row_each) {
  std::size_t sloped = 0;
  for (const char* budget :
       {"capacity=9,sink=0,recent=0", "capacity=1,sink=0,recent=0", "capacity=300,sink=0,recent=0", "capacity=37", "capacity=38",
        "capacity=101", "capacity=137,every=5", "capacity=200,recent_share=0.5", "capacity=200,recent_share=0.9", "keep=0.25",
        "keep=0.03", "keep=0.25,recent_share=0.5", "keep=0.9"})
    for (const double beta : {1.01, 2.0, 4.0, 20.0, 1e6})
      for (const std::size_t layers : {2U, 3U, 4U, 32U, 61U})
        for (const std::size_t seen : {10U, 38U, 150U, 400U, 4001U}) {
          lagkv::policy p = named_any("key_diff:" + std::string(budget));
          const lagkv::candidates average = p.budget.due({}, seen);
          if (average.empty()) continue;
          SCOPED_TRACE(std::string(budget) + ", beta " + std::to_string(beta) + ", " + std::to_string(layers) + " layers, " +
                       std::to_string(seen) + " tokens");
          p.budget.slope.beta = beta;
          std::size_t sum = 0, before = seen;
          for (std::size_t i = 0; i < layers; ++i) {
            const lagkv::candidates own = lagkv::for_layer(p, i, layers).budget.due({}, seen);
            if (!own.empty()) {
              EXPECT_EQ(own.rows, average.rows);
              EXPECT_GE(own.keep, average.keep > 0 ? 1U : 0U);
            }
            const std::size_t rows = seen - (own.rows.size() - own.keep);
            EXPECT_LE(rows, before);
            sum += rows, before = rows;
          }
          const std::size_t flat = layers * (seen - (average.rows.size() - average.keep));
          EXPECT_LE(sum, flat + (p.budget.again() ? layers * (p.budget.as<lagkv::keep::capacity>()->every - 1) : 0));
          EXPECT_GT(sum + layers, flat);
          sloped += before < seen ? 1U : 0U;
        }
  EXPECT_GT(sloped, 500U);
}

TEST(budgets, a_layer_beyond_the_last_has_the_budget_of_the_last) {
  const lagkv::policy p = named_any("key_diff:capacity=100,pyramid=20");
  const auto kept = [&](std::size_t i) { return lagkv::for_layer(p, i, 4).budget.due({}, 400).keep; };
  EXPECT_LT(kept(3), kept(2));
  for (const std::size_t beyond : {std::size_t{4}, std::size_t{6}, ~std::size_t{0}}) EXPECT_EQ(kept(beyond), kept(3));
}

// What the host must offer it knows before it has made rows of the bytes.
TEST(budgets, of_rows_and_of_bytes_make_survivors_candidates_again) {
  for (const char* budget : {"capacity=100", "budget_mb=1"})
    EXPECT_TRUE(named_any(std::string("key_norm:") + budget).budget.again()) << budget;
  for (const char* budget : {"keep=0.5", "lag=16,keep=0.5"})
    EXPECT_FALSE(named_any(std::string("key_norm:") + budget).budget.again()) << budget;
}

TEST(budgets, know_the_length_of_their_partitions) {
  for (const char* text : {"lagkv:lag=16", "lagkv:lag=16,form=kvpress", "key_norm:lag=16"})
    EXPECT_EQ(named_any(text).budget.lag(), 16U) << text;
  for (const char* text : {"key_norm:keep=0.5", "key_norm:capacity=100", "full"})
    EXPECT_EQ(named_any(text).budget.lag(), 0U) << text;
}

TEST(budgets, a_pyramid_is_seen_before_its_layers_are_known) {
  const lagkv::policy p = named_any("key_norm:capacity=100,pyramid=20");
  EXPECT_TRUE(p.budget.slope.sloped());
  EXPECT_FALSE(p.budget.slope.used());
  for (const std::size_t layers : {2U, 9U}) EXPECT_TRUE(lagkv::for_layer(p, 0, layers).budget.slope.used());
  EXPECT_FALSE(lagkv::for_layer(p, 0, 1).budget.slope.used());
  EXPECT_GT(lagkv::for_layer(p, 0, 2).budget.due({}, 400).keep, lagkv::for_layer(p, 1, 2).budget.due({}, 400).keep);
  EXPECT_FALSE(named_any("key_norm:capacity=100,pyramid=1").budget.slope.sloped());
  EXPECT_FALSE(named_any("key_norm:capacity=100").budget.slope.sloped());
}

TEST(budgets, bytes_of_all_layers_together_are_not_exceeded_by_a_pyramid) {
  for (const std::size_t bytes : {25920U, 30000U, 41111U, 99999U}) {
    std::vector<cache> memory;
    std::vector<lagkv::layer> layers;
    for (unsigned i = 0; i < 3; ++i) {
      const cube x = make_cube(90 + i, 2, 800, 8);
      memory.emplace_back(layout::heads_first, dtype::f32, x, x);
    }
    for (cache& c : memory) layers.push_back(c.layer(800));
    const auto p =
        lagkv::fit(named_any("key_norm:pyramid=2,budget_mb=" + std::to_string(static_cast<double>(bytes) / 1e6)), layers[0], 3);
    ASSERT_TRUE(p) << p.message();
    std::vector<lagkv::cursor> at(3);
    lagkv::workspace ws;
    ASSERT_TRUE(lagkv::compress(*p, layers, at, ws, {.equal_counts = false}));
    EXPECT_LE((at[0].tokens + at[1].tokens + at[2].tokens) * 2 * (8 + 8) * sizeof(float), bytes);
  }
}

TEST(budgets, bytes_become_tokens) {
  const cube x = make_cube(73, 2, 50, 16);
  cache c(layout::heads_first, dtype::f16, x, x);
  const lagkv::policy p = named_any("key_norm:budget_mb=0.01");
  EXPECT_EQ(check(p, c.layer(50)).message(), "budget: is in bytes: make it a number of rows by fit()");
  const auto fitted = lagkv::fit(p, c.layer(50), 1);
  ASSERT_TRUE(fitted);
  EXPECT_EQ(fitted->budget.as<lagkv::keep::capacity>()->rows, 78U) << "10,000 bytes, 2 heads x 2 x 16 x 2 bytes a token";
  EXPECT_EQ(check(*fitted, c.layer(50)).message(), "");
  EXPECT_EQ(lagkv::fit(p, c.layer(50), 3).message(),
            "budget: holds 26 tokens of 384 bytes: must hold 37 or more (sink + recent + 1)");
  EXPECT_EQ(lagkv::fit(named_any("key_norm"), c.layer(50), 3)->budget.as<lagkv::keep::share>()->of_all, 0.5);
}

/// What may go by the words of budget.hpp, in signed numbers: rows [begin, end), of which `keep` stay.
struct due_rows {
  long begin = 0, end = 0, keep = 0;

  friend bool operator==(const due_rows&, const due_rows&) = default;
};

struct rule {
  long sink, recent;
  double recent_share;

  /// Of the rows between `begin` and the last `window` ones the `gone` that are too many, or all.
  static due_rows of(long begin, long end, long gone) {
    return end <= begin || gone <= 0 ? due_rows{} : due_rows{begin, end, end - begin - std::min(gone, end - begin)};
  }
  long window(long goal) const { return std::max(recent, static_cast<long>(recent_share * static_cast<double>(goal))); }

  due_rows share(double of_all, long compressed, long tokens, long seen) const {
    const long goal = static_cast<long>(of_all * static_cast<double>(seen)), begin = std::max(sink, compressed);
    const long last = goal > 1 ? window(goal) : std::max(window(goal), 1L), end = tokens - last;
    return end - begin < last ? due_rows{} : of(begin, end, tokens - std::max(goal, 1L));
  }
  due_rows capacity(long rows, long every, long tokens) const {
    return tokens - rows < every ? due_rows{} : of(sink, tokens - window(rows), tokens - rows);
  }
  /// The oldest go, and the last row stays.
  due_rows newest(long goal, long every, long compressed, long tokens) const {
    const long begin = std::max(sink, compressed), gone = std::min(tokens - goal, tokens - 1 - begin);
    return tokens - goal < every ? due_rows{} : of(begin, begin + gone, gone);
  }
};

// Small numbers, at which the parts of a budget meet: every combination.
TEST(budgets, of_small_numbers_are_those_of_the_rule) {
  const auto found = [](const lagkv::budget& b, long compressed, long tokens, long dropped) {
    const lagkv::candidates c =
        b.due({static_cast<std::size_t>(tokens), static_cast<std::size_t>(dropped), static_cast<std::size_t>(compressed)},
              static_cast<std::size_t>(tokens));
    if (c.empty()) return due_rows{};
    return due_rows{static_cast<long>(c.rows.begin), static_cast<long>(c.rows.end), static_cast<long>(c.keep)};
  };
  std::size_t due = 0;
  for (const long sink : {0, 1, 3})
    for (const long recent : {0, 1, 2, 3})
      for (const double recent_share : {0.0, 0.4})
        for (const long dropped : {0, 9})
          for (long compressed = 0; compressed <= 5; ++compressed)
            for (long tokens = compressed; tokens <= 14; ++tokens) {
              const rule r{sink, recent, recent_share};
              lagkv::budget b{.sink = static_cast<std::size_t>(sink),
                              .recent = static_cast<std::size_t>(recent),
                              .recent_share = recent_share};
              const auto expect = [&](const due_rows& wanted, const char* what, double how_much, long every) {
                due += wanted == due_rows{} ? 0U : 1U;
                ASSERT_EQ(found(b, compressed, tokens, dropped), wanted)
                    << what << ' ' << how_much << ", every " << every << ", sink " << sink << ", recent " << recent << " or "
                    << recent_share << ", " << tokens << " rows, " << compressed << " compressed, " << dropped << " dropped";
              };
              for (const double of_all : {0.05, 0.1, 0.2, 0.5, 1.0}) {
                b.keeps = lagkv::keep::share{of_all};
                expect(r.share(of_all, compressed, tokens, tokens + dropped), "share", of_all, 1);
                b.keeps = lagkv::keep::window{.of_all = of_all};
                const long goal = static_cast<long>(of_all * static_cast<double>(tokens + dropped));
                expect(r.newest(std::max(goal, 1L), 1, compressed, tokens), "window", of_all, 1);
              }
              for (const long rows : {1, 2, 5, 8})
                for (const long every : {1, 3}) {
                  const auto n = static_cast<std::size_t>(rows), step = static_cast<std::size_t>(every);
                  b.keeps = lagkv::keep::capacity{n, step};
                  expect(r.capacity(rows, every, tokens), "capacity", static_cast<double>(rows), every);
                  b.keeps = lagkv::keep::window{.rows = n, .every = step};
                  expect(r.newest(rows, every, compressed, tokens), "newest", static_cast<double>(rows), every);
                }
            }
  EXPECT_GT(due, 10000U);
}

// ---- protected positions --------------------------------------------------------------------------------------------

TEST(protect, streaming_llm_keeps_what_it_must) {
  const cube x = make_cube(74, 1, 60, 4);
  const std::vector<std::uint32_t> stay{7, 12, 40};
  lagkv::extras e;
  e.protect = stay;
  const lagkv::policy p = named_any("streaming_llm:sink=2,capacity=20");
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::layer l = c.layer(30);
  l.extra = &e;
  lagkv::workspace ws;
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(p, l, at, ws), 20U);
  std::vector<std::uint32_t> positions;
  for (std::size_t i = 0; i < 20; ++i) positions.push_back(static_cast<std::uint32_t>(lagkv::last_plan(ws).source(0, i)));
  EXPECT_EQ(positions[2], 7U);
  for (std::uint32_t t = 30; t < 60; ++t) {
    positions.push_back(t);
    l = c.layer(positions.size());
    l.extra = &e;
    const std::size_t now = lagkv::compress(p, l, at, ws);
    std::vector<std::uint32_t> left;
    for (std::size_t i = 0; i < now; ++i) left.push_back(positions[lagkv::last_plan(ws).source(0, i)]);
    positions = left;
    for (std::uint32_t s : stay)
      if (s <= t) {
        ASSERT_TRUE(std::binary_search(positions.begin(), positions.end(), s)) << s << " at " << t;
      }
    ASSERT_EQ(now, 20U) << "others go in their place";
  }
}

TEST(protect, more_than_a_partition_keeps) {
  const cube x = make_cube(75, 2, 100, 8);
  std::vector<std::uint32_t> stay;
  for (std::uint32_t p = 20; p < 30; ++p) stay.push_back(p);
  lagkv::extras e;
  e.protect = stay;
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::layer l = c.layer(100);
  l.extra = &e;
  lagkv::workspace ws;
  for (const char* text : {"lagkv:sink=4,lag=16,ratio=0.25", "key_norm:sink=4,lag=16,keep=0.25",
                           "key_norm:sink=4,lag=16,keep=0.25,select=chunks,chunk=3",
                           "key_norm:sink=4,lag=16,keep=0.25,select=adaptive,safeguard=1"}) {  // 1: each head its own
    SCOPED_TRACE(text);
    const lagkv::plan plan = lagkv::plan_eviction(named_any(text), l, {}, ws);
    ASSERT_EQ(plan.candidates, (token_range{4, 84}));
    for (std::size_t h = 0; h < 2; ++h) {
      const auto in = [&](std::uint32_t begin, std::uint32_t end) {
        return std::count_if(plan.of(h).begin(), plan.of(h).end(), [&](auto r) { return r >= begin && r < end; });
      };
      EXPECT_EQ(in(4, 20), 4);
      EXPECT_EQ(in(20, 36), 10) << "all that must stay, and no more";
      EXPECT_EQ(in(20, 30), 10);
      EXPECT_EQ(in(36, 52), 4);
    }
  }
}

// Rows that are no candidates stay without that: who must stay among them changes nothing, not for the neighbours of other heads
// either.
TEST(protect, rows_that_are_no_candidates_change_nothing) {
  const cube x = make_cube(86, 3, 60, 8);
  cache c(layout::heads_first, dtype::f32, x, x);
  for (const char* text : {"key_norm:sink=4,recent=8,keep=0.4", "key_norm:sink=4,recent=8,keep=0.4,select=chunks,chunk=3",
                           "key_norm:sink=4,recent=8,keep=0.4,select=adaptive", "key_norm:sink=4,lag=8,keep=0.25",
                           "fuse:key_norm+value_norm,sink=4,recent=8,keep=0.4", "streaming_llm:sink=4,capacity=30"}) {
    const auto kept = [&](const std::vector<std::uint32_t>& stay) {
      lagkv::extras e;
      e.protect = stay;
      lagkv::layer l = c.layer(60);
      l.extra = &e;
      lagkv::workspace ws;
      const lagkv::plan plan = lagkv::plan_eviction(named_any(text), l, {}, ws);
      return std::pair(plan.candidates, std::vector<std::uint32_t>(plan.kept.begin(), plan.kept.end()));
    };
    const auto wanted = kept({});
    const auto end = static_cast<std::uint32_t>(wanted.first.end);
    ASSERT_LT(end, 60U) << text;
    EXPECT_EQ(kept({0, 3}), wanted) << text;
    EXPECT_EQ(kept({3, end}), wanted) << text;
    EXPECT_EQ(kept({3, end, end + 1, 59, 60, 1000}), wanted) << text;
  }
}

// An array of positions may go on behind the last head: with those of another layer, say. They say nothing of this one.
TEST(protect, positions_behind_the_last_head_have_no_say) {
  constexpr std::size_t heads = 2, n = 60;
  const cube x = make_cube(85, heads, n, 4);
  const std::vector<std::uint32_t> stay{5, 6, 7, 8, 9, 10, 11};
  for (const char* text :
       {"streaming_llm:sink=2,capacity=20", "random:sink=2,recent=4,capacity=20", "random:sink=2,recent=4,keep=0.1",
        "random:sink=2,recent=4,capacity=20,select=chunks", "lagkv:sink=2,lag=8,ratio=0.25"}) {
    const auto kept = [&](std::uint32_t behind) {
      std::vector<std::uint32_t> positions((heads + 1) * n);
      for (std::size_t i = 0; i < heads * n; ++i) positions[i] = static_cast<std::uint32_t>(i % n + 100);  // none of them stays
      std::fill(positions.begin() + heads * n, positions.end(), behind);
      lagkv::extras e{.positions = {positions.data(), n}};
      e.protect = stay;
      cache c(layout::heads_first, dtype::f32, x, x);
      lagkv::layer l = c.layer(n);
      l.extra = &e;
      lagkv::workspace ws;
      const lagkv::plan plan = lagkv::plan_eviction(named_any(text), l, {}, ws);
      EXPECT_FALSE(plan.empty());
      return std::pair(plan.candidates.end, std::vector<std::uint32_t>(plan.kept.begin(), plan.kept.end()));
    };
    EXPECT_EQ(kept(7), kept(300)) << text;
  }
}

// Heads hold different numbers of protected rows once some have dropped some of them. Whatever the policy, the plan has room for
// all of them, all heads keep the same number, and no protected row goes.
TEST(protect, positions_that_only_some_heads_still_hold) {
  constexpr std::size_t heads = 3, room = 80, channels = 8;
  for (const char* text : {"random:capacity=16,sink=2,recent=4", "random:capacity=16,sink=2,recent=4,select=chunks,chunk=4",
                           "random:capacity=16,sink=2,recent=4,select=adaptive", "cur:capacity=16,sink=2,recent=4,heads=shared",
                           "fuse:random+key_norm,capacity=16,sink=2,recent=4", "random:keep=0.2,sink=2,recent=4",
                           "lagkv:sink=2,lag=8,ratio=0.25", "streaming_llm:capacity=16,sink=2"})
    for (std::size_t first : {0U, 1U, 2U}) {  // the head whose rows are protected
      SCOPED_TRACE(std::string(text) + ", head " + std::to_string(first));
      const cube x = make_cube(83, heads, room, channels);
      cache c(layout::heads_first, dtype::f32, x, x);
      std::vector<std::uint32_t> positions(heads * room);
      for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % room);
      lagkv::extras e{.positions = {positions.data(), room}};
      lagkv::layer l = c.layer(room);
      l.extra = &e;
      lagkv::workspace ws;
      lagkv::cursor at;
      l.tokens = lagkv::compress(named("random:capacity=16,sink=2,recent=4"), l, at, ws);
      ASSERT_EQ(l.tokens, 16U);
      for (std::size_t i = 0; i < 40; ++i)
        for (std::size_t h = 0; h < heads; ++h) positions[h * room + l.tokens + i] = static_cast<std::uint32_t>(at.seen() + i);
      std::vector<std::uint32_t> stay(&positions[first * room + 2], &positions[first * room + 12]);
      for (std::uint32_t i = 0; i < 30; i += 1 + i % 3) stay.push_back(static_cast<std::uint32_t>(at.seen()) + i);
      e.protect = stay, l.tokens += 40;
      lagkv::policy p = named_any(text);
      if (!p.budget.again()) at.compressed = 0;  // all are candidates
      ASSERT_EQ(lagkv::check(p, l, true).message(), "");
      std::vector<std::vector<std::uint32_t>> before(heads);
      for (std::size_t h = 0; h < heads; ++h) before[h].assign(&positions[h * room], &positions[h * room] + l.tokens);
      const lagkv::plan plan = lagkv::plan_eviction(p, l, at, ws);
      ASSERT_FALSE(plan.empty());
      for (std::size_t h = 0; h < heads; ++h) {
        if (!p.ragged) {
          ASSERT_EQ(plan.of(h).size(), plan.of(0).size());
        }
        for (std::size_t i = 1; i < plan.of(h).size(); ++i) ASSERT_LT(plan.of(h)[i - 1], plan.of(h)[i]);
        for (std::size_t row = plan.candidates.begin; row < plan.candidates.end; ++row)
          if (std::binary_search(stay.begin(), stay.end(), before[h][row])) {
            ASSERT_TRUE(std::binary_search(plan.of(h).begin(), plan.of(h).end(), row)) << "head " << h << ", row " << row;
          }
      }
    }
}

TEST(protect, the_last_row_stays_however_many_are_protected) {
  const cube x = make_cube(84, 1, 60, 4);
  std::vector<std::uint32_t> stay(40);
  std::iota(stay.begin(), stay.end(), 2U);
  lagkv::extras e;
  e.protect = stay;
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::layer l = c.layer(60);
  l.extra = &e;
  lagkv::workspace ws;
  const lagkv::plan plan = lagkv::plan_eviction(named("streaming_llm:sink=2,capacity=20"), l, {}, ws);
  EXPECT_EQ(plan.tokens_after(), 2U + 40 + 1);
  EXPECT_EQ(plan.source(0, 42), 59U);
}

TEST(protect, is_refused_where_positions_are_not_known) {
  const cube x = make_cube(76, 1, 60, 4);
  const std::vector<std::uint32_t> stay{7}, descending{7, 5};
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::extras e;
  e.protect = stay;
  lagkv::layer l = c.layer(60);
  l.extra = &e;
  EXPECT_EQ(check(named_any("key_norm:capacity=50"), l).message(),
            "protect: survivors are candidates again, so the policy needs positions to know protected ones");
  EXPECT_EQ(check(named_any("key_norm"), l).message(), "");
  e.protect = descending;
  EXPECT_EQ(check(named_any("key_norm"), l).message(), "protect: position 5 after 7: must be ascending");
}

// ---- needs ----------------------------------------------------------------------------------------------------------

TEST(needs, are_data_and_unmet_ones_are_errors) {
  const cube x = make_cube(77, 2, 60, 4);
  asked_cache c(layout::heads_first, dtype::f32, x, x, make_cube(78, 4, 60, 4));
  const lagkv::layer bare = c.kv.layer(60), asked = c.layer(60);
  EXPECT_EQ(named_any("snapkv:window=32").needs.queries, 32U);
  EXPECT_TRUE(named_any("h2o").needs.accumulated_attention);
  EXPECT_TRUE(named_any("expected_attention").needs.query_statistics);
  EXPECT_FALSE(named_any("key_diff").needs.values);
  EXPECT_EQ(check(named_any("snapkv:window=32"), bare).message(),
            "queries: the policy reads those of the last 32 tokens, or their attention weights; the layer offers none");
  EXPECT_EQ(
      check(named_any("h2o"), bare).message(),
      "accumulated_attention: the policy reads the attention of all tokens (or their queries, or weights); the layer offers "
      "none");
  EXPECT_EQ(check(named_any("expected_attention"), bare).message(),
            "query_mean: the policy reads statistics of queries, or queries; the layer offers none");
  EXPECT_EQ(check(named_any("expected_attention:calibrated=yes"), asked).message(),
            "query_mean: the policy reads statistics of the model's queries; the layer offers none");
  for (const char* text : {"snapkv", "h2o", "tova", "expected_attention", "fuse:snapkv+cur"})
    EXPECT_EQ(check(named_any(text), asked).message(), "") << text;

  lagkv::workspace ws;
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(named_any("snapkv:window=8"), bare, at, ws), 60U) << "unmet when called: nothing is a candidate";
  host few(layout::heads_first, dtype::f32, make_cube(78, 4, 10, 4));
  lagkv::extras e;
  e.queries = few.view();
  lagkv::layer l = c.kv.layer(60);
  l.extra = &e;
  EXPECT_EQ(lagkv::compress(named_any("h2o"), l, at, ws), 60U) << "queries of 10 tokens are no accumulated attention of 60";
  EXPECT_EQ(lagkv::compress(named_any("snapkv:window=16"), l, at, ws), 30U) << "fewer queries than wished for do";
}

// Each count is that of its own tensor.
TEST(needs, queries_and_weights_may_differ_in_number) {
  constexpr std::size_t n = 64, channels = 8;
  const cube k = make_cube(85, 1, n, channels);
  for (const std::size_t queries : {1U, 4U, 48U})
    for (const std::size_t weights : {1U, 4U, 48U})
      for (const std::size_t count : {0U, 2U, 100U}) {
        cache c(layout::heads_first, dtype::f32, k, k);
        std::vector<float> q(queries * channels, 1.0F), w(weights * n, 0.01F);  // a sanitizer sees what lies behind them
        lagkv::extras e;
        e.queries = lagkv::strided<float>(q.data(), {1, channels}, {.head = 1, .token = channels}, queries);
        e.weights = lagkv::strided<float>(w.data(), {1, n}, {.head = 1, .token = n}, weights);
        e.query_count = count;
        EXPECT_EQ(e.offered(e.queries), count == 0 ? queries : std::min<std::size_t>(count, queries));
        EXPECT_EQ(e.offered(e.weights), count == 0 ? weights : std::min<std::size_t>(count, weights));
        lagkv::layer l = c.layer(n);
        l.extra = &e;
        lagkv::workspace ws;
        for (const char* text : {"expected_attention:keep=0.5,recent=4", "fuse:snapkv+expected_attention,keep=0.5,recent=4"}) {
          const lagkv::policy p = named_any(text);
          ASSERT_EQ(check(p, l).message(), "");
          lagkv::layer without = l;
          lagkv::extras queries_only = e;
          queries_only.weights = {};
          without.extra = &queries_only;
          const lagkv::plan plan = lagkv::plan_eviction(p, l, {}, ws);
          EXPECT_EQ(plan.tokens_after(), 32U);
          if (p.fused_count != 0) continue;
          const auto kept = plan.kept;
          EXPECT_EQ(lagkv::plan_eviction(p, without, {}, ws).kept, kept) << "weights say nothing of it";
        }
      }
}

TEST(needs, a_scorer_that_reads_all_rows_sees_none_moved) {
  const cube k = make_cube(80, 2, 200, 8), q = make_cube(81, 4, 200, 8);
  for (const char* text : {"snapkv:window=8,lag=16,keep=0.25", "h2o:lag=16,keep=0.25", "tova:lag=16,keep=0.25"}) {
    asked_cache c(layout::heads_first, dtype::f32, k, k, q);
    lagkv::workspace ws;
    const lagkv::plan plan = lagkv::plan_eviction(named_any(text), c.layer(200), {}, ws);
    lagkv::cursor at;
    lagkv::compress(named_any(text), c.layer(200), at, ws);
    EXPECT_EQ(lagkv::last_plan(ws).kept, plan.kept) << text;
  }
}

TEST(needs, wrong_queries_are_named) {
  const cube x = make_cube(79, 2, 60, 4);
  cache c(layout::heads_first, dtype::f32, x, x);
  const auto refusal = [&](const cube& q, std::size_t count = 0) {
    host h(layout::heads_first, dtype::f32, q);
    lagkv::extras e;
    e.queries = h.view(), e.query_count = count;
    lagkv::layer l = c.layer(60);
    l.extra = &e;
    return check(named_any("snapkv"), l).message();
  };
  EXPECT_EQ(refusal(cube(4, 9, 4)), "");
  EXPECT_EQ(refusal(cube(3, 9, 4)), "queries: heads=3: must be a multiple of the 2 KV heads");
  EXPECT_EQ(refusal(cube(4, 9, 5)), "queries: channels=5: must be 4");
  lagkv::extras e;
  e.queries = lagkv::strided<float>(const_cast<float*>(x.x.data()), {2, 4}, {240, 4});
  lagkv::layer l = c.layer(60);
  l.extra = &e;
  EXPECT_EQ(check(named_any("snapkv"), l).message(), "queries: capacity is unbounded: must be the number of rows that there are");
}

}  // namespace
