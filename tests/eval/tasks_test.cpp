// What holds for every task: lengths, seeds, needles, names; and the search for the length.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tasks/haystack.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::kind;
using eval::prompt;
using eval::request;
using eval::task;

constexpr const char* squad =
    R"({"data": [{"paragraphs": [{"context": "Rome was not built in a day.", "qas": [
    {"question": "How long did Rome not take?", "answers": [{"text": "a day"}], "is_impossible": false},
    {"question": "What was not built in a day?", "answers": [{"text": "Rome"}], "is_impossible": false}]}]},
    {"paragraphs": [{"context": "All roads lead to Rome.", "qas": []}, {"context": "The die is cast.", "qas": []},
    {"context": "I came, I saw, I conquered.", "qas": []}]}]})";
constexpr const char* hotpotqa =
    R"([{"question": "Who came?", "answer": "Caesar", "supporting_facts": [["Veni", 0]],
    "context": [["Veni", ["He came. ", "He saw."]], ["Rome", ["A city."]]]},
    {"question": "What is cast?", "answer": "the die", "supporting_facts": [["Die", 0]],
    "context": [["Die", ["It is cast."]], ["Rubicon", ["A river."]]]}])";

request with_files(std::size_t length, std::size_t sample = 0, std::uint64_t seed = 42) {
  request made = request_of(length, sample, seed);
  made.files = {{"qa_1", squad}, {"qa_2", hotpotqa}};
  return made;
}

bool same(const prompt& a, const prompt& b) {
  return whole(a) == whole(b) && a.references == b.references && a.continuation == b.continuation && a.needles == b.needles;
}

std::vector<std::string_view> names_of(const std::vector<const task*>& tasks) {
  std::vector<std::string_view> names;
  for (const task* each : tasks) names.push_back(each->name);
  return names;
}

class every_task : public testing::TestWithParam<std::size_t> {
 protected:
  const task& t = eval::all_tasks()[GetParam()];
  // Data sets of these tests and the cwe of 131,072 tokens have no text for the whole length.
  bool may_end() const { return !t.file.empty(); }
  bool has_fables() const { return t.name == "documents" || t.name == "two_documents" || t.name == "summary"; }
  // Tokens of a line, a sentence's word or a fable.
  std::size_t longest_unit() const { return has_fables() ? 330 : 48; }
};

INSTANTIATE_TEST_SUITE_P(tasks, every_task, testing::Range<std::size_t>(0, eval::all_tasks().size()),
                         [](const auto& at) { return std::string(eval::all_tasks()[at.param].name); });

TEST_P(every_task, takes_what_the_length_has_and_no_more) {
  for (const std::size_t length : {700U, 1000U, 2048U, 4095U, 8192U, 32768U}) {
    const prompt p = t.make(with_files(length));
    EXPECT_LE(tokens_taken(t, p), length);
    if (!may_end()) {
      EXPECT_GT(tokens_taken(t, p) + longest_unit(), length);
    }
  }
}

// A prompt that is longer than that of a token less fits from its own length on: it would have come earlier otherwise.
TEST_P(every_task, takes_a_unit_more_as_soon_as_it_fits) {
  if (t.how != kind::answer) return;  // their slices move with the length: continuations.slices_end_where_...
  const std::size_t from = may_end() ? 120 : 2500;
  std::size_t changes = 0;
  std::string before = whole(t.make(with_files(from)));
  const std::size_t to = from + (has_fables() ? 600 : 200);
  for (std::size_t length = from + 1; length <= to; ++length) {
    const prompt p = t.make(with_files(length));
    if (whole(p) == before) continue;
    ++changes;
    EXPECT_EQ(tokens_taken(t, p), length);
    before = whole(p);
  }
  EXPECT_GE(changes, may_end() ? 1U : 3U);
}

TEST_P(every_task, is_the_same_for_the_same_seed_and_sample_only) {
  const prompt p = t.make(with_files(2048, 3));
  EXPECT_TRUE(same(p, t.make(with_files(2048, 3))));
  EXPECT_FALSE(same(p, t.make(with_files(2048, 4))));
  if (!may_end()) {
    EXPECT_FALSE(same(p, t.make(with_files(2048, 3, 43))));
  }
}

TEST_P(every_task, draws_the_same_for_all_lengths) {
  const prompt small = t.make(with_files(1024));
  const prompt large = t.make(with_files(9000));
  EXPECT_EQ(small.references, large.references);
  EXPECT_EQ(small.question, large.question);
  EXPECT_EQ(small.answer_begins, large.answer_begins);
  EXPECT_EQ(small.needles, large.needles);
}

TEST_P(every_task, shows_its_needles_once_and_its_answers_in_them) {
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = t.make(with_files(4095, sample));
    for (const std::string& needle : p.needles) EXPECT_EQ(times_in(p.context, needle), 1U) << needle;
    if (t.name == "qa_2" || t.name == "summary") continue;  // what is right need not be in the text word for word
    for (const std::string& reference : p.references)
      EXPECT_TRUE(p.needles.empty() ? times_in(p.context, reference) > 0 : std::ranges::any_of(p.needles, [&](auto& n) {
        return times_in(n, reference) > 0;
      })) << reference;
  }
}

TEST_P(every_task, names_the_length_and_the_least_that_works) {
  const std::string said = complaint([&] { (void)t.make(with_files(30)); });
  ASSERT_TRUE(said.starts_with(std::string(t.name) + ": length 30 is too short; the least that works is ")) << said;
  const std::size_t least = std::stoul(said.substr(said.find(" is ", said.find("least")) + 4));
  EXPECT_EQ(tokens_taken(t, t.make(with_files(least))), least);
  EXPECT_THROW((void)t.make(with_files(least - 1)), std::invalid_argument);
}

// What the host needs beside the prompt is in both lengths: a user asks for the sum.
TEST_P(every_task, names_lengths_with_what_the_host_needs_beside) {
  const auto least_of = [&](std::size_t beside) {
    request asked = with_files(30);
    asked.beside = beside;
    try {
      (void)t.make(asked);
    } catch (const eval::too_short& thrown) {
      EXPECT_TRUE(std::string(thrown.what()).starts_with(std::string(t.name) + ": length " + std::to_string(30 + beside)));
      EXPECT_NE(std::string(thrown.what()).find(" is " + std::to_string(thrown.least) + " tokens"), std::string::npos);
      return thrown.least;
    }
    return std::size_t{0};
  };
  EXPECT_EQ(least_of(17), least_of(0) + 17);
}

TEST_P(every_task, counts_seldom) {
  request asked = with_files(32768);
  std::size_t counts = 0;
  std::size_t counted = 0;
  asked.count = [&](std::string_view text) {
    ++counts;
    counted += bytes_counted(text);
    return bytes_counted(text);
  };
  (void)t.make(asked);
  EXPECT_LE(counts, 20U);
  EXPECT_LE(counted, 15 * asked.length);
}

TEST(tasks, are_listed_in_the_order_of_tables) {
  std::vector<std::string_view> names;
  for (const task& each : eval::all_tasks()) {
    names.push_back(each.name);
    EXPECT_FALSE(each.meaning.empty());
    EXPECT_NE(each.make, nullptr);
    EXPECT_EQ(each.score != nullptr, each.how == kind::answer) << each.name;
  }
  EXPECT_EQ(names, (std::vector<std::string_view>{"niah_single_1",
                                                  "niah_single_2",
                                                  "niah_single_3",
                                                  "niah_multikey_1",
                                                  "niah_multikey_2",
                                                  "niah_multikey_3",
                                                  "niah_multivalue",
                                                  "niah_multiquery",
                                                  "vt",
                                                  "cwe",
                                                  "fwe",
                                                  "qa_1",
                                                  "qa_2",
                                                  "passkey64",
                                                  "needles_16",
                                                  "prose_recall",
                                                  "documents",
                                                  "chat_facts",
                                                  "table_row",
                                                  "few_shot",
                                                  "ledger",
                                                  "two_documents",
                                                  "summary",
                                                  "code_completion",
                                                  "state_machine",
                                                  "perplexity",
                                                  "perplexity_code",
                                                  "generation"}));
  const std::vector<std::size_t> new_tokens = {128, 128, 128, 128, 128, 128, 128, 128, 30, 120, 50, 32,  32,  80,
                                               10,  48,  32,  8,   24,  4,   6,   12,  64, 48,  4,  256, 256, 256};
  for (std::size_t i = 0; i < new_tokens.size(); ++i) EXPECT_EQ(eval::all_tasks()[i].new_tokens, new_tokens[i]) << names[i];
  EXPECT_EQ(task_named("qa_1").file, "squad");
  EXPECT_EQ(task_named("qa_2").file, "hotpotqa");
  EXPECT_EQ(task_named("perplexity").how, kind::perplexity);
  EXPECT_EQ(task_named("perplexity_code").how, kind::perplexity);
  EXPECT_EQ(task_named("generation").how, kind::generation);
}

TEST(tasks_of, knows_names_and_groups) {
  EXPECT_EQ(names_of(eval::tasks_of("passkey64, vt,passkey64", {})), (std::vector<std::string_view>{"passkey64", "vt"}));
  EXPECT_EQ(names_of(eval::tasks_of("niah", {})).size(), 8U);
  EXPECT_EQ(names_of(eval::tasks_of("niah", {})).back(), "niah_multiquery");
  EXPECT_EQ(names_of(eval::tasks_of("ruler", {})).size(), 11U);
  EXPECT_EQ(names_of(eval::tasks_of("ruler", {})).back(), "fwe");
  EXPECT_EQ(names_of(eval::tasks_of("ruler", {{"qa_2", "..."}})).back(), "qa_2");
  EXPECT_EQ(names_of(eval::tasks_of("ruler,qa_1", {{"qa_1", "..."}})).size(), 12U);
  EXPECT_EQ(names_of(eval::tasks_of("beyond", {})),
            (std::vector<std::string_view>{"needles_16", "prose_recall", "documents", "perplexity_code"}));
  EXPECT_EQ(names_of(eval::tasks_of("everyday", {})),
            (std::vector<std::string_view>{"chat_facts", "table_row", "few_shot", "ledger"}));
  EXPECT_EQ(names_of(eval::tasks_of("work", {})),
            (std::vector<std::string_view>{"two_documents", "summary", "code_completion", "state_machine"}));
  EXPECT_EQ(names_of(eval::tasks_of("all", {})).size(), 26U);
  EXPECT_EQ(names_of(eval::tasks_of("all", {{"qa_1", ""}, {"qa_2", ""}})).size(), 28U);
  EXPECT_EQ(names_of(eval::tasks_of("niah,ruler", {})).size(), 11U) << "no task twice";
}

// RULER's mean is that of RULER's tasks: what is added beside them has no part in it.
TEST(tasks_of, ruler_is_rulers) {
  const std::vector<std::string_view> niah = {"niah_single_1",   "niah_single_2",   "niah_single_3",   "niah_multikey_1",
                                              "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery"};
  std::vector<std::string_view> ruler = niah;
  ruler.insert(ruler.end(), {"vt", "cwe", "fwe", "qa_1", "qa_2"});
  EXPECT_EQ(names_of(eval::tasks_of("niah", {})), niah);
  EXPECT_EQ(names_of(eval::tasks_of("ruler", {{"qa_1", ""}, {"qa_2", ""}})), ruler);
}

TEST(tasks_of, complains_with_the_names_there_are) {
  const std::string said = complaint([] { (void)eval::tasks_of("vt,niah_single_4", {}); });
  EXPECT_NE(said.find("'niah_single_4'"), std::string::npos) << said;
  for (const task& each : eval::all_tasks()) EXPECT_NE(said.find(each.name), std::string::npos) << each.name;
  EXPECT_NE(said.find("niah, ruler, beyond, everyday, work, all"), std::string::npos) << said;
  EXPECT_NE(complaint([] { (void)eval::tasks_of("", {}); }).find("no task ''"), std::string::npos);
  EXPECT_NE(complaint([] { (void)eval::tasks_of("vt,", {}); }).find("no task ''"), std::string::npos);
}

TEST(tasks_of, names_the_option_of_a_missing_file) {
  EXPECT_NE(complaint([] { (void)eval::tasks_of("qa_1", {}); }).find("--squad"), std::string::npos);
  EXPECT_NE(complaint([] { (void)eval::tasks_of("qa_2", {{"qa_1", ""}}); }).find("--hotpotqa"), std::string::npos);
  EXPECT_NE(complaint([] { (void)task_named("qa_1").make(request_of(1000)); }).find("--squad"), std::string::npos);
}

// The search alone, on tokens that grow in many ways.
void expect_found(std::size_t budget, eval::unit_range range, const std::function<std::size_t(std::size_t)>& tokens) {
  std::size_t calls = 0;
  std::size_t most_asked = 0;
  const auto counted = [&](std::size_t units) {
    ++calls;
    most_asked = std::max(most_asked, tokens(units));
    EXPECT_GE(units, range.least);
    EXPECT_LE(units, range.most);
    return tokens(units);
  };
  const std::optional<std::size_t> found = eval::most_units(budget, range, counted);
  if (tokens(range.least) > budget) {
    EXPECT_FALSE(found);
    return;
  }
  ASSERT_TRUE(found);
  EXPECT_LE(tokens(*found), budget);
  if (*found < range.most) {
    EXPECT_GT(tokens(*found + 1), budget);
  }
  EXPECT_LE(calls, 80U) << budget << ' ' << *found;
}

TEST(most_units, is_where_one_more_is_too_much) {
  for (const std::size_t budget : {10U, 99U, 100U, 101U, 4096U, 32768U, 1000003U}) {
    for (const eval::unit_range range : {eval::unit_range{}, eval::unit_range{5, 5}, eval::unit_range{11, 300}}) {
      expect_found(budget, range, [](std::size_t n) { return n; });
      expect_found(budget, range, [](std::size_t n) { return 90 + 7 * n; });
      expect_found(budget, range, [](std::size_t n) { return 23 * n + n % 5; });
      expect_found(budget, range, [](std::size_t n) { return n / 10; });
      expect_found(budget, range, [](std::size_t n) { return n / 1000 * 1000; });
      expect_found(budget, range, [](std::size_t n) { return n * n / 100; });
      expect_found(budget, range, [](std::size_t n) { return n < 400 ? n : n + 5000; });
      expect_found(budget, range, [](std::size_t n) { return static_cast<std::size_t>(20 * std::sqrt(static_cast<double>(n))); });
    }
  }
}

}  // namespace
