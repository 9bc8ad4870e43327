// A scorer's options arrive whatever the file is optimised for: this one is compiled at -O2, as a host's.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/lagkv.hpp>

namespace {

/// Scores each token with its options. Members of several types, as GCC 12 lost the double among them.
struct own_score {
  std::size_t lag = 0, other = 7;
  double ridge = 0.25;
  std::uint64_t seed = 3;

  void operator()(const lagkv::layer&, std::size_t, lagkv::token_range, std::span<float> out, lagkv::workspace&) const {
    out[0] = static_cast<float>(other), out[1] = static_cast<float>(ridge), out[2] = static_cast<float>(seed);
  }
};

lagkv::method method_of(const own_score& s) { return {.score = s, .needs = {.all_rows = s.lag == 0}}; }

constexpr lagkv::parameter own_parameters[] = {lagkv::option<&own_score::ridge>("ridge", lagkv::accepts::fraction, "a number")};
constexpr lagkv::method_entry own_entry =
    lagkv::entry_of<own_score>({.name = "own", .meaning = "", .source = "", .reads = ""}, own_parameters);

void expect_options(const lagkv::scorer& score) {
  float found[3] = {};
  lagkv::workspace ws;
  score({}, 0, {}, found, ws);
  EXPECT_EQ(found[0], 7.0F);
  EXPECT_EQ(found[1], 0.25F);
  EXPECT_EQ(found[2], 3.0F);
}

TEST(callable, keeps_its_options_where_it_is_moved_on) {
  expect_options(own_score{});
  expect_options(method_of(own_score{}).score);
  const lagkv::option_values defaults(own_entry.own);
  const lagkv::result<lagkv::method> made = own_entry.make(defaults.get(), 0);
  ASSERT_TRUE(made);
  expect_options(made->score);
  const lagkv::method_entry* known[] = {&own_entry};
  const lagkv::result<lagkv::policy> parsed = lagkv::parse("own:keep=0.5", known);
  ASSERT_TRUE(parsed) << parsed.message();
  expect_options(parsed->score);
}

}  // namespace
