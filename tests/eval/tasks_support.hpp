// Prompts for the tests of the tasks, counted by bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.hpp"

namespace support {

/// Four bytes a token.
inline std::size_t bytes_counted(std::string_view text) { return (text.size() + 3) / 4; }

inline eval::request request_of(std::size_t length, std::size_t sample = 0, std::uint64_t seed = 42) {
  eval::request made;
  made.length = length;
  made.sample = sample;
  made.seed = seed;
  made.count = bytes_counted;
  return made;
}

inline const eval::task& task_named(std::string_view name) {
  const std::span<const eval::task> all = eval::all_tasks();
  return *std::ranges::find(all, name, &eval::task::name);
}

inline std::string whole(const eval::prompt& p) {
  return p.context + p.question + (p.answer_begins.empty() ? "" : " ") + p.answer_begins;
}

inline std::size_t tokens_taken(const eval::task& t, const eval::prompt& p) { return bytes_counted(whole(p)) + t.new_tokens; }

inline std::size_t times_in(std::string_view text, std::string_view part) {
  std::size_t times = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++times;
  return times;
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

inline std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream in(text);
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

/// Whether a text has a form: a small letter for each 'a', a capital for 'A', a digit for '0', a hexadecimal one for 'x',
/// anything else as it stands.
inline bool has_form(std::string_view text, std::string_view form) {
  const auto fits = [](char c, char f) {
    if (f == 'a') return c >= 'a' && c <= 'z';
    if (f == 'A') return c >= 'A' && c <= 'Z';
    if (f == '0') return c >= '0' && c <= '9';
    if (f == 'x') return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    return c == f;
  };
  return std::ranges::equal(text, form, fits);
}

/// The text between two others, from the first of `before` on; empty where they do not stand there.
inline std::string between(std::string_view text, std::string_view before, std::string_view after) {
  const std::size_t at = text.find(before);
  if (at == std::string_view::npos) return {};
  const std::size_t end = text.find(after, at + before.size());
  if (end == std::string_view::npos) return {};
  return std::string(text.substr(at + before.size(), end - at - before.size()));
}

/// What std::invalid_argument says; empty where nothing is thrown.
template <typename F>
std::string complaint(F f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

}  // namespace support
