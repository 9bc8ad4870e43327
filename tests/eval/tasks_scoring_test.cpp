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

TEST(content_words, are_what_a_text_is_about) {
  EXPECT_EQ(eval::content_words("The Fox, who had seen it, ran; the fox's den was far, and the FOX ran."),
            (std::vector<std::string>{"fox", "seen", "ran", "fox's", "den", "far"}));
  EXPECT_TRUE(eval::content_words("It is not for him to have, or to have had.").empty());
  EXPECT_TRUE(eval::content_words("").empty());
}

TEST(gist_recalled, is_the_share_of_content_words_that_the_question_does_not_give) {
  prompt asked;
  asked.question = "What does the Fox do?";
  asked.answer_begins = "The hungry";
  asked.references = {"A hungry Fox crept into a hollow oak, and the oak was too narrow."};  // crept, hollow, oak, narrow
  const auto of = [&](const std::string& answer) { return eval::gist_recalled(answer, asked).at("score"); };
  EXPECT_EQ(of(asked.references.front()), 1);
  EXPECT_EQ(of("Narrow is the OAK, the hollow one, into which he crept."), 1) << "in any order and case";
  EXPECT_EQ(of("The hungry Fox was in a"), 0) << "what is given, and words of all texts";
  EXPECT_EQ(of("An oak, an oak, an oak"), 0.25) << "each once";
  EXPECT_EQ(of("It creeps into an oaken hollow"), 0.25) << "whole words";
  EXPECT_EQ(of(""), 0);
  asked.references = {"The hungry Fox"};
  EXPECT_EQ(of("The hungry Fox"), 0) << "nothing is asked for";
}

TEST(names_in_code, are_no_keywords) {
  EXPECT_EQ(eval::names_in_code("static std::size_t f(const tensor<3>& x_1, float y2 = 0x1p3, T& _z) {"),
            (std::vector<std::string_view>{"f", "tensor", "x_1", "y2", "T", "_z"}));
  EXPECT_TRUE(eval::names_in_code("").empty());
  EXPECT_TRUE(eval::names_in_code("(); {}").empty());
}

TEST(code_recalled, counts_names_of_the_first_line_in_their_order) {
  const std::string line = "(const layer& l, std::size_t head, workspace& ws";  // layer l head workspace ws
  const auto of = [&](const std::string& answer, const std::string& which = "score") {
    return score(eval::code_recalled, answer, {line}, which);
  };
  EXPECT_EQ(of(line), 1);
  EXPECT_EQ(of(line, "edit"), 1);
  EXPECT_EQ(of(line + ") {\n  return 1;"), 1);
  EXPECT_EQ(of(line + ") {\n  return 1;", "edit"), 1) << "what follows does not count";
  EXPECT_EQ(of("\n  " + line, "edit"), 1) << "a line that is empty is none";
  EXPECT_EQ(of("()\n" + line), 0) << "the first line alone";
  EXPECT_DOUBLE_EQ(of("(layer l, int head)"), 3.0 / 5) << "keywords do not count";
  EXPECT_DOUBLE_EQ(of("(const Layer& l)"), 1.0 / 5) << "case does";
  EXPECT_DOUBLE_EQ(of("(workspace& ws, layer l)"), 2.0 / 5) << "in their order";
  EXPECT_DOUBLE_EQ(of("(a b c d e layer l"), 0) << "too late";
  EXPECT_EQ(of(""), 0);
  EXPECT_EQ(of("", "edit"), 0);
  // 2 M / T: three bytes of three, and of four.
  EXPECT_DOUBLE_EQ(score(eval::code_recalled, "abc", {"abxc"}, "edit"), 6.0 / 7);
  EXPECT_DOUBLE_EQ(score(eval::code_recalled, "xxxx", {"abcd"}, "edit"), 0);
  EXPECT_DOUBLE_EQ(score(eval::code_recalled, "ab", {"ba"}, "edit"), 0.5);
}

TEST(scoring, is_each_tasks_own) {
  for (const eval::task& each : eval::all_tasks()) {
    if (each.how != eval::kind::answer || each.name == "few_shot") continue;  // few_shot has its own: few_shot.labels_are_...
    const bool any = each.name.starts_with("qa_") || each.name == "documents" || each.name == "chat_facts" ||
                     each.name == "ledger" || each.name == "two_documents" || each.name == "state_machine";
    const auto expected = each.name == "passkey64"         ? eval::key_recalled
                          : each.name == "prose_recall"    ? eval::words_recalled
                          : each.name == "summary"         ? eval::gist_recalled
                          : each.name == "code_completion" ? eval::code_recalled
                          : any                            ? eval::any_contained
                                                           : eval::share_contained;
    EXPECT_EQ(each.score, expected) << each.name;
  }
}

}  // namespace
