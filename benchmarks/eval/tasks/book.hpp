// The shipped book (Jane Austen, Persuasion, 1818) as a ring of words: after the last comes the first.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// text/persuasion.txt, compiled in: one paragraph a line.
extern const std::string_view persuasion;

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

/// `persuasion`, cut once.
[[nodiscard]] const book& shipped_book();

}  // namespace eval
