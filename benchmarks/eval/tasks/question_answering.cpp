// RULER's qa_1 and qa_2: a question of SQuAD or HotpotQA, its paragraphs among other questions' paragraphs.
#include "tasks/data_set.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace eval {
namespace {

constexpr std::size_t new_tokens = 32;

struct source {
  std::string_view task;
  std::string_view option;
  data_set (*parse)(const std::string&);
};
constexpr source squad = {"qa_1", "squad", parse_squad};
constexpr source hotpotqa = {"qa_2", "hotpotqa", parse_hotpotqa};

// A file may have 50 MB and serve hundreds of prompts: what was parsed last of each source is kept, by the content's hash.
class kept_data_set {
 public:
  std::shared_ptr<const data_set> get(const std::string& content, data_set (*parse)(const std::string&)) {
    const std::size_t hash = std::hash<std::string>()(content);
    const std::lock_guard lock(mutex_);
    if (!kept_ || size_ != content.size() || hash_ != hash) {
      kept_ = std::make_shared<const data_set>(parse(content));
      size_ = content.size();
      hash_ = hash;
    }
    return kept_;
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<const data_set> kept_;
  std::size_t size_ = 0;
  std::size_t hash_ = 0;
};

template <const source& from>
std::shared_ptr<const data_set> data_of(const request& asked) {
  static kept_data_set kept;
  const auto file = asked.files.find(std::string(from.task));
  const std::string option = "--" + std::string(from.option);
  if (file == asked.files.end())
    throw std::invalid_argument(std::string(from.task) + " needs a data set: name its file with " + option);
  try {
    return kept.get(file->second, from.parse);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(option + ": " + error.what());
  }
}

// All documents in the order in which a prompt takes them up: golden, near, others.
std::vector<std::size_t> draw_order(const data_set& data, const data_set::question& question, draws random) {
  std::vector<std::size_t> near = question.near;
  random.shuffle(near);
  std::vector<std::size_t> order = question.golden;
  order.insert(order.end(), near.begin(), near.end());

  std::vector<bool> taken(data.documents.size());
  for (const std::size_t i : order) taken[i] = true;
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < taken.size(); ++i)
    if (!taken[i]) others.push_back(i);
  random.shuffle(others);
  order.insert(order.end(), others.begin(), others.end());
  return order;
}

// The first `count` of the order, shuffled: each has a drawn rank, so that one more leaves the others where they stand.
std::string numbered(const data_set& data, const std::vector<std::size_t>& order, std::size_t count, draws random) {
  std::vector<std::pair<double, std::size_t>> ranked;
  for (std::size_t i = 0; i < count; ++i) ranked.emplace_back(random.fraction(), order[i]);
  std::ranges::sort(ranked);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) text += "\n\n";
    text.append("Document ").append(std::to_string(i + 1)).append(":\n").append(data.documents[ranked[i].second]);
  }
  return text;
}

template <const source& from>
prompt make(const request& asked) {
  const std::shared_ptr<const data_set> data = data_of<from>(asked);
  const data_set::question& question = data->questions[asked.sample % data->questions.size()];
  const std::vector<std::size_t> order = draw_order(*data, question, draws(asked.seed, from.task, asked.sample));
  const draws ranks(asked.seed, from.task, asked.sample, "ranks");

  const std::string instruction =
      "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n";
  prompt frame;
  frame.question = "\n\n" + instruction + "Question: " + question.text;
  frame.answer_begins = "Answer:";
  frame.references = question.answers;
  for (const std::size_t i : question.needles) frame.needles.push_back(data->documents[i]);
  return fit(asked, from.task, new_tokens, {question.golden.size(), order.size()}, [&](std::size_t count) {
    prompt made = frame;
    made.context = instruction + "The following are given documents.\n\n" + numbered(*data, order, count, ranks);
    return made;
  });
}

template <const source& from>
task entry(std::string_view meaning) {
  return {.name = from.task,
          .meaning = meaning,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .file = from.option,
          .make = make<from>,
          .score = any_contained};
}

}  // namespace

std::vector<task> question_answering() {
  return {entry<squad>("a question of SQuAD, its paragraph among others"),
          entry<hotpotqa>("a question of HotpotQA, its paragraphs among others")};
}

}  // namespace eval
