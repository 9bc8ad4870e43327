// The cache of one layer, filled with numbers that look like keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "memory.hpp"

namespace bench {

/// How keys and values lie.
enum class layout : std::uint8_t {
  plain,      ///< [heads, tokens, channels]
  paged,      ///< blocks of 16 tokens, [blocks, heads, 16, channels], in shuffled order
  transposed  ///< keys plain, values [heads, channels, tokens], as llama.cpp keeps them without flash attention
};

class cache {
 public:
  static constexpr std::size_t heads = 8, block = 16;

  cache(lagkv::dtype type, std::size_t dim, std::size_t tokens, std::size_t capacity)
      : type_(type),
        dim_(dim),
        tokens_(tokens),
        capacity_(capacity),
        keys_(heads * capacity * (dim / elements_of(type)) * size_of(type)),
        values_(keys_.size()),
        saved_keys_(keys_.size()),
        saved_values_(keys_.size()) {
    fill(saved_keys_, 1);
    fill(saved_values_, 2);
    table_.resize(capacity / block);
    std::iota(table_.begin(), table_.end(), 0);
    std::mt19937_64 random;
    for (std::size_t i = table_.size(); i > 1; --i) std::swap(table_[i - 1], table_[random() % i]);
    restore();
  }

  lagkv::dtype type() const { return type_; }
  std::size_t dim() const { return dim_; }
  std::size_t tokens() const { return tokens_; }
  std::size_t capacity() const { return capacity_; }
  const memory& keys() const { return keys_; }
  const memory& values() const { return values_; }
  /// Elements of keys and values in use.
  std::size_t elements() const { return 2 * heads * tokens_ * dim_; }
  std::size_t bytes() const { return elements() / elements_of(type_) * size_of(type_); }

  void restore() {
    std::memcpy(keys_.data(), saved_keys_.data(), keys_.size());
    std::memcpy(values_.data(), saved_values_.data(), values_.size());
  }
  void evict() const { bench::evict(keys_), bench::evict(values_); }
  std::uint64_t read() const { return plain_read(keys_) | plain_read(values_); }
  /// One of `parts` pieces, an even number: half of them are of the keys.
  std::uint64_t read(std::size_t part, std::size_t parts) const {
    const std::size_t half = parts / 2;
    return part < half ? plain_read(keys_, part, half) : plain_read(values_, part - half, half);
  }

  lagkv::layer view(layout how = layout::plain) const {
    switch (type_) {
      case lagkv::dtype::f32:
        return view_as<float>(how);
      case lagkv::dtype::f16:
        return view_as<lagkv::f16>(how);
      case lagkv::dtype::int8:
        return view_as<std::int8_t>(how);
      case lagkv::dtype::fp8_e4m3:
        return view_as<lagkv::fp8_e4m3>(how);
      case lagkv::dtype::q8_0:
        return view_as<lagkv::q8_0>(how);
      case lagkv::dtype::q4_0:
        return view_as<lagkv::q4_0>(how);
      default:
        return view_as<lagkv::bf16>(how);
    }
  }

 private:
  template <class T>
  lagkv::layer view_as(layout how) const {
    const lagkv::shape shape{heads, dim_};
    const auto dim = static_cast<std::ptrdiff_t>(dim_ / elements_of(type_)), capacity = static_cast<std::ptrdiff_t>(capacity_);
    T* k = reinterpret_cast<T*>(keys_.data());
    T* v = reinterpret_cast<T*>(values_.data());
    if (how == layout::paged) {
      constexpr auto n = static_cast<std::ptrdiff_t>(block), h = static_cast<std::ptrdiff_t>(heads);
      const lagkv::block_layout blocks{.tokens = block, .block = h * n * dim, .within = {.head = n * dim, .token = dim}};
      const std::span<const std::int32_t> table(table_);
      return {lagkv::paged<T>(k, shape, blocks, table), lagkv::paged<T>(v, shape, blocks, table), tokens_};
    }
    const lagkv::strides rows{.head = capacity * dim, .token = dim};
    const lagkv::strides columns{.head = capacity * dim, .token = 1, .channel = capacity};
    return {lagkv::strided<T>(k, shape, rows, capacity_),
            lagkv::strided<T>(v, shape, how == layout::transposed ? columns : rows, capacity_), tokens_};
  }

  /// Channels differ in scale and offset, as real keys do. Bytes and blocks are any that mean finite numbers.
  void fill(const memory& m, std::uint64_t seed) const {
    std::mt19937_64 random(seed);
    if (size_of(type_) == 1 || elements_of(type_) > 1) {
      for (std::size_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<std::byte>(random() & 0x3f);
      return;
    }
    std::vector<float> scale(dim_), offset(dim_);
    for (std::size_t c = 0; c < dim_; ++c) {
      scale[c] = 0.25F + static_cast<float>(random() % 1024) / 512.0F;
      offset[c] = static_cast<float>(random() % 1024) / 256.0F - 2.0F;
    }
    for (std::size_t i = 0; i < m.size() / size_of(type_); ++i) {
      const std::uint64_t r = random();  // the sum of four uniform numbers is near enough to normal
      const auto sum = static_cast<float>((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48));
      store(m.data(), i, offset[i % dim_] + scale[i % dim_] * (sum / 65536.0F - 2.0F));
    }
  }

  void store(std::byte* to, std::size_t i, float x) const {
    const auto bits = __builtin_bit_cast(std::uint32_t, x);
    if (type_ == lagkv::dtype::f32) {
      std::memcpy(to + 4 * i, &bits, 4);
      return;
    }
    const std::uint32_t magnitude = bits & 0x7fffffffU;  // below 10: rounds down, tiny ones to zero
    const std::uint32_t half = magnitude < 0x38800000U ? 0 : (magnitude - 0x38000000U) >> 13;
    const auto stored = static_cast<std::uint16_t>(type_ == lagkv::dtype::bf16 ? bits >> 16 : (bits >> 16 & 0x8000U) | half);
    std::memcpy(to + 2 * i, &stored, 2);
  }

  lagkv::dtype type_;
  std::size_t dim_, tokens_, capacity_;
  memory keys_, values_, saved_keys_, saved_values_;
  std::vector<std::int32_t> table_;
};

}  // namespace bench
