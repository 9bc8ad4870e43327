// RULER's qa_1 and qa_2: a question of SQuAD or HotpotQA, its paragraphs among other questions' paragraphs.
#include "tasks/data_set.hpp"
#include "tasks/list.hpp"
#include "tasks/question.hpp"
#include "tasks/scoring.hpp"

#include <memory>
#include <mutex>
#include <stdexcept>

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

template <const source& from>
prompt make(const request& asked) {
  const std::shared_ptr<const data_set> data = data_of<from>(asked);
  return ask(asked, from.task, new_tokens, *data, data->questions[asked.sample % data->questions.size()]);
}

template <const source& from>
task entry(std::string_view meaning) {
  return {.name = from.task,
          .meaning = meaning,
          .group = ruler,
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
