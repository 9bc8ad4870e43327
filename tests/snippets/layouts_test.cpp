// The code of docs/layouts.md, with numbers that are known only at run time, as an engine has them: it compiles with any integer
// type, and shows a layer. tests/layouts_test.cpp compares what compress() does to such memory, byte for byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "layouts/includes.inc"

#pragma GCC diagnostic ignored "-Wshadow"  // numbers of the page under one name, in another type where plans are counted

namespace {

volatile int one = 1;  // no constant: what is made of it is a number of run time

const int heads = 2 * one, d = 32 * one, block = 16 * one, blocks = 12 * one;
const std::size_t tokens = 75;

const lagkv::policy policy = *lagkv::parse("key_diff:sink=3,keep=0.25");
const std::size_t sinks_and_window = 3 + 32;  // more than a quarter of 75: all between goes

/// Memory of an engine.
template <class T>
T* memory(int units) {
  static std::vector<T> all;
  all.assign(static_cast<std::size_t>(units), T{});
  return all.data();
}

std::vector<std::int32_t> some_blocks() { return {7, 8, 2, 11, 4}; }

void expect_layer(const lagkv::layer& l) {
  const lagkv::status usable = check(policy, l);
  EXPECT_TRUE(usable) << usable.message();
}

void expect_layer(const lagkv::tensor& keys, const lagkv::tensor& values) { expect_layer({keys, values, tokens}); }

TEST(layouts, vllm_tokens_before_heads) {
  auto* kv = memory<std::uint16_t>(2 * blocks * block * heads * d);
  const std::vector<std::int32_t> table = some_blocks();
#include "layouts/vllm-1.inc"
  expect_layer(keys, values);
}

TEST(layouts, vllm_heads_before_tokens) {
  const std::vector<std::int32_t> table = some_blocks();
  const lagkv::block_layout layout{.tokens = block,
#include "layouts/vllm-2.inc"
                                   .pool_blocks = blocks};
  expect_layer(lagkv::paged<float>(memory<float>(blocks * heads * block * d), {heads, d}, layout, table), {});
}

TEST(layouts, vllm_a_key_beside_its_value) {
  auto* kv = memory<std::uint16_t>(blocks * block * heads * 2 * d);
  const std::vector<std::int32_t> table = some_blocks();
  const lagkv::block_layout layout{.tokens = block,
#include "layouts/vllm-3.inc"
  expect_layer(keys, values);
}

TEST(layouts, vllm_keys_transposed_within_a_block) {
  auto* kv = memory<float>(blocks * heads * block * d);
  const std::vector<std::int32_t> table = some_blocks();
  lagkv::block_layout layout{.tokens = block, .block = heads * block * d, .pool_blocks = blocks};
#include "layouts/vllm-4.inc"
  expect_layer(keys, {});
}

TEST(layouts, vllm_fp8) {
  const std::vector<std::int32_t> table = some_blocks();
  const lagkv::block_layout layout{
      .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
  const lagkv::paged<lagkv::fp8_e4m3> k(memory<std::uint8_t>(blocks * block * heads * d), {heads, d}, layout, table);
  {
    const float k_scale = 0.5F;
#include "layouts/vllm-5.inc"
    expect_layer(keys, {});
  }
  {
    const float k_scale[] = {0.5F, 0.25F};
#include "layouts/vllm-6.inc"
    expect_layer(keys, {});
  }
}

TEST(layouts, vllm_a_scale_behind_each_row) {
  const int row = d + 4;
  const std::vector<std::int32_t> table = some_blocks();
  const lagkv::block_layout rows{
      .tokens = block, .block = heads * block * row, .within = {.head = block * row, .token = row}, .pool_blocks = blocks};
  const lagkv::block_layout floats{.tokens = block,
                                   .block = heads * block * row / 4,
                                   .within = {.head = block * row / 4, .token = row / 4},
                                   .pool_blocks = blocks};
  const auto view = [&](std::int8_t* first) {
#include "layouts/vllm-7.inc"
  };
  expect_layer(view(memory<std::int8_t>(blocks * heads * block * row)), {});
}

TEST(layouts, vllm_keys_in_groups_of_channels) {
  auto* k = memory<std::uint16_t>(2 * blocks * heads * d * block);
  auto* v = k + blocks * heads * d * block;
  const std::size_t x = 8, d = 32, heads = 2, block = 16;
  const std::vector<std::int32_t> table = some_blocks();
  const lagkv::block_layout layout{.tokens = block,
                                   .block = heads * d * block,
                                   .within = {.head = d * block, .token = 1, .channel = block},
                                   .pool_blocks = blocks};
  lagkv::block_layout by_group = layout;
  const lagkv::toward direction = lagkv::toward::front;
  lagkv::cursor cursor;
  lagkv::workspace workspace;
#include "layouts/vllm-8.inc"
  const lagkv::strided<float> copy(memory<float>(2 * 75 * 32), {heads, d}, {.head = 75 * d, .token = d}, tokens);
#include "layouts/vllm-9.inc"
  EXPECT_EQ(cursor.tokens, sinks_and_window);
}

TEST(layouts, vllm_shared_blocks) {
  auto* kv = memory<float>(blocks * block * heads * d);
  std::vector<std::int32_t> table = some_blocks(), free_blocks{0, 1, 3, 5, 6};
  std::vector<int> users(static_cast<std::size_t>(blocks));
  for (const std::int32_t b : table) users[static_cast<std::size_t>(b)] = 2;
  int copied = 0;
  const auto copy_block = [&](std::int32_t, std::int32_t) { ++copied; };
  const auto view = [&]() -> lagkv::layer {
    const lagkv::block_layout layout{
        .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
    return {lagkv::paged<float>(kv, {heads, d}, layout, table), {}, tokens};
  };
  const lagkv::toward direction = lagkv::toward::front;
  lagkv::cursor cursor;
  lagkv::workspace workspace;
  const auto compress_now = [&] {
    const std::size_t block = 16;
#include "layouts/vllm-10.inc"
    EXPECT_EQ(left, cursor.tokens);
  };
  const std::vector<std::int32_t> few = std::exchange(free_blocks, {0, 1});
  compress_now();
  EXPECT_EQ(copied, 0) << "no room";
  free_blocks = few;
  compress_now();
  EXPECT_EQ(copied, 5);
  EXPECT_EQ(cursor.tokens, sinks_and_window);
}

TEST(layouts, sglang) {
  const int slots = 100;
  const std::size_t max_context = 80, request = 1;
  auto* k_buffer = memory<std::uint16_t>(2 * slots * heads * d);
  auto* v_buffer = k_buffer + slots * heads * d;
  std::vector<std::int32_t> table(2 * max_context);
  std::iota(table.begin(), table.end(), -70);
#include "layouts/sglang-1.inc"
  expect_layer(keys, values);
}

TEST(layouts, sglang_freed_slots) {
  std::vector<std::int32_t> list(tokens), free_slots;
  std::iota(list.begin(), list.end(), 1);
  const lagkv::paged<float> keys(memory<float>(80 * heads * d), {heads, d},
                                 {.tokens = 1, .block = heads * d, .within = {.head = d, .token = heads * d}}, list);
  lagkv::cursor cursor;
  lagkv::workspace workspace;
  const std::size_t left = compress(policy, {keys, {}, tokens}, cursor, workspace, lagkv::toward::window);
#include "layouts/sglang-2.inc"
  EXPECT_EQ(list.size(), left);
  EXPECT_EQ(free_slots.size(), tokens - left);
}

TEST(layouts, openvino) {
  const int of_block = 32;
  const std::vector<std::int32_t> block_indices{9, 3, 4};
  auto* k = memory<std::uint16_t>(blocks * heads * of_block * d);
#include "layouts/openvino-1.inc"
  expect_layer(keys, {});
}

TEST(layouts, openvino_u8) {
  const int of_block = 32, row = d + 8;
  const std::vector<std::int32_t> block_indices{9, 3, 4};
  const lagkv::block_layout rows{.tokens = of_block,
                                 .block = heads * of_block * row,
                                 .within = {.head = of_block * row, .token = row},
                                 .pool_blocks = blocks};
  const lagkv::block_layout floats{.tokens = of_block,
                                   .block = heads * of_block * row / 4,
                                   .within = {.head = of_block * row / 4, .token = row / 4},
                                   .pool_blocks = blocks};
  const auto view = [&](std::uint8_t* cache) {
#include "layouts/openvino-2.inc"
  };
  expect_layer(view(memory<std::uint8_t>(blocks * heads * of_block * row)), {});
}

TEST(layouts, gemma) {
  const int layers = 3, layer = 1, stride = 400;
  const std::size_t seq_len = 80, position = 130;
  auto* kv_cache = memory<float>(80 * stride);
  ASSERT_GT(stride, layers * heads * d * 2);
#include "layouts/gemma.cpp-1.inc"
  expect_layer(keys, values);
}

TEST(layouts, ring) {
  const std::size_t heads = 2, slots_of_ring = 80;
  std::size_t first = 30, used = tokens;
  auto* k = memory<float>(80 * 2 * d);
  const lagkv::strided<float> slots(k, {heads, d}, {.head = 80 * d, .token = d}, slots_of_ring);
  const lagkv::layer layer{lagkv::ring(slots, first), {}, tokens};
  lagkv::cursor cursor;
  lagkv::workspace workspace;
  const std::size_t left = compress(policy, layer, cursor, workspace, lagkv::toward::window), freed = tokens - left;
#include "layouts/ring-buffers-1.inc"
  EXPECT_EQ(first, (30 + freed) % 80);
  EXPECT_EQ(used, sinks_and_window);
}

TEST(layouts, stacked) {
  std::size_t used = tokens;
  auto* k = memory<std::uint16_t>(4 * heads * 80 * d);
  std::vector<lagkv::strided<lagkv::f16>> keys, values;
  for (int i = 0; i < 4; ++i)
    (i < 2 ? keys : values).emplace_back(k + i * heads * 80 * d, lagkv::shape{heads, d}, lagkv::strides{80 * d, d}, 80U);
  lagkv::cursor cursor;
  lagkv::workspace workspace;
#include "layouts/several-layers-as-one-1.inc"
  EXPECT_LT(used, tokens);
}

TEST(layouts, llama) {
  const int cells = 96, stream = 1;
  auto* k_data = memory<std::uint16_t>(4 * heads * d * cells);
  auto* v_data = k_data + 2 * heads * d * cells;
#include "layouts/llama.cpp-1.inc"
  expect_layer(keys, values);
}

TEST(layouts, llama_quantised) {
  const int cells = 96, d_k = 64, d_v = 32;
  auto* k_data = memory<lagkv::q8_0>(heads * d_k / 32 * cells);
  auto* v_data = memory<lagkv::q4_0>(heads * d_v / 32 * cells);
#include "layouts/llama.cpp-2.inc"
  expect_layer(keys, values);
}

TEST(layouts, pytorch) {
  const std::size_t max_len = 80;
  const int entry = 1, stride[] = {heads * 80 * d, 80 * d, d, 1};
  auto* data = memory<std::uint16_t>(2 * heads * 80 * d);
  const auto view = [&] {
#include "layouts/pytorch-hugging-face-1.inc"
  };
  expect_layer(view(), {});
}

}  // namespace
