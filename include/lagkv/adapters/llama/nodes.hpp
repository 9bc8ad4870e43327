// Part of lagkv (MIT). What a node of llama.cpp's graph tells: whose cache it touches, which attention it computes.
#pragma once

#include <charconv>
#include <cstring>
#include <string_view>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>

#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>

namespace lagkv::inline LAGKV_ABI::llama::detail {

/// The tensor whose memory `t` views.
inline const ggml_tensor* origin(const ggml_tensor* t) {
  while (t != nullptr && t->view_src != nullptr) t = t->view_src;
  return t;
}

inline bool in_host_memory(const ggml_tensor* t) {
  return t != nullptr && t->data != nullptr && t->buffer != nullptr && ggml_backend_buffer_is_host(t->buffer);
}

/// "cache_k_l12" -> 12; -1 for any other name: views and copies of the cache carry the same beginning.
inline int cached_layer_of(const ggml_tensor* t, char side) {
  if (t == nullptr) return -1;
  const std::string_view name(t->name), prefix = side == 'k' ? "cache_k_l" : "cache_v_l";
  if (name.substr(0, prefix.size()) != prefix || name.size() == prefix.size()) return -1;
  int id = -1;
  const auto [end, failure] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), id);
  return failure == std::errc{} && end == name.data() + name.size() ? id : -1;
}

/// The entry of that id in a list that is kept in the order of ids; a new one where there is none.
template <class Entry>
Entry& of_id(std::vector<Entry>& list, int id) {
  auto at = list.begin();
  while (at != list.end() && at->id < id) ++at;
  if (at == list.end() || at->id != id) {
    at = list.insert(at, Entry{});
    at->id = id;
  }
  return *at;
}

/// Where queries meet the cached keys of a layer.
struct attention {
  int layer = -1;                        ///< -1: elsewhere
  const ggml_tensor* queries = nullptr;  ///< [channels, tokens, query heads, streams]
  const ggml_tensor* keys = nullptr;     ///< [channels, cells, KV heads, streams]
};

/// Flash attention, or the product of keys and queries that the softmax follows (llama-graph.cpp, build_attn_mha).
inline attention attention_of(const ggml_tensor* node) {
  const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
  if (!flash && node->op != GGML_OP_MUL_MAT) return {};
  const ggml_tensor* keys = node->src[flash ? 1 : 0];
  if (flash && keys->op == GGML_OP_CPY) keys = keys->src[0];  // f32 caches are cast to f16 there
  return {cached_layer_of(origin(keys), 'k'), node->src[flash ? 0 : 1], keys};
}

/// The mask of a node of flash attention, or of the softmax of one without; null where it has none.
inline const ggml_tensor* mask_of(const ggml_tensor* node) {
  const ggml_tensor* mask = node->src[node->op == GGML_OP_FLASH_ATTN_EXT ? 3 : 1];
  while (mask != nullptr && (mask->op == GGML_OP_CPY || mask->op == GGML_OP_CONT)) mask = mask->src[0];  // cast to f16
  return mask;
}

/// What multiplies q.k in a node of flash attention, or in the softmax of one without. Refused where more than that and the
/// causal mask stands between the product and the weights.
inline result<float> scale_of(const ggml_tensor* node) {
  const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
  float parameters[3] = {};  // scale, slope of a bias by distance, cap of the logits
  std::memcpy(parameters, node->op_params, (flash ? 3 : 2) * sizeof(float));
  if (parameters[1] != 0) return error{"the model's attention has a bias by distance (ALiBi): not taken"};
  if (parameters[2] != 0) return error{"the model caps its attention logits: not taken"};
  if (node->src[flash ? 4 : 2] != nullptr) return error{"the model's softmax has sinks of its own: not taken"};
  return parameters[0];
}

}  // namespace lagkv::inline LAGKV_ABI::llama::detail
