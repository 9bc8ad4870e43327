// Tasks without a question: a slice of a shipped text, read on (perplexity) or written on (generation).
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"

#include <algorithm>

namespace eval {
namespace {

constexpr std::size_t new_tokens = 256;

// What a text is cut from, in its words (the code's are lines).
struct source {
  const book& (*text)();
  unit_range units;
  std::size_t probe;  // words at its beginning that tell how many tokens a word has
  std::size_t tail;   // words that a slice has for its continuation
  std::size_t first;  // words of a continuation to begin with
  double more;        // times as many, where they have too few tokens
};
// A word has a token at least, so that 256 are enough.
constexpr source prose = {shipped_book, {.least = 16}, 2000, new_tokens, new_tokens, 2};
// A line has 12 on average. A continuation is longer than 256 tokens by a quarter at most, or by a line or two.
constexpr source code = {shipped_code, {.least = 4}, 500, 64, 16, 1.25};

// The sample's part of the text: words [first, first + size) of the ring.
struct slice {
  std::size_t first = 0;
  std::size_t size = 0;
};

// Slices lie side by side from a drawn place on, as many as the text has room for; then another round begins elsewhere. Their
// size is the same for all samples of a length: what the length takes at the rate of the text's beginning and a quarter more,
// for passages with longer words.
slice place(const request& asked, const source& from, std::string_view name) {
  const book& text = from.text();
  const std::size_t probe = std::min(from.probe, text.words.size());
  const auto words = static_cast<double>(probe);
  const auto tokens = static_cast<double>(std::max<std::size_t>(1, asked.count(text.running_text(0, probe))));
  const auto size =
      from.tail + from.units.least + static_cast<std::size_t>(1.25 * static_cast<double>(asked.length) * words / tokens);

  const std::size_t slices = std::max<std::size_t>(1, text.words.size() / size);
  draws random(asked.seed, name, asked.sample / slices);
  return {(random.below(text.words.size()) + asked.sample % slices * size) % text.words.size(), size};
}

prompt read_on(const request& asked, const source& from, std::string_view name) {
  const book& text = from.text();
  const slice mine = place(asked, from, name);
  std::size_t read = 0;  // words of the context: fit's last call makes what it returns
  prompt made = fit(asked, name, new_tokens, {from.units.least, mine.size - from.tail}, [&](std::size_t words) {
    read = words;
    prompt tried;
    tried.context = text.running_text(mine.first, words);
    return tried;
  });
  // With what stands between the two: the continuation's first token is as in running text.
  for (std::size_t words = from.first; asked.count(made.continuation) < new_tokens;
       words = static_cast<std::size_t>(from.more * static_cast<double>(words)))
    made.continuation = text.running_text(mine.first, read + words).substr(made.context.size());
  return made;
}

prompt make_perplexity(const request& asked) { return read_on(asked, prose, "perplexity"); }

prompt make_perplexity_code(const request& asked) { return read_on(asked, code, "perplexity_code"); }

prompt make_generation(const request& asked) {
  const slice mine = place(asked, prose, "generation");
  return fit(asked, "generation", new_tokens, {prose.units.least, mine.size}, [&](std::size_t words) {
    prompt tried;
    tried.context = shipped_book().running_text(mine.first, words);
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
          {.name = "perplexity_code",
           .meaning = "the probabilities of the lines that follow a slice of C++ code",
           .group = beyond,
           .how = kind::perplexity,
           .new_tokens = new_tokens,
           .make = make_perplexity_code},
          {.name = "generation",
           .meaning = "a slice of a book, written on",
           .how = kind::generation,
           .new_tokens = new_tokens,
           .make = make_generation}};
}

}  // namespace eval
