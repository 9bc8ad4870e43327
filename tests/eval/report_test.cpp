// The report: figures against hand-made ones, lines of the tables, and a page that nothing in the data can break.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>

#include "report/differences.hpp"
#include "report/figures.hpp"
#include "report/page.hpp"
#include "report/report_command.hpp"
#include "report/statistics.hpp"
#include "report/summary.hpp"
#include "report/table.hpp"
#include "report/text_table.hpp"
#include "report/within_reach.hpp"
#include "tasks/task.hpp"

namespace {

using testing::TempDir;

eval::sample_result sample(const std::string& task, std::size_t length, std::size_t number, const std::string& policy,
                           double removed, std::map<std::string, double> scores) {
  eval::sample_result s;
  s.key = {task, length, number, policy, removed};
  s.scores = std::move(scores);
  s.judged_tokens = 1000;
  s.kept_tokens = static_cast<std::size_t>(std::lround(1000 * (1 - std::max(0.0, removed))));
  s.full_mb = 4;
  s.kept_mb = 4 * (1 - removed);
  return s;
}

// The row of a policy; fails where there is none.
const eval::summary_row& row_of(const eval::summary& all, const std::string& policy, double removed) {
  for (const eval::summary_row& row : all.rows)
    if (row.key.policy == policy && row.key.removed == removed) return row;
  throw std::logic_error("no row of " + policy);
}

std::string tables(const eval::results& samples, bool markdown = false) {
  std::ostringstream out;
  eval::print_tables(out, eval::summarize(samples), markdown);
  return out.str();
}

std::string page_of(const eval::results& samples, const std::string& title = "a title") {
  return eval::make_page(title, eval::figures_json(eval::summarize(samples), samples));
}

// What stands in the page's script of data.
std::string data_of(const std::string& page) {
  const std::string begins = R"(<script type="application/json" id="data">)";
  const std::size_t begin = page.find(begins) + begins.size();
  return page.substr(begin, page.find("</script>", begin) - begin);
}

TEST(Statistics, ConstantSamplesHaveNoWidth) {
  const std::vector<double> values(10, 0.1);
  const eval::estimate e = eval::estimate_mean(values);
  EXPECT_NEAR(e.mean, 0.1, 1e-15);
  EXPECT_EQ(e.low, e.mean);
  EXPECT_EQ(e.high, e.mean);
  EXPECT_EQ(e.samples, 10U);
}

TEST(Statistics, TwoPoints) {
  // Of two samples a resample is 00, 01, 10 or 11: a quarter of the means is 0, a quarter 1, so both lie within 95 %.
  const eval::estimate e = eval::estimate_mean(std::array{0.0, 1.0});
  EXPECT_EQ(e.mean, 0.5);
  EXPECT_EQ(e.low, 0);
  EXPECT_EQ(e.high, 1);
}

TEST(Statistics, AsTheNormalIntervalForManySamples) {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(i % 2);
  const eval::estimate e = eval::estimate_mean(values);
  EXPECT_EQ(e.mean, 0.5);
  const double half = 1.96 * 0.5 / 20;
  EXPECT_NEAR(e.low, 0.5 - half, 0.005);
  EXPECT_NEAR(e.high, 0.5 + half, 0.005);
}

TEST(Statistics, TheFiftyOutsideAreTheDocumentedOnes) {
  const std::vector<double> values{0, 1, 2, 4, 8, 16, 32};
  std::mt19937_64 random(42);
  std::vector<double> means;
  for (int r = 0; r < 2000; ++r) {
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[random() % 7];
    means.push_back(sum / 7);
  }
  std::sort(means.begin(), means.end());
  const eval::estimate e = eval::estimate_mean(values);
  EXPECT_EQ(e.mean, 9);
  EXPECT_EQ(e.low, means[50]);
  EXPECT_EQ(e.high, means[1949]);
}

TEST(Statistics, NothingIsNotANumber) {
  EXPECT_TRUE(std::isnan(eval::estimate_mean({}).mean));
  EXPECT_TRUE(std::isnan(eval::estimate_macro_mean({}).mean));
  const std::vector<std::vector<double>> one_empty{{1.0}, {}};
  EXPECT_TRUE(std::isnan(eval::estimate_macro_mean(one_empty).mean));
  EXPECT_TRUE(std::isnan(eval::median({})));
}

TEST(Statistics, MacroMeanCountsTasksOnce) {
  const std::vector<std::vector<double>> tasks{{1, 1, 1, 1}, {0, 0}};
  const eval::estimate e = eval::estimate_macro_mean(tasks);
  EXPECT_EQ(e.mean, 0.5);
  EXPECT_EQ(e.low, 0.5);  // resampled within each task: no width
  EXPECT_EQ(e.high, 0.5);
  EXPECT_EQ(e.samples, 2U);
}

TEST(Statistics, Median) {
  EXPECT_EQ(eval::median({3, 1, 2}), 2);
  EXPECT_EQ(eval::median({4, 1, 3, 2}), 2.5);
}

TEST(Summary, GroupsAndOrders) {
  eval::results samples;
  for (const std::size_t length : {4096U, 2048U})
    for (const auto& [policy, removed] : {std::pair("snapkv", 0.75), {"snapkv", 0.25}, {"full", 0.0}, {"lagkv", 0.5}})
      for (const char* task : {"passkey64", "vt", "niah_single_1", "perplexity"})
        samples.samples.push_back(
            sample(task, length, 0, policy, removed, {{task == std::string("perplexity") ? "nll" : "score", 1}}));
  const eval::summary all = eval::summarize(samples);
  EXPECT_EQ(all.lengths, (std::vector<std::size_t>{2048, 4096}));
  EXPECT_EQ(all.policies, (std::vector<std::string>{"full", "snapkv", "lagkv"}));
  EXPECT_EQ(all.answer_tasks, (std::vector<std::string>{"niah_single_1", "vt", "passkey64"}));
  EXPECT_EQ(all.writing_tasks, (std::vector<std::string>{"perplexity"}));
  ASSERT_EQ(all.rows.size(), 8U);
  const std::vector<eval::row_key> first{{2048, "full", 0}, {2048, "snapkv", 0.25}, {2048, "snapkv", 0.75}, {2048, "lagkv", 0.5}};
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(all.rows[i].key, first[i]) << i;
  EXPECT_EQ(all.rows[4].key.length, 4096U);
}

TEST(Summary, ReadsTextsInTheirOrderWhicheverCameFirst) {
  eval::results samples;
  for (const char* task : {"generation", "perplexity_code", "niah_single_1", "perplexity"}) {
    samples.samples.push_back(sample(task, 2048, 0, "full", 0, {}));  // without a score its name has to do
    samples.samples.back().failure = "no room";
  }
  const eval::summary all = eval::summarize(samples);
  EXPECT_EQ(all.writing_tasks, (std::vector<std::string>{"perplexity", "perplexity_code", "generation"}));
  EXPECT_EQ(all.answer_tasks, (std::vector<std::string>{"niah_single_1"}));
}

TEST(Summary, HasShortNamesThatDiffer) {
  std::set<std::string_view> briefs;
  for (const eval::task& each : eval::all_tasks()) EXPECT_TRUE(briefs.insert(eval::short_name(each.name)).second) << each.name;
  EXPECT_EQ(eval::short_name("needles_16"), "n16");
  EXPECT_EQ(eval::short_name("perplexity_code"), "code");
  EXPECT_EQ(eval::short_name("perplexity"), "perplexity");
  EXPECT_FALSE(eval::in_ruler("needles_16")) << "no part of RULER's mean";
  EXPECT_FALSE(eval::in_ruler("documents"));
}

TEST(Summary, MeansMacroMeanAndMedians) {
  eval::results samples;
  for (std::size_t i = 0; i < 4; ++i) {
    samples.samples.push_back(sample("vt", 2048, i, "a", 0.5, {{"score", i < 3 ? 1 : 0}, {"first_token", i < 2 ? 1 : 0}}));
    samples.samples.back().compress_ms = static_cast<double>(i * i);
    samples.samples.back().decoded = i == 0 ? 0 : 10;
    samples.samples.back().decode_seconds = static_cast<double>(i);
  }
  samples.samples.push_back(sample("cwe", 2048, 0, "a", 0.5, {{"score", 0.25}}));
  samples.samples.push_back(sample("passkey64", 2048, 0, "a", 0.5, {{"score", 0}}));
  const eval::summary all = eval::summarize(samples);
  const eval::summary_row& row = row_of(all, "a", 0.5);
  EXPECT_EQ(row.tasks.at("vt").scores.at("score").mean, 0.75);
  EXPECT_EQ(row.tasks.at("vt").samples, 4U);
  EXPECT_EQ(row.ruler.mean, 0.5);  // (0.75 + 0.25) / 2: the pass key is none of RULER's
  EXPECT_EQ(row.first_token.mean, 0.5);
  EXPECT_EQ(row.answers.compress_ms, 0.5);  // of 0 0 0 1 4 9
  EXPECT_EQ(row.answers.decode_rate, 5);    // of 10/1 10/2 10/3
  EXPECT_EQ(row.answers.kept_tokens, 500);
  EXPECT_EQ(row.answers.kept_share, 0.5);
  EXPECT_EQ(row.answers.kept_mb, 2);
  EXPECT_TRUE(std::isnan(row.writing.kept_mb));
}

TEST(Summary, FailuresCountInNoMean) {
  eval::results samples;
  samples.samples = {sample("vt", 2048, 0, "a", 0.5, {{"score", 1}}), sample("vt", 2048, 1, "a", 0.5, {{"score", 0}}),
                     sample("vt", 2048, 0, "b", 0.5, {}), sample("cwe", 2048, 0, "a", 0.5, {{"score", 1}}),
                     sample("cwe", 2048, 0, "b", 0.5, {{"score", 1}})};
  samples.samples[1].failure = "too little";
  samples.samples[2].scores["score"] = std::numeric_limits<double>::infinity();
  const eval::summary all = eval::summarize(samples);
  EXPECT_EQ(row_of(all, "a", 0.5).tasks.at("vt").scores.at("score").mean, 1);
  EXPECT_EQ(row_of(all, "a", 0.5).tasks.at("vt").failed, 1U);
  EXPECT_EQ(row_of(all, "a", 0.5).ruler.mean, 1);
  EXPECT_TRUE(std::isnan(row_of(all, "b", 0.5).ruler.mean));  // of one task alone it would not compare
  ASSERT_EQ(all.failures.size(), 2U);
  EXPECT_EQ(all.failures[0].reason, "too little");
  EXPECT_EQ(all.failures[0].samples, 1U);
  EXPECT_EQ(all.failures[0].of, 2U);
  EXPECT_EQ(all.failures[1].reason, "score is not a number");
}

TEST(Summary, DepthsAreFewOrTenths) {
  eval::results samples;
  for (std::size_t i = 0; i < 4; ++i) {
    samples.samples.push_back(sample("passkey64", 2048, i, "a", 0.5, {{"partial", i < 3 ? 1 : 0}}));
    samples.samples.back().depth = i < 2 ? 0.25 : 0.75;
  }
  eval::summary all = eval::summarize(samples);
  ASSERT_EQ(all.depths.size(), 2U);
  EXPECT_EQ(all.depths[0].depth, 0.25);
  EXPECT_EQ(all.depths[0].scores.at("partial"), 1);
  EXPECT_EQ(all.depths[1].scores.at("partial"), 0.5);
  samples.samples.clear();
  for (std::size_t i = 0; i < 100; ++i) {
    samples.samples.push_back(sample("passkey64", 2048, i, "a", 0.5, {{"partial", 1}}));
    samples.samples.back().depth = static_cast<double>(i) / 99;
  }
  all = eval::summarize(samples);
  EXPECT_EQ(all.depths.size(), 11U);
}

eval::results small_file() {
  eval::results samples;
  samples.runs.resize(1);
  samples.runs[0].model = "m.gguf";
  samples.runs[0].seed = 7;
  for (std::size_t i = 0; i < 2; ++i) {
    samples.samples.push_back(sample("niah_single_1", 2048, i, "full", 0, {{"score", 1}, {"first_token", 1}}));
    samples.samples.push_back(sample("niah_single_1", 2048, i, "lagkv:lag=128", 0.875, {{"score", i}, {"first_token", 1}}));
    samples.samples.push_back(sample("passkey64", 2048, i, "full", 0, {{"score", 1}, {"partial", 1}, {"prefix", 1}}));
    samples.samples.back().depth = static_cast<double>(i);
    samples.samples.push_back(sample("perplexity", 2048, i, "full", 0, {{"nll", std::log(8)}, {"kl", 0}, {"same_token", 1}}));
    samples.samples.push_back(
        sample("perplexity", 2048, i, "lagkv:lag=128", 0.875, {{"nll", std::log(16)}, {"kl", 0.5}, {"same_token", 0.75}}));
  }
  return samples;
}

TEST(Table, TellsCodeFromProse) {
  eval::results samples;
  samples.samples.push_back(sample("perplexity_code", 2048, 0, "full", 0, {{"nll", std::log(4)}, {"kl", 0}, {"same_token", 1}}));
  samples.samples.push_back(sample("perplexity", 2048, 0, "full", 0, {{"nll", std::log(8)}, {"kl", 0}, {"same_token", 1}}));
  samples.samples.push_back(sample("needles_16", 2048, 0, "full", 0, {{"score", 1}, {"first_token", 1}}));
  const std::string text = tables(samples);
  EXPECT_NE(text.find("  perplexity     KL  same %  code perplexity  code KL  code same %  "), std::string::npos) << text;
  EXPECT_NE(text.find("n16 needles_16"), std::string::npos) << text;
  EXPECT_EQ(text.find("RULER mean: of"), std::string::npos) << text;
}

TEST(Table, HandMadeLines) {
  const std::string text = tables(small_file());
  for (const char* line : {
           "\nAccuracy at 2048 tokens (2 samples a task)\n",
           "\npolicy         removed            RULER mean  kept tokens  kept %  kept MB  compress ms  first token %\n"
           "full           0 %      100.0 [100.0, 100.0]         1000   100.0     4.00         0.00          100.0\n"
           "lagkv:lag=128  87.5 %      50.0 [0.0, 100.0]          125    12.5     0.50         0.00          100.0\n",
           "\npolicy         removed     s1   pk64\n"
           "full           0 %      100±0  100±0\n"
           "lagkv:lag=128  87.5 %   50±50      -\n"
           "s1 niah_single_1, pk64 passkey64\n",
           "\npolicy  removed           exact         partial          prefix  @0%  @100%\n"
           "full    0 %      100 [100, 100]  100 [100, 100]  100 [100, 100]  100    100\n",
           "\npolicy         removed  perplexity     KL  same %  kept %  kept MB  compress ms\n"
           "full           0 %       8.00±0.00  0.000   100.0   100.0     4.00         0.00\n"
           "lagkv:lag=128  87.5 %   16.00±0.00  0.500    75.0    12.5     0.50         0.00\n",
       })
    EXPECT_NE(text.find(line), std::string::npos) << line << "is not in:\n" << text;
  EXPECT_EQ(text.find("Not available"), std::string::npos);
}

// Only answers and texts at a share removed, with a result: a cache that grows, and budgets of their own, may hold other numbers.
TEST(Table, SaysInHowManyPromptsPoliciesKeptDifferentNumbers) {
  eval::results samples;
  const auto add = [&](const std::string& task, std::size_t number, const std::string& policy, double removed, std::size_t kept) {
    samples.samples.push_back(sample(task, 2048, number, policy, removed, {{"score", 1}}));
    samples.samples.back().kept_tokens = kept;
  };
  add("vt", 0, "full", 0, 1000), add("vt", 0, "a", 0.5, 500), add("vt", 0, "b", 0.5, 505);
  add("vt", 0, "a", 0.75, 250), add("vt", 0, "b", 0.75, 270), add("vt", 0, "c:capacity=9", -1, 9);
  add("vt", 1, "a", 0.5, 500), add("vt", 1, "b", 0.5, 506), add("generation", 0, "a", 0.5, 500),
      add("generation", 0, "b", 0.5, 531);
  add("vt", 1, "c", 0.5, 0);
  samples.samples.back().failure = "cannot";
  const std::string said =
      "In 2 of 3 prompts and shares the policies kept numbers of tokens that differ by more than 1 %, at most 250 "
      "against 270\n";
  EXPECT_NE(tables(samples).find('\n' + said), std::string::npos) << tables(samples);
  EXPECT_EQ(tables(small_file()).find("differ by"), std::string::npos);
}

TEST(Table, Markdown) {
  const std::string text = tables(small_file(), true);
  EXPECT_NE(text.find("### Each task at 2048 tokens, of 100\n\n"
                      "| policy | removed | s1 | pk64 |\n"
                      "|---|---|---:|---:|\n"
                      "| full | 0 % | 100±0 | 100±0 |\n"
                      "| lagkv:lag=128 | 87.5 % | 50±50 | - |\n"),
            std::string::npos)
      << text;
}

TEST(Table, FailuresAreListed) {
  eval::results samples = small_file();
  samples.samples[1].failure = "budget\nof 4";
  eval::sample_result all_failed = sample("passkey64", 2048, 0, "lagkv:lag=128", 0.875, {});
  all_failed.failure = "budget\nof 4";
  samples.samples.push_back(all_failed);
  const std::string text = tables(samples);
  EXPECT_NE(text.find("lagkv:lag=128  87.5 %    100*      -\n"), std::string::npos) << text;
  EXPECT_NE(
      text.find("\nNot available\n\nlagkv:lag=128, 87.5 % removed, 2048 tokens: budget of 4: samples of niah_single_1 (1 of 2), "
                "passkey64 (1 of 1)\n"),
      std::string::npos)
      << text;
}

TEST(Table, AMeanOfTasksSomeOfWhosePromptsFailedHasAStar) {
  eval::results samples;
  for (std::size_t i = 0; i < 2; ++i)
    for (const char* policy : {"full", "fails"})
      for (const char* task : {"vt", "passkey64"}) {
        const double removed = policy == std::string("full") ? 0 : 0.5;
        samples.samples.push_back(sample(task, 2048, i, policy, removed, {{"score", 1}}));
      }
  EXPECT_EQ(tables(samples).find('*'), std::string::npos);
  samples.samples[3].failure = "cannot";  // a pass key is not in the mean
  EXPECT_EQ(tables(samples).find("100.0]*"), std::string::npos) << tables(samples);
  samples.samples[2].failure = "cannot";
  EXPECT_NE(tables(samples).find(" 100.0*  "), std::string::npos) << tables(samples);
}

TEST(Table, OwnBudgetAndLongPolicies) {
  const std::string policy = "lagkv:" + std::string(60, 'x');
  eval::results samples;
  samples.samples = {sample("vt", 2048, 0, policy + "1", -1, {{"score", 1}}),
                     sample("vt", 2048, 0, policy + "2", 0.5, {{"score", 0}})};
  const std::string text = tables(samples);
  EXPECT_NE(text.find("lagkv:xxxxxxxxxxxxxxxxx... (1)  own "), std::string::npos) << text;
  EXPECT_NE(text.find("lagkv:xxxxxxxxxxxxxxxxx... (2)  50 % "), std::string::npos) << text;
  EXPECT_NE(text.find("(2): " + policy + "2\n"), std::string::npos) << text;
}

TEST(Table, WideOnesGoOnBelow) {
  eval::text_table table{1, {"policy"}, {{"a"}, {"b"}}};
  for (int i = 0; i < 30; ++i) {
    table.heads.push_back("column");
    table.rows[0].push_back(std::to_string(i));
    table.rows[1].push_back(std::to_string(100 + i));
  }
  std::ostringstream out;
  eval::print(out, table, false);
  std::istringstream lines(out.str());
  std::size_t heads = 0;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), eval::most_columns);
    heads += line.rfind("policy", 0) == 0 ? 1U : 0U;
  }
  EXPECT_EQ(heads, 2U);
  EXPECT_NE(out.str().find("129\n"), std::string::npos);
}

TEST(Table, TextsAreMadeHarmless) {
  EXPECT_EQ(eval::one_line("a\nb\x1b[1m"), "a b [1m");
  EXPECT_EQ(eval::shortened("a\xE2\x82\xAC"
                            "b",
                            2),
            "a\xE2\x82\xAC");
  eval::results samples;
  samples.samples = {sample("vt", 2048, 0, "a|b<i>", 0.5, {{"score", 1}})};
  EXPECT_NE(tables(samples, true).find("| a\\|b\\<i\\> | 50 % |"), std::string::npos);
}

TEST(Table, NoSamples) { EXPECT_EQ(tables({}), "no samples\n"); }

TEST(Differences, PairPromptsAndShares) {
  const eval::results all{{},
                          {sample("vt", 100, 0, "full", 0, {{"score", 1}}), sample("vt", 100, 0, "a", 0.5, {{"score", 0.5}}),
                           sample("vt", 100, 0, "b", 0.5, {{"score", 0.75}}), sample("vt", 100, 0, "b", 0.25, {{"score", 1}}),
                           sample("vt", 100, 1, "a", 0.5, {{"score", 1}, {"more", 1}}),
                           sample("vt", 100, 1, "b", 0.5, {{"score", 0}}), sample("vt", 200, 0, "b", 0.5, {{"score", 1}})}};
  const eval::results from_a = eval::differences(all, "a");
  ASSERT_EQ(from_a.samples.size(), 2U) << "another share, another length and the policy itself have no partner";
  EXPECT_EQ(from_a.samples[0].scores, (std::map<std::string, double>{{"score", 0.25}}));
  EXPECT_EQ(from_a.samples[1].scores, (std::map<std::string, double>{{"score", -1}}));
  EXPECT_EQ(from_a.samples[1].key.policy, "b");
  EXPECT_NEAR(row_of(eval::summarize(from_a), "b", 0.5).ruler.mean, -0.375, 1e-15);
  const eval::results from_full = eval::differences(all, "full");
  ASSERT_EQ(from_full.samples.size(), 3U) << "every share, but only the prompt that the full cache has";
  EXPECT_EQ(from_full.samples[0].scores.at("score"), -0.5);

  std::ostringstream out;
  eval::print_tables(out, eval::summarize(from_a), false, "a");
  EXPECT_NE(out.str().find("differences from a on the same prompts"), std::string::npos);
  EXPECT_NE(out.str().find("-37.5"), std::string::npos);
}

TEST(Differences, LeaveOutWhatHasNoResultAndNameWhatThereIs) {
  eval::results all{{}, {sample("vt", 100, 0, "a", 0.5, {{"score", 1}}), sample("vt", 100, 0, "b", 0.5, {{"score", 1}})}};
  all.samples[1].failure = "a budget that cannot be met";
  for (const char* policy : {"a", "b", "c"}) try {
      static_cast<void>(eval::differences(all, policy));
      ADD_FAILURE() << policy;
    } catch (const std::invalid_argument& e) {
      EXPECT_EQ(e.what(), std::string("--against ") + policy + ": no prompt has it and another policy: must be one of a; b");
    }
}

TEST(WithinReach, LeavesOutWhatTheFullCacheCannotDo) {
  const eval::results all{{},
                          {sample("vt", 100, 0, "full", 0, {{"score", 0.25}}), sample("vt", 100, 1, "full", 0, {{"score", 0.5}}),
                           sample("cwe", 100, 0, "full", 0, {{"score", 0.25}}), sample("cwe", 200, 0, "full", 0, {{"score", 1}}),
                           sample("vt", 100, 0, "a", 0.5, {{"score", 0}}), sample("cwe", 100, 0, "a", 0.5, {{"score", 1}}),
                           sample("cwe", 200, 0, "a", 0.5, {{"score", 1}}), sample("fwe", 100, 0, "a", 0.5, {{"score", 1}}),
                           sample("perplexity", 100, 0, "a", 0.5, {{"kl", 0.1}})}};
  const auto left = [&](double least) {
    std::set<std::pair<std::string, std::size_t>> of_a;
    for (const eval::sample_result& s : eval::within_reach(all, least).samples)
      if (s.key.policy == "a") of_a.insert({s.key.task, s.key.length});
    return of_a;
  };
  using tasks = std::set<std::pair<std::string, std::size_t>>;
  EXPECT_EQ(left(0.3), (tasks{{"vt", 100}, {"cwe", 200}, {"perplexity", 100}})) << "cwe has 25 at 100 tokens, fwe no full cache";
  EXPECT_EQ(left(0.375), left(0.3)) << "the mean itself is within reach";
  EXPECT_EQ(left(0.38), (tasks{{"cwe", 200}, {"perplexity", 100}}));
  EXPECT_EQ(row_of(eval::summarize(eval::within_reach(all, 0.3)), "a", 0.5).ruler.mean, 0) << "of vt alone";
  try {
    static_cast<void>(eval::within_reach({{}, {all.samples[0], all.samples[4]}}, 0.3));
    ADD_FAILURE();
  } catch (const std::invalid_argument& e) {
    EXPECT_STREQ(e.what(), "--reach 30: no task of the full cache has it: must be at most 25");
  }
}

TEST(Page, HoldsTheFigures) {
  eval::results samples = small_file();
  samples.samples[0].survivors = {"0123456789", "9999900000"};
  samples.samples[0].needle_begin = 0.25;
  samples.samples[0].needle_end = 0.5;
  samples.samples[0].answer = "the number is 1";
  const auto data = nlohmann::json::parse(data_of(page_of(samples)));
  EXPECT_EQ(data.at("lengths"), nlohmann::json({2048}));
  EXPECT_EQ(data.at("policies"), nlohmann::json({"full", "lagkv:lag=128"}));
  ASSERT_EQ(data.at("rows").size(), 2U);
  const auto& row = data["rows"][1];
  EXPECT_EQ(row.at("policy"), "lagkv:lag=128");
  EXPECT_EQ(row.at("tasks").at("niah_single_1").at("scores").at("score"), nlohmann::json({0.5, 0, 1, 2}));
  EXPECT_EQ(row.at("ruler"), nlohmann::json({0.5, 0, 1, 2}));
  EXPECT_EQ(row.at("answers").at("decode_rate"), nullptr);
  EXPECT_EQ(data.at("depths").size(), 2U);
  ASSERT_EQ(data.at("pictures").size(), 1U);
  EXPECT_EQ(data["pictures"][0].at("rows")[1], "9999900000");
  EXPECT_EQ(data["pictures"][0].at("needle"), nlohmann::json({0.25, 0.5}));
  ASSERT_EQ(data.at("answers").size(), 1U);
  EXPECT_EQ(data["answers"][0].at("answer"), "the number is 1");
  EXPECT_EQ(data.at("runs")[0].at("seed"), 7);
}

// Opened elements are closed in order; scripts and styles are skipped as a browser does. Empty where all is well.
std::string unbalanced(const std::string& page) {
  const std::vector<std::string> without_end{"meta", "!doctype"};
  std::vector<std::string> open;
  for (std::size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at)) {
    const std::size_t end = page.find('>', at);
    if (end == std::string::npos) return "no end of " + page.substr(at, 20);
    const bool closes = page[at + 1] == '/';
    const std::size_t begin = at + (closes ? 2 : 1);
    const std::string name = page.substr(begin, page.find_first_of(" >", begin) - begin);
    at = end;
    if (closes) {
      if (open.empty() || open.back() != name) return "</" + name + "> after " + (open.empty() ? "nothing" : open.back());
      open.pop_back();
    } else if (std::find(without_end.begin(), without_end.end(), name) == without_end.end()) {
      open.push_back(name);
      if (name == "script" || name == "style") at = page.find("</" + name + ">", end);
    }
  }
  return open.empty() ? "" : "open: " + open.back();
}

TEST(Page, IsWellFormedAndAlone) {
  const std::string page = page_of(small_file());
  EXPECT_EQ(page.rfind("<!doctype html>", 0), 0U);
  EXPECT_EQ(unbalanced(page), "");
  EXPECT_EQ(page.find("{{"), std::string::npos) << page.substr(page.find("{{"), 40);
  for (const char* outside : {"src=", "href=", "@import", "url(", "innerHTML", "eval("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  // Of addresses there is the namespace of SVG, which nobody fetches.
  std::size_t addresses = 0;
  for (std::size_t at = page.find("://"); at != std::string::npos; at = page.find("://", at + 1)) ++addresses;
  EXPECT_EQ(addresses, 1U);
}

TEST(Page, NothingInTheDataIsMarkup) {
  const std::string evil = "</script><script>alert(1)</script><!-- <script> {{script}} {{title}} & \xFF";
  eval::results samples = small_file();
  samples.runs[0].command = evil;
  for (eval::sample_result& s : samples.samples) s.answer = evil;
  samples.samples.push_back(sample(evil, 2048, 0, evil, 0.5, {{"score", 1}}));
  samples.samples.push_back(samples.samples.back());
  samples.samples.back().key.sample = 1;
  samples.samples.back().failure = evil;
  const std::string page = page_of(samples, evil);
  EXPECT_EQ(unbalanced(page), "");
  const std::string data = data_of(page);
  EXPECT_EQ(data.find('<'), std::string::npos);
  const auto parsed = nlohmann::json::parse(data);
  EXPECT_EQ(parsed.at("policies")[2], evil.substr(0, evil.size() - 1) + "\xEF\xBF\xBD");
  EXPECT_NE(page.find("<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;!-- "), std::string::npos);
}

TEST(Page, OfEmptyAndOddFiles) {
  for (const eval::results& samples :
       {eval::results{}, [] {
          eval::results odd;
          odd.samples = {sample("new_task", 512, 0, "p", -1, {{"score", 2}}), sample("vt", 1024, 0, "q", 0.5, {})};
          return odd;
        }()}) {
    const std::string page = page_of(samples);
    EXPECT_EQ(unbalanced(page), "");
    EXPECT_TRUE(nlohmann::json::accept(data_of(page)));
  }
}

TEST(Command, WritesPageAndFigures) {
  const std::string folder = TempDir() + "lagkv_eval_report_";
  const eval::report_options options{folder + "results", folder + "html", folder + "json", false};
  std::filesystem::remove(options.results);
  {
    eval::results_file file(options.results);
    const eval::results samples = small_file();
    file.add(samples.runs[0]);
    for (const eval::sample_result& s : samples.samples) file.add(s);
  }
  testing::internal::CaptureStdout();
  EXPECT_EQ(eval::report_command(options), 0);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), tables(small_file()));
  const auto text_of = [](const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string{std::istreambuf_iterator<char>(in), {}};
  };
  const std::string page = text_of(options.html);
  EXPECT_NE(page.find("<h1>How well m.gguf answers when its KV cache is compressed</h1>"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(text_of(options.json)), nlohmann::json::parse(data_of(page)));
  for (const std::string& path : {options.results, options.html, options.json}) std::filesystem::remove(path);
}

TEST(Command, Faults) {
  const std::string path = TempDir() + "lagkv_eval_report_empty";
  EXPECT_THROW(eval::report_command({path + ".none", "", "", false}), std::runtime_error);
  std::ofstream(path) << "{\"type\":\"run\"}\n";
  EXPECT_THROW(eval::report_command({path, "", "", false}), std::invalid_argument);
  std::filesystem::remove(path);
}

// Each could be a file of its own: together they would be one table of things that differ.
TEST(Command, RefusesRunsOfDifferentConditions) {
  const std::string path = TempDir() + "lagkv_eval_report_unlike";
  const auto refused = [&](const std::string& second, const std::string& third) {
    std::ofstream(path) << R"({"type":"run","seed":7,"cache_type":"f16"})" << '\n'
                        << R"({"type":"sample","task":"vt","length":1,"sample":0,"policy":"full","scores":{"score":1}})" << '\n'
                        << R"({"type":"run","cache_type":"f16",)" << second << "}\n"
                        << R"({"type":"run","cache_type":"f16",)" << third << "}\n";
    testing::internal::CaptureStdout();
    std::string why;
    try {
      static_cast<void>(eval::report_command({path, "", "", false}));
    } catch (const std::invalid_argument& e) {
      why = e.what();
    }
    EXPECT_EQ(testing::internal::GetCapturedStdout().empty(), !why.empty());
    std::filesystem::remove(path);
    return why;
  };
  EXPECT_EQ(refused(R"("seed":7,"repack":true)", R"("seed":7)"), "");
  EXPECT_EQ(refused(R"("seed":7)", R"("seed":8)"),
            path + ": one run was made with seed 7, not 8, as another was: their results cannot stand in one table");
  EXPECT_NE(refused(R"("seed":7,"chunk":512)", R"("seed":7)").find("chunk 0, not 512"), std::string::npos);
  EXPECT_NE(refused(R"("seed":7,"repack":true)", R"("seed":7,"repack":false)").find("repacked weights"), std::string::npos);
}

}  // namespace
