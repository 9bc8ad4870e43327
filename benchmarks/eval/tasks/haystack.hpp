// What needles are hidden in, and how much of it makes a prompt of the length asked for.
#pragma once

#include "tasks/task.hpp"

#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// RULER's noise; one line of it.
inline constexpr std::string_view noise_line =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// So many lines and the needles among them, in their order, each before another line. `places` are the needles' ascending
/// fractions (0 <= x < 1) of the text, as many as needles; lines >= needles.
[[nodiscard]] std::string hide_in_lines(std::size_t lines, const std::function<std::string_view(std::size_t)>& line,
                                        std::span<const std::string> needles, std::span<const double> places);

/// So many words of the shipped book from word `first` on, cut in sentences that are joined by spaces. Each needle stands
/// before sentence int(sentences * percent / 100); `percents` ascend, 0 to 100, as many as needles.
[[nodiscard]] std::string hide_in_essay(std::size_t first, std::size_t words, std::span<const std::string> needles,
                                        std::span<const std::size_t> percents);

/// So many words of noise, and the needle before word int(words * depth).
[[nodiscard]] std::string hide_in_noise(std::size_t words, std::string_view needle, double depth);

/// How many units (lines, words, documents) a haystack may have.
struct unit_range {
  std::size_t least = 1;
  std::size_t most = std::numeric_limits<std::size_t>::max();
};

/// A number of units that takes at most `budget` tokens while one more takes more (or is beyond range.most): the largest, where
/// tokens grow with units. Nothing where range.least takes more. Calls `tokens` about ten times, never far beyond the budget.
[[nodiscard]] std::optional<std::size_t> most_units(std::size_t budget, unit_range range,
                                                    const std::function<std::size_t(std::size_t)>& tokens);

/// The prompt that `make` makes of the most units that request.length has room for, the answer's new_tokens counted. What is
/// counted is context + question + " " + answer_begins: the space stands for what a chat template puts there. Throws too_short
/// where the least units do not fit.
[[nodiscard]] prompt fit(const request& asked, std::string_view task, std::size_t new_tokens, unit_range range,
                         const std::function<prompt(std::size_t)>& make);

}  // namespace eval
