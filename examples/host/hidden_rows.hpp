// What heads of different lengths would answer, in a cache whose heads all have one: cells are hidden from single heads.
#pragma once

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace host {

/// Has single heads not see some cells, as if their rows were not there: their products with the queries become -infinity before
/// the softmax. For measuring what llama.cpp's cache cannot hold; nothing becomes smaller or faster. Without flash attention,
/// with the cache in host memory.
class hidden_rows {
 public:
  hidden_rows() = default;
  hidden_rows(const hidden_rows&) = delete;
  hidden_rows& operator=(const hidden_rows&) = delete;

  /// Before the context is made, and before a probe is attached, which calls it. It must outlive the context.
  void attach(llama_context_params& params);

  /// From now on, of the layer that llama.cpp gives this number: cells[head], of each KV head, are hidden.
  void hide(int layer, std::vector<std::vector<std::int32_t>> cells) { cells_[layer] = std::move(cells); }

  /// All cells are seen again.
  void clear() { cells_.clear(); }

 private:
  bool see(ggml_tensor* node, bool ask);

  std::map<int, std::vector<std::vector<std::int32_t>>> cells_;  // by layer
};

}  // namespace host
