// Which policy lost least: the order, what counts, and what may be chance.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "budget.hpp"
#include "tune.hpp"
#include "tune_command.hpp"

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

// A file that was gone on with, under another share, length, task or with other candidates: the call asks for its own.
TEST(tune, results_of_other_calls_do_not_count) {
  const eval::results own = ten_prompts();
  eval::results all = own;
  for (const eval::sample_result& s : own.samples) {
    eval::sample_result other = s;
    other.scores = {{"score", s.key.policy == "bad" ? 1 : 0}};  // nobody may see that
    if (s.key.policy != "full") other.key.removed = 0.5, all.samples.push_back(other);
    other.key = s.key, other.key.length = 4096, all.samples.push_back(other);
    other.key = s.key, other.key.task = "another", all.samples.push_back(other);
    if (s.key.policy != "full")
      other.key = s.key, other.key.policy = "best", other.scores = s.scores, all.samples.push_back(other);
  }
  const std::vector<std::string> tasks = {"needle", "perplexity", "too_hard"};
  const std::vector<eval::setting> settings = {{"full", 0}, {"bad", 0.75}, {"good", 0.75}, {"fair", 0.75}};
  const eval::results found = eval::results_of(all, 2048, tasks, settings);
  EXPECT_EQ(found.samples.size(), own.samples.size());
  const auto s = eval::standings(found, 0.3), alone = eval::standings(own, 0.3);
  ASSERT_EQ(s.size(), alone.size());
  for (std::size_t i = 0; i < s.size(); ++i) {
    EXPECT_EQ(s[i].policy, alone[i].policy);
    EXPECT_EQ(s[i].worth.mean, alone[i].worth.mean);
  }
}

TEST(tune, policies_that_fail_are_named_with_their_first_failure) {
  eval::results all = ten_prompts();
  EXPECT_TRUE(eval::failed_policies(all).empty());
  for (eval::sample_result& x : all.samples) {
    if (x.key.policy == "fair") x.failure = "why " + std::to_string(x.key.sample);
    if (x.key.policy == "bad" && x.key.sample == 7) x.failure = "once";
  }
  const auto failed = eval::failed_policies(all);
  ASSERT_EQ(failed.size(), 2U);
  EXPECT_EQ(failed[0].policy, "bad");
  EXPECT_EQ(failed[0].failures, 3U);
  EXPECT_EQ(failed[0].prompts, 30U);
  EXPECT_EQ(failed[0].why, "once");
  EXPECT_EQ(failed[1].policy, "fair");
  EXPECT_EQ(failed[1].failures, failed[1].prompts);
  EXPECT_EQ(failed[1].why, "why 0");
}

// They are named without a budget, some of which are no policy without one.
TEST(tune, what_its_own_candidates_read_is_known) {
  std::vector<std::string> calibrated;
  for (const std::string& policy : eval::tune_options{}.policies) {
    const lagkv::needs needs = eval::needs_of(policy);
    EXPECT_FALSE(needs.importance) << policy;
    if (needs.calibrated) calibrated.push_back(policy);
  }
  ASSERT_EQ(calibrated.size(), 1U);
  EXPECT_NE(calibrated[0].find("calibrated=yes"), std::string::npos);
}

TEST(tune, the_best_is_a_candidate) {
  const auto s = eval::standings(ten_prompts(), 0.3);  // good, fair, bad
  const std::vector<std::string> candidates = {"bad", "fair", "none"};
  EXPECT_EQ(eval::best_candidates(s, candidates), (std::vector<std::string>{"fair", "bad"}));
  EXPECT_TRUE(eval::best_candidates({}, candidates).empty());
}

TEST(tune, the_verdict_on_other_prompts) {
  eval::results all = ten_prompts();
  const auto verdict = [&](const std::string& chosen) { return eval::verdict(eval::standings(all, 0.3), chosen); };
  EXPECT_EQ(verdict("good"), "On other prompts it is first again; of 2 others 1 lie behind by more than chance.");
  EXPECT_EQ(verdict("fair"), "On other prompts good is ahead of it; that may be chance.");
  EXPECT_EQ(verdict("bad"), "On other prompts good is ahead of it: the choice does not hold.");
  EXPECT_THROW(static_cast<void>(verdict("none")), std::runtime_error);
  for (eval::sample_result& s : all.samples)
    if (s.key.policy == "fair") s.scores = {{s.scores.begin()->first, s.key.task == "perplexity" ? 0.8 : 1}};
  for (const char* chosen : {"fair", "good"})
    EXPECT_EQ(verdict(chosen), std::string("On other prompts it is level with ") + (chosen[0] == 'f' ? "good" : "fair") +
                                   "; of 2 others 1 lie behind by more than chance.");
}

// Of lagkv at lag 64 and 0.75 of 1,000 tokens removed, ratio 0.25 would remove less.
TEST(tune, the_policy_string_is_what_was_measured) {
  const auto of = [](const std::string& policy, const std::string& parsed) {
    return eval::with_budget({policy, parsed, {}, {}, false}, 0.75);
  };
  EXPECT_EQ(of("lagkv:lag=64", "lagkv:lag=64,ratio=0.148"), "lagkv:lag=64,ratio=0.148");
  EXPECT_EQ(of("novelty", "novelty:keep=0.250306"), "novelty:keep=0.25");
  EXPECT_EQ(of("h2o:capacity=300", "h2o:capacity=300"), "h2o:capacity=300");
}

TEST(tune, nothing_to_compare_is_refused) {
  EXPECT_THROW(static_cast<void>(eval::standings({}, 0)), std::invalid_argument);
  eval::results full_alone;
  add(full_alone, "needle", 0, "full", "score", 1);
  EXPECT_THROW(static_cast<void>(eval::standings(full_alone, 0.3)), std::invalid_argument);
}

}  // namespace
