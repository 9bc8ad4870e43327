// The caches of today's engines, byte for byte: what compress() does to them is what it does to a plain copy, and nothing else
// in their memory changes. docs/layouts.md shows the views; its code is taken from here (see the last test).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "support/blocks.hpp"
#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using bytes = std::vector<std::byte>;

// What all engines here serve: one layer of a model, one sequence of 75 tokens.
constexpr std::size_t heads = 2, d = 32, tokens = 75;
constexpr std::size_t blocks = 12, block = 16;  // of the pools

/// Where element `index` of a row-major array lies, in elements.
template <std::size_t N>
constexpr std::size_t row_major(const std::size_t (&shape)[N], const std::size_t (&index)[N]) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < N; ++i) at = at * shape[i] + index[i];
  return at;
}

template <class T>
std::byte* as_bytes(T* p) {
  return reinterpret_cast<std::byte*>(p);
}

/// Memory of an engine, full of elements: what belongs to others would do as a row, too, where a view misses its own.
template <class T>
T* filled(bytes& memory, dtype type, std::size_t units, unsigned seed) {
  memory.resize(units * lagkv::size_of(type));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < units; ++i) {
    std::byte* unit = memory.data() + i * lagkv::size_of(type);
    if (lagkv::is_float(type)) {
      const std::uint32_t bits = encoded(type, normal(random));
      std::memcpy(unit, &bits, lagkv::size_of(type));
    } else {
      random_unit(type, random, unit);
    }
  }
  return reinterpret_cast<T*>(memory.data());
}

/// Keys or values: the view, and where the engine's own arithmetic finds the sequence's units and scales.
struct side {
  lagkv::tensor view;
  std::function<std::byte*(std::size_t head, std::size_t token, std::size_t unit)> unit;
  std::function<float*(std::size_t head, std::size_t token)> scale{};  ///< factor, then zero point
  std::size_t scale_floats = 0;
  lagkv::shared_scales shared{};

  std::size_t unit_bytes() const { return lagkv::size_of(view.type()); }

  /// What must arrive whole: units, then scales.
  bytes row(std::size_t head, std::size_t token) const {
    bytes out;
    for (std::size_t i = 0; i < view.row_units(); ++i) {
      const std::byte* u = unit(head, token, i);
      out.insert(out.end(), u, u + unit_bytes());
    }
    if (scale_floats > 0) {
      const auto* s = reinterpret_cast<const std::byte*>(scale(head, token));
      out.insert(out.end(), s, s + scale_floats * sizeof(float));
    }
    return out;
  }
};

/// The same rows as plain arrays [heads, tokens, ...].
class plain {
 public:
  explicit plain(const side& x) : side_(x), row_bytes_(x.view.row_bytes()), floats_(x.scale_floats) {
    units_.resize(heads * tokens * row_bytes_), scales_.resize(heads * tokens * floats_ + 1);
    for (std::size_t i = 0; i < heads * tokens; ++i) {
      const bytes row = x.row(i / tokens, i % tokens);
      std::memcpy(&units_[i * row_bytes_], row.data(), row_bytes_);
      if (floats_ > 0) std::memcpy(&scales_[i * floats_], row.data() + row_bytes_, floats_ * sizeof(float));
    }
  }

  lagkv::tensor view() {
    switch (side_.view.type()) {
      case dtype::f32:
        return units<float>();
      case dtype::f16:
        return units<lagkv::f16>();
      case dtype::bf16:
        return units<lagkv::bf16>();
      case dtype::fp8_e4m3:
        return scaled<lagkv::fp8_e4m3>();
      case dtype::int8:
        return scaled<std::int8_t>();
      case dtype::uint8:
        return scaled<std::uint8_t>();
      case dtype::q8_0:
        return units<lagkv::q8_0>();
      default:
        return units<lagkv::q4_0>();
    }
  }

  bytes row(std::size_t head, std::size_t token) const {
    const std::size_t i = head * tokens + token;
    bytes out(row_bytes_ + floats_ * sizeof(float));
    std::memcpy(out.data(), &units_[i * row_bytes_], row_bytes_);
    if (floats_ > 0) std::memcpy(out.data() + row_bytes_, &scales_[i * floats_], floats_ * sizeof(float));
    return out;
  }

 private:
  template <class T>
  lagkv::strided<T> units() {
    const auto n = static_cast<std::ptrdiff_t>(side_.view.row_units()), all = static_cast<std::ptrdiff_t>(tokens);
    return {reinterpret_cast<T*>(units_.data()), {heads, side_.view.channels()}, {all * n, n}, tokens};
  }
  template <class T>
  lagkv::tensor scaled() {
    if (floats_ == 0) return lagkv::scaled(units<T>(), side_.shared);
    const auto n = static_cast<std::ptrdiff_t>(floats_), all = static_cast<std::ptrdiff_t>(tokens);
    return lagkv::scaled(units<T>(), lagkv::strided<float>(scales_.data(), {heads, floats_}, {all * n, n}, tokens));
  }

  const side& side_;
  std::size_t row_bytes_, floats_;
  bytes units_;
  std::vector<float> scales_;
};

/// One that moves each partition once it is scored, and one that moves all at the end.
constexpr const char* policies[] = {"lagkv:sink=3,lag=16,ratio=0.25", "key_diff:sink=3,keep=0.4"};

constexpr lagkv::toward directions[] = {lagkv::toward::front, lagkv::toward::window};

/// The row that holds what is row i after compaction to the front.
std::size_t row_of(const lagkv::plan& p, lagkv::toward direction, std::size_t i) {
  return direction == lagkv::toward::front || i < p.candidates.begin ? i : i + p.tokens_before - p.tokens_after();
}

using stepper =
    std::function<std::size_t(const lagkv::policy&, const lagkv::layer&, lagkv::cursor&, lagkv::workspace&, lagkv::toward)>;
const stepper plain_step = [](const auto& policy, const auto& layer, auto& at, auto& ws, lagkv::toward direction) {
  return lagkv::compress(policy, layer, at, ws, direction);
};

/// Steps on the engine's memory and on a plain copy.
void expect_as_plain(const side& keys, const side& values, const std::vector<bytes*>& memory,
                     const stepper& step_of_host = plain_step) {
  std::vector<bytes> before;
  for (const bytes* m : memory) before.push_back(*m);
  if (lagkv::is_byte(keys.view.type()))  // the policies below do not depend on a scale that all tokens of a head share
    for (const char* text : {"key_norm:sink=3,keep=0.4", "value_norm:sink=3,keep=0.4"}) {
      const lagkv::policy p = named(text);
      const lagkv::candidates due = p.budget.due({}, tokens);
      plain k(keys), v(values);
      lagkv::workspace ws, plain_ws;
      const auto scores = lagkv::score(p, {keys.view, values.view, tokens}, due, ws);
      const auto right = lagkv::score(p, {k.view(), v.view(), tokens}, due, plain_ws);
      ASSERT_TRUE(!right.empty() && std::ranges::equal(scores, right)) << text;
    }
  for (const char* text : policies)
    for (const lagkv::toward direction : directions) {
      SCOPED_TRACE(text + std::string(direction == lagkv::toward::front ? " front" : " window"));
      for (std::size_t i = 0; i < memory.size(); ++i) std::copy(before[i].begin(), before[i].end(), memory[i]->begin());
      const lagkv::policy p = named(text);
      const lagkv::layer layer{keys.view, values.view, tokens};
      ASSERT_EQ(check(p, layer).message(), "");

      plain k(keys), v(values);
      lagkv::workspace ws, plain_ws;
      lagkv::cursor at, plain_at;
      const std::size_t left = step_of_host(p, layer, at, ws, direction);
      ASSERT_EQ(lagkv::compress(p, {k.view(), v.view(), tokens}, plain_at, plain_ws, direction), left);
      ASSERT_LT(left, tokens);
      ASSERT_EQ(at, plain_at);
      ASSERT_EQ(lagkv::last_plan(ws).kept, lagkv::last_plan(plain_ws).kept);
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t i = 0; i < left; ++i) {
          const std::size_t row = row_of(lagkv::last_plan(ws), direction, i);
          ASSERT_EQ(keys.row(h, row), k.row(h, row)) << "head " << h << ", row " << row;
          ASSERT_EQ(values.row(h, row), v.row(h, row)) << "head " << h << ", row " << row;
        }

      std::vector<bytes> others = before;  // with what is the sequence's own taken over
      const auto own = [&](const void* p_own, std::size_t n) {
        const auto* const first = static_cast<const std::byte*>(p_own);
        for (std::size_t i = 0; i < memory.size(); ++i) {
          const std::less<const std::byte*> below;
          if (below(first, memory[i]->data()) || !below(first, memory[i]->data() + memory[i]->size())) continue;
          std::copy_n(first, n, others[i].begin() + (first - memory[i]->data()));
        }
      };
      for (const side* x : {&keys, &values})
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t t = 0; t < tokens; ++t) {
            for (std::size_t u = 0; u < x->view.row_units(); ++u) own(x->unit(h, t, u), x->unit_bytes());
            if (x->scale_floats > 0) own(x->scale(h, t), x->scale_floats * sizeof(float));
          }
      for (std::size_t i = 0; i < memory.size(); ++i) ASSERT_TRUE(*memory[i] == others[i]) << "bytes of others, memory " << i;
    }
}

/// Blocks of the pool in an order that is nobody's: neighbours, gaps, backwards.
const std::vector<std::int32_t> some_blocks{7, 8, 2, 11, 4};

std::size_t block_of(std::size_t token) { return static_cast<std::size_t>(some_blocks[token / block]); }

std::string refusal(const lagkv::tensor& keys, const lagkv::tensor& values = {}) {
  return lagkv::check({keys, values, tokens}).message();
}

// ---- vLLM -----------------------------------------------------------------------------------------------------------

// vllm/v1/attention/backends/flash_attn.py, get_kv_cache_shape: (2, num_blocks, block_size, num_kv_heads, head_size).
TEST(vllm, tokens_before_heads) {
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::bf16, 2 * blocks * block * heads * d, 1);
  const std::vector<std::int32_t>& table = some_blocks;

  const lagkv::block_layout layout{
      .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::bf16> keys(kv, {heads, d}, layout, table);
  lagkv::paged<lagkv::bf16> values(kv + blocks * block * heads * d, {heads, d}, layout, table);

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({2, blocks, block, heads, d}, {kind, block_of(t), t % block, h, c}));
    };
  };
  expect_as_plain({keys, at(0)}, {values, at(1)}, {&memory});
}

// The same with VLLM_KV_CACHE_LAYOUT=HND, get_kv_cache_stride_order: [2, blocks, heads, block, d].
TEST(vllm, heads_before_tokens) {
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::f16, 2 * blocks * heads * block * d, 2);
  const std::vector<std::int32_t>& table = some_blocks;

  const lagkv::block_layout layout{
      .tokens = block, .block = heads * block * d, .within = {.head = block * d, .token = d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::f16> keys(kv, {heads, d}, layout, table);
  lagkv::paged<lagkv::f16> values(kv + blocks * heads * block * d, {heads, d}, layout, table);

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({2, blocks, heads, block, d}, {kind, block_of(t), h, t % block, c}));
    };
  };
  expect_as_plain({keys, at(0)}, {values, at(1)}, {&memory});
}

// vllm/v1/attention/backends/triton_attn.py before 2026: (num_blocks, 2, block_size, num_kv_heads, head_size).
TEST(vllm, keys_and_values_of_a_block_together) {
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::f16, 2 * blocks * block * heads * d, 3);
  const std::vector<std::int32_t>& table = some_blocks;

  const lagkv::block_layout layout{
      .tokens = block, .block = 2 * block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::f16> keys(kv, {heads, d}, layout, table);
  lagkv::paged<lagkv::f16> values(kv + block * heads * d, {heads, d}, layout, table);

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({blocks, 2, block, heads, d}, {block_of(t), kind, t % block, h, c}));
    };
  };
  expect_as_plain({keys, at(0)}, {values, at(1)}, {&memory});
}

// Later backends, triton_attn.py: (num_blocks, num_kv_heads, block_size, 2 * head_size), a key and its value side by side; the
// NHD stride order puts tokens before heads.
TEST(vllm, a_key_beside_its_value) {
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::bf16, blocks * block * heads * 2 * d, 4);
  const std::vector<std::int32_t>& table = some_blocks;

  const lagkv::block_layout layout{
      .tokens = block, .block = block * heads * 2 * d, .within = {.head = 2 * d, .token = heads * 2 * d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::bf16> keys(kv, {heads, d}, layout, table);
  lagkv::paged<lagkv::bf16> values(kv + d, {heads, d}, layout, table);

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({blocks, block, heads, 2, d}, {block_of(t), t % block, h, kind, c}));
    };
  };
  expect_as_plain({keys, at(0)}, {values, at(1)}, {&memory});
}

// kv_cache_dtype="fp8": bytes of float8_e4m3fn, layer._k_scale and layer._v_scale of one element.
TEST(vllm, fp8_with_a_scale_a_tensor) {
  bytes memory;
  auto* kv = filled<std::uint8_t>(memory, dtype::fp8_e4m3, 2 * blocks * block * heads * d, 5);
  const std::vector<std::int32_t>& table = some_blocks;
  const float k_scale = 0.035F, v_scale = 0.01F;

  const lagkv::block_layout layout{
      .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::fp8_e4m3> k(kv, {heads, d}, layout, table), v(kv + blocks * block * heads * d, {heads, d}, layout, table);
  lagkv::scaled keys(k, lagkv::shared_scales{&k_scale});
  lagkv::scaled values(v, lagkv::shared_scales{&v_scale});

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({2, blocks, block, heads, d}, {kind, block_of(t), t % block, h, c}));
    };
  };
  expect_as_plain({keys, at(0), {}, 0, {&k_scale}}, {values, at(1), {}, 0, {&v_scale}}, {&memory});
}

// The same, HND, with a scale a KV head: flash_attn.py hands _k_scale.expand((sequences, num_kv_heads)) to the kernel.
TEST(vllm, fp8_with_a_scale_a_head) {
  bytes memory;
  auto* kv = filled<std::uint8_t>(memory, dtype::fp8_e4m3, 2 * blocks * heads * block * d, 6);
  const std::vector<std::int32_t>& table = some_blocks;
  const float k_scale[heads] = {0.035F, 1.5F}, v_scale[heads] = {0.7F, 0.01F};

  const lagkv::block_layout layout{
      .tokens = block, .block = heads * block * d, .within = {.head = block * d, .token = d}, .pool_blocks = blocks};
  lagkv::paged<lagkv::fp8_e4m3> k(kv, {heads, d}, layout, table), v(kv + blocks * heads * block * d, {heads, d}, layout, table);
  lagkv::scaled keys(k, lagkv::shared_scales{k_scale, 1});
  lagkv::scaled values(v, lagkv::shared_scales{v_scale, 1});

  const auto at = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({2, blocks, heads, block, d}, {kind, block_of(t), h, t % block, c}));
    };
  };
  expect_as_plain({keys, at(0), {}, 0, {k_scale, 1}}, {values, at(1), {}, 0, {v_scale, 1}}, {&memory});
}

// kv_cache_dtype="int8_per_token_head", triton_attn.py, _ensure_scale_caches: (num_blocks, num_kv_heads, block_size,
// 2 * (head_size + 4)) bytes, [K | scale of K, f32 | V | scale of V, f32].
TEST(vllm, int8_with_a_scale_behind_each_row) {
  constexpr std::size_t row = d + 4;
  bytes memory;
  auto* kv = filled<std::int8_t>(memory, dtype::int8, blocks * heads * block * 2 * row, 7);
  const std::vector<std::int32_t>& table = some_blocks;
  const auto unit = [&](std::size_t kind) {
    return [=](auto h, auto t, auto c) {
      return as_bytes(kv + row_major({blocks, heads, block, 2, row}, {block_of(t), h, t % block, kind, c}));
    };
  };
  const auto scale = [&](std::size_t kind) {
    return [=](auto h, auto t) { return reinterpret_cast<float*>(unit(kind)(h, t, d)); };
  };
  for (std::size_t i = 0; i < heads * tokens; ++i)
    for (std::size_t kind : {0U, 1U}) *scale(kind)(i % heads, i / heads) = 0.001F * static_cast<float>(1 + i * 37 % 100);

  const lagkv::block_layout rows{.tokens = block,
                                 .block = heads * block * 2 * row,
                                 .within = {.head = block * 2 * row, .token = 2 * row},
                                 .pool_blocks = blocks};
  const lagkv::block_layout floats{.tokens = block,
                                   .block = rows.block / 4,
                                   .within = {.head = rows.within.head / 4, .token = rows.within.token / 4},
                                   .pool_blocks = blocks};
  const auto view = [&](std::int8_t* first) {
    return lagkv::scaled(lagkv::paged<std::int8_t>(first, {heads, d}, rows, table),
                         lagkv::paged<float>(reinterpret_cast<float*>(first + d), {heads, 1}, floats, table));
  };
  const auto keys = view(kv), values = view(kv + row);

  expect_as_plain({keys, unit(0), scale(0), 1}, {values, unit(1), scale(1), 1}, {&memory});
}

// csrc/cpu/cpu_attn_vec.hpp, reshape_and_cache: (2, num_blocks, num_kv_heads, block_size, head_size) by its shape, but a block of
// keys is [head_size, block_size]. (Blocks are multiples of 32 tokens there.)
TEST(vllm, cpu_vec_keys_transposed_within_a_block) {
  bytes memory;
  auto* kv = filled<float>(memory, dtype::f32, 2 * blocks * heads * block * d, 8);
  const std::vector<std::int32_t>& table = some_blocks;

  lagkv::block_layout layout{
      .tokens = block, .block = heads * block * d, .within = {.head = block * d, .token = d}, .pool_blocks = blocks};
  lagkv::paged<float> values(kv + blocks * heads * block * d, {heads, d}, layout, table);
  layout.within = {.head = d * block, .token = 1, .channel = block};
  lagkv::paged<float> keys(kv, {heads, d}, layout, table);

  const auto key = [=](auto h, auto t, auto c) {
    return as_bytes(kv + row_major({2, blocks, heads, d, block}, {0, block_of(t), h, c, t % block}));
  };
  const auto value = [=](auto h, auto t, auto c) {
    return as_bytes(kv + row_major({2, blocks, heads, block, d}, {1, block_of(t), h, t % block, c}));
  };
  expect_as_plain({keys, key}, {values, value}, {&memory});
}

// vllm/v1/attention/ops/paged_attn.py, split_kv_cache: keys (num_blocks, num_kv_heads, head_size / x, block_size, x) with
// x = 16 / bytes of an element, values (num_blocks, num_kv_heads, head_size, block_size). Keys have no constant stride from
// channel to channel, so they are scored in a copy and moved as d / x heads of x channels.
TEST(vllm, keys_in_groups_of_x_channels) {
  constexpr std::size_t x = 8;
  bytes key_memory, value_memory;
  auto* k = filled<std::uint16_t>(key_memory, dtype::f16, blocks * heads * d * block, 9);
  auto* v = filled<std::uint16_t>(value_memory, dtype::f16, blocks * heads * d * block, 10);
  const std::vector<std::int32_t>& table = some_blocks;
  const lagkv::block_layout layout{.tokens = block,
                                   .block = heads * d * block,
                                   .within = {.head = d * block, .token = 1, .channel = block},
                                   .pool_blocks = blocks};
  lagkv::block_layout by_group = layout;
  by_group.within = {.head = block * x, .token = x};
  lagkv::paged<lagkv::f16> values(v, {heads, d}, layout, table);
  lagkv::paged<lagkv::f16> groups(k, {heads * (d / x), x}, by_group, table);
  ASSERT_EQ(lagkv::tensor(groups).check(tokens).message(), "");

  const lagkv::strided<lagkv::f16> no_view(k, {heads, d}, {tokens * d, d}, tokens);  // says only what is stored
  const side key{no_view, [=](auto h, auto t, auto c) {
                   return as_bytes(k + row_major({blocks, heads, d / x, block, x}, {block_of(t), h, c / x, t % block, c % x}));
                 }};
  const side value{values, [=](auto h, auto t, auto c) {
                     return as_bytes(v + row_major({blocks, heads, d, block}, {block_of(t), h, c, t % block}));
                   }};
  const auto step_of_host = [&](const lagkv::policy& policy, const lagkv::layer&, lagkv::cursor& cursor,
                                lagkv::workspace& workspace, lagkv::toward direction) {
    plain rows_in_use(key);
    const lagkv::tensor copy = rows_in_use.view();
    const lagkv::plan& plan = plan_eviction(policy, {copy, values, tokens}, cursor, workspace);
    if (!plan.empty()) {
      lagkv::plan each;
      each.reset(plan.candidates, plan.tokens_before, groups.heads(), plan.of(0).size());
      for (std::size_t g = 0; g < groups.heads(); ++g) std::ranges::copy(plan.of(g / (d / x)), each.row(g));
      compact(groups, each, direction);
      compact(values, plan, direction);
    }
    advance(cursor, plan);
    return cursor.tokens;
  };
  expect_as_plain(key, value, {&key_memory, &value_memory}, step_of_host);
}

TEST(vllm, blocks_that_another_sequence_uses_are_copied_first) {
  bytes memory;
  auto* kv = filled<float>(memory, dtype::f32, 2 * blocks * block * heads * d, 11);
  for (const lagkv::toward direction : directions) {
    std::vector<std::int32_t> table = some_blocks;
    std::vector<int> users(blocks, 0);
    for (std::size_t i = 0; i < table.size(); ++i) users[static_cast<std::size_t>(table[i])] = i < 3 ? 2 : 1;
    std::vector<std::int32_t> free_blocks{0, 1, 3, 5};
    const lagkv::block_layout layout{
        .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
    const auto view = [&] {
      return lagkv::layer{lagkv::paged<float>(kv, {heads, d}, layout, table),
                          lagkv::paged<float>(kv + blocks * block * heads * d, {heads, d}, layout, table), tokens};
    };
    const auto block_bytes = [&](std::size_t kind, std::int32_t b) {
      return memory.data() +
             row_major({2, blocks, block, heads, d}, {kind, static_cast<std::size_t>(b), 0, 0, 0}) * sizeof(float);
    };
    const auto copy_block = [&](std::int32_t from, std::int32_t to) {
      for (std::size_t kind : {0U, 1U})
        std::copy_n(block_bytes(kind, from), block * heads * d * sizeof(float), block_bytes(kind, to));
    };
    // Two blocks of sinks, so that the first rows to move lie in the third.
    const lagkv::policy policy = named("lagkv:sink=33,lag=8,ratio=0.25");
    lagkv::workspace workspace;
    lagkv::cursor cursor;
    const bytes before = memory;

    const auto compress_now = [&] {
      if (const lagkv::candidates due = policy.budget.due(cursor, tokens); !due.empty()) {
        std::vector<std::size_t> copies;  // entries of the table whose blocks others use too
        for (std::size_t i = due.rows.begin / block; i < table.size(); ++i)
          if (users[static_cast<std::size_t>(table[i])] > 1) copies.push_back(i);
        if (copies.size() > free_blocks.size()) return;  // no room to compress now
        for (const std::size_t i : copies) {
          const std::int32_t shared = table[i];
          table[i] = free_blocks.back(), free_blocks.pop_back();
          copy_block(shared, table[i]);
          --users[static_cast<std::size_t>(shared)], ++users[static_cast<std::size_t>(table[i])];
        }
      }
      const std::size_t left = compress(policy, view(), cursor, workspace, direction);
      EXPECT_EQ(left, cursor.tokens);
    };
    const std::vector<std::int32_t> free_ones = std::exchange(free_blocks, {});
    compress_now();
    EXPECT_EQ(cursor.tokens, 0U) << "there was no room";
    EXPECT_EQ(memory, before);
    free_blocks = free_ones;
    compress_now();

    ASSERT_LT(cursor.tokens, tokens);
    EXPECT_EQ(table, (std::vector<std::int32_t>{7, 8, 5, 11, 4}));
    for (const std::int32_t b : {7, 8, 2})
      for (std::size_t kind : {0U, 1U}) {
        const std::byte* now = block_bytes(kind, b);
        EXPECT_TRUE(std::equal(now, now + block * heads * d * sizeof(float), before.begin() + (now - memory.data()))) << b;
      }
  }
}

TEST(vllm, block_tables_that_are_none_are_refused) {
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::f16, 2 * blocks * block * heads * d, 12);
  const lagkv::block_layout layout{
      .tokens = block, .block = block * heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = blocks};
  const auto message = [&](const std::vector<std::int32_t>& table) {
    return refusal(lagkv::paged<lagkv::f16>(kv, {heads, d}, layout, table));
  };
  EXPECT_EQ(message({7, 8, 2, 11, 4}), "");
  EXPECT_EQ(message({7, 8, 2, 7, 4}), "keys: block 7: stands twice in the table");
  EXPECT_EQ(message({7, 8, 2, 11}), "keys: tokens=75: the view addresses at most 64");
  EXPECT_EQ(message({7, 8, 2, 12, 4}), "keys: block 12: the pool has 12 blocks");
  EXPECT_EQ(message({7, 8, 2, -1, 4}), "keys: block -1: must be 0 or more");
  EXPECT_EQ(message({7, 8, 2, 11, 4, 4, 4}), "") << "what lies behind the tokens in use does not matter";

  lagkv::block_layout mixed_up = layout;  // HND strides of a head, NHD strides of a token
  mixed_up.within.head = block * d;
  EXPECT_NE(refusal(lagkv::paged<lagkv::f16>(kv, {heads, d}, mixed_up, some_blocks)).find("overlap"), std::string::npos);
}

// Tables of runs up and down, with neighbours, repeats and numbers that are none: accepted are those of different blocks of the
// pool.
TEST(vllm, every_block_table_is_told_by_its_blocks) {
  constexpr std::size_t most = 40;
  bytes memory;
  auto* kv = filled<std::uint16_t>(memory, dtype::f16, most, 12);
  const lagkv::block_layout layout{.tokens = 1, .block = 1, .within = {.head = 1, .token = 1}, .pool_blocks = most};
  std::mt19937 draw(21);
  std::size_t accepted = 0;
  const auto check_one = [&](auto index) {
    using entry = decltype(index);
    std::vector<entry> table;
    while (table.size() < 1 + draw() % 24) {
      const int from = static_cast<int>(draw() % (most + 4)) - 2, step = draw() % 3 == 0 ? -1 : 1;
      for (int i = 0, n = 1 + static_cast<int>(draw() % 12); i < n; ++i) {
        const int number = from + i * step;
        if (std::is_signed_v<entry> || number >= 0) table.push_back(static_cast<entry>(number));
      }
    }
    std::set<long long> found(table.begin(), table.end());
    const bool whole = found.size() == table.size() && *found.begin() >= 0 && *found.rbegin() < static_cast<long long>(most);
    const lagkv::paged<lagkv::f16, entry> view(kv, {1, 1}, layout, table);
    const std::string message = view.check(table.size()).message();
    ASSERT_EQ(message.empty(), whole) << message << ": " << ::testing::PrintToString(table);
    accepted += whole ? 1U : 0U;
  };
  for (int i = 0; i < 4000; ++i) {
    check_one(std::int32_t{});
    check_one(std::uint32_t{});
    check_one(std::int8_t{});
    check_one(std::uint64_t{});
  }
  EXPECT_GT(accepted, 1000U);
}

// ---- SGLang ---------------------------------------------------------------------------------------------------------

// python/sglang/srt/mem_cache/memory_pool.py, MHATokenToKVPool: k_buffer[layer], v_buffer[layer] (size + page_size, head_num,
// head_dim); ReqToTokenPool.req_to_token (requests, max_context_len), int32. Slot 0 takes the writes of padding.
constexpr std::size_t slots = 200, max_context = 100;

std::vector<std::int32_t> req_to_token(std::size_t requests) {
  std::vector<std::int32_t> all(requests * max_context), order(slots - 1);
  std::iota(order.begin(), order.end(), 1);
  std::shuffle(order.begin() + 40, order.end(), std::mt19937(3));  // some neighbours, as a fresh pool hands them out
  for (std::size_t t = 0; t < tokens; ++t) all[1 * max_context + t] = order[t];
  return all;
}

TEST(sglang, slots) {
  bytes key_memory, value_memory;
  auto* k_buffer = filled<std::uint16_t>(key_memory, dtype::bf16, slots * heads * d, 13);
  auto* v_buffer = filled<std::uint16_t>(value_memory, dtype::bf16, slots * heads * d, 14);
  const std::vector<std::int32_t> table = req_to_token(3);
  const std::size_t request = 1;

  const lagkv::block_layout layout{
      .tokens = 1, .block = heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = slots};
  const std::span<const std::int32_t> list(table.data() + request * max_context, max_context);
  lagkv::paged<lagkv::bf16> keys(k_buffer, {heads, d}, layout, list), values(v_buffer, {heads, d}, layout, list);

  const auto at = [&](std::uint16_t* buffer) {
    return [=, &table](auto h, auto t, auto c) {
      const auto slot = static_cast<std::size_t>(table[request * max_context + t]);
      return as_bytes(buffer + row_major({slots, heads, d}, {slot, h, c}));
    };
  };
  ASSERT_GT(keys.at(0, {0, 40}).tokens, 39U) << "neighbouring slots are one run";
  expect_as_plain({keys, at(k_buffer)}, {values, at(v_buffer)}, {&key_memory, &value_memory});

  std::vector<std::int32_t> twice(list.begin(), list.end());
  twice[70] = twice[2];
  EXPECT_EQ(refusal(lagkv::paged<lagkv::bf16>(k_buffer, {heads, d}, layout, twice)),
            "keys: block " + std::to_string(twice[2]) + ": stands twice in the table");
}

// Toward the window nothing but survivors moves; the slots of the freed rows are taken out of the list.
TEST(sglang, slots_are_freed_from_the_middle_of_the_list) {
  bytes key_memory, value_memory;
  auto* k_buffer = filled<float>(key_memory, dtype::f32, slots * heads * d, 15);
  auto* v_buffer = filled<float>(value_memory, dtype::f32, slots * heads * d, 16);
  std::vector<std::int32_t> list = req_to_token(3), free_slots;
  list.assign(list.begin() + max_context, list.begin() + max_context + tokens);
  const auto view = [&](float* buffer) {
    return lagkv::paged<float>(buffer, {heads, d},
                               {.tokens = 1, .block = heads * d, .within = {.head = d, .token = heads * d}, .pool_blocks = slots},
                               list);
  };
  const auto row = [&](auto h, auto t) {
    const float* first = k_buffer + row_major({slots, heads, d}, {static_cast<std::size_t>(list[t]), h, 0});
    return std::vector<float>(first, first + d);
  };
  std::vector<std::vector<float>> before;
  for (std::size_t i = 0; i < heads * tokens; ++i) before.push_back(row(i / tokens, i % tokens));
  const std::vector<std::int32_t> list_before = list;
  const lagkv::policy policy = named(policies[0]);
  lagkv::workspace workspace;
  lagkv::cursor cursor;

  const std::size_t left = compress(policy, {view(k_buffer), view(v_buffer), tokens}, cursor, workspace, lagkv::toward::window);
  const auto first = list.begin() + static_cast<std::ptrdiff_t>(lagkv::last_plan(workspace).candidates.begin);
  const auto last = first + static_cast<std::ptrdiff_t>(list.size() - left);
  free_slots.insert(free_slots.end(), first, last);
  list.erase(first, last);

  ASSERT_EQ(list.size(), left);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t i = 0; i < left; ++i) ASSERT_EQ(row(h, i), before[h * tokens + lagkv::last_plan(workspace).source(h, i)]);
  EXPECT_TRUE(std::equal(list.end() - 16, list.end(), list_before.end() - 16)) << "the window lies where it lay";
  EXPECT_EQ(free_slots.size() + list.size(), tokens);
}

// ---- OpenVINO -------------------------------------------------------------------------------------------------------

// src/plugins/intel_cpu/src/nodes/kernels/scaled_attn/executor_pa_common.hpp, ID_KCACHE, ID_VCACHE: [block_number, H, block_size,
// S]; 32 tokens a block on CPU. Keys and values may differ in type and S.
TEST(openvino, floats) {
  constexpr std::size_t of_block = 32, d_v = 48;
  const std::vector<std::int32_t> block_indices{9, 3, 4};
  bytes key_memory, value_memory;
  auto* k = filled<std::uint16_t>(key_memory, dtype::f16, blocks * heads * of_block * d, 17);
  auto* v = filled<float>(value_memory, dtype::f32, blocks * heads * of_block * d_v, 18);

  lagkv::paged<lagkv::f16> keys(
      k, {heads, d},
      {.tokens = of_block, .block = heads * of_block * d, .within = {.head = of_block * d, .token = d}, .pool_blocks = blocks},
      block_indices);
  lagkv::paged<float> values(v, {heads, d_v},
                             {.tokens = of_block,
                              .block = heads * of_block * d_v,
                              .within = {.head = of_block * d_v, .token = d_v},
                              .pool_blocks = blocks},
                             block_indices);

  const auto where = [&](std::size_t t) { return static_cast<std::size_t>(block_indices[t / of_block]); };
  expect_as_plain({keys,
                   [&](auto h, auto t, auto c) {
                     return as_bytes(k + row_major({blocks, heads, of_block, d}, {where(t), h, t % of_block, c}));
                   }},
                  {values,
                   [&](auto h, auto t, auto c) {
                     return as_bytes(v + row_major({blocks, heads, of_block, d_v}, {where(t), h, t % of_block, c}));
                   }},
                  {&key_memory, &value_memory});
}

// attn_quant.cpp, paged_attn_quant_mt: [block_number, H, block_size, S + 8] bytes; a row is scale (f32), zero point (f32), S
// bytes q, and means (q - zero point) * scale. The zero point is -min / scale: no integer.
TEST(openvino, u8_by_token) {
  constexpr std::size_t of_block = 32, row = d + 8;
  const std::vector<std::int32_t> block_indices{9, 3, 4};
  bytes memory[2];
  std::uint8_t* first[2];
  for (unsigned kind : {0U, 1U})
    first[kind] = filled<std::uint8_t>(memory[kind], dtype::uint8, blocks * heads * of_block * row, 19 + kind);
  const auto byte = [&](std::size_t kind, std::size_t h, std::size_t t, std::size_t i) {
    const auto b = static_cast<std::size_t>(block_indices[t / of_block]);
    return first[kind] + row_major({blocks, heads, of_block, row}, {b, h, t % of_block, i});
  };
  const auto unit = [&](std::size_t kind) {
    return [&, kind](auto h, auto t, auto c) { return as_bytes(byte(kind, h, t, 8 + c)); };
  };
  const auto scale = [&](std::size_t kind) {
    return [&, kind](auto h, auto t) { return reinterpret_cast<float*>(byte(kind, h, t, 0)); };
  };
  // Quantised as quant_u8 does it.
  std::mt19937 random(21);
  std::vector<float> numbers;  // what the keys mean
  for (std::size_t kind : {0U, 1U})
    for (std::size_t i = 0; i < heads * tokens; ++i) {
      std::normal_distribution<float> normal(static_cast<float>(i % 5) - 2.0F, 0.5F + static_cast<float>(i % 7));
      float x[d], least = 1e9F, most = -1e9F;
      for (float& n : x) n = normal(random), least = std::min(least, n), most = std::max(most, n);
      float* const s = scale(kind)(i / tokens, i % tokens);
      s[0] = (most - least) / 255, s[1] = -least / s[0];
      for (std::size_t c = 0; c < d; ++c) {
        const float q = std::round(x[c] / s[0] + s[1]);
        *unit(kind)(i / tokens, i % tokens, c) = static_cast<std::byte>(q);
        if (kind == 0) numbers.push_back(x[c]);
      }
    }

  const lagkv::block_layout rows{.tokens = of_block,
                                 .block = heads * of_block * row,
                                 .within = {.head = of_block * row, .token = row},
                                 .pool_blocks = blocks};
  const lagkv::block_layout floats{.tokens = of_block,
                                   .block = rows.block / 4,
                                   .within = {.head = rows.within.head / 4, .token = rows.within.token / 4},
                                   .pool_blocks = blocks};
  const auto view = [&](std::uint8_t* cache) {
    return lagkv::scaled(lagkv::paged<std::uint8_t>(cache + 8, {heads, d}, rows, block_indices),
                         lagkv::paged<float>(reinterpret_cast<float*>(cache), {heads, 2}, floats, block_indices));
  };
  const auto keys = view(first[0]), values = view(first[1]);

  for (std::size_t i = 0; i < heads * tokens; ++i) {
    const lagkv::row_scale s = keys.scale_of(i / tokens, i % tokens);
    for (std::size_t c = 0; c < d; ++c)
      ASSERT_NEAR((static_cast<float>(*byte(0, i / tokens, i % tokens, 8 + c)) - s.zero) * s.factor, numbers[i * d + c],
                  0.51F * s.factor);
  }
  expect_as_plain({keys, unit(0), scale(0), 2}, {values, unit(1), scale(1), 2}, {&memory[0], &memory[1]});
}

// The same file, quant_key_by_channel: [block_number, H, block_size + 8, S] bytes; S scales and S zero points in front of a
// block's rows. A row that moved to another block would mean other numbers. There is no view that says it, and this one is
// refused.
TEST(openvino, u8_by_channel_is_refused) {
  constexpr std::size_t of_block = 32, region = (of_block + 8) * d;
  const std::vector<std::int32_t> block_indices{9, 3, 4};
  bytes memory;
  auto* k = filled<std::uint8_t>(memory, dtype::uint8, blocks * heads * region, 22);
  const lagkv::paged<std::uint8_t> rows(
      k + 8 * d, {heads, d},
      {.tokens = of_block, .block = heads * region, .within = {.head = region, .token = d}, .pool_blocks = blocks},
      block_indices);
  const lagkv::strided<float> scales(reinterpret_cast<float*>(k), {heads, d}, {region / 4, 0}, tokens);
  EXPECT_EQ(refusal(lagkv::scaled(rows, scales)), "keys: scales: channels=32: must be 1 (factor) or 2 (factor, zero point)");
  const lagkv::strided<float> one(reinterpret_cast<float*>(k), {heads, 1}, {region / 4, 0}, tokens);
  EXPECT_EQ(refusal(lagkv::scaled(rows, one)),
            "keys: scales: strides head=320, token=0, channel=1: overlap for 2 heads, 75 tokens, 1 channels");
}

// ---- gemma.cpp ------------------------------------------------------------------------------------------------------

// gemma/kv_cache.h: kv_cache, f32 [seq_len, layers * kv_heads * qkv_dim * 2]; util/mat.cc, Stride: rows padded to an odd number
// of cache lines; gemma/attention.cc, ComputeQKV: position p is row p % seq_len; K of a head, then its V.
TEST(gemma, interleaved_ring) {
  constexpr std::size_t layers = 3, layer = 1, seq_len = 80;
  constexpr std::size_t columns = layers * heads * d * 2, line = 64 / sizeof(float);
  constexpr std::size_t stride = ((columns + line - 1) / line | 1) * line;
  static_assert(stride > columns);
  bytes memory;
  auto* kv_cache = filled<float>(memory, dtype::f32, seq_len * stride, 23);
  for (const std::size_t position : {tokens, std::size_t{130}, 2 * seq_len}) {  // of the next token

    const std::size_t first = (position - tokens) % seq_len;
    float* const k = kv_cache + layer * heads * d * 2;
    const lagkv::strides distance{.head = 2 * d, .token = stride};
    lagkv::ring keys(lagkv::strided<float>(k, {heads, d}, distance, seq_len), first);
    lagkv::ring values(lagkv::strided<float>(k + d, {heads, d}, distance, seq_len), first);

    const auto at = [=](std::size_t kind) {
      return [=](auto h, auto t, auto c) {
        const std::size_t row = (position - tokens + t) % seq_len;
        return as_bytes(kv_cache + row * stride + row_major({layers, heads, 2, d}, {layer, h, kind, c}));
      };
    };
    expect_as_plain({keys, at(0)}, {values, at(1)}, {&memory});
    EXPECT_EQ(lagkv::tensor(keys).check(seq_len + 1).message(), "tokens=81: the view addresses at most 80");
    EXPECT_EQ(refusal(lagkv::ring(lagkv::strided<float>(k, {heads, d}, {.head = 2 * d, .token = heads * d}, seq_len), first)),
              "keys: strides head=64, token=64, channel=1: overlap for 2 heads, 80 tokens, 32 channels");
  }
}

// ---- llama.cpp ------------------------------------------------------------------------------------------------------

// src/llama-kv-cache.cpp, get_k, get_v: K [streams][kv_size][n_embd_k_gqa]; V the same or, without flash attention (v_trans),
// [streams][n_embd_v_gqa][kv_size].
constexpr std::size_t streams = 2, stream = 1, cells = 96;

TEST(llama, transposed_values) {
  bytes key_memory, value_memory;
  auto* k_data = filled<std::uint16_t>(key_memory, dtype::f16, streams * cells * heads * d, 24);
  auto* v_data = filled<std::uint16_t>(value_memory, dtype::f16, streams * heads * d * cells, 25);

  lagkv::strided<lagkv::f16> keys(k_data + stream * cells * heads * d, {heads, d}, {.head = d, .token = heads * d}, cells);
  lagkv::strided<lagkv::f16> values(v_data + stream * heads * d * cells, {heads, d},
                                    {.head = d * cells, .token = 1, .channel = cells}, cells);

  expect_as_plain({keys,
                   [=](auto h, auto t, auto c) {
                     return as_bytes(k_data + row_major({streams, cells, heads, d}, {stream, t, h, c}));
                   }},
                  {values,
                   [=](auto h, auto t, auto c) {
                     return as_bytes(v_data + row_major({streams, heads, d, cells}, {stream, h, c, t}));
                   }},
                  {&key_memory, &value_memory});
}

// -ctk q8_0 -ctv q4_0: blocks of 32 along a row.
TEST(llama, blocks_of_ggml) {
  constexpr std::size_t d_k = 64, d_v = 96;
  bytes key_memory, value_memory;
  auto* k_data = filled<lagkv::q8_0>(key_memory, dtype::q8_0, cells * heads * d_k / 32, 26);
  auto* v_data = filled<lagkv::q4_0>(value_memory, dtype::q4_0, cells * heads * d_v / 32, 27);

  lagkv::strided<lagkv::q8_0> keys(k_data, {heads, d_k}, {.head = d_k / 32, .token = heads * d_k / 32}, cells);
  lagkv::strided<lagkv::q4_0> values(v_data, {heads, d_v}, {.head = d_v / 32, .token = heads * d_v / 32}, cells);

  expect_as_plain({keys,
                   [=](auto h, auto t, auto u) {
                     return as_bytes(k_data + row_major({cells, heads, d_k / 32}, {t, h, u}));
                   }},
                  {values,
                   [=](auto h, auto t, auto u) {
                     return as_bytes(v_data + row_major({cells, heads, d_v / 32}, {t, h, u}));
                   }},
                  {&key_memory, &value_memory});
}

// Keys in blocks, values transposed: allowed without flash attention, where only V must be of numbers.
TEST(llama, keys_in_blocks_values_transposed) {
  bytes key_memory, value_memory;
  auto* k_data = filled<lagkv::q8_0>(key_memory, dtype::q8_0, cells * heads * d / 32, 28);
  auto* v_data = filled<std::uint16_t>(value_memory, dtype::bf16, heads * d * cells, 29);
  const lagkv::strided<lagkv::q8_0> keys(k_data, {heads, d}, {.head = d / 32, .token = heads * d / 32}, cells);
  const lagkv::strided<lagkv::bf16> values(v_data, {heads, d}, {.head = d * cells, .token = 1, .channel = cells}, cells);
  expect_as_plain({keys,
                   [=](auto h, auto t, auto) {
                     return as_bytes(k_data + row_major({cells, heads}, {t, h}));
                   }},
                  {values,
                   [=](auto h, auto t, auto c) {
                     return as_bytes(v_data + row_major({heads, d, cells}, {h, c, t}));
                   }},
                  {&key_memory, &value_memory});
}

TEST(llama, blocks_that_two_heads_share_are_refused) {
  constexpr std::size_t d_k = 80;  // 160 channels of two heads are 5 blocks: the third is half the one's, half the other's
  bytes memory;
  auto* k_data = filled<lagkv::q8_0>(memory, dtype::q8_0, cells * heads * d_k / 32, 30);
  EXPECT_EQ(refusal(lagkv::strided<lagkv::q8_0>(k_data, {heads, d_k}, {.head = d_k / 32, .token = heads * d_k / 32}, cells)),
            "keys: channels=80: must be a multiple of the 32 elements of a block of q8_0 (a block that spans tokens or heads "
            "cannot move alone)");
  EXPECT_EQ(refusal(lagkv::strided<lagkv::q8_0>(k_data, {heads, d}, {.head = 1, .token = heads}, 64)),
            "keys: tokens=75: the view addresses at most 64");
}

// ---- PyTorch --------------------------------------------------------------------------------------------------------

// transformers, src/transformers/cache_utils.py: keys and values [batch, num_heads, tokens, head_dim]; strides are x.stride().
constexpr std::size_t batch = 3;
constexpr std::ptrdiff_t entry = 1;

TEST(pytorch, entry_of_a_batch) {
  constexpr std::size_t max_len = 90;
  bytes key_memory, value_memory;
  auto* k = filled<std::uint16_t>(key_memory, dtype::bf16, batch * heads * max_len * d, 31);
  auto* v = filled<std::uint16_t>(value_memory, dtype::bf16, batch * heads * max_len * d, 32);
  const std::ptrdiff_t stride[] = {heads * max_len * d, max_len * d, d, 1};  // x.stride()

  const auto view = [&](std::uint16_t* data) {
    return lagkv::strided<lagkv::bf16>(data + entry * stride[0], {heads, d},
                                       {.head = stride[1], .token = stride[2], .channel = stride[3]}, max_len);
  };
  const auto keys = view(k), values = view(v);

  const auto at = [&](std::uint16_t* x) {
    return [=](auto h, auto t, auto c) { return as_bytes(x + row_major({batch, heads, max_len, d}, {entry, h, t, c})); };
  };
  expect_as_plain({keys, at(k)}, {values, at(v)}, {&key_memory, &value_memory});
}

// What a model hands over as x.view(batch, tokens, heads, d).transpose(1, 2): the shape of above, other strides. The values are
// [batch, heads, d, tokens].transpose(2, 3).
TEST(pytorch, transposed_tensors) {
  bytes key_memory, value_memory;
  auto* k = filled<float>(key_memory, dtype::f32, batch * tokens * heads * d, 33);
  auto* v = filled<float>(value_memory, dtype::f32, batch * heads * d * tokens, 34);
  const auto view = [&](float* data, const std::array<std::ptrdiff_t, 4>& stride) {
    return lagkv::strided<float>(data + entry * stride[0], {heads, d},
                                 {.head = stride[1], .token = stride[2], .channel = stride[3]}, tokens);
  };
  expect_as_plain({view(k, {tokens * heads * d, d, heads * d, 1}),
                   [=](auto h, auto t, auto c) {
                     return as_bytes(k + row_major({batch, tokens, heads, d}, {entry, t, h, c}));
                   }},
                  {view(v, {heads * d * tokens, d * tokens, 1, tokens}),
                   [=](auto h, auto t, auto c) {
                     return as_bytes(v + row_major({batch, heads, d, tokens}, {entry, h, c, t}));
                   }},
                  {&key_memory, &value_memory});
  // repeat_kv without a copy: x[:, :, None].expand(...) has a stride of 0.
  EXPECT_EQ(refusal(view(k, {tokens * heads * d, 0, heads * d, 1})),
            "keys: strides head=0, token=64, channel=1: overlap for 2 heads, 75 tokens, 32 channels");
}

// ---- Rings ----------------------------------------------------------------------------------------------------------

static_assert(lagkv::kv_tensor<lagkv::ring<lagkv::strided<float>>> && lagkv::kv_tensor<lagkv::ring<lagkv::paged<lagkv::q8_0>>>);

TEST(ring, runs_end_where_the_array_does) {
  std::vector<float> x(heads * 10 * d);
  const lagkv::strided<float> array(x.data(), {heads, d}, {10 * d, d}, 10);
  const lagkv::ring view(array, 7);
  const auto is = [&](lagkv::token_range range, std::size_t slot, std::size_t run) {
    const lagkv::tile t = view.at(1, range);
    EXPECT_EQ(t.data, array.at(1, {slot, slot + 1}).data);
    EXPECT_EQ(t.tokens, run);
    EXPECT_EQ(t.token_stride, static_cast<std::ptrdiff_t>(d));
  };
  EXPECT_EQ(view.capacity(), 10U);
  is({0, 3}, 7, 3);
  is({0, 4}, 7, 3);
  is({2, 10}, 9, 1);
  is({3, 10}, 0, 7);
  is({5, 6}, 2, 1);
  is({0, 1}, 7, 1);
}

TEST(ring, what_is_no_ring_is_refused) {
  std::vector<float> x(heads * 80 * d);
  const auto message = [&](lagkv::strides distance, std::size_t slots_of_it, std::size_t first, std::size_t n = tokens) {
    return lagkv::ring(lagkv::strided<float>(x.data(), {heads, d}, distance, slots_of_it), first).check(n).message();
  };
  EXPECT_EQ(message({80 * d, d}, 80, 79), "");
  EXPECT_EQ(message({80 * d, d}, 80, 79, 80), "");
  EXPECT_EQ(message({80 * d, d}, 80, 80), "ring: first=80: must be below the 80 slots");
  EXPECT_EQ(message({80 * d, d}, 0, 0, 0), "ring: first=0: must be below the 0 slots");
  EXPECT_EQ(message({80 * d, d}, 74, 3), "ring: tokens=75: must be at most the 74 slots");
  EXPECT_EQ(message({80 * d, d}, lagkv::strided<float>::unbounded, 3),
            "ring: capacity is unbounded: must be the number of slots");
  std::vector<lagkv::q4_0> pool(blocks * block * heads);
  const std::vector<std::int32_t> twice{7, 8, 2, 11, 7};
  const lagkv::paged<lagkv::q4_0> in_blocks(pool.data(), {heads, d}, {block, block * heads, {1, heads}, blocks}, twice);
  EXPECT_EQ(lagkv::ring(in_blocks, 40).check(60).message(), "block 7: stands twice in the table");
  // Overlaps count over all slots: those not in use now will be.
  EXPECT_NE(message({76 * d, d}, 80, 3, 70).find("overlap for 2 heads, 80 tokens"), std::string::npos);
}

/// Rings of any array: wherever the first token lies.
TEST(ring, every_first_slot) {
  constexpr std::size_t n_slots = 77;
  for (std::size_t first = 0; first < n_slots; ++first) {
    SCOPED_TRACE(first);
    bytes key_memory, value_memory;
    auto* k = filled<std::uint16_t>(key_memory, dtype::f16, n_slots * heads * (d + 3), 35);
    auto* v = filled<float>(value_memory, dtype::f32, heads * d * n_slots, 36);
    const lagkv::ring keys(lagkv::strided<lagkv::f16>(k, {heads, d}, {d + 3, heads * (d + 3)}, n_slots), first);
    const lagkv::ring values(lagkv::strided<float>(v, {heads, d}, {d * n_slots, 1, n_slots}, n_slots), first);
    expect_as_plain({keys,
                     [=](auto h, auto t, auto c) {
                       return as_bytes(k + row_major({n_slots, heads, d + 3}, {(first + t) % n_slots, h, c}));
                     }},
                    {values,
                     [=](auto h, auto t, auto c) {
                       return as_bytes(v + row_major({heads, d, n_slots}, {h, c, (first + t) % n_slots}));
                     }},
                    {&key_memory, &value_memory});
    if (HasFatalFailure()) return;
  }
}

/// Of blocks in a table, and of bytes whose scales lie in a ring of their own.
TEST(ring, of_blocks_and_under_scales) {
  bytes key_memory, value_memory, scale_memory;
  auto* k = filled<lagkv::q4_0>(key_memory, dtype::q4_0, blocks * block * heads, 37);
  auto* v = filled<std::int8_t>(value_memory, dtype::int8, 80 * heads * d, 38);
  auto* s = filled<float>(scale_memory, dtype::f32, 80 * heads, 39);
  for (const std::size_t first : {std::size_t{0}, std::size_t{4}, std::size_t{37}, std::size_t{79}}) {
    SCOPED_TRACE(first);
    const lagkv::paged<lagkv::q4_0> in_blocks(k, {heads, d}, {block, block * heads, {1, heads}, blocks}, some_blocks);
    const lagkv::ring keys(in_blocks, first);
    const lagkv::scaled values(lagkv::ring(lagkv::strided<std::int8_t>(v, {heads, d}, {d, heads * d}, 80), first),
                               lagkv::ring(lagkv::strided<float>(s, {heads, 1}, {1, heads}, 80), first));
    expect_as_plain({keys,
                     [=](auto h, auto t, auto) {
                       const std::size_t slot = (first + t) % 80;
                       return as_bytes(k + row_major({blocks, block, heads}, {block_of(slot), slot % block, h}));
                     }},
                    {values,
                     [=](auto h, auto t, auto c) {
                       return as_bytes(v + row_major({80, heads, d}, {(first + t) % 80, h, c}));
                     },
                     [=](auto h, auto t) {
                       return s + row_major({80, heads}, {(first + t) % 80, h});
                     },
                     1},
                    {&key_memory, &value_memory, &scale_memory});
  }
}

/// A host with a ring, as docs/layouts.md tells it to go on: a stream that goes round many times, against a plain cache.
TEST(ring, a_stream_goes_round) {
  constexpr std::size_t slots_of_ring = 80, all = 700;
  const cube k = make_cube(40, heads, all, d), v = make_cube(41, heads, all, d);
  const lagkv::policy policy = named("lagkv:sink=3,lag=16,ratio=0.25");
  for (const lagkv::toward direction : directions) {
    SCOPED_TRACE(direction == lagkv::toward::front ? "front" : "window");
    std::vector<float> key_slots(heads * slots_of_ring * d), value_slots = key_slots;
    const lagkv::strides distance{slots_of_ring * d, d};
    lagkv::workspace workspace, plain_ws;
    lagkv::cursor cursor, plain_at;
    host plain_k(layout::heads_first, dtype::f32, heads, all, d), plain_v = plain_k;
    std::size_t first = 0, used = 0, plain_used = 0, freed_in_all = 0;
    for (std::size_t position = 0; position < all; ++position) {
      if (used == slots_of_ring) break;  // survivors fill it: the stream ends here
      const std::size_t slot = (first + used++) % slots_of_ring;
      ASSERT_TRUE(direction == lagkv::toward::front || slot == position % slots_of_ring);
      for (std::size_t h = 0; h < heads; ++h) {
        std::copy_n(k.row(h, position), d, &key_slots[(h * slots_of_ring + slot) * d]);
        std::copy_n(v.row(h, position), d, &value_slots[(h * slots_of_ring + slot) * d]);
      }
      plain_k.put(k, position, plain_used), plain_v.put(v, position, plain_used), ++plain_used;

      const lagkv::ring keys(lagkv::strided<float>(key_slots.data(), {heads, d}, distance, slots_of_ring), first);
      const lagkv::ring values(lagkv::strided<float>(value_slots.data(), {heads, d}, distance, slots_of_ring), first);
      const lagkv::layer layer{keys, values, used};
      ASSERT_EQ(check(policy, layer).message(), "");
      if (direction == lagkv::toward::front) {
        used = compress(policy, layer, cursor, workspace, lagkv::toward::front);
      } else {
        const std::size_t left = compress(policy, layer, cursor, workspace, lagkv::toward::window), freed = layer.tokens - left;
        if (freed > 0) {
          lagkv::plan before_the_hole;  // rows [0, begin) go to the end of [0, begin + freed)
          const std::size_t begin = lagkv::last_plan(workspace).candidates.begin;
          before_the_hole.reset({0, begin + freed}, layer.tokens, heads, begin);
          for (std::size_t h = 0; h < heads; ++h) std::iota(before_the_hole.row(h), before_the_hole.row(h) + begin, 0U);
          compact(layer, before_the_hole, lagkv::toward::window);
          first = (first + freed) % slots_of_ring, used = left;
        }
        freed_in_all += freed;
        ASSERT_EQ(first, freed_in_all % slots_of_ring);
      }

      plain_used = compress(policy, {plain_k.view(), plain_v.view(), plain_used}, plain_at, plain_ws);
      ASSERT_EQ(used, plain_used);
      ASSERT_EQ(cursor, plain_at);
      const lagkv::ring now(lagkv::strided<float>(key_slots.data(), {heads, d}, distance, slots_of_ring), first);
      const lagkv::ring values_now(lagkv::strided<float>(value_slots.data(), {heads, d}, distance, slots_of_ring), first);
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t t = 0; t < used; ++t)
          for (const auto& [view, right] : {std::pair{&now, &plain_k}, {&values_now, &plain_v}}) {
            const row_bits expected = right->row(h, t);
            ASSERT_EQ(std::memcmp(view->at(h, {t, t + 1}).data, expected.data(), d * sizeof(float)), 0) << h << " " << t;
          }
    }
    EXPECT_GT(cursor.seen(), 2 * slots_of_ring);
  }
}

TEST(stacked, layers_keep_the_same_tokens) {
  constexpr std::size_t layers = 3, all = 200;
  std::vector<std::vector<std::uint16_t>> memory(2 * layers, std::vector<std::uint16_t>(heads * all * d));
  std::vector<lagkv::strided<lagkv::f16>> keys, values;
  for (std::size_t i = 0; i < 2 * layers; ++i) {
    const cube x = make_cube(70 + static_cast<unsigned>(i), heads, all, d);
    std::transform(x.x.begin(), x.x.end(), memory[i].begin(),
                   [](float number) { return static_cast<std::uint16_t>(encoded(dtype::f16, number)); });
    (i < layers ? keys : values).emplace_back(memory[i].data(), lagkv::shape{heads, d}, lagkv::strides{all * d, d}, all);
  }
  const auto before = memory;
  std::size_t used = all;
  lagkv::cursor cursor;
  lagkv::workspace workspace;

  // keys, values: a std::vector<lagkv::strided<lagkv::f16>> each, a view for each layer, of the same heads and channels
  const lagkv::stacked<lagkv::strided<lagkv::f16>> all_keys(keys), all_values(values);
  used = compress(*lagkv::parse("key_diff:heads=shared,keep=0.25"), {all_keys, all_values, used}, cursor, workspace);

  const lagkv::plan& plan = lagkv::last_plan(workspace);
  ASSERT_LT(used, all);
  for (std::size_t h = 0; h < layers * heads; ++h)
    for (std::size_t t = 0; t < used; ++t) {
      ASSERT_EQ(plan.source(h, t), plan.source(0, t)) << "all heads of all layers";
      const std::size_t row = (h % heads * all + t) * d, from = (h % heads * all + plan.source(0, t)) * d;
      for (const std::size_t i : {h / heads, layers + h / heads})
        ASSERT_EQ(std::memcmp(&memory[i][row], &before[i][from], d * sizeof(std::uint16_t)), 0) << i << " " << h << " " << t;
    }
}

// ---- The page -------------------------------------------------------------------------------------------------------

std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find_first_not_of(' ');
    out.push_back(first == std::string::npos ? "" : line.substr(first));
  }
  return out;
}

// Indentation and line breaks apart, each piece of code of the page stands in this file.
TEST(page, code_is_that_of_this_file) {
  const auto joined = [](const std::vector<std::string>& lines) {
    std::string out;
    for (const std::string& line : lines)
      for (const char c : line)
        if (c != ' ') out += c;
    return out;
  };
  const std::string here = joined(lines_of(std::string(LAGKV_GOLDEN) + "/../layouts_test.cpp"));
  const std::vector<std::string> page = lines_of(std::string(LAGKV_GOLDEN) + "/../../docs/layouts.md");
  ASSERT_FALSE(here.empty() || page.empty());
  std::size_t pieces = 0;
  for (std::size_t i = 0; i < page.size(); ++i) {
    if (page[i] != "```cpp") continue;
    std::vector<std::string> piece;
    for (++i; i < page.size() && page[i] != "```"; ++i) piece.push_back(page[i]);
    EXPECT_NE(here.find(joined(piece)), std::string::npos) << "docs/layouts.md, before line " << i + 1 << ":\n" << piece[0];
    ++pieces;
  }
  EXPECT_GE(pieces, 10U);
}

}  // namespace
