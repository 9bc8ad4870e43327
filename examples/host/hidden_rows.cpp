#include "hidden_rows.hpp"

#include <lagkv/adapters/llama/nodes.hpp>

#include <limits>

namespace host {
namespace {

// `products`: of keys and queries, [cells, tokens, query heads].
void hide_in(ggml_tensor* products, const std::vector<std::vector<std::int32_t>>& cells) {
  const auto heads = static_cast<std::size_t>(products->ne[2]), group = heads / cells.size();
  for (std::size_t head = 0; head < heads; ++head)
    for (std::int64_t token = 0; token < products->ne[1]; ++token) {
      auto* row = reinterpret_cast<float*>(static_cast<char*>(products->data) + head * products->nb[2] +
                                           static_cast<std::size_t>(token) * products->nb[1]);
      for (const std::int32_t cell : cells[head / group]) row[cell] = -std::numeric_limits<float>::infinity();
    }
}

}  // namespace

void hidden_rows::attach(llama_context_params& params) {
  params.cb_eval = [](ggml_tensor* node, bool ask, void* self) { return static_cast<hidden_rows*>(self)->see(node, ask); };
  params.cb_eval_user_data = this;
}

bool hidden_rows::see(ggml_tensor* node, bool ask) {
  if (cells_.empty() || node->op != GGML_OP_MUL_MAT) return !ask;
  const auto found = cells_.find(lagkv::llama::detail::attention_of(node).layer);
  if (found == cells_.end()) return !ask;
  if (!ask) hide_in(node, found->second);
  return true;
}

}  // namespace host
