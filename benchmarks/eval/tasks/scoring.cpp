// Answers against references.
#include "tasks/scoring.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace eval {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::size_t references_contained(std::string_view answer, const prompt& asked) {
  const auto found = [&](const std::string& reference) { return contains(answer, reference); };
  return static_cast<std::size_t>(std::ranges::count_if(asked.references, found));
}

// In lower case.
std::vector<std::string> words_of(std::string_view text) {
  const auto inner = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '\''; };
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (inner(lower(c)))
      words.back() += lower(c);
    else if (!words.back().empty())
      words.emplace_back();
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// Of two lists, or of two texts.
template <typename List>
std::size_t longest_common_subsequence(const List& a, const List& b) {
  std::vector<std::size_t> best(b.size() + 1);  // best[j]: of a's words so far and the first j of b
  for (const auto& word : a) {
    std::size_t diagonal = 0;  // best[j] before this word
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t with = diagonal + (word == b[j] ? 1 : 0);
      diagonal = best[j + 1];
      best[j + 1] = std::max({with, best[j], diagonal});
    }
  }
  return best.back();
}

constexpr std::array<std::string_view, 74> in_most_prose = {
    "a",          "an",      "and",   "as",    "at",    "be",     "been",   "both",  "but",  "by",   "can",     "could", "did",
    "do",         "does",    "for",   "from",  "had",   "has",    "have",   "he",    "her",  "him",  "himself", "his",   "if",
    "in",         "into",    "is",    "it",    "its",   "itself", "may",    "must",  "no",   "not",  "of",      "off",   "on",
    "only",       "or",      "out",   "over",  "shall", "she",    "should", "since", "so",   "that", "the",     "their", "them",
    "themselves", "then",    "there", "these", "they",  "this",   "those",  "to",    "too",  "up",   "was",     "were",  "when",
    "where",      "whether", "which", "while", "who",   "whom",   "will",   "with",  "would"};

// Without what a model puts before it.
std::string_view first_line(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \n"), text.size()));
  return text.substr(0, text.find('\n'));
}

constexpr std::array<std::string_view, 34> in_most_code = {
    "auto",  "bool",   "break",  "case",   "char",     "class", "const", "consteval", "constexpr", "double",   "else",   "enum",
    "false", "float",  "for",    "if",     "inline",   "int",   "long",  "mutable",   "noexcept",  "operator", "return", "size_t",
    "std",   "static", "struct", "switch", "template", "this",  "true",  "typename",  "unsigned",  "void"};

double share(std::size_t part, std::size_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

bool contains(std::string_view text, std::string_view part) {
  const auto equal = [](char a, char b) { return lower(a) == lower(b); };
  return part.empty() || std::search(text.begin(), text.end(), part.begin(), part.end(), equal) != text.end();
}

std::size_t longest_common_substring(std::string_view a, std::string_view b) {
  std::size_t longest = 0;
  std::vector<std::size_t> run(b.size() + 1);  // run[j + 1]: of what ends at a[i] and b[j]
  for (const char c : a) {
    for (std::size_t j = b.size(); j-- > 0;) {
      run[j + 1] = c == b[j] ? run[j] + 1 : 0;
      longest = std::max(longest, run[j + 1]);
    }
  }
  return longest;
}

scores share_contained(std::string_view answer, const prompt& asked) {
  return {{"score", share(references_contained(answer, asked), asked.references.size())}};
}

scores any_contained(std::string_view answer, const prompt& asked) {
  return {{"score", references_contained(answer, asked) > 0 ? 1.0 : 0.0}};
}

scores words_recalled(std::string_view answer, const prompt& asked) {
  const std::vector<std::string> expected = words_of(asked.references.front());
  std::vector<std::string> said = words_of(answer);
  if (said.size() > expected.size()) said.resize(expected.size());
  const auto right = std::ranges::mismatch(said, expected).in2 - expected.begin();
  return {{"score", share(longest_common_subsequence(said, expected), expected.size())},
          {"prefix", share(static_cast<std::size_t>(right), expected.size())}};
}

std::vector<std::string> content_words(std::string_view text) {
  std::vector<std::string> made;
  for (std::string& word : words_of(text))
    if (std::ranges::find(in_most_prose, word) == in_most_prose.end() && std::ranges::find(made, word) == made.end())
      made.push_back(std::move(word));
  return made;
}

scores gist_recalled(std::string_view answer, const prompt& asked) {
  const std::vector<std::string> given = words_of(asked.question + " " + asked.answer_begins);
  const std::vector<std::string> said = words_of(answer);
  std::size_t expected = 0, found = 0;
  for (const std::string& word : content_words(asked.references.front())) {
    if (std::ranges::find(given, word) != given.end()) continue;
    ++expected;
    if (std::ranges::find(said, word) != said.end()) ++found;
  }
  return {{"score", share(found, expected)}};
}

std::vector<std::string_view> names_in_code(std::string_view text) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto inner = [&](char c) { return (lower(c) >= 'a' && lower(c) <= 'z') || digit(c) || c == '_'; };
  std::vector<std::string_view> names;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    while (end < text.size() && inner(text[end])) ++end;
    const std::string_view name = text.substr(begin, end - begin);
    if (!name.empty() && !digit(name.front()) && std::ranges::find(in_most_code, name) == in_most_code.end())
      names.push_back(name);
    begin = end + 1;
  }
  return names;
}

scores code_recalled(std::string_view answer, const prompt& asked) {
  const std::string_view reference = asked.references.front();
  const std::string_view line = first_line(answer);
  const std::vector<std::string_view> expected = names_in_code(reference);
  std::vector<std::string_view> said = names_in_code(line);
  if (said.size() > expected.size()) said.resize(expected.size());
  const std::string_view as_long = line.substr(0, reference.size());
  return {{"score", share(longest_common_subsequence(said, expected), expected.size())},
          {"edit", share(2 * longest_common_subsequence(as_long, reference), as_long.size() + reference.size())}};
}

scores key_recalled(std::string_view answer, const prompt& asked) {
  const std::string& key = asked.references.front();
  std::string_view digits = answer;
  // Words may stand before the digits ("The pass key is ..."), a mistake may not.
  digits.remove_prefix(std::min(digits.find_first_of("0123456789"), digits.size()));
  const auto right = std::ranges::mismatch(digits, key).in2 - key.begin();
  return {{"score", contains(answer, key) ? 1.0 : 0.0},
          {"partial", share(longest_common_substring(answer, key), key.size())},
          {"prefix", share(static_cast<std::size_t>(right), key.size())}};
}

}  // namespace eval
