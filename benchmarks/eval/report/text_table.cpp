// Widths, and where a table that is too wide goes on.
#include "text_table.hpp"

#include <algorithm>

namespace eval {
namespace {

constexpr std::string_view gap = "  ";

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return !continues(c); }));
}

std::size_t width_of(const text_table& table, std::size_t column) {
  std::size_t width = width_of(table.heads[column]);
  for (const auto& row : table.rows) width = std::max(width, width_of(row[column]));
  return width;
}

bool empty(const text_table& table, std::size_t column) {
  return column >= table.labels && std::ranges::all_of(table.rows, [column](const auto& row) { return row[column] == "-"; });
}

std::string padded(const std::string& text, std::size_t width, bool left) {
  const std::string blanks(width - std::min(width, width_of(text)), ' ');
  return left ? text + blanks : blanks + text;
}

// What markdown would take for its own.
std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    if (std::string_view("|\\`*_<>[]&").find(c) != std::string_view::npos) safe += '\\';
    safe += c;
  }
  return safe;
}

void print_markdown(std::ostream& out, const text_table& table, const std::vector<std::size_t>& columns) {
  for (const std::size_t c : columns) out << "| " << escaped(table.heads[c]) << ' ';
  out << "|\n";
  for (const std::size_t c : columns) out << (c < table.labels ? "|---" : "|---:");
  out << "|\n";
  for (const auto& row : table.rows) {
    for (const std::size_t c : columns) out << "| " << (c < table.labels ? escaped(row[c]) : row[c]) << ' ';
    out << "|\n";
  }
}

void print_plain(std::ostream& out, const text_table& table, const std::vector<std::size_t>& columns) {
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (const std::size_t c : columns) {
      if (!text.empty()) text += gap;
      text += padded(cells[c], width_of(table, c), c < table.labels);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out << text << '\n';
  };
  line(table.heads);
  for (const auto& row : table.rows) line(row);
}

}  // namespace

void print(std::ostream& out, const text_table& table, bool markdown) {
  std::vector<std::size_t> labels, columns;
  std::size_t label_width = 0;
  for (std::size_t c = 0; c < table.labels; ++c) {
    labels.push_back(c);
    label_width += width_of(table, c) + gap.size();
  }
  columns = labels;
  std::size_t width = label_width;
  for (std::size_t c = table.labels; c < table.heads.size(); ++c) {
    if (empty(table, c)) continue;
    const std::size_t more = width_of(table, c) + gap.size();
    if (!markdown && width + more > most_columns + gap.size() && columns.size() > labels.size()) {
      print_plain(out, table, columns);
      out << '\n';
      columns = labels;
      width = label_width;
    }
    columns.push_back(c);
    width += more;
  }
  markdown ? print_markdown(out, table, columns) : print_plain(out, table, columns);
}

std::string one_line(std::string_view text) {
  std::string line(text);
  std::ranges::replace_if(
      line, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, ' ');
  return line;
}

std::string shortened(std::string_view text, std::size_t most) {
  if (width_of(text) <= most) return std::string(text);
  std::size_t end = 0, characters = 0;
  for (; end < text.size(); ++end)
    if (!continues(text[end]) && ++characters > most) break;
  return std::string(text.substr(0, end));
}

}  // namespace eval
