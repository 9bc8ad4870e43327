// The shipped fables (Aesop, in George Fyler Townsend's translation of 1867): short documents that stand by themselves.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// text/fables.txt, compiled in: a title, then paragraphs, each on a line of its own; an empty line between fables.
extern const std::string_view fables_text;

/// One of them. Views into the text.
struct fable {
  std::string_view title;
  std::string_view text;  ///< paragraphs, '\n' between them
};

/// `fables_text`, cut once. A title may stand twice, a text does not.
[[nodiscard]] const std::vector<fable>& shipped_fables();

/// The index of the first one of that title, which must be there.
[[nodiscard]] std::size_t fable_titled(std::string_view title);

/// Each as a document: its title, '\n', its text.
[[nodiscard]] std::vector<std::string> fables_as_documents();

}  // namespace eval
