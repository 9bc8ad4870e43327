// What a NaN, an infinity or a huge number does, and to whom: score/lagkv_score.hpp states it, these tests hold it to it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"
#include "support/oracle.hpp"

namespace {

using namespace support;
using lagkv::dtype;

constexpr std::size_t lag = 12, sink = 3, partitions = 4, tokens = sink + (partitions + 1) * lag + 2;

struct bad_value {
  const char* name;
  std::uint32_t f32, f16, bf16;

  std::uint32_t bits(dtype type) const { return type == dtype::f32 ? f32 : type == dtype::f16 ? f16 : bf16; }
  friend std::ostream& operator<<(std::ostream& out, const bad_value& b) { return out << b.name; }
};

constexpr bad_value bad_values[] = {{"nan", 0x7fc00000, 0x7e00, 0x7fc0},
                                    {"negative_nan", 0xffc12345, 0xfe01, 0xffc3},
                                    {"signalling_nan", 0x7fa00000, 0x7d00, 0x7fa0},
                                    {"infinity", 0x7f800000, 0x7c00, 0x7f80},
                                    {"negative_infinity", 0xff800000, 0xfc00, 0xff80}};

/// A small cache into whose keys bad values are put.
struct fixture {
  fixture(dtype t, layout l = layout::heads_first, std::size_t channels = 21)
      : type(t),
        k(rounded(t, make_cube(1, 2, tokens, channels))),
        v(rounded(t, make_cube(2, 2, tokens, channels))),
        c(l, t, k, v) {}

  void put(std::size_t token, std::size_t channel, std::uint32_t bits, bool in_values = false) {
    (in_values ? c.values : c.keys).set(0, token, channel, bits);
    (in_values ? v : k).row(0, token)[channel] = decoded(type, bits);
  }
  std::vector<float> scores(lagkv::simd::target target, double weight = 1, bool own = false) {
    const lagkv::policy p = *lagkv::make_lagkv({.sink = sink,
                                                .lag = lag,
                                                .ratio = 0.25,
                                                .value_weight = weight,
                                                .form = own ? lagkv::lagkv_form::local : lagkv::lagkv_form::paper});
    lagkv::workspace ws(target);
    std::vector<float> out(partitions * lag);
    p.score(c.layer(tokens), 0, {sink, sink + partitions * lag}, out, ws);
    return out;
  }
  /// Near the oracle, which follows the same rule; exactly 0 where it is 0.
  void expect_oracle(const std::vector<float>& scores, double weight = 1, bool own = false) const {
    const auto exact = lagkv_scores(k, v, 0, sink, partitions, {lag, weight, own});
    for (std::size_t i = 0; i < scores.size(); ++i) EXPECT_LE(relative(scores[i], exact[i]), 2e-6) << "token " << sink + i;
  }

  dtype type;
  cube k, v;
  cache c;
};

using nonfinite = testing::TestWithParam<std::tuple<bad_value, lagkv::simd::target>>;

TEST_P(nonfinite, token_gets_0_and_the_others_go_on_without_it) {
  const auto& [bad, target] = GetParam();
  const std::size_t token = sink + lag + 5;  // scored in partition 1, reference of partition 0
  for (dtype type : all_types)
    for (std::size_t channel : {0U, 7U, 20U})
      for (bool own : {false, true}) {
        SCOPED_TRACE(std::string(lagkv::name(type)) + " channel " + std::to_string(channel));
        fixture f(type);
        const std::vector<float> clean = f.scores(target, 0, own);
        f.put(token, channel, bad.bits(type));
        const std::vector<float> scores = f.scores(target, 0, own);
        EXPECT_EQ(scores[token - sink], 0.0F);
        f.expect_oracle(scores, 0, own);
        f.expect_oracle(f.scores(target, 1, own), 1, own);  // its values still count
        // Partitions that neither hold the token nor refer to it do not change by a bit.
        for (std::size_t i = 2 * lag; i < scores.size(); ++i) EXPECT_TRUE(same_bits(scores[i], clean[i]));
        // Which of the bad values it is makes no difference.
        fixture g(type);
        g.put(token, channel, bad_values[0].bits(type));
        EXPECT_EQ(g.scores(target, 0, own), scores);
      }
}

TEST_P(nonfinite, value_gets_0_for_the_values_only) {
  const auto& [bad, target] = GetParam();
  for (dtype type : all_types) {
    fixture f(type);
    const auto keys_only = f.scores(target, 0);
    f.put(sink + 5, 4, bad.bits(type), true);
    const auto scores = f.scores(target);
    EXPECT_TRUE(same_bits(scores[5], keys_only[5]));
    f.expect_oracle(scores);
    EXPECT_EQ(f.scores(target, 0), keys_only);
  }
}

TEST_P(nonfinite, reference_passes_it_over) {
  const auto& [bad, target] = GetParam();
  for (dtype type : all_types) {
    fixture f(type);  // the last reference is not scored itself
    for (std::size_t channel = 0; channel < 21; ++channel) f.put(tokens - 3 - channel % 5, channel, bad.bits(type));
    f.expect_oracle(f.scores(target));
  }
}

TEST_P(nonfinite, channel_without_a_finite_reference_counts_for_nothing) {
  const auto& [bad, target] = GetParam();
  for (dtype type : all_types) {
    fixture f(type);
    for (std::size_t i = 0; i < lag; ++i) f.put(sink + partitions * lag + i, 6, bad.bits(type));
    const auto scores = f.scores(target);
    f.expect_oracle(scores);
    for (float s : scores) EXPECT_GT(s, 0.0F);
  }
}

TEST_P(nonfinite, partition_of_it_scores_0) {
  const auto& [bad, target] = GetParam();
  for (dtype type : all_types) {
    fixture f(type);
    const auto clean = f.scores(target, 0);
    for (std::size_t i = 0; i < lag; ++i)
      for (std::size_t channel = 0; channel < 21; ++channel) f.put(sink + lag + i, channel, bad.bits(type));
    const auto scores = f.scores(target, 0);
    f.expect_oracle(scores, 0);
    for (std::size_t i = 0; i < lag; ++i) EXPECT_EQ(scores[lag + i], 0.0F);
    for (std::size_t i = 0; i < lag; ++i) EXPECT_FLOAT_EQ(scores[i], 1.0F / lag) << "no channel of the reference counts";
    for (std::size_t i = 2 * lag; i < scores.size(); ++i) EXPECT_TRUE(same_bits(scores[i], clean[i]));
  }
}

TEST_P(nonfinite, never_changes_how_much_stays) {
  const auto& [bad, target] = GetParam();
  for (const char* text : {"lagkv:sink=3,lag=12,ratio=0.25", "lagkv:sink=3,lag=12,ratio=0.25,form=local",
                           "lagkv:sink=3,lag=12,ratio=0.5,form=kvpress", "lagkv:sink=3,lag=12,ratio=0.5,form=kvpress_cross",
                           "random:sink=3,recent=12,keep=0.5"})
    for (dtype type : all_types)
      for (layout l : {layout::heads_first, layout::transposed, layout::blocks_of_7}) {
        fixture f(type, l);
        lagkv::workspace ws(target);
        const std::size_t left = lagkv::plan_eviction(named(text), f.c.layer(tokens), {}, ws).tokens_after();
        for (std::size_t t = 0; t < tokens; t += 1 + t % 3)
          for (std::size_t channel = t % 4; channel < 21; channel += 9) f.put(t, channel, bad.bits(type), t % 2 == 0);
        const lagkv::plan first = lagkv::plan_eviction(named(text), f.c.layer(tokens), {}, ws);
        lagkv::cursor at;
        EXPECT_EQ(lagkv::compress(named(text), f.c.layer(tokens), at, ws), left);
        EXPECT_EQ(lagkv::last_plan(ws).kept, first.kept) << "deterministic";
        EXPECT_TRUE(f.c.intact());
      }
}

TEST_P(nonfinite, token_is_the_first_to_go) {
  const auto& [bad, target] = GetParam();
  fixture f(dtype::f32);
  for (std::size_t i = 0; i < 9; ++i) f.put(sink + i, i, bad.bits(dtype::f32)), f.put(sink + i, i, bad.bits(dtype::f32), true);
  lagkv::workspace ws(target);
  const lagkv::plan plan = lagkv::plan_eviction(named("lagkv:sink=3,lag=12,ratio=0.25"), f.c.layer(tokens), {}, ws);
  EXPECT_EQ(plan.kept[0], sink + 9);
  EXPECT_EQ(plan.kept[1], sink + 10);
  EXPECT_EQ(plan.kept[2], sink + 11);
}

struct bad_and_target {
  template <class Info>
  std::string operator()(const Info& i) const {
    return std::string(std::get<0>(i.param).name) + "_" + lagkv::simd::name(std::get<1>(i.param));
  }
};

INSTANTIATE_TEST_SUITE_P(all, nonfinite, testing::Combine(testing::ValuesIn(bad_values), testing::ValuesIn(targets())),
                         bad_and_target{});

// ---- finite, but too large or small for f32 arithmetic ----------------------------------------------------------------

struct extreme : testing::TestWithParam<lagkv::simd::target> {};

constexpr float most = std::numeric_limits<float>::max();

void expect_sane(const std::vector<float>& scores, std::size_t from, std::size_t to) {
  double sum = 0;
  for (std::size_t i = from; i < to; ++i) {
    EXPECT_TRUE(std::isfinite(scores[i]) && scores[i] >= 0.0F);
    sum += static_cast<double>(scores[i]);
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
}

TEST_P(extreme, candidate_that_overflows_gets_0) {
  for (dtype type : {dtype::f32, dtype::bf16}) {
    fixture f(type), bad(type);
    f.put(sink + 4, 3, encoded(type, 3e38F)), bad.put(sink + 4, 3, bad_values[0].bits(type));
    const auto scores = f.scores(GetParam(), 0);
    EXPECT_EQ(scores[4], 0.0F);
    EXPECT_EQ(scores, bad.scores(GetParam(), 0));
  }
}

TEST_P(extreme, range_that_overflows_counts_for_nothing) {
  fixture f(dtype::f32);
  f.put(sink + lag + 1, 3, encoded(dtype::f32, most)), f.put(sink + lag + 2, 3, encoded(dtype::f32, -most));
  const auto scores = f.scores(GetParam(), 0);
  cube without = f.k;  // the channel made constant in the reference of partition 0
  for (std::size_t i = 0; i < lag; ++i) without.row(0, sink + lag + i)[3] = 1.0F;
  const auto exact = deviation_shares(without, 0, sink, 1, {lag});
  for (std::size_t i = 0; i < lag; ++i) EXPECT_LE(relative(scores[i], exact[i]), 2e-6);
}

TEST_P(extreme, huge_range_squeezes_the_channel_to_a_point) {
  fixture f(dtype::f32);
  f.put(sink + lag + 1, 3, encoded(dtype::f32, 1e38F));
  const auto scores = f.scores(GetParam(), 0);
  f.expect_oracle({scores.begin(), scores.begin() + lag}, 0);
}

TEST_P(extreme, tiny_range_is_finite) {
  for (float tiny : {1e-45F, 1e-39F, 1e-37F}) {
    fixture f(dtype::f32);
    for (std::size_t i = 0; i < lag; ++i) f.put(sink + lag + i, 3, encoded(dtype::f32, static_cast<float>(i) * tiny));
    const auto scores = f.scores(GetParam(), 0);
    for (float s : scores) EXPECT_TRUE(std::isfinite(s));
    expect_sane(scores, 2 * lag, 3 * lag);
  }
}

TEST_P(extreme, constant_channels_count_for_nothing) {
  for (dtype type : all_types) {
    fixture f(type);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t channel : {0U, 5U, 20U}) f.put(t, channel, encoded(type, -2.5F));
    f.expect_oracle(f.scores(GetParam()));
  }
}

TEST_P(extreme, constant_channels_count_for_nothing_however_far_a_token_lies_from_them) {
  fixture f(dtype::f32);
  for (std::size_t i = 0; i < lag; ++i) f.put(sink + lag + i, 3, encoded(dtype::f32, -most));
  f.put(sink + 4, 3, encoded(dtype::f32, most));
  const auto scores = f.scores(GetParam(), 0);
  EXPECT_GT(scores[4], 0.0F);
  f.expect_oracle({scores.begin(), scores.begin() + lag}, 0);
}

TEST_P(extreme, one_channel_scores_all_tokens_alike) {
  fixture f(dtype::f16, layout::heads_first, 1);
  for (float s : f.scores(GetParam(), 0)) EXPECT_FLOAT_EQ(s, 1.0F / lag);
}

INSTANTIATE_TEST_SUITE_P(all, extreme, testing::ValuesIn(targets()), target_name{});

}  // namespace
