// Answers against references.
#include "tasks/scoring.hpp"

#include <algorithm>
#include <string>
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

std::size_t longest_common_subsequence(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::size_t> best(b.size() + 1);  // best[j]: of a's words so far and the first j of b
  for (const std::string& word : a) {
    std::size_t diagonal = 0;  // best[j] before this word
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t with = diagonal + (word == b[j] ? 1 : 0);
      diagonal = best[j + 1];
      best[j + 1] = std::max({with, best[j], diagonal});
    }
  }
  return best.back();
}

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
