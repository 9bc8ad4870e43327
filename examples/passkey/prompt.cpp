#include "prompt.hpp"

#include <algorithm>
#include <array>
#include <random>
#include <stdexcept>

namespace passkey {
namespace {

constexpr std::size_t digits = 64;

constexpr std::string_view task =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n";
constexpr std::array<std::string_view, 5> noise = {"The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
                                                   "There and back again."};
constexpr std::string_view question = "\nWhat is the pass key?";
constexpr std::string_view answer_begins = "The pass key is ";

// mt19937_64 and the remainder, not a distribution: the same digits with every standard library.
std::string draw_key(std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::string key;
  while (key.size() < digits) key.push_back(static_cast<char>('0' + generator() % 10));
  return key;
}

std::string needle(const std::string& key) { return "The pass key is " + key + ". Remember it. " + key + " is the pass key."; }

// The haystack of that many sentences, the needle among them.
std::string text(const host::model& m, const prompt_options& options, const std::string& hidden, std::size_t sentences) {
  const auto place = static_cast<std::size_t>(static_cast<double>(sentences) * options.depth);
  std::string message(task);
  for (std::size_t i = 0; i <= sentences; ++i) {
    if (i == place) message.append(hidden).append(" ");
    if (i < sentences) message.append(noise[i % noise.size()]).append(" ");
  }
  message.append(question);
  if (!options.chat) return message.append(" ").append(answer_begins);
  return m.chat(message).append(answer_begins);
}

}  // namespace

prompt make_prompt(const host::model& m, const prompt_options& options) {
  prompt made;
  made.key = draw_key(options.seed);
  const std::string hidden = needle(made.key);
  const auto tokens = [&](std::size_t sentences) { return m.tokenize(text(m, options, hidden, sentences)); };

  const std::size_t least = tokens(0).size();
  if (least > options.length)
    throw std::invalid_argument("length " + std::to_string(options.length) + ": the key and the question alone take " +
                                std::to_string(least) + " tokens");
  std::size_t fits = 0;
  std::size_t too_many = options.length;  // a sentence is more than a token
  while (fits + 1 < too_many) {
    const std::size_t middle = fits + (too_many - fits) / 2;
    (tokens(middle).size() <= options.length ? fits : too_many) = middle;
  }
  made.tokens = tokens(fits);

  const auto found = m.find(made.tokens, hidden);
  if (!found) throw std::runtime_error("this model's tokenizer does not give the pass key back");
  made.needle_begin = found->first, made.needle_end = found->second;
  return made;
}

std::size_t digits_recalled(std::string_view answer, std::string_view key) {
  // Words may stand before the digits ("The pass key is ..."), a mistake may not.
  answer.remove_prefix(std::min(answer.find_first_of("0123456789"), answer.size()));
  std::size_t right = 0;
  while (right < std::min(answer.size(), key.size()) && answer[right] == key[right]) ++right;
  return right;
}

}  // namespace passkey
