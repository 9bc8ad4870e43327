// Part of lagkv (MIT). Views of llama.cpp's rows, whether they lie in the cache or in a saved state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <ggml.h>

#include <lagkv/cache/layer.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/dtype.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/paged.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// The keys or the values of one layer: a cell is a row of all heads, or (`transposed`, values without flash attention)
/// an element of each of the heads * channels rows of `pitch` cells.
struct matrix {
  void* data = nullptr;
  ggml_type type = GGML_TYPE_F16;
  std::size_t width = 0;  ///< heads * channels
  std::size_t pitch = 0;  ///< elements from a cell (transposed: from a channel) to the next
  bool transposed = false;
  std::size_t hadamard_block = 0;  ///< where rows are stored transformed (hadamard.hpp), as seen in the graph
};

/// One layer of the model. `id` is the model's number of it.
struct cached_layer {
  int id = -1;
  matrix keys{}, values{};
  std::size_t heads = 0;        ///< KV heads; 0: not known
  std::size_t value_width = 0;  ///< of values as they are read, where the cache pads them; 0: not known
  std::size_t stream_bytes_of_keys = 0, stream_bytes_of_values = 0;  ///< from a stream's data to the next one's
  bool has_values() const { return values.data != nullptr; }

  /// The rows of one stream.
  cached_layer of_stream(std::size_t stream) const {
    const auto at = [&](matrix m, std::size_t bytes) {
      if (m.data != nullptr) m.data = static_cast<std::byte*>(m.data) + stream * bytes;
      return m;
    };
    cached_layer l = *this;
    l.keys = at(keys, stream_bytes_of_keys), l.values = at(values, stream_bytes_of_values);
    return l;
  }
};

/// Has the layers of a saved state know what only a graph shows: the model's number of each, its heads, how its rows are stored.
/// False, and nothing done, where these are not as many layers.
inline bool take_seen(std::span<cached_layer> of_state, std::span<const cached_layer> seen) {
  if (seen.size() != of_state.size()) return false;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    cached_layer& l = of_state[i];
    l.id = seen[i].id, l.heads = seen[i].heads;
    l.keys.hadamard_block = seen[i].keys.hadamard_block, l.values.hadamard_block = seen[i].values.hadamard_block;
  }
  return true;
}

/// Bytes of the keys, or values, of a cell.
inline std::size_t row_bytes(const matrix& m) { return ggml_row_size(m.type, static_cast<std::int64_t>(m.width)); }

/// The element type that a type of ggml is here, or that lagkv cannot read it.
inline result<dtype> dtype_of_ggml(ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32:
      return dtype::f32;
    case GGML_TYPE_F16:
      return dtype::f16;
    case GGML_TYPE_BF16:
      return dtype::bf16;
    case GGML_TYPE_Q8_0:
      return dtype::q8_0;
    case GGML_TYPE_Q4_0:
      return dtype::q4_0;
    case GGML_TYPE_Q4_1:
      return dtype::q4_1;
    case GGML_TYPE_Q5_0:
      return dtype::q5_0;
    case GGML_TYPE_Q5_1:
      return dtype::q5_1;
    default:
      return error{std::string("type ") + ggml_type_name(type) + ": must be f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1"};
  }
}

/// Whether lagkv can read and move rows of heads like these.
inline status check(const matrix& m, std::size_t heads, const std::string& what) {
  const result<dtype> type = dtype_of_ggml(m.type);
  if (!type) return error{what + ": " + type.message()};
  if (m.width % heads != 0)
    return error{what + ": width " + std::to_string(m.width) + ": must be a multiple of the " + std::to_string(heads) +
                 " KV heads"};
  const std::size_t block = elements_of(*type);
  if (m.transposed && block > 1)
    return error{what + ": type " + ggml_type_name(m.type) + ", transposed: a block spans " + std::to_string(block) +
                 " tokens, which cannot move alone"};
  if (m.width / heads % block != 0)
    return error{what + ": heads of " + std::to_string(m.width / heads) + ": must be a multiple of the " + std::to_string(block) +
                 " elements of a block of " + ggml_type_name(m.type)};
  return {};
}

namespace detail {

template <class Unit>
tensor view_as(const matrix& m, std::size_t heads, std::span<const std::int32_t> cells) {
  constexpr auto block = static_cast<std::ptrdiff_t>(elements_of(dtype_of<Unit>::value));
  const shape extent{heads, m.width / heads};
  const auto head = static_cast<std::ptrdiff_t>(extent.channels) / block, pitch = static_cast<std::ptrdiff_t>(m.pitch) / block;
  block_layout layout{.tokens = 1, .block = pitch, .within = {.head = head, .token = pitch}};
  if (m.transposed) layout = {.tokens = 1, .block = 1, .within = {.head = head * pitch, .token = 1, .channel = pitch}};
  const paged<Unit> rows(static_cast<Unit*>(m.data), extent, layout, cells);
  if (m.hadamard_block != 0) return hadamard(rows, m.hadamard_block);
  return rows;
}

}  // namespace detail

/// Row i of the view is cell cells[i]. `cells` must outlive the view; the matrix has been checked.
inline tensor view(const matrix& m, std::size_t heads, std::span<const std::int32_t> cells) {
  switch (m.type) {
    case GGML_TYPE_F32:
      return detail::view_as<float>(m, heads, cells);
    case GGML_TYPE_BF16:
      return detail::view_as<bf16>(m, heads, cells);
    case GGML_TYPE_Q8_0:
      return detail::view_as<q8_0>(m, heads, cells);
    case GGML_TYPE_Q4_0:
      return detail::view_as<q4_0>(m, heads, cells);
    case GGML_TYPE_Q4_1:
      return detail::view_as<q4_1>(m, heads, cells);
    case GGML_TYPE_Q5_0:
      return detail::view_as<q5_0>(m, heads, cells);
    case GGML_TYPE_Q5_1:
      return detail::view_as<q5_1>(m, heads, cells);
    default:
      return detail::view_as<f16>(m, heads, cells);
  }
}

namespace detail {

/// Calls visit(bytes, n) for each adjacent part of a cell's row.
template <class Visit>
void for_each_part(const matrix& m, std::int32_t cell, const Visit& visit) {
  const auto* data = static_cast<const std::uint8_t*>(m.data);
  const auto at = static_cast<std::size_t>(cell);
  if (!m.transposed) return visit(data + at * row_bytes(m), row_bytes(m));
  const std::size_t unit = ggml_type_size(m.type);
  for (std::size_t c = 0; c < m.width; ++c) visit(data + (c * m.pitch + at) * unit, unit);
}

}  // namespace detail

/// FNV-1a, over numbers in place of bytes where they are larger.
struct running_hash {
  std::uint64_t value = 14695981039346656037U;
  void add(std::uint32_t x) { value = (value ^ x) * 1099511628211U; }
  friend bool operator==(const running_hash&, const running_hash&) = default;
};

/// A number that a row of all heads is known again by.
inline std::uint64_t mark_of(const matrix& m, std::int32_t cell) {
  running_hash hash;
  detail::for_each_part(m, cell, [&](const std::uint8_t* bytes, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) hash.add(bytes[i]);
  });
  return hash.value;
}

inline std::vector<std::uint64_t> marks_of(const matrix& m, std::span<const std::int32_t> cells) {
  std::vector<std::uint64_t> all;
  for (const std::int32_t cell : cells) all.push_back(mark_of(m, cell));
  return all;
}

/// Whose marks tell a sequence's rows. Of a model the last layer: in the first one all tokens that are the same word have the
/// same values.
inline const matrix& marked(const cached_layer& l) { return l.has_values() ? l.values : l.keys; }

/// Whether two rows are the same, byte by byte.
inline bool same_row(const matrix& a, std::int32_t cell_of_a, const matrix& b, std::int32_t cell_of_b) {
  if (a.type != b.type || a.width != b.width || a.transposed != b.transposed) return false;
  const std::size_t unit = ggml_type_size(a.type);
  const auto *x = static_cast<const std::uint8_t*>(a.data), *y = static_cast<const std::uint8_t*>(b.data);
  const auto i = static_cast<std::size_t>(cell_of_a), j = static_cast<std::size_t>(cell_of_b);
  if (!a.transposed) return std::memcmp(x + i * row_bytes(a), y + j * row_bytes(b), row_bytes(a)) == 0;
  for (std::size_t c = 0; c < a.width; ++c)
    if (std::memcmp(x + (c * a.pitch + i) * unit, y + (c * b.pitch + j) * unit, unit) != 0) return false;
  return true;
}

/// The rows of `cells` as a layer, or why lagkv cannot read them. `heads`: KV heads of a layer that does not know its own.
inline result<layer> view(const cached_layer& cached, std::size_t heads, std::span<const std::int32_t> cells) {
  if (cached.heads != 0) heads = cached.heads;
  const std::string where = " of layer " + std::to_string(cached.id);
  for (const matrix* m : {&cached.keys, &cached.values}) {
    if (m->data == nullptr) continue;
    if (status ok = check(*m, heads, (m == &cached.keys ? "keys" : "values") + where); !ok) return error{ok.message()};
  }
  layer l{.keys = view(cached.keys, heads, cells), .values = {}, .tokens = cells.size()};
  if (cached.has_values()) l.values = view(cached.values, heads, cells);
  return l;
}

}  // namespace lagkv::inline LAGKV_ABI::llama
