// One NaN or infinite row and all others: for every method, transform, selector and fusion. Built twice: as other tests, and from
// headers with -ffast-math, as a host may compile its file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <span>
#include <string>
#include <vector>

#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;

constexpr std::size_t heads = 2, tokens = 240, channels = 16, bad = 101;
constexpr std::size_t most_changed = 6;  // of about 180 rows a head: places that one row gives free or takes
constexpr std::uint32_t bad_bits[] = {0x7fc00000, 0xffc12345, 0x7fa00000, 0x7f800000, 0xff800000};

/// Every method whose scores are of the rows' numbers, by a string that other keys can follow, and fusions. LagKV takes none of
/// them: nonfinite_test.
std::vector<std::string> scorers() {
  std::vector<std::string> out;
  for (const lagkv::method_entry* m : every_method())
    if (m->make != nullptr && m->name != "random" && m->name != "stripes" && m->name != "lagkv")
      out.push_back(std::string(m->name) + ":");
  out.insert(out.end(), {"snapkv:kernel=1,", "manifold:window=16,", "novelty:ridge=1,value_weight=1,", "h2o:form=mean,",
                         "expected_attention:covariance=no,values=no,", "fuse:key_norm+value_norm,",
                         "fuse:snapkv+key_diff,kernel=1,weights=1+2,", "fuse:key_diff+cur,by=best,"});
  return out;
}

const char* transforms[] = {"", "pool=9,", "smooth=4,", "heads=shared,", "pool=5,smooth=2,heads=shared,"};
const char* selectors[] = {"top_k", "chunks,chunk=5", "adaptive,safeguard=0.5", "by_head"};
const char* budgets[] = {"keep=0.8", "capacity=190", "keep=0.75,lag=20"};

/// Layer of attention, queries, positions and head budgets in which numbers can be put.
struct offered {
  asked_cache c{layout::heads_first, dtype::f32, shifted(71, heads), make_cube(72, heads, tokens, channels),
                make_cube(73, 2 * heads, tokens, channels)};
  std::vector<std::uint32_t> positions = std::vector<std::uint32_t>(heads * tokens);
  std::vector<float> attention = std::vector<float>(heads * tokens);
  std::vector<float> budgets = {1, 1.25F};

  offered() {
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % tokens);
  }
  static cube shifted(unsigned seed, std::size_t n) {
    cube x = make_cube(seed, n, tokens, channels);
    for (float& v : x.x) v += 0.5F;
    return x;
  }
  lagkv::layer layer() {
    lagkv::layer l = c.layer(tokens);
    c.extras.accumulated_attention = {attention.data(), tokens};
    c.extras.positions = {positions.data(), tokens};
    c.extras.head_budgets = budgets;
    return l;
  }
};

using kept_rows = std::vector<std::vector<std::uint32_t>>;

/// The rows that stay of each head, and the scores in `scores`.
kept_rows kept(const lagkv::policy& p, offered& o, std::vector<float>& scores) {
  const lagkv::layer l = o.layer();
  lagkv::workspace ws;
  EXPECT_EQ(check(p, l, true).message(), "");
  lagkv::accumulate_attention(l, tokens, ws);
  const auto of_all = lagkv::score(p, l, p.budget.due({}, tokens), ws);
  scores.assign(of_all.begin(), of_all.end());
  const lagkv::plan plan = lagkv::plan_eviction(p, l, {}, ws);
  kept_rows out;
  for (std::size_t h = 0; h < heads && !plan.empty(); ++h) out.emplace_back(plan.of(h).begin(), plan.of(h).end());
  EXPECT_EQ(out.size(), heads);
  out.resize(heads);
  return out;
}

/// With `bits` in a channel of the key and of the value of row `bad` of head 0.
kept_rows kept_of_bad(const lagkv::policy& p, std::uint32_t bits, std::vector<float>& scores) {
  offered o;
  o.c.kv.keys.set(0, bad, 3, bits), o.c.kv.values.set(0, bad, 5, bits);
  return kept(p, o, scores);
}

std::size_t only_in(const std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b) {
  return static_cast<std::size_t>(std::count_if(
      a.begin(), a.end(), [&](std::uint32_t row) { return row != bad && std::find(b.begin(), b.end(), row) == b.end(); }));
}

struct one_bad_row : testing::TestWithParam<std::string> {};

TEST_P(one_bad_row, goes_first_and_the_others_stay_as_they_were) {
  std::vector<float> scores;
  for (const char* transform : transforms)
    for (const char* select : selectors)
      for (const char* budget : budgets) {
        const std::string text = GetParam() + transform + "sink=3,recent=20," + budget + ",select=" + select;
        SCOPED_TRACE(text);
        const lagkv::policy p = named_any(text);
        offered o;
        const kept_rows clean = kept(p, o, scores);
        for (const float s : scores) ASSERT_TRUE(lagkv::detail::finite(s));
        const kept_rows first = kept_of_bad(p, bad_bits[0], scores);
        const std::size_t begin = p.budget.due({}, tokens).rows.begin, n = scores.size() / heads;
        for (std::size_t i = 0; i < scores.size(); ++i)
          ASSERT_TRUE(lagkv::detail::finite(scores[i]) || i % n == bad - begin) << "row " << i << " has caught it";
        EXPECT_TRUE(lagkv::detail::is_nan(scores[bad - begin]));
        EXPECT_EQ(std::count(first[0].begin(), first[0].end(), bad), 0);
        ASSERT_EQ(first[0].size() + first[1].size(), clean[0].size() + clean[1].size());
        for (std::size_t h = 0; h < heads; ++h) EXPECT_LE(only_in(clean[h], first[h]), most_changed) << "head " << h;
        const bool plain = *transform == 0 && select == selectors[0];
        for (std::uint32_t bits : std::span(bad_bits).subspan(plain ? 0 : 4))
          EXPECT_EQ(kept_of_bad(p, bits, scores), first) << std::hex << bits;
      }
}

INSTANTIATE_TEST_SUITE_P(all, one_bad_row, testing::ValuesIn(scorers()), [](const auto& i) {
  std::string text = i.param;
  for (char& c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return text;
});

// A sum that rows are divided by is that of the others: as if the bad row were zeros.
TEST(one_bad_row_of_cur, is_in_no_sum) {
  for (const std::uint32_t bits : bad_bits) {
    std::vector<float> scores, of_zeros;
    const lagkv::policy p = named_any("cur:keep=0.5,sink=3,recent=20,window=16");
    kept_of_bad(p, bits, scores);
    offered o;
    for (std::size_t c = 0; c < channels; ++c)
      o.c.kv.keys.set(0, bad, c, encoded(dtype::f32, 0.0F)), o.c.kv.values.set(0, bad, c, encoded(dtype::f32, 0.0F));
    kept(p, o, of_zeros);
    for (std::size_t i = 0; i < scores.size(); ++i)
      if (i != bad - 3) {
        ASSERT_EQ(scores[i], of_zeros[i]) << "row " << i << std::hex << ", " << bits;
      }
  }
}

// A row that is bad to one scorer of a fusion only goes first, however the others like it.
TEST(one_bad_value, goes_first_in_every_fusion) {
  for (const char* fusion :
       {"key_norm+value_norm", "value_norm+key_norm", "value_norm+key_norm,by=best", "key_norm+value_norm,by=best",
        "key_norm+key_diff+value_norm,by=best", "key_norm+value_norm,weights=1+0"}) {
    const std::string text = std::string("fuse:") + fusion + ",sink=3,recent=20,keep=0.8";
    SCOPED_TRACE(text);
    const lagkv::policy p = named_any(text);
    std::vector<float> scores;
    offered o;
    for (std::size_t c = 0; c < channels; ++c) o.c.kv.keys.set(0, bad, c, encoded(dtype::f32, 0.0F));  // the best key
    o.c.kv.values.set(0, bad, 5, bad_bits[3]);
    const kept_rows rows = kept(p, o, scores);
    EXPECT_TRUE(lagkv::detail::is_nan(scores[bad - 3]));
    EXPECT_EQ(std::count(rows[0].begin(), rows[0].end(), bad), 0);
  }
}

// ---- queries and weights -----------------------------------------------------------------------------------------------

/// Every method that reads queries, so that the bad one is among those that it reads.
const char* askers[] = {"snapkv:window=32,", "snapkv:window=32,kernel=1,", "h2o:", "tova:", "expected_attention:"};

TEST(one_bad_query, gives_nothing_and_the_others_go_on) {
  std::vector<float> clean, scores;
  for (const char* asker : askers)
    for (const std::uint32_t bits : bad_bits) {
      const std::string text = std::string(asker) + "sink=3,recent=20,keep=0.8";
      SCOPED_TRACE(text);
      const lagkv::policy p = named_any(text);
      offered o, broken;
      kept(p, o, clean);
      broken.c.queries.set(1, tokens - 2, 4, bits);
      kept(p, broken, scores);
      ASSERT_EQ(scores.size(), clean.size());
      double most = 0;
      for (const float s : clean) most = std::max(most, static_cast<double>(s));
      const double share = std::string(asker) == "expected_attention:" ? 1.0 : 0.5;  // of one query of 32 or more, or of none
      for (std::size_t i = 0; i < scores.size(); ++i) {
        ASSERT_TRUE(lagkv::detail::finite(scores[i]));
        ASSERT_NEAR(scores[i], clean[i], share * most + 1e-6) << "row " << i;
      }
    }
}

// Where no query is finite nothing is known: as many stay, and no score is broken.
TEST(bad_queries, of_all_tokens_leave_scores_that_are_all_alike) {
  std::vector<float> clean, scores;
  for (const char* asker : askers) {
    const std::string text = std::string(asker) + "sink=3,recent=20,keep=0.8";
    SCOPED_TRACE(text);
    const lagkv::policy p = named_any(text);
    offered o, broken;
    const kept_rows of_clean = kept(p, o, clean);
    for (std::size_t h = 0; h < 2 * heads; ++h)
      for (std::size_t t = 0; t < tokens; ++t) broken.c.queries.set(h, t, t % channels, bad_bits[0]);
    const kept_rows of_broken = kept(p, broken, scores);
    for (std::size_t h = 0; h < heads; ++h) EXPECT_EQ(of_broken[h].size(), of_clean[h].size());
    for (const float s : scores) ASSERT_TRUE(lagkv::detail::finite(s));
    if (p.needs.query_statistics) continue;  // times the norm of the value
    for (const float s : scores) ASSERT_EQ(s, 0.0F);
  }
}

TEST(one_bad_weight, gives_nothing) {
  const char* readers[] = {"snapkv:window=32,kernel=1,", "h2o:", "tova:"};
  for (const char* reader : readers)
    for (const std::uint32_t bits : bad_bits) {
      const std::string text = std::string(reader) + "sink=3,recent=20,keep=0.8";
      SCOPED_TRACE(text);
      const lagkv::policy p = named_any(text);
      const auto scores_with = [&](std::uint32_t of_one) {
        offered o;
        cube given(2 * heads, tokens, tokens);
        for (float& w : given.x) w = 1.0F / tokens;
        host weights(layout::heads_first, dtype::f32, given);
        weights.set(0, tokens - 1, 77, of_one);
        lagkv::layer l = o.layer();
        o.c.extras.weights = weights.view(), o.c.extras.accumulated_attention = {};
        lagkv::workspace ws;
        EXPECT_EQ(check(p, l).message(), "");
        const auto s = lagkv::score(p, l, {.rows = {3, 200}, .keep = 1}, ws);
        return std::vector<float>(s.begin(), s.end());
      };
      EXPECT_EQ(scores_with(bits), scores_with(0));
    }
}

}  // namespace
