// RULER's cwe: the ten words that a numbered list repeats most.
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <span>

namespace eval {
namespace {

constexpr std::string_view name = "cwe";
constexpr std::size_t new_tokens = 120;
constexpr std::size_t common = 10;

// How often the common and the other words stand in the list, and in the worked example and of how many words that is.
struct repeats {
  std::size_t of_common, of_others;
  std::size_t example_of_common, example_of_others, example_words;
};
constexpr repeats long_list = {30, 3, 10, 3, 40};
constexpr repeats short_list = {6, 1, 3, 1, 20};
constexpr std::size_t long_from = 4096;  // tokens

// The list of such words, the first ten of them common; its order is drawn.
std::string numbered_list(std::span<const std::string_view> words, std::size_t of_common, std::size_t of_others, draws random) {
  std::vector<std::string_view> entries;
  for (std::size_t i = 0; i < words.size(); ++i) entries.insert(entries.end(), i < common ? of_common : of_others, words[i]);
  random.shuffle(entries);
  std::string text;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) text += ' ';
    text.append(std::to_string(i + 1)).append(". ").append(entries[i]);
  }
  return text;
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  std::vector<std::string_view> words = shipped_book().distinct;
  random.shuffle(words);
  const std::span<const std::string_view> example = std::span<const std::string_view>(words).first(long_list.example_words);
  const std::span<const std::string_view> own = std::span<const std::string_view>(words).subspan(example.size());
  const repeats& times = asked.length < long_from ? short_list : long_list;

  const std::string intro =
      "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear "
      "most often.\n";
  prompt frame;
  frame.question = "\nQuestion: What are the 10 most common words in the above list?";
  frame.answer_begins = "Answer: The top 10 words that appear most often in the list are:";
  frame.references.assign(own.begin(), own.begin() + common);

  std::string head = intro + numbered_list(example.first(times.example_words), times.example_of_common, times.example_of_others,
                                           draws(asked.seed, name, asked.sample, "example"));
  head.append(frame.question).append(" ").append(frame.answer_begins);
  for (std::size_t i = 0; i < common; ++i) head.append(" ").append(std::to_string(i + 1)).append(". ").append(example[i]);
  head.append("\n").append(intro);

  // One other word at least; no more than the book has, which lasts for some 60,000 tokens.
  return fit(asked, name, new_tokens, {.least = common + 1, .most = own.size()}, [&](std::size_t count) {
    prompt made = frame;
    made.context = head + numbered_list(own.first(count), times.of_common, times.of_others, random);
    return made;
  });
}

}  // namespace

task common_words() {
  return {.name = name,
          .meaning = "the ten words that a list repeats most",
          .group = ruler,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = share_contained};
}

}  // namespace eval
