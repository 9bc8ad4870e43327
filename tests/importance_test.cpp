// The map that kvzap reads: what is looked back at, against attention in double; what is fitted, against a map that is known.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <lagkv/attention/fit_importance.hpp>
#include <lagkv/lagkv.hpp>

#include "support/methods_oracle.hpp"
#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;

TEST(most_attention, is_the_most_of_any_query_of_the_group) {
  constexpr std::size_t heads = 2, group = 3, channels = 16, tokens = 150, asked = 70, text = 60;
  const cube k = make_cube(1, heads, tokens, channels), q = make_cube(2, heads * group, asked, channels);
  for (const auto type : {dtype::f32, dtype::f16}) {
    asked_cache c(layout::tokens_first, type, k, k, q);
    lagkv::workspace ws;
    const lagkv::layer l = c.layer(tokens);
    for (std::size_t head = 0; head < heads; ++head) {
      std::vector<double> exact(text);
      for (std::size_t g = 0; g < group; ++g)
        for (std::size_t i = 0; i < asked; ++i) {
          const std::vector<double> weights = attention_weights(q, k, head * group + g, i);
          for (std::size_t t = 0; t < text; ++t) exact[t] = std::max(exact[t], weights[t]);
        }
      const auto most = lagkv::most_attention(l, head, text, ws);
      ASSERT_TRUE(most) << most.message();
      ASSERT_EQ(most->size(), text);
      for (std::size_t t = 0; t < text; ++t)
        ASSERT_NEAR(static_cast<double>((*most)[t]), exact[t], (type == dtype::f32 ? 1e-5 : 1e-2) * exact[t]) << head << " " << t;
    }
  }
}

TEST(most_attention, refuses_what_the_layer_has_not) {
  const cube k = make_cube(1, 2, 50, 16), q = make_cube(2, 6, 10, 16);
  asked_cache c(layout::tokens_first, dtype::f32, k, k, q);
  lagkv::workspace ws;
  lagkv::layer l = c.layer(50);
  EXPECT_EQ(lagkv::most_attention(l, 2, 50, ws).message(), "head=2: must be below the 2 of the keys");
  EXPECT_EQ(lagkv::most_attention(l, 0, 51, ws).message(), "rows=51: must be at most the 50 in use");
  EXPECT_TRUE(lagkv::most_attention(l, 1, 50, ws));
  l.extra = nullptr;
  EXPECT_EQ(lagkv::most_attention(l, 0, 50, ws).message(),
            "queries: the layer offers none: importance is the attention that they pay");
}

// Each layer's safe rows, then the best of the others one by one, whichever layer they are of.
TEST(layer_shares, keep_the_most_important_rows_of_all_layers) {
  std::mt19937 draw(31);
  for (int run = 0; run < 200; ++run) {
    std::vector<std::vector<float>> importance(1 + draw() % 5);
    for (std::size_t i = 0; i < importance.size(); ++i)
      for (std::size_t n = 40 + draw() % 100; n > 0; --n)
        importance[i].push_back(static_cast<float>(i + 1) * static_cast<float>(draw() % 1000) / 1000);
    const double share = static_cast<double>(1 + draw() % 20) / 20, safeguard = static_cast<double>(draw() % 11) / 10;
    const auto shares = lagkv::layer_shares(importance, share, safeguard);
    ASSERT_TRUE(shares) << shares.message();
    ASSERT_EQ(shares->size(), importance.size());
    double budget = 0, kept = 0, least_kept = 1e9, most_dropped = -1;
    for (std::size_t i = 0; i < importance.size(); ++i) {
      std::vector<float> all = importance[i];
      std::sort(all.rbegin(), all.rend());
      const auto n = static_cast<double>(all.size());
      const std::size_t rows = lagkv::share_of((*shares)[i], all.size()), safe = static_cast<std::size_t>(safeguard * share * n);
      ASSERT_GE(rows, std::max<std::size_t>(safe, 1));
      ASSERT_LE(rows, all.size());
      budget += std::floor(share * n), kept += static_cast<double>(rows);
      if (rows > safe) least_kept = std::min(least_kept, static_cast<double>(all[rows - 1]));
      if (rows < all.size()) most_dropped = std::max(most_dropped, static_cast<double>(all[rows]));
    }
    // A layer that would keep nothing has one row.
    ASSERT_GE(kept, budget);
    ASSERT_LE(kept, budget + static_cast<double>(importance.size()));
    if (safeguard > 0 && share > 0.2) {
      ASSERT_LE(most_dropped, least_kept);
    }
  }
}

TEST(layer_shares, of_what_is_none) {
  const std::vector<float> good{4, 3, 2, 1}, bad{NAN, 8, NAN, INFINITY};
  const std::vector<std::vector<float>> one{good}, two{good, bad}, none{good, {}};
  const auto of_two = lagkv::layer_shares(two, 0.5, 0), with_none = lagkv::layer_shares(none, 0.25, 0);
  for (const double share : *of_two) EXPECT_DOUBLE_EQ(share, 0.5);
  for (const double share : *with_none) EXPECT_DOUBLE_EQ(share, 0.25);
  EXPECT_EQ(*lagkv::layer_shares(one, 1), std::vector<double>{1});
  EXPECT_TRUE(lagkv::layer_shares({}, 0.5)->empty());
  EXPECT_EQ(lagkv::layer_shares(one, 0).message(), "share=0: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::layer_shares(one, NAN).message(), "share=nan: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::layer_shares(one, 0.5, 1.5).message(), "safeguard=1.5: must be from 0 to 1");
}

// Together as many rows as with equal budgets, of each head `least` at least, and of the rest the most important ones of all.
TEST(head_budgets, share_out_the_most_important_rows_of_all_heads) {
  std::mt19937 draw(32);
  for (int run = 0; run < 200; ++run) {
    const std::size_t layers = 1 + draw() % 4, heads = 1 + draw() % 3, rows = run % 2 == 0 ? 256 : 7;
    std::vector<std::vector<std::vector<float>>> importance(layers, std::vector<std::vector<float>>(heads));
    for (auto& of_layer : importance)
      for (auto& list : of_layer) {
        const auto scale = static_cast<float>(1 + draw() % 9);
        for (std::size_t i = 0; i < rows; ++i) list.push_back(scale * static_cast<float>(draw() % 1000));
      }
    const double share = static_cast<double>(1 + draw() % 100) / 100, least = share * static_cast<double>(draw() % 5) / 4;
    const auto budgets = lagkv::head_budgets(importance, share, least);
    ASSERT_TRUE(budgets) << budgets.message();
    double sum = 0, most_dropped = -1, least_kept = 1e9;
    for (std::size_t i = 0; i < layers; ++i)
      for (std::size_t h = 0; h < heads; ++h) {
        const double of_all = static_cast<double>((*budgets)[i][h]) * share;
        sum += of_all;
        ASSERT_GE(of_all, least - 1e-6);
        ASSERT_LE(of_all, 1 + 1e-6);
        std::vector<float> list = importance[i][h];
        std::sort(list.rbegin(), list.rend());
        const auto kept = static_cast<std::size_t>(std::max(0.0, of_all * static_cast<double>(rows) - 1e-3));  // whole rows
        if (of_all > least + 1e-6 && kept > 0) least_kept = std::min(least_kept, static_cast<double>(list[kept - 1]));
        if (kept + 2 < rows) most_dropped = std::max(most_dropped, static_cast<double>(list[kept + 2]));
      }
    ASSERT_NEAR(sum / static_cast<double>(layers * heads), share, 1e-5);
    if (least < share) {
      ASSERT_LE(most_dropped, least_kept);
    }
  }
  EXPECT_EQ(lagkv::head_budgets({}, 2).message(), "share=2: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::head_budgets({}, 0.25, 0.5).message(), "least=0.5: must be from 0 to the share, 0.25");
  EXPECT_TRUE(lagkv::head_budgets({}, 0.5)->empty());
  const std::vector<std::vector<std::vector<float>>> odd{{{}, {NAN, 1, INFINITY}}};
  EXPECT_FLOAT_EQ((*lagkv::head_budgets(odd, 0.5))[0][0], 1) << "nothing is known of it";
  EXPECT_FLOAT_EQ((*lagkv::head_budgets(odd, 0.5))[0][1], 1);
}

TEST(even_sample, stands_for_the_list) {
  std::vector<float> list;
  for (int i = 0; i < 1000; ++i) list.push_back(static_cast<float>((i * 37) % 1000));
  const std::vector<float> sample = lagkv::even_sample(list, 10);
  EXPECT_EQ(sample, (std::vector<float>{949, 849, 749, 649, 549, 449, 349, 249, 149, 49}));
  EXPECT_EQ(lagkv::even_sample({1, NAN, 3}, 10), (std::vector<float>{3, 1, -FLT_MAX}));
  EXPECT_TRUE(lagkv::even_sample({}, 3).empty());
}

/// Importance that a map gives exactly, and the map that is fitted to it.
struct known_map {
  static constexpr std::size_t heads = 2, tokens = 400, keys = 12, values = 7;
  cube k = make_cube(11, heads, tokens, keys), v = make_cube(12, heads, tokens, values);
  cube map = make_cube(13, heads, 1, keys + values + 1);
  lagkv::importance_fit fit{heads, keys, values};

  double of(std::size_t head, std::size_t t) const {
    const float* w = map.row(head, 0);
    double sum = static_cast<double>(w[keys + values]) - 4;
    for (std::size_t c = 0; c < keys; ++c) sum += 0.05 * static_cast<double>(w[c]) * static_cast<double>(k.row(head, t)[c]);
    for (std::size_t c = 0; c < values; ++c)
      sum += 0.05 * static_cast<double>(w[keys + c]) * static_cast<double>(v.row(head, t)[c]);
    return sum;
  }
  void add(lagkv::token_range used, const cube& with_keys) {
    cache c(layout::heads_first, dtype::f32, with_keys, v);
    lagkv::workspace ws;
    const lagkv::layer l = c.layer(tokens);
    for (std::size_t head = 0; head < heads; ++head) {
      std::vector<float> importance(tokens, 1000.0F);  // what is not used
      for (std::size_t t = used.begin; t < used.end; ++t) importance[t] = static_cast<float>(std::exp(of(head, t)));
      ASSERT_TRUE(fit.add(l.keys, l.values, head, used, importance, ws));
    }
  }
};

TEST(importance_fit, finds_the_map_that_importance_was_made_by) {
  known_map known;
  cube k = known.k;
  k.row(1, 70)[3] = std::numeric_limits<float>::quiet_NaN();  // passed over
  k.row(1, 71)[0] = std::numeric_limits<float>::infinity();
  known.add({4, 100}, k);
  known.add({100, 400}, known.k);
  const lagkv::importance_map found = known.fit.map(1e-9);
  ASSERT_EQ(found.weights.size(), known.heads * found.width());
  for (std::size_t head = 0; head < known.heads; ++head) {
    const float *w = known.map.row(head, 0), *got = found.weights.data() + head * found.width();
    for (std::size_t c = 0; c + 1 < found.width(); ++c) EXPECT_NEAR(got[c], 0.05F * w[c], 1e-4F) << head << " " << c;
    EXPECT_NEAR(got[found.width() - 1], w[found.width() - 1] - 4, 1e-3F) << head;
  }
}

// What a unit of keys and values is, is not the fit's business.
TEST(importance_fit, holds_for_tiny_and_huge_channels) {
  for (const float unit : {1e-9F, 1e9F}) {
    known_map known;
    cube k = known.k;
    for (std::size_t head = 0; head < known.heads; ++head)
      for (std::size_t t = 0; t < known.tokens; ++t)
        for (std::size_t c = 0; c < known.keys; ++c) k.row(head, t)[c] *= unit;
    known.add({0, known.tokens}, k);
    const lagkv::importance_map found = known.fit.map(1e-9);
    for (std::size_t head = 0; head < known.heads; ++head)
      for (std::size_t c = 0; c < known.keys; ++c)
        EXPECT_NEAR(found.weights[head * found.width() + c] * unit, 0.05F * known.map.row(head, 0)[c], 1e-4F) << unit << " " << c;
  }
}

TEST(importance_fit, refuses_what_it_was_not_made_for) {
  known_map known;
  cache c(layout::heads_first, dtype::f32, known.k, known.v);
  lagkv::workspace ws;
  const lagkv::layer l = c.layer(known.tokens);
  const std::vector<float> importance(known.tokens, 0.5F);
  const auto why = [&](const lagkv::tensor& keys, const lagkv::tensor& values, std::size_t head, std::size_t rows) {
    return known.fit.add(keys, values, head, {0, rows}, importance, ws).message();
  };
  EXPECT_EQ(why(l.keys, l.values, 2, 9), "head=2: must be below the 2 of the fit");
  EXPECT_EQ(why(l.values, l.values, 0, 9), "keys: channels=7: must be the 12 of the fit");
  EXPECT_EQ(why(l.keys, l.keys, 0, 9), "values: channels=12: must be the 7 of the fit");
  EXPECT_EQ(why(l.keys, {}, 0, 9), "values: there are none");
  EXPECT_NE(why(l.keys, l.values, 0, known.tokens + 1), "");
  const std::vector<float> short_of_one(known.tokens - 1, 0.5F);
  EXPECT_EQ(known.fit.add(l.keys, l.values, 0, {0, known.tokens}, short_of_one, ws).message(),
            "importance of 399 rows: must be of at least 400");
  for (const float w : known.fit.map().weights) EXPECT_EQ(w, 0.0F) << "nothing was added";
}

TEST(importance_fit, of_channels_that_never_vary_and_of_nothing_at_all_is_the_mean) {
  known_map known;
  cube k = known.k;
  for (std::size_t t = 0; t < known.tokens; ++t) k.row(0, t)[5] = 2;
  known.add({0, known.tokens}, k);
  const lagkv::importance_map found = known.fit.map();
  EXPECT_EQ(found.weights[5], 0.0F) << "nothing can be told by it";
  for (const float w : found.weights) EXPECT_TRUE(std::isfinite(w));

  const lagkv::importance_map nothing = lagkv::importance_fit(2, 3, 4).map();
  ASSERT_EQ(nothing.weights.size(), 16U);
  for (const float w : nothing.weights) EXPECT_EQ(w, 0.0F);
}

TEST(importance_fit, with_much_ridge_says_the_mean_of_all_tokens) {
  known_map known;
  known.add({0, known.tokens}, known.k);
  const lagkv::importance_map flat = known.fit.map(1e9);
  double mean = 0;
  for (std::size_t t = 0; t < known.tokens; ++t) mean += known.of(0, t) / known.tokens;
  EXPECT_NEAR(flat.weights[flat.width() - 1], mean, 1e-3);
  EXPECT_NEAR(flat.weights[0], 0, 1e-6);
}

TEST(kvzap, reads_a_map_that_fits_the_layer) {
  const cube k = make_cube(21, 2, 100, 16), v = make_cube(22, 2, 100, 8), q = make_cube(23, 2, 4, 16);
  asked_cache c(layout::heads_first, dtype::f32, k, v, q);
  lagkv::layer l = c.layer(100);
  const lagkv::policy p = named_any("kvzap:keep=0.5");
  EXPECT_TRUE(check(p, l)) << check(p, l).message();
  c.extras.importance = {};
  EXPECT_EQ(check(p, l).message(), "importance: the policy reads the map that was fitted to the model; the layer offers none");
  lagkv::cursor at;
  lagkv::workspace ws;
  EXPECT_EQ(compress(p, l, at, ws), 100U) << "nothing is dropped without what the policy reads";
  lagkv::importance_map other{2, 16, 16, std::vector<float>(2 * 33)};
  c.extras.importance = other.view();
  EXPECT_EQ(check(p, l).message(), "importance: channels=33: must be 25, those of keys and values and 1");
  l.values = {};
  EXPECT_TRUE(check(l)) << "a layer without values is not for policies that read the map";
  EXPECT_EQ(check(p, l).message(), "values: the policy reads them, the layer has none");
  l = c.layer(100);
  other = {1, 16, 8, std::vector<float>(25)};
  c.extras.importance = other.view();
  EXPECT_EQ(check(p, l).message(), "importance: heads=1: must be the 2 of the keys");
}

}  // namespace
