// The question answering tasks, on data sets of a few lines.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tasks/data_set.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::prompt;
using eval::request;

// Two articles; a paragraph that stands twice; a question without an answer and one with an answer given twice.
constexpr const char* squad = R"({"version": "v2.0", "data": [
  {"title": "Rivers", "paragraphs": [
    {"context": "The Rhine flows north.", "qas": [
      {"question": "Where does the Rhine flow?", "id": "1", "is_impossible": false,
       "answers": [{"text": "north", "answer_start": 16}, {"text": "north", "answer_start": 16},
                   {"text": "flows north", "answer_start": 10}]},
      {"question": "Who swam the Rhine?", "id": "2", "is_impossible": true, "answers": [], "plausible_answers": []}]},
    {"context": "The Danube flows east.", "qas": []},
    {"context": "The Rhine flows north.", "qas": []}]},
  {"title": "Hills", "paragraphs": [
    {"context": "Hills are small mountains.", "qas": [
      {"question": "What are hills?", "id": "3", "is_impossible": false,
       "answers": [{"text": "small mountains", "answer_start": 10}]}]},
    {"context": "Some hills have names.", "qas": []}]}]})";

constexpr const char* hotpotqa = R"([
  {"_id": "a", "question": "Which city did she live in?", "answer": "Paris", "type": "bridge", "level": "hard",
   "supporting_facts": [["Marie", 0], ["Marie", 1], ["Paris", 0]],
   "context": [["Marie", ["She lived. ", "In Paris."]], ["Paris", ["A city."]], ["Warsaw", ["Another city."]]]},
  {"_id": "b", "question": "Is Oslo a city?", "answer": "yes",
   "supporting_facts": [["Oslo", 0]], "context": [["Oslo", ["A city in the north."]], ["Warsaw", ["Another city."]]]}])";

request with(const std::string& task, const std::string& content, std::size_t length, std::size_t sample = 0) {
  request made = request_of(length, sample);
  made.files[task] = content;
  return made;
}

TEST(squad, is_cut_in_questions_and_documents) {
  const eval::data_set data = eval::parse_squad(squad);
  EXPECT_EQ(data.documents, (std::vector<std::string>{"The Rhine flows north.", "The Danube flows east.",
                                                      "Hills are small mountains.", "Some hills have names."}));
  ASSERT_EQ(data.questions.size(), 2U);
  EXPECT_EQ(data.questions[0].text, "Where does the Rhine flow?");
  EXPECT_EQ(data.questions[0].answers, (std::vector<std::string>{"north", "flows north"}));
  EXPECT_EQ(data.questions[0].golden, std::vector<std::size_t>{0});
  EXPECT_EQ(data.questions[0].near, std::vector<std::size_t>{1});
  EXPECT_EQ(data.questions[1].golden, std::vector<std::size_t>{2});
  EXPECT_EQ(data.questions[1].near, std::vector<std::size_t>{3});
}

TEST(hotpotqa, is_cut_in_questions_and_documents) {
  const eval::data_set data = eval::parse_hotpotqa(hotpotqa);
  EXPECT_EQ(data.documents, (std::vector<std::string>{"Marie\nShe lived. In Paris.", "Paris\nA city.", "Warsaw\nAnother city.",
                                                      "Oslo\nA city in the north."}));
  ASSERT_EQ(data.questions.size(), 2U);
  EXPECT_EQ(data.questions[0].answers, std::vector<std::string>{"Paris"});
  EXPECT_EQ(data.questions[0].golden, (std::vector<std::size_t>{0, 1, 2}));
  EXPECT_EQ(data.questions[0].needles, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(data.questions[1].golden, (std::vector<std::size_t>{3, 2}));
}

TEST(qa, is_written_as_in_ruler) {
  // Room for the golden paragraph alone.
  const prompt p = eval::prompt(task_named("qa_1").make(with("qa_1", squad, 32 + 84)));
  EXPECT_EQ(p.context,
            "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
            "The following are given documents.\n\nDocument 1:\nThe Rhine flows north.");
  EXPECT_EQ(p.question,
            "\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
            "Question: Where does the Rhine flow?");
  EXPECT_EQ(p.answer_begins, "Answer:");
  EXPECT_EQ(p.references, (std::vector<std::string>{"north", "flows north"}));
  EXPECT_EQ(p.needles, std::vector<std::string>{"The Rhine flows north."});
}

TEST(qa, takes_the_articles_own_paragraphs_first_and_each_once) {
  const eval::data_set data = eval::parse_squad(squad);
  std::set<std::size_t> places;  // of the first question's paragraph
  for (std::size_t sample = 0; sample < 8; ++sample) {
    for (const std::size_t length : {120U, 126U, 134U, 400U}) {
      const prompt p = task_named("qa_1").make(with("qa_1", squad, length, sample));
      const auto& question = data.questions[sample % 2];
      EXPECT_TRUE(p.question.ends_with(question.text));
      const std::size_t documents = times_in(p.context, "Document ");
      std::size_t shown = 0;
      for (const std::string& document : data.documents) {
        EXPECT_LE(times_in(p.context, document), 1U);
        shown += times_in(p.context, document);
      }
      EXPECT_EQ(shown, documents);
      for (std::size_t i = 1; i <= documents; ++i) EXPECT_EQ(times_in(p.context, "Document " + std::to_string(i) + ":\n"), 1U);
      const std::string& golden = data.documents[question.golden[0]];
      EXPECT_EQ(times_in(p.context, golden), 1U);
      if (documents > 1) {
        EXPECT_EQ(times_in(p.context, data.documents[question.near[0]]), 1U);
      }
      if (length == 400) {
        EXPECT_EQ(documents, 4U);
        if (sample % 2 == 0) places.insert(times_in(p.context.substr(0, p.context.find(golden)), "Document "));
      }
    }
  }
  EXPECT_GT(places.size(), 1U);
}

TEST(qa, takes_other_questions_paragraphs_as_distractors) {
  const prompt p = task_named("qa_2").make(with("qa_2", hotpotqa, 400));
  EXPECT_EQ(times_in(p.context, "Document "), 4U);
  for (const char* text :
       {"Marie\nShe lived. In Paris.", "Paris\nA city.", "Warsaw\nAnother city.", "Oslo\nA city in the north."})
    EXPECT_EQ(times_in(p.context, text), 1U) << text;
  EXPECT_EQ(p.needles, (std::vector<std::string>{"Marie\nShe lived. In Paris.", "Paris\nA city."}));
  EXPECT_TRUE(task_named("qa_2").make(with("qa_2", hotpotqa, 400, 1)).question.ends_with("Question: Is Oslo a city?"));
  EXPECT_TRUE(task_named("qa_2").make(with("qa_2", hotpotqa, 400, 2)).question.ends_with("did she live in?")) << "from the first";
}

TEST(qa, says_what_is_wrong_with_a_file) {
  const auto said = [](const char* name, const char* content) {
    return complaint([&] { (void)task_named(name).make(with(name, content, 4000)); });
  };
  for (const char* content : {"", "no json", "[]", "{}", R"({"data": 3})", R"({"data": [{"paragraphs": [{"qas": []}]}]})",
                              R"({"data": [{"paragraphs": [{"context": 5, "qas": []}]}]})", hotpotqa}) {
    EXPECT_TRUE(said("qa_1", content).starts_with("--squad: not a file in the form of SQuAD v2.0: ")) << content;
  }
  for (const char* content : {"", "no json", "{}", "[3]", R"([{"question": "?"}])",
                              R"([{"question": "?", "answer": "!", "context": [["title"]]}])", squad}) {
    EXPECT_TRUE(said("qa_2", content).starts_with("--hotpotqa: not a file in the form of HotpotQA's distractor setting: "))
        << content;
  }
  EXPECT_TRUE(said("qa_1", R"({"data": []})").ends_with("no question with an answer"));
  EXPECT_TRUE(said("qa_2", "[]").ends_with("no question with an answer"));
}

TEST(qa, takes_another_file_when_it_is_named) {
  const std::string one =
      R"({"data": [{"paragraphs": [{"context": "A.", "qas": [{"question": "A?", "answers": [{"text": "A"}]}]}]}]})";
  std::string other = one;
  std::ranges::replace(other, 'A', 'B');
  EXPECT_TRUE(task_named("qa_1").make(with("qa_1", one, 400)).question.ends_with("A?"));
  EXPECT_TRUE(task_named("qa_1").make(with("qa_1", other, 400)).question.ends_with("B?"));
  EXPECT_TRUE(task_named("qa_1").make(with("qa_1", one, 400)).question.ends_with("A?"));
}

}  // namespace
