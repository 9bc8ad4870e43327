// The official LagKV code and kvpress are the truth: their scores and kept tokens, through every view and kernel.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/golden.hpp"
#include "support/host.hpp"
#include "support/offer.hpp"
#include "support/oracle.hpp"
#include "support/sequence.hpp"

namespace {

using namespace support;
using lagkv::dtype;

/// Whether two sets of kept tokens are the same but for tokens whose exact scores tie (1e-6) with the cut of their partition.
testing::AssertionResult same_but_for_ties(const std::set<int>& ours, const std::set<int>& theirs,
                                           const std::vector<double>& exact, const golden_case& c) {
  if (ours == theirs) return testing::AssertionSuccess();
  if (ours.size() != theirs.size()) return testing::AssertionFailure() << ours.size() << " kept, not " << theirs.size();
  const auto candidates = [&](int token) { return static_cast<std::size_t>(token) - c.sink; };
  std::vector<double> cut(c.partitions(), std::numeric_limits<double>::max());
  for (int token : theirs)
    if (candidates(token) < exact.size())
      cut[candidates(token) / c.lag] = std::min(cut[candidates(token) / c.lag], exact[candidates(token)]);
  std::vector<int> differ;
  std::set_symmetric_difference(ours.begin(), ours.end(), theirs.begin(), theirs.end(), std::back_inserter(differ));
  for (int token : differ)
    if (candidates(token) >= exact.size() || relative(exact[candidates(token)], cut[candidates(token) / c.lag]) > 1e-6)
      return testing::AssertionFailure() << "token " << token << " does not tie with the cut";
  return testing::AssertionSuccess();
}

double worst(std::span<const float> ours, std::span<const double> exact) {
  double w = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) w = std::max(w, relative(ours[i], exact[i]));
  return w;
}

using official = testing::TestWithParam<std::tuple<golden_case, layout>>;

/// Names a test by its parameters.
struct label {
  template <class Info>
  std::string operator()(const Info& i) const {
    return std::string(std::get<0>(i.param).name) + "_" + name(std::get<1>(i.param));
  }
};

TEST_P(official, scores_and_kept_tokens) {
  const auto& [c, l] = GetParam();
  const cube keys = golden_cube(c, "keys"), values = golden_cube(c, "values");
  const dtype theirs = golden_type(c);
  const auto kept = golden<int>(c, "kept");
  const std::size_t kept_each = kept.size() / c.heads, candidates_end = c.sink + c.partitions() * c.lag;
  const lagkv::policy policy = *lagkv::make_lagkv(c.options());

  for (dtype type : all_types) {
    const cube k = rounded(type, keys), v = rounded(type, values);
    const cache original(l, type, k, v);
    std::vector<std::vector<double>> exact;
    for (std::size_t h = 0; h < c.heads; ++h)
      exact.push_back(lagkv_scores(k, v, h, c.sink, c.partitions(), {c.lag, c.value_weight}));

    for (auto target : targets()) {
      SCOPED_TRACE(std::string(lagkv::name(type)) + " " + lagkv::simd::name(target));
      cache ours = original;
      const lagkv::layer layer = ours.layer(c.tokens);
      lagkv::workspace ws(target);
      ASSERT_EQ(lagkv::check(policy, layer).message(), "");
      const lagkv::plan plan = lagkv::plan_eviction(policy, layer, {}, ws);
      ASSERT_EQ(plan.tokens_after(), kept_each);

      std::vector<float> scores(candidates_end - c.sink);
      for (std::size_t h = 0; c.partitions() > 0 && h < c.heads; ++h) {
        policy.score(layer, h, {c.sink, candidates_end}, scores, ws);
        EXPECT_LE(worst(scores, exact[h]), 2e-6);
        if (type == theirs) {
          const auto reference = golden<float>(c, "score");
          for (std::size_t i = 0; i < scores.size(); ++i) ASSERT_LE(relative(scores[i], reference[h * scores.size() + i]), 1e-5);
        }
      }
      if (type == theirs)
        for (std::size_t h = 0; h < c.heads; ++h) {
          std::set<int> a, b;
          for (std::size_t i = 0; i < kept_each; ++i)
            a.insert(static_cast<int>(plan.source(h, i))), b.insert(kept[h * kept_each + i]);
          EXPECT_TRUE(same_but_for_ties(a, b, exact[h], c)) << "head " << h;
        }

      lagkv::cursor at;
      ASSERT_EQ(lagkv::compress(policy, layer, at, ws), kept_each);
      for (std::size_t h = 0; h < c.heads; ++h)
        for (std::size_t i = 0; i < kept_each; ++i) {
          ASSERT_EQ(ours.keys.row(h, i), original.keys.row(h, plan.source(h, i)));
          ASSERT_EQ(ours.values.row(h, i), original.values.row(h, plan.source(h, i)));
        }
      EXPECT_TRUE(ours.intact());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(golden, official,
                         testing::Combine(testing::ValuesIn(golden_of("official")), testing::ValuesIn(all_layouts)), label{});

/// One layer of a real cache with all that methods read beside it. The model's queries are not in the file: keys stand for them,
/// which have its offsets and scales, too.
struct real_cache {
  cube k, v;
  cache kv;
  host queries;
  std::vector<std::uint32_t> positions;
  std::vector<float> attention;
  lagkv::importance_map importance;
  lagkv::rope rope{.base = 100000, .pairs = lagkv::rope::pairing::halves};
  lagkv::extras extras{};

  explicit real_cache(const golden_case& c)
      : k(golden_cube(c, "keys")),
        v(golden_cube(c, "values")),
        kv(layout::heads_first, dtype::f16, k, v),
        queries(layout::heads_first, dtype::f32, last_rows(k, c.tokens, 64)),
        positions(c.heads * c.tokens),
        attention(c.heads * c.tokens),
        importance(any_importance(c.heads, k.channels, v.channels)) {
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % c.tokens);
  }
  lagkv::layer layer() {
    extras.queries = queries.view(), extras.rope = &rope, extras.importance = importance.view();
    extras.positions = {positions.data(), k.tokens}, extras.accumulated_attention = {attention.data(), k.tokens};
    lagkv::layer l = kv.layer(k.tokens);
    l.extra = &extras;
    return l;
  }
};

using real_caches = testing::TestWithParam<golden_case>;

// Every method, on real caches: the targets' scores are near those of the plain one, and they keep the same tokens but for those
// that tie with the cut.
TEST_P(real_caches, targets_score_and_keep_alike) {
  const golden_case c = GetParam();
  std::vector<std::string> policies;
  for (const lagkv::method_entry* m : lagkv::methods())
    if (m->make != nullptr && m->name != "lagkv") policies.push_back(std::string(m->name) + ":sink=16,recent=64,keep=0.25");
  policies.insert(policies.end(),
                  {"lagkv:lag=128,ratio=0.25", "lagkv:lag=128,ratio=0.25,form=kvpress_cross", "key_diff:lag=128,keep=0.25",
                   "key_diff:pre_rope=yes,keep=0.25", "manifold:window=64,keep=0.25", "h2o:form=mean,keep=0.25"});
  std::size_t differ = 0, kept = 0;
  const std::vector<lagkv::simd::target> all = targets();
  std::vector<std::unique_ptr<real_cache>> caches;  // of each target, for each counts attention
  for (const auto target : all) {
    caches.push_back(std::make_unique<real_cache>(c));
    lagkv::workspace ws(target);
    lagkv::accumulate_attention(caches.back()->layer(), 64, ws);
  }
  for (const std::string& text : policies) {
    SCOPED_TRACE(text);
    const lagkv::policy p = named(text);
    std::vector<float> plain;
    std::vector<std::vector<std::uint32_t>> plain_rows;
    for (std::size_t t = 0; t < caches.size(); ++t) {
      const auto target = all[t];
      SCOPED_TRACE(lagkv::simd::name(target));
      const lagkv::layer l = caches[t]->layer();
      lagkv::workspace ws(target);
      ASSERT_EQ(lagkv::check(p, l).message(), "");
      const lagkv::candidates due = p.budget.due({}, c.tokens);
      const auto found = lagkv::score(p, l, due, ws);
      const std::vector<float> scores(found.begin(), found.end());
      const lagkv::plan& plan = lagkv::plan_eviction(p, l, {}, ws);
      std::vector<std::vector<std::uint32_t>> rows;
      for (std::size_t h = 0; h < c.heads; ++h) rows.emplace_back(plan.of(h).begin(), plan.of(h).end());
      if (plain.empty()) {
        plain = scores, plain_rows = rows;
        continue;
      }
      double least = 1e300, most = -1e300;
      for (const float s : plain) least = std::min(least, double{s}), most = std::max(most, double{s});
      const double near = 1e-5 * (most - least), n = static_cast<double>(due.rows.size());
      if (text.rfind("distinct", 0) == 0) {  // counts of equal codes: a sign that is near 0 falls either way
        std::size_t other = 0;
        for (std::size_t i = 0; i < scores.size(); ++i) other += std::abs(scores[i] - plain[i]) > 0.5F ? 1U : 0U;
        ASSERT_LE(static_cast<double>(other), 0.01 * n * static_cast<double>(c.heads));
        continue;
      }
      for (std::size_t i = 0; i < scores.size(); ++i) ASSERT_NEAR(scores[i], plain[i], near) << "candidate " << i;
      for (std::size_t h = 0; h < c.heads; ++h) {
        ASSERT_EQ(rows[h].size(), plain_rows[h].size());
        kept += rows[h].size();
        std::vector<std::uint32_t> apart;
        std::set_symmetric_difference(rows[h].begin(), rows[h].end(), plain_rows[h].begin(), plain_rows[h].end(),
                                      std::back_inserter(apart));
        differ += apart.size() / 2;
        const std::size_t group = due.group();
        for (const std::uint32_t row : apart) {
          const std::size_t at = (row - due.rows.begin) / group * group, in_group = h * due.rows.size() + at;
          double cut = 1e300;  // the least score that stays of the row's partition
          for (const std::uint32_t stays : plain_rows[h])
            if (stays >= due.rows.begin + at && stays < due.rows.begin + at + group)
              cut = std::min(cut, double{plain[in_group + stays - due.rows.begin - at]});
          ASSERT_NEAR(plain[in_group + row - due.rows.begin - at], cut, 2 * near)
              << "row " << row << " does not tie with the cut";
        }
      }
    }
  }
  EXPECT_LE(differ * 1000, kept) << "more than ties";
}

std::vector<golden_case> real_cases() {
  std::vector<golden_case> cases = golden_of("official");
  std::erase_if(cases, [](const golden_case& c) { return std::string(c.name).rfind("real_", 0) != 0; });
  if (cases.size() != 3) throw std::runtime_error("the goldens hold three real caches");
  return cases;
}

INSTANTIATE_TEST_SUITE_P(golden, real_caches, testing::ValuesIn(real_cases()),
                         [](const auto& i) { return std::string(i.param.name); });

using stream = testing::TestWithParam<std::tuple<golden_case, layout>>;

TEST_P(stream, lengths_cursor_and_positions_after_every_call) {
  const golden_case c = std::get<0>(GetParam());
  const layout l = std::get<1>(GetParam());
  const cube k = golden_cube(c, "keys"), v = golden_cube(c, "values");
  const auto steps = golden<int>(c, "steps"), lengths = golden<int>(c, "lengths"), compressed = golden<int>(c, "compressed");
  const lagkv::policy policy = *lagkv::make_lagkv(c.options());
  // What the reference kept, with the window in order and the candidates sorted.
  const auto same_positions = [&](const sequence& s, const std::string& file) {
    const auto kept = golden<int>(c, file);
    for (std::size_t h = 0; h < c.heads; ++h) {
      const auto from = kept.begin() + static_cast<std::ptrdiff_t>(h * s.tokens());
      if (s.positions(h) != std::vector<int>(from, from + static_cast<std::ptrdiff_t>(s.tokens()))) return false;
    }
    return true;
  };
  for (auto target : targets()) {
    SCOPED_TRACE(lagkv::simd::name(target));
    sequence s(l, dtype::f32, k, v);
    lagkv::workspace ws(target);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      s.append(static_cast<std::size_t>(steps[i]), policy, ws);
      ASSERT_EQ(s.tokens(), static_cast<std::size_t>(lengths[i])) << "call " << i;
      // The reference counts the sinks from the start, the cursor from the first compression on.
      ASSERT_EQ(std::max(s.at().compressed, c.sink), static_cast<std::size_t>(compressed[i])) << "call " << i;
      ASSERT_EQ(s.at().seen(), s.seen());
      if (i == c.middle_step) {
        EXPECT_TRUE(same_positions(s, "kept_middle"));
      }
    }
    EXPECT_TRUE(same_positions(s, "kept"));
    EXPECT_TRUE(s.rows_follow_positions());
  }
}

INSTANTIATE_TEST_SUITE_P(golden, stream,
                         testing::Combine(testing::ValuesIn(golden_of("official-stream")), testing::ValuesIn(all_layouts)),
                         label{});

// ---- kvpress ----------------------------------------------------------------------------------------------------------
// Its sinks and tail have the score 1; here they are no candidates.

using kvpress = testing::TestWithParam<layout>;

struct kvpress_case {
  golden_case c = golden_of("kvpress").at(0);
  cube k = golden_cube(c, "keys"), v = golden_cube(c, "values");
  lagkv::token_range candidates{c.sink, c.sink + c.partitions() * c.lag};

  lagkv::policy policy(lagkv::lagkv_form form, double removed) const {
    return *lagkv::make_lagkv({.sink = c.sink, .lag = c.lag, .ratio = 1 - removed, .form = form});
  }
};

TEST_P(kvpress, cross_scoring) {
  const kvpress_case g;
  const auto reference = golden<float>(g.c, "lagkv_cross_score");
  for (auto target : targets()) {
    SCOPED_TRACE(lagkv::simd::name(target));
    cache ours(GetParam(), dtype::f32, g.k, g.v);
    lagkv::workspace ws(target);
    std::vector<float> scores(g.candidates.size());
    for (std::size_t h = 0; h < g.c.heads; ++h) {
      g.policy(lagkv::lagkv_form::kvpress_cross, .5).score(ours.layer(g.c.tokens), h, g.candidates, scores, ws);
      for (std::size_t i = 0; i < scores.size(); ++i)  // kvpress halves the sum
        ASSERT_LE(relative(scores[i], reference[h * g.c.tokens + g.candidates.begin + i]), 1e-5);
    }
    for (auto [removed, file] : {std::pair{.5, "lagkv_cross_kept_0.5"}, {.75, "lagkv_cross_kept_0.75"}}) {
      const auto kept = golden<int>(g.c, file);
      const lagkv::plan plan =
          lagkv::plan_eviction(g.policy(lagkv::lagkv_form::kvpress_cross, removed), ours.layer(g.c.tokens), {}, ws);
      ASSERT_EQ(plan.tokens_after() * g.c.heads, kept.size());
      for (std::size_t h = 0; h < g.c.heads; ++h)
        for (std::size_t i = 0; i < plan.tokens_after(); ++i)
          ASSERT_EQ(plan.source(h, i), static_cast<std::size_t>(kept[h * plan.tokens_after() + i]));
    }
  }
}

TEST_P(kvpress, ranks) {
  const kvpress_case g;
  const auto reference = golden<float>(g.c, "lagkv_score");
  for (auto target : targets()) {
    SCOPED_TRACE(lagkv::simd::name(target));
    cache ours(GetParam(), dtype::f32, g.k, g.v);
    lagkv::workspace ws(target);
    std::vector<float> scores(g.candidates.size());
    const lagkv::policy policy = g.policy(lagkv::lagkv_form::kvpress, .75);
    for (std::size_t h = 0; h < g.c.heads; ++h) {
      policy.score(ours.layer(g.c.tokens), h, g.candidates, scores, ws);
      policy.adjust(scores, 1, {.rows = g.candidates}, ws);
      for (std::size_t i = 0; i < scores.size(); ++i)
        ASSERT_FLOAT_EQ(scores[i], reference[h * g.c.tokens + g.candidates.begin + i]) << "token " << g.candidates.begin + i;
    }
    EXPECT_EQ(lagkv::plan_eviction(policy, ours.layer(g.c.tokens), {}, ws).tokens_after(), g.c.tokens / 4);
  }
}

INSTANTIATE_TEST_SUITE_P(golden, kvpress, testing::ValuesIn(all_layouts), testing::PrintToStringParamName());

}  // namespace
