// A table, one row of which is asked for by its first cell.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/names_and_things.hpp"
#include "tasks/scoring.hpp"
#include "tasks/words.hpp"

#include <cstddef>
#include <string>

namespace eval {
namespace {

constexpr std::string_view name = "table_row";
constexpr std::size_t new_tokens = 24;
constexpr std::size_t most_rows = adjectives.size() * nouns.size();  // each article once
constexpr std::size_t stride = 7919;                                 // a prime that goes round all articles

struct row {
  std::string article, town, number, person;
  [[nodiscard]] std::string text() const { return "| " + article + " | " + town + " | " + number + " | " + person + " |\n"; }
};

row drawn(std::size_t article, draws& random) {
  return {std::string(adjectives[article % adjectives.size()]) + " " + std::string(nouns[article / adjectives.size()]),
          std::string(towns[random.below(towns.size())]), random.number(4),
          std::string(first_names[random.below(first_names.size())])};
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  const std::size_t first = random.below(most_rows);
  const double place = random.fraction();
  const row wanted = drawn(first, random);

  prompt frame;
  frame.question = "\nSay again the row of the article \"" + wanted.article + "\".";
  frame.answer_begins = "| " + wanted.article + " |";
  frame.references = {wanted.town, wanted.number, wanted.person};
  frame.needles = {wanted.text()};
  return fit(asked, name, new_tokens, {.least = 2, .most = most_rows}, [&](std::size_t rows) {
    draws others(asked.seed, name, asked.sample, "rows");
    const auto at = static_cast<std::size_t>(place * static_cast<double>(rows));
    prompt made = frame;
    made.context =
        "The table lists articles with the town, the number and the keeper of each.\n\n"
        "| article | town | number | keeper |\n|---|---|---|---|\n";
    for (std::size_t i = 0, other = first; i < rows; ++i) {
      if (i == at) {
        made.context += wanted.text();
      } else {
        other = (other + stride) % most_rows;
        made.context += drawn(other, others).text();
      }
    }
    return made;
  });
}

}  // namespace

task table_row() {
  return {.name = name,
          .meaning = "the three other cells of a table's row that is named by its first",
          .group = everyday,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = share_contained};
}

}  // namespace eval
