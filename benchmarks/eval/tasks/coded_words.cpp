// RULER's fwe: the three most frequent words of a coded text, whose frequencies fall as in a zeta distribution.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <algorithm>
#include <numbers>
#include <unordered_set>

namespace eval {
namespace {

constexpr std::string_view name = "fwe";
constexpr std::size_t new_tokens = 50;
constexpr std::size_t tokens_per_word = 50;  // of the length, for a word of the vocabulary
constexpr std::size_t letters = 6;
constexpr std::size_t answers = 3;
constexpr double zeta2 = std::numbers::pi * std::numbers::pi / 6;

// From here on the fourth word is always more frequent than the fifth.
constexpr unit_range units = {.least = 53};

// The first is the noise; the words 2 to 4 are the answer.
std::vector<std::string> draw_vocabulary(std::size_t size, draws& random) {
  std::vector<std::string> words = {"..."};
  std::unordered_set<std::string> seen;
  while (words.size() < size)
    if (std::string fresh = random.letters(letters, 'a'); seen.insert(fresh).second) words.push_back(std::move(fresh));
  return words;
}

// About n words: word k (from 1) int(n k^-2 / zeta(2)) times, in an order that is drawn.
std::string coded_text(const std::vector<std::string>& vocabulary, std::size_t n, draws random) {
  std::vector<std::string_view> words;
  for (std::size_t k = 1; k <= vocabulary.size(); ++k) {
    const double times = static_cast<double>(n) / static_cast<double>(k * k) / zeta2;
    words.insert(words.end(), static_cast<std::size_t>(times), vocabulary[k - 1]);
  }
  random.shuffle(words);
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty()) text += ' ';
    text += word;
  }
  return text;
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  const std::size_t size = std::max(asked.length / tokens_per_word, answers + 2);
  const std::vector<std::string> vocabulary = draw_vocabulary(size, random);
  const draws order(asked.seed, name, asked.sample, "order");

  prompt frame;
  frame.question =
      "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
      "words in the above coded text?";
  frame.answer_begins = "Answer: According to the coded text above, the three most frequently appeared words are:";
  frame.references.assign(vocabulary.begin() + 1, vocabulary.begin() + 1 + answers);
  return fit(asked, name, new_tokens, units, [&](std::size_t n) {
    prompt made = frame;
    made.context =
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
        "coded words. " +
        coded_text(vocabulary, n, order);
    return made;
  });
}

}  // namespace

task coded_words() {
  return {.name = name,
          .meaning = "the three most frequent words of a coded text",
          .group = ruler,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = share_contained};
}

}  // namespace eval
