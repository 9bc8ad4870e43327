// The saved state of a llama.cpp sequence, of anyone's making: parsed, read, and written again with some of its rows.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include <lagkv/adapters/llama.hpp>

#include "input.hpp"

namespace {

using fuzz::expect;
using lagkv::llama::matrix;
using lagkv::llama::saved_sequence;

/// All rows of a side lie in the state.
void expect_within(const matrix& m, std::size_t tokens, std::span<const std::uint8_t> state) {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(state.data()), at = reinterpret_cast<std::uintptr_t>(m.data);
  expect(m.width > 0 && at >= begin && at - begin <= state.size());
  expect(lagkv::llama::row_bytes(m) <= (state.size() - (at - begin)) / tokens);
}

void expect_sound(const saved_sequence& s, std::span<const std::uint8_t> state) {
  expect(s.tokens() > 0 && s.layers() > 0 && s.positions().size() == s.tokens());
  for (std::size_t i = 0; i < s.tokens(); ++i) {
    expect(s.positions()[i] >= (i == 0 ? 0 : s.positions()[i - 1]));
    expect(static_cast<std::size_t>(s.cells()[i]) < s.tokens());
  }
  for (std::size_t l = 0; l < s.layers(); ++l) {
    expect_within(s.keys(l), s.tokens(), state);
    if (s.has_values()) expect_within(s.values(l), s.tokens(), state);
  }
  expect(s.payload_bytes() <= state.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::input in(data, size);
  const std::size_t first = in.take<std::uint8_t>(), kept = in.take<std::uint8_t>(),
                    rest = in.below(2) == 0 ? 0 : ~std::size_t{0};
  if (in.empty()) return 0;
  std::vector<std::uint8_t> state(data + 3, data + size);
  const lagkv::result<saved_sequence> s = saved_sequence::parse(state, rest);
  expect(static_cast<bool>(s) == s.message().empty());
  if (!s) return 0;
  expect_sound(*s, state);

  const std::size_t begin = std::min(first, s->tokens() - 1), candidates = s->tokens() - begin;
  lagkv::plan some;
  some.reset({begin, begin + candidates}, s->tokens(), 1, std::max<std::size_t>(1, std::min(kept, candidates)));
  std::iota(some.row(0), some.row(0) + some.of(0).size(), static_cast<std::uint32_t>(begin));
  std::vector<std::uint8_t> left = s->rebuilt(std::vector<lagkv::plan>(s->layers(), some));
  const lagkv::result<saved_sequence> again = saved_sequence::parse(left, rest);
  if (!again && rest != 0) return 0;  // of an unknown end more than one form may fit
  expect(static_cast<bool>(again));
  if (again->layers() != s->layers() || again->added_to_cell() != s->added_to_cell()) return 0;
  expect_sound(*again, left);
  expect(again->tokens() == some.tokens_after());
  for (std::size_t l = 0; l < s->layers(); ++l) {
    const std::size_t n = lagkv::llama::row_bytes(s->keys(l));
    const auto* from = static_cast<const std::uint8_t*>(s->keys(l).data) + static_cast<std::size_t>(s->cells()[begin]) * n;
    expect(std::memcmp(static_cast<const std::uint8_t*>(again->keys(l).data) + begin * n, from, n) == 0);
  }
  return 0;
}
