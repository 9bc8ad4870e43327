// A host's cache in every layout that the library promises to take, with canaries in every byte that is not the cache's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "cube.hpp"

namespace support {

enum class layout : std::uint8_t {
  heads_first,        ///< [heads, tokens, channels]
  tokens_first,       ///< [tokens, heads, channels]
  padded,             ///< rows with room behind them
  transposed,         ///< [heads, channels, tokens]
  both_strided,       ///< no stride is 1
  backwards,          ///< heads and tokens at negative strides
  mirrored,           ///< channels at stride -1
  slots,              ///< blocks of one token, shuffled
  blocks_of_7,        ///< shuffled, and no multiple of anything
  blocks_of_16,       ///< shuffled, [block, token, head, channel]
  blocks_in_order,    ///< the pool's order: runs longer than a block
  blocks_transposed,  ///< [block, head, channel, token], shuffled
  ring                ///< a view type that the library does not know
};

inline constexpr layout all_layouts[] = {
    layout::heads_first,     layout::tokens_first,      layout::padded, layout::transposed,  layout::both_strided,
    layout::backwards,       layout::mirrored,          layout::slots,  layout::blocks_of_7, layout::blocks_of_16,
    layout::blocks_in_order, layout::blocks_transposed, layout::ring};

inline const char* name(layout l) {
  constexpr const char* names[] = {"heads_first",     "tokens_first",      "padded", "transposed",  "both_strided",
                                   "backwards",       "mirrored",          "slots",  "blocks_of_7", "blocks_of_16",
                                   "blocks_in_order", "blocks_transposed", "ring"};
  return names[static_cast<std::size_t>(l)];
}
inline std::ostream& operator<<(std::ostream& out, layout l) { return out << name(l); }

inline constexpr lagkv::dtype all_types[] = {lagkv::dtype::f32, lagkv::dtype::f16, lagkv::dtype::bf16};

/// Token t of a head lies in slot (first + t) % capacity.
struct ring_view {
  std::byte* data;
  std::size_t head_count, channel_count, slots, first;
  lagkv::dtype element;

  lagkv::dtype type() const { return element; }
  std::size_t heads() const { return head_count; }
  std::size_t channels() const { return channel_count; }
  std::size_t capacity() const { return slots; }
  lagkv::tile at(std::size_t head, lagkv::token_range tokens) const {
    const std::size_t slot = (first + tokens.begin) % slots, left = slots - slot;
    return {data + (head * slots + slot) * channel_count * lagkv::size_of(element), tokens.size() < left ? tokens.size() : left,
            static_cast<std::ptrdiff_t>(channel_count), 1};
  }
  lagkv::status check(std::size_t) const { return {}; }
};

/// The element bits of one row.
using row_bits = std::vector<std::uint32_t>;

class host {
 public:
  host(layout l, lagkv::dtype type, std::size_t heads, std::size_t capacity, std::size_t channels)
      : layout_(l), type_(type), heads_(heads), capacity_(capacity), channels_(channels) {
    const auto h = signed_size(heads), t = signed_size(capacity), c = signed_size(channels);
    switch (l) {
      case layout::heads_first:
        regular({t * c, c, 1}, 0);
        break;
      case layout::tokens_first:
        regular({c, h * c, 1}, 0);
        break;
      case layout::padded:
        regular({t * (c + 3) + 5, c + 3, 1}, 2);
        break;
      case layout::transposed:
        regular({t * c, 1, t}, 0);
        break;
      case layout::both_strided:
        regular({t * (2 * c + 3), 2 * c + 3, 2}, 1);
        break;
      case layout::backwards:
        regular({-t * c, -c, 1}, h * t * c - c);
        break;
      case layout::mirrored:
        regular({t * c, c, -1}, c - 1);
        break;
      case layout::slots:
        blocks(1, true, false);
        break;
      case layout::blocks_of_7:
        blocks(7, true, false);
        break;
      case layout::blocks_of_16:
        blocks(16, true, false);
        break;
      case layout::blocks_in_order:
        blocks(8, false, false);
        break;
      case layout::blocks_transposed:
        blocks(16, true, true);
        break;
      case layout::ring:
        regular({t * c, c, 1}, 0);
        break;
    }
  }

  host(layout l, lagkv::dtype type, const cube& x) : host(l, type, x.heads, x.tokens, x.channels) {
    for (std::size_t t = 0; t < x.tokens; ++t) put(x, t, t);
  }

  lagkv::dtype type() const { return type_; }
  std::size_t heads() const { return heads_; }

  /// Token `from` of x becomes row `to` of every head.
  void put(const cube& x, std::size_t from, std::size_t to) {
    for (std::size_t h = 0; h < heads_; ++h)
      for (std::size_t c = 0; c < channels_; ++c) set(h, to, c, encoded(type_, x.row(h, from)[c]));
  }

  void set(std::size_t head, std::size_t token, std::size_t channel, std::uint32_t bits) {
    std::memcpy(memory_.data() + offset(head, token, channel), &bits, lagkv::size_of(type_));
  }

  row_bits row(std::size_t head, std::size_t token) const {
    row_bits out(channels_);
    for (std::size_t c = 0; c < channels_; ++c)
      std::memcpy(&out[c], memory_.data() + offset(head, token, c), lagkv::size_of(type_));
    return out;
  }

  lagkv::tensor view() {
    switch (type_) {
      case lagkv::dtype::f32:
        return view_as<float>();
      case lagkv::dtype::f16:
        return view_as<lagkv::f16>();
      default:
        return view_as<lagkv::bf16>();
    }
  }

  /// Whether every byte that is not the cache's is as it was.
  bool intact() const {
    if (!between_) between_ = bytes_between();
    return std::ranges::all_of(*between_, [&](std::size_t i) { return memory_[i] == canary; });
  }

 private:
  static constexpr std::byte canary{0xc5};
  static constexpr std::size_t ring_start = 11;

  static std::ptrdiff_t signed_size(std::size_t n) { return static_cast<std::ptrdiff_t>(n); }

  void allocate(std::size_t elements) { memory_.assign(elements * lagkv::size_of(type_), canary); }

  void regular(lagkv::strides s, std::ptrdiff_t origin) {
    within_ = s, origin_ = origin;
    std::ptrdiff_t last = origin;
    for (auto [n, stride] : {std::pair{heads_, s.head}, {capacity_, s.token}, {channels_, s.channel}})
      last += stride > 0 ? stride * signed_size(n - 1) : 0;
    allocate(static_cast<std::size_t>(last) + 4);
  }

  void blocks(std::size_t tokens, bool shuffled, bool transposed) {
    const auto h = signed_size(heads_), c = signed_size(channels_), b = signed_size(tokens);
    const std::size_t used = (capacity_ + tokens - 1) / tokens, pool = used + 3;
    block_tokens_ = tokens;
    within_ = transposed ? lagkv::strides{c * b, 1, b} : lagkv::strides{c, h * c, 1};
    block_stride_ = b * h * c;
    table_.resize(pool);
    std::iota(table_.begin(), table_.end(), 0);
    if (shuffled) {
      std::mt19937 random(7);
      std::shuffle(table_.begin(), table_.end(), random);
    }
    table_.resize(used);
    allocate(pool * tokens * heads_ * channels_);
  }

  std::vector<std::size_t> bytes_between() const {
    std::vector<char> ours(memory_.size());
    for (std::size_t h = 0; h < heads_; ++h)
      for (std::size_t t = 0; t < capacity_; ++t)
        for (std::size_t c = 0; c < channels_; ++c) std::fill_n(ours.begin() + signed_size(offset(h, t, c)), size_of(type_), 1);
    std::vector<std::size_t> between;
    for (std::size_t i = 0; i < memory_.size(); ++i)
      if (ours[i] == 0) between.push_back(i);
    return between;
  }

  std::size_t offset(std::size_t head, std::size_t token, std::size_t channel) const {
    std::ptrdiff_t at = origin_;
    if (block_tokens_ != 0) {
      at += table_[token / block_tokens_] * block_stride_;
      token %= block_tokens_;
    }
    if (layout_ == layout::ring) token = (token + ring_start) % capacity_;
    at += signed_size(head) * within_.head + signed_size(token) * within_.token + signed_size(channel) * within_.channel;
    return static_cast<std::size_t>(at) * lagkv::size_of(type_);
  }

  template <class T>
  lagkv::tensor view_as() {
    T* data = reinterpret_cast<T*>(memory_.data()) + origin_;
    if (layout_ == layout::ring) return ring_view{memory_.data(), heads_, channels_, capacity_, ring_start % capacity_, type_};
    if (block_tokens_ == 0) return lagkv::strided<T>(data, {heads_, channels_}, within_, capacity_);
    return lagkv::paged<T>(data, {heads_, channels_}, {block_tokens_, block_stride_, within_, 0}, table_);
  }

  layout layout_;
  lagkv::dtype type_;
  std::size_t heads_, capacity_, channels_;
  std::vector<std::byte> memory_;
  mutable std::optional<std::vector<std::size_t>> between_;  // bytes that are not the cache's, once they were asked for
  lagkv::strides within_{};
  std::ptrdiff_t origin_ = 0, block_stride_ = 0;
  std::size_t block_tokens_ = 0;
  std::vector<std::int32_t> table_;
};

/// Keys and values together.
struct cache {
  host keys, values;

  cache(layout l, lagkv::dtype type, const cube& k, const cube& v) : keys(l, type, k), values(l, type, v) {}
  cache(host k, host v) : keys(std::move(k)), values(std::move(v)) {}

  lagkv::layer layer(std::size_t tokens) { return {keys.view(), values.view(), tokens}; }
  bool intact() const { return keys.intact() && values.intact(); }
};

/// Every instruction set that this machine runs, the plain one first.
inline std::vector<lagkv::simd::target> targets() {
  std::vector<lagkv::simd::target> out;
  for (auto t : lagkv::simd::all_targets)
    if (lagkv::simd::supported(t)) out.push_back(t);
  return out;
}

/// Names a test that has a target as its parameter.
struct target_name {
  template <class Info>
  std::string operator()(const Info& i) const {
    return lagkv::simd::name(i.param);
  }
};

/// The policy that the string names; an empty one, which fails whatever uses it, where it names none.
inline lagkv::policy named(const std::string& text) {
  auto p = lagkv::parse(text);
  return p ? *p : lagkv::policy{};
}

}  // namespace support
