// Several layers as one view: the same decisions as layer by layer, and those that only all of them together can take.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/cube.hpp"
#include "support/host.hpp"

namespace {

using namespace support;

constexpr std::size_t layers = 3, heads = 2, tokens = 120, channels = 12;

/// Layers that lie anywhere, tokens first, keys and values in turn: what strides cannot say.
template <class T>
class model_cache {
 public:
  explicit model_cache(unsigned seed) {
    for (std::size_t i = 0; i < layers; ++i) {
      const auto n = static_cast<unsigned>(i);
      for (const cube& x :
           {make_cube(seed + 2 * n, heads, tokens, channels), make_cube(seed + 2 * n + 1, heads, tokens, channels)}) {
        memory_.emplace_back(tokens * heads * channels);
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t c = 0; c < channels; ++c) store(memory_.back()[(t * heads + h) * channels + c], x.row(h, t)[c]);
      }
    }
    for (std::size_t i = 0; i < layers; ++i) keys_.push_back(view(2 * i)), values_.push_back(view(2 * i + 1));
  }
  model_cache(const model_cache&) = delete;

  lagkv::layer stacked() const { return {stack(keys_), stack(values_), tokens}; }
  lagkv::layer one(std::size_t i) const { return {keys_[i], values_[i], tokens}; }

  /// The bits of the rows that a plan should leave, from those that were there.
  std::vector<T> row(std::size_t i, bool value, std::size_t head, std::size_t token) const {
    const T* from = memory_[2 * i + (value ? 1 : 0)].data() + (token * heads + head) * channels;
    return {from, from + channels};
  }
  const std::vector<std::vector<T>>& memory() const { return memory_; }

 private:
  using view_type = lagkv::strided<T>;

  static void store(T& place, float x) {
    const std::uint32_t bits = encoded(lagkv::dtype_of<T>::value, x);
    std::memcpy(&place, &bits, sizeof place);
  }
  static lagkv::stacked<view_type> stack(const std::vector<view_type>& v) { return lagkv::stacked<view_type>(v); }
  view_type view(std::size_t i) {
    return view_type(memory_[i].data(), {heads, channels}, {channels, heads * channels, 1}, tokens);
  }

  std::vector<std::vector<T>> memory_;
  std::vector<view_type> keys_, values_;
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
class stacked_types : public testing::Test {};
using types = testing::Types<float, lagkv::f16, lagkv::bf16>;
TYPED_TEST_SUITE(stacked_types, types);

TYPED_TEST(stacked_types, a_policy_of_single_heads_does_to_all_layers_what_it_does_to_each) {
  for (const char* text :
       {"lagkv:sink=3,lag=16,ratio=0.25", "key_diff:sink=3,recent=9,keep=0.4", "novelty:pre_rope=no,heads=own,keep=0.3",
        "value_norm:sink=2,recent=5,capacity=50", "streaming_llm:capacity=40"}) {
    SCOPED_TRACE(text);
    const lagkv::policy p = named(text);
    model_cache<TypeParam> together(21), apart(21);
    ASSERT_EQ(check(p, together.stacked()).message(), "");
    lagkv::workspace ws;
    lagkv::cursor at;
    const std::size_t left = lagkv::compress(p, together.stacked(), at, ws);
    ASSERT_LT(left, tokens);
    for (std::size_t i = 0; i < layers; ++i) {
      lagkv::cursor own;
      ASSERT_EQ(lagkv::compress(p, apart.one(i), own, ws), left);
      ASSERT_EQ(own.seen(), at.seen());
    }
    for (std::size_t i = 0; i < together.memory().size(); ++i)
      ASSERT_TRUE(same(together.memory()[i], apart.memory()[i])) << "array " << i;
  }
}

TYPED_TEST(stacked_types, shared_heads_are_those_of_all_layers) {
  for (const char* method : {"key_diff", "key_norm", "novelty"}) {
    SCOPED_TRACE(method);
    const std::string keys = ":pre_rope=no,smooth=0,sink=3,recent=9,keep=0.4";
    model_cache<TypeParam> c(31);
    const model_cache<TypeParam> original(31);
    lagkv::workspace ws;

    // Scores layer by layer, and their mean in double.
    const lagkv::policy each = named(method + keys + ",heads=own");
    const lagkv::candidates due = each.budget.due({}, tokens);
    const std::size_t n = due.rows.size();
    std::vector<double> mean(n);
    for (std::size_t i = 0; i < layers; ++i) {
      const auto scores = lagkv::score(each, c.one(i), due, ws);
      ASSERT_EQ(scores.size(), heads * n);
      for (std::size_t j = 0; j < scores.size(); ++j) mean[j % n] += double(scores[j]) / double(layers * heads);
    }
    std::vector<std::uint32_t> best(n);
    for (std::size_t j = 0; j < n; ++j) best[j] = static_cast<std::uint32_t>(j);
    std::sort(best.begin(), best.end(), [&](auto a, auto b) { return mean[a] > mean[b]; });
    ASSERT_GT(mean[best[due.keep - 1]] - mean[best[due.keep]], 1e-7) << "or the choice is rounding's";
    best.resize(due.keep);
    std::sort(best.begin(), best.end());
    for (std::uint32_t& t : best) t += static_cast<std::uint32_t>(due.rows.begin);

    const lagkv::policy all = named(method + keys + ",heads=shared");
    ASSERT_EQ(check(all, c.stacked()).message(), "");
    const lagkv::plan plan = lagkv::plan_eviction(all, c.stacked(), {}, ws);
    for (std::size_t h = 0; h < layers * heads; ++h)
      ASSERT_TRUE(std::equal(plan.of(h).begin(), plan.of(h).end(), best.begin(), best.end())) << "head " << h;
    lagkv::compact(c.stacked(), plan);
    for (std::size_t i = 0; i < layers; ++i)
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t t = 0; t < plan.tokens_after(h); ++t)
          for (const bool value : {false, true})
            ASSERT_TRUE(same(c.row(i, value, h, t), original.row(i, value, h, plan.source(h, t))));
  }
}

TEST(stacked, layers_share_one_budget_where_heads_may_differ) {
  const model_cache<float> c(41);
  const lagkv::policy p = named("key_diff:sink=3,recent=9,keep=0.4,select=adaptive,safeguard=0.2");
  ASSERT_EQ(check(p, c.stacked(), true).message(), "");
  lagkv::workspace ws;
  const lagkv::plan plan = lagkv::plan_eviction(p, c.stacked(), {}, ws);
  const lagkv::candidates due = p.budget.due({}, tokens);
  std::vector<std::size_t> of_layer(layers);
  for (std::size_t h = 0; h < layers * heads; ++h) of_layer[h / heads] += plan.of(h).size();
  EXPECT_EQ(of_layer[0] + of_layer[1] + of_layer[2], layers * heads * due.keep);
  EXPECT_NE(std::count(of_layer.begin(), of_layer.end(), heads * due.keep), std::ptrdiff_t{layers}) << "or this shows nothing";
}

TEST(stacked, bytes_and_their_scales_are_stacked_each) {
  constexpr std::size_t n = 40;
  std::vector<std::vector<std::uint8_t>> bytes(layers);
  std::vector<std::vector<float>> factors(layers);
  std::vector<lagkv::strided<std::int8_t>> rows;
  std::vector<lagkv::strided<float>> scales;
  for (std::size_t i = 0; i < layers; ++i) {
    bytes[i].resize(n * channels), factors[i].resize(n);
    for (std::size_t j = 0; j < bytes[i].size(); ++j) bytes[i][j] = static_cast<std::uint8_t>(j * (17 + 2 * i) % 251);
    for (std::size_t t = 0; t < n; ++t) factors[i][t] = 0.5F + static_cast<float>((t * (7 + i)) % 11);
    rows.emplace_back(bytes[i].data(), lagkv::shape{1, channels}, lagkv::strides{0, channels, 1}, n);
    scales.emplace_back(factors[i].data(), lagkv::shape{1, 1}, lagkv::strides{0, 1, 1}, n);
  }
  const auto before = bytes;
  const auto before_factors = factors;
  const lagkv::tensor keys = lagkv::scaled(lagkv::stacked(std::span<const lagkv::strided<std::int8_t>>(rows)),
                                           lagkv::stacked(std::span<const lagkv::strided<float>>(scales)));
  const lagkv::layer layer{keys, {}, n};
  const lagkv::policy p = named("key_norm:sink=1,recent=3,keep=0.4");
  ASSERT_EQ(check(p, layer).message(), "");
  lagkv::workspace ws, own;
  std::vector<std::vector<std::uint32_t>> kept;
  for (std::size_t i = 0; i < layers; ++i) {
    const auto alone = lagkv::plan_eviction(p, {lagkv::scaled(rows[i], scales[i]), {}, n}, {}, own).of(0);
    kept.emplace_back(alone.begin(), alone.end());
  }
  ASSERT_NE(kept[0], kept[1]) << "or this shows nothing";
  const lagkv::plan plan = lagkv::plan_eviction(p, layer, {}, ws);
  lagkv::compact(layer, plan);
  for (std::size_t i = 0; i < layers; ++i) {
    ASSERT_EQ(std::vector<std::uint32_t>(plan.of(i).begin(), plan.of(i).end()), kept[i]);
    for (std::size_t t = 0; t < plan.tokens_after(i); ++t) {
      const std::size_t from = plan.source(i, t);
      ASSERT_EQ(factors[i][t], before_factors[i][from]);
      ASSERT_EQ(std::memcmp(bytes[i].data() + t * channels, before[i].data() + from * channels, channels), 0);
    }
  }
}

TEST(stacked, layers_that_differ_are_refused) {
  using view = lagkv::strided<float>;
  std::vector<float> data(1000);
  const auto array = [&](std::size_t h, std::size_t d, std::size_t capacity) {
    return view(data.data(), {h, d}, {std::ptrdiff_t(d), std::ptrdiff_t(h * d), 1}, capacity);
  };
  const auto message = [](const std::vector<view>& v, std::size_t n) {
    return lagkv::tensor(lagkv::stacked<view>(v)).check(n).message();
  };
  EXPECT_EQ(message({array(2, 8, 20), array(2, 8, 20)}, 20), "");
  EXPECT_EQ(message({array(2, 8, 20), array(2, 4, 20)}, 20),
            "layer 1 of 2: f32, heads=2, channels=4: must be as layer 0, f32, heads=2, channels=8");
  EXPECT_EQ(message({array(2, 8, 20), array(3, 8, 20)}, 20),
            "layer 1 of 2: f32, heads=3, channels=8: must be as layer 0, f32, heads=2, channels=8");
  EXPECT_EQ(message({array(2, 8, 20), array(2, 8, 19)}, 20), "tokens=20: the view addresses at most 19");
  EXPECT_EQ(message({array(2, 8, 20), view(data.data(), {2, 8}, {8, 7, 1}, 20)}, 20),
            "layer 1 of 2: strides head=8, token=7, channel=1: overlap for 2 heads, 20 tokens, 8 channels");
  EXPECT_EQ(message({}, 0), "heads=0, channels=0: must be 1 or more");
}

}  // namespace
