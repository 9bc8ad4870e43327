// A conversation in a file: what llama.cpp says of the sequence, and how far it has been compressed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>

namespace chat {

struct saved_chat {
  std::vector<std::uint8_t> state;
  lagkv::llama::checkpoint beside{};
};

/// Throws std::runtime_error with one readable line.
void write(const std::string& path, const saved_chat& s);

/// Throws std::runtime_error where the file cannot be read, is no such file, or ends too early.
[[nodiscard]] saved_chat read(const std::string& path);

}  // namespace chat
