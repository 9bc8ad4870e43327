// Caches of more than 2^32 elements: addresses that are reserved, of which only the rows in use are ever touched.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::dtype;

constexpr std::size_t heads = 2, tokens = 200, channels = 32;

class reserved {
 public:
  explicit reserved(std::size_t bytes)
      : size_(bytes), data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  reserved(const reserved&) = delete;
  reserved& operator=(const reserved&) = delete;
  ~reserved() {
    if (*this) munmap(data_, size_);
  }
  explicit operator bool() const { return data_ != MAP_FAILED; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  std::size_t size_;
  void* data_;
};

/// Fills the view with random bytes and a dense copy with the same, steps both, and compares every row.
template <class T>
void expect_like_dense(const lagkv::tensor& far, const char* what) {
  constexpr std::size_t units = channels / lagkv::elements_of(lagkv::dtype_of<T>::value), row = units * sizeof(T);
  std::vector<T> dense(heads * tokens * units);
  std::mt19937 random(1);
  const auto row_of = [&](std::size_t h, std::size_t t) { return far.at(h, {t, t + 1}).data; };
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t) {
      T* to = dense.data() + (h * tokens + t) * units;
      auto* bytes = reinterpret_cast<std::uint8_t*>(to);
      for (std::size_t b = 0; b < row; ++b) bytes[b] = static_cast<std::uint8_t>(random() % 60);  // finite in every type
      std::memcpy(row_of(h, t), to, row);
    }
  const lagkv::tensor near = lagkv::strided<T>(
      dense.data(), {heads, channels}, {static_cast<std::ptrdiff_t>(tokens * units), static_cast<std::ptrdiff_t>(units)}, tokens);
  for (const char* text : {"lagkv:sink=3,lag=32,ratio=0.4,value_weight=0", "key_diff:sink=3,keep=0.6"}) {
    const lagkv::policy p = named(text);
    ASSERT_EQ(check(p, {far, {}, tokens}).message(), "") << what;
    lagkv::workspace a, b;
    lagkv::cursor at_a, at_b;
    ASSERT_EQ(compress(p, {far, {}, tokens}, at_a, a), compress(p, {near, {}, tokens}, at_b, b)) << what;
    EXPECT_EQ(lagkv::last_plan(a).kept, lagkv::last_plan(b).kept) << what;
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t t = 0; t < tokens; ++t)
        ASSERT_EQ(std::memcmp(row_of(h, t), dense.data() + (h * tokens + t) * units, row), 0)
            << what << " head " << h << " row " << t;
  }
}

template <class T>
void heads_and_rows_far_apart(const char* what) {
  // Heads 2^33 units apart, rows 2^25: the last row of head 0 lies beyond 2^32, that of head 1 beyond 2^33.
  constexpr std::ptrdiff_t head = std::ptrdiff_t{1} << 33, token = std::ptrdiff_t{1} << 25;
  const reserved memory(static_cast<std::size_t>(2 * head) * sizeof(T));
  if (!memory) GTEST_SKIP() << "addresses cannot be reserved here";
  expect_like_dense<T>(lagkv::strided<T>(memory.as<T>(), {heads, channels}, {head, token}, tokens), what);
  // Backwards from the end.
  expect_like_dense<T>(lagkv::strided<T>(memory.as<T>() + 2 * head - 64, {heads, channels}, {-head, -token}, tokens), what);
}

TEST(large, strides_beyond_32_bits) {
  heads_and_rows_far_apart<float>("f32");
  heads_and_rows_far_apart<lagkv::f16>("f16");
  heads_and_rows_far_apart<std::int8_t>("int8");
  heads_and_rows_far_apart<lagkv::q8_0>("q8_0");
}

TEST(large, pools_beyond_32_bits) {
  constexpr std::ptrdiff_t block = std::ptrdiff_t{1} << 28;
  constexpr std::size_t pool = 40;  // blocks of 8 tokens; the last begins beyond 2^33
  const reserved memory(pool * static_cast<std::size_t>(block) * sizeof(lagkv::f16));
  if (!memory) GTEST_SKIP() << "addresses cannot be reserved here";
  std::vector<std::int32_t> table(pool);
  std::iota(table.rbegin(), table.rend(), 0);
  table.resize(tokens / 8);
  const lagkv::block_layout layout{.tokens = 8, .block = block, .within = {channels, heads * channels}, .pool_blocks = pool};
  expect_like_dense<lagkv::f16>(
      lagkv::paged<lagkv::f16>(memory.as<lagkv::f16>(), {heads, channels}, layout, std::span<const std::int32_t>(table)),
      "paged");
}

TEST(large, a_scale_a_row_far_from_the_next) {
  constexpr std::ptrdiff_t token = std::ptrdiff_t{1} << 25;
  const reserved memory(static_cast<std::size_t>(token) * tokens * sizeof(float) * heads);
  if (!memory) GTEST_SKIP() << "addresses cannot be reserved here";
  std::vector<std::uint8_t> bytes(heads * tokens * channels, 7);
  const lagkv::strided<float> scales(memory.as<float>(), {heads, 1}, {token * static_cast<std::ptrdiff_t>(tokens), token},
                                     tokens);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t) memory.as<float>()[(h * tokens + t) << 25] = static_cast<float>(h * 1000 + t);
  const lagkv::tensor x =
      lagkv::scaled(lagkv::strided<std::uint8_t>(bytes.data(), {heads, channels}, {tokens * channels, channels}, tokens), scales);
  lagkv::workspace ws;
  lagkv::cursor at;
  const std::size_t left = compress(named("key_norm:sink=3,keep=0.5"), {x, {}, tokens}, at, ws);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < left; ++t)
      EXPECT_EQ(x.scale_of(h, t).factor, static_cast<float>(h * 1000 + lagkv::last_plan(ws).source(h, t)));
}

// More than 2^24 chunks: their order is no rank in f32.
TEST(large, more_chunks_than_f32_has_whole_numbers) {
  constexpr std::size_t n = (std::size_t{1} << 24) + 1000;
  std::vector<float> keys(n);
  std::uint32_t x = 1;
  for (float& k : keys) x = x * 1664525 + 1013904223, k = static_cast<float>(x >> 8);
  const lagkv::layer l{lagkv::strided<float>(keys.data(), {1, 1}, {static_cast<std::ptrdiff_t>(n), 1}, n), {}, n};
  const lagkv::policy p = named("key_norm:select=chunks,chunk=1,keep=0.9995");
  ASSERT_EQ(check(p, l).message(), "");
  lagkv::workspace ws;
  const lagkv::plan& plan = lagkv::plan_eviction(p, l, {}, ws);
  const auto kept = plan.of(0);
  ASSERT_EQ(plan.tokens_after(), lagkv::share_of(0.9995, n));
  float least_dropped = 3e38F, most_kept = 0;  // short keys stay
  std::size_t next = plan.candidates.begin;
  for (const std::uint32_t row : kept) {
    ASSERT_GE(row, next) << "ascending";
    for (; next < row; ++next) least_dropped = std::min(least_dropped, keys[next]);
    most_kept = std::max(most_kept, keys[row]), next = row + 1;
  }
  EXPECT_LE(most_kept, least_dropped);
}

// A rank of 1 would be no share of those above it: divided by a weight of 0 it is no number.
TEST(large, ranks_of_more_scores_than_f32_has_whole_numbers_stay_below_1) {
  std::vector<float> scores((std::size_t{1} << 24) + 1000);
  std::iota(scores.begin(), scores.end(), 0.0F);
  lagkv::workspace ws;
  lagkv::detail::rank(scores, ws);
  EXPECT_LT(*std::max_element(scores.begin(), scores.end()), 1);
  EXPECT_EQ(*std::min_element(scores.begin(), scores.end()), 0);
}

}  // namespace
