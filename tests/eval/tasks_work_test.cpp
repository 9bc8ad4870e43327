// The tasks of work: two documents, a summary, code to complete, a machine with states. What their prompts say is true, and what
// an answer is worth.
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>

#include "tasks/book.hpp"
#include "tasks/fables.hpp"
#include "tasks/scoring.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::prompt;

prompt made(std::string_view task, std::size_t sample, std::size_t length = 2048) {
  return task_named(task).make(request_of(length, sample));
}

double score_of(std::string_view task, std::string_view answer, const prompt& p) {
  return task_named(task).score(answer, p).at("score");
}

TEST(two_documents, one_has_the_person_and_another_the_town) {
  const std::regex copied("The fable \"([^\"]+)\" was copied by ([A-Z][a-z]+)\\.");
  const std::regex lives("([A-Z][a-z]+) lives in ([A-Z][a-z]+)\\.");
  std::set<std::string> towns;
  std::size_t before = 0;  // prompts in which the fable stands before the person
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = made("two_documents", sample);
    std::map<std::string, std::string> who, where;
    for (const std::string& line : lines_of(p.context)) {
      std::smatch m;
      if (std::regex_match(line, m, copied)) {
        who[m[1]] = m[2];
      } else if (std::regex_match(line, m, lives)) {
        EXPECT_TRUE(where.emplace(m[1], m[2]).second) << line;
      }
    }
    EXPECT_EQ(where.size(), 8U);
    EXPECT_EQ(times_in(p.context, "Document "), who.size() + where.size());
    const std::string title = between(p.question, "Who copied the fable \"", "\"");
    ASSERT_TRUE(who.contains(title)) << p.question;
    EXPECT_EQ(p.answer_begins, "The fable \"" + title + "\" was copied by");
    EXPECT_EQ(where.at(who.at(title)), p.references.front());
    std::set<std::string> all;
    for (const auto& [name, town] : where) all.insert(town);
    EXPECT_EQ(all.size(), 8U) << "no two in one town";

    ASSERT_EQ(p.needles.size(), 2U);
    EXPECT_EQ(times_in(p.needles[0], p.references.front()), 0U) << "the fable does not tell the town";
    EXPECT_EQ(times_in(p.needles[1], title), 0U);
    if (p.context.find(p.needles[0]) < p.context.find(p.needles[1])) ++before;
    towns.insert(p.references.front());
    EXPECT_EQ(score_of("two_documents", " " + who.at(title) + ", who lives in " + p.references.front() + ".", p), 1);
    EXPECT_EQ(score_of("two_documents", " " + who.at(title) + ".", p), 0) << "half of it";
    for (const auto& [name, town] : where)
      if (name != who.at(title)) {
        EXPECT_EQ(score_of("two_documents", name + ", who lives in " + town, p), 0);
      }
  }
  EXPECT_GE(towns.size(), 10U);
  EXPECT_GT(before, 3U);
  EXPECT_LT(before, 17U);
}

TEST(two_documents, the_example_has_no_name_of_the_documents) {
  const prompt p = made("two_documents", 0, 32768);
  for (const char* words : {"Mary", "Rome", "who lives in"}) {
    EXPECT_EQ(times_in(p.question, words), 1U);
    EXPECT_EQ(times_in(p.context, words), 0U) << words;
  }
}

// All of them: 35 samples are one round.
TEST(summary, says_a_fable_in_its_own_words) {
  constexpr std::size_t round = 35;
  std::map<std::string, prompt> of;  // by the fable's text
  for (std::size_t sample = 0; sample < round; ++sample) {
    const prompt p = made("summary", sample);
    const std::string title = between(p.question, "fable \"", "\"");
    const std::string& document = p.needles.front();
    ASSERT_TRUE(document.starts_with(title + "\n"));
    EXPECT_EQ(std::ranges::count(eval::shipped_fables(), title, &eval::fable::title), 1) << title;
    const std::string text = document.substr(title.size() + 1);
    EXPECT_TRUE(text.starts_with(p.answer_begins.substr(std::string("In a sentence: ").size()) + " ")) << p.answer_begins;
    EXPECT_EQ(score_of("summary", text, p), 1) << title << ": each word that counts stands in the fable";
    EXPECT_EQ(score_of("summary", p.references.front(), p), 1);
    EXPECT_EQ(score_of("summary", p.question + p.answer_begins, p), 0);
    EXPECT_LT(p.references.front().size(), text.size() / 2) << "shorter than the fable";
    of[text] = p;
  }
  ASSERT_EQ(of.size(), round) << "each once";
  double own = 0, other = 0;
  for (const auto& [text, p] : of) {
    const std::vector<std::string> words = words_of(text);
    std::string begins;  // about 64 tokens
    for (std::size_t i = 0; i < std::min<std::size_t>(words.size(), 45); ++i) begins += words[i] + " ";
    for (const auto& [asked, q] : of) (asked == text ? own : other) += score_of("summary", begins, q);
  }
  EXPECT_GT(own / round, 0.55) << "who tells it from its beginning";
  EXPECT_LT(own / round, 0.8) << "has not all of it";
  EXPECT_LT(other / (round * (round - 1)), 0.03) << "another fable";
}

TEST(code_completion, asks_for_the_parameters_of_a_line_that_stands_once) {
  std::set<std::string> lines;
  std::set<double> places;
  std::vector<std::string> parameters;
  for (std::size_t sample = 0; sample < 60; ++sample) {
    const prompt p = made("code_completion", sample);
    const std::string line = p.answer_begins + p.references.front();
    EXPECT_EQ(p.needles, std::vector<std::string>{line});
    EXPECT_EQ(times_in(p.context, line), 1U);
    EXPECT_EQ(times_in(eval::headers, p.answer_begins + "("), 1U) << "it tells which line is asked for";
    EXPECT_TRUE(p.references.front().starts_with("("));
    EXPECT_GE(eval::names_in_code(p.references.front()).size(), 5U) << line;
    const std::string function = between(p.question, "declares ", " again");
    EXPECT_TRUE(p.answer_begins.ends_with(function)) << line;
    EXPECT_EQ(score_of("code_completion", p.references.front() + ") {\n}", p), 1);
    EXPECT_EQ(score_of("code_completion", "() {\n" + p.references.front(), p), 0);
    lines.insert(line);
    parameters.push_back(p.references.front());
    places.insert(static_cast<double>(p.context.find(line)) / static_cast<double>(p.context.size()));
  }
  EXPECT_GT(lines.size(), 30U);
  EXPECT_LT(*places.begin(), 0.2);
  EXPECT_GT(*places.rbegin(), 0.8);

  double score = 0, edit = 0;
  std::size_t pairs = 0;
  for (const std::string& asked : parameters) {
    prompt p;
    p.references = {asked};
    for (const std::string& said : parameters) {
      if (said == asked) continue;
      const eval::scores s = eval::code_recalled(said, p);
      score += s.at("score"), edit += s.at("edit");
      ++pairs;
    }
  }
  EXPECT_LT(score / static_cast<double>(pairs), 0.15) << "another line's parameters";
  EXPECT_GT(edit / static_cast<double>(pairs), 0.3) << "why edit similarity is not the score";
}

TEST(state_machine, steps_follow_the_rules_and_none_takes_the_one_asked_for) {
  const std::regex rule("The ([a-z]+) door leads from the ([a-z]+) to the ([a-z]+)\\.");
  const std::regex step("Step ([0-9]+): through the ([a-z]+) door to the ([a-z]+)\\.");
  std::set<std::string> answers;
  for (std::size_t sample = 0; sample < 30; ++sample) {
    const prompt p = made("state_machine", sample);
    std::map<std::string, std::pair<std::string, std::string>> doors;
    std::set<std::string> rooms, taken;
    std::string room;
    std::size_t number = 0;
    for (const std::string& line : lines_of(p.context)) {
      std::smatch m;
      if (std::regex_match(line, m, rule)) {
        EXPECT_EQ(number, 0U) << "rules come first";
        EXPECT_NE(m[2], m[3]);
        EXPECT_TRUE(doors.emplace(m[1], std::pair<std::string, std::string>(m[2], m[3])).second) << line;
        rooms.insert(m[2]);
      } else if (std::regex_match(line, m, step)) {
        EXPECT_EQ(std::stoul(m[1]), ++number);
        ASSERT_TRUE(doors.contains(m[2])) << line;
        const auto& [from, to] = doors.at(m[2]);
        EXPECT_TRUE(room.empty() || room == from) << line;
        EXPECT_EQ(m[3], to) << line;
        room = to;
        taken.insert(m[2]);
      }
    }
    EXPECT_EQ(doors.size(), 16U);
    EXPECT_EQ(rooms.size(), 8U);
    const std::string asked = between(p.question, "through the ", " door");
    ASSERT_TRUE(doors.contains(asked));
    EXPECT_FALSE(taken.contains(asked)) << "no step tells where it leads";
    EXPECT_GT(taken.size(), 12U);
    EXPECT_EQ(doors.at(asked).first, room) << "it leads on from the last step";
    EXPECT_EQ(doors.at(asked).second, p.references.front());
    EXPECT_EQ(p.needles.front(), p.answer_begins + " " + p.references.front() + ".");
    EXPECT_LT(p.context.find(p.needles.front()), p.context.size() / 5) << "early";
    answers.insert(p.references.front());
    EXPECT_EQ(score_of("state_machine", " " + p.references.front() + ".", p), 1);
    EXPECT_EQ(score_of("state_machine", " " + room + ".", p), 0);
  }
  EXPECT_GE(answers.size(), 6U);
}

}  // namespace
