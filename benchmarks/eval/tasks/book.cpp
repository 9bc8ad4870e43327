// Cuts a book in words and sentences, and code in lines.
#include "tasks/book.hpp"

#include <algorithm>
#include <array>
#include <unordered_set>

namespace eval {
namespace {

constexpr std::array<std::string_view, 5> abbreviations = {"Mr.", "Mrs.", "Dr.", "St.", "Esq."};
constexpr std::string_view closing = "\"')";
constexpr std::string_view opening = "\"'(";

bool lower(char c) { return c >= 'a' && c <= 'z'; }
bool letter(char c) { return lower(c) || (c >= 'A' && c <= 'Z'); }

bool closes_sentence(std::string_view word) {
  word = word.substr(0, word.find_last_not_of(closing) + 1);
  word.remove_prefix(std::min(word.find_first_not_of(opening), word.size()));
  if (word.empty() || std::string_view(".!?").find(word.back()) == std::string_view::npos) return false;
  return std::ranges::find(abbreviations, word) == abbreviations.end();
}

// Runs of letters; one with a capital, an apostrophe or a hyphen is no plain word, nor are its parts.
std::vector<std::string_view> plain_words(std::string_view text) {
  std::vector<std::string_view> found;
  std::unordered_set<std::string_view> seen;
  const auto inner = [](char c) { return letter(c) || c == '\'' || c == '-'; };
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    while (end < text.size() && inner(text[end])) ++end;
    std::string_view word = text.substr(begin, end - begin);
    while (!word.empty() && !letter(word.front())) word.remove_prefix(1);
    while (!word.empty() && !letter(word.back())) word.remove_suffix(1);
    if (word.size() >= 4 && std::ranges::all_of(word, lower) && seen.insert(word).second) found.push_back(word);
    begin = end + 1;
  }
  return found;
}

}  // namespace

std::string book::running_text(std::size_t first, std::size_t count) const {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = (first + i) % words.size();
    text += words[at];
    if (i + 1 < count) text += separators[at];
  }
  return text;
}

book cut(std::string_view text) {
  book made;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find_first_of(" \n", begin), text.size());
    if (end > begin) {
      made.words.push_back(text.substr(begin, end - begin));
      made.separators.push_back(end < text.size() ? text[end] : '\n');
    } else if (!made.words.empty() && text[end] == '\n') {
      made.separators.back() = '\n';
    }
    begin = end + 1;
  }

  const std::size_t count = made.words.size();
  bool fresh = true;
  for (std::size_t i = 0; i < count; ++i) {
    if (fresh) made.sentences.push_back(i);
    const bool lower_follows = i + 1 < count && lower(made.words[i + 1].front());
    fresh = made.separators[i] == '\n' || (closes_sentence(made.words[i]) && !lower_follows);
    made.ends_sentence.push_back(fresh || i + 1 == count);
  }
  made.distinct = plain_words(text);
  return made;
}

book cut_in_lines(std::string_view text) {
  book made;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    made.words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  made.separators.assign(made.words.size(), '\n');
  made.ends_sentence.assign(made.words.size(), false);
  return made;
}

const book& shipped_book() {
  static const book shipped = cut(persuasion);
  return shipped;
}

const book& shipped_code() {
  static const book shipped = cut_in_lines(headers);
  return shipped;
}

}  // namespace eval
