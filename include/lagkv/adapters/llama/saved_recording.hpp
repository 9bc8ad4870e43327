// Part of lagkv (MIT). A recording as bytes, to be kept beside a saved state. The cells of its rows are not in it: restore()
// finds them again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

namespace detail {

inline constexpr std::uint64_t recording_version = 1;

/// Numbers one after the other, as this machine has them; a list begins with its length.
class number_writer {
 public:
  template <class T>
  void put(const T& x) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&x);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof x);
  }
  template <class List>
  void put_list(const List& all) {
    put(std::uint64_t{all.size()});
    for (const auto& x : all) put(x);
  }
  std::vector<std::uint8_t> done() && { return std::move(bytes_); }

 private:
  std::vector<std::uint8_t> bytes_;
};

/// The same read again; false where they end.
class number_reader {
 public:
  explicit number_reader(std::span<const std::uint8_t> bytes) : left_(bytes) {}

  template <class T>
  bool take(T& x) {
    if (left_.size() < sizeof x) return false;
    std::memcpy(&x, left_.data(), sizeof x);
    left_ = left_.subspan(sizeof x);
    return true;
  }
  bool take_size(std::size_t& n) {
    std::uint64_t x = 0;
    if (!take(x) || x > (std::numeric_limits<std::size_t>::max)() / 4) return false;
    n = static_cast<std::size_t>(x);
    return true;
  }
  template <class List>
  bool take_list(List& all) {
    std::size_t n = 0;
    if (!take_size(n) || n > left_.size() / sizeof(typename List::value_type)) return false;
    all.resize(n);
    for (auto& x : all) take(x);
    return true;
  }
  bool at_end() const { return left_.empty(); }

 private:
  std::span<const std::uint8_t> left_;
};

}  // namespace detail

/// For load_recording() on a machine of the same byte order.
inline std::vector<std::uint8_t> save(const recording& r) {
  const recorded_numbers all = r.numbers();
  detail::number_writer to;
  to.put(detail::recording_version);
  to.put(std::uint64_t{all.what.queries}), to.put(std::uint8_t{all.what.accumulated_attention});
  to.put_list(all.obstacle);
  to.put_list(all.rows);
  to.put(std::uint64_t{all.layers.size()});
  for (const recorded_numbers::of_layer& l : all.layers) {
    to.put(std::int32_t{l.id}), to.put(l.last), to.put(l.scale);
    for (const std::size_t n : {l.query_heads, l.channels, l.hadamard_block, l.heads}) to.put(std::uint64_t{n});
    to.put_list(l.queries), to.put_list(l.accumulated_attention);
  }
  return std::move(to).done();
}

/// The recording that was saved; refused where the bytes are not one, to the last of them. Costs at most their size in memory.
inline result<recording> load_recording(std::span<const std::uint8_t> bytes) {
  const auto ended = error{"saved recording: ends too early"};
  detail::number_reader from(bytes);
  std::uint64_t version = 0;
  if (!from.take(version)) return ended;
  if (version != detail::recording_version)
    return error{"saved recording of version " + std::to_string(version) + ": must be " +
                 std::to_string(detail::recording_version)};
  recorded_numbers all;
  std::uint8_t accumulated = 0;
  std::size_t layers = 0;
  if (!from.take_size(all.what.queries) || !from.take(accumulated) || !from.take_list(all.obstacle) ||
      !from.take_list(all.rows) || !from.take_size(layers))
    return ended;
  all.what.accumulated_attention = accumulated != 0;
  for (std::size_t i = 0; i < layers; ++i) {
    recorded_numbers::of_layer l;
    std::int32_t id = 0;
    if (!from.take(id) || !from.take(l.last) || !from.take(l.scale)) return ended;
    l.id = id;
    for (std::size_t* n : {&l.query_heads, &l.channels, &l.hadamard_block, &l.heads})
      if (!from.take_size(*n)) return ended;
    if (!from.take_list(l.queries) || !from.take_list(l.accumulated_attention)) return ended;
    all.layers.push_back(std::move(l));
  }
  if (!from.at_end()) return error{"saved recording: more bytes follow it"};
  return recording::of(std::move(all));
}

}  // namespace lagkv::inline LAGKV_ABI::llama
