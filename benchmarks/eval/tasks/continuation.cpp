// Tasks without a question: a slice of the shipped book, read on (perplexity) or written on (generation).
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"

#include <algorithm>

namespace eval {
namespace {

constexpr std::size_t new_tokens = 256;
constexpr std::size_t tail = new_tokens;  // words of a continuation: a word has a token at least
constexpr unit_range units = {.least = 16};

// The sample's part of the book: words [first, first + size) of the ring.
struct slice {
  std::size_t first = 0;
  std::size_t size = 0;
};

// Slices lie side by side from a drawn place on, as many as the book has room for; then another round begins elsewhere. Their
// size is the same for all samples of a length: what the length takes at the rate of the book's beginning and a quarter more,
// for passages with longer words.
slice place(const request& asked, std::string_view name) {
  const book& text = shipped_book();
  const std::size_t probe = std::min<std::size_t>(2000, text.words.size());
  const auto words = static_cast<double>(probe);
  const auto tokens = static_cast<double>(std::max<std::size_t>(1, asked.count(text.running_text(0, probe))));
  const auto size = tail + units.least + static_cast<std::size_t>(1.25 * static_cast<double>(asked.length) * words / tokens);

  const std::size_t slices = std::max<std::size_t>(1, text.words.size() / size);
  draws random(asked.seed, name, asked.sample / slices);
  return {(random.below(text.words.size()) + asked.sample % slices * size) % text.words.size(), size};
}

std::string first_words(const slice& of, std::size_t count) { return shipped_book().running_text(of.first, count); }

prompt make_perplexity(const request& asked) {
  const slice mine = place(asked, "perplexity");
  std::size_t read = 0;  // words of the context: fit's last call makes what it returns
  prompt made = fit(asked, "perplexity", new_tokens, {units.least, mine.size - tail}, [&](std::size_t words) {
    read = words;
    prompt tried;
    tried.context = first_words(mine, words);
    return tried;
  });
  // With what stands between the two: the continuation's first token is as in running text.
  for (std::size_t words = tail; asked.count(made.continuation) < new_tokens; words *= 2)
    made.continuation = first_words(mine, read + words).substr(made.context.size());
  return made;
}

prompt make_generation(const request& asked) {
  const slice mine = place(asked, "generation");
  return fit(asked, "generation", new_tokens, {units.least, mine.size}, [&](std::size_t words) {
    prompt tried;
    tried.context = first_words(mine, words);
    return tried;
  });
}

}  // namespace

std::vector<task> continuation_tasks() {
  return {{.name = "perplexity",
           .meaning = "the probabilities of the text that follows a slice of a book",
           .how = kind::perplexity,
           .new_tokens = new_tokens,
           .make = make_perplexity},
          {.name = "generation",
           .meaning = "a slice of a book, written on",
           .how = kind::generation,
           .new_tokens = new_tokens,
           .make = make_generation}};
}

}  // namespace eval
