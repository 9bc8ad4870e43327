// What answers are worth: cases by hand.
#include <gtest/gtest.h>

#include "tasks/scoring.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::prompt;

double score(eval::scores (*judge)(std::string_view, const prompt&), std::string_view answer, std::vector<std::string> references,
             const std::string& which = "score") {
  prompt asked;
  asked.references = std::move(references);
  return judge(answer, asked).at(which);
}

TEST(contains, ignores_case) {
  EXPECT_TRUE(eval::contains("The Answer is 42.", "answer IS 4"));
  EXPECT_TRUE(eval::contains("abc", ""));
  EXPECT_TRUE(eval::contains("abc", "ABC"));
  EXPECT_FALSE(eval::contains("abc", "abcd"));
  EXPECT_FALSE(eval::contains("", "a"));
  EXPECT_FALSE(eval::contains("[", "{")) << "32 apart, but no letters";
  EXPECT_TRUE(eval::contains("aab", "ab"));
}

TEST(share_contained, is_a_share) {
  EXPECT_EQ(score(eval::share_contained, "1234567 and 7654321", {"1234567", "7654321"}), 1);
  EXPECT_EQ(score(eval::share_contained, "xYz only", {"XYZ", "ABC", "DEF", "GHI"}), 0.25);
  EXPECT_EQ(score(eval::share_contained, "", {"a"}), 0);
  EXPECT_EQ(score(eval::share_contained, "11234567", {"1234567"}), 1) << "within more digits";
  EXPECT_EQ(score(eval::share_contained, "123456", {"1234567"}), 0);
  EXPECT_EQ(score(eval::share_contained, "12 23", {"123"}), 0);
  EXPECT_EQ(score(eval::share_contained, "1212123", {"12123", "1212"}), 1) << "references may overlap";
}

TEST(any_contained, is_the_best) {
  EXPECT_EQ(score(eval::any_contained, "in FRANCE, I think", {"Germany", "France", "in France"}), 1);
  EXPECT_EQ(score(eval::any_contained, "in France", {"Germany", "France"}), 1) << "one is enough";
  EXPECT_EQ(score(eval::any_contained, "in Spain", {"Germany", "France"}), 0);
  EXPECT_EQ(score(eval::any_contained, "in Spain", {}), 0);
}

TEST(longest_common_substring, by_hand) {
  EXPECT_EQ(eval::longest_common_substring("", "abc"), 0U);
  EXPECT_EQ(eval::longest_common_substring("abc", "abc"), 3U);
  EXPECT_EQ(eval::longest_common_substring("xabcy", "zabcw"), 3U);
  EXPECT_EQ(eval::longest_common_substring("aaaa", "aa"), 2U);
  EXPECT_EQ(eval::longest_common_substring("abab", "babc"), 3U);
  EXPECT_EQ(eval::longest_common_substring("a-b-c", "abc"), 1U) << "a substring, not a subsequence";
  EXPECT_EQ(eval::longest_common_substring("12341235", "41235"), 5U) << "the later run is the longer";
}

TEST(key_recalled, tells_exact_from_partial_from_prefix) {
  std::string key;
  while (key.size() < 64) key += "0123456789"[(key.size() * 7 + key.size() / 10) % 10];
  const auto of = [&](const std::string& answer, const std::string& which) {
    return score(eval::key_recalled, answer, {key}, which);
  };
  EXPECT_EQ(of(key, "score"), 1);
  EXPECT_EQ(of("the pass key is " + key + ".", "score"), 1);
  EXPECT_EQ(of("the pass key is " + key + ".", "prefix"), 1);
  EXPECT_EQ(of("the pass key is " + key + ".", "partial"), 1);

  const std::string half = key.substr(0, 32);
  EXPECT_EQ(of(half, "score"), 0);
  EXPECT_EQ(of(half, "partial"), 0.5);
  EXPECT_EQ(of(half, "prefix"), 0.5);

  std::string wrong = key;
  wrong[16] = wrong[16] == '9' ? '8' : '9';
  EXPECT_EQ(of(wrong, "score"), 0);
  EXPECT_EQ(of(wrong, "partial"), 47.0 / 64);
  EXPECT_EQ(of(wrong, "prefix"), 16.0 / 64);

  EXPECT_EQ(of("7" + key, "score"), 1) << "contained";
  EXPECT_EQ(of("7" + key, "prefix"), 0) << "the first digit is wrong";
  EXPECT_EQ(of("", "score"), 0);
  EXPECT_EQ(of("", "partial"), 0);
  EXPECT_EQ(of("I do not know", "prefix"), 0);
}

TEST(words_recalled, counts_words_in_their_order) {
  const std::string text = "It was so, she said; \"very well-known\" to Anne's friends.";  // 11 words: well-known has two
  const auto of = [&](const std::string& answer, const std::string& which = "score") {
    return score(eval::words_recalled, answer, {text}, which);
  };
  EXPECT_EQ(of(text), 1);
  EXPECT_EQ(of(text, "prefix"), 1);
  EXPECT_EQ(of(" it WAS so she said very well known to anne's friends"), 1) << "neither case nor punctuation counts";
  EXPECT_EQ(of(text + " And so on."), 1) << "what follows does not count";
  EXPECT_EQ(of(""), 0);
  EXPECT_EQ(of("...", "prefix"), 0);
  EXPECT_EQ(of("Nobody asked him"), 0);

  EXPECT_DOUBLE_EQ(of("It was so, she"), 4.0 / 11);
  EXPECT_DOUBLE_EQ(of("It was so, she", "prefix"), 4.0 / 11);
  // A word left out, and one put in: the rest is still there. The prefix ends at the first.
  EXPECT_DOUBLE_EQ(of("It was so, said very well-known to Anne's friends"), 10.0 / 11);
  EXPECT_DOUBLE_EQ(of("It was so, said very well-known to Anne's friends", "prefix"), 3.0 / 11);
  EXPECT_DOUBLE_EQ(of("It was not so, she said; very well-known to Anne's friends"), 10.0 / 11) << "the 12th word is cut off";
  EXPECT_DOUBLE_EQ(of("It was so, he said; very well-known to Anne's friends"), 10.0 / 11);
  EXPECT_DOUBLE_EQ(of("friends Anne's to known well very said she so was It"), 1.0 / 11) << "all, but in another order";
  EXPECT_DOUBLE_EQ(of("It It It It It It It It It It It"), 1.0 / 11) << "a word counts once";
  EXPECT_DOUBLE_EQ(of("a b c d e f g h i j k It was so, she said"), 0) << "too late";
  EXPECT_DOUBLE_EQ(of("Item wash"), 0) << "whole words";
}

TEST(scoring, is_each_tasks_own) {
  for (const eval::task& each : eval::all_tasks()) {
    if (each.how != eval::kind::answer || each.name == "few_shot") continue;  // few_shot has its own: few_shot.labels_are_...
    const bool any =
        each.name.starts_with("qa_") || each.name == "documents" || each.name == "chat_facts" || each.name == "ledger";
    const auto expected = each.name == "passkey64"      ? eval::key_recalled
                          : each.name == "prose_recall" ? eval::words_recalled
                          : any                         ? eval::any_contained
                                                        : eval::share_contained;
    EXPECT_EQ(each.score, expected) << each.name;
  }
}

}  // namespace
