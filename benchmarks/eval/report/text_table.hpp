// A table of texts, for a terminal or in markdown.
#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// The first columns name the row and stand left; the others are numbers and stand right.
struct text_table {
  std::size_t labels = 1;
  std::vector<std::string> heads;
  std::vector<std::vector<std::string>> rows;  ///< each as long as heads
};

/// Widest line of a terminal's table: what has no room goes into a further table with the labels again.
constexpr std::size_t most_columns = 138;

/// Columns without a figure (all "-") are left out.
void print(std::ostream& out, const text_table& table, bool markdown);

/// Control characters as blanks.
[[nodiscard]] std::string one_line(std::string_view text);

/// The text, cut after at most `most` characters, never within a UTF-8 character.
[[nodiscard]] std::string shortened(std::string_view text, std::size_t most);

}  // namespace eval
