// The everyday tasks: what their prompts say is true, and what an answer is worth.
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>

#include "tasks/names_and_things.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::prompt;

double score_of(std::string_view task, std::string_view answer, const prompt& p) {
  return task_named(task).score(answer, p).at("score");
}

TEST(names_and_things, are_no_parts_of_each_other) {
  const auto expect_apart = [](const auto& list) {
    for (std::size_t a = 0; a < list.size(); ++a)
      for (std::size_t b = 0; b < list.size(); ++b) {
        EXPECT_FALSE(list[a].empty());
        EXPECT_TRUE(a == b || list[b].find(list[a]) == std::string_view::npos) << list[a];
      }
  };
  expect_apart(eval::first_names);
  expect_apart(eval::towns);
  std::set<std::string_view> things;
  for (const auto& kind : eval::kinds_of_things) things.insert(kind.things.begin(), kind.things.end());
  EXPECT_EQ(things.size(), 64U) << "no thing is of two kinds";
}

TEST(chat_facts, tells_all_facts_in_the_first_third) {
  std::set<std::string> questions;
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = task_named("chat_facts").make(request_of(4096, sample));
    EXPECT_EQ(times_in(p.context, "By the way: "), 6U);
    EXPECT_EQ(times_in(p.context, "User: "), times_in(p.context, "Assistant: "));
    EXPECT_LT(p.context.rfind("By the way: "), p.context.size() * 42 / 100) << "turns differ in length";
    EXPECT_EQ(times_in(p.needles.front(), p.references.front()), 1U);
    questions.insert(p.question);
    EXPECT_EQ(score_of("chat_facts", " " + p.references.front() + ".", p), 1);
    EXPECT_EQ(score_of("chat_facts", "I do not know", p), 0);
  }
  EXPECT_GE(questions.size(), 4U);
}

TEST(chat_facts, no_two_facts_have_one_value) {
  for (std::size_t sample = 0; sample < 50; ++sample) {
    const prompt p = task_named("chat_facts").make(request_of(2048, sample));
    std::set<std::string> values;
    for (const std::string& line : lines_of(p.context))
      if (line.starts_with("User: By the way: ")) values.insert(line.substr(line.find_last_of(' ')));
    EXPECT_GE(values.size(), 5U);  // the last word of "a quiet boat" is no name, town or number
    EXPECT_EQ(times_in(p.context, " " + p.references.front() + "."), 1U);
  }
}

TEST(table_row, has_each_article_once_and_asks_for_the_rest_of_its_row) {
  std::set<double> places;
  for (std::size_t sample = 0; sample < 10; ++sample) {
    const prompt p = task_named("table_row").make(request_of(8192, sample));
    std::set<std::string> articles;
    std::size_t rows = 0;
    for (const std::string& line : lines_of(p.context))
      if (line.starts_with("| ") && !line.starts_with("| article")) {
        ++rows;
        articles.insert(line.substr(0, line.find('|', 2)));
      }
    EXPECT_EQ(articles.size(), rows);
    EXPECT_GT(rows, 400U);
    const std::string wanted =
        p.answer_begins + " " + p.references[0] + " | " + p.references[1] + " | " + p.references[2] + " |\n";
    EXPECT_EQ(p.needles.front(), wanted);
    EXPECT_EQ(times_in(p.context, wanted), 1U);
    EXPECT_EQ(score_of("table_row", wanted, p), 1);
    EXPECT_NEAR(score_of("table_row", p.references[1], p), 1.0 / 3, 1e-12);
    places.insert(static_cast<double>(p.context.find(wanted)) / static_cast<double>(p.context.size()));
  }
  EXPECT_LT(*places.begin(), 0.35);
  EXPECT_GT(*places.rbegin(), 0.65);
}

TEST(few_shot, labels_are_those_of_kinds_and_the_thing_asked_for_is_in_no_example) {
  const std::regex example("Text: I saw the [a-z]+ ([a-z]+)\\.\nLabel: (K[1-4])\n\n");
  const std::regex asked("Text: I saw the [a-z]+ ([a-z]+)\\.\n");
  std::set<std::string> answers;
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = task_named("few_shot").make(request_of(2048, sample));
    std::smatch thing;
    ASSERT_TRUE(std::regex_match(p.question, thing, asked)) << p.question;
    const auto kind_of = [](const std::string& word) {
      for (std::size_t k = 0; k < eval::kinds_of_things.size(); ++k)
        if (std::ranges::count(eval::kinds_of_things[k].things, word) == 1) return k;
      return eval::kinds_of_things.size();
    };
    std::map<std::size_t, std::set<std::string>> labels;
    std::map<std::string, std::size_t> count;
    for (std::sregex_iterator it(p.context.begin(), p.context.end(), example), end; it != end; ++it) {
      EXPECT_NE((*it)[1], thing[1]);
      labels[kind_of((*it)[1])].insert((*it)[2]);
      ++count[(*it)[2]];
    }
    ASSERT_EQ(labels.size(), 4U);
    for (const auto& [kind, of_kind] : labels) EXPECT_EQ(of_kind.size(), 1U);
    std::set<std::size_t> counts;
    for (const auto& [label, n] : count) counts.insert(n);
    EXPECT_LE(*counts.rbegin() - *counts.begin(), 1U);
    EXPECT_EQ(*labels[kind_of(thing[1])].begin(), p.references.front());
    answers.insert(p.references.front());
    EXPECT_EQ(score_of("few_shot", " " + p.references.front() + "\n\nText: K", p), 1);
    const std::string wrong = p.references.front() == "K1" ? "K2" : "K1";
    EXPECT_EQ(score_of("few_shot", wrong + "\n" + p.references.front(), p), 0) << "the first label counts";
  }
  EXPECT_EQ(answers.size(), 4U);
}

TEST(ledger, each_line_is_true_and_the_last_of_the_person_is_asked_for) {
  const std::regex line("Step ([0-9]+): ([A-Z][a-z]+) (gets|pays) ([0-9]+) coins and has ([0-9]+)\\.");
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = task_named("ledger").make(request_of(2048, sample));
    std::map<std::string, int> has;
    std::map<std::string, std::size_t> last;
    std::size_t number = 0;
    for (const std::string& text : lines_of(p.context)) {
      std::smatch m;
      if (!std::regex_match(text, m, line)) continue;
      EXPECT_EQ(std::stoul(m[1]), ++number);
      const int coins = std::stoi(m[4]), now = std::stoi(m[5]);
      EXPECT_GE(now, 100);
      EXPECT_LE(now, 999);
      if (has.contains(m[2])) {
        EXPECT_EQ(now, has[m[2]] + (m[3] == "gets" ? coins : -coins)) << text;
      }
      has[m[2]] = now;
      last[m[2]] = number;
    }
    EXPECT_EQ(has.size(), 6U);
    const std::string person = between(p.question, "does ", " have");
    EXPECT_EQ(std::to_string(has[person]), p.references.front());
    EXPECT_NEAR(static_cast<double>(last[person]) / static_cast<double>(number), 0.5, 0.27);
    EXPECT_EQ(score_of("ledger", " " + p.references.front() + " coins", p), 1);
    EXPECT_EQ(score_of("ledger", " 17 coins", p), 0);
  }
}

}  // namespace
