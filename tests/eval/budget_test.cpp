// Equal budgets: what every policy keeps at a share, against the paper's equation written out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <lagkv/methods.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include "budget.hpp"
#include "refit.hpp"

namespace {

using eval::budgeted;
using eval::setting;

std::vector<setting> at(double removed, const std::vector<std::string>& policies) {
  std::vector<setting> made;
  for (const std::string& policy : policies) made.push_back({policy, removed});
  return made;
}

// What the parsed string drops from so many tokens.
std::size_t kept_by(const std::string& policy, std::size_t tokens) {
  const auto made = lagkv::parse(policy, lagkv::methods_with_eigen());
  EXPECT_TRUE(made) << made.message();
  const lagkv::candidates due = made->budget.due({}, tokens);
  return tokens - due.rows.size() + due.keep;
}

TEST(Budget, EquationThirteenByHand) {
  // N = 1000, S = 16, L = 128: floor(984 / 128) - 1 = 6 partitions of 128 are candidates. Half is to go: 500 / 6 = 83.3 of each,
  // so 45 of 128 stay, and 1000 - 6 * 83 = 502 of all.
  const auto made = eval::equal_budgets(at(0.5, {"lagkv:lag=128", "snapkv", "random"}), 1000);
  const budgeted& lagkv = made.at({"lagkv:lag=128", 0.5});
  EXPECT_EQ(lagkv.kept, 502U);
  EXPECT_EQ(lagkv.policy.substr(0, 26), "lagkv:lag=128,ratio=0.3554");  // 45.5 / 128
  EXPECT_EQ(made.at({"snapkv", 0.5}).kept, 502U);
  EXPECT_EQ(made.at({"random", 0.5}).kept, 502U);
}

TEST(Budget, AllKeepTheSameAtEveryShareAndLength) {
  const std::vector<std::string> policies = {
      "snapkv",           "lagkv:lag=64", "streaming_llm", "h2o", "tova", "key_diff", "random", "fuse:lagkv+key_diff,lag=64",
      "cur:select=chunks"};
  for (const std::size_t tokens : {900U, 1883U, 4051U})
    for (const double removed : {0.25, 0.5, 0.75}) {
      const auto made = eval::equal_budgets(at(removed, policies), tokens);
      const std::size_t goal = made.at({"lagkv:lag=64", removed}).kept;
      // Within half a token a partition of what was asked for.
      EXPECT_NEAR(static_cast<double>(goal), (1 - removed) * static_cast<double>(tokens), static_cast<double>(tokens) / 128.0);
      for (const auto& [s, b] : made) {
        EXPECT_EQ(b.failure, "") << s.policy;
        EXPECT_EQ(kept_by(b.policy, tokens), b.kept) << b.policy;
        if (s.policy.rfind("fuse", 0) == 0) continue;  // four sinks instead of 16: other partitions
        EXPECT_EQ(b.kept, goal) << b.policy << " of " << tokens;
      }
    }
}

TEST(Budget, WithoutPartitionsTheGoalIsTheShare) {
  const auto made = eval::equal_budgets(at(0.875, {"streaming_llm", "key_diff"}), 1001);
  EXPECT_EQ(made.at({"streaming_llm", 0.875}).kept, 125U);
  EXPECT_EQ(made.at({"key_diff", 0.875}).kept, 125U);
}

TEST(Budget, ALittleTooMuchIsWhatCanGo) {
  // N = 1934: 13 partitions of 128 hold 1,664 tokens, 28 less than seven eighths.
  const auto made = eval::equal_budgets(at(0.875, {"lagkv:lag=128", "h2o"}), 1934);
  EXPECT_EQ(made.at({"lagkv:lag=128", 0.875}).failure, "");
  EXPECT_EQ(made.at({"lagkv:lag=128", 0.875}).kept, 1934U - 1664U);
  EXPECT_EQ(made.at({"h2o", 0.875}).kept, 1934U - 1664U);
  // 1,008 tokens, half of which are to go: one partition of 480 falls 24 short, of 448 it falls 56 short.
  EXPECT_EQ(eval::equal_budgets(at(0.5, {"lagkv:lag=480"}), 1008).at({"lagkv:lag=480", 0.5}).kept, 528U);
  EXPECT_NE(eval::equal_budgets(at(0.5, {"lagkv:lag=448"}), 1008).at({"lagkv:lag=448", 0.5}).failure, "");
}

TEST(Budget, APolicyWithoutCandidatesDoesNotKeepTheOthersFromDropping) {
  for (const double removed : {0.01, 0.04, 0.05}) {  // less than what may be lacking
    const auto made = eval::equal_budgets(at(removed, {"lagkv:lag=1024", "snapkv"}), 1000);
    const budgeted& lagkv = made.at({"lagkv:lag=1024", removed});
    EXPECT_NE(lagkv.failure.find("0 of 1000 tokens are in partitions that can be candidates"), std::string::npos) << lagkv.policy;
    EXPECT_EQ(made.at({"snapkv", removed}).kept, static_cast<std::size_t>(std::lround(1000 * (1 - removed))));
  }
  // Where all tokens are to stay, it has what is asked for.
  const auto bound = eval::equal_budgets(at(0.05, {"lagkv:lag=1024"}), 1000, false, 1000);
  EXPECT_EQ(bound.at({"lagkv:lag=1024", 0.05}).failure, "");
  EXPECT_EQ(bound.at({"lagkv:lag=1024", 0.05}).kept, 1000U);
  EXPECT_EQ(bound.at({"lagkv:lag=1024", 0.05}).policy.substr(0, 27), "lagkv:lag=1024,ratio=1.0000");
}

TEST(Budget, WhileDecodingTheGoalIsACapacity) {
  const auto made = eval::equal_budgets(at(0.5, {"h2o", "streaming_llm", "lagkv:lag=64"}), 1000, true);
  const std::size_t goal = made.at({"lagkv:lag=64", 0.5}).kept;
  EXPECT_EQ(made.at({"h2o", 0.5}).policy, "h2o:capacity=" + std::to_string(goal) + ",every=32");
  EXPECT_EQ(made.at({"streaming_llm", 0.5}).policy, "streaming_llm:capacity=" + std::to_string(goal));
  EXPECT_EQ(made.at({"h2o", 0.5}).kept, goal);
}

TEST(Budget, SaysWhatCannotGo) {
  const auto made = eval::equal_budgets(at(0.75, {"lagkv:lag=1024", "snapkv", "snapkv:window=600"}), 2000);
  EXPECT_EQ(made.at({"lagkv:lag=1024", 0.75}).failure,
            "0 of 2000 tokens are in partitions that can be candidates (sink 16, lag 1024): 1500 cannot go");
  EXPECT_EQ(made.at({"snapkv", 0.75}).kept, 500U);  // a policy that cannot meet the share sets no goal
  EXPECT_NE(made.at({"snapkv:window=600", 0.75}).failure, "");
}

TEST(Budget, SettingsAreFullThenEachPolicyThenRandom) {
  const std::vector<setting> expected = {
      {"full", 0},     {"lagkv:lag=64", 0.5}, {"lagkv:lag=64", 0.75}, {"h2o:capacity=300", eval::of_its_own},
      {"random", 0.5}, {"random", 0.75}};
  EXPECT_EQ(eval::settings_of({"lagkv:lag=64", "h2o:capacity=300", "lagkv:lag=64", "full"}, {0.5, 0.75}), expected);
  EXPECT_EQ(eval::settings_of({"random:seed=3"}, {0.5}), (std::vector<setting>{{"full", 0}, {"random:seed=3", 0.5}}));
}

eval::sample_result result(const std::string& policy, const std::string& parsed, std::size_t number = 3, double removed = 0.75) {
  eval::sample_result s;
  s.key = {"vt", 2048, number, policy, removed};
  s.parsed = parsed;
  return s;
}

// A call without lagkv keeps as many tokens as an earlier one with it did, and the other way round.
TEST(Budget, ResultsThatAreThereBindTheGoal) {
  const std::size_t tokens = 1985;
  const auto with_lagkv = eval::equal_budgets(at(0.75, {"lagkv:lag=128", "random"}), tokens);
  const std::size_t kept = with_lagkv.at({"random", 0.75}).kept;
  const auto alone = eval::equal_budgets(at(0.75, {"snapkv"}), tokens);
  ASSERT_NE(alone.at({"snapkv", 0.75}).kept, kept);

  eval::results before;
  for (const auto& [s, b] : with_lagkv) before.samples.push_back(result(s.policy, b.policy));
  const auto goal = eval::earlier_goal(before, result("", "").key, tokens);
  ASSERT_EQ(goal, kept);
  EXPECT_EQ(eval::equal_budgets(at(0.75, {"snapkv"}), tokens, false, goal).at({"snapkv", 0.75}).kept, kept);
  EXPECT_EQ(eval::equal_budgets(at(0.75, {"lagkv:lag=128"}), tokens, false, goal).at({"lagkv:lag=128", 0.75}).kept, kept);

  // 1,785 of 1,985 tokens would go; the goal of an earlier call has 1,535 go.
  const auto more = eval::equal_budgets(at(0.9, {"lagkv:lag=128", "snapkv"}), tokens, false, 450);
  EXPECT_NEAR(static_cast<double>(more.at({"lagkv:lag=128", 0.9}).kept), 450, 7);
  EXPECT_EQ(more.at({"snapkv", 0.9}).kept, 450U);
}

TEST(Budget, AGoalIsThatOfThePromptsFirstResultThatCanKeepAnyNumber) {
  eval::results before;
  EXPECT_EQ(eval::earlier_goal(before, result("", "").key, 1000), std::nullopt);
  before.samples = {result("full", ""), result("snapkv", "snapkv:keep=0.3", 4), result("snapkv", "snapkv:keep=0.4", 3, 0.5),
                    result("tova", "tova:keep=0.2")};
  before.samples.back().failure = "no queries";
  EXPECT_EQ(eval::earlier_goal(before, result("", "").key, 1000), std::nullopt);
  before.samples.push_back(result("gone", "gone:keep=0.5"));
  before.samples.push_back(result("lagkv:lag=128", "lagkv:lag=128,ratio=0.25"));
  EXPECT_EQ(eval::earlier_goal(before, result("", "").key, 1000), kept_by("lagkv:lag=128,ratio=0.25", 1000));
  before.samples.push_back(result("key_diff", "key_diff:keep=0.2505"));
  before.samples.push_back(result("snapkv", "snapkv:keep=0.3"));
  EXPECT_EQ(eval::earlier_goal(before, result("", "").key, 1000), 250U);
}

TEST(Budget, ABudgetOfItsOwnIsTakenAsItIs) {
  const auto made = eval::equal_budgets({{"h2o:capacity=300", eval::of_its_own}, {"full", 0}}, 1000);
  EXPECT_EQ(made.at({"h2o:capacity=300", eval::of_its_own}).policy, "h2o:capacity=300");
  EXPECT_EQ(made.at({"h2o:capacity=300", eval::of_its_own}).kept, 300U);
  EXPECT_EQ(made.at({"full", 0}).kept, 1000U);
}

TEST(Budget, RefusesWhatIsNoPolicyOrNoShare) {
  const auto message = [](const std::vector<std::string>& policies, const std::vector<double>& removed) {
    try {
      static_cast<void>(eval::settings_of(policies, removed));
    } catch (const std::invalid_argument& wrong) {
      return std::string(wrong.what());
    }
    return std::string();
  };
  EXPECT_NE(message({"snapvk"}, {0.5}).find("unknown policy 'snapvk'"), std::string::npos);
  EXPECT_NE(message({"snapkv:window=x"}, {0.5}).find("window"), std::string::npos);
  EXPECT_EQ(message({"snapkv"}, {1.0}), "removed 1: must be above 0 and below 1");
  EXPECT_EQ(message({"snapkv"}, {0.0}), "removed 0: must be above 0 and below 1");
}

// The library does not know these keys.
TEST(Refit, IsTakenOffAPolicyString) {
  const auto split = [](const std::string& text) { return eval::split_refit(text); };
  EXPECT_EQ(split("novelty").policy, "novelty");
  EXPECT_FALSE(split("novelty:smooth=4").how);
  EXPECT_EQ(split("novelty:smooth=4").policy, "novelty:smooth=4");
  const auto made = split("fuse:novelty+cur,refit=0.25,by=best,refit_queries=7,keep=0.5");
  EXPECT_EQ(made.policy, "fuse:novelty+cur,by=best,keep=0.5");
  ASSERT_TRUE(made.how);
  EXPECT_EQ(made.how->ridge, 0.25);
  EXPECT_EQ(made.how->queries, 7U);
  EXPECT_EQ(split("random:refit=1").policy, "random");
  EXPECT_EQ(split("random:refit=1").how->queries, 64U);
  const auto why = [&](const std::string& text) -> std::string {
    try {
      static_cast<void>(split(text));
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(why("random:refit=0"), "random: refit=0: must be from 1e-09 to 1000000");
  EXPECT_EQ(why("random:refit=x"), "random: refit=x: must be from 1e-09 to 1000000");
  EXPECT_EQ(why("random:refit="), "random: refit: has no value: write refit=...");
  EXPECT_EQ(why("random:refit=1,refit=1"), "random: refit: is given twice");
  EXPECT_EQ(why("random:refit=1,refit_queries=0"), "random: refit_queries=0: must be a whole number from 1 to 2147483647");
  EXPECT_EQ(why("random:refit_queries=5"), "random: refit_queries: give refit too");
}

TEST(Refit, KeepsAsManyTokens) {
  const auto made = eval::equal_budgets(at(0.75, {"lagkv:lag=128,refit=0.1", "novelty", "novelty:refit=0.1", "random"}), 2000);
  for (const auto& [s, b] : made) EXPECT_EQ(b.kept, made.at({"random", 0.75}).kept) << s.policy << ": " << b.failure;
  EXPECT_EQ(made.at({"novelty:refit=0.1", 0.75}).policy.substr(0, 22), "novelty:refit=0.1,keep");
  EXPECT_EQ(eval::settings_of({"snapkv:refit=1"}, {0.5}).at(1).policy, "snapkv:refit=1");
}

// With a budget or without: streaming_llm, for one, is no policy without.
TEST(Budget, NeedsAreKnownWithAndWithoutABudget) {
  EXPECT_TRUE(eval::needs_of("kvzap").importance);
  EXPECT_TRUE(eval::needs_of("kvzap:keep=0.5").importance);
  EXPECT_FALSE(eval::needs_of("streaming_llm").importance);
  EXPECT_FALSE(eval::needs_of("streaming_llm:capacity=64").calibrated);
  EXPECT_FALSE(eval::needs_of("lagkv:lag=128").calibrated);
  EXPECT_TRUE(eval::needs_of("expected_attention:calibrated=yes").calibrated);
  EXPECT_THROW(static_cast<void>(eval::needs_of("no_such_policy")), std::invalid_argument);
}

TEST(Budget, AShareIsWrittenAsThePolicyCallsIt) {
  EXPECT_EQ(eval::with_share("novelty", "0.25"), "novelty:keep=0.25");
  EXPECT_EQ(eval::with_share("novelty:ridge=1", "0.25"), "novelty:ridge=1,keep=0.25");
  EXPECT_EQ(eval::with_share("lagkv:lag=128", "0.25"), "lagkv:lag=128,ratio=0.25");
}

}  // namespace
