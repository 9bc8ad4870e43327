// What a file holds.
#pragma once

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace eval {

/// Throws std::invalid_argument where it cannot be read.
[[nodiscard]] inline std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::invalid_argument(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace eval
