// The values of lagkv-npy's options: text -> numbers, or a message that names the culprit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include <lagkv/result.hpp>
#include <lagkv/simd/target.hpp>
#include <lagkv/view/rope.hpp>

namespace tool {

/// "300,1,1" or, for repeated steps, "300,1x400": tokens of each step, `tokens` together.
lagkv::result<std::vector<std::size_t>> parse_steps(std::string_view text, std::size_t tokens);

/// "3,17,40-63" (40 to 63): positions below `tokens`, ascending, each once.
lagkv::result<std::vector<std::uint32_t>> parse_positions(std::string_view text, std::size_t tokens);

struct layer_of_model {
  std::size_t index = 0, count = 1;
};

/// "2/30": the third of 30.
lagkv::result<layer_of_model> parse_layer(std::string_view text);

/// "halves" or "neighbours".
lagkv::result<lagkv::rope::pairing> parse_pairs(std::string_view text);

/// An instruction set that this machine has.
lagkv::result<lagkv::simd::target> parse_target(std::string_view text);

}  // namespace tool
