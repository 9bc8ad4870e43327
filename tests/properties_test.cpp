// What holds for any cache: when something happens, how much stays, and that plan, rows and cursor tell the same story.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <utility>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"
#include "support/oracle.hpp"
#include "support/sequence.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::toward;

constexpr const char* every_policy[] = {"lagkv:sink=4,lag=16,ratio=0.25",
                                        "lagkv:sink=0,lag=10,ratio=0.29,form=local",
                                        "lagkv:sink=4,lag=16,ratio=0.5,form=kvpress",
                                        "lagkv:sink=4,lag=16,ratio=0.5,form=kvpress_cross",
                                        "lagkv:sink=3,lag=7,ratio=0.6,value_weight=0",
                                        "streaming_llm:sink=4,capacity=50",
                                        "streaming_llm:sink=4,keep=0.4",
                                        "random:sink=4,recent=16,keep=0.5,seed=3"};

// ---- lengths --------------------------------------------------------------------------------------------------------

TEST(messages, numbers_read_back_as_they_are) {
  for (const auto& [x, text] : {std::pair(-1.0, "-1"), {0.5, "0.5"}, {1e-7, "1e-07"}, {9007199254740992.0, "9007199254740992"}})
    EXPECT_EQ(lagkv::detail::text(x), text);
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) {
    const double x = std::ldexp(static_cast<double>(random() >> 11U), static_cast<int>(random() % 1900) - 1000);
    ASSERT_EQ(std::strtod(lagkv::detail::text(x).c_str(), nullptr), x);
  }
}

TEST(budget, nothing_happens_below_two_lags_after_the_static_part) {
  const cube x = make_cube(1, 2, 60, 8);
  const lagkv::policy p = named("lagkv:sink=4,lag=16,ratio=0.25");
  lagkv::workspace ws;
  for (std::size_t n = 1; n < 4 + 32; ++n) {
    cache c(layout::heads_first, dtype::f32, x, x);
    const cache before = c;
    lagkv::cursor at;
    EXPECT_TRUE(lagkv::plan_eviction(p, c.layer(n), at, ws).empty());
    EXPECT_EQ(lagkv::compress(p, c.layer(n), at, ws), n);
    EXPECT_EQ(at, (lagkv::cursor{n, 0, 0}));
    for (std::size_t t = 0; t < 60; ++t) EXPECT_EQ(c.keys.row(0, t), before.keys.row(0, t));
  }
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(p, c.layer(36), at, ws), 4U + 4 + 16);
  EXPECT_EQ(at, (lagkv::cursor{24, 12, 8}));
}

TEST(budget, keeps_what_the_formula_says) {
  lagkv::workspace ws;
  for (std::size_t sink : {0U, 1U, 5U, 16U})
    for (std::size_t lag : {1U, 2U, 7U, 16U})
      for (double ratio : {0.01, 0.29, 0.5, 1.0})
        for (std::size_t n = sink + 2 * lag; n < 100; n += 3) {
          const lagkv::policy p = *lagkv::make_lagkv({.sink = sink, .lag = lag, .ratio = ratio});
          const cube x = make_cube(2, 1, n, 3);
          cache c(layout::heads_first, dtype::f32, x, x);
          lagkv::cursor at;
          const auto kept = static_cast<std::size_t>(ratio * static_cast<double>(lag));
          ASSERT_EQ(lagkv::compress(p, c.layer(n), at, ws), sink + kept * ((n - sink) / lag - 1) + lag + (n - sink) % lag);
          ASSERT_EQ(at.seen(), n);
        }
}

TEST(budget, share_of_a_hundred_is_truncated_as_python_does) {
  EXPECT_EQ(lagkv::share_of(0.29, 100), 28U);
  EXPECT_EQ(lagkv::share_of(0.57, 100), 56U);
  EXPECT_EQ(lagkv::share_of(1.0, 100), 100U);
}

TEST(budget, of_tokens_taken_back_only_new_ones_are_candidates_again) {
  const lagkv::budget r{.sink = 4, .keeps = lagkv::keep::partitions{8, 0.5}};
  EXPECT_TRUE(r.due({40, 10, 30}, 20).empty());  // the host took back into what has been compressed
  EXPECT_EQ(r.due({40, 10, 30}, 36 - 6 + 16).rows, (lagkv::token_range{30, 38}));
}

// ---- every policy ---------------------------------------------------------------------------------------------------

using policies = testing::TestWithParam<std::tuple<const char*, layout>>;

TEST_P(policies, plan_rows_and_cursor_agree) {
  const auto& [text, l] = GetParam();
  const lagkv::policy p = named(text);
  const cube k = make_cube(3, 3, 130, 20), v = make_cube(4, 3, 130, 12);
  for (dtype type : all_types) {
    SCOPED_TRACE(lagkv::name(type));
    const cache before(l, type, k, v);
    cache stepped = before, planned = before, window = before;
    lagkv::workspace ws;
    ASSERT_EQ(lagkv::check(p, stepped.layer(127)).message(), "");

    const lagkv::plan plan = lagkv::plan_eviction(p, planned.layer(127), {}, ws);
    ASSERT_FALSE(plan.empty());
    ASSERT_EQ(plan.heads(), 3U);
    ASSERT_EQ(plan.tokens_before, 127U);
    for (std::size_t h = 0; h < 3; ++h) {
      const auto kept = plan.of(h);
      for (std::size_t i = 0; i < kept.size(); ++i) {
        ASSERT_GE(kept[i], plan.candidates.begin);
        ASSERT_LT(kept[i], plan.candidates.end);
        ASSERT_TRUE(i == 0 || kept[i - 1] < kept[i]) << "ascending and unique";
      }
    }

    // plan_eviction + compact + advance is compress.
    lagkv::cursor a, b;
    const std::size_t left = lagkv::compress(p, stepped.layer(127), a, ws);
    EXPECT_EQ(lagkv::last_plan(ws).kept, plan.kept);
    lagkv::compact(planned.layer(127), plan);
    lagkv::advance(b, plan);
    EXPECT_EQ(a, b);
    EXPECT_EQ(left, plan.tokens_after());
    EXPECT_EQ(a.tokens, left);

    // Compaction to the window leaves the same rows, elsewhere; the window does not move.
    lagkv::cursor w;
    EXPECT_EQ(lagkv::compress(p, window.layer(127), w, ws, toward::window), left);
    EXPECT_EQ(w, a);
    const std::size_t freed = 127 - left;
    std::vector<int> side(127), to_window(127);
    for (std::size_t h = 0; h < 3; ++h) {
      std::iota(side.begin(), side.end(), 0), to_window = side;
      lagkv::compact(side.data(), h, plan), lagkv::compact(to_window.data(), h, plan, toward::window);
      for (std::size_t i = 0; i < left; ++i) {
        const std::size_t from = plan.source(h, i), there = i < plan.candidates.begin ? i : i + freed;
        for (const cache* c : {&stepped, &planned}) {
          ASSERT_EQ(c->keys.row(h, i), before.keys.row(h, from));
          ASSERT_EQ(c->values.row(h, i), before.values.row(h, from));
        }
        ASSERT_EQ(window.keys.row(h, there), before.keys.row(h, from));
        ASSERT_EQ(window.values.row(h, there), before.values.row(h, from));
        ASSERT_EQ(static_cast<std::size_t>(side[i]), from);
        ASSERT_EQ(static_cast<std::size_t>(to_window[there]), from);
      }
      for (std::size_t i = 127; i < 130; ++i)
        ASSERT_EQ(stepped.keys.row(h, i), before.keys.row(h, i)) << "not in use, not touched";
    }
    EXPECT_TRUE(stepped.intact() && planned.intact() && window.intact());

    // Idempotent: the same call again finds nothing to do.
    EXPECT_EQ(lagkv::compress(p, stepped.layer(left), a, ws), left);
    EXPECT_TRUE(lagkv::last_plan(ws).empty());
    EXPECT_EQ(a, b);
  }
}

std::string word(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return text;
}

struct policy_and_layout {
  template <class Info>
  std::string operator()(const Info& i) const {
    return word(std::get<0>(i.param)) + "_" + name(std::get<1>(i.param));
  }
};

INSTANTIATE_TEST_SUITE_P(all, policies, testing::Combine(testing::ValuesIn(every_policy), testing::ValuesIn(all_layouts)),
                         policy_and_layout{});

TEST(policies, side_arrays_of_any_stride) {
  const cube x = make_cube(5, 1, 90, 4);
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::workspace ws;
  const lagkv::plan p = lagkv::plan_eviction(named("lagkv:sink=4,lag=16,ratio=0.25"), c.layer(90), {}, ws);
  std::vector<double> wide(3 * 90, -1.0);
  for (std::size_t i = 0; i < 90; ++i) wide[3 * i] = static_cast<double>(i);
  lagkv::compact(wide.data(), 0, p, toward::front, 3);
  for (std::size_t i = 0; i < p.tokens_after(); ++i) EXPECT_EQ(wide[3 * i], static_cast<double>(p.source(0, i)));
  for (std::size_t i = 0; i < wide.size(); ++i) EXPECT_TRUE(i % 3 == 0 || wide[i] == -1.0);
}

TEST(policies, of_equal_scores_the_earlier_token_stays) {
  cube x(1, 80, 4);  // all rows equal, so all scores
  cache c(layout::heads_first, dtype::f32, x, x);
  lagkv::workspace ws;
  for (const char* text : {"lagkv:sink=0,lag=20,ratio=0.25", "lagkv:sink=0,lag=20,ratio=0.25,form=local"}) {
    const lagkv::plan p = lagkv::plan_eviction(named(text), c.layer(80), {}, ws);
    EXPECT_EQ(std::vector(p.kept.begin(), p.kept.end()),
              (std::vector<std::uint32_t>{0, 1, 2, 3, 4, 20, 21, 22, 23, 24, 40, 41, 42, 43, 44}))
        << text;
  }
}

TEST(policies, of_equal_scores_the_earlier_token_ranks_higher) {
  std::vector<float> scores{3, 1, 3, 2, 5, 5, 5, 5};
  lagkv::workspace ws;
  lagkv::rank_in_partition{4}(scores, 1, {}, ws);
  EXPECT_EQ(scores, (std::vector<float>{0.75F, 0, 0.5F, 0.25F, 0.75F, 0.5F, 0.25F, 0}));
}

TEST(policies, ratio_1_keeps_all_and_a_tiny_one_nothing) {
  const cube x = make_cube(6, 2, 100, 4);
  const cache before(layout::heads_first, dtype::f16, x, x);
  lagkv::workspace ws;
  cache c = before;
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(named("lagkv:sink=4,lag=16,ratio=1"), c.layer(100), at, ws), 100U);
  EXPECT_EQ(at, (lagkv::cursor{100, 0, 84}));
  EXPECT_FALSE(lagkv::last_plan(ws).empty()) << "it has candidates, all of which stay";
  EXPECT_EQ(lagkv::last_plan(ws).tokens_after(), 100U);
  lagkv::compress(named("lagkv:sink=4,lag=16,ratio=1"), c.layer(100), at, ws);
  EXPECT_TRUE(lagkv::last_plan(ws).empty()) << "nothing is due";
  for (std::size_t i = 0; i < 100; ++i) ASSERT_EQ(c.keys.row(1, i), before.keys.row(1, i));

  for (auto direction : {toward::front, toward::window}) {
    cache none = before;
    at = {};
    EXPECT_EQ(lagkv::compress(named("lagkv:sink=4,lag=16,ratio=0.05"), none.layer(100), at, ws, direction), 20U);
    EXPECT_EQ(at, (lagkv::cursor{20, 80, 4}));
    for (std::size_t i = 0; i < 16; ++i)
      ASSERT_EQ(none.keys.row(1, (direction == toward::front ? 4 : 84) + i), before.keys.row(1, 84 + i));
  }
}

TEST(policies, one_result_whenever_asked) {
  const cube k = make_cube(7, 2, 300, 33), v = make_cube(8, 2, 300, 33);
  for (const char* text : every_policy) {
    cache c(layout::tokens_first, dtype::bf16, k, v);
    lagkv::workspace fresh, used;
    const lagkv::plan first = lagkv::plan_eviction(named(text), c.layer(300), {}, fresh);
    EXPECT_FALSE(lagkv::plan_eviction(named("lagkv:sink=1,lag=50,ratio=0.5"), c.layer(290), {}, used).empty());
    EXPECT_EQ(lagkv::plan_eviction(named(text), c.layer(300), {}, used).kept, first.kept) << text;
  }
}

// ---- views ----------------------------------------------------------------------------------------------------------

TEST(views, give_the_same_scores_bit_for_bit) {
  const cube k = make_cube(9, 2, 150, 45), v = make_cube(10, 2, 150, 45);
  const lagkv::policy p = named("lagkv:sink=5,lag=19,ratio=0.25");
  for (auto target : targets())
    for (dtype type : all_types) {
      lagkv::workspace ws(target);
      std::vector<float> expected(6 * 19), scores(6 * 19);
      cache plain(layout::heads_first, type, k, v);
      p.score(plain.layer(150), 1, {5, 5 + 6 * 19}, expected, ws);
      for (layout l : all_layouts) {
        cache c(l, type, k, v);
        p.score(c.layer(150), 1, {5, 5 + 6 * 19}, scores, ws);
        for (std::size_t i = 0; i < scores.size(); ++i)
          ASSERT_TRUE(same_bits(scores[i], expected[i]))
              << name(l) << " " << lagkv::name(type) << " " << lagkv::simd::name(target);
      }
    }
}

TEST(views, keys_and_values_may_differ_in_everything) {
  const cube k = rounded(dtype::f16, make_cube(11, 2, 150, 64)), v = rounded(dtype::bf16, make_cube(12, 2, 150, 31));
  const cache before(host(layout::tokens_first, dtype::f16, k), host(layout::blocks_transposed, dtype::bf16, v));
  for (auto target : targets())
    for (bool own : {false, true}) {
      cache c = before;
      lagkv::workspace ws(target);
      const lagkv::policy p = named(own ? "lagkv:sink=5,lag=20,ratio=0.25,value_weight=2.5,form=local"
                                        : "lagkv:sink=5,lag=20,ratio=0.25,value_weight=2.5");
      ASSERT_EQ(lagkv::check(p, c.layer(150)).message(), "");
      const auto exact = lagkv_scores(k, v, 1, 5, 6, {20, 2.5, own});
      std::vector<float> scores(120);
      p.score(c.layer(150), 1, {5, 125}, scores, ws);
      for (std::size_t i = 0; i < 120; ++i) ASSERT_LE(relative(scores[i], exact[i]), 2e-6);
      lagkv::cursor at;
      lagkv::compress(p, c.layer(150), at, ws);
      for (std::size_t h = 0; h < 2; ++h)
        for (std::size_t i = 0; i < at.tokens; ++i) {
          ASSERT_EQ(c.keys.row(h, i), before.keys.row(h, lagkv::last_plan(ws).source(h, i)));
          ASSERT_EQ(c.values.row(h, i), before.values.row(h, lagkv::last_plan(ws).source(h, i)));
        }
      EXPECT_TRUE(c.intact());
    }
}

TEST(views, a_value_weight_of_0_needs_no_values) {
  const cube x = make_cube(13, 2, 100, 16);
  host keys(layout::heads_first, dtype::f32, x);
  lagkv::layer l{keys.view(), {}, 100};
  const lagkv::policy p = named("lagkv:sink=4,lag=16,ratio=0.25,value_weight=0");
  ASSERT_EQ(lagkv::check(p, l).message(), "");
  lagkv::workspace ws;
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(p, l, at, ws), 4U + 5 * 4 + 16);
}

#if SIZE_MAX > 0xffffffffU  // where there are such addresses
TEST(views, strides_beyond_4g_elements_do_not_wrap) {
  // By address only: nothing is read.
  auto* base = reinterpret_cast<lagkv::f16*>(std::uintptr_t{1} << 40);
  const std::ptrdiff_t head = std::ptrdiff_t{1} << 34, token = std::ptrdiff_t{1} << 20;
  const lagkv::tensor x = lagkv::strided<lagkv::f16>(base, {8, 64}, {head, token, 1});
  const lagkv::tile t = x.at(7, {10000, 10001});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data),
            (std::uintptr_t{1} << 40) + 2 * (7 * (std::uintptr_t{1} << 34) + 10000 * (std::uintptr_t{1} << 20)));
  EXPECT_EQ(x.check(10000).message(), "");

  const std::vector<std::int32_t> table{5, 2000000000};
  const lagkv::tensor y = lagkv::paged<lagkv::f16>(base, {8, 64}, {16, 16 * 8 * 64, {64, 8 * 64, 1}, 0}, table);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(y.at(3, {17, 20}).data),
            (std::uintptr_t{1} << 40) + 2 * (std::uintptr_t{2000000000} * 16 * 8 * 64 + 3 * 64 + 8 * 64));
}
#endif

TEST(views, runs_stop_where_the_memory_does) {
  const cube x = make_cube(14, 1, 40, 4);
  const auto runs = [&](layout l) {
    host h(l, dtype::f32, x);
    const lagkv::tensor view = h.view();
    std::vector<std::size_t> out;
    for (std::size_t at = 3; at < 40; at += out.back()) out.push_back(view.at(0, {at, 40}).tokens);
    return out;
  };
  EXPECT_EQ(runs(layout::heads_first), (std::vector<std::size_t>{37}));
  EXPECT_EQ(runs(layout::blocks_in_order), (std::vector<std::size_t>{37}));
  EXPECT_EQ(runs(layout::ring), (std::vector<std::size_t>{26, 11}));
  EXPECT_EQ(runs(layout::blocks_transposed), (std::vector<std::size_t>{13, 16, 8}));
}

/// Rows below `split` lie densely, the others with a number between any two of theirs.
struct two_parts {
  float *dense, *spread;
  std::size_t split, tokens, channel_count;

  lagkv::dtype type() const { return dtype::f32; }
  std::size_t heads() const { return 1; }
  std::size_t channels() const { return channel_count; }
  std::size_t capacity() const { return tokens; }
  lagkv::tile at(std::size_t, lagkv::token_range t) const {
    const auto c = static_cast<std::ptrdiff_t>(channel_count);
    if (t.begin >= split)
      return {reinterpret_cast<std::byte*>(spread + (t.begin - split) * channel_count * 2), t.size(), 2 * c, 2};
    return {reinterpret_cast<std::byte*>(dense + t.begin * channel_count), std::min(t.end, split) - t.begin, c, 1};
  }
  lagkv::status check(std::size_t) const { return {}; }
};

TEST(views, may_have_runs_with_strides_of_their_own) {
  constexpr std::size_t n = 90, d = 6;
  const cube k = make_cube(53, 1, n, d);
  const lagkv::policy p = named("key_norm:sink=3,recent=5,keep=0.5");
  for (const toward direction : {toward::front, toward::window})
    for (std::size_t split = 1; split < n; ++split) {
      std::vector<float> low(split * d), high((n - split) * d * 2, -1.0F);
      const lagkv::tensor view = two_parts{low.data(), high.data(), split, n, d};
      const auto at = [&](std::size_t row, std::size_t c) -> float& {
        return row < split ? low[row * d + c] : high[((row - split) * d + c) * 2];
      };
      for (std::size_t row = 0; row < n; ++row)
        for (std::size_t c = 0; c < d; ++c) at(row, c) = k.row(0, row)[c];
      lagkv::workspace ws;
      lagkv::cursor cursor;
      const std::size_t left = lagkv::compress(p, {view, {}, n}, cursor, ws, direction), freed = n - left;
      const lagkv::plan plan = lagkv::last_plan(ws);
      for (std::size_t i = 0; i < left; ++i) {
        const std::size_t row = direction == toward::front || i < plan.candidates.begin ? i : i + freed;
        for (std::size_t c = 0; c < d; ++c)
          ASSERT_EQ(at(row, c), k.row(0, plan.source(0, i))[c]) << "row " << i << ", from " << split << " on they are spread";
      }
      for (std::size_t i = 1; i < high.size(); i += 2) ASSERT_EQ(high[i], -1.0F) << "between two numbers";
    }
}

// ---- streaming ------------------------------------------------------------------------------------------------------

TEST(streaming, any_chunking_ends_like_one_prefill) {
  const cube k = make_cube(15, 2, 400, 16), v = make_cube(16, 2, 400, 16);
  std::mt19937 random(17);
  for (const char* text :
       {"lagkv:sink=4,lag=16,ratio=0.25", "lagkv:sink=0,lag=25,ratio=0.5,form=local", "lagkv:sink=9,lag=5,ratio=0.41"}) {
    const lagkv::policy p = named(text);
    lagkv::workspace ws;
    sequence whole(layout::heads_first, dtype::f32, k, v);
    whole.append(400, p, ws);
    for (int trial = 0; trial < 20; ++trial) {
      sequence parts(all_layouts[static_cast<std::size_t>(trial) % std::size(all_layouts)], dtype::f32, k, v);
      const std::size_t most = trial < 2 ? 1 : 1 + random() % 150;
      while (parts.seen() < 400) {
        const std::size_t before = parts.tokens(), chunk = std::min(400 - parts.seen(), 1 + random() % most);
        parts.append(chunk, p, ws);
        // Never more than 2 lag - 1 tokens wait beside those just appended.
        ASSERT_LE(before, std::max(parts.at().compressed, p.budget.sink) + 2 * p.budget.lag() - 1);
      }
      ASSERT_EQ(parts.at(), whole.at()) << text;
      for (std::size_t h = 0; h < 2; ++h) ASSERT_EQ(parts.positions(h), whole.positions(h)) << text;
      ASSERT_TRUE(parts.rows_follow_positions());
    }
  }
}

TEST(streaming, a_forked_sequence_goes_its_own_way) {
  const cube k = make_cube(18, 1, 300, 8), v = make_cube(19, 1, 300, 8), other = make_cube(20, 1, 300, 8);
  const lagkv::policy p = named("lagkv:sink=4,lag=16,ratio=0.25");
  lagkv::workspace ws;
  sequence a(layout::heads_first, dtype::f16, k, v), untouched(layout::heads_first, dtype::f16, k, v);
  a.append(150, p, ws);
  sequence b = a;  // cache, positions and cursor are copied
  b.append(100, p, ws);
  a.append(150, p, ws);
  untouched.append(150, p, ws), untouched.append(150, p, ws);
  EXPECT_EQ(a.positions(0), untouched.positions(0));
  EXPECT_EQ(a.at(), untouched.at());
  EXPECT_EQ(b.at().seen(), 250U);
}

}  // namespace
