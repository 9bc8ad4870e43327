// A chat of many turns: what the user says about himself early is asked for late.
#include "tasks/book.hpp"
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
#include <utility>

namespace eval {
namespace {

constexpr std::string_view name = "chat_facts";
constexpr std::size_t new_tokens = 8;
constexpr double early = 1.0 / 3;  // the part of the chat in which all facts are told

// How a fact is told, what asks for it, and how the reply begins.
struct fact {
  std::string_view told, question, begins;
  enum { person, town, thing, number } of;
};
constexpr std::array facts = {
    fact{"My sister is called ", "What is my sister's name?", "Your sister is called", fact::person},
    fact{"I was born in ", "In which town was I born?", "You were born in", fact::town},
    fact{"For my birthday I got a ", "What did I get for my birthday?", "For your birthday you got a", fact::thing},
    fact{"The number of my locker is ", "What is the number of my locker?", "The number of your locker is", fact::number},
    fact{"My neighbour's name is ", "What is my neighbour's name?", "Your neighbour's name is", fact::person},
    fact{"Next summer I shall move to ", "Where shall I move next summer?", "Next summer you will move to", fact::town},
};

constexpr std::array<std::string_view, 6> replies = {"Go on, please.",     "I see. What comes next?", "That reads well.",
                                                     "Yes, I follow you.", "A good sentence.",        "Thank you. And then?"};

// A sentence that is longer is cut.
constexpr std::size_t most_words = 22;

std::string sentence(const book& text, std::size_t number) {
  const std::size_t first = text.sentences[number % text.sentences.size()];
  const std::size_t next = number % text.sentences.size() + 1;
  const std::size_t end = next < text.sentences.size() ? text.sentences[next] : text.words.size();
  std::string words = text.running_text(first, std::min(end - first, most_words));
  std::ranges::replace(words, '\n', ' ');
  return words;
}

std::string drawn_value(const fact& f, draws& random, std::array<bool, first_names.size()>& taken) {
  if (f.of == fact::number) return random.number(4);
  if (f.of == fact::thing)
    return std::string(adjectives[random.below(adjectives.size())]) + " " + std::string(nouns[random.below(nouns.size())]);
  for (;;) {
    const std::size_t i = random.below(first_names.size());
    if (std::exchange(taken[i], true)) continue;
    return std::string(f.of == fact::person ? first_names[i] : towns[i]);
  }
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  std::array<std::string, facts.size()> values;
  std::array<bool, first_names.size()> taken{};
  for (std::size_t i = 0; i < facts.size(); ++i) values[i] = drawn_value(facts[i], random, taken);
  std::vector<std::size_t> order(facts.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  random.shuffle(order);
  const std::size_t wanted = random.below(facts.size());
  const std::vector<double> places = random.fractions(facts.size());
  const book& text = shipped_book();
  const std::size_t first = random.below(text.sentences.size());

  prompt frame;
  frame.question = "User: Let us stop here. " + std::string(facts[wanted].question) + "\n\nWrite the assistant's next reply.";
  frame.answer_begins = facts[wanted].begins;
  frame.references = {values[wanted]};
  frame.needles = {std::string(facts[wanted].told) + values[wanted] + "."};
  return fit(asked, name, new_tokens, {.least = 1}, [&](std::size_t turns) {
    draws said(asked.seed, name, asked.sample, "replies");
    prompt made = frame;
    made.context = "This is a chat of a user and an assistant.\n\n";
    std::size_t told = 0;
    for (std::size_t turn = 0; turn <= turns; ++turn) {
      for (; told < facts.size(); ++told) {
        if (turn < turns && turn < static_cast<std::size_t>(places[told] * early * static_cast<double>(turns))) break;
        const fact& f = facts[order[told]];
        made.context.append("User: By the way: ").append(f.told).append(values[order[told]]).append(".\nAssistant: Noted.\n\n");
      }
      if (turn == turns) break;
      made.context.append("User: ").append(sentence(text, first + turn)).append("\nAssistant: ");
      made.context.append(replies[said.below(replies.size())]).append("\n\n");
    }
    return made;
  });
}

}  // namespace

task chat_facts() {
  return {.name = name,
          .meaning = "what the user of a chat said about himself, in the first third of many turns",
          .group = everyday,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = any_contained};
}

}  // namespace eval
