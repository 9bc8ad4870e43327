// RULER's vt: a chain of assignments in noise; which variables have the value of the first?
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <algorithm>

namespace eval {
namespace {

constexpr std::string_view name = "vt";
constexpr std::size_t new_tokens = 30;
constexpr std::size_t variables = 5;  // four hops
constexpr unit_range lines = {.least = variables};

// RULER's worked example takes 500 tokens at most, and 5 lines at least. A quarter of the length, so that short prompts keep
// room for their own text.
constexpr std::size_t example_tokens = 500;

struct chain {
  std::string value;
  std::vector<std::string> names;
  std::vector<std::string> lines;
  std::vector<double> places;
};

chain draw_chain(std::size_t letters, draws& random) {
  chain drawn;
  while (drawn.names.size() < variables) {
    std::string fresh = random.letters(letters, 'A');
    if (std::ranges::find(drawn.names, fresh) == drawn.names.end()) drawn.names.push_back(std::move(fresh));
  }
  drawn.value = random.number(5);
  drawn.lines.push_back("VAR " + drawn.names[0] + " = " + drawn.value);
  for (std::size_t i = 1; i < variables; ++i)
    drawn.lines.push_back("VAR " + drawn.names[i] + " = VAR " + drawn.names[i - 1] + " ");
  drawn.places = random.fractions(variables);
  return drawn;
}

std::string context(const chain& hidden, std::size_t noise_lines) {
  return "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n" +
         hide_in_lines(
             noise_lines, [](std::size_t) { return noise_line; }, hidden.lines, hidden.places);
}

std::string question(const chain& hidden) {
  return "\nQuestion: Find all variables that are assigned the value " + hidden.value + " in the text above.";
}

std::string answer_begins(const chain& hidden) {
  return "Answer: According to the chain(s) of variable assignment in the text above, " + std::to_string(variables) +
         " variables are assigned the value " + hidden.value + ", they are: ";
}

std::string example(const chain& hidden, std::size_t noise_lines) {
  std::string text = context(hidden, noise_lines) + question(hidden) + " " + answer_begins(hidden);
  for (const std::string& each : hidden.names) text.append(" ").append(each);
  return text + "\n\n";
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  const chain hidden = draw_chain(5, random);
  chain shown = draw_chain(3, random);
  while (shown.value == hidden.value) shown = draw_chain(3, random);

  const std::size_t room = std::min(example_tokens, asked.length / 4);
  const auto tokens = [&](std::size_t n) { return asked.count(example(shown, n)); };
  const std::string head = example(shown, most_units(room, lines, tokens).value_or(lines.least));

  prompt frame;
  frame.question = question(hidden);
  frame.answer_begins = answer_begins(hidden);
  frame.references = hidden.names;
  frame.needles = hidden.lines;
  return fit(asked, name, new_tokens, lines, [&](std::size_t n) {
    prompt made = frame;
    made.context = head + context(hidden, n);
    return made;
  });
}

}  // namespace

task variable_tracking() {
  return {.name = name,
          .meaning = "the five variables of a chain of assignments, in noise",
          .group = ruler,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = share_contained};
}

}  // namespace eval
