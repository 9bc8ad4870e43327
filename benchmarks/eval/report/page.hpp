// The figures as a web page.
#pragma once

#include <string>
#include <string_view>

namespace eval {

/// One HTML file that needs no other: `title` (text) and `figures` (figures_json) go into it so that nothing in them is taken
/// for markup.
[[nodiscard]] std::string make_page(std::string_view title, std::string_view figures);

}  // namespace eval
