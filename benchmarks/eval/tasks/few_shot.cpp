// Things of four kinds with made-up labels: the label of one more thing, whose kind the examples have but not itself.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/names_and_things.hpp"
#include "tasks/scoring.hpp"
#include "tasks/words.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace eval {
namespace {

constexpr std::string_view name = "few_shot";
constexpr std::size_t new_tokens = 4;
constexpr std::size_t kinds = kinds_of_things.size();

// With a capital that no sentence of the task has.
constexpr std::array<std::string_view, kinds> labels = {"K1", "K2", "K3", "K4"};

std::string sentence(std::string_view adjective, std::string_view thing) {
  return "Text: I saw the " + std::string(adjective) + " " + std::string(thing) + ".\n";
}

// The answer's first label is the right one.
scores right_label(std::string_view answer, const prompt& asked) {
  const std::size_t at = answer.find('K');
  const std::string& label = asked.references.front();
  return {{"score", at != std::string_view::npos && answer.substr(at, label.size()) == label ? 1.0 : 0.0}};
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  std::vector<std::string_view> label_of(labels.begin(), labels.end());
  random.shuffle(label_of);
  const std::size_t kind = random.below(kinds);
  const std::size_t held_out = random.below(kinds_of_things[kind].things.size());

  prompt frame;
  frame.question = sentence(adjectives[random.below(adjectives.size())], kinds_of_things[kind].things[held_out]);
  frame.answer_begins = "Label:";
  frame.references = {std::string(label_of[kind])};
  return fit(asked, name, new_tokens, {.least = kinds}, [&](std::size_t examples) {
    draws drawn(asked.seed, name, asked.sample, "examples");
    prompt made = frame;
    made.context = "Each text has the label of what it is about.\n\n";
    std::vector<std::size_t> round;  // kinds in a drawn order, each once, then in another
    for (std::size_t i = 0; i < examples; ++i) {
      if (round.empty()) {
        for (std::size_t k = 0; k < kinds; ++k) round.push_back(k);
        drawn.shuffle(round);
      }
      const std::size_t k = round.back();
      round.pop_back();
      const auto& things = kinds_of_things[k].things;
      std::size_t thing = drawn.below(things.size() - (k == kind ? 1 : 0));
      if (k == kind && thing >= held_out) ++thing;
      made.context.append(sentence(adjectives[drawn.below(adjectives.size())], things[thing]));
      made.context.append("Label: ").append(label_of[k]).append("\n\n");
    }
    return made;
  });
}

}  // namespace

task few_shot() {
  return {.name = name,
          .meaning = "the made-up label of a thing, after examples of four kinds",
          .group = everyday,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = right_label};
}

}  // namespace eval
