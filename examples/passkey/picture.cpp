#include "picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ostream>
#include <string>

namespace passkey {
namespace {

constexpr std::size_t columns = 500;  // each stands for tokens / columns tokens, drawn two pixels wide
constexpr std::size_t column_width = 2;
constexpr std::size_t left = 60, right = 20, title = 44, footer = 34;
constexpr std::size_t row_height = 3, layer_gap = 2;

// Share kept, in steps: few shades make few and long strokes, hence a small file.
constexpr std::array<std::string_view, 5> shades = {"", "#c6dbef", "#9ecae1", "#4292c6", "#08519c"};

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

// The shade of every column for one head.
std::array<std::size_t, columns> shaded(const std::vector<std::uint32_t>& kept, std::size_t tokens) {
  std::array<std::size_t, columns> count{}, size{}, shade{};
  const auto column = [&](std::size_t token) { return std::min(columns - 1, token * columns / tokens); };
  for (std::size_t token = 0; token < tokens; ++token) ++size[column(token)];
  for (const std::uint32_t token : kept) ++count[column(token)];
  for (std::size_t c = 0; c < columns; ++c) {
    if (count[c] == 0) continue;
    const double share = static_cast<double>(count[c]) / static_cast<double>(size[c]);
    shade[c] = static_cast<std::size_t>(std::ceil(share * static_cast<double>(shades.size() - 1) - 1e-9));
    shade[c] = std::min(shade[c], shades.size() - 1);
  }
  return shade;
}

std::size_t panel_height(const trial& t) {
  std::size_t height = title + footer;
  for (const auto& heads : t.kept) height += heads.size() * row_height + layer_gap;
  return height;
}

void draw_panel(std::ostream& out, const prompt& p, const trial& t, std::size_t top) {
  const std::size_t tokens = p.tokens.size();
  out << fmt::format("<text x='{}' y='{}' font-size='14'>{}</text>\n", left, top + 18, escaped(t.policy));

  std::array<std::string, shades.size()> strokes;
  std::size_t y = top + title;
  for (std::size_t layer = 0; layer < t.kept.size(); ++layer) {
    if (layer % 5 == 0) out << fmt::format("<text x='{}' y='{}' text-anchor='end'>layer {}</text>\n", left - 6, y + 8, layer);
    for (const auto& head : t.kept[layer]) {
      const auto shade = shaded(head, tokens);
      for (std::size_t begin = 0; begin < columns;) {
        std::size_t end = begin + 1;
        while (end < columns && shade[end] == shade[begin]) ++end;
        if (shade[begin] > 0)
          strokes[shade[begin]] += fmt::format("M{} {}h{}v{}h-{}z", left + begin * column_width, y, (end - begin) * column_width,
                                               row_height, (end - begin) * column_width);
        begin = end;
      }
      y += row_height;
    }
    y += layer_gap;
  }
  for (std::size_t s = 1; s < shades.size(); ++s)
    if (!strokes[s].empty()) out << fmt::format("<path fill='{}' d='{}'/>\n", shades[s], strokes[s]);

  const auto x = [&](std::size_t token) {
    const double share = static_cast<double>(token) / static_cast<double>(tokens);
    return static_cast<double>(left) + share * static_cast<double>(columns * column_width);
  };
  const std::size_t over = top + title - 4;
  for (const std::size_t edge : {p.needle_begin, p.needle_end})
    out << fmt::format("<path stroke='#d62728' d='M{0:.1f} {1}V{2}'/>\n", x(edge), over, y);
  out << fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle' fill='#d62728'>pass key</text>\n",
                     (x(p.needle_begin) + x(p.needle_end)) / 2, over - 3);
  out << fmt::format("<text x='{}' y='{}'>token 0</text><text x='{}' y='{}' text-anchor='end'>token {}</text>\n", left, y + 14,
                     left + columns * column_width, y + 14, tokens);
}

}  // namespace

void draw_kept(std::ostream& out, const prompt& p, const std::vector<trial>& trials) {
  std::size_t height = footer;
  for (const trial& t : trials)
    if (!t.kept.empty()) height += panel_height(t);
  out << fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0}' height='{1}' viewBox='0 0 {0} {1}' "
      "font-family='sans-serif' font-size='10'>\n<rect width='100%' height='100%' fill='white'/>\n",
      left + columns * column_width + right, height);
  std::size_t top = 0;
  for (const trial& t : trials) {
    if (t.kept.empty()) continue;
    draw_panel(out, p, t, top);
    top += panel_height(t);
  }
  out << fmt::format(
      "<text x='{}' y='{}' fill='#555'>"
      "a row per layer and head; dark: all tokens kept, white: none</text>\n",
      left, height - footer / 2);
  out << "</svg>\n";
}

}  // namespace passkey
