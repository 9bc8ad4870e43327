// Errors are values: what is refused at the edge, and the words in which it is.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::dtype;

// ---- parse ----------------------------------------------------------------------------------------------------------

constexpr const char* keys_of_lagkv = "lagkv: unknown key '%': must be one of sink, lag, ratio, value_weight, form";
constexpr const char* names = "unknown policy '%': must be one of lagkv, streaming_llm, random";

std::string with(std::string text, const std::string& word) { return text.replace(text.find('%'), 1, word); }

TEST(parse, accepts_and_refuses_with_reason_and_numbers) {
  const std::pair<const char*, std::string> table[] = {
      {"lagkv", ""},
      {"lagkv:sink=16,lag=128,ratio=0.25,value_weight=1,form=paper", ""},
      {"lagkv:form=local,ratio=1", ""},
      {"lagkv:form=kvpress,sink=0", ""},
      {"lagkv:form=kvpress_cross,value_weight=0", ""},
      {"lagkv:ratio=1e-3", ""},
      {"streaming_llm:sink=4,capacity=512", ""},
      {"streaming_llm:sink=4,keep=0.5", ""},
      {"random", ""},
      {"random:sink=4,recent=32,keep=0.5,seed=9007199254740992", ""},

      {"lagkv:lag=0", "lag=0: must be 1 or more"},
      {"lagkv:ratio=1.5", "ratio=1.5: must be above 0 and at most 1"},
      {"lagkv:ratio=1.0000001", "ratio=1.0000001: must be above 0 and at most 1"},
      {"lagkv:ratio=0", "ratio=0: must be above 0 and at most 1"},
      {"lagkv:ratio=-0.5", "ratio=-0.5: must be above 0 and at most 1"},
      {"lagkv:ratio=nan", "ratio=nan: must be above 0 and at most 1"},
      {"lagkv:ratio=inf", "ratio=inf: must be above 0 and at most 1"},
      {"lagkv:ratio=1e999", "ratio=1e999: must be above 0 and at most 1"},
      {"lagkv:ratio=half", "ratio=half: must be above 0 and at most 1"},
      {"lagkv:ratio=0.5x", "ratio=0.5x: must be above 0 and at most 1"},
      {"lagkv:ratio=0,5", with(keys_of_lagkv, "5")},
      {"lagkv:lag=1.5", "lag=1.5: must be a whole number, 1 or more"},
      {"lagkv:lag=-1", "lag=-1: must be a whole number, 1 or more"},
      {"lagkv:lag=3000000000", "lag=3000000000: must be at most 2147483647"},
      {"lagkv:lag=1e300", "lag=1e300: must be a whole number, 1 or more"},
      {"lagkv:sink=-1", "sink=-1: must be a whole number, 0 or more"},
      {"lagkv:sink=nan", "sink=nan: must be a whole number, 0 or more"},
      {"lagkv:sink= 4", "sink= 4: must be a whole number, 0 or more"},
      {"lagkv:value_weight=-1", "value_weight=-1: must be from 0 to 1000000"},
      {"lagkv:value_weight=1e7", "value_weight=1e+07: must be from 0 to 1000000"},
      {"lagkv:form=other", "form=other: must be one of paper, local, kvpress, kvpress_cross"},
      {"lagkv:form=pape", "form=pape: must be one of paper, local, kvpress, kvpress_cross"},
      {"lagkv:lags=4", with(keys_of_lagkv, "lags")},
      {"lagkv:Lag=4", with(keys_of_lagkv, "Lag")},
      {"lagkv:sink=4,", with(keys_of_lagkv, "")},
      {"lagkv:,sink=4", with(keys_of_lagkv, "")},
      {"lagkv:=4", with(keys_of_lagkv, "")},
      {"lagkv:", "lagkv: a key=value must follow the colon"},
      {"lagkv:lag", "lag: has no value: write lag=..."},
      {"lagkv:lag=", "lag: has no value: write lag=..."},
      {"lagkv:lag=,sink=4", "lag: has no value: write lag=..."},
      {"lagkv:sink=4,sink=5", "sink: is given twice"},
      {"", with(names, "")},
      {"LagKV", with(names, "LagKV")},
      {"h2o:sink=4", with(names, "h2o")},
      {" lagkv", with(names, " lagkv")},
      {":sink=4", with(names, "")},
      {"streaming_llm", "capacity, keep: give one of them"},
      {"streaming_llm:capacity=50,keep=0.5", "capacity, keep: give one of them"},
      {"streaming_llm:sink=4,capacity=4", "capacity=4: must be 5 or more"},
      {"streaming_llm:keep=1.5", "keep=1.5: must be above 0 and at most 1"},
      {"random:recent=0", "recent=0: must be 1 or more"},
      {"random:keep=2", "keep=2: must be above 0 and at most 1"},
      {"random:seed=-1", "seed=-1: must be a whole number, 0 or more"},
      {"random:lag=4", "random: unknown key 'lag': must be one of sink, recent, keep, seed"}};
  for (const auto& [text, message] : table) {
    const auto p = lagkv::parse(text);
    EXPECT_EQ(p.message(), message) << text;
    EXPECT_EQ(static_cast<bool>(p), message.empty()) << text;
  }
}

TEST(parse, survives_any_text) {
  const std::string pieces[] = {"lagkv", "random",   ":",
                                ",",     "=",        "lag",
                                "ratio", "0.5",      "1e",
                                "-",     "\xff",     std::string(1, '\0'),
                                "form",  "kvpress|", "9999999999999999999999"};
  unsigned state = 1;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int n = 0; n < 8; ++n) {
      state = state * 1664525U + 1013904223U;
      text += pieces[(state >> 16) % std::size(pieces)];
    }
    const auto p = lagkv::parse(text);
    ASSERT_EQ(static_cast<bool>(p), p.message().empty()) << text;
  }
}

TEST(parse, gives_what_the_string_says) {
  const auto lagkv = lagkv::parse("lagkv:ratio=0.29,lag=100,sink=3,value_weight=0");
  ASSERT_TRUE(lagkv);
  EXPECT_EQ(lagkv->retain.sink, 3U);
  EXPECT_EQ(lagkv->retain.lag, 100U);
  EXPECT_EQ(lagkv->retain.amount, 0.29);
  EXPECT_EQ(lagkv->retain.kind, lagkv::budget::share_of_partition);
  EXPECT_FALSE(lagkv->needs.values);
  EXPECT_FALSE(lagkv->adjust);
  EXPECT_TRUE(lagkv::parse("lagkv")->needs.values);
  EXPECT_TRUE(lagkv::parse("lagkv:form=kvpress")->adjust);
  EXPECT_EQ(lagkv::parse("lagkv:form=kvpress_cross")->retain.kind, lagkv::budget::share_of_all);
  EXPECT_EQ(lagkv::parse("random:recent=7")->retain.recent, 7U);
}

TEST(parse, defaults_of_every_policy_are_those_of_its_options) {
  ASSERT_EQ(lagkv::named_policies().size(), 3U);
  for (const lagkv::named_policy& n : lagkv::named_policies()) {
    const auto p = lagkv::parse(n.name);
    EXPECT_TRUE(p || p.message().find("give one of") != std::string::npos) << n.name << ": " << p.message();
    EXPECT_LE(n.parameters.size(), lagkv::named_policy::max_parameters);
    EXPECT_FALSE(n.meaning.empty());
    for (const lagkv::parameter& q : n.parameters) EXPECT_FALSE(q.key.empty() || q.range.empty() || q.meaning.empty());
  }
  const lagkv::policy parsed = *lagkv::parse("lagkv"), made = *lagkv::make_lagkv();
  EXPECT_EQ(parsed.retain.sink, made.retain.sink);
  EXPECT_EQ(parsed.retain.lag, made.retain.lag);
  EXPECT_EQ(parsed.retain.amount, made.retain.amount);
}

TEST(make, refuses_what_no_string_can_say) {
  EXPECT_EQ(lagkv::make_lagkv({.ratio = std::numeric_limits<double>::quiet_NaN()}).message(),
            "ratio=nan: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::make_lagkv({.lag = std::size_t{1} << 40}).message(), "lag=1099511627776: must be at most 2147483647");
  EXPECT_EQ(lagkv::make_streaming_llm({.sink = std::size_t{1} << 40, .capacity = 5}).message(),
            "sink=1099511627776: must be at most 2147483647");
}

// ---- check ----------------------------------------------------------------------------------------------------------

float memory[4096];
std::uint16_t halves[4096];

std::string refusal(const lagkv::tensor& x, std::size_t tokens) { return x.check(tokens).message(); }

TEST(check, strides_that_overlap) {
  const auto of = [](lagkv::strides s) { return refusal(lagkv::strided<float>(memory, {2, 4}, s), 10); };
  EXPECT_EQ(of({40, 4, 1}), "");
  EXPECT_EQ(of({4, 8, 1}), "");
  EXPECT_EQ(of({40, 1, 10}), "");
  EXPECT_EQ(of({-40, -4, -1}), "");
  EXPECT_EQ(of({40, 3, 1}), "strides head=40, token=3, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({39, 4, 1}), "strides head=39, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({0, 4, 1}), "strides head=0, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({40, 4, 0}), "strides head=40, token=4, channel=0: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({40, -3, 1}), "strides head=40, token=-3, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {1, 4}, {0, 4, 1}), 10), "") << "a single head needs no stride";
}

TEST(check, capacity_and_emptiness) {
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 4}, {40, 4, 1}, 10), 11), "tokens=11: the view addresses at most 10");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 4}, {36, 4, 1}, 10), 5),
            "strides head=36, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels")
      << "the whole capacity counts";
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {0, 4}, {40, 4, 1}), 5), "heads=0, channels=4: must be 1 or more");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 0}, {40, 4, 1}), 5), "heads=2, channels=0: must be 1 or more");
  EXPECT_EQ(refusal(lagkv::strided<float>(static_cast<float*>(nullptr), {2, 4}, {40, 4, 1}), 5), "data: is null");
  EXPECT_EQ(refusal({}, 0), "the tensor is empty");
}

std::string paged_refusal(const std::vector<std::int32_t>& table, std::size_t tokens,
                          lagkv::block_layout b = {16, 128, {4, 8, 1}, 8}) {
  return refusal(lagkv::paged<lagkv::f16>(halves, {2, 4}, b, table), tokens);
}

TEST(check, block_tables) {
  EXPECT_EQ(paged_refusal({7, 0, 3}, 48), "");
  EXPECT_EQ(paged_refusal({7, 0, 3}, 49), "tokens=49: the view addresses at most 48");
  EXPECT_EQ(paged_refusal({}, 1), "tokens=1: the view addresses at most 0");
  EXPECT_EQ(paged_refusal({7, -1, 3}, 48), "block -1: must be 0 or more");
  EXPECT_EQ(paged_refusal({7, -1, 3}, 16), "") << "blocks behind the tokens in use may be anything";
  EXPECT_EQ(paged_refusal({7, 8, 3}, 48), "block 8: the pool has 8 blocks");
  EXPECT_EQ(paged_refusal({7, 3, 7}, 48), "block 7: stands twice in the table");
  EXPECT_EQ(paged_refusal({0, 1}, 32, {16, 127, {4, 8, 1}, 8}), "strides block=127, head=4, token=8, channel=1: overlap");
  EXPECT_EQ(paged_refusal({0, 1}, 32, {16, 128, {3, 8, 1}, 8}), "strides block=128, head=3, token=8, channel=1: overlap");
  EXPECT_EQ(paged_refusal({0, 1}, 0, {0, 128, {4, 8, 1}, 8}), "block tokens=0: must be 1 or more");
  EXPECT_EQ(
      refusal(lagkv::paged<float>(static_cast<float*>(nullptr), {2, 4}, {16, 128, {4, 8, 1}, 0}, std::vector<std::int32_t>{0}),
              1),
      "pool: is null");
}

TEST(check, layers_and_policies) {
  const lagkv::tensor two = lagkv::strided<float>(memory, {2, 4}, {400, 4, 1}, 100);
  const lagkv::tensor three = lagkv::strided<lagkv::f16>(halves, {3, 8}, {800, 8, 1}, 100);
  const lagkv::policy with_values = named("lagkv"), keys_only = named("lagkv:value_weight=0");
  EXPECT_EQ(check(with_values, {two, two, 100}).message(), "");
  EXPECT_EQ(check(with_values, {two, {}, 100}).message(), "values: the policy reads them, the layer has none");
  EXPECT_EQ(check(keys_only, {two, {}, 100}).message(), "");
  EXPECT_EQ(check(keys_only, {two, three, 100}).message(), "values: heads=3: must be the 2 of the keys");
  EXPECT_EQ(check(keys_only, {two, two, 101}).message(), "keys: tokens=101: the view addresses at most 100");
  EXPECT_EQ(check(keys_only, {{}, two, 10}).message(), "keys: the tensor is empty");
  lagkv::policy p;
  EXPECT_EQ(check(p, {two, two, 100}).message(), "policy: has no scorer");
  p = keys_only, p.retain.lag = 0;
  EXPECT_EQ(check(p, {two, two, 100}).message(), "lag=0: must be 1 or more where each partition keeps a share");
  const lagkv::tensor endless = lagkv::strided<float>(memory, {1, 4}, {0, 4, 1});
  EXPECT_EQ(check(keys_only, {endless, {}, std::size_t{1} << 32}).message(), "tokens=4294967296: must be at most 4294967295");
}

TEST(views, stand_on_the_hosts_own_types) {
  static_assert(lagkv::stored_as<float, float> && lagkv::stored_as<std::uint16_t, lagkv::f16> &&
                lagkv::stored_as<short, lagkv::bf16>);
  static_assert(!lagkv::stored_as<double, float> && !lagkv::stored_as<int, float> && !lagkv::stored_as<float, lagkv::f16>);
  static_assert(lagkv::kv_tensor<lagkv::strided<float>> && lagkv::kv_tensor<lagkv::paged<lagkv::bf16, std::uint64_t>> &&
                lagkv::kv_tensor<ring_view>);
  static_assert(std::is_trivially_copyable_v<lagkv::layer> && std::is_trivially_copyable_v<lagkv::policy> &&
                std::is_trivially_copyable_v<lagkv::cursor>);
}

// ---- cursor ---------------------------------------------------------------------------------------------------------

TEST(cursor, is_saved_and_restored) {
  const lagkv::cursor c{0x0102030405060708, 0xfffffffffffffff0, 77};
  const lagkv::saved_cursor bytes = lagkv::save(c);
  const auto back = lagkv::load_cursor(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, c);
  // The bytes are the contract, whatever the machine: version 1, little endian.
  EXPECT_EQ(bytes[0], std::byte{1});
  EXPECT_EQ(bytes[4], std::byte{8});
  EXPECT_EQ(bytes[11], std::byte{1});
  EXPECT_EQ(bytes[20], std::byte{77});
}

TEST(cursor, is_refused_where_it_cannot_be_one) {
  lagkv::saved_cursor bytes = lagkv::save({10, 5, 8});
  EXPECT_EQ(lagkv::load_cursor(std::span(bytes).first(27)).message(), "saved cursor of 27 bytes: must be 28");
  EXPECT_EQ(lagkv::load_cursor({}).message(), "saved cursor of 0 bytes: must be 28");
  bytes[1] = std::byte{1};
  EXPECT_EQ(lagkv::load_cursor(bytes).message(), "saved cursor of version 257: must be 1");
  EXPECT_EQ(lagkv::load_cursor(lagkv::save({10, 5, 11})).message(), "saved cursor: judged=11: must be at most tokens=10");
}

}  // namespace
