// Part of lagkv (MIT). Views of llama.cpp's rows, whether they lie in the cache or in a saved state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <ggml.h>

#include <lagkv/layer.hpp>
#include <lagkv/paged.hpp>
#include <lagkv/tensor.hpp>

namespace lagkv::llama {

/// The keys or the values of one layer: a cell is a row of all heads, or (`transposed`, values without flash attention)
/// an element of each of the heads * channels rows of `pitch` cells.
struct matrix {
  void* data = nullptr;
  ggml_type type = GGML_TYPE_F16;
  std::size_t width = 0;  ///< heads * channels
  std::size_t pitch = 0;  ///< elements from a cell (transposed: from a channel) to the next
  bool transposed = false;
};

/// One layer of the model. `id` is the model's number of it.
struct cached_layer {
  int id = -1;
  matrix keys, values;
  bool has_values() const { return values.data != nullptr; }
};

/// Whether lagkv can read this type. Quantised caches are refused: their rows cannot be viewed as numbers yet.
inline status check_type(ggml_type type, const std::string& what) {
  if (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) return {};
  return error{what + ": type " + ggml_type_name(type) + ": must be f32, f16 or bf16"};
}

/// Row i of the view is cell cells[i]. `cells` must outlive the view; the type has been checked.
inline tensor view(const matrix& m, std::size_t heads, std::span<const std::int32_t> cells) {
  const shape extent{heads, m.width / heads};
  const auto head = static_cast<std::ptrdiff_t>(extent.channels), pitch = static_cast<std::ptrdiff_t>(m.pitch);
  block_layout layout{.tokens = 1, .block = pitch, .within = {.head = head, .token = pitch}};
  if (m.transposed) layout = {.tokens = 1, .block = 1, .within = {.head = head * pitch, .token = 1, .channel = pitch}};
  switch (m.type) {
    case GGML_TYPE_F32:
      return paged<float>(static_cast<float*>(m.data), extent, layout, cells);
    case GGML_TYPE_BF16:
      return paged<bf16>(static_cast<bf16*>(m.data), extent, layout, cells);
    default:
      return paged<f16>(static_cast<f16*>(m.data), extent, layout, cells);
  }
}

/// The rows of `cells` as a layer, or why lagkv cannot read them.
inline result<layer> view(const cached_layer& cached, std::size_t heads, std::span<const std::int32_t> cells) {
  const std::string where = " of layer " + std::to_string(cached.id);
  for (const matrix* m : {&cached.keys, &cached.values}) {
    if (m->data == nullptr) continue;
    const std::string what = (m == &cached.keys ? "keys" : "values") + where;
    if (status ok = check_type(m->type, what); !ok) return error{ok.message()};
    if (m->width % heads != 0)
      return error{what + ": width " + std::to_string(m->width) + ": must be a multiple of the " + std::to_string(heads) +
                   " KV heads"};
  }
  layer l{.keys = view(cached.keys, heads, cells), .values = {}, .tokens = cells.size()};
  if (cached.has_values()) l.values = view(cached.values, heads, cells);
  return l;
}

}  // namespace lagkv::llama
