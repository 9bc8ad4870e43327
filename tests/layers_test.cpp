// All layers at once, what a budget needs at most, the life of a cursor, and faults that have been mended, each by its whole
// kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>
#include <lagkv/methods_with_eigen.hpp>

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
  };
  const lagkv::policy plain = named("cur:recent=8,capacity=90");
  refused(plain, std::vector<cursor>(2), 300, "cursors=2: must be 3, one a layer");
  refused(plain, std::vector<cursor>(3), 299, "layer 2: would keep another number");
  refused(named("cur:recent=8,capacity=90,pyramid=20"), std::vector<cursor>(3), 300, "layer 1: would keep another number");
  refused(named("cur:recent=8,keep=0.5,select=adaptive"), std::vector<cursor>(3), 300,
          "layer 0: its heads would keep different numbers");
  lagkv::policy own = plain;
  own.select = [](std::span<const float> scores, std::size_t heads, const lagkv::candidates& c, lagkv::plan& out,
                  lagkv::workspace& ws) {
    lagkv::top_k{}(scores, heads, c, out, ws);
    out.kept.pop_back(), --out.first[heads];
  };
  refused(own, std::vector<cursor>(3), 300, "layer 0: its heads would keep different numbers");
  refused(named("key_norm:budget_mb=0.01"), std::vector<cursor>(3), 300, "budget: is in bytes");
  refused(named("novelty:keep=0.5"), std::vector<cursor>(3), 300, "layer 0: something that the policy reads is missing");
  refused(named("snapkv:keep=0.5"), std::vector<cursor>(3), 300, "layer 0: something that the policy reads is missing");
}

TEST(layers, drop_nothing_at_a_call_at_which_something_is_missing) {
  const cube k = make_cube(1, 2, 300, 16), v = make_cube(2, 2, 300, 16), q = make_cube(3, 4, 300, 16);
  std::vector<std::uint32_t> positions(2 * 300);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % 300);
  for (const char* text : {"novelty:keep=0.5", "novelty:capacity=100", "snapkv:keep=0.5", "h2o:keep=0.5", "tova:capacity=100",
                           "expected_attention:keep=0.5", "fuse:novelty+snapkv,keep=0.5"}) {
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
  const lagkv::policy p = named("key_norm:keep=0.5");
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
  EXPECT_NEAR(static_cast<double>(at[0].tokens + at[1].tokens + at[2].tokens), 270, 2);
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
                         "key_norm:recent=10,capacity=50",
                         "key_norm:recent=10,capacity=50,every=9",
                         "key_norm:recent=10,capacity=50,recent_share=0.8",
                         "h2o:capacity=64",
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
          while (seen < tokens) {
            std::size_t n = even ? chunk : 1 + random() % chunk;
            n = std::min(n, tokens - seen);
            rows += n, seen += n;
            most = std::max(most, rows);
            const lagkv::candidates c = b.due(at, rows);
            rows -= c.rows.size() - c.keep;
            if (!c.empty()) at.compressed = c.rows.begin + c.keep;
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
  for (const lagkv::method_entry* m : lagkv::methods_with_eigen()) {
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
