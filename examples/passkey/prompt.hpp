// The 64-digit pass key task (longctx_bench): a key hidden in noise, and the question for it.
#pragma once

#include "host/model.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace passkey {

/// What to ask for.
struct prompt_options {
  std::size_t length = 4500;  ///< tokens of the whole prompt at most, counted with the model's tokenizer
  double depth = 0.5;         ///< where the needle stands: 0 = first sentence, 1 = last
  std::uint64_t seed = 42;    ///< draws the digits
  bool chat = true;           ///< wrapped in the model's chat template
};

/// A prompt ready to be fed.
struct prompt {
  std::vector<llama_token> tokens;
  std::string key;               ///< the 64 digits
  std::size_t needle_begin = 0;  ///< the needle sentence is tokens [needle_begin, needle_end)
  std::size_t needle_end = 0;
};

/// The longest prompt of at most `length` tokens. Throws std::invalid_argument when the length has no room for
/// the needle and the question.
[[nodiscard]] prompt make_prompt(const host::model& m, const prompt_options& options);

/// How many digits at the start of the answer are the key's, up to the first mistake.
[[nodiscard]] std::size_t digits_recalled(std::string_view answer, std::string_view key);

}  // namespace passkey
