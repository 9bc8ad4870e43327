// Cuts the fables.
#include "tasks/fables.hpp"

#include <algorithm>
#include <cassert>

namespace eval {
namespace {

std::vector<fable> cut_fables(std::string_view text) {
  std::vector<fable> made;
  while (!text.empty()) {
    const std::string_view one = text.substr(0, text.find("\n\n"));
    text.remove_prefix(std::min(one.size() + 2, text.size()));
    const std::size_t title = one.find('\n');
    std::string_view paragraphs = one.substr(title + 1);
    if (paragraphs.ends_with('\n')) paragraphs.remove_suffix(1);  // the file's last
    made.push_back({one.substr(0, title), paragraphs});
  }
  return made;
}

}  // namespace

const std::vector<fable>& shipped_fables() {
  static const std::vector<fable> shipped = cut_fables(fables_text);
  return shipped;
}

std::size_t fable_titled(std::string_view title) {
  const std::vector<fable>& all = shipped_fables();
  const auto at = static_cast<std::size_t>(std::ranges::find(all, title, &fable::title) - all.begin());
  assert(at < all.size());
  return at;
}

std::vector<std::string> fables_as_documents() {
  std::vector<std::string> made;
  for (const fable& each : shipped_fables()) made.push_back(std::string(each.title) + "\n" + std::string(each.text));
  return made;
}

}  // namespace eval
