// What the demo asks of the library: one policy at work on one sequence. Everything of lagkv is behind this header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>

#include "model.hpp"

namespace passkey {

/// What one call of compressor::compress did.
struct compression {
  std::size_t tokens_before = 0;  ///< in the cache; the same for all layers and heads
  std::size_t tokens_after = 0;
  std::size_t bytes_before = 0;  ///< of keys and values
  std::size_t bytes_after = 0;
  double seconds = 0;
};

/// Original positions of the tokens that are still cached, kept[layer][head], ascending.
using kept_positions = std::vector<std::vector<std::vector<std::uint32_t>>>;

/// One policy at work on sequence 0 of a session. A new one is made for every sequence: it carries the cursor.
class compressor {
 public:
  /// What is wrong with a policy string, in one line; nothing when it can be used. Beside lagkv's own strings there is
  /// `full`, which keeps everything.
  [[nodiscard]] static std::optional<std::string> check(const std::string& policy);

  /// Before a prompt that all these policies share: has the session record what any of them reads. Throws
  /// std::invalid_argument where llama.cpp's cache cannot hold what one keeps.
  static void prepare(session& s, const std::vector<std::string>& policies);

  /// The policy must have passed `check`. `restored` is what the sequence was restored from, null if it was not.
  /// `follow` has the original positions kept, for a picture, at a little time a compression.
  compressor(session& s, const std::string& policy, const saved_sequence* restored, bool follow);

  /// Offers all cached tokens of the sequence to the policy: after the prompt, after each chunk of it, and after
  /// each token of the answer. The sequence can be decoded on afterwards as if nothing had happened.
  /// Throws std::runtime_error where llama.cpp's cache is of a kind that cannot be compressed.
  compression compress();

  /// Which tokens are left; empty unless they were followed.
  [[nodiscard]] kept_positions kept() const;

 private:
  void append(std::vector<std::uint32_t>& positions, std::size_t tokens) const;
  void follow(std::size_t layer, const lagkv::plan& plan);

  lagkv::llama::compressor compressor_;
  bool follow_;
  kept_positions kept_;
};

}  // namespace passkey
