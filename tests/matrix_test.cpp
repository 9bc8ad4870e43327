// All scorers x selectors x budgets x views, prefill and decode: what must hold whatever the scores are.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;

constexpr std::size_t heads = 2, group = 2, tokens = 160, channels = 8, sink = 3, recent = 6;
const std::vector<std::uint32_t> stay{5, 17, 18, 19, 20, 44, 71, 90, 121};

/// An engine's sequence: cache, accumulated attention and positions, which compress() is to keep in line.
class engine {
 public:
  engine(layout l, dtype type, const lagkv::policy& p, bool protect)
      : policy_(p),
        protect_(protect),
        layout_(l),
        type_(type),
        kv_(host(l, type, heads, tokens, channels), host(l, type, heads, tokens, channels)) {
    for (std::size_t h = 0; h < heads; ++h) expected_[h].reserve(tokens);
  }

  /// Appends n tokens, lets the policy act, and checks everything.
  void append(std::size_t n) {
    for (std::size_t i = 0; i < n; ++i, ++seen_, ++in_use_) {
      kv_.keys.put(k_, seen_, in_use_), kv_.values.put(v_, seen_, in_use_);
      for (std::size_t h = 0; h < heads; ++h) {
        attention_[h * tokens + in_use_] = 0;
        positions_[h * tokens + in_use_] = static_cast<std::uint32_t>(seen_);
        expected_[h].push_back(static_cast<std::uint32_t>(seen_));
      }
    }
    const std::size_t asked = std::min(in_use_, std::max(n, policy_.needs.queries));
    host queries(layout_, type_, last_rows(q_, seen_, asked));
    lagkv::extras e;
    e.queries = queries.view(), e.query_count = asked;
    e.accumulated_attention = {attention_.data(), tokens};
    e.positions = {positions_.data(), tokens};
    e.rope = &rope_, e.importance = importance_.view();
    if (protect_) e.protect = stay;
    lagkv::layer l = kv_.layer(in_use_);
    l.extra = &e;
    ASSERT_EQ(check(policy_, l).message(), "");
    lagkv::accumulate_attention(l, n, ws_);
    const std::vector<float> attention_before = attention_;

    const lagkv::cursor before = at_;
    const lagkv::candidates due = policy_.budget.due(before, in_use_);
    const std::size_t now = lagkv::compress(policy_, l, at_, ws_);
    const lagkv::plan& plan = lagkv::last_plan(ws_);
    ASSERT_EQ(plan.tokens_before, in_use_);
    ASSERT_EQ(plan.candidates, due.rows);
    ASSERT_EQ(at_.seen(), seen_);
    for (std::size_t h = 0; h < heads && !plan.empty(); ++h) {
      const auto kept = plan.of(h);
      ASSERT_TRUE(protect_ ? kept.size() >= due.keep : kept.size() == due.keep) << kept.size() << " of " << due.keep;
      ASSERT_EQ(kept.size(), plan.of(0).size());
      for (std::size_t i = 0; i < kept.size(); ++i) {
        ASSERT_TRUE(kept[i] >= plan.candidates.begin && kept[i] < plan.candidates.end);
        ASSERT_TRUE(i == 0 || kept[i] > kept[i - 1]);
      }
      if (due.partition != 0 && !protect_) {
        for (std::size_t b = due.rows.begin; b < due.rows.end; b += due.partition) {
          ASSERT_EQ(std::count_if(kept.begin(), kept.end(), [&](auto r) { return r >= b && r < b + due.partition; }),
                    static_cast<std::ptrdiff_t>(due.keep_each));
        }
      }
    }

    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<std::uint32_t> left(now);
      for (std::size_t i = 0; i < now; ++i) {
        const std::size_t from = plan.source(h, i);
        left[i] = expected_[h][from];
        ASSERT_EQ(positions_[h * tokens + i], left[i]);
        ASSERT_EQ(attention_[h * tokens + i], attention_before[h * tokens + from]);
        ASSERT_EQ(kv_.keys.row(h, i), all_keys_.row(h, left[i]));
        ASSERT_EQ(kv_.values.row(h, i), all_values_.row(h, left[i]));
      }
      expected_[h] = left;
      for (std::uint32_t s = 0; s < std::min(sink, seen_); ++s) ASSERT_EQ(left[s], s) << "sinks stay";
      for (std::size_t r = 0; r < std::min(recent, now); ++r) ASSERT_EQ(left[now - 1 - r], seen_ - 1 - r) << "the window stays";
      for (std::uint32_t p : stay)
        if (protect_ && p < seen_) {
          ASSERT_TRUE(std::binary_search(left.begin(), left.end(), p)) << p;
        }
    }
    in_use_ = now;
    ASSERT_TRUE(kv_.intact());
  }

  std::size_t in_use() const { return in_use_; }
  std::vector<std::uint32_t> left() const {
    std::vector<std::uint32_t> all = expected_[0];
    all.insert(all.end(), expected_[1].begin(), expected_[1].end());
    return all;
  }

 private:
  lagkv::policy policy_;
  bool protect_;
  layout layout_;
  dtype type_;
  cube k_ = make_cube(61, heads, tokens, channels), v_ = make_cube(62, heads, tokens, channels);
  cube q_ = make_cube(63, heads* group, tokens, channels);
  host all_keys_{layout::heads_first, type_, k_}, all_values_{layout::heads_first, type_, v_};
  cache kv_;
  lagkv::importance_map importance_ = any_importance(heads, channels, channels);
  lagkv::rope rope_{.pairs = lagkv::rope::pairing::halves};
  std::vector<float> attention_ = std::vector<float>(heads * tokens);
  std::vector<std::uint32_t> positions_ = std::vector<std::uint32_t>(heads * tokens);
  std::vector<std::uint32_t> expected_[heads];
  std::size_t in_use_ = 0, seen_ = 0;
  lagkv::cursor at_;
  lagkv::workspace ws_;
};

/// Every method that has scores, by a string that other keys can follow, and some fusions.
std::vector<std::string> scorers() {
  std::vector<std::string> out;
  for (const lagkv::method_entry* m : every_method())
    if (m->make != nullptr && m->name != "lagkv") out.push_back(std::string(m->name) + ":");
  for (std::string& s : out)
    if (s == "snapkv:") s += "window=6,";
  out.insert(out.end(), {"fuse:key_norm+value_norm,", "fuse:snapkv+cur+key_diff,window=6,weights=1+2+0.5,",
                         "fuse:tova+h2o,pool=3,", "fuse:key_diff+cur,by=best,weights=3+1,"});
  return out;
}

struct budget_case {
  const char* name;
  const char* keys;
};

const budget_case budgets[] = {{"keep", "keep=0.4"},
                               {"lag", "keep=0.4,lag=16"},
                               {"capacity", "capacity=60"},
                               {"capacity_every", "capacity=60,every=9,recent_share=0.3"}};

const char* selectors[] = {"top_k", "chunks,chunk=5"};

using matrix_case = std::tuple<std::string, budget_case, const char*, bool>;

class matrix : public testing::TestWithParam<matrix_case> {};

TEST_P(matrix, properties_hold) {
  const auto& [scorer, budget, select, protect] = GetParam();
  const std::string text = scorer + "sink=3,recent=6," + budget.keys + ",select=" + select;
  SCOPED_TRACE(text);
  const auto parsed = lagkv::parse(text, every_method());
  ASSERT_TRUE(parsed) << parsed.message();
  std::vector<std::uint32_t> prefilled, decoded;
  std::size_t which = 0;
  for (layout l : all_layouts) {
    SCOPED_TRACE(name(l));
    // f16 and bf16 in a few layouts; f32 in all, where the same tokens must stay in each.
    for (dtype type : {dtype::f32, which % 2 == 0 ? dtype::f16 : dtype::bf16}) {
      if (type != dtype::f32 && which % 5 != 0) continue;
      engine prefill(l, type, *parsed, protect), decode(l, type, *parsed, protect);
      prefill.append(tokens);
      if (HasFatalFailure()) return;
      ASSERT_LT(prefill.in_use(), tokens) << "something must go";
      decode.append(90);
      for (std::size_t n : {1U, 1U, 1U, 20U, 1U, 30U}) {
        if (!HasFatalFailure()) decode.append(n);
      }
      for (int i = 0; i < 16 && !HasFatalFailure(); ++i) decode.append(1);
      if (HasFatalFailure()) return;
      ASSERT_LT(decode.in_use(), tokens);
      if (type != dtype::f32) continue;
      if (prefilled.empty()) prefilled = prefill.left(), decoded = decode.left();
      ASSERT_EQ(prefill.left(), prefilled) << "the layout does not count";
      ASSERT_EQ(decode.left(), decoded);
    }
    ++which;
  }
}

INSTANTIATE_TEST_SUITE_P(all, matrix,
                         testing::Combine(testing::ValuesIn(scorers()), testing::ValuesIn(budgets), testing::ValuesIn(selectors),
                                          testing::Bool()),
                         [](const auto& i) {
                           std::string text = std::get<0>(i.param) + "_" + std::get<1>(i.param).name + "_" +
                                              std::string(std::get<2>(i.param)).substr(0, 6) +
                                              (std::get<3>(i.param) ? "_protect" : "");
                           for (char& c : text)
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           return text;
                         });

// ---- ragged plans -----------------------------------------------------------------------------------------------------

class ragged : public testing::TestWithParam<std::string> {};

/// Budgets of three heads, 1 on the average.
const std::vector<float> uneven{0.5F, 2, 0.5F};

TEST_P(ragged, heads_share_one_budget_and_go_on_by_themselves) {
  const cube k = make_cube(64, 3, tokens, channels), v = make_cube(65, 3, tokens, channels);
  const cube q = make_cube(66, 6, tokens, channels);
  for (const std::string select : {"adaptive,safeguard=0.5", "by_head"}) {
    const std::string text = GetParam() + "sink=3,recent=6,keep=0.4,select=" + select;
    const auto parsed = lagkv::parse(text, every_method());
    ASSERT_TRUE(parsed) << parsed.message();
    for (layout l : all_layouts) {
      SCOPED_TRACE(select + std::string(", ") + name(l));
      asked_cache c(l, dtype::f32, k, v, last_rows(q, 100, 100));
      const cache original = c.kv;
      lagkv::layer layer = c.layer(100);
      c.extras.head_budgets = uneven;
      ASSERT_FALSE(check(*parsed, layer)) << "hosts must say that they can";
      ASSERT_EQ(check(*parsed, layer, true).message(), "");
      lagkv::workspace ws;
      const lagkv::plan plan = lagkv::plan_eviction(*parsed, layer, {}, ws);
      const lagkv::candidates due = parsed->budget.due({}, 100);
      ASSERT_EQ(plan.kept.size(), 3 * due.keep) << "together as many as with equal budgets";
      for (std::size_t h = 0; h < 3; ++h) {
        ASSERT_GE(plan.of(h).size(), select == "by_head" ? due.keep / 3 : due.keep / 2);
        ASSERT_TRUE(std::is_sorted(plan.of(h).begin(), plan.of(h).end()));
      }
      if (select == "by_head") {
        ASSERT_GT(plan.of(1).size(), 2 * plan.of(0).size());
      }
      lagkv::compact(layer, plan);
      for (std::size_t h = 0; h < 3; ++h) {
        lagkv::cursor at;
        lagkv::advance(at, plan, h);
        ASSERT_EQ(at.tokens, plan.tokens_after(h));
        ASSERT_EQ(at.seen(), 100U);
        for (std::size_t i = 0; i < at.tokens; ++i) {
          ASSERT_EQ(c.kv.keys.row(h, i), original.keys.row(h, plan.source(h, i)));
          ASSERT_EQ(c.kv.values.row(h, i), original.values.row(h, plan.source(h, i)));
        }
      }
      ASSERT_TRUE(c.kv.intact());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(all, ragged, testing::ValuesIn(scorers()), [](const auto& i) {
  std::string text = i.param;
  for (char& c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return text;
});

TEST(ragged_decode, each_head_is_a_sequence_of_its_own) {
  // [heads][capacity][channels], so that a head is an array of its own.
  const cube k = make_cube(67, 2, 150, channels);
  std::vector<float> memory(2 * 150 * channels);
  const auto view = [&](std::size_t head, std::size_t count) {
    return lagkv::strided<float>(memory.data() + head * 150 * channels, {count, channels}, {150 * channels, channels}, 150);
  };
  for (std::size_t h = 0; h < 2; ++h) std::copy_n(k.row(h, 0), 100 * channels, memory.data() + h * 150 * channels);
  const lagkv::policy p = named_any("key_diff:sink=2,recent=10,keep=0.3,select=adaptive");
  lagkv::workspace ws;
  const lagkv::plan plan = lagkv::plan_eviction(p, {view(0, 2), {}, 100}, {}, ws);
  ASSERT_NE(plan.tokens_after(0), plan.tokens_after(1)) << "or this shows nothing";
  lagkv::compact(view(0, 2), plan);
  for (std::size_t h = 0; h < 2; ++h) {
    lagkv::cursor at;
    lagkv::advance(at, plan, h);
    std::size_t rows = at.tokens;
    for (std::size_t t = 100; t < 150; ++t) {
      std::copy_n(k.row(h, t), channels, memory.data() + (h * 150 + rows) * channels);
      rows = lagkv::compress(p, {view(h, 1), {}, rows + 1}, at, ws);
    }
    EXPECT_EQ(at.seen(), 150U);
    EXPECT_LT(rows, plan.tokens_after(h) + 50);
    for (std::size_t c = 0; c < channels; ++c)
      EXPECT_EQ(memory[(h * 150 + rows - 1) * channels + c], k.row(h, 149)[c]) << "the last token is the last row";
  }
}

// ---- ties -----------------------------------------------------------------------------------------------------------

TEST(ties, go_to_the_earlier_token) {
  cube same(2, 80, 4);
  for (float& x : same.x) x = 0.5F;
  for (const char* scorer : {"key_norm:", "value_norm:", "key_diff:", "cur:window=60,", "manifold:", "leverage:", "tova:",
                             "snapkv:window=4,kernel=1,", "expected_attention:", "fuse:key_norm+key_diff,"})
    for (const char* select : {"top_k", "chunks,chunk=4", "adaptive,safeguard=1"}) {
      const std::string text = std::string(scorer) + "sink=4,recent=16,keep=0.5,select=" + select;
      SCOPED_TRACE(text);
      asked_cache c(layout::heads_first, dtype::f32, same, same, cube(2, 80, 4));
      lagkv::workspace ws;
      const lagkv::plan plan = lagkv::plan_eviction(named_any(text), c.layer(80), {}, ws);
      ASSERT_EQ(plan.candidates, (lagkv::token_range{4, 64}));
      for (std::size_t h = 0; h < 2; ++h) {
        std::vector<std::uint32_t> first(20);
        std::iota(first.begin(), first.end(), 4U);
        EXPECT_TRUE(std::ranges::equal(plan.of(h), first));
      }
    }
}

}  // namespace
