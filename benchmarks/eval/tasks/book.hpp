// The shipped texts as rings of words, after the last of which comes the first: a book (Jane Austen, Persuasion, 1818) and code.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// text/persuasion.txt, compiled in: one paragraph a line.
extern const std::string_view persuasion;

/// text/headers.txt.tar.gz, compiled in: this library's own headers as they were in November 2026, one after another. A copy that
/// does not change with them, so that results made at different times can be compared.
extern const std::string_view headers;

/// A text cut in words. Views into the text.
struct book {
  std::vector<std::string_view> words;     ///< with their punctuation
  std::vector<char> separators;            ///< what follows each: a space, or '\n' at the end of a paragraph
  std::vector<bool> ends_sentence;         ///< by word
  std::vector<std::size_t> sentences;      ///< the first word of each
  std::vector<std::string_view> distinct;  ///< lower-case words of 4 letters or more, once each, as they first appear

  /// Words [first, first + count) of the ring; a text that is too short is repeated.
  [[nodiscard]] std::string running_text(std::size_t first, std::size_t count) const;
};

/// Cuts a text of one paragraph a line. A sentence ends at . ! or ?, also within quotes, unless a lower-case word follows or it
/// is the full stop of Mr. Mrs. Dr. St. or Esq.; a paragraph's end always ends it.
[[nodiscard]] book cut(std::string_view text);

/// The same for code, where every space counts: a word is a line, with its indentation, and '\n' follows each. It has no
/// sentences and no distinct words.
[[nodiscard]] book cut_in_lines(std::string_view text);

/// `persuasion`, cut once.
[[nodiscard]] const book& shipped_book();

/// `headers`, cut in lines, once.
[[nodiscard]] const book& shipped_code();

}  // namespace eval
