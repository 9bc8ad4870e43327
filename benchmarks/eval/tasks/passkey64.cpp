// The 64-digit pass key of longctx_bench: a key in noise, at a depth that the request names.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <stdexcept>

namespace eval {
namespace {

constexpr std::string_view name = "passkey64";
constexpr std::size_t new_tokens = 80;
constexpr std::size_t digits = 64;

std::string draw_key(draws random) {
  std::string key;
  while (key.size() < digits) key.push_back(static_cast<char>('0' + static_cast<char>(random.below(10))));
  return key;
}

prompt make(const request& asked) {
  if (!(asked.depth >= 0 && asked.depth <= 1))
    throw std::invalid_argument("passkey64: depth " + std::to_string(asked.depth) + " is not within 0 to 1");
  const std::string key = draw_key(draws(asked.seed, name, asked.sample));

  prompt frame;
  frame.question = "\nWhat is the pass key?";
  frame.answer_begins = "The pass key is ";
  frame.references = {key};
  frame.needles = {"The pass key is " + key + ". Remember it. " + key + " is the pass key."};
  return fit(asked, name, new_tokens, {}, [&](std::size_t words) {
    prompt made = frame;
    made.context =
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the "
        "important information there.\n" +
        hide_in_noise(words, frame.needles[0], asked.depth);
    return made;
  });
}

}  // namespace

task passkey64() {
  return {.name = name,
          .meaning = "a key of 64 digits in noise, at a chosen depth",
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = key_recalled};
}

}  // namespace eval
