#include "glue.hpp"

#include <cstdio>
#include <vector>

#ifdef EXPECT_CXX17
static_assert(__cplusplus < 202002L, "this file is to be built as C++17");
#endif

int main() {
  std::vector<std::uint16_t> keys(2 * 100 * 8), values(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<std::uint16_t>(0x3c00 + i * 37 % 512), values[i] = keys[i];
  const std::size_t left = compress(keys.data(), values.data(), 2, 8, 100, 100);
  std::printf("%zu tokens left, %s\n", left, instructions());
  return left == 4 + 5 * 4 + 16 ? 0 : 1;
}
