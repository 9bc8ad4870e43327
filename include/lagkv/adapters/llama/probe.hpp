// Part of lagkv (MIT). Finds a context's cache in host memory, and which cell each position took, from its eval callback.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <lagkv/adapters/llama/views.hpp>

namespace lagkv::llama {

/// Attach it to the parameters of a context before the context is made, and keep it where it is for as long as the
/// context lives. It is asked about every node of each graph and asks for none of them: nothing is computed differently
/// or slowed down. A callback that was set before is still called.
///
/// Without a probe (or where it sees a cache it cannot use) compression goes through the state API.
class cache_probe {
 public:
  cache_probe() = default;
  cache_probe(const cache_probe&) = delete;
  cache_probe& operator=(const cache_probe&) = delete;

  void attach(llama_context_params& params) {
    next_ = params.cb_eval;
    next_data_ = params.cb_eval_user_data;
    params.cb_eval = [](ggml_tensor* node, bool ask, void* self) { return static_cast<cache_probe*>(self)->see(node, ask); };
    params.cb_eval_user_data = this;
  }

  struct cached_layer {
    int id = -1;
    matrix keys, values;
    bool has_values() const { return values.data != nullptr; }
  };

  /// The layers whose cache has been seen, in the order of their ids.
  const std::vector<cached_layer>& layers() const { return layers_; }

  /// Empty where the cache can be worked on in place; else why not.
  const std::string& obstacle() const { return obstacle_; }

  /// The cell of a position, or -1.
  std::int32_t cell_of(llama_pos position) const {
    const auto p = static_cast<std::size_t>(position);
    return position >= 0 && p < cells_.size() ? cells_[p] : -1;
  }

  /// Tells which cells hold which positions, after the host (or a repack) has put them there by llama_state_seq_set_data.
  void set_cells(std::vector<std::int32_t> cell_of_position) { cells_ = std::move(cell_of_position); }

 private:
  /// "cache_k_l12" -> 12; -1 for any other name: views and copies of the cache carry the same beginning.
  static int layer_of(const ggml_tensor* t, char side) {
    const std::string_view name(t->name), prefix = side == 'k' ? "cache_k_l" : "cache_v_l";
    if (name.substr(0, prefix.size()) != prefix || name.size() == prefix.size()) return -1;
    int id = -1;
    const auto [end, failure] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), id);
    return failure == std::errc{} && end == name.data() + name.size() ? id : -1;
  }

  static const ggml_tensor* origin(const ggml_tensor* t) {
    while (t != nullptr && t->view_src != nullptr) t = t->view_src;
    return t;
  }

  static bool in_host_memory(const ggml_tensor* t) {
    return t != nullptr && t->data != nullptr && t->buffer != nullptr && ggml_backend_buffer_is_host(t->buffer);
  }

  bool see(ggml_tensor* node, bool ask) {
    if (ask) {
      if (node->op == GGML_OP_ROPE) see_positions(node);
      if (node->op == GGML_OP_SET_ROWS) see_store(node);
    }
    return next_ != nullptr ? next_(node, ask, next_data_) : !ask;
  }

  void see_positions(const ggml_tensor* node) {
    if (layer_of(origin(node->src[0]), 'k') >= 0)  // a context shift rotates the cache itself and renumbers its cells
      cells_.clear();
    else
      positions_ = node->src[1];
  }

  void see_store(const ggml_tensor* node) {
    const ggml_tensor* cache = origin(node);
    const int key_layer = layer_of(cache, 'k'), value_layer = layer_of(cache, 'v');
    if (key_layer < 0 && value_layer < 0) return;
    if (!in_host_memory(cache)) obstacle_ = "the cache is not in host memory";
    if (cache->ne[2] > 1) obstacle_ = "the cache has several streams";
    const auto width = static_cast<std::size_t>(cache->ne[0]), cells = static_cast<std::size_t>(cache->ne[1]);
    // Without flash attention values are stored element by element into the transposed cache: rows of one element.
    const bool transposed = value_layer >= 0 && node->ne[0] == 1 && width > 1;
    cached_layer& l = layer(key_layer >= 0 ? key_layer : value_layer);
    (key_layer >= 0 ? l.keys : l.values) = {cache->data, cache->type, width, transposed ? cells : width, transposed};
    if (key_layer >= 0 && key_layer == layers_.front().id) see_cells(node->src[1]);
  }

  cached_layer& layer(int id) {
    auto at = layers_.begin();
    while (at != layers_.end() && at->id < id) ++at;
    if (at == layers_.end() || at->id != id) at = layers_.insert(at, cached_layer{.id = id, .keys = {}, .values = {}});
    return *at;
  }

  void see_cells(const ggml_tensor* indices) {
    const ggml_tensor* positions = positions_;
    if (!in_host_memory(indices) || !in_host_memory(positions) || indices->type != GGML_TYPE_I64 ||
        positions->type != GGML_TYPE_I32 || positions->ne[0] < indices->ne[0]) {
      obstacle_ = "the cells of new tokens cannot be seen";
      return;
    }
    const auto* cell = static_cast<const std::int64_t*>(indices->data);
    const auto* position = static_cast<const std::int32_t*>(positions->data);
    for (std::int64_t i = 0; i < indices->ne[0]; ++i) {
      if (position[i] < 0) continue;
      const auto p = static_cast<std::size_t>(position[i]);
      if (p >= cells_.size()) cells_.resize(p + 1, -1);
      cells_[p] = static_cast<std::int32_t>(cell[i]);
    }
  }

  ggml_backend_sched_eval_callback next_ = nullptr;
  void* next_data_ = nullptr;
  std::vector<cached_layer> layers_;
  std::vector<std::int32_t> cells_;  ///< by position
  const ggml_tensor* positions_ = nullptr;
  std::string obstacle_;
};

}  // namespace lagkv::llama
