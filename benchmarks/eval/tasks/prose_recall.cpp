// Ordinary prose, said again word for word: the first words of a passage of a book are given, the rest is asked for.
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

namespace eval {
namespace {

constexpr std::string_view name = "prose_recall";
constexpr std::size_t new_tokens = 48;
constexpr std::size_t given = 12;  // words; then those that are asked for
constexpr std::size_t wanted = 24;

// Whether words [first, first + given + wanted) are of one paragraph, and their beginning stands nowhere else in the book.
bool can_be_asked_for(const book& text, std::size_t first) {
  if (first + given + wanted > text.words.size()) return false;
  for (std::size_t i = first; i + 1 < first + given + wanted; ++i)
    if (text.separators[i] != ' ') return false;
  const std::string begins = text.running_text(first, given);
  const std::size_t at = persuasion.find(begins);
  return persuasion.find(begins, at + 1) == std::string_view::npos;
}

std::size_t draw_passage(const book& text, draws& random) {
  for (;;)
    if (const std::size_t first = text.sentences[random.below(text.sentences.size())]; can_be_asked_for(text, first))
      return first;
}

prompt make(const request& asked) {
  const book& text = shipped_book();
  draws random(asked.seed, name, asked.sample);
  const std::size_t passage = draw_passage(text, random);
  const double place = random.fraction();

  prompt frame;
  // No question in words: small models go on with the text best where nothing speaks about it. (SmolLM2-135M-Instruct, 6 prompts
  // of 1,024 tokens: 92 of 100; after "Quote the passage of the text that begins with these words." 74.)
  frame.question = "\n\n";
  frame.answer_begins = text.running_text(passage, given);
  frame.references = {text.running_text(passage + given, wanted)};
  frame.needles = {text.running_text(passage, given + wanted)};
  return fit(asked, name, new_tokens, {given + wanted, text.words.size()}, [&](std::size_t words) {
    const auto before = static_cast<std::size_t>(place * static_cast<double>(words - (given + wanted) + 1));
    prompt made = frame;
    made.context = text.running_text((passage + text.words.size() - before) % text.words.size(), words);
    return made;
  });
}

}  // namespace

task prose_recall() {
  return {.name = name,
          .meaning = "24 words of a book that follow the 12 that are given, word for word",
          .group = beyond,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = words_recalled};
}

}  // namespace eval
