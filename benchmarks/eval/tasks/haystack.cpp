// Haystacks, and the search for their size.
#include "tasks/haystack.hpp"

#include "tasks/book.hpp"

#include <algorithm>
#include <cassert>

namespace eval {
namespace {

struct point {
  std::size_t units = 0;
  std::size_t tokens = 0;
};

std::size_t tokens_of(const request& asked, const prompt& made) {
  std::string text = made.context + made.question;
  if (!made.answer_begins.empty()) text.append(" ").append(made.answer_begins);
  return asked.count(text);
}

void append(std::string& text, std::string_view part, std::string_view separator) {
  if (!text.empty()) text += separator;
  text += part;
}

}  // namespace

std::string hide_in_lines(std::size_t lines, const std::function<std::string_view(std::size_t)>& line,
                          std::span<const std::string> needles, std::span<const double> places) {
  assert(lines >= needles.size() && places.size() == needles.size());
  const auto choices = static_cast<double>(lines - needles.size() + 1);
  std::string text;
  std::size_t next = 0;
  for (std::size_t i = 0; i < lines; ++i) {
    // The place among the choices, moved on by a line for each needle before it: no two stand at the same line.
    if (next < needles.size() && next + static_cast<std::size_t>(choices * places[next]) == i)
      append(text, needles[next++], "\n");
    append(text, line(i), "\n");
  }
  return text;
}

std::string hide_in_essay(std::size_t first, std::size_t words, std::span<const std::string> needles,
                          std::span<const std::size_t> percents) {
  assert(percents.size() == needles.size());
  const book& essay = shipped_book();
  const auto word_at = [&](std::size_t i) { return (first + i) % essay.words.size(); };

  std::size_t sentences = 0;
  for (std::size_t i = 0; i < words; ++i)
    if (essay.ends_sentence[word_at(i)] || i + 1 == words) ++sentences;

  std::string text;
  std::size_t sentence = 0;
  std::size_t next = 0;
  const auto hide = [&] {
    while (next < needles.size() && sentences * percents[next] / 100 == sentence) append(text, needles[next++], " ");
  };
  hide();
  for (std::size_t i = 0; i < words; ++i) {
    append(text, essay.words[word_at(i)], " ");
    if (!essay.ends_sentence[word_at(i)] && i + 1 < words) continue;
    ++sentence;
    hide();
  }
  return text;
}

std::string hide_in_noise(std::size_t words, std::string_view needle, double depth) {
  static const book noise = cut(noise_line);
  const auto place = static_cast<std::size_t>(static_cast<double>(words) * depth);
  std::string text;
  for (std::size_t i = 0; i <= words; ++i) {
    if (i == place) append(text, needle, " ");
    if (i == words) break;
    const std::size_t word = i % noise.words.size();
    append(text, noise.words[word], word == 0 && i != place ? "\n" : " ");
  }
  return text;
}

std::optional<std::size_t> most_units(std::size_t budget, unit_range range,
                                      const std::function<std::size_t(std::size_t)>& tokens) {
  point fits{range.least, tokens(range.least)};
  if (fits.tokens > budget) return std::nullopt;

  // Up from the least by what a unit took last and a tenth more, until it is too much. The floor under the steps doubles, for
  // tokens that stand still.
  point beyond{};
  double floor = 1;
  for (std::size_t step = 16; beyond.units == 0;) {
    if (fits.units >= range.most) return range.most;
    const std::size_t units = fits.units + std::min(step, range.most - fits.units);
    const point tried{units, tokens(units)};
    if (tried.tokens > budget) {
      beyond = tried;
      break;
    }
    const double tokens_each =
        (static_cast<double>(tried.tokens) - static_cast<double>(fits.tokens)) / static_cast<double>(tried.units - fits.units);
    fits = tried;
    const double wanted = 1.1 * static_cast<double>(budget - tried.tokens) / std::max(tokens_each, 1e-3) + 1;
    floor *= 2;
    step = static_cast<std::size_t>(std::min(std::max(floor, std::min(wanted, 64 * static_cast<double>(step))), 0x1p40));
  }

  // Between the two, where a straight line meets the budget, and a little to the farther side so that the guess is a bound
  // from there; halves at every third turn, for tokens that do not grow straight.
  for (int turn = 1; beyond.units - fits.units > 1; ++turn) {
    const std::size_t gap = beyond.units - fits.units;
    const auto width = static_cast<double>(gap);
    double middle = width / 2;
    if (turn % 3 != 0) {
      middle = width * static_cast<double>(budget - fits.tokens) / static_cast<double>(beyond.tokens - fits.tokens);
      middle += middle < width / 2 ? width / 16 : -width / 16;
    }
    const std::size_t units = fits.units + std::clamp<std::size_t>(static_cast<std::size_t>(middle), 1, gap - 1);
    const point tried{units, tokens(units)};
    (tried.tokens <= budget ? fits : beyond) = tried;
  }
  return fits.units;
}

prompt fit(const request& asked, std::string_view task, std::size_t new_tokens, unit_range range,
           const std::function<prompt(std::size_t)>& make) {
  const auto tokens = [&](std::size_t units) { return tokens_of(asked, make(units)) + new_tokens; };
  const std::optional<std::size_t> units = most_units(asked.length, range, tokens);
  if (!units) throw too_short(task, asked.length + asked.beside, tokens(range.least) + asked.beside);
  return make(*units);
}

}  // namespace eval
