// A question that needs two documents: a fable says who copied it, another document where that person lives.
#include "tasks/data_set.hpp"
#include "tasks/draws.hpp"
#include "tasks/fables.hpp"
#include "tasks/list.hpp"
#include "tasks/names_and_things.hpp"
#include "tasks/question.hpp"
#include "tasks/scoring.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {
namespace {

constexpr std::string_view name = "two_documents";
constexpr std::size_t new_tokens = 12;
constexpr std::size_t persons = 8;
constexpr std::size_t longest_wanted = 900;  // bytes of the fable asked about, so that short prompts have room for it

// Small models end the sentence with the copyist: this shows that more is asked for. It has no words of the documents, which
// would have it said again.
constexpr std::string_view form = "Answer with one sentence, such as \"The song was written by Mary, who lives in Rome.\"";

std::string copied(const fable& which) { return std::string("The fable \"").append(which.title).append("\" was copied by"); }

// Fables that can be asked about: short ones, with a title that no other has.
std::vector<std::size_t> list_fables_to_ask() {
  const std::vector<fable>& all = shipped_fables();
  std::vector<std::size_t> made;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i].text.size() <= longest_wanted && std::ranges::count(all, all[i].title, &fable::title) == 1) made.push_back(i);
  return made;
}

prompt make(const request& asked) {
  static const std::vector<std::size_t> to_ask = list_fables_to_ask();
  const std::vector<fable>& fables = shipped_fables();
  draws random(asked.seed, name, asked.sample, "question");
  std::vector<std::string_view> who(first_names.begin(), first_names.end());
  std::vector<std::string_view> where(towns.begin(), towns.end());
  random.shuffle(who);
  random.shuffle(where);
  const std::size_t wanted = to_ask[random.below(to_ask.size())];
  const std::size_t wanted_person = random.below(persons);

  data_set data{.documents = fables_as_documents(), .questions = {}};
  for (std::size_t i = 0; i < fables.size(); ++i) {
    const std::size_t other = random.below(persons);
    const std::string_view copyist = who[i == wanted ? wanted_person : other];
    data.documents[i] += "\n" + copied(fables[i]) + " " + std::string(copyist) + ".";
  }
  data_set::question question;
  question.text = "Who copied the fable \"" + std::string(fables[wanted].title) +
                  "\", and in which town does that person live? " + std::string(form);
  question.answers = {std::string(where[wanted_person])};
  question.golden = {wanted};
  question.needles = {wanted, fables.size() + wanted_person};
  for (std::size_t p = 0; p < persons; ++p) {
    question.golden.push_back(data.documents.size());
    data.documents.push_back(std::string(who[p]) + "\n" + std::string(who[p]) + " lives in " + std::string(where[p]) + ".");
  }
  return ask(asked, name, new_tokens, data, question, copied(fables[wanted]),
             "Answer the question based on the given documents.");
}

}  // namespace

task two_documents() {
  return {.name = name,
          .meaning = "the town where the copyist of a fable lives: two documents have the two halves of the answer",
          .group = work,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = any_contained};
}

}  // namespace eval
