// Which policy lost least: the order, what counts, and what may be chance.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "tune.hpp"

namespace {

void add(eval::results& all, const std::string& task, std::size_t number, const std::string& policy, const char* name,
         double worth) {
  eval::sample_result s;
  s.key = {task, 2048, number, policy, policy == "full" ? 0 : 0.75};
  s.parsed = policy + ":keep=0.25";
  s.scores = {{name, worth}};
  all.samples.push_back(s);
}

// Ten prompts of two tasks; `good` has everything, `fair` and `bad` less; the full cache cannot do the third task.
eval::results ten_prompts() {
  eval::results all;
  for (std::size_t i = 0; i < 10; ++i) {
    const double odd = i % 2 == 0 ? 0.0 : 0.2;
    for (const char* policy : {"full", "bad", "good", "fair"}) {
      const std::string_view p = policy;
      add(all, "needle", i, policy, "score", p == "bad" ? odd : p == "fair" ? 0.9 + odd / 2 : 1);
      add(all, "perplexity", i, policy, "same_token", p == "bad" ? 0.5 : p == "fair" ? 0.7 + odd : 0.8);
      add(all, "too_hard", i, policy, "score", p == "bad" ? 0.2 : 0);
    }
  }
  return all;
}

TEST(tune, the_best_comes_first_and_each_task_counts_once) {
  const auto s = eval::standings(ten_prompts(), 0.3);
  ASSERT_EQ(s.size(), 3U);
  EXPECT_EQ(s[0].policy, "good");
  EXPECT_EQ(s[1].policy, "fair");
  EXPECT_EQ(s[2].policy, "bad");
  EXPECT_EQ(s[0].parsed, "good:keep=0.25");
  EXPECT_NEAR(s[0].worth.mean, 90, 1e-9);
  EXPECT_NEAR(s[1].worth.mean, (95 + 80) / 2.0, 1e-9);
  EXPECT_NEAR(s[2].worth.mean, (10 + 50) / 2.0, 1e-9);
  EXPECT_NEAR(s[1].behind.mean, 2.5, 1e-9) << "the differences are paired";
  EXPECT_NEAR(s[2].behind.mean, 60, 1e-9);
  EXPECT_TRUE(s[1].chance) << s[1].behind.low;
  EXPECT_FALSE(s[2].chance) << s[2].behind.low;
}

TEST(tune, without_a_reach_the_task_that_is_too_hard_counts) {
  const auto s = eval::standings(ten_prompts(), 0);
  EXPECT_NEAR(s[0].worth.mean, (100 + 80 + 0) / 3.0, 1e-9);
  EXPECT_NEAR(s[2].worth.mean, (10 + 50 + 20) / 3.0, 1e-9);
}

TEST(tune, few_prompts_are_chance_whatever_they_say) {
  eval::results few = ten_prompts();
  std::erase_if(few.samples, [](const eval::sample_result& x) { return x.key.sample >= 3; });
  for (const eval::standing& s : eval::standings(few, 0.3)) EXPECT_EQ(s.chance, s.policy != "good") << s.policy;
}

TEST(tune, only_prompts_that_all_have_come_to_count) {
  eval::results all = ten_prompts();
  std::erase_if(all.samples, [](const eval::sample_result& x) { return x.key.policy == "bad" && x.key.sample >= 6; });
  for (eval::sample_result& x : all.samples)
    if (x.key.policy == "good" && x.key.sample >= 6) x.scores = {{"score", 0}};  // nobody may see that
  const auto s = eval::standings(all, 0.3);
  EXPECT_EQ(s[0].policy, "good");
  EXPECT_NEAR(s[0].worth.mean, 90, 1e-9);
  EXPECT_EQ(s[0].worth.samples, 6U);
}

TEST(tune, a_policy_that_failed_everywhere_is_left_out) {
  eval::results all = ten_prompts();
  for (eval::sample_result& x : all.samples)
    if (x.key.policy == "fair") x.failure = "a partition is too long";
  const auto s = eval::standings(all, 0.3);
  ASSERT_EQ(s.size(), 2U);
  EXPECT_EQ(s[1].policy, "bad");
}

TEST(tune, where_the_model_can_answer_nothing_text_that_is_read_on_decides) {
  const auto s = eval::standings(ten_prompts(), 1.1);
  EXPECT_EQ(s[2].policy, "bad");
  EXPECT_NEAR(s[0].worth.mean, 80, 1e-9);
  EXPECT_NEAR(s[2].worth.mean, 50, 1e-9);
}

TEST(tune, nothing_to_compare_is_refused) {
  EXPECT_THROW(static_cast<void>(eval::standings({}, 0)), std::invalid_argument);
  eval::results full_alone;
  add(full_alone, "needle", 0, "full", "score", 1);
  EXPECT_THROW(static_cast<void>(eval::standings(full_alone, 0.3)), std::invalid_argument);
}

}  // namespace
