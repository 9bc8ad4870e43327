// Saved states of anyone's making: what is no state is refused with the number that is wrong, and what is parsed lies within its
// bytes. States are made by hand here, in every form; no model is run.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <lagkv/adapters/llama/state.hpp>

namespace {

using bytes = std::vector<std::uint8_t>;
using lagkv::llama::matrix;
using lagkv::llama::saved_sequence;

struct form {
  const char* name;
  std::uint32_t tokens = 3, layers = 2, width = 4, streams = 1;
  ggml_type type = GGML_TYPE_F16;
  bool transposed = false, older = false, values = true;
  std::size_t added = 0;  ///< bytes a cell
};

const form forms[] = {{.name = "flash"},
                      {.name = "transposed", .transposed = true},
                      {.name = "f32", .type = GGML_TYPE_F32},
                      {.name = "blocks", .layers = 1, .width = 32, .type = GGML_TYPE_Q8_0},
                      {.name = "older", .older = true},
                      {.name = "no_values", .values = false},
                      {.name = "more_in_a_cell", .added = 8},
                      {.name = "streams", .streams = 3}};

template <class T>
void put(bytes& to, T x) {
  const auto* p = reinterpret_cast<const std::uint8_t*>(&x);
  to.insert(to.end(), p, p + sizeof x);
}

bytes state_of(const form& f) {
  bytes b;
  if (!f.older) put(b, std::uint32_t{0xaf143c1d}), put(b, llama_seq_id{0});
  put(b, f.streams), put(b, f.tokens);
  for (std::uint32_t i = 0; i < f.tokens; ++i) {
    put(b, static_cast<llama_pos>(i)), put(b, std::uint32_t{1});
    b.resize(b.size() + f.added);
    put(b, llama_seq_id{0});
  }
  put(b, std::uint32_t{f.transposed}), put(b, f.layers);
  const std::size_t row = ggml_row_size(f.type, f.width);
  const auto side = [&](bool columns) {
    for (std::uint32_t l = 0; l < f.layers; ++l) {
      put(b, static_cast<std::int32_t>(f.type));
      if (columns)
        put(b, static_cast<std::uint32_t>(ggml_type_size(f.type))), put(b, f.width);
      else
        put(b, std::uint64_t{row});
      for (std::size_t i = 0; i < row * f.tokens; ++i) b.push_back(static_cast<std::uint8_t>(i * 37));
    }
  };
  side(false);
  if (f.values) side(f.transposed);
  for (std::uint32_t s = 1; s < f.streams; ++s) put(b, std::uint32_t{0});
  return b;
}

void expect_within(const saved_sequence& s, const bytes& state) {
  const auto within = [&](const matrix& m) {
    const auto* data = static_cast<const std::uint8_t*>(m.data);
    ASSERT_GE(data, state.data());
    ASSERT_LE(data, state.data() + state.size());
    ASSERT_LE(lagkv::llama::row_bytes(m) * s.tokens(), static_cast<std::size_t>(state.data() + state.size() - data));
  };
  ASSERT_GT(s.tokens(), 0U);
  for (std::size_t l = 0; l < s.layers(); ++l) {
    within(s.keys(l));
    if (s.has_values()) within(s.values(l));
  }
  for (const llama_pos p : s.positions()) ASSERT_TRUE(p >= 0 && p < (std::numeric_limits<llama_pos>::max)()) << p;
}

std::string refusal(bytes state) { return saved_sequence::parse(state).message(); }

class States : public testing::TestWithParam<form> {};

TEST_P(States, AreParsedWhole) {
  bytes b = state_of(GetParam());
  const auto s = saved_sequence::parse(b);
  ASSERT_TRUE(s) << s.message();
  EXPECT_EQ(s->tokens(), GetParam().tokens);
  EXPECT_EQ(s->layers(), GetParam().layers);
  EXPECT_EQ(s->has_values(), GetParam().values);
  EXPECT_EQ(s->added_to_cell(), GetParam().added);
  expect_within(*s, b);
}

TEST_P(States, ThatEndTooEarlyOrTooLateAreRefused) {
  const bytes b = state_of(GetParam());
  form keys_only = GetParam();
  keys_only.values = false;
  for (std::size_t n = 0; n < b.size(); ++n) {
    const bytes some(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(n));
    if (some == state_of(keys_only)) continue;  // that of a cache without values
    EXPECT_NE(refusal(some), "") << n;
  }
  bytes longer = b;
  longer.push_back(0);
  EXPECT_NE(refusal(longer), "");
}

TEST_P(States, WithAnyNumberAnywhereAreRefusedOrSound) {
  const bytes b = state_of(GetParam());
  for (std::size_t at = 0; at + 8 <= b.size(); ++at)
    for (const std::uint64_t x :
         {0ULL, 1ULL, 2ULL, 0x7fffffffULL, 0x80000000ULL, 0xffffffffULL, 0x100000000ULL, 1ULL << 63, ~0ULL, ~0ULL / 34 * 34})
      for (const std::size_t size : {std::size_t{4}, std::size_t{8}}) {
        bytes changed = b;
        std::memcpy(changed.data() + at, &x, size);
        for (const std::size_t rest : {std::size_t{0}, saved_sequence::unknown_rest}) {
          const auto s = saved_sequence::parse(changed, rest);
          ASSERT_EQ(static_cast<bool>(s), s.message().empty());
          if (s) expect_within(*s, changed);
        }
      }
}

INSTANTIATE_TEST_SUITE_P(All, States, testing::ValuesIn(forms), [](const auto& i) { return std::string(i.param.name); });

TEST(State, PositionsThatNoneHasAreNamed) {
  const bytes good = state_of(forms[0]);
  for (const llama_pos p :
       {llama_pos{-1}, llama_pos{-5}, (std::numeric_limits<llama_pos>::min)(), (std::numeric_limits<llama_pos>::max)()})
    for (const std::size_t cell : {std::size_t{0}, std::size_t{2}}) {
      bytes b = good;
      std::memcpy(b.data() + 16 + cell * lagkv::llama::state_cell, &p, sizeof p);
      EXPECT_EQ(refusal(b),
                "state: cell " + std::to_string(cell) + " has position " + std::to_string(p) + ": must be from 0 to 2147483646");
    }
}

}  // namespace
