// What a program around llama.cpp asks of the library: one policy at work on one sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/methods.hpp>

#include "model.hpp"

namespace host {

/// A policy and the string it was made of.
struct named_policy {
  std::string name;
  lagkv::policy rules;
  lagkv::llama::before_moving change{};  ///< what is done to each layer before its rows move; empty: nothing
};

/// One of lagkv's policy strings. Throws std::invalid_argument that says what is wrong.
[[nodiscard]] named_policy parse(const std::string& text, std::span<const lagkv::method_entry* const> known = lagkv::methods());

/// What has been counted of the session's model, as far as the policy reads it: without statistics of queries it takes those of
/// the prompt.
[[nodiscard]] calibration counted_for(const session& s, const lagkv::policy& rules);

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
  /// Before a prompt that all these policies share: has the session record what any of them reads. Throws
  /// std::invalid_argument where llama.cpp's cache cannot hold what one keeps, unless its heads keep different numbers.
  static void prepare(session& s, std::span<const named_policy> policies);

  /// `restored` is what the sequence was restored from, null if it was not. `follow` has the original positions kept, for a
  /// picture, at a little time a compression.
  compressor(session& s, const named_policy& policy, const saved_sequence* restored, bool follow);

  /// Offers all cached tokens of the sequence to the policy: after the prompt, after each chunk of it, and after
  /// each token of the answer. The sequence can be decoded on afterwards as if nothing had happened.
  /// Throws std::runtime_error where llama.cpp's cache is of a kind that cannot be compressed.
  compression compress();

  /// Puts the rows into adjacent cells, so that tokens are decoded as fast as their number allows. Seconds that it took. Throws
  /// as compress() does.
  double defragment();

  /// Which tokens are left; empty unless they were followed.
  [[nodiscard]] kept_positions kept() const;

 private:
  static void append(std::vector<std::uint32_t>& positions, std::size_t tokens, std::size_t dropped);
  void follow(std::size_t layer, const lagkv::plan& plan, std::size_t dropped);

  lagkv::llama::compressor compressor_;
  bool follow_;
  kept_positions kept_;
};

}  // namespace host
