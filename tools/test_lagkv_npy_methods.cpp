// The other methods: kvpress's scores and kept tokens in tests/golden, and decoding with queries against a few lines of double
// arithmetic.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include <tests/support/rotation.hpp>

#include "test_lagkv_npy.hpp"

namespace {

/// kvpress's name of a budget, and what it leaves of 300 tokens.
struct share {
  std::string removed, keep;
  std::size_t rows;
};

const share shares[] = {{"0.5", "0.5", 150}, {"0.75", "0.25", 75}};

/// The keys, values and queries of tests/golden/presses, and what kvpress makes of them.
class presses : public lagkv_npy {
 protected:
  static constexpr std::size_t heads = 2, group = 3, tokens = 300, dim = 64;

  fs::path input() const { return golden("presses"); }
  std::string with_queries() const { return "--queries " + (input() / "queries.npy").string() + " "; }
  std::string golden_score(const std::string& name) const { return (input() / (name + "_score.npy")).string(); }

  void expect_fine(const run_result& r) const { ASSERT_EQ(r.code, 0) << r.output; }

  std::vector<float> scores() const {
    const npy::array s = load(out() / "scores.npy");
    EXPECT_EQ(s.shape, (std::vector<std::size_t>{heads, tokens}));
    return {s.as<float>().begin(), s.as<float>().end()};
  }

  /// Expects scores.npy to be those of kvpress for the tokens [first, last) of each head, and NaN elsewhere.
  void expect_scores(const fs::path& theirs, std::size_t first, std::size_t last, double tolerance = 1e-5) const {
    const std::vector<float> ours = scores();
    const npy::array reference = load(theirs);
    ASSERT_EQ(reference.size(), ours.size());
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const double expected = static_cast<double>(reference.as<float>()[i]);
      if (i % tokens >= first && i % tokens < last) {
        ASSERT_NEAR(ours[i], expected, tolerance * std::abs(expected)) << theirs << " at " << i;
      } else {
        ASSERT_TRUE(std::isnan(ours[i])) << theirs << " at " << i;
      }
    }
  }

  /// Expects kept_mask.npy to hold the positions of kept.npy, and as many as `rows`.
  void expect_mask_is_kept(std::size_t rows) const {
    const npy::array mask = load(out() / "kept_mask.npy"), kept = load(out() / "kept.npy");
    ASSERT_EQ(mask.type, "|u1");
    ASSERT_EQ(mask.shape, (std::vector<std::size_t>{heads, tokens}));
    ASSERT_EQ(kept.shape, (std::vector<std::size_t>{heads, rows}));
    std::vector<std::uint8_t> expected(heads * tokens);
    for (std::size_t i = 0; i < kept.size(); ++i)
      expected[i / rows * tokens + static_cast<std::size_t>(kept.as<std::int32_t>()[i])] = 1;
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), mask.as<std::uint8_t>().begin()));
  }

  /// Runs the policy at both shares, and expects kvpress's tokens and scores.
  void expect_press(const std::string& name, const std::string& policy, const std::string& more, std::size_t last,
                    double tolerance = 1e-5) const {
    for (const share& s : shares) {
      SCOPED_TRACE(policy + ", removed " + s.removed);
      expect_fine(compress(policy + ",keep=" + s.keep, input(), more + "--scores"));
      expect_same(out() / "kept.npy", input() / (name + "_kept_" + s.removed + ".npy"));
      expect_mask_is_kept(s.rows);
      expect_scores(golden_score(name), 0, last, tolerance);
      expect_gathered(input(), "keys.npy");
      expect_gathered(input(), "values.npy");
    }
  }

  std::size_t rows() const { return load(out() / "kept.npy").shape.at(1); }

  bool kept(std::size_t head, std::size_t position) const {
    return load(out() / "kept_mask.npy").as<std::uint8_t>()[head * tokens + position] == 1;
  }
};

TEST_F(presses, methods_without_queries) {
  expect_press("key_norm", "key_norm:sink=0,recent=0", "", tokens);
  expect_press("key_diff", "key_diff:sink=0,recent=0", "", tokens);
  expect_fine(compress("leverage:sink=0,recent=0", input(), "--scores"));
  expect_scores(golden_score("leverage"), 0, tokens);
}

TEST_F(presses, methods_with_queries) {
  expect_press("snapkv", "snapkv:window=32,kernel=5,sink=0", with_queries(), tokens - 32);
  expect_press("h2o", "h2o:form=mean,sink=0,recent=0,recent_share=0", with_queries(), tokens);
  expect_press("tova", "tova:sink=0", with_queries(), tokens - 1, 2e-5);  // tests/golden/README.md: one score of 9e-12
}

/// kvpress counts windows from the first token, divides by the sum over all, and keeps the first four.
TEST_F(presses, cur) {
  for (const share& s : shares) {
    expect_fine(compress("cur:sink=0,recent=0,keep=" + s.keep, input(), "--scores --protect 0-3"));
    expect_same(out() / "kept.npy", input() / ("cur_kept_" + s.removed + ".npy"));
  }
  const std::vector<float> ours = scores();
  const npy::array theirs = load(golden_score("cur"));
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 4; t < tokens; ++t) {
      const auto over_last = [&](const auto& s) { return s[h * tokens + t] / s[(h + 1) * tokens - 1]; };
      const double expected = static_cast<double>(over_last(theirs.as<float>()));
      ASSERT_NEAR(over_last(ours), expected, 1e-5 * expected) << "head " << h << ", token " << t;
    }
}

TEST_F(presses, expected_attention) {
  for (const char* name : {"expected_T300_D64_cov1_vn1", "expected_T300_D64_cov0_vn0"}) {
    SCOPED_TRACE(name);
    const fs::path folder = golden(name);
    const bool all = fs::exists(folder / "query_covariance.npy");
    const std::string statistics = "--scores --query-mean " + (folder / "query_mean.npy").string() +
                                   (all ? " --query-covariance " + (folder / "query_covariance.npy").string() : "");
    const std::string policy = "expected_attention:sink=4,recent=0" + std::string(all ? "" : ",covariance=no,values=no");
    for (const share& s : shares) {
      expect_fine(compress(policy + ",keep=" + s.keep, folder, statistics));
      expect_same(out() / "kept.npy", folder / ("kept_" + s.removed + ".npy"));
      expect_scores(folder / "score.npy", 4, tokens);
    }
  }
  // Without statistics those of the queries count: the same mean as a file gives the same tokens.
  const npy::array q = load(input() / "queries.npy");
  std::vector<float> mean(heads * group * dim);
  for (std::size_t i = 0; i < q.size(); ++i) mean[i / (tokens * dim) * dim + i % dim] += q.as<float>()[i] / 300;
  ASSERT_TRUE(npy::save(folder_ / "mean.npy", "<f4", {heads * group, dim}, mean));
  expect_fine(compress("expected_attention:covariance=no", input(), with_queries() + "--scores"));
  const std::vector<float> from_queries = scores();
  expect_fine(compress("expected_attention", input(), "--scores --query-mean " + (folder_ / "mean.npy").string()));
  const std::vector<float> from_file = scores();
  for (std::size_t i = 0; i < from_file.size(); ++i)
    if (i % tokens >= 4 && i % tokens < tokens - 32) {
      ASSERT_NEAR(from_file[i], from_queries[i], 1e-4F * from_queries[i]) << i;
    }
}

TEST_F(presses, adakv_keeps_different_numbers_a_head) {
  for (const share& s : shares) {
    fs::remove_all(out());
    const run_result r = compress("key_diff:sink=0,recent=0,select=adaptive,keep=" + s.keep, input(), "--scores");
    expect_fine(r);
    const std::string rows_text = s.rows == 150 ? "from 93 to 207 of 300" : "from 34 to 116 of 300";
    EXPECT_NE(r.output.find(rows_text), std::string::npos) << r.output;
    expect_same(out() / "kept_mask.npy", input() / ("adakv_key_diff_mask_" + s.removed + ".npy"));
    expect_scores(golden_score("key_diff"), 0, tokens);
    for (const char* absent : {"kept.npy", "keys.npy", "values.npy", "lengths.npy"}) EXPECT_FALSE(fs::exists(out() / absent));
  }
  expect_fine(compress("key_diff:select=adaptive,capacity=100", input(), "--protect 40-49"));
  const npy::array mask = load(out() / "kept_mask.npy");
  EXPECT_EQ(std::accumulate(mask.as<std::uint8_t>().begin(), mask.as<std::uint8_t>().end(), 0), 200);
  for (std::size_t p = 40; p < 50; ++p) EXPECT_TRUE(kept(0, p) && kept(1, p)) << p;
  expect_fine(compress("h2o:select=adaptive", input(), with_queries()));
}

TEST_F(presses, scores_of_partitions_and_fusions) {
  expect_fine(compress("key_diff:lag=32,keep=0.25", input(), "--scores"));
  EXPECT_EQ(load(out() / "scores.npy").shape, (std::vector<std::size_t>{heads, 8, 32}));
  EXPECT_EQ(rows(), 4 + 8 * 8 + 40U);
  expect_fine(compress("fuse:lagkv+key_diff,lag=32,keep=0.25,weights=1+0.5", input(), "--scores"));
  const npy::array fused = load(out() / "scores.npy");
  ASSERT_EQ(fused.shape, (std::vector<std::size_t>{heads, 8, 32}));
  for (float s : fused.as<float>()) ASSERT_TRUE(s >= 0 && s < 1.5F && s * 64 == std::floor(s * 64)) << s;
  // Where nothing goes there are scores all the same, of all between the sinks and the window.
  expect_fine(compress("key_norm:capacity=1000,every=5", input(), "--scores"));
  EXPECT_EQ(rows(), tokens);
  std::vector<float> s = scores();
  for (std::size_t i = 0; i < s.size(); ++i) ASSERT_EQ(std::isnan(s[i]), i % tokens < 4 || i % tokens >= tokens - 32) << i;
  // The window of h2o is a share of the budget.
  expect_fine(compress("h2o:capacity=100", input(), with_queries() + "--scores"));
  s = scores();
  for (std::size_t i = 0; i < s.size(); ++i) ASSERT_EQ(std::isnan(s[i]), i % tokens < 4 || i % tokens >= tokens - 50) << i;
  expect_fine(compress("h2o:capacity=1000", input(), with_queries() + "--scores"));
  s = scores();
  for (std::size_t i = 0; i < s.size(); ++i) ASSERT_EQ(std::isnan(s[i]), i % tokens < 4 || i % tokens == tokens - 1) << i;
}

TEST_F(presses, protects_positions) {
  const std::string protect = " --protect 129,40-49,120-128";
  for (const char* policy : {"key_norm:keep=0.25", "random:capacity=75", "streaming_llm:capacity=75",
                             "key_diff:select=chunks,keep=0.25", "lagkv:sink=4,lag=32,form=kvpress_cross,ratio=0.25"})
    for (const char* steps : {"--steps 300", "--steps 100,1x200"}) {
      SCOPED_TRACE(std::string(policy) + " " + steps);
      expect_fine(compress(policy, input(), steps));
      const std::size_t unprotected = rows();
      EXPECT_FALSE(kept(0, 40) && kept(0, 45) && kept(0, 49) && kept(0, 125));
      expect_fine(compress(policy, input(), steps + protect));
      EXPECT_EQ(rows(), unprotected) << "others go in their place";
      expect_mask_is_kept(rows());
      expect_gathered(input(), "keys.npy");
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t i = 0; i < 10; ++i) EXPECT_TRUE(kept(h, 40 + i) && kept(h, 120 + i)) << h << ", " << i;
    }
  expect_fine(compress("lagkv:sink=4,lag=32,ratio=0.25", input(), "--protect 40-60"));  // 21 of one partition, whose share is 8
  for (std::size_t p = 40; p <= 60; ++p) EXPECT_TRUE(kept(0, p)) << p;
}

TEST_F(presses, budgets_of_a_model) {
  // 2 heads x 2 x 64 channels x 4 bytes: 1024 a token.
  expect_fine(compress("key_norm:budget_mb=0.1", input()));
  EXPECT_EQ(rows(), 97U);
  expect_fine(compress("key_norm:budget_mb=0.1", input(), "--layer 1/2"));
  EXPECT_EQ(rows(), 48U);
  std::size_t all = 0, last = tokens;
  for (const char* layer : {"0/4", "1/4", "2/4", "3/4"}) {
    expect_fine(compress("key_norm:capacity=100,pyramid=20", input(), "--layer " + std::string(layer)));
    EXPECT_LT(rows(), last) << layer;
    last = rows(), all += last;
  }
  EXPECT_NEAR(static_cast<double>(all), 400, 2);
}

/// Decoding by an oracle in double. On these inputs two scores at a cut differ by 7e-4 or more of their size: f32 decides alike.
class decoding : public presses {
 protected:
  using row_list = std::vector<std::size_t>;

  struct budget {
    std::size_t capacity, sink, recent;
    std::size_t every = 1;
  };

  void SetUp() override {
    presses::SetUp();
    if (testing::Test::IsSkipped()) return;
    keys_ = load(input() / "keys.npy"), queries_ = load(input() / "queries.npy");
  }

  /// Weights of the query of position `p` of query head `q` over those rows that are not behind it.
  std::vector<double> attention(std::size_t q, std::size_t p, const row_list& rows) const {
    std::vector<double> w(rows.size());
    double top = -1e300, sum = 0;
    const auto sees = [&](std::size_t i) { return rows[i] <= p; };
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t c = 0; c < dim; ++c)
        w[i] += static_cast<double>(queries_.as<float>()[(q * tokens + p) * dim + c]) *
                static_cast<double>(keys_.as<float>()[(q / group * tokens + rows[i]) * dim + c]) / 8;
      if (sees(i)) top = std::max(top, w[i]);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) sum += w[i] = sees(i) ? std::exp(w[i] - top) : 0;
    for (double& x : w) x /= sum;
    return w;
  }

  /// appended(head, rows, n) comes before the scores of each step, score(head, rows, begin, end, queries) gives the scores of
  /// rows [begin, end) from the last `queries` tokens, which all heads still hold.
  template <class Appended, class Score>
  std::vector<row_list> decode(const std::vector<std::size_t>& steps, const budget& b, const Appended& appended,
                               const Score& score) const {
    std::vector<row_list> all(heads);
    std::size_t seen = 0;
    for (std::size_t n : steps) {
      std::size_t queries = seen += n;
      for (row_list& rows : all) {
        for (std::size_t p = seen - n; p < seen; ++p) rows.push_back(p);
        appended(static_cast<std::size_t>(&rows - all.data()), rows, n);
        std::size_t unbroken = 1;
        while (unbroken < rows.size() && rows[rows.size() - 1 - unbroken] == seen - 1 - unbroken) ++unbroken;
        queries = std::min(queries, unbroken);
      }
      for (std::size_t h = 0; h < heads && all[h].size() >= b.capacity + b.every; ++h) {
        row_list& rows = all[h];
        const std::size_t begin = b.sink, end = rows.size() - b.recent, goes = rows.size() - b.capacity;
        const std::vector<double> s = score(h, rows, begin, end, queries);
        std::vector<std::size_t> order(end - begin);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return s[x] > s[y]; });
        std::vector<std::size_t> out(order.end() - static_cast<std::ptrdiff_t>(goes), order.end());
        std::sort(out.rbegin(), out.rend());
        for (std::size_t i : out) rows.erase(rows.begin() + static_cast<std::ptrdiff_t>(begin + i));
      }
    }
    return all;
  }

  void expect_kept(const std::vector<row_list>& expected) const {
    const npy::array found = load(out() / "kept.npy");
    ASSERT_EQ(found.size(), expected[0].size() * heads);
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t i = 0; i < expected[h].size(); ++i)
        ASSERT_EQ(static_cast<std::size_t>(found.as<std::int32_t>()[h * expected[h].size() + i]), expected[h][i])
            << "head " << h << ", row " << i;
  }

  static std::vector<std::size_t> steps() {
    std::vector<std::size_t> n(182, 1);
    n[0] = 80, n[1] = 40;
    return n;
  }
  static constexpr const char* steps_option = "--steps 80,40,1x180";

  npy::array keys_, queries_;
};

TEST_F(decoding, h2o_keeps_its_sums) {
  for (const bool mean : {false, true}) {
    std::vector<std::vector<double>> sums(heads, std::vector<double>(tokens));
    const auto observe = [&](std::size_t h, const row_list& rows, std::size_t n) {
      for (std::size_t i = rows.size() - n; i < rows.size(); ++i)
        for (std::size_t g = 0; g < group; ++g) {
          const std::vector<double> w = attention(h * group + g, rows[i], rows);
          for (std::size_t r = 0; r < rows.size(); ++r) sums[h][rows[r]] += w[r] / static_cast<double>(group);
        }
    };
    const auto score = [&](std::size_t h, const row_list& rows, std::size_t begin, std::size_t end, std::size_t) {
      std::vector<double> s;
      for (std::size_t r = begin; r < end; ++r)
        s.push_back(sums[h][rows[r]] / (mean ? static_cast<double>(rows.back() - rows[r] + 1) : 1));
      return s;
    };
    const auto expected = decode(steps(), {.capacity = 64, .sink = 4, .recent = 32}, observe, score);
    expect_fine(compress(mean ? "h2o:capacity=64,form=mean" : "h2o:capacity=64", input(), with_queries() + steps_option));
    expect_kept(expected);
    expect_gathered(input(), "keys.npy");
  }
}

/// With recent=3 fewer than 16 tokens at the end are whole in both heads now and then: then fewer queries vote.
TEST_F(decoding, snapkv_sees_the_last_queries) {
  constexpr std::size_t window = 16;
  for (const std::size_t recent : {3U, 16U}) {
    std::size_t fewest = window;
    const auto score = [&](std::size_t h, const row_list& rows, std::size_t begin, std::size_t end, std::size_t queries) {
      fewest = std::min(fewest, queries);
      std::vector<double> sum(rows.size());
      for (std::size_t n = 0; n < std::min(queries, window); ++n)
        for (std::size_t g = 0; g < group; ++g) {
          const std::vector<double> w = attention(h * group + g, rows[rows.size() - 1 - n], rows);
          for (std::size_t r = 0; r < rows.size(); ++r) sum[r] += w[r];
        }
      return std::vector<double>(sum.begin() + static_cast<std::ptrdiff_t>(begin),
                                 sum.begin() + static_cast<std::ptrdiff_t>(end));
    };
    const auto nothing = [](std::size_t, const row_list&, std::size_t) {};
    const auto expected = decode(steps(), {.capacity = 64, .sink = 4, .recent = recent, .every = 4}, nothing, score);
    EXPECT_EQ(fewest < window, recent < window);
    expect_fine(compress("snapkv:window=16,kernel=1,capacity=64,every=4,recent=" + std::to_string(recent), input(),
                         with_queries() + steps_option));
    expect_kept(expected);
  }
}

TEST_F(decoding, novelty_is_told_from_all_keys_dropped_ones_too) {
  constexpr std::size_t sink = 4;
  const auto unit = [&](std::size_t h, std::size_t p) {
    std::vector<double> u(dim);
    double squares = 0;
    for (std::size_t c = 0; c < dim; ++c) {
      u[c] = static_cast<double>(keys_.as<float>()[(h * tokens + p) * dim + c]);
      squares += u[c] * u[c];
    }
    for (double& x : u) x /= std::sqrt(squares);
    return u;
  };
  const auto score = [&](std::size_t h, const row_list& rows, std::size_t begin, std::size_t end, std::size_t) {
    std::vector<double> mean(dim), variance(dim), s;
    const double n = static_cast<double>(rows.back() + 1 - sink);
    for (std::size_t p = sink; p <= rows.back(); ++p) {
      const std::vector<double> u = unit(h, p);
      for (std::size_t c = 0; c < dim; ++c) mean[c] += u[c] / n, variance[c] += u[c] * u[c] / n;
    }
    for (std::size_t c = 0; c < dim; ++c) variance[c] -= mean[c] * mean[c];
    for (std::size_t r = begin; r < end; ++r) {
      const std::vector<double> u = unit(h, rows[r]);
      double sum = 0;
      for (std::size_t c = 0; c < dim; ++c) sum += (u[c] - mean[c]) * (u[c] - mean[c]) / variance[c];
      s.push_back(std::sqrt(sum / static_cast<double>(dim)));
    }
    return s;
  };
  const auto nothing = [](std::size_t, const row_list&, std::size_t) {};
  const auto expected = decode(steps(), {.capacity = 64, .sink = sink, .recent = 16, .every = 4}, nothing, score);
  expect_fine(compress("novelty:pre_rope=no,heads=own,smooth=0,sink=4,recent=16,capacity=64,every=4", input(), steps_option));
  expect_kept(expected);
}

TEST_F(decoding, every_method_goes_step_by_step) {
  const std::string statistics = "--query-mean " + (golden("expected_T300_D64_cov1_vn1") / "query_mean.npy").string();
  for (const char* policy : {"snapkv:window=8,recent=0,capacity=60", "tova:capacity=60", "expected_attention:capacity=60",
                             "expected_attention:capacity=60,recent=0", "fuse:snapkv+h2o,window=8,capacity=60"}) {
    SCOPED_TRACE(policy);
    expect_fine(compress(policy, input(), with_queries() + steps_option));
    EXPECT_EQ(rows(), 60U);
    expect_mask_is_kept(60);
    expect_gathered(input(), "keys.npy");
    expect_gathered(input(), "values.npy");
  }
  expect_fine(compress("expected_attention:capacity=60", golden("expected_T300_D64_cov1_vn1"), statistics + " --steps 20x15"));
  EXPECT_EQ(rows(), 60U);
}

/// Keys that are rotated in double are scored as they were before.
class rotated : public presses {
 protected:
  void SetUp() override {
    presses::SetUp();
    if (testing::Test::IsSkipped()) return;
    fs::create_directories(folder_ / "in");
    fs::copy_file(input() / "values.npy", folder_ / "in" / "values.npy", fs::copy_options::overwrite_existing);
  }

  void save_rotated(const lagkv::rope& r) const {
    const npy::array keys = load(input() / "keys.npy");
    std::vector<float> all;
    for (std::size_t row = 0; row < heads * tokens; ++row) {
      const float* k = keys.as<float>().data() + row * dim;
      for (double x : support::turned({k, k + dim}, static_cast<double>(row % tokens), r)) all.push_back(static_cast<float>(x));
    }
    ASSERT_TRUE(npy::save(folder_ / "in" / "keys.npy", "<f4", keys.shape, all));
  }
};

TEST_F(rotated, keys_are_judged_as_they_were_before) {
  std::vector<float> factors(24);
  for (std::size_t j = 0; j < factors.size(); ++j) factors[j] = 1 + 0.25F * static_cast<float>(j);
  const fs::path factors_file = folder_ / "factors.npy";
  ASSERT_TRUE(npy::save(factors_file, "<f4", {factors.size()}, factors));
  const std::pair<lagkv::rope, std::string> cases[] = {
      {{.base = 10000, .pairs = lagkv::rope::pairing::halves}, "--rope-base 10000"},
      {{.base = 5000, .pairs = lagkv::rope::pairing::neighbours, .position_scale = 0.25F},
       "--rope-base 5000 --rope-pairs neighbours --rope-scale 0.25"},
      {{.base = 1e5, .pairs = lagkv::rope::pairing::halves, .dims = 48, .factors = factors},
       "--rope-base 1e5 --rope-dims 48 --rope-factors " + factors_file.string()}};
  for (const char* policy : {"novelty:keep=0.25", "key_diff:pre_rope=yes,keep=0.25",
                             "lagkv:pre_rope=yes,sink=4,lag=32,ratio=0.25", "novelty:capacity=70,every=9"}) {
    std::string pre_rope(policy);
    const std::size_t at = pre_rope.find("pre_rope=yes,");
    if (at == std::string::npos)
      pre_rope += ",pre_rope=no";
    else
      pre_rope.replace(at, 13, "pre_rope=no,");
    const std::string steps = pre_rope.find("capacity") != std::string::npos ? " --steps 100,1x200" : " --scores";
    expect_fine(compress(pre_rope, input(), steps));
    const npy::array expected = load(out() / "kept.npy");
    const npy::array scores = steps == " --scores" ? load(out() / "scores.npy") : npy::array{};
    for (const auto& [rope, options] : cases) {
      SCOPED_TRACE(std::string(policy) + " " + options);
      save_rotated(rope);
      expect_fine(compress(policy, folder_ / "in", options + steps));
      EXPECT_TRUE(load(out() / "kept.npy").data == expected.data);
      expect_gathered(folder_ / "in", "keys.npy");
      if (scores.shape.empty()) continue;
      const npy::array found = load(out() / "scores.npy");
      ASSERT_EQ(found.shape, scores.shape);
      for (std::size_t i = 0; i < found.size(); ++i) {
        const float x = found.as<float>()[i], y = scores.as<float>()[i];
        ASSERT_TRUE(std::isnan(y) ? std::isnan(x) : std::abs(x - y) <= 1e-4F * std::abs(y)) << i << ": " << x << ", " << y;
      }
      if (std::string(policy) == "novelty:keep=0.25") {
        expect_fine(compress("novelty:keep=0.25,pre_rope=no", folder_ / "in"));
        EXPECT_FALSE(load(out() / "kept.npy").data == expected.data) << "or this shows nothing";
      }
    }
  }
}

TEST_F(rotated, refuses_embeddings_that_cannot_be) {
  expect_refused(compress("novelty", input()), ": give --rope-base, or pre_rope=no for keys as they are");
  expect_refused(compress("novelty", input(), "--rope-base 0"), "rope: base=0: must be above 0 and finite");
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-dims 65"), "rope: dims=65: must be at most the 64");
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-dims 7"), "rope: dims=7: must be even");
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-pairs thirds"), "rope-pairs=thirds: must be halves or");
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-scale=-1"), "rope: position_scale=");
  expect_refused(compress("novelty", input(), "--rope-dims 64"), "--rope-base");
  ASSERT_TRUE(npy::save(folder_ / "bad.npy", "<f4", {31}, std::vector<float>(31, 1.0F)));
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-factors " + (folder_ / "bad.npy").string()),
                 "shape [31]: must be [32], one a pair");
  ASSERT_TRUE(npy::save(folder_ / "bad.npy", "<f4", {32}, std::vector<float>(32)));
  expect_refused(compress("novelty", input(), "--rope-base 1e4 --rope-factors " + (folder_ / "bad.npy").string()),
                 "rope: factors[0]=0: must be above 0");
}

TEST_F(presses, takes_queries_of_f16) {
  const npy::array q = load(input() / "queries.npy");
  std::vector<std::uint16_t> half(q.size());
  std::vector<float> rounded(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) {  // towards 0; subnormal numbers become 0
    std::uint32_t bits = 0;
    std::memcpy(&bits, &q.as<float>()[i], sizeof bits);
    const std::uint32_t exponent = bits >> 23 & 0xffU;
    bits = exponent < 113 ? 0 : bits & 0xffffe000U;
    half[i] = static_cast<std::uint16_t>(bits == 0 ? 0 : (bits >> 16 & 0x8000U) | (exponent - 112) << 10 | (bits >> 13 & 0x3ffU));
    std::memcpy(&rounded[i], &bits, sizeof bits);
  }
  ASSERT_TRUE(npy::save(folder_ / "half.npy", "<f2", q.shape, half));
  ASSERT_TRUE(npy::save(folder_ / "rounded.npy", "<f4", q.shape, rounded));
  expect_fine(compress("snapkv", input(), "--queries " + (folder_ / "half.npy").string()));
  const npy::array ours = load(out() / "kept.npy");
  expect_fine(compress("snapkv", input(), "--queries " + (folder_ / "rounded.npy").string()));
  EXPECT_TRUE(ours.data == load(out() / "kept.npy").data);
}

TEST_F(presses, refuses_what_does_not_fit) {
  const fs::path bad = folder_ / "bad.npy";
  const auto save = [&](const std::vector<std::size_t>& shape) {
    std::size_t n = 1;
    for (std::size_t s : shape) n *= s;
    ASSERT_TRUE(npy::save(bad, "<f4", shape, std::vector<float>(n)));
  };
  const auto with = [&](const std::string& policy, const std::string& option) {
    return compress(policy, input(), option + " " + bad.string());
  };
  expect_refused(compress("snapkv", input()), "snapkv: queries: the policy reads those of the last 64 tokens");
  for (const char* policy : {"snapkv", "tova", "h2o", "fuse:key_norm+tova"})
    expect_refused(compress(policy, input()), ": give --queries");
  expect_refused(compress("expected_attention", input()), ": give --query-mean and --query-covariance, or --queries");
  expect_refused(compress("expected_attention:calibrated=yes", input(), with_queries()),
                 "none (layer.extra): give --query-mean and --query-covariance");
  save({6, 299, 64});
  expect_refused(with("snapkv", "--queries"), bad.string() + ": shape [6, 299, 64]: must be [query_heads, 300, 64]");
  save({5, 300, 64});
  expect_refused(with("snapkv", "--queries"), bad.string() + ": queries: heads=5: must be a multiple of the 2 KV heads");
  save({3, 64});
  expect_refused(with("expected_attention", "--query-mean"), bad.string() + ": query_mean: heads=3: must be a multiple");
  expect_refused(with("expected_attention", "--query-covariance"), "shape [3, 64]: must be [query_heads, 64, 64]");
  save({4, 64, 64});
  expect_refused(with("expected_attention", "--query-covariance"), "must be those of query_mean");
  expect_refused(compress("snapkv", input(), "--queries " + (folder_ / "absent.npy").string()), "cannot be opened");
  expect_refused(compress("key_norm:select=adaptive", input(), "--steps 300"),
                 "steps: with select=adaptive heads have different lengths");
  for (const char* positions : {"3,x", "3-", "-3", "9-7", "3,,4", "1.5"})
    expect_refused(compress("key_norm", input(), "--protect=" + std::string(positions)), "must be positions such as");
  expect_refused(compress("key_norm", input(), "--protect 290-300"), "'290-300': must be below the 300 tokens");
  for (const char* layer : {"4/4", "1", "1/", "/2", "a/b"})
    expect_refused(compress("key_norm", input(), "--layer " + std::string(layer)), "must be I/N");
  expect_refused(compress("key_norm:budget_mb=0.01", input()), "key_norm: budget: holds 9 tokens");
  expect_refused(compress("key_norm:keep=2", input()), "key_norm: keep=2: must be above 0 and at most 1");
  expect_refused(compress("leverage:ridge=0", input()), "leverage: ridge=0");
}

}  // namespace
