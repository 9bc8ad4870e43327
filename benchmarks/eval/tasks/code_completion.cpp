// Code, completed in a repository: the parameters of a function that is declared somewhere in the headers.
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {
namespace {

constexpr std::string_view name = "code_completion";
constexpr std::size_t new_tokens = 48;
constexpr std::size_t least_names = 5;  // of the parameters

constexpr std::string_view word_characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";

// A line of the headers that declares a function.
struct declaration {
  std::size_t line = 0;
  std::string_view begins;      // up to the function's name
  std::string_view function;    // its name
  std::string_view parameters;  // from the parenthesis to the line's last name
};

// "inline status check(const layer& l, std::size_t head) {": words before a parenthesis, parameters behind it.
bool declares(std::string_view text, declaration& found) {
  constexpr std::array<std::string_view, 9> others = {"if",    "for",   "while",         "else", "return",
                                                      "throw", "using", "static_assert", "case"};
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  const std::size_t open = text.find('(');
  if (open == std::string_view::npos || std::string_view("{;,").find(text.back()) == std::string_view::npos) return false;
  found.begins = text.substr(0, open);
  const std::size_t type = found.begins.find_last_not_of(word_characters);
  if (type == std::string_view::npos || type + 1 == open || std::string_view(" &*").find(found.begins[type]) > 2) return false;
  if (found.begins.find_first_of("=()/#\"!|") != std::string_view::npos) return false;
  if (std::ranges::find(others, text.substr(0, text.find_first_not_of(word_characters))) != others.end()) return false;
  found.function = found.begins.substr(type + 1);
  found.parameters = text.substr(open, text.find_last_of(word_characters) + 1 - open);
  return true;
}

// Of functions that are declared once: an overload would tell half of the parameters.
std::vector<declaration> list_declarations() {
  const book& code = shipped_code();
  std::vector<declaration> all;
  for (std::size_t i = 0; i < code.words.size(); ++i) {
    declaration d;
    d.line = i;
    if (declares(code.words[i], d)) all.push_back(d);
  }
  std::vector<declaration> made;
  for (const declaration& d : all) {
    const std::string given = std::string(d.begins) + "(";  // stands nowhere else, in a longer line either
    if (names_in_code(d.parameters).size() >= least_names && std::ranges::count(all, d.function, &declaration::function) == 1 &&
        headers.find(given, headers.find(given) + 1) == std::string_view::npos)
      made.push_back(d);
  }
  return made;
}

prompt make(const request& asked) {
  static const std::vector<declaration> declarations = list_declarations();
  const book& code = shipped_code();
  draws random(asked.seed, name, asked.sample);
  const declaration& wanted = declarations[random.below(declarations.size())];
  const double place = random.fraction();

  prompt frame;
  frame.question = "\n\nWrite the line that declares " + std::string(wanted.function) + " again, as it stands above.";
  frame.answer_begins = wanted.begins;
  frame.references = {std::string(wanted.parameters)};
  frame.needles = {std::string(wanted.begins) + std::string(wanted.parameters)};
  return fit(asked, name, new_tokens, {.least = 1, .most = code.words.size()}, [&](std::size_t lines) {
    const auto before = static_cast<std::size_t>(place * static_cast<double>(lines));
    prompt made = frame;
    made.context = code.running_text((wanted.line + code.words.size() - before) % code.words.size(), lines);
    return made;
  });
}

}  // namespace

task code_completion() {
  return {.name = name,
          .meaning = "the parameters of a function that C++ code declares",
          .group = work,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = code_recalled};
}

}  // namespace eval
