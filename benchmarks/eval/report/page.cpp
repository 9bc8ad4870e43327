// The page's parts are files beside this one, compiled in by lagkv_embed.
#include "page.hpp"

#include <stdexcept>

namespace eval {

extern const std::string_view page_html, page_css, page_js, page_charts_js, page_panels_js, page_table_js;

namespace {

// JSON has '<' in texts alone, where its escape means the same: no "</script>" and no "<!--" is left.
std::string script_safe(std::string_view figures) {
  std::string safe;
  safe.reserve(figures.size());
  for (const char c : figures)
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  return safe;
}

std::string text_safe(std::string_view text) {
  std::string safe;
  for (const char c : text) switch (c) {
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '&':
        safe += "&amp;";
        break;
      default:
        safe += c;
    }
  return safe;
}

}  // namespace

std::string make_page(std::string_view title, std::string_view figures) {
  std::string page;
  // In one pass: a mark within what was put in is no mark.
  for (std::string_view rest = page_html; !rest.empty();) {
    const std::size_t begin = rest.find("{{");
    page += rest.substr(0, begin);
    if (begin == std::string_view::npos) break;
    const std::size_t end = rest.find("}}", begin);
    const std::string_view mark = rest.substr(begin, end + 2 - begin);
    if (mark == "{{title}}")
      page += text_safe(title);
    else if (mark == "{{style}}")
      page += page_css;
    else if (mark == "{{figures}}")
      page += script_safe(figures);
    else if (mark == "{{script}}")
      for (const std::string_view script : {page_charts_js, page_panels_js, page_table_js, page_js}) page += script;
    else
      throw std::logic_error("page.html: unknown mark " + std::string(mark));
    rest.remove_prefix(end + 2);
  }
  return page;
}

}  // namespace eval
