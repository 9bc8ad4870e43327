// Values that make up for rows that go: against least squares by QR in double, and what it promises.
#include <gtest/gtest.h>

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/attention/refit_values.hpp>
#include <lagkv/lagkv.hpp>

#include "support/methods_oracle.hpp"
#include "support/offer.hpp"

namespace {

using namespace support;
using Eigen::MatrixXd;
using lagkv::dtype;

constexpr double no_ridge = 1e-9;

struct sizes {
  std::size_t heads = 2, group = 3, tokens = 120, queries = 6, key_channels = 16, value_channels = 8;
  float mean = 0;  // of values
};

/// Keys, values and queries as the cache holds them, and what a plan makes of them.
struct problem {
  sizes n;
  cube k, v, q;
  asked_cache host;
  lagkv::policy policy = named("random:sink=3,recent=20,keep=0.5");
  std::set<std::pair<std::size_t, std::size_t>> no_rows{}, no_queries{};  // (head, row) and (query head, query) that take no part
  lagkv::workspace ws;

  explicit problem(const sizes& s = {}, layout l = layout::heads_first, dtype type = dtype::f32)
      : n(s),
        k(rounded(type, scaled(make_cube(1, s.heads, s.tokens, s.key_channels)))),
        v(rounded(type, around(s.mean, make_cube(2, s.heads, s.tokens, s.value_channels)))),
        q(rounded(type, make_cube(3, s.heads * s.group, s.queries, s.key_channels))),
        host(l, type, k, v, q) {}

  /// So that many rows have a part in the softmax.
  static cube scaled(cube x) {
    for (float& f : x.x) f *= 0.05F;
    return x;
  }

  static cube around(float mean, cube x) {
    for (float& f : x.x) f += mean;
    return x;
  }

  lagkv::layer layer() { return host.layer(n.tokens); }
  lagkv::plan plan() { return lagkv::plan_eviction(policy, layer(), {}, ws); }

  cube values() const {
    cube out(n.heads, n.tokens, n.value_channels);
    for (std::size_t h = 0; h < n.heads; ++h)
      for (std::size_t t = 0; t < n.tokens; ++t) {
        const row_bits bits = host.kv.values.row(h, t);
        for (std::size_t c = 0; c < n.value_channels; ++c) out.row(h, t)[c] = decoded(host.kv.values.type(), bits[c]);
      }
    return out;
  }

  /// Weights of the queries of a head's group [queries][rows]: over all rows, or those that stay.
  MatrixXd weights(std::size_t head, const lagkv::plan* p) const {
    MatrixXd w(n.group * n.queries, n.tokens);
    for (std::size_t g = 0; g < n.group; ++g)
      for (std::size_t i = 0; i < n.queries; ++i) {
        std::vector<double> one = attention_weights(q, k, head * n.group + g, i);
        double sum = 0;
        for (std::size_t t = 0; t < n.tokens; ++t) {
          if ((p != nullptr && !stays(*p, head, t)) || no_rows.contains({head, t})) one[t] = 0;
          sum += one[t];
        }
        if (no_queries.contains({head * n.group + g, i})) sum = std::numeric_limits<double>::infinity();
        for (std::size_t t = 0; t < n.tokens; ++t)
          w(static_cast<Eigen::Index>(g * n.queries + i), static_cast<Eigen::Index>(t)) = one[t] / sum;
      }
    return w;
  }

  static bool stays(const lagkv::plan& p, std::size_t head, std::size_t row) {
    return row < p.candidates.begin || row >= p.candidates.end || std::ranges::binary_search(p.of(head), row);
  }

  static MatrixXd matrix_of(const cube& x, std::size_t head) {
    MatrixXd m(x.tokens, x.channels);
    for (std::size_t t = 0; t < x.tokens; ++t)
      for (std::size_t c = 0; c < x.channels; ++c)
        m(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)) = x.row(head, t)[c];
    return m;
  }

  /// By how much the outputs of the rows that stay, with these values, miss those of all rows with the old ones.
  double error(const lagkv::plan& p, const cube& with) const {
    double sum = 0;
    for (std::size_t head = 0; head < n.heads; ++head)
      sum += (weights(head, &p) * matrix_of(with, head) - weights(head, nullptr) * matrix_of(v, head)).squaredNorm();
    return std::sqrt(sum);
  }

  /// The values as they should be, by QR of the weights with the ridge below them.
  MatrixXd exact(const lagkv::plan& p, std::size_t head, double ridge) const {
    const auto kept = p.of(head);
    const MatrixXd stay = weights(head, &p), old = matrix_of(v, head);
    const MatrixXd missing = weights(head, nullptr) * old - stay * old;
    const auto m = static_cast<Eigen::Index>(kept.size());
    MatrixXd stacked = MatrixXd::Zero(stay.rows() + m, m), right = MatrixXd::Zero(stay.rows() + m, old.cols());
    for (Eigen::Index i = 0; i < m; ++i) stacked.col(i).head(stay.rows()) = stay.col(kept[static_cast<std::size_t>(i)]);
    right.topRows(stay.rows()) = missing;
    const Eigen::ArrayXd squares = stacked.topRows(stay.rows()).rowwise().squaredNorm();
    const double mean = squares.sum() / static_cast<double>((squares > 0).count());
    stacked.bottomRows(m).diagonal().setConstant(std::sqrt(ridge * mean));
    const MatrixXd change = stacked.colPivHouseholderQr().solve(right);
    MatrixXd made = old;
    for (Eigen::Index i = 0; i < m; ++i) made.row(kept[static_cast<std::size_t>(i)]) += change.row(i);
    return made;
  }
};

TEST(refit_values, solves_the_least_squares) {
  for (const auto& n : {sizes{}, sizes{.group = 1, .queries = 1}, sizes{.heads = 1, .group = 4, .queries = 30},  // more than rows
                        sizes{.key_channels = 7, .value_channels = 19}})
    for (const double ridge : {1e-3, 0.1, 10.0}) {
      problem x(n);
      const lagkv::plan p = x.plan();
      ASSERT_FALSE(p.empty());
      const lagkv::status s = refit_values(x.layer(), p, ridge, x.ws);
      ASSERT_TRUE(s) << s.message();
      const cube now = x.values();
      for (std::size_t head = 0; head < n.heads; ++head) {
        const MatrixXd exact = x.exact(p, head, ridge), got = problem::matrix_of(now, head);
        ASSERT_LT((got - exact).cwiseAbs().maxCoeff(), 1e-3) << ridge << ", head " << head;
        EXPECT_GT((got - problem::matrix_of(x.v, head)).cwiseAbs().maxCoeff(), 1e-3) << "nothing was changed";
      }
    }
}

// Rows go through it some at a time: some of which none changes, and none at all.
TEST(refit_values, wherever_the_rows_that_change_lie) {
  for (const char* text : {"random:sink=3,recent=200,capacity=230", "random:sink=150,recent=90,capacity=260",
                           "random:sink=130,recent=40,capacity=200"}) {
    problem x({.tokens = 300, .queries = 20});
    x.policy = named(text);
    const lagkv::plan p = x.plan();
    ASSERT_FALSE(p.empty()) << text;
    ASSERT_TRUE(refit_values(x.layer(), p, 0.1, x.ws));
    const cube now = x.values();
    for (std::size_t head = 0; head < x.n.heads; ++head)
      EXPECT_LT((problem::matrix_of(now, head) - x.exact(p, head, 0.1)).cwiseAbs().maxCoeff(), 1e-3) << text << ", head " << head;
  }
  problem x;
  lagkv::plan p = x.plan();
  p.kept.clear();
  for (std::size_t& first : p.first) first = 0;
  ASSERT_TRUE(refit_values(x.layer(), p, 0.1, x.ws));
  EXPECT_EQ(x.values().x, x.v.x);
}

TEST(refit_values, of_as_many_rows_as_queries_keeps_the_outputs) {
  problem x({.queries = 10});  // 30 queries, 37 kept candidates
  const lagkv::plan p = x.plan();
  const double before = x.error(p, x.v);
  ASSERT_GT(before, 1);
  ASSERT_TRUE(refit_values(x.layer(), p, no_ridge, x.ws));
  EXPECT_LT(x.error(p, x.values()), 1e-3 * before);
}

TEST(refit_values, the_error_falls_and_only_kept_candidates_change) {
  for (const layout l : all_layouts)
    for (const dtype type : all_types)
      for (const double ridge : {1e-6, 0.03, 1.0, 1e4}) {
        problem x({.tokens = 90, .queries = 16}, l, type);
        const lagkv::plan p = x.plan();
        const double before = x.error(p, x.v);
        ASSERT_TRUE(refit_values(x.layer(), p, ridge, x.ws));
        const cube now = x.values();
        const double rounding = type == dtype::f32 ? 1e-4 : 0.02;
        EXPECT_LT(x.error(p, now), before * (1 + rounding)) << l << " " << name(type) << " " << ridge;
        if (ridge < 1) {
          EXPECT_LT(x.error(p, now), 0.9 * before) << l << " " << name(type) << " " << ridge;
        }
        for (std::size_t h = 0; h < x.n.heads; ++h)
          for (std::size_t t = 0; t < x.n.tokens; ++t)
            if (!std::ranges::binary_search(p.of(h), t)) {
              ASSERT_TRUE(std::equal(now.row(h, t), now.row(h, t) + x.n.value_channels, x.v.row(h, t))) << h << " " << t;
            }
        EXPECT_TRUE(x.host.kv.intact()) << l << " " << name(type);
      }
}

// Each output is a mean of values: it is off by half a unit in the last place of the largest at most.
TEST(refit_values, the_error_grows_by_no_more_than_the_rounding) {
  for (const auto& [type, unit] : {std::pair{dtype::f32, 0x1p-24}, {dtype::f16, 0x1p-11}, {dtype::bf16, 0x1p-8}})
    for (const float mean : {0.0F, 30.0F, 300.0F, 1000.0F, 5000.0F})
      for (const std::size_t queries : {1U, 2U, 3U, 8U, 20U})
        for (const double ridge : {1e-3, 0.03, 0.1, 0.3, 1.0, 10.0}) {
          problem x({.group = 1, .tokens = 90, .queries = queries, .mean = mean}, layout::heads_first, type);
          const lagkv::plan p = x.plan();
          const double before = x.error(p, x.v);
          ASSERT_TRUE(refit_values(x.layer(), p, ridge, x.ws));
          const double after = x.error(p, x.values());
          const double outputs = static_cast<double>(x.n.heads * x.n.group * queries * x.n.value_channels);
          EXPECT_LE(after, before * (1 + 1e-4) + std::sqrt(outputs) * unit * (mean + 8))
              << name(type) << " " << mean << " " << ridge;
        }
}

TEST(refit_values, of_every_layout_are_the_same) {
  for (const dtype type : all_types) {
    cube first;
    for (const layout l : all_layouts) {
      problem x({}, l, type);
      const lagkv::plan p = x.plan();
      ASSERT_TRUE(refit_values(x.layer(), p, 0.1, x.ws));
      if (first.x.empty()) first = x.values();
      EXPECT_EQ(x.values().x, first.x) << l << " " << name(type);
    }
  }
}

// What is not finite takes no part: the others are as if its row, or its query, were not there.
TEST(refit_values, bad_rows_and_queries_take_no_part) {
  constexpr float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  for (const float number : bad) {
    problem x;
    const lagkv::plan p = x.plan();
    const std::size_t kept = p.of(0)[5], gone = [&] {
      std::size_t row = p.candidates.begin;
      while (problem::stays(p, 0, row)) ++row;
      return row;
    }();
    const std::uint32_t bits = encoded(dtype::f32, number);
    x.host.kv.values.set(0, kept, 2, bits), x.host.kv.values.set(0, gone, 0, bits), x.host.kv.keys.set(0, 1, 3, bits);
    x.host.queries.set(1, 2, 0, bits);  // of the same head
    x.no_rows = {{0, kept}, {0, gone}, {0, 1}}, x.no_queries = {{1, 2}};
    const row_bits untouched = x.host.kv.values.row(0, kept);
    ASSERT_TRUE(refit_values(x.layer(), p, 0.1, x.ws));
    EXPECT_EQ(x.host.kv.values.row(0, kept), untouched);
    const cube now = x.values();
    for (std::size_t h = 0; h < x.n.heads; ++h) {
      const MatrixXd exact = x.exact(p, h, 0.1), got = problem::matrix_of(now, h);
      for (const std::uint32_t row : p.of(h))
        if (h != 0 || row != kept) {
          ASSERT_LT((got.row(row) - exact.row(row)).cwiseAbs().maxCoeff(), 1e-3) << h << " " << row;
        }
    }
  }
}

// Rows that are all alike, queries that are, zeros: no system of equations that cannot be solved.
TEST(refit_values, of_equal_rows_stay_finite) {
  for (const float of_keys : {0.0F, 1.0F})
    for (const double ridge : {no_ridge, 0.1}) {
      problem x({.queries = 20});
      for (std::size_t h = 0; h < x.n.heads; ++h)
        for (std::size_t t = 0; t < x.n.tokens; ++t)
          for (std::size_t c = 0; c < x.n.key_channels; ++c) x.host.kv.keys.set(h, t, c, encoded(dtype::f32, of_keys));
      const lagkv::plan p = x.plan();
      ASSERT_TRUE(refit_values(x.layer(), p, ridge, x.ws));
      const cube now = x.values();
      for (std::size_t i = 0; i < now.x.size(); ++i) {
        ASSERT_TRUE(std::isfinite(now.x[i]));
        ASSERT_LT(std::abs(now.x[i] - x.v.x[i]), 100.0F);
      }
    }
}

TEST(refit_values, one_that_would_exceed_its_type_stays) {
  problem x({.heads = 1, .group = 1, .queries = 1}, layout::heads_first, dtype::f16);
  const lagkv::plan p = x.plan();
  const std::uint32_t huge = encoded(dtype::f16, 65504);
  for (std::size_t t = 0; t < x.n.tokens; ++t)
    if (!problem::stays(p, 0, t) || std::ranges::binary_search(p.of(0), t))
      for (std::size_t c = 0; c < x.n.value_channels; ++c) x.host.kv.values.set(0, t, c, huge);
  const cube before = x.values();
  ASSERT_TRUE(refit_values(x.layer(), p, no_ridge, x.ws));  // what goes makes up for sinks and window: more than 65504 each
  EXPECT_EQ(x.values().x, before.x);
}

TEST(refit_values, bad_input_is_refused_and_nothing_changed) {
  problem x;
  const lagkv::plan p = x.plan();
  const auto refused = [&](const lagkv::layer& l, const lagkv::plan& by, double ridge, const std::string& why) {
    EXPECT_EQ(refit_values(l, by, ridge, x.ws).message(), why);
    EXPECT_EQ(x.values().x, x.v.x);
  };
  const lagkv::layer l = x.layer();
  refused(l, p, 0, "ridge=0: must be 1e-09 or more, and finite");
  refused(l, p, std::numeric_limits<double>::infinity(), "ridge=inf: must be 1e-09 or more, and finite");
  EXPECT_FALSE(refit_values(l, p, std::numeric_limits<double>::quiet_NaN(), x.ws));
  lagkv::layer other = l;
  other.values = {};
  refused(other, p, 1, "values: the layer has none to refit");
  lagkv::extras none = *l.extra;
  none.queries = {};
  other = l, other.extra = &none;
  const char* no_queries = "queries: values are refitted to those of the last tokens; the layer offers none";
  refused(other, p, 1, no_queries);
  other.extra = nullptr;
  refused(other, p, 1, no_queries);
  none = *l.extra, none.scale = -1, other.extra = &none;
  refused(other, p, 1, "scale=-1: must be 0 or more, and finite");

  lagkv::plan wrong = p;
  wrong.tokens_before = 119;
  refused(l, wrong, 1, "plan: tokens=119: must be the layer's 120 (before rows move)");
  wrong = p, wrong.first.pop_back();
  refused(l, wrong, 1, "plan: heads=1: must be the layer's 2");
  wrong = p, wrong.kept[0] = 100;
  refused(l, wrong, 1, "plan: keeps row 100: must be a candidate (3 to 100)");
  wrong = p, wrong.candidates.end = 121;
  refused(l, wrong, 1, "plan: candidates end at 121: must be at most the layer's 120 rows");

  std::vector<std::int8_t> bytes(2 * 120 * 8);
  other = l, other.values = lagkv::strided<std::int8_t>(bytes.data(), {2, 8}, {.head = 120 * 8, .token = 8}, 120);
  refused(other, p, 1, "values: type int8: must be f32, f16 or bf16 (others cannot be written)");
  std::vector<float> numbers(2 * 120 * 8);
  const lagkv::strided<float> plain(numbers.data(), {2, 8}, {.head = 120 * 8, .token = 8}, 120);
  other = l, other.values = lagkv::hadamard(plain, 8);
  refused(other, p, 1, "values: are stored with a scale or under a Hadamard matrix: cannot be written");

  lagkv::plan nothing;
  nothing.clear(120);
  EXPECT_TRUE(refit_values(l, nothing, 1, x.ws));
  EXPECT_EQ(x.values().x, x.v.x);
}

// Heads that keep different numbers, and a scale of the host's.
TEST(refit_values, of_ragged_plans_and_other_scales) {
  problem x;
  x.policy = named("snapkv:window=6,sink=3,recent=20,keep=0.5,select=adaptive,safeguard=0");
  x.host.extras.scale = 0.5F;  // 1 / sqrt(channels) is 0.25
  const lagkv::layer l = x.layer();
  const lagkv::plan p = lagkv::plan_eviction(x.policy, l, {}, x.ws);
  ASSERT_NE(p.of(0).size(), p.of(1).size());
  for (float& f : x.q.x) f *= 2;  // the same logits by the oracle's scale
  const double before = x.error(p, x.v);
  ASSERT_TRUE(refit_values(l, p, 1e-3, x.ws));
  EXPECT_LT(x.error(p, x.values()), 0.5 * before);
  const cube now = x.values();
  for (std::size_t head = 0; head < x.n.heads; ++head)
    EXPECT_LT((problem::matrix_of(now, head) - x.exact(p, head, 1e-3)).cwiseAbs().maxCoeff(), 1e-2) << head;
}

}  // namespace
