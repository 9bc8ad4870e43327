// Reads SQuAD and HotpotQA.
#include "tasks/data_set.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

namespace eval {
namespace {

using nlohmann::json;

// Gives equal documents one index.
class documents {
 public:
  std::size_t index_of(std::string text) {
    const auto [at, fresh] = indices_.try_emplace(std::move(text), indices_.size());
    return at->second;
  }
  std::vector<std::string> take() {
    std::vector<std::string> taken(indices_.size());
    while (!indices_.empty()) {
      auto node = indices_.extract(indices_.begin());
      taken[node.mapped()] = std::move(node.key());
    }
    return taken;
  }

 private:
  std::unordered_map<std::string, std::size_t> indices_;
};

template <typename T>
void add_once(std::vector<T>& values, T value) {
  if (std::ranges::find(values, value) == values.end()) values.push_back(std::move(value));
}

data_set::question squad_question(const json& asked, std::size_t golden, const std::vector<std::size_t>& article) {
  data_set::question made{asked.at("question").get<std::string>(), {}, {golden}, {}, {golden}};
  for (const json& answer : asked.at("answers"))
    if (auto text = answer.at("text").get<std::string>(); !text.empty()) add_once(made.answers, std::move(text));
  std::ranges::copy_if(article, std::back_inserter(made.near), [&](std::size_t each) { return each != golden; });
  return made;
}

data_set squad(const json& file) {
  data_set made;
  documents all;
  for (const json& article : file.at("data")) {
    std::vector<std::size_t> paragraphs;
    std::vector<std::size_t> distinct;
    for (const json& paragraph : article.at("paragraphs")) {
      paragraphs.push_back(all.index_of(paragraph.at("context").get<std::string>()));
      add_once(distinct, paragraphs.back());
    }
    for (std::size_t i = 0; i < paragraphs.size(); ++i)
      for (const json& asked : article.at("paragraphs")[i].at("qas"))
        made.questions.push_back(squad_question(asked, paragraphs[i], distinct));
  }
  made.documents = all.take();
  return made;
}

data_set hotpotqa(const json& file) {
  data_set made;
  documents all;
  for (const json& asked : file) {
    data_set::question question{asked.at("question").get<std::string>(), {asked.at("answer").get<std::string>()}, {}, {}, {}};
    std::vector<std::string> supporting;
    if (asked.contains("supporting_facts"))
      for (const json& fact : asked.at("supporting_facts")) supporting.push_back(fact.at(0).get<std::string>());
    for (const json& paragraph : asked.at("context")) {
      const auto title = paragraph.at(0).get<std::string>();
      std::string text = title + "\n";
      for (const json& sentence : paragraph.at(1)) text += sentence.get<std::string>();
      const std::size_t index = all.index_of(std::move(text));
      add_once(question.golden, index);
      if (std::ranges::find(supporting, title) != supporting.end()) add_once(question.needles, index);
    }
    made.questions.push_back(std::move(question));
  }
  made.documents = all.take();
  return made;
}

data_set parse(const std::string& content, std::string_view form, data_set (*read)(const json&)) {
  const auto wrong = [&](std::string_view what) {
    return std::invalid_argument("not a file in the form of " + std::string(form) + ": " + std::string(what));
  };
  data_set made;
  try {
    made = read(json::parse(content));
  } catch (const json::exception& error) {
    throw wrong(error.what());
  }
  std::erase_if(made.questions, [](const auto& q) { return q.text.empty() || q.answers.empty() || q.answers[0].empty(); });
  if (made.questions.empty()) throw wrong("no question with an answer");
  return made;
}

}  // namespace

data_set parse_squad(const std::string& content) { return parse(content, "SQuAD v2.0", squad); }

data_set parse_hotpotqa(const std::string& content) { return parse(content, "HotpotQA's distractor setting", hotpotqa); }

}  // namespace eval
