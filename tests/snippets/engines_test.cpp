// The code of docs/engines.md on memory laid out as the engine's: the rows that stay lie where the engine looks for them, and its
// own lists are right afterwards.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "engines/includes.inc"

#pragma GCC diagnostic ignored "-Wshadow"  // numbers of the page under one name, in another type where the engine has another

namespace {

const std::size_t heads = 2, d = 32, model_layers = 3, before = 75;
const lagkv::policy policy = *lagkv::parse("key_diff:sink=3,keep=0.25");
const std::size_t after = 3 + 32;  // sinks and window are more than a quarter of 75: all between goes

/// Where an engine has channel c of token t of a head, in the array of its keys or its values.
using place = std::function<std::size_t(std::size_t head, std::size_t token, std::size_t channel)>;

/// The caches of all layers, each a value of its own: keys at 2 * layer, values behind.
class memory {
 public:
  memory(std::size_t units, place keys, place values) : at_{std::move(keys), std::move(values)} {
    std::mt19937 random(1);
    for (std::size_t i = 0; i < 2 * model_layers; ++i) {
      arrays_.emplace_back(units);
      for (auto& x : arrays_.back()) x = static_cast<std::uint16_t>(0x3c00 + random() % 0x300);  // around 1, as f16 and as bf16
    }
    were_ = arrays_;
  }

  std::uint16_t* operator[](std::size_t i) { return arrays_[i].data(); }

  /// Rows in use are the sinks and the last tokens of what was there, wherever the engine finds them.
  void expect_kept() const {
    for (std::size_t i = 0; i < arrays_.size(); ++i)
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t t = 0; t < after; ++t)
          for (std::size_t c = 0; c < d; ++c) {
            const place& at = at_[i % 2];
            ASSERT_EQ(arrays_[i][at(h, t, c)], were_[i][at(h, t < 3 ? t : t + before - after, c)]) << i << ' ' << h << ' ' << t;
          }
  }

 private:
  std::array<place, 2> at_;
  std::vector<std::vector<std::uint16_t>> arrays_, were_;
};

/// The page's hosts give up by returning this.
std::string refuse(const std::string& why) { return why; }

struct state {
  std::vector<lagkv::cursor> cursors = std::vector<lagkv::cursor>(model_layers);
  lagkv::workspace workspace;
  std::size_t tokens = before;

  void expect_after() const {
    EXPECT_EQ(tokens, after);
    for (const lagkv::cursor& c : cursors) {
      EXPECT_EQ(c.tokens, after);
      EXPECT_EQ(c.seen(), before);
    }
  }
};

std::string vllm(state& s, memory& m, std::vector<std::int32_t>& table, std::vector<std::int32_t>& free_blocks) {
  auto& [cursors, workspace, tokens] = s;
  const std::size_t block = 16, blocks = 12;
  std::vector<std::pair<std::uint16_t*, std::uint16_t*>> kv_caches;
  for (std::size_t i = 0; i < model_layers; ++i) kv_caches.emplace_back(m[2 * i], m[2 * i + 1]);
#include "engines/vllm-1.inc"
  return "";
}

TEST(engines, vllm) {
  std::vector<std::int32_t> table{7, 8, 2, 11, 4}, free_blocks{1};
  const std::vector<std::int32_t> was = table;
  const auto block = [&](std::size_t h, std::size_t t) { return (static_cast<std::size_t>(was[t / 16]) * heads + h) * 16 * d; };
  memory m(12 * heads * 16 * d, [&](auto h, auto t, auto c) { return block(h, t) + c * 16 + t % 16; },
           [&](auto h, auto t, auto c) { return block(h, t) + t % 16 * d + c; });
  state s;
  ASSERT_EQ(vllm(s, m, table, free_blocks), "");
  s.expect_after();
  m.expect_kept();
  EXPECT_EQ(table, (std::vector<std::int32_t>{7, 8, 2}));
  EXPECT_EQ(free_blocks, (std::vector<std::int32_t>{1, 4, 11}));
  s.cursors.pop_back();
  EXPECT_NE(vllm(s, m, table, free_blocks), "") << "a cursor is missing";
}

std::string sglang(state& s, memory& m, const std::vector<std::int32_t>& req_to_token, std::vector<std::int32_t>& free_slots) {
  auto& [cursors, workspace, tokens] = s;
  const std::size_t slots = 100, max_context = 80, request = 1;
  std::vector<std::uint16_t*> k_buffer, v_buffer;
  for (std::size_t i = 0; i < model_layers; ++i) k_buffer.push_back(m[2 * i]), v_buffer.push_back(m[2 * i + 1]);
#include "engines/sglang-1.inc"
  return "";
}

TEST(engines, sglang) {
  std::vector<std::int32_t> table(160, 0), free_slots;
  for (std::size_t t = 0; t < before; ++t) table[80 + t] = static_cast<std::int32_t>(1 + t * 7 % 99);
  const place at = [&](auto h, auto t, auto c) { return (static_cast<std::size_t>(table[80 + t]) * heads + h) * d + c; };
  memory m(100 * heads * d, at, at);
  state s;
  ASSERT_EQ(sglang(s, m, table, free_slots), "");
  s.expect_after();
  m.expect_kept();
  EXPECT_EQ(free_slots, std::vector<std::int32_t>(table.begin() + 80 + after, table.begin() + 80 + before));
}

std::string openvino(state& s, memory& m, std::vector<std::int32_t>& block_indices, std::vector<std::int32_t>& free_blocks) {
  auto& [cursors, workspace, tokens] = s;
  const std::size_t blocks = 12;
  std::vector<std::pair<std::uint16_t*, std::uint16_t*>> caches;
  for (std::size_t i = 0; i < model_layers; ++i) caches.emplace_back(m[2 * i], m[2 * i + 1]);
#include "engines/openvino-1.inc"
  return "";
}

TEST(engines, openvino) {
  std::vector<std::int32_t> blocks{9, 3, 4}, free_blocks;
  const std::vector<std::int32_t> was = blocks;
  const place at = [&](auto h, auto t, auto c) {
    return ((static_cast<std::size_t>(was[t / 32]) * heads + h) * 32 + t % 32) * d + c;
  };
  memory m(12 * heads * 32 * d, at, at);
  state s;
  ASSERT_EQ(openvino(s, m, blocks, free_blocks), "");
  s.expect_after();
  m.expect_kept();
  EXPECT_EQ(blocks, (std::vector<std::int32_t>{9, 3}));
  EXPECT_EQ(free_blocks, std::vector<std::int32_t>{4});
}

TEST(engines, pytorch) {
  const std::vector<std::size_t> sizes{3, heads, 80, d}, strides{heads * 80 * d, d, heads * d, 1};  // a transposed tensor
  for (std::size_t wanted = 0; wanted < 3; ++wanted) {
    const place at = [&](auto h, auto t, auto c) { return wanted * strides[0] + h * strides[1] + t * strides[2] + c; };
    memory m(3 * heads * 80 * d, at, at);
    state s;
    auto& [cursors, workspace, tokens] = s;
    for (std::size_t layer = 0; layer < model_layers; ++layer) {
      tokens = before, cursors.assign(3, {});
      std::uint16_t *keys = m[2 * layer], *values = m[2 * layer + 1];
#include "engines/pytorch-and-transformers-1.inc"
    }
    s.expect_after();
    m.expect_kept();
  }
}

std::string own(std::vector<float>& array, lagkv::policy policy, std::vector<lagkv::cursor>& cursors, std::size_t& row,
                std::size_t& position) {
  lagkv::workspace workspace;
  const std::size_t capacity = 80;
  std::size_t tokens = before;
  float* const cache = array.data();
#include "engines/an-engine-of-your-own-1.inc"
  row = next_row, position = next_position;
  return "";
}

TEST(engines, own) {
  std::vector<float> cache(2 * model_layers * heads * 80 * d);
  std::iota(cache.begin(), cache.end(), 0.0F);
  const std::vector<float> was = cache;
  std::vector<lagkv::cursor> cursors(model_layers);
  std::size_t row = 0, position = 0;
  ASSERT_EQ(own(cache, policy, cursors, row, position), "");
  EXPECT_EQ(row, after);
  EXPECT_EQ(position, before);
  for (std::size_t head = 0; head < 2 * model_layers * heads; ++head) {
    EXPECT_EQ(cache[head * 80 * d], was[head * 80 * d]);
    EXPECT_EQ(cache[(head * 80 + 3) * d], was[(head * 80 + 3 + before - after) * d]);
  }
  cursors.assign(model_layers, {});
  EXPECT_NE(own(cache, *lagkv::parse("novelty:keep=0.25"), cursors, row, position), "") << "it reads how keys were rotated";
}

}  // namespace
