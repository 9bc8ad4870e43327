// Every method against kvpress's scores and choices, through every view and kernel; and against the formulas in double, with
// all tokens at once and partition by partition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include <Eigen/Eigenvalues>

#include <lagkv/attention/estimate_queries.hpp>
#include <lagkv/score/leverage.hpp>

#include "support/golden.hpp"
#include "support/methods_oracle.hpp"
#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::token_range;

// ---- kvpress --------------------------------------------------------------------------------------------------------

struct press {
  const char* name;
  const char* policy;
  std::size_t first = 0;    ///< tokens before it hold what kvpress protects by a large score
  std::size_t behind = 0;   ///< so many last ones likewise
  bool of_total = false;    ///< kvpress divides by the sum over all tokens
  double tolerance = 1e-5;  ///< relative
};

const press presses[] = {{"key_norm", "key_norm:sink=0,recent=0"},
                         {"key_diff", "key_diff:sink=0,recent=0"},
                         {"cur", "cur:sink=0,recent=0", 4, 0, true},
                         {"snapkv", "snapkv:window=32,kernel=5,sink=0", 0, 32},
                         {"h2o", "h2o:form=mean,sink=0,recent=0,recent_share=0"},
                         {"tova", "tova:sink=0", 0, 1, false, 2e-5},  // kvpress itself, in f32, is 1.24e-5 off the formula
                         {"leverage", "leverage:sink=0,recent=0", 0, 0, false, 2e-5}};

/// Whether the sets are equal but for tokens whose scores tie (1e-6) with the cut.
testing::AssertionResult same_but_for_ties(const std::set<std::size_t>& ours, const std::set<std::size_t>& theirs,
                                           const std::vector<double>& scores) {
  if (ours.size() != theirs.size()) return testing::AssertionFailure() << ours.size() << " kept, not " << theirs.size();
  double cut = INFINITY;
  for (std::size_t t : theirs) cut = std::min(cut, scores[t]);
  std::vector<std::size_t> differ;
  std::set_symmetric_difference(ours.begin(), ours.end(), theirs.begin(), theirs.end(), std::back_inserter(differ));
  for (std::size_t t : differ)
    if (relative(scores[t], cut) > 1e-6) return testing::AssertionFailure() << "token " << t << " does not tie with the cut";
  return testing::AssertionSuccess();
}

/// Expects the tokens that the reference kept at a half and at three quarters removed; `scores` [heads][tokens].
void expect_golden_kept(const golden_case& c, const std::string& prefix, const lagkv::policy& policy, const lagkv::layer& layer,
                        const std::vector<std::vector<double>>& scores, lagkv::workspace& ws) {
  for (auto [removed, file] : {std::pair{.5, "kept_0.5"}, {.75, "kept_0.75"}}) {
    const auto kept = golden<int>(c, prefix + file);
    lagkv::policy some = policy;
    some.budget.keeps = lagkv::keep::share{1 - removed};
    const lagkv::plan plan = lagkv::plan_eviction(some, layer, {}, ws);
    ASSERT_EQ(plan.tokens_after() * c.heads, kept.size());
    for (std::size_t h = 0; h < c.heads; ++h) {
      std::set<std::size_t> a, b;
      for (std::size_t i = 0; i < plan.tokens_after(); ++i) {
        a.insert(plan.source(h, i));
        b.insert(static_cast<std::size_t>(kept[h * plan.tokens_after() + i]));
      }
      EXPECT_TRUE(same_but_for_ties(a, b, scores[h])) << "head " << h << ", " << removed << " removed";
    }
  }
}

class kvpress_methods : public testing::TestWithParam<std::tuple<press, layout>> {
 protected:
  golden_case c = golden_of("kvpress").at(0);
  cube k = golden_cube(c, "keys"), v = golden_cube(c, "values"), q = golden_cube(c, "queries");
};

TEST_P(kvpress_methods, scores_and_kept_tokens) {
  const auto& [p, l] = GetParam();
  const auto reference = golden<float>(c, std::string(p.name) + "_score");
  for (auto target : targets()) {
    SCOPED_TRACE(lagkv::simd::name(target));
    asked_cache ours(l, dtype::f32, k, v, q);
    const lagkv::layer layer = ours.layer(c.tokens);
    lagkv::workspace ws(target);
    const lagkv::policy policy = named_any(p.policy);
    ASSERT_EQ(check(policy, layer).message(), "");

    const lagkv::candidates due{.rows = {0, c.tokens - p.behind}, .keep = 1};
    const std::size_t n = due.rows.size();
    const auto scores = lagkv::score(policy, layer, due, ws);
    std::vector<std::vector<double>> all(c.heads);
    for (std::size_t h = 0; h < c.heads; ++h) {
      double total = 0;
      for (std::size_t i = 0; i < n; ++i) total += p.of_total ? static_cast<double>(scores[h * n + i]) : 0.0;
      for (std::size_t i = 0; i < n; ++i) all[h].push_back(static_cast<double>(scores[h * n + i]) / (p.of_total ? total : 1.0));
      for (std::size_t i = p.first; i < n; ++i)
        ASSERT_LE(relative(all[h][i], reference[h * c.tokens + i]), p.tolerance) << "head " << h << ", token " << i;
      for (std::size_t i = 0; i < p.first; ++i) all[h][i] = INFINITY;
      all[h].resize(c.tokens, INFINITY);
    }
    if (std::string(p.name) == "leverage") continue;  // no kept tokens were recorded

    // What kvpress protects by a large score is no candidate here, or named by its position.
    const std::vector<std::uint32_t> first{0, 1, 2, 3};
    ours.extras.protect = std::span(first).first(p.first);
    expect_golden_kept(c, p.name + std::string("_"), policy, layer, all, ws);
  }
}

INSTANTIATE_TEST_SUITE_P(golden, kvpress_methods, testing::Combine(testing::ValuesIn(presses), testing::ValuesIn(all_layouts)),
                         [](const auto& i) { return std::string(std::get<0>(i.param).name) + "_" + name(std::get<1>(i.param)); });

class golden_layouts : public testing::TestWithParam<layout> {};

TEST_P(golden_layouts, adakv_masks) {
  const golden_case c = golden_of("kvpress").at(0);
  const cube k = golden_cube(c, "keys"), v = golden_cube(c, "values");
  for (auto target : targets())
    for (auto [keep, file] : {std::pair{"0.5", "adakv_key_diff_mask_0.5"}, std::pair{"0.25", "adakv_key_diff_mask_0.75"}}) {
      SCOPED_TRACE(lagkv::simd::name(target));
      cache ours(GetParam(), dtype::f32, k, v);
      lagkv::workspace ws(target);
      const lagkv::policy policy = named_any(std::string("key_diff:sink=0,recent=0,select=adaptive,safeguard=0.2,keep=") + keep);
      const lagkv::layer layer = ours.layer(c.tokens);
      EXPECT_EQ(check(policy, layer).message(), "policy: keeps different numbers of tokens a head, which this cache cannot hold");
      ASSERT_EQ(check(policy, layer, true).message(), "");
      const lagkv::plan plan = lagkv::plan_eviction(policy, layer, {}, ws);
      const auto mask = golden<std::uint8_t>(c, file);
      std::vector<std::uint8_t> found(mask.size());
      for (std::size_t h = 0; h < c.heads; ++h)
        for (std::uint32_t row : plan.of(h)) found[h * c.tokens + row] = 1;
      EXPECT_EQ(found, mask);
    }
}

TEST_P(golden_layouts, expected_attention) {
  for (const golden_case& c : golden_of("expected_attention")) {
    SCOPED_TRACE(c.name);
    const cube k = golden_cube(c, "keys"), v = golden_cube(c, "values"), q = golden_cube(c, "queries");
    const auto reference = golden<float>(c, "score"), mean = golden<float>(c, "query_mean");
    for (auto target : targets()) {
      SCOPED_TRACE(lagkv::simd::name(target));
      lagkv::workspace ws(target);
      host before_rope(GetParam(), dtype::f32, q);
      const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};  // base 10000, halves paired
      const lagkv::query_statistics s =
          lagkv::estimate_queries(before_rope.view(), {c.sink, c.tokens}, rope, c.tokens, c.future, ws);
      double largest = 0;
      for (float m : mean) largest = std::max(largest, std::fabs(static_cast<double>(m)));
      for (std::size_t i = 0; i < mean.size(); ++i) ASSERT_NEAR(s.mean[i], mean[i], 1e-5 * largest);
      if (c.covariance) {
        const auto covariance = golden<float>(c, "query_covariance");
        double most = 0;
        for (float x : covariance) most = std::max(most, std::fabs(static_cast<double>(x)));
        for (std::size_t i = 0; i < covariance.size(); ++i) ASSERT_NEAR(s.covariance[i], covariance[i], 1e-5 * most);
      }

      cache ours(GetParam(), dtype::f32, k, v);
      lagkv::extras e;
      e.query_mean = s.mean_view(), e.query_covariance = s.covariance_view();
      lagkv::layer layer = ours.layer(c.tokens);
      layer.extra = &e;
      const std::string text = "expected_attention:sink=" + std::to_string(c.sink) +
                               ",recent=0,covariance=" + (c.covariance ? "yes" : "no") +
                               ",values=" + (c.value_norm ? "yes" : "no");
      const lagkv::policy policy = named_any(text);
      ASSERT_EQ(check(policy, layer).message(), "");
      const lagkv::candidates due{.rows = {c.sink, c.tokens}, .keep = 1};
      const auto scores = lagkv::score(policy, layer, due, ws);
      const std::size_t n = due.rows.size();
      std::vector<std::vector<double>> all(c.heads, std::vector<double>(c.tokens, INFINITY));
      for (std::size_t h = 0; h < c.heads; ++h)
        for (std::size_t i = 0; i < n; ++i) {
          all[h][c.sink + i] = static_cast<double>(scores[h * n + i]);
          // The reference's logits are f32 sums of up to 100: their rounding alone is 1e-5 of a weight.
          ASSERT_LE(relative(all[h][c.sink + i], reference[h * c.tokens + c.sink + i]), 5e-5) << "token " << i;
        }
      expect_golden_kept(c, "", policy, layer, all, ws);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(golden, golden_layouts, testing::ValuesIn(all_layouts), testing::PrintToStringParamName());

// ---- formulas -------------------------------------------------------------------------------------------------------

/// What the oracles read: tokens as the cache holds them.
struct inputs {
  cube keys, values, queries;
};

/// Mean and population covariance of queries as they are.
support::query_statistics plain_statistics(const cube& q) {
  const std::size_t d = q.channels;
  support::query_statistics s{q.heads, d, std::vector<double>(q.heads * d), std::vector<double>(q.heads * d * d)};
  const auto n = static_cast<double>(q.tokens);
  for (std::size_t h = 0; h < q.heads; ++h) {
    double *mean = &s.mean[h * d], *spread = &s.covariance[h * d * d];
    for (std::size_t t = 0; t < q.tokens; ++t)
      for (std::size_t c = 0; c < d; ++c) mean[c] += static_cast<double>(q.row(h, t)[c]) / n;
    for (std::size_t t = 0; t < q.tokens; ++t)
      for (std::size_t a = 0; a < d; ++a)
        for (std::size_t b = 0; b < d; ++b)
          spread[a * d + b] +=
              (static_cast<double>(q.row(h, t)[a]) - mean[a]) * (static_cast<double>(q.row(h, t)[b]) - mean[b]) / n;
  }
  return s;
}

struct formula {
  const char* name;
  const char* policy;  ///< without lag
  std::function<std::vector<double>(const inputs&, std::size_t head, row_range candidates, row_range reference)> scores;
  bool by_partition = true;  ///< whether partitions change the formula
  double tolerance = 2e-5;   ///< of the largest score of the head
};

const formula formulas[] = {
    {"key_norm", "key_norm", [](const inputs& x, auto h, auto j, auto) { return key_norm_scores(x.keys, h, j); }},
    {"value_norm", "value_norm", [](const inputs& x, auto h, auto j, auto) { return value_norm_scores(x.values, h, j); }},
    {"key_diff", "key_diff", [](const inputs& x, auto h, auto j, auto r) { return key_diff_scores(x.keys, h, j, r); }},
    {"nested", "nested:block=9,window=7", [](const inputs& x, auto h, auto j, auto) { return nested_scores(x.keys, h, j, 9, 7); },
     false},
    {"cur", "cur:window=7",
     [](const inputs& x, auto h, auto j, auto) { return cur_scores(x.keys, x.values, h, j, {.window = 7}); }},
    {"manifold", "manifold", [](const inputs& x, auto h, auto j, auto r) { return manifold_scores(x.keys, h, j, r); }},
    {"manifold_window", "manifold:window=9",
     [](const inputs& x, auto h, auto j, auto) { return windowed_manifold_scores(x.keys, h, j, 9); }},
    {"novelty", "novelty:pre_rope=no,heads=own,smooth=0",
     [](const inputs& x, auto h, auto j, auto r) {
       return novelty_scores(x.keys, h, j, {r.begin != 0 ? r.begin : j.begin, r.end});  // not the sinks
     }},
    {"novelty_ridge", "novelty:pre_rope=no,heads=own,smooth=0,ridge=0.75,value_weight=1.5",
     [](const inputs& x, auto h, auto j, auto r) {
       const row_range usual{r.begin != 0 ? r.begin : j.begin, r.end};
       std::vector<double> s = novelty_scores(x.keys, h, j, usual, 0.75);
       const std::vector<double> values = novelty_scores(x.values, h, j, usual, 0.75);
       for (std::size_t i = 0; i < s.size(); ++i) s[i] += 1.5 * values[i];
       return s;
     }},
    {"distinct", "distinct:pre_rope=no,bits=5",
     [](const inputs& x, auto h, auto j, auto r) {
       return distinct_scores(x.keys, h, j, {r.begin != 0 ? r.begin : j.begin, r.end}, 5);  // not the sinks
     }},
    {"redundancy", "redundancy:similar=0.3",
     [](const inputs& x, auto h, auto j, auto r) {
       return redundancy_scores(x.keys, h, j, {r.begin != 0 ? j.begin : 0, r.end}, static_cast<double>(0.3F));
     }},
    {"kvzap", "kvzap:pre_rope=no",
     [](const inputs& x, auto h, auto j, auto) {
       const std::size_t d = x.keys.channels;
       const lagkv::importance_map map = any_importance(x.keys.heads, d, x.values.channels);
       std::vector<double> s;
       for (std::size_t t = j.begin; t < j.end; ++t) {
         const float *a = map.weights.data() + h * map.width(), *k = x.keys.row(h, t), *v = x.values.row(h, t);
         double sum = static_cast<double>(a[d + x.values.channels]);
         for (std::size_t c = 0; c < d; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(k[c]);
         for (std::size_t c = 0; c < x.values.channels; ++c) sum += static_cast<double>(a[d + c]) * static_cast<double>(v[c]);
         s.push_back(sum);
       }
       return s;
     }},
    {"paged_eviction", "paged_eviction",
     [](const inputs& x, auto h, auto j, auto) {
       std::vector<double> s = value_norm_scores(x.values, h, j);
       const std::vector<double> keys = key_norm_scores(x.keys, h, j);
       for (std::size_t i = 0; i < s.size(); ++i) s[i] /= -keys[i];
       return s;
     }},
    {"stripes", "stripes:run=3",
     [](const inputs& x, auto h, auto j, auto) {
       std::vector<double> s;
       for (std::size_t t = j.begin; t < j.end; ++t) {
         const double turns =
             static_cast<double>(t / 3) * (std::sqrt(5.0) - 1) / 2 + static_cast<double>(h) / static_cast<double>(x.keys.heads);
         s.push_back(1 - (turns - std::floor(turns)));
       }
       return s;
     },
     false},
    {"leverage", "leverage", [](const inputs& x, auto h, auto j, auto r) { return leverage_scores(x.keys, h, j, r); }},
    {"snapkv", "snapkv:window=6,kernel=3",
     [](const inputs& x, auto h, auto j, auto) { return snapkv_scores(x.queries, x.keys, h, j, 6, 3); }, true},
    {"snapkv_max", "snapkv:window=6,kernel=1,aggregate=max",
     [](const inputs& x, auto h, auto j, auto) {
       const std::size_t group = x.queries.heads / x.keys.heads;
       std::vector<double> most(j.end - j.begin);
       for (std::size_t g = 0; g < group; ++g)
         for (std::size_t q = x.queries.tokens - 6; q < x.queries.tokens; ++q) {
           const std::vector<double> weights = attention_weights(x.queries, x.keys, h * group + g, q);
           for (std::size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], weights[j.begin + i]);
         }
       return most;
     },
     true},
    {"h2o", "h2o:recent_share=0",
     [](const inputs& x, auto h, auto j, auto) { return h2o_scores(x.queries, x.keys, h, j, false); }, false},
    {"tova", "tova", [](const inputs& x, auto, auto j, auto) { return tova_scores(x.queries, x.keys, j); }, false},
    {"expected_attention", "expected_attention",
     [](const inputs& x, auto h, auto j, auto) {
       return expected_attention_scores(plain_statistics(x.queries), x.keys, x.values, h, j, true);
     },
     true, 2e-4},
    {"expected_attention_mean", "expected_attention:covariance=no",
     [](const inputs& x, auto h, auto j, auto) {
       support::query_statistics s = plain_statistics(x.queries);
       s.covariance.clear();
       return expected_attention_scores(s, x.keys, x.values, h, j, true);
     },
     true, 2e-4}};

struct sizes {
  std::size_t heads, group, tokens, channels;
};

using formula_case = std::tuple<formula, sizes>;

class formulas_in_double : public testing::TestWithParam<formula_case> {};

TEST_P(formulas_in_double, hold) {
  const auto& [f, s] = GetParam();
  const std::size_t sink = 3, recent = 6;
  cube q = make_cube(33, s.heads * s.group, s.tokens, s.channels);
  for (float& x : q.x) x *= 0.3F;
  std::size_t which = 0;
  for (dtype type : all_types) {
    const inputs x{rounded(type, make_cube(31, s.heads, s.tokens, s.channels)),
                   rounded(type, make_cube(32, s.heads, s.tokens, s.channels)), rounded(type, q)};
    for (auto target : targets())
      for (std::size_t lag : {std::size_t{0}, std::size_t{20}}) {
        const layout l = all_layouts[which++ % std::size(all_layouts)];
        SCOPED_TRACE(std::string(lagkv::name(type)) + " " + lagkv::simd::name(target) + " " + name(l) + " lag " +
                     std::to_string(lag));
        asked_cache ours(l, type, x.keys, x.values, x.queries);
        const std::string text(f.policy);
        const std::string more = (text.find(':') == std::string::npos ? ":" : ",") + std::string("sink=3,recent=6,lag=");
        const lagkv::policy policy = named_any(text + more + std::to_string(lag));
        const lagkv::layer layer = ours.layer(s.tokens);
        ASSERT_EQ(check(policy, layer).message(), "");
        lagkv::workspace ws(target);
        lagkv::candidates due{.rows = {sink, s.tokens - recent}, .keep = 1};
        if (lag != 0) due = policy.budget.due({}, s.tokens);
        const std::size_t n = due.rows.size(), part = lag != 0 ? lag : n;
        ASSERT_GT(n, 0U);
        const auto scores = lagkv::score(policy, layer, due, ws);
        for (std::size_t h = 0; h < s.heads; ++h) {
          std::vector<double> exact;
          if (!f.by_partition) exact = f.scores(x, h, {due.rows.begin, due.rows.end}, {0, s.tokens});
          for (std::size_t at = due.rows.begin; f.by_partition && at < due.rows.end; at += part) {
            const row_range all{0, s.tokens}, next{at + part, at + 2 * part};
            const auto some = f.scores(x, h, {at, at + part}, lag != 0 ? next : all);
            exact.insert(exact.end(), some.begin(), some.end());
          }
          double largest = 0;
          for (double e : exact) largest = std::max(largest, std::fabs(e));
          for (std::size_t i = 0; i < n; ++i)
            ASSERT_NEAR(static_cast<double>(scores[h * n + i]), exact[i], f.tolerance * largest) << "head " << h << ", row " << i;
        }
      }
  }
}

INSTANTIATE_TEST_SUITE_P(methods, formulas_in_double,
                         testing::Combine(testing::ValuesIn(formulas),
                                          testing::Values(sizes{1, 1, 90, 5}, sizes{2, 3, 130, 64}, sizes{3, 2, 101, 77})),
                         [](const auto& i) {
                           return std::string(std::get<0>(i.param).name) + "_d" + std::to_string(std::get<1>(i.param).channels);
                         });

// ---- attention ------------------------------------------------------------------------------------------------------

TEST(attention, given_weights_count_as_the_computed_ones) {
  const cube k = make_cube(41, 2, 60, 16), q = make_cube(42, 4, 60, 16);
  cube w(4, 60, 64);  // rows longer than the tokens: a host's padded matrix
  for (std::size_t h = 0; h < 4; ++h)
    for (std::size_t i = 0; i < 60; ++i) {
      const auto exact = attention_weights(q, k, h, i);
      for (std::size_t t = 0; t < 64; ++t) w.row(h, i)[t] = t < 60 ? static_cast<float>(exact[t]) : NAN;
    }
  for (const char* text :
       {"snapkv:window=9,sink=2", "snapkv:window=9,sink=2,aggregate=max", "h2o:sink=2", "tova:sink=2", "h2o:form=mean,sink=2"}) {
    SCOPED_TRACE(text);
    asked_cache ours(layout::heads_first, dtype::f32, k, k, q);
    host weights(layout::heads_first, dtype::f32, w);
    lagkv::workspace ws;
    const lagkv::policy p = named_any(text);
    lagkv::layer l = ours.layer(60);
    const lagkv::candidates due{.rows = {2, 50}, .keep = 1};
    const auto of_queries = lagkv::score(p, l, due, ws);
    const std::vector<float> computed(of_queries.begin(), of_queries.end());
    lagkv::extras e;
    e.weights = weights.view();
    l.extra = &e;
    ASSERT_EQ(check(p, l).message(), "");
    const auto given = lagkv::score(p, l, due, ws);
    for (std::size_t i = 0; i < computed.size(); ++i) ASSERT_NEAR(given[i], computed[i], 1e-5F) << i;
  }
}

TEST(attention, more_queries_than_asked_for_change_nothing) {
  const cube k = make_cube(43, 2, 80, 16), q = make_cube(44, 4, 80, 16);
  const auto scores_with = [&](std::size_t queries, const char* text) {
    asked_cache c(layout::heads_first, dtype::f16, k, k, last_rows(q, 80, queries));
    lagkv::workspace ws;
    const auto s = lagkv::score(named_any(text), c.layer(80), {.rows = {4, 60}, .keep = 1}, ws);
    return std::vector<float>(s.begin(), s.end());
  };
  EXPECT_EQ(scores_with(8, "snapkv:window=8"), scores_with(80, "snapkv:window=8"));
  EXPECT_EQ(scores_with(1, "tova"), scores_with(33, "tova"));
  EXPECT_NE(scores_with(8, "snapkv:window=8"), scores_with(9, "snapkv:window=9"));
}

TEST(attention, accumulated_in_pieces_is_that_of_all_queries) {
  const cube k = make_cube(45, 2, 120, 24), q = make_cube(46, 6, 120, 24);
  std::vector<float> attention(2 * 128);
  lagkv::workspace ws;
  asked_cache whole(layout::blocks_of_7, dtype::f32, k, k, q);
  std::size_t seen = 0;
  for (std::size_t n : {50U, 1U, 1U, 30U, 38U}) {
    seen += n;
    host some(layout::transposed, dtype::f32, last_rows(q, seen, n));
    lagkv::extras e;
    e.queries = some.view(), e.accumulated_attention = {attention.data(), 128};
    lagkv::layer l = whole.kv.layer(seen);
    l.extra = &e;
    lagkv::accumulate_attention(l, n, ws);
  }
  for (std::size_t h = 0; h < 2; ++h) {
    const auto exact = h2o_scores(q, k, h, {0, 120}, false);
    for (std::size_t t = 0; t < 120; ++t) ASSERT_NEAR(attention[h * 128 + t], exact[t], 2e-5 * exact[0]) << t;
  }
}

TEST(attention, without_queries_there_is_none) {
  const cube k = make_cube(41, 2, 60, 16);
  cache c(layout::heads_first, dtype::f32, k, k);
  std::vector<float> found(60, 7), kept(120, 7);
  lagkv::extras e;
  lagkv::workspace ws;
  lagkv::layer l = c.layer(60);
  for (const lagkv::extras* extra : {static_cast<const lagkv::extras*>(nullptr), static_cast<const lagkv::extras*>(&e)}) {
    l.extra = extra;
    EXPECT_EQ(lagkv::offered_queries(l), 0U);
    lagkv::add_attention(l, 1, 60, 1, found, ws);
    lagkv::accumulate_attention(l, 60, ws);
    e.accumulated_attention = {kept.data(), 60};
  }
  EXPECT_EQ(found, std::vector<float>(60, 7));
  EXPECT_EQ(kept, std::vector<float>(120, 7));
}

TEST(attention, accumulates_weights_that_are_given) {
  const cube k = make_cube(41, 2, 60, 16), q = make_cube(42, 4, 60, 16);
  cube w(4, 60, 60);
  std::vector<double> exact(120);
  for (std::size_t h = 0; h < 4; ++h)
    for (std::size_t i = 0; i < 60; ++i) {
      const auto row = attention_weights(q, k, h, i);
      for (std::size_t t = 0; t < row.size(); ++t)
        w.row(h, i)[t] = static_cast<float>(row[t]), exact[h / 2 * 60 + t] += row[t] / 2;
    }
  for (const layout form : all_layouts) {
    cache c(layout::heads_first, dtype::f32, k, k);
    host weights(form, dtype::f32, w);
    std::vector<float> kept(120);
    lagkv::extras e;
    e.weights = weights.view(), e.query_count = 60, e.accumulated_attention = {kept.data(), 60};
    lagkv::layer l = c.layer(60);
    l.extra = &e;
    lagkv::workspace ws;
    lagkv::accumulate_attention(l, 60, ws);
    for (std::size_t i = 0; i < 120; ++i) ASSERT_NEAR(kept[i], exact[i], 1e-5 * exact[0]) << name(form) << ", " << i;
  }
}

// A scale of the host's is that of queries which are as much larger.
TEST(attention, takes_the_scale_that_the_host_gives) {
  const cube k = make_cube(47, 2, 90, 16), v = make_cube(48, 2, 90, 16);
  cube q = make_cube(49, 4, 90, 16);
  for (float& x : q.x) x *= 0.3F;
  for (const float scale : {0.125F, 0.4F}) {
    cube larger = q;
    for (float& x : larger.x) x *= scale * 4;  // sqrt(16)
    asked_cache c(layout::heads_first, dtype::f32, k, v, q);
    c.extras.scale = scale;
    lagkv::workspace ws;
    std::vector<float> found(90);
    lagkv::add_attention(c.layer(90), 1, 90, 0.5F, found, ws);
    const auto exact = h2o_scores(larger, k, 1, {0, 90}, false);
    for (std::size_t t = 0; t < 90; ++t) ASSERT_NEAR(found[t], exact[t], 2e-5 * exact[0]) << scale << ", " << t;
    const auto scores = lagkv::score(named_any("expected_attention"), c.layer(90), {.rows = {4, 60}, .keep = 1}, ws);
    const auto expected = expected_attention_scores(plain_statistics(larger), k, v, 1, {4, 60}, true);
    const double largest = *std::max_element(expected.begin(), expected.end());
    for (std::size_t i = 0; i < 56; ++i) ASSERT_NEAR(scores[56 + i], expected[i], 2e-4 * largest) << scale << ", " << i;
  }
}

// The logits of one query of all heads alone are more than are held at once: 64 query heads of 17,000 rows.
TEST(attention, of_one_query_at_a_time) {
  constexpr std::size_t n = 17000, group = 64;
  const cube k = make_cube(47, 1, n, 2), q = make_cube(48, group, 2, 2);
  asked_cache c(layout::heads_first, dtype::f32, k, k, q);
  lagkv::workspace ws;
  std::vector<float> found(n);
  lagkv::add_attention(c.layer(n), 0, 2, 1, found, ws);
  std::vector<double> exact(n);
  for (std::size_t g = 0; g < group; ++g)
    for (std::size_t i = 0; i < 2; ++i) {
      std::vector<double> w(n - 1 + i);
      double sum = 0;
      for (std::size_t t = 0; t < w.size(); ++t) {
        for (std::size_t d = 0; d < 2; ++d) w[t] += static_cast<double>(q.row(g, i)[d]) * static_cast<double>(k.row(0, t)[d]);
        sum += w[t] = std::exp(w[t] / std::sqrt(2.0));
      }
      for (std::size_t t = 0; t < w.size(); ++t) exact[t] += w[t] / sum;
    }
  const double largest = *std::max_element(exact.begin(), exact.end());
  for (std::size_t t = 0; t < n; ++t) ASSERT_NEAR(found[t], exact[t], 2e-5 * largest) << t;
}

TEST(attention, blocks_of_queries_do_not_change_it) {
  // More logits than are held at once: 4 query heads x 700 queries x 700 rows are 1.9 million.
  const cube k = make_cube(47, 1, 700, 8), q = make_cube(48, 4, 700, 8);
  asked_cache c(layout::heads_first, dtype::f32, k, k, q);
  lagkv::workspace ws;
  std::vector<float> found(700);
  lagkv::add_attention(c.layer(700), 0, 700, 0.25F, found, ws);
  const auto exact = h2o_scores(q, k, 0, {0, 700}, false);
  for (std::size_t t = 0; t < 700; ++t) ASSERT_NEAR(found[t], exact[t], 2e-5 * exact[0]) << t;
}

// However many queries there are: never more than 4 MiB of logits, beside the queries of a block and what reads the keys.
TEST(attention, of_many_queries_takes_little_memory) {
  constexpr std::size_t n = 1500, limit = (std::size_t{4} << 20) + (std::size_t{1} << 18);
  const cube k = make_cube(47, 1, n, 4), q = make_cube(48, 2, n, 4);
  asked_cache c(layout::heads_first, dtype::f32, k, k, q);
  for (const lagkv::aggregation how : {lagkv::aggregation::mean, lagkv::aggregation::max}) {
    lagkv::workspace ws;
    std::vector<float> found(n);
    lagkv::add_attention(c.layer(n), 0, n, 0.5F, found, ws, how);
    EXPECT_GT(ws.peak(), limit / 2) << "blocks are large";
    EXPECT_LE(ws.peak(), limit);
  }
}

TEST(attention, what_is_not_finite_gets_and_gives_nothing) {
  cube k = make_cube(49, 1, 40, 8), q = make_cube(50, 1, 40, 8);
  k.row(0, 7)[3] = NAN, k.row(0, 9)[0] = INFINITY, q.row(0, 38)[1] = NAN;
  asked_cache c(layout::heads_first, dtype::f32, k, k, q);
  lagkv::workspace ws;
  std::vector<float> found(40);
  lagkv::add_attention(c.layer(40), 0, 3, 1.0F, found, ws);
  double sum = 0;
  for (float x : found) sum += static_cast<double>(x);
  EXPECT_EQ(found[7], 0.0F);
  EXPECT_EQ(found[9], 0.0F);
  EXPECT_NEAR(sum, 2.0, 1e-5) << "two of the three queries";
}

// ---- the rest -------------------------------------------------------------------------------------------------------

TEST(novelty, of_many_rows_takes_its_statistics_from_some_evenly_spread) {
  constexpr std::size_t usual = lagkv::detail::usual_rows, together = 64;
  struct {
    std::size_t tokens, every;
  } const sizes[] = {{usual, 1}, {usual + usual / 2 - 1, 1}, {usual + usual / 2 + 10, 2}, {5 * usual + 100, 5}};
  for (const auto& [tokens, every] : sizes) {
    const cube k = make_cube(52, 1, tokens, 24);
    cube some(1, 0, 24);
    for (std::size_t begin = 5; begin < tokens; begin += every * together) {
      const std::size_t end = std::min(begin + together, tokens);
      some.x.insert(some.x.end(), k.row(0, begin), k.row(0, end));
      some.tokens += end - begin;
    }
    some.x.insert(some.x.end(), k.row(0, 5), k.row(0, tokens));  // the candidates, behind those to compare with
    const std::size_t reference = some.tokens, n = tokens - 100;
    some.tokens += tokens - 5;
    const auto exact = novelty_scores(some, 0, {reference, reference + n}, {0, reference});
    cache c(layout::heads_first, dtype::f32, k, k);
    lagkv::workspace ws;
    const auto scores =
        lagkv::score(named_any("novelty:pre_rope=no,heads=own,smooth=0"), c.layer(tokens), {.rows = {5, 5 + n}, .keep = 1}, ws);
    for (std::size_t i = 0; i < n; ++i) ASSERT_LE(relative(scores[i], exact[i]), 1e-5) << tokens << ", " << i;
  }
}

// A host that forgets accumulate() loses no more than the statistics.
TEST(novelty, takes_statistics_that_count_no_key_from_the_rows) {
  const cube k = make_cube(53, 2, 200, 16);
  asked_cache c(layout::heads_first, dtype::f32, k, k, k);
  lagkv::workspace ws;
  const lagkv::policy p = named_any("novelty:pre_rope=no");
  const auto rows = lagkv::score(p, c.layer(200), {.rows = {4, 180}, .keep = 1}, ws);
  const std::vector<float> expected(rows.begin(), rows.end());
  std::vector<double> statistics(2 * lagkv::key_statistics::size(16));
  c.extras.key_statistics = {statistics.data()};
  const auto found = lagkv::score(p, c.layer(200), {.rows = {4, 180}, .keep = 1}, ws);
  EXPECT_EQ(std::vector<float>(found.begin(), found.end()), expected);
}

// What plan_eviction() decides by are these scores: of keys before RoPE at the positions that the layer offers.
TEST(score, is_of_the_positions_that_are_offered) {
  const cube k = make_cube(54, 2, 300, 32), v = make_cube(55, 2, 300, 32);
  for (const char* text : {"novelty:capacity=100,heads=own", "key_diff:capacity=100,pre_rope=yes", "recommended:capacity=100"}) {
    asked_cache c(layout::heads_first, dtype::f32, k, v, k);
    std::vector<std::uint32_t> positions(2 * 300);
    for (std::size_t h = 0, p = 0; h < 2; ++h, p = 0)
      for (std::size_t t = 0; t < 300; ++t) positions[h * 300 + t] = static_cast<std::uint32_t>(p += 1 + (t * 7 + h) % 50);
    c.extras.positions = {positions.data(), 300};
    lagkv::workspace ws;
    const lagkv::policy p = named_any(text);
    const lagkv::candidates due = p.budget.due({}, 300);
    const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(300), {}, ws);
    const auto scores = lagkv::score(p, c.layer(300), due, ws);
    for (std::size_t h = 0; h < 2; ++h) {
      std::vector<float> own(scores.begin() + static_cast<std::ptrdiff_t>(h * due.rows.size()),
                             scores.begin() + static_cast<std::ptrdiff_t>((h + 1) * due.rows.size()));
      float least = own[plan.of(h)[0] - due.rows.begin];
      for (const std::uint32_t row : plan.of(h)) least = std::min(least, own[row - due.rows.begin]);
      const auto above = static_cast<std::size_t>(std::count_if(own.begin(), own.end(), [&](float s) { return s > least; }));
      EXPECT_EQ(above, plan.of(h).size() - 1) << text << ", head " << h;
    }
  }
}

// With a large ridge a channel counts by its variance: what key_diff orders rows by.
// Of weights below, at and above 1.
TEST(novelty, adds_the_score_of_the_values_by_their_weight) {
  const cube k = make_cube(51, 1, 60, 16), v = make_cube(52, 1, 60, 24);
  cache c(layout::heads_first, dtype::f32, k, v);
  const auto keys = novelty_scores(k, 0, {4, 50}, {4, 60}), values = novelty_scores(v, 0, {4, 50}, {4, 60});
  for (const char* weight : {"0", "0.25", "1", "3"}) {
    lagkv::workspace ws;
    const lagkv::policy p = named_any(std::string("novelty:pre_rope=no,heads=own,smooth=0,value_weight=") + weight);
    const auto found = lagkv::score(p, c.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
    for (std::size_t i = 0; i < 46; ++i)
      ASSERT_NEAR(found[i], keys[i] + std::stod(weight) * values[i], 1e-4) << weight << ", " << i;
  }
}

TEST(novelty, with_a_large_ridge_orders_keys_as_key_diff_does) {
  const cube k = make_cube(54, 1, 300, 16);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto scores_of = [&](const char* text) {
    const auto s = lagkv::score(named_any(text), c.layer(300), {.rows = {0, 300}, .keep = 1}, ws);
    return std::vector<float>(s.begin(), s.end());
  };
  const std::vector<float> by_distance = scores_of("novelty:sink=0,pre_rope=no,heads=own,smooth=0,ridge=1000000");
  const std::vector<float> by_angle = scores_of("key_diff:sink=0");
  for (std::size_t i = 0; i < 300; ++i)
    for (std::size_t j = 0; j < i; ++j) {
      if (std::fabs(by_angle[i] - by_angle[j]) < 1e-3F) continue;
      ASSERT_EQ(by_distance[i] > by_distance[j], by_angle[i] > by_angle[j]) << i << " " << j;
    }
}

TEST(novelty, channels_that_do_not_vary_and_zero_keys_are_no_numbers_to_divide_by) {
  cube k = make_cube(53, 1, 60, 6);
  for (std::size_t t = 0; t < 60; ++t) {
    float* row = k.row(0, t);
    row[2] = 0;  // never varies
    if (t == 7)
      for (std::size_t c = 0; c < 6; ++c) row[c] = 0;
  }
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto scores =
      lagkv::score(named_any("novelty:pre_rope=no,heads=own,smooth=0"), c.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
  const auto exact = novelty_scores(k, 0, {4, 50}, {4, 60});
  for (std::size_t i = 0; i < 46; ++i) ASSERT_LE(relative(scores[i], exact[i]), 1e-5) << i;

  cube same(1, 60, 6);
  for (float& x : same.x) x = 2;
  cache all_same(layout::heads_first, dtype::f32, same, same);
  for (float s : lagkv::score(named_any("novelty:pre_rope=no"), all_same.layer(60), {.rows = {4, 50}, .keep = 1}, ws))
    ASSERT_EQ(s, 0.0F);
}

TEST(stripes, every_token_stays_in_some_head_of_a_layer_and_evenly_in_each) {
  constexpr std::size_t heads = 4, n = 400;
  const cube k = make_cube(71, heads, n, 8);
  for (const std::size_t index : {0U, 1U, 17U}) {
    cache c(layout::heads_first, dtype::f32, k, k);
    lagkv::layer l = c.layer(n);
    l.index = index;
    lagkv::workspace ws;
    const lagkv::plan& p = plan_eviction(named_any("stripes:sink=0,recent=0,keep=0.26"), l, {}, ws);
    std::vector<std::size_t> kept(n);
    for (std::size_t h = 0; h < heads; ++h) {
      const auto own = p.of(h);
      ASSERT_EQ(own.size(), 104U);
      std::size_t before = own[0];
      EXPECT_LT(before, 8U);
      for (const std::uint32_t row : own) {
        EXPECT_LE(row - before, 8U) << "head " << h << ": a gap before row " << row;
        before = row, ++kept[row];
      }
    }
    for (std::size_t row = 0; row < n; ++row) {
      EXPECT_GE(kept[row], 1U) << "layer " << index << ": row " << row << " stays nowhere";
      EXPECT_LE(kept[row], 2U) << "layer " << index << ": row " << row;
    }
  }
}

TEST(stripes, follow_positions_and_differ_from_layer_to_layer) {
  constexpr std::size_t n = 64;
  const cube k = make_cube(72, 2, n, 8);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto scores = [&](const lagkv::layer& l) {
    const auto s = lagkv::score(named_any("stripes:run=4"), l, {.rows = {0, n}, .keep = 1}, ws);
    return std::vector<float>(s.begin(), s.end());
  };
  lagkv::layer l = c.layer(n);
  const std::vector<float> rows = scores(l);
  std::vector<std::uint32_t> positions(2 * n);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(2 * (i % n));
  const lagkv::extras offers{.positions = {positions.data(), n}};
  l.extra = &offers;
  const std::vector<float> spread = scores(l);
  for (std::size_t i = 0; i < n / 2; ++i) EXPECT_EQ(spread[i], rows[2 * i]) << i;
  l = c.layer(n);
  l.index = 1;
  EXPECT_NE(scores(l), rows);
}

/// Keys of a text said several times.
cube repeated(const cube& once, std::size_t copies) {
  cube all(once.heads, copies * once.tokens, once.channels);
  for (std::size_t h = 0; h < once.heads; ++h)
    for (std::size_t t = 0; t < copies * once.tokens; ++t)
      std::copy_n(once.row(h, t % once.tokens), once.channels, all.row(h, t));
  return all;
}

TEST(distinct, of_a_text_that_repeats_itself_the_last_copy_stays) {
  constexpr std::size_t copies = 4, n = 60;
  const cube k = repeated(make_cube(55, 2, n, 32), copies);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const lagkv::policy p = named_any("distinct:pre_rope=no,bits=16,sink=0,recent=0,keep=0.25");
  const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(copies * n), {}, ws);
  for (std::size_t h = 0; h < 2; ++h) {
    ASSERT_EQ(plan.of(h).size(), n);
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(plan.of(h)[i], (copies - 1) * n + i);
  }
}

// No two of these rows are alike by more than a cosine of 1, so nothing is spared: what is left is the cosine to the mean of all.
TEST(redundancy, without_likeness_has_the_order_of_key_diff) {
  const cube k = make_cube(56, 2, 90, 32);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto ranks = [&](const char* text) {
    const auto scores = lagkv::score(named_any(text), c.layer(90), {.rows = {4, 80}, .keep = 1}, ws);
    std::vector<std::size_t> order(76);
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
    return order;
  };
  EXPECT_EQ(ranks("redundancy:similar=1"), ranks("key_diff"));
}

// The last row alike is the last copy; to that itself it is the copy before it.
TEST(redundancy, of_a_text_that_repeats_itself_the_last_copy_scores_highest) {
  constexpr std::size_t copies = 4, n = 30;
  const cube k = repeated(make_cube(57, 2, n, 64), copies);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const lagkv::candidates all{.rows = {0, copies * n}, .keep = 1};
  const auto scores = lagkv::score(named_any("redundancy:similar=0.9"), c.layer(copies * n), all, ws);
  for (std::size_t h = 0; h < 2; ++h) {
    const auto of = [&](std::size_t copy, std::size_t t) { return double{scores[(h * copies + copy) * n + t]}; };
    for (std::size_t t = 0; t < n; ++t) {
      ASSERT_NEAR(of(3, t) - of(1, t), 3.0 / (copies * n), 1e-6) << t;
      ASSERT_NEAR(of(2, t) - of(1, t), 1.0 / (copies * n), 1e-6) << t;
      ASSERT_NEAR(of(0, t), of(1, t), 1e-6) << t;
    }
  }
}

TEST(redundancy, broken_and_empty_keys_take_no_part) {
  cube k = make_cube(58, 1, 60, 16), without(1, 57, 16);
  for (std::size_t c = 0; c < 16; ++c) k.row(0, 21)[c] = 0;
  k.row(0, 17)[2] = NAN;
  k.row(0, 23)[5] = INFINITY;
  k.row(0, 59)[1] = -INFINITY;
  std::vector<std::size_t> good;
  for (std::size_t t = 0; t < 60; ++t)
    if (t != 17 && t != 23 && t != 59) good.push_back(t);
  for (std::size_t i = 0; i < good.size(); ++i) std::copy_n(k.row(0, good[i]), 16, without.row(0, i));
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto scores = lagkv::score(named_any("redundancy:similar=0.3"), c.layer(60), {.rows = {0, 60}, .keep = 1}, ws);
  const auto expected = redundancy_scores(without, 0, {0, 57}, {0, 57}, static_cast<double>(0.3F));
  for (const std::size_t bad : {17U, 23U, 59U}) EXPECT_TRUE(std::isnan(scores[bad])) << bad;
  for (std::size_t i = 0; i < good.size(); ++i) ASSERT_NEAR(scores[good[i]], expected[i], 1e-6) << good[i];
  EXPECT_EQ(scores[21], 0.0F) << "of length 0";
}

TEST(distinct, keys_that_are_all_alike_go_by_age_and_broken_ones_first) {
  cube k(1, 40, 8);
  for (float& x : k.x) x = 3;
  k.row(0, 17)[2] = NAN;
  k.row(0, 23)[5] = INFINITY;
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const auto scores = lagkv::score(named_any("distinct:pre_rope=no"), c.layer(40), {.rows = {2, 38}, .keep = 1}, ws);
  std::size_t later = 40 - 2 - 2;  // but the broken ones
  for (std::size_t t = 2; t < 38; ++t) {
    if (t == 17 || t == 23) {
      ASSERT_TRUE(std::isnan(scores[t - 2])) << t;
      continue;
    }
    --later;
    ASSERT_NEAR(scores[t - 2], 0.5 * static_cast<double>(t - 2) / 38 - static_cast<double>(later), 1e-5) << t;
  }
}

TEST(leverage, does_not_change_under_an_invertible_projection) {
  const cube k = make_cube(51, 2, 200, 12);
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::workspace ws;
  const lagkv::candidates due{.rows = {0, 200}, .keep = 1};
  const auto exact_scores = lagkv::score(named_any("leverage:ridge=1e-9"), c.layer(200), due, ws);
  const std::vector<float> exact(exact_scores.begin(), exact_scores.end());
  const auto square = lagkv::score(named_any("leverage:ridge=1e-9,sketch=12,seed=5"), c.layer(200), due, ws);
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(square[i], exact[i], 1e-4F);
  const auto narrow = lagkv::score(named_any("leverage:sketch=6,seed=5"), c.layer(200), due, ws);
  double sum = 0;
  for (float x : narrow) sum += static_cast<double>(x);
  EXPECT_NEAR(sum, 12, 0.5) << "leverage adds up to the rank: 6 columns in each of 2 heads";
}

TEST(query_statistics, are_moved_by_the_mean_of_the_rotations_to_come) {
  struct turned_case {
    lagkv::rope by;
    std::size_t first, future;
  };
  const lagkv::rope plain{.pairs = lagkv::rope::pairing::halves};
  const lagkv::rope neighbours{.base = 100, .pairs = lagkv::rope::pairing::neighbours};
  lagkv::rope partial = plain, slow = plain;
  partial.dims = 6, partial.position_scale = 0.25F;
  slow.base = 1e30;
  constexpr std::size_t d = 10;
  const cube q = make_cube(61, 2, 40, d);
  const support::query_statistics still = plain_statistics(q);
  host view(layout::heads_first, dtype::f32, q);
  lagkv::workspace ws;
  lagkv::query_moments all(2, d);
  all.add(view.view(), {0, 25}, ws), all.add(view.view(), {25, 40}, ws);  // in parts, as of several texts
  for (const auto& [by, first, future] :
       {turned_case{plain, 0, 1}, {plain, 90, 512}, {neighbours, 7, 33}, {partial, 1000, 100}, {slow, 5, 512}}) {
    SCOPED_TRACE(std::to_string(first) + " " + std::to_string(future));
    // R by adding up the rotations, position by position.
    std::vector<double> rotation(d * d);
    const std::size_t dims = by.rotated(d);
    for (std::size_t c = dims; c < d; ++c) rotation[c * d + c] = 1;
    for (std::size_t j = 0; j < dims / 2; ++j) {
      const bool halves = by.pairs == lagkv::rope::pairing::halves;
      const std::size_t a = halves ? j : 2 * j, b = halves ? j + dims / 2 : 2 * j + 1;
      for (std::size_t p = first; p < first + future; ++p) {
        const double angle = by.angle(j, d) * static_cast<double>(p), share = 1.0 / static_cast<double>(future);
        rotation[a * d + a] += std::cos(angle) * share, rotation[b * d + b] += std::cos(angle) * share;
        rotation[b * d + a] += std::sin(angle) * share, rotation[a * d + b] -= std::sin(angle) * share;
      }
    }
    const lagkv::query_statistics s = moved(all.statistics(), by, first, future);
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t a = 0; a < d; ++a) {
        double mean = 0;
        for (std::size_t i = 0; i < d; ++i) mean += rotation[a * d + i] * still.mean[h * d + i];
        ASSERT_NEAR(s.mean[h * d + a], mean, 1e-6);
        for (std::size_t b = 0; b < d; ++b) {
          double spread = 0;
          for (std::size_t i = 0; i < d; ++i)
            for (std::size_t j = 0; j < d; ++j)
              spread += rotation[a * d + i] * still.covariance[(h * d + i) * d + j] * rotation[b * d + j];
          ASSERT_NEAR(s.covariance[(h * d + a) * d + b], spread, 3e-6);
        }
      }
  }
}

// What is left of the covariance is what no other vectors, as few, could take away.
TEST(query_statistics, a_few_factors_stand_for_most_of_the_covariance) {
  constexpr std::size_t d = 12, future = 64, first = 300;
  host view(layout::heads_first, dtype::f32, make_cube(64, 2, 80, d));
  lagkv::workspace ws;
  lagkv::query_moments all(2, d);
  all.add(view.view(), {0, 80}, ws);
  lagkv::rope by{.base = 50, .pairs = lagkv::rope::pairing::halves};
  const lagkv::query_statistics exact = moved(all.statistics(), by, first, future);
  for (const std::size_t rank : {std::size_t{0}, std::size_t{1}, std::size_t{3}, std::size_t{7}, d, d + 5}) {
    const lagkv::query_statistics few = moved(factored(all.statistics(), by, future, rank), by, first, future);
    EXPECT_EQ(few.rank(), std::min(rank, d));
    EXPECT_EQ(few.mean, exact.mean);
    EXPECT_FALSE(few.covariance_view());
    for (std::size_t h = 0; h < 2; ++h) {
      const auto whole = Eigen::Map<const Eigen::MatrixXf>(exact.covariance.data() + h * d * d, d, d).cast<double>().eval();
      Eigen::MatrixXd left = whole;
      for (std::size_t f = 0; f < few.rank(); ++f) {
        const auto vector =
            Eigen::Map<const Eigen::VectorXf>(few.factors.data() + (h * few.rank() + f) * d, d).cast<double>().eval();
        left -= vector * vector.transpose();
      }
      const Eigen::VectorXd sizes = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(whole).eigenvalues();
      double least = 0;
      for (std::size_t i = 0; i + few.rank() < d; ++i) least += std::max(0.0, sizes(static_cast<Eigen::Index>(i)));
      EXPECT_NEAR(left.trace(), least, 1e-5 * whole.trace()) << "rank " << rank;
      EXPECT_GT(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(left).eigenvalues()(0), -1e-5 * whole.trace());
    }
  }
}

// No positions to come count as the first of them; and moving or factoring takes statistics with any parts missing.
TEST(query_statistics, of_no_positions_or_without_a_covariance) {
  constexpr std::size_t d = 8, heads = 2;
  const lagkv::rope by{.base = 100, .pairs = lagkv::rope::pairing::neighbours};
  const std::vector<float> mean(heads * d, 1), square(heads * d * d, 0.5F), factors(heads * 3 * d, 2);
  for (const bool with_square : {false, true})
    for (const bool with_factors : {false, true}) {
      const lagkv::query_statistics s{heads, d, mean, with_square ? square : std::vector<float>{},
                                      with_factors ? factors : std::vector<float>{}};
      for (const std::size_t first : {0U, 10U}) {
        const lagkv::query_statistics none = moved(s, by, first, 0), one = moved(s, by, first, 1);
        EXPECT_EQ(none.mean, one.mean);
        EXPECT_EQ(none.covariance, one.covariance);
        EXPECT_EQ(none.factors, one.factors);
        EXPECT_EQ(one.mean == s.mean, first == 0) << "position 0 is not turned";
      }
      for (const std::size_t future : {0U, 1U, 32U})
        for (const std::size_t rank : {0U, 2U, 100U}) {
          const lagkv::query_statistics few = factored(s, by, future, rank);
          EXPECT_EQ(few.mean, s.mean);
          EXPECT_TRUE(few.covariance.empty());
          EXPECT_EQ(few.rank(), with_square ? std::min(rank, d) : s.rank());
          EXPECT_TRUE(with_square || few.factors == s.factors);
          for (const float x : few.factors) EXPECT_TRUE(std::isfinite(x));
        }
    }
}

TEST(expected_attention, scores_by_factors_are_those_by_the_covariance) {
  const cube k = make_cube(65, 2, 90, 16), v = make_cube(66, 2, 90, 16);
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    host keys(layout::heads_first, type, k), values(layout::heads_first, type, v);
    host queries(layout::heads_first, dtype::f32, make_cube(67, 6, 50, 16));
    lagkv::workspace ws;
    const lagkv::rope by{.pairs = lagkv::rope::pairing::halves};
    lagkv::query_moments all(6, 16);
    all.add(queries.view(), {0, 50}, ws);
    const lagkv::query_statistics s = moved(all.statistics(), by, 90, 32),
                                  f = moved(factored(all.statistics(), by, 32, 16), by, 90, 32);
    lagkv::extras by_covariance, by_factors;
    by_covariance.query_mean = s.mean_view(), by_covariance.query_covariance = s.covariance_view();
    by_factors.query_mean = f.mean_view(), by_factors.query_factors = f.factors_view();
    const lagkv::candidates due{.rows = {4, 60}, .keep = 1};
    const lagkv::policy p = named_any("expected_attention:calibrated=yes");
    const auto scores = [&](const lagkv::extras& e) {
      const lagkv::layer l{keys.view(), values.view(), 90, &e};
      EXPECT_EQ(check(p, l).message(), "");
      const auto found = lagkv::score(p, l, due, ws);
      return std::vector<float>(found.begin(), found.end());
    };
    const std::vector<float> one = scores(by_covariance), other = scores(by_factors);
    const float most = *std::max_element(one.begin(), one.end());
    for (std::size_t i = 0; i < one.size(); ++i) ASSERT_NEAR(one[i], other[i], 1e-4F * most);

    lagkv::extras alone;
    alone.query_factors = f.factors_view();
    EXPECT_EQ(check(lagkv::layer{keys.view(), values.view(), 90, &alone}).message(),
              "query_factors: heads=6: must be those of query_mean");
  }
}

// However few there are: the scores are those by the covariance that the factors make.
TEST(expected_attention, scores_by_a_few_factors_are_those_by_their_products) {
  constexpr std::size_t d = 6;
  const cube k = make_cube(68, 1, 60, d), v = make_cube(69, 1, 60, d);
  host keys(layout::heads_first, dtype::f32, k), values(layout::heads_first, dtype::f32, v);
  for (const std::size_t rank : {std::size_t{1}, std::size_t{2}, d}) {
    const cube f = make_cube(70, 1, 1 + rank, d);
    lagkv::query_statistics few{1, d, {f.x.begin(), f.x.begin() + d}, {}, {f.x.begin() + d, f.x.end()}};
    lagkv::query_statistics all{1, d, few.mean, std::vector<float>(d * d), {}};
    for (std::size_t r = 0; r < rank; ++r)
      for (std::size_t a = 0; a < d; ++a)
        for (std::size_t b = 0; b < d; ++b) all.covariance[a * d + b] += few.factors[r * d + a] * few.factors[r * d + b];
    lagkv::extras by_factors, by_covariance;
    by_factors.query_mean = few.mean_view(), by_factors.query_factors = few.factors_view();
    by_covariance.query_mean = all.mean_view(), by_covariance.query_covariance = all.covariance_view();
    const auto scores = [&](const lagkv::extras& e) {
      const lagkv::layer l{keys.view(), values.view(), 60, &e};
      lagkv::workspace ws;
      const auto found = lagkv::score(named_any("expected_attention:calibrated=yes"), l, {.rows = {4, 50}, .keep = 1}, ws);
      return std::vector<float>(found.begin(), found.end());
    };
    const std::vector<float> one = scores(by_factors), other = scores(by_covariance);
    const float most = *std::max_element(other.begin(), other.end());
    for (std::size_t i = 0; i < one.size(); ++i) ASSERT_NEAR(one[i], other[i], 1e-4F * most) << "rank " << rank << ", row " << i;
  }
}

TEST(expected_attention, adds_epsilon_to_the_weight_of_each_value) {
  const cube k = make_cube(75, 2, 60, 8), v = make_cube(76, 2, 60, 8), q = make_cube(77, 4, 60, 8);
  asked_cache ours(layout::heads_first, dtype::f32, k, v, q);
  const auto scores = [&](const char* epsilon) {
    lagkv::workspace ws;
    const lagkv::policy p = named_any(std::string("expected_attention:keep=0.5,epsilon=") + epsilon);
    const auto found = lagkv::score(p, ours.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
    return std::vector<float>(found.begin(), found.end());
  };
  const std::vector<float> without = scores("0"), with = scores("0.25");
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t i = 0; i < 46; ++i) {
      double norm = 0;
      for (std::size_t c = 0; c < 8; ++c) norm += std::pow(static_cast<double>(v.row(h, 4 + i)[c]), 2);
      ASSERT_NEAR(with[h * 46 + i] - without[h * 46 + i], 0.25 * std::sqrt(norm), 1e-5) << "head " << h << ", row " << i;
    }
}

// The sample of a layer begins elsewhere: by its index times the plastic number's inverse, a fraction of one head's share.
TEST(stripes, are_others_in_each_layer) {
  const cube k = make_cube(73, 3, 40, 4), v = make_cube(74, 3, 40, 4);
  cache ours(layout::heads_first, dtype::f32, k, v);
  const auto fraction = [](double x) { return x - std::floor(x); };
  for (const std::size_t index : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{31}}) {
    lagkv::layer layer = ours.layer(40);
    layer.index = index;
    lagkv::workspace ws;
    const auto scores = lagkv::score(named_any("stripes:run=2,keep=0.5"), layer, {.rows = {4, 30}, .keep = 1}, ws);
    for (std::size_t h = 0; h < 3; ++h)
      for (std::size_t i = 0; i < 26; ++i) {
        const double first = (static_cast<double>(h) + fraction(static_cast<double>(index) * 0.75487766624669276)) / 3;
        const double turns = static_cast<double>((4 + i) / 2) * (std::sqrt(5.0) - 1) / 2 + first;
        ASSERT_NEAR(static_cast<double>(scores[h * 26 + i]), 1 - fraction(turns), 1e-6)
            << index << ", head " << h << ", row " << i;
      }
  }
}

// Where 16-bit rows lie far from 0 for their range, one multiply-add would lose digits: they are widened, each from its own
// place.
TEST(lagkv, rows_far_from_zero_score_as_the_same_numbers_in_f32) {
  cube k(2, 80, 24), v(2, 80, 24);
  std::mt19937 random(5);
  for (cube* x : {&k, &v})
    for (float& f : x->x) f = 64 + 0.5F * static_cast<float>(random() % 5);  // exact in f16 and bf16
  const lagkv::policy p = named("lagkv:sink=0,lag=16,ratio=0.5");
  const lagkv::candidates due = p.budget.due({}, 80);
  lagkv::workspace ws;
  cache plain(layout::heads_first, dtype::f32, k, v);
  const std::span<const float> first = lagkv::score(p, plain.layer(80), due, ws);
  const std::vector<float> wanted(first.begin(), first.end());
  EXPECT_LT(*std::min_element(wanted.begin(), wanted.end()), 0.9F * *std::max_element(wanted.begin(), wanted.end()));
  for (const dtype type : {dtype::f16, dtype::bf16}) {
    cache ours(layout::heads_first, type, k, v);
    const std::span<const float> found = lagkv::score(p, ours.layer(80), due, ws);
    ASSERT_EQ(found.size(), wanted.size());
    for (std::size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 1e-6) << lagkv::name(type) << ", " << i;
  }
}

// Lengths of 2^-12 and of 2^12, too.
TEST(methods, by_directions_or_shares_do_not_change_with_the_scale_of_keys_and_values) {
  for (const std::string method : {"cur", "key_diff", "nested", "novelty", "distinct"}) {
    const auto scores = [&](float by) {
      cube k = make_cube(61, 2, 60, 8), v = make_cube(62, 2, 60, 8);
      for (cube* x : {&k, &v})
        for (float& f : x->x) f *= by;
      cache ours(layout::heads_first, dtype::f32, k, v);
      lagkv::workspace ws;
      const std::span<const float> found =
          lagkv::score(named_any(method + ":sink=4,keep=0.5,pre_rope=no"), ours.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
      return std::vector<float>(found.begin(), found.end());
    };
    const std::vector<float> wanted = scores(1);
    for (const float by : {0x1p-12F, 0x1p12F}) {
      const std::vector<float> found = scores(by);
      for (std::size_t i = 0; i < wanted.size(); ++i)
        ASSERT_NEAR(found[i], wanted[i], 1e-5F * (1e-3F + std::abs(wanted[i]))) << method << ", " << by << ", " << i;
    }
  }
}

// The same numbers in other channels: of finite rows, and where a channel of a whole partition holds nothing finite.
TEST(methods, by_distances_and_products_do_not_change_with_the_order_of_channels) {
  constexpr std::size_t tokens = 110, channels = 8;
  const cube k = make_cube(61, 2, tokens, channels), v = make_cube(62, 2, tokens, channels),
             q = make_cube(63, 4, tokens, channels);
  const auto turned = [](const cube& x, std::size_t by) {
    cube out = x;
    for (std::size_t h = 0; h < x.heads; ++h)
      for (std::size_t t = 0; t < x.tokens; ++t)
        std::rotate_copy(x.row(h, t), x.row(h, t) + by, x.row(h, t) + channels, out.row(h, t));
    return out;
  };
  for (const std::string text :
       {"lagkv:sink=4,lag=20", "lagkv:sink=4,lag=20,form=local", "lagkv:sink=4,lag=20,form=kvpress", "key_norm", "value_norm",
        "cur", "paged_eviction", "key_diff", "key_diff:lag=20", "manifold", "manifold:lag=20", "leverage", "nested",
        "novelty:pre_rope=no", "novelty:pre_rope=no,lag=20", "snapkv", "h2o", "tova", "expected_attention"})
    for (const bool broken : {false, true}) {
      cube bad = k;
      for (std::size_t t = 44; broken && t < 64; ++t) bad.row(0, t)[2] = t % 2 == 0 ? NAN : INFINITY;
      const auto scores = [&](std::size_t by) {
        asked_cache c(layout::heads_first, dtype::f32, turned(bad, by), turned(v, by), turned(q, by));
        lagkv::workspace ws;
        const lagkv::policy p = named_any(text);
        lagkv::candidates due{.rows = {4, 84}, .keep = 40, .partition = p.budget.lag(), .keep_each = 10};
        const std::span<const float> found = lagkv::score(p, c.layer(tokens), due, ws);
        return std::vector<float>(found.begin(), found.end());
      };
      const std::vector<float> wanted = scores(0);
      float largest = 0;
      for (const float s : wanted) largest = std::isfinite(s) ? std::max(largest, std::abs(s)) : largest;
      ASSERT_GT(largest, 0.0F);
      for (const std::size_t by : {1U, 2U, 3U, 7U}) {  // by 2 the channel that is broken is the first, by 3 the last
        const std::vector<float> found = scores(by);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          if (std::isnan(wanted[i]))
            ASSERT_TRUE(std::isnan(found[i])) << text << ", " << by << ", " << i;
          else
            ASSERT_NEAR(found[i], wanted[i], 1e-4F * largest) << text << ", " << by << ", " << i;
        }
      }
    }
}

// Of as many later ones alike the later row scores higher, as far as f32 can tell: with few kinds of keys and many rows, too.
TEST(distinct, scores_the_later_of_equally_many_higher) {
  for (const std::size_t tokens : {3000U, 30000U})
    for (const char* text : {"distinct:pre_rope=no,bits=1", "distinct:pre_rope=no,bits=3", "distinct:pre_rope=no"}) {
      cache c(layout::heads_first, dtype::f32, make_cube(81, 1, tokens, 4), make_cube(82, 1, tokens, 4));
      lagkv::workspace ws;
      const auto scores = lagkv::score(named(text), c.layer(tokens), {.rows = {0, tokens}, .keep = 1}, ws);
      const auto count = [&](std::size_t i) { return std::lround(0.25 - static_cast<double>(scores[i])); };
      std::map<long, std::size_t> before;  // the last row of each count
      std::size_t equal = 0;
      for (std::size_t i = 0; i < tokens; ++i) {
        const long later = count(i);
        ASSERT_GE(later, 0);
        if (const auto found = before.find(later); found != before.end()) {
          const auto apart = static_cast<double>(i - found->second);
          ASSERT_GE(scores[i], scores[found->second]) << text << ", " << i;
          ASSERT_TRUE(scores[i] > scores[found->second] ||
                      apart < static_cast<double>(later) * static_cast<double>(tokens) / 0x1p22)
              << text << ", " << i << " and " << found->second << ": " << later << " later ones";
          ++equal;
        }
        before[later] = i;
      }
      EXPECT_GT(equal, 100U);
      EXPECT_TRUE(std::none_of(scores.begin(), scores.end(), [](float x) { return x >= 0.5F; }));
    }
}

TEST(random, differs_from_token_to_token_and_head_to_head_where_keys_are_alike) {
  cube same(3, 200, 4);
  for (float& f : same.x) f = 1;
  cache ours(layout::heads_first, dtype::f16, same, same);
  lagkv::workspace ws;
  const std::span<const float> found =
      lagkv::score(named("random:sink=4,keep=0.5"), ours.layer(200), {.rows = {4, 180}, .keep = 1}, ws);
  const std::set<float> different(found.begin(), found.end());
  EXPECT_EQ(different.size(), found.size());  // of 2^24 values: two of 528 are the same once in 120 seeds
}

// Around the numbers of candidates at which a tenth is another number of rows, and wherever they begin in the first windows.
// Two rows deviate alike: which deviates more is a matter of rounding.
TEST(nested, holds_for_few_rows_anywhere) {
  const cube k = make_cube(71, 1, 60, 8), v = make_cube(72, 1, 60, 8);
  cache ours(layout::heads_first, dtype::f32, k, v);
  for (const std::size_t window : {std::size_t{3}, std::size_t{7}, std::size_t{40}}) {
    const lagkv::policy p = named_any("nested:keep=0.5,block=9,window=" + std::to_string(window));
    for (const std::size_t n : {std::size_t{1}, std::size_t{2}, std::size_t{5}, std::size_t{9}, std::size_t{14}, std::size_t{15},
                                std::size_t{24}, std::size_t{25}, std::size_t{40}})
      for (std::size_t begin = 0; begin < 12; ++begin) {
        lagkv::workspace ws;
        const auto scores = lagkv::score(p, ours.layer(60), {.rows = {begin, begin + n}, .keep = 1}, ws);
        const std::vector<double> exact = nested_scores(k, 0, {begin, begin + n}, 9, window);
        for (std::size_t i = 0; i < n; ++i)
          ASSERT_NEAR(static_cast<double>(scores[i]), exact[i], 1e-4)
              << n << " rows from " << begin << ", window " << window << ", row " << i;
      }
  }
}

// Of keys that all point the same way no rounding makes one matter more than another.
TEST(nested, scores_keys_that_are_alike_alike) {
  for (const std::size_t dim : {1U, 8U, 24U, 30U, 128U})
    for (const float value : {1.5F, -3e-9F, 7e11F, 0.0F})
      for (const bool lengths : {false, true}) {
        constexpr std::size_t tokens = 331;
        cube k(1, tokens, dim);
        for (std::size_t t = 0; t < tokens; ++t)
          for (std::size_t c = 0; c < dim; ++c)
            k.row(0, t)[c] = value * (1 + 0.1F * static_cast<float>(c % 7)) * (lengths ? 0.1F + static_cast<float>(t % 13) : 1);
        cache ours(layout::heads_first, dtype::f32, k, k);
        for (const lagkv::simd::target target : targets()) {
          lagkv::workspace ws(target);
          const auto found = lagkv::score(named_any("nested"), ours.layer(tokens), {.rows = {4, 300}, .keep = 1}, ws);
          for (const float x : found) ASSERT_EQ(x, found[0]) << dim << " channels of " << value;
          ASSERT_EQ(found[0], 0.0F);
        }
      }
}

// Blocks of their own length, which grows with the sequence, are those of that length.
TEST(nested, takes_a_32nd_of_the_rows_for_a_block) {
  for (const auto& [tokens, block] : {std::pair<std::size_t, std::size_t>(2000, 128), {5000, 156}, {9000, 256}}) {
    const cube k = make_cube(71, 1, tokens, 4);
    cache c(layout::heads_first, dtype::f32, k, k);
    lagkv::workspace ws;
    const lagkv::candidates due{.rows = {4, tokens - 30}, .keep = 1};
    const auto found = lagkv::score(named_any("nested"), c.layer(tokens), due, ws);
    const std::vector<float> own(found.begin(), found.end());
    const auto given = lagkv::score(named_any("nested:block=" + std::to_string(block)), c.layer(tokens), due, ws);
    EXPECT_TRUE(std::equal(own.begin(), own.end(), given.begin(), given.end())) << tokens;
    EXPECT_EQ(std::count_if(own.begin(), own.end(), [](float x) { return std::isfinite(x); }),
              static_cast<std::ptrdiff_t>(own.size()));
  }
}

// Keys and values of zeros have no direction, no norm and no share; statistics of nothing no variance: they are no numbers to
// divide by. Rows of which none is finite are all NaN.
TEST(methods, of_zeros_and_of_nothing_finite_hold) {
  const cube zeros(2, 120, 16), some = make_cube(57, 2, 120, 16), q = make_cube(56, 2, 120, 16);
  cube half = some, none = some;
  for (std::size_t t = 0; t < 120; ++t) {
    if (t % 2 == 0) std::fill_n(half.row(0, t), 16, 0.0F);
    none.row(0, t)[t % 16] = NAN, none.row(1, t)[3] = INFINITY;
  }
  const std::pair<const cube*, const cube*> pairs[] = {{&zeros, &zeros}, {&half, &half}, {&half, &some},
                                                       {&some, &half},   {&none, &none}, {&none, &some}};
  for (const lagkv::method_entry* m : every_method()) {
    if (m->make == nullptr) continue;
    for (const std::size_t lag : {std::size_t{0}, std::size_t{20}})
      for (std::size_t which = 0; which < std::size(pairs); ++which) {
        const auto [x, v] = pairs[which];
        if (lag == 0 && m->name == "lagkv") continue;
        SCOPED_TRACE(std::string(m->name) + ", lag " + std::to_string(lag) + ", pair " + std::to_string(which));
        const lagkv::policy p = named_any("fuse:" + std::string(m->name) + "+random,sink=4,recent=8,lag=" + std::to_string(lag));
        lagkv::policy alone = p;
        alone.fused_count = 0;
        asked_cache c(layout::heads_first, dtype::f32, *x, *v, q);
        std::vector<double> statistics(2 * lagkv::key_statistics::size(16));
        for (const bool fresh : {false, true}) {
          lagkv::layer l = c.layer(120);
          if (fresh) c.extras.key_statistics = {statistics.data()};
          lagkv::workspace ws;
          ASSERT_EQ(check(alone, l).message(), "");
          lagkv::candidates due{.rows = {4, 64}, .keep = 10};
          if (lag != 0) due = alone.budget.due({}, 120);
          const auto s = lagkv::score(alone, l, due, ws);
          for (const float score : s) ASSERT_TRUE(x == &none || std::isfinite(score));
          const lagkv::plan plan = lagkv::plan_eviction(alone, l, {}, ws);
          ASSERT_EQ(plan.heads(), 2U);
          for (std::size_t h = 0; h < 2; ++h) {
            EXPECT_GT(plan.of(h).size(), 0U);
            for (const std::uint32_t row : plan.of(h)) EXPECT_TRUE(row >= plan.candidates.begin && row < plan.candidates.end);
          }
        }
      }
  }
}

// A scorer writes as many numbers as there are candidates, all of them, and none beside them.
TEST(methods, write_a_score_for_each_candidate_and_nothing_else) {
  constexpr std::size_t tokens = 120, room = 32;
  const cube k = make_cube(57, 2, tokens, 16), v = make_cube(58, 2, tokens, 16), q = make_cube(56, 4, tokens, 16);
  const float mark = -12345.5F;
  for (const lagkv::method_entry* m : every_method()) {
    if (m->make == nullptr) continue;
    for (const std::size_t lag : {std::size_t{0}, std::size_t{20}}) {
      if (lag == 0 && m->name == "lagkv") continue;
      lagkv::policy p = named_any("fuse:" + std::string(m->name) + "+random,sink=4,recent=8,lag=" + std::to_string(lag));
      asked_cache c(layout::heads_first, dtype::f32, k, v, q);
      const lagkv::layer l = c.layer(tokens);
      for (const std::size_t n : {std::size_t{20}, std::size_t{60}})
        for (std::size_t head = 0; head < 2; ++head) {
          lagkv::workspace ws;
          const lagkv::workspace::frame scratch(ws);
          std::vector<float> out(room + n + room, mark);
          p.score(l, head, {4, 4 + n}, std::span(out).subspan(room, n), ws);
          for (std::size_t i = 0; i < out.size(); ++i)
            ASSERT_EQ(out[i] == mark, i < room || i >= room + n) << m->name << ", lag " << lag << ", " << n << " rows, " << i;
        }
    }
  }
}

// A few numbers a row and head, whatever scores and selects them, beside 4 MiB of logits.
TEST(methods, take_memory_that_goes_by_the_rows) {
  constexpr std::size_t tokens = 3000, heads = 2, channels = 4;
  const cube k = make_cube(57, heads, tokens, channels), v = make_cube(58, heads, tokens, channels);
  asked_cache c(layout::heads_first, dtype::f32, k, v, make_cube(56, heads, 64, channels));
  std::vector<float> attention(heads * tokens, 1.0F);
  const lagkv::layer l = c.layer(tokens);
  c.extras.accumulated_attention = {attention.data(), tokens};
  for (const lagkv::method_entry* m : every_method()) {
    if (m->make == nullptr || m->name == "lagkv") continue;
    for (const char* more : {"", ",smooth=4,pool=5", ",lag=20", ",select=chunks", ",lag=20,select=chunks", ",select=adaptive",
                             ",lag=20,select=adaptive"}) {
      const lagkv::policy p = named_any(std::string(m->name) + ":sink=4,recent=64,keep=0.5" + more);
      lagkv::workspace ws;
      EXPECT_FALSE(lagkv::plan_eviction(p, l, {}, ws).empty());
      EXPECT_GT(ws.peak(), 0U);
      EXPECT_LE(ws.peak(), 64 * heads * tokens + 65536 + (p.needs.queries > 0 ? std::size_t{4} << 20 : 0)) << m->name << more;
    }
  }
}

// No string gives them, but a host that makes a scorer by hand can: lengths of 0 are those of 1.
TEST(methods, lengths_of_zero_are_those_of_one) {
  const cube k = make_cube(71, 2, 60, 8), v = make_cube(72, 2, 60, 8);
  cache c(layout::heads_first, dtype::f32, k, v);
  const auto kept = [&](auto change) {
    lagkv::policy p = named_any("value_norm:keep=0.5");
    change(p);
    lagkv::workspace ws;
    const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(60), {}, ws);
    return std::vector<std::uint32_t>(plan.kept.begin(), plan.kept.end());
  };
  for (const bool in_partitions : {false, true}) {
    const auto by = [&](auto scorer) {
      return kept([&](lagkv::policy& p) {
        p.score = scorer;
        if (in_partitions) p.budget.keeps = lagkv::keep::partitions{10, 0.5};
      });
    };
    EXPECT_EQ(by(lagkv::cur_score{.window = 0}), by(lagkv::cur_score{.window = 1}));
    EXPECT_EQ(by(lagkv::nested_score{.window = 0}), by(lagkv::nested_score{.window = 1}));
  }
  EXPECT_EQ(kept([](lagkv::policy& p) { p.select = lagkv::chunks{0}; }),
            kept([](lagkv::policy& p) { p.select = lagkv::chunks{1}; }));
}

// make_policy() bounds few of them: no place plus a length may come out as a place before it.
TEST(methods, lengths_beyond_all_rows_are_as_good_as_all_rows) {
  const cube k = make_cube(83, 2, 60, 6), v = make_cube(84, 2, 60, 6);
  cache c(layout::heads_first, dtype::f32, k, v);
  lagkv::workspace ws;
  const auto kept = [&](const lagkv::policy& p) {
    const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(60), {}, ws);
    return std::vector<std::uint32_t>(plan.kept.begin(), plan.kept.end());
  };
  const auto by = [&](const lagkv::scorer& score, std::size_t lag) {
    lagkv::policy p = named_any("value_norm:sink=3,recent=5,keep=0.5");
    p.score = score;
    if (lag != 0) p.budget.keeps = lagkv::keep::partitions{lag, 0.5};
    return kept(p);
  };
  constexpr std::size_t most = ~std::size_t{0};
  for (const std::size_t length : {most, most - 1, most - 30, most / 2 + 1, most / 2}) {
    for (const std::size_t lag : {0U, 9U}) {
      EXPECT_EQ(by(lagkv::cur_score{.window = length, .lag = lag}, lag), by(lagkv::cur_score{.window = 60, .lag = lag}, lag));
      EXPECT_EQ(by(lagkv::manifold_score{.window = length, .lag = lag}, lag),
                by(lagkv::manifold_score{.window = 60, .lag = lag}, lag));
    }
    EXPECT_EQ(by(lagkv::nested_score{.block = length, .window = length}, 0),
              by(lagkv::nested_score{.block = 60, .window = 60}, 0));
    lagkv::policy p = named_any("value_norm:keep=0.5");
    p.select = lagkv::chunks{60};
    const auto whole = kept(p);
    p.select = lagkv::chunks{length};
    EXPECT_EQ(kept(p), whole);
  }
}

// A mean without a covariance counts as one that does not spread.
TEST(expected_attention, by_the_mean_alone) {
  const cube k = make_cube(71, 2, 60, 8), q = make_cube(72, 4, 60, 8);
  support::query_statistics s = plain_statistics(q);
  s.covariance.clear();
  std::vector<float> mean(s.mean.begin(), s.mean.end());
  cache c(layout::heads_first, dtype::f32, k, k);
  lagkv::extras e;
  e.query_mean = lagkv::strided<float>(mean.data(), {4, 8}, {8, 8, 1}, 1);
  lagkv::layer l = c.layer(60);
  l.extra = &e;
  lagkv::workspace ws;
  const auto found = lagkv::score(named_any("expected_attention"), l, {.rows = {4, 50}, .keep = 1}, ws);
  for (std::size_t h = 0; h < 2; ++h) {
    const auto exact = expected_attention_scores(s, k, k, h, {4, 50}, true);
    const double largest = *std::max_element(exact.begin(), exact.end());
    for (std::size_t i = 0; i < 46; ++i) ASSERT_NEAR(found[h * 46 + i], exact[i], 2e-4 * largest) << h << ", " << i;
  }
}

// A row is seen by the queries from its own on, those of rows that have gone since, too: positions count them.
TEST(h2o, a_mean_is_over_all_queries_that_saw_the_row) {
  constexpr std::size_t n = 40;
  const cube k = make_cube(71, 2, n, 8);
  cache c(layout::heads_first, dtype::f32, k, k);
  std::vector<float> sums(2 * n);
  std::vector<std::uint32_t> positions(2 * n);
  std::mt19937 random(8);
  for (std::size_t h = 0; h < 2; ++h)
    for (std::uint32_t i = 0, position = 0; i < n; ++i, position += 1 + static_cast<std::uint32_t>(random() % 5))
      positions[h * n + i] = position, sums[h * n + i] = 1 + static_cast<float>(random() % 100);
  const std::uint32_t seen = 400;  // tokens, the last of which both heads hold
  positions[n - 1] = positions[2 * n - 1] = seen - 1;
  lagkv::extras e;
  e.accumulated_attention = {sums.data(), n}, e.positions = {positions.data(), n};
  lagkv::layer l = c.layer(n);
  l.extra = &e;
  lagkv::workspace ws;
  const auto s = lagkv::score(named_any("h2o:form=mean"), l, {.rows = {3, n}, .keep = 1}, ws);
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t i = 3; i < n; ++i) {
      std::size_t queries = 0;
      for (std::uint32_t q = positions[h * n + i]; q < seen; ++q) ++queries;
      ASSERT_FLOAT_EQ(s[h * (n - 3) + i - 3], sums[h * n + i] / static_cast<float>(queries)) << h << ", " << i;
    }
}

TEST(paged_eviction, of_zeros_is_0_or_the_largest_number) {
  cube k = make_cube(71, 1, 30, 8), v = make_cube(72, 1, 30, 8);
  for (const std::size_t t : {3U, 4U, 20U}) std::fill_n(k.row(0, t), 8, 0.0F);
  for (const std::size_t t : {4U, 9U, 20U}) std::fill_n(v.row(0, t), 8, 0.0F);
  cache c(layout::heads_first, dtype::f32, k, v);
  lagkv::workspace ws;
  const auto s = lagkv::score(named_any("paged_eviction"), c.layer(30), {.rows = {0, 30}, .keep = 1}, ws);
  for (std::size_t t = 0; t < 30; ++t) {
    const bool no_key = t == 3 || t == 4 || t == 20, no_value = t == 4 || t == 9 || t == 20;
    if (no_value)
      EXPECT_EQ(s[t], 0.0F) << t;
    else
      EXPECT_EQ(s[t] == std::numeric_limits<float>::max(), no_key) << t;
    EXPECT_TRUE(no_value || s[t] > 0) << t;
  }
}

// Of no query that is finite nothing is known: they count as one of zeros, which attends to all rows alike.
TEST(expected_attention, of_queries_none_of_which_is_finite_is_that_of_zeros) {
  const cube k = make_cube(71, 2, 60, 8), v = make_cube(72, 2, 60, 8);
  const auto scores = [&](float query, const char* text) {
    cube q(4, 60, 8);
    std::fill(q.x.begin(), q.x.end(), query);
    asked_cache c(layout::heads_first, dtype::f32, k, v, q);
    lagkv::workspace ws;
    const auto found = lagkv::score(named_any(text), c.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
    return std::vector<float>(found.begin(), found.end());
  };
  for (const char* text : {"expected_attention", "expected_attention:values=no", "expected_attention:covariance=no"}) {
    const std::vector<float> wanted = scores(0, text);
    EXPECT_GT(*std::min_element(wanted.begin(), wanted.end()), 0.0F);
    for (const float bad : {NAN, INFINITY}) EXPECT_EQ(scores(bad, text), wanted) << text << ", " << bad;
  }
}

// Sums that the host has lost: such rows go first.
TEST(h2o, a_sum_that_is_not_finite_goes_first) {
  const cube k = make_cube(71, 1, 60, 8), q = make_cube(72, 1, 60, 8);
  asked_cache c(layout::heads_first, dtype::f32, k, k, q);
  std::vector<float> sums(60, 1);
  sums[20] = NAN, sums[21] = 0, sums[49] = NAN;
  c.extras.accumulated_attention = {sums.data(), 60};
  lagkv::workspace ws;
  const auto s = lagkv::score(named_any("h2o"), c.layer(60), {.rows = {4, 50}, .keep = 1}, ws);
  for (std::size_t i = 0; i < 46; ++i) {
    EXPECT_EQ(std::isnan(s[i]), i == 16 || i == 45) << i;
    if (i != 16 && i != 45) {
      EXPECT_EQ(s[i], i == 17 ? 0.0F : 1.0F) << i;
    }
  }
}

TEST(query_statistics, pass_over_rows_that_are_not_finite_and_views_of_another_form) {
  cube q = make_cube(62, 1, 30, 4);
  q.row(0, 7)[2] = NAN, q.row(0, 11)[0] = INFINITY;
  cube good(1, 28, 4);
  for (std::size_t t = 0, to = 0; t < 30; ++t)
    if (t != 7 && t != 11) std::copy_n(q.row(0, t), 4, good.row(0, to++));
  host view(layout::heads_first, dtype::f32, q), other(layout::heads_first, dtype::f32, make_cube(63, 2, 30, 4));
  lagkv::workspace ws;
  lagkv::query_moments all(1, 4);
  EXPECT_EQ(all.statistics().mean, std::vector<float>(4)) << "of nothing";
  all.add(view.view(), {0, 30}, ws), all.add(other.view(), {0, 30}, ws);
  const support::query_statistics exact = plain_statistics(good);
  const lagkv::query_statistics s = all.statistics();
  for (std::size_t c = 0; c < 4; ++c) EXPECT_NEAR(s.mean[c], exact.mean[c], 1e-6);
  for (std::size_t c = 0; c < 16; ++c) EXPECT_NEAR(s.covariance[c], exact.covariance[c], 2e-6);
}

TEST(expected_attention, takes_statistics_from_the_queries_that_are_offered) {
  const cube k = make_cube(52, 1, 90, 8), q = make_cube(53, 2, 90, 8);
  asked_cache c(layout::tokens_first, dtype::f32, k, k, q);
  lagkv::workspace ws;
  const lagkv::policy p = named_any("expected_attention:values=no");
  const lagkv::candidates due{.rows = {4, 60}, .keep = 1};
  const auto scores = lagkv::score(p, c.layer(90), due, ws);
  const auto exact = expected_attention_scores(plain_statistics(q), k, k, 0, {4, 60}, false);
  const double largest = *std::max_element(exact.begin(), exact.end());
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(scores[i], exact[i], 2e-4 * largest);
}

TEST(expected_attention, does_not_change_where_queries_shrink_as_keys_grow) {
  const auto scores = [](float by) {
    cube k = make_cube(52, 1, 90, 8), q = make_cube(53, 2, 90, 8);
    for (float& f : k.x) f /= by;
    for (float& f : q.x) f *= by;
    asked_cache c(layout::tokens_first, dtype::f32, k, k, q);
    lagkv::workspace ws;
    const auto found = lagkv::score(named_any("expected_attention:values=no"), c.layer(90), {.rows = {4, 60}, .keep = 1}, ws);
    return std::vector<float>(found.begin(), found.end());
  };
  const std::vector<float> wanted = scores(1);
  const float largest = *std::max_element(wanted.begin(), wanted.end());
  for (const float by : {0x1p-20F, 0x1p10F}) {
    const std::vector<float> found = scores(by);
    for (std::size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 1e-4F * largest) << by << ", " << i;
  }
}

TEST(methods, rows_that_are_not_finite_go_first) {
  cube k = make_cube(54, 1, 120, 16), v = make_cube(55, 1, 120, 16);
  const cube q = make_cube(56, 1, 120, 16);
  k.row(0, 20)[3] = NAN, k.row(0, 30)[5] = INFINITY, k.row(0, 31)[5] = -INFINITY;
  k.row(0, 34)[15] = INFINITY, k.row(0, 35)[0] = -INFINITY;
  v.row(0, 40)[3] = NAN, v.row(0, 42)[5] = INFINITY;  // under keys that are finite
  for (const char* text :
       {"key_norm", "key_diff", "manifold", "leverage", "cur", "snapkv:window=8,kernel=1", "h2o", "tova", "key_diff:lag=20",
        "manifold:lag=20", "leverage:lag=20", "manifold:window=10", "paged_eviction", "value_norm", "expected_attention",
        "expected_attention:values=no", "fuse:key_norm+key_diff", "lagkv:lag=20,sink=4"}) {
    SCOPED_TRACE(text);
    const lagkv::policy p = named_any(text);
    const bool of_attention = p.needs.queries > 0 || p.needs.accumulated_attention || p.needs.query_statistics;
    cube keys = k;
    if (!of_attention) keys.row(0, 36)[7] = 1e30F;  // finite, but not its square; its logit may be
    asked_cache c(layout::heads_first, dtype::f32, keys, v, q);
    lagkv::workspace ws;
    ASSERT_EQ(check(p, c.layer(120)).message(), "");
    const lagkv::plan plan = lagkv::plan_eviction(p, c.layer(120), {}, ws);
    ASSERT_LT(plan.tokens_after(), 120U);
    std::vector<std::uint32_t> bad;
    if (std::string_view(text).find("value_norm") != 0) bad = {20, 30, 31, 34, 35};
    if (!bad.empty() && !of_attention) bad.push_back(36);
    if (p.needs.values) bad.insert(bad.end(), {40, 42});
    for (std::uint32_t row : bad)
      for (std::uint32_t kept : plan.of(0)) EXPECT_NE(kept, row);
    if (plan.candidates.size() > 0) {
      const auto s = lagkv::score(p, c.layer(120), {.rows = plan.candidates, .keep = 1, .partition = p.budget.lag()}, ws);
      for (std::size_t i = 0; i < s.size(); ++i)
        if (std::find(bad.begin(), bad.end(), plan.candidates.begin + i) == bad.end()) {
          EXPECT_TRUE(std::isfinite(s[i])) << "the others are scored, row " << plan.candidates.begin + i;
        }
    }
  }
}

// A channel that is nothing beside the others, though it varies: its inverse variance is beyond f32.
TEST(novelty, a_channel_that_is_nothing_beside_the_others_spoils_no_score) {
  constexpr std::size_t n = 400, channels = 16;
  for (const float scale : {1e-12F, 1e-15F, 1e-18F, 3e-19F, 1e-19F, 1e-20F, 1e-21F, 1e-22F, 1e-25F, 1e-30F}) {
    cube k = make_cube(3, 1, n, channels), narrow(1, n, channels - 1);
    for (std::size_t i = 0; i < n; ++i) {
      k.row(0, i)[channels - 1] *= scale;
      std::copy_n(k.row(0, i), channels - 1, narrow.row(0, i));
    }
    const auto scores = [&](const cube& x, const char* text) {
      cache c(layout::heads_first, dtype::f32, x, x);
      lagkv::workspace ws;
      const lagkv::policy p = named(text);
      const auto s = lagkv::score(p, c.layer(n), p.budget.due({}, n), ws);
      return std::vector<float>(s.begin(), s.end());
    };
    const std::vector<float> found = scores(k, "novelty:pre_rope=no,smooth=0"),
                             without = scores(narrow, "novelty:pre_rope=no,smooth=0");
    const std::vector<float> alike = scores(k, "distinct:pre_rope=no");
    ASSERT_EQ(found.size(), without.size());
    for (std::size_t i = 0; i < found.size(); ++i) ASSERT_TRUE(std::isfinite(found[i])) << scale << ", row " << i;
    for (std::size_t i = 0; i < found.size() && scale < 1e-15F; ++i)  // then it does not count
      ASSERT_NEAR(found[i], without[i], 1e-4) << scale << ", row " << i;
    EXPECT_GT(*std::min_element(alike.begin(), alike.end()), -60) << scale << ": codes still tell keys apart";
  }
}

TEST(leverage, refuses_a_ridge_that_would_not_hold) {
  EXPECT_EQ(lagkv::make_policy(lagkv::leverage_score{.ridge = -1}).message(), "ridge=-1: must be above 0 and at most 1000000");
}

// No row counts more than itself, and all together as many as there are directions, whatever the rounding.
TEST(leverage, of_keys_that_depend_on_one_another_stays_within_its_bounds) {
  constexpr std::size_t n = 300, channels = 32;
  for (const float scale : {1e-3F, 1.0F, 300.0F, 1e6F})
    for (const double ridge : {1e-300, 1e-9, 0.01}) {
      cube k = make_cube(4, 1, n, channels);
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t c = 0; c < channels; ++c) k.row(0, i)[c] *= scale;
        k.row(0, i)[1] = k.row(0, i)[0];
      }
      for (const std::size_t rows : {n, std::size_t{20}}) {  // fewer than channels, too
        cache c(layout::heads_first, dtype::f32, k, k);
        lagkv::workspace ws;
        std::vector<float> scores(rows);
        lagkv::leverage_score{.ridge = ridge}(c.layer(rows), 0, {0, rows}, scores, ws);
        double sum = 0;
        for (const float s : scores) {
          ASSERT_GE(s, 0) << scale << ", " << ridge;
          ASSERT_LE(s, 1.001F) << scale << ", " << ridge;
          sum += static_cast<double>(s);
        }
        const double directions = std::min<double>(channels - 1, static_cast<double>(rows - 1));
        EXPECT_LE(sum, directions * 1.001) << scale << ", " << ridge << ", " << rows << " rows";
        EXPECT_GE(sum, scale >= 1 ? directions * 0.9 : 0) << scale << ", " << ridge << ", " << rows << " rows";
      }
    }
}

TEST(cur, sums_of_large_squares_do_not_overflow) {
  for (const float large : {1.0F, 1e9F, 5e18F}) {
    cube k(1, 32, 2), v(1, 32, 2);
    for (std::size_t i = 0; i < 32; ++i) k.row(0, i)[0] = large * static_cast<float>(1 + i % 2), v.row(0, i)[1] = large;
    cache c(layout::heads_first, dtype::f32, k, v);
    lagkv::workspace ws;
    std::vector<float> scores(32);
    lagkv::cur_score{.window = 16}(c.layer(32), 0, {0, 32}, scores, ws);
    for (std::size_t i = 0; i < 32; ++i) {  // squares 1 and 4: 40 in a window; values are alike
      const float wanted = (i % 2 == 0 ? 1.0F : 4.0F) / 40.0F / 16.0F;
      ASSERT_NEAR(scores[i], wanted, 1e-6F) << large << ", row " << i;
    }
  }
}

}  // namespace
