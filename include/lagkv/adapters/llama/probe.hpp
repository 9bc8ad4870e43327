// Part of lagkv (MIT). Listens to a context's graphs: finds its cache in host memory and which cell each position took, and
// records attention for policies that read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <lagkv/adapters/llama/embedding.hpp>
#include <lagkv/adapters/llama/nodes.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Attach it to the parameters of a context before the context is made, and keep it where it is for as long as the
/// context lives. It is asked about every node of each graph. Unless something is recorded it asks for none of them: nothing
/// is computed differently or slowed down. A callback that was set before is still called.
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

  /// What is recorded of the tokens to come, in place of what was before. One sequence a context is taken. Accumulated attention
  /// needs the cache in host memory; queries come from any.
  void record(const wanted& what) { recording_.keep(what); }

  recording& recorded() { return recording_; }

  /// The rotary embedding of each layer's keys, from the first graph on, in the order of layers().
  const std::vector<embedding>& embeddings() const { return embeddings_; }

  /// The same as ropes of keys of so many channels, one for each of `layers`; their factors stay the probe's.
  result<std::vector<rope>> ropes(std::size_t layers, std::size_t channels) const {
    if (embeddings_.size() != layers)
      return error{"rope: the embeddings of " + std::to_string(embeddings_.size()) + " layers have been seen: must be those of " +
                   std::to_string(layers) + " (decode a token, or give the probe another's embeddings)"};
    std::vector<rope> all;
    for (const embedding& e : embeddings_) {
      const std::string who = "rope: that of layer " + std::to_string(e.id) + " ";
      if (!e.obstacle.empty()) return error{who + e.obstacle};
      if (e.channels != channels)
        return error{who + "turns rows of " + std::to_string(e.channels) + " channels: must be the " + std::to_string(channels) +
                     " of a head"};
      all.push_back(e.with_factors());
    }
    return all;
  }

  /// Those of another context of this model with the same parameters, for one whose sequences are put in as saved states.
  void set_embeddings(std::vector<embedding> all) { embeddings_ = std::move(all); }

  /// In place of what has been recorded, after the host has put back the state that `r` was taken beside.
  void set_recorded(recording r) {
    r.keep(recording_.what());
    recording_ = std::move(r);
  }

 private:
  bool see(ggml_tensor* node, bool ask) {
    if (!ask) {  // the node that was asked for last has been computed
      if (mine_) see_queries(node);
      return theirs_ ? next_(node, false, next_data_) : true;
    }
    if (node->op == GGML_OP_ROPE) see_positions(node);
    if (node->op == GGML_OP_MUL_MAT) see_transform(node->src[0]);
    if (node->op == GGML_OP_SET_ROWS) see_store(node);
    if (multiplied_ != nullptr && node->op == GGML_OP_SOFT_MAX && node->src[0] == multiplied_) see_softmax(node);
    mine_ = recording_.what().any() && detail::attention_of(node).layer >= 0;
    theirs_ = next_ != nullptr && next_(node, true, next_data_);
    return mine_ || theirs_;
  }

  void see_positions(const ggml_tensor* node) {
    if (detail::cached_layer_of(detail::origin(node->src[0]), 'k') < 0) {
      positions_ = node->src[1];
    } else {  // a context shift rotates the cache itself and renumbers its cells
      cells_.clear();
      recording_.clear();
    }
  }

  /// Quantised keys (values) of a context are multiplied by one Hadamard matrix before they are stored, all or none of them.
  void see_transform(const ggml_tensor* matrix) {
    const std::string_view name(matrix->name);
    if (name == "attn_inp_k_rot") key_transform_ = static_cast<std::size_t>(matrix->ne[0]);
    if (name == "attn_inp_v_rot") value_transform_ = static_cast<std::size_t>(matrix->ne[0]);
  }

  void see_store(const ggml_tensor* node) {
    const ggml_tensor* cache = detail::origin(node);
    const int key_layer = detail::cached_layer_of(cache, 'k'), value_layer = detail::cached_layer_of(cache, 'v');
    if (key_layer < 0 && value_layer < 0) return;
    multiplied_ = nullptr;  // no softmax has followed: recording::check() tells
    if (!detail::in_host_memory(cache)) obstacle_ = "the cache is not in host memory";
    if (cache->ne[2] > 1) obstacle_ = "the cache has several streams";
    const auto width = static_cast<std::size_t>(cache->ne[0]), cells = static_cast<std::size_t>(cache->ne[1]);
    // Without flash attention values are stored element by element into the transposed cache: rows of one element.
    const bool transposed = value_layer >= 0 && node->ne[0] == 1 && width > 1;
    cached_layer& l = detail::of_id(layers_, key_layer >= 0 ? key_layer : value_layer);
    (key_layer >= 0 ? l.keys : l.values) = {cache->data, cache->type,
                                            width,       transposed ? cells : width,
                                            transposed,  key_layer >= 0 ? key_transform_ : value_transform_};
    if (key_layer >= 0) see_embedding(key_layer, node->src[0]);
    if (key_layer >= 0 && key_layer == layers_.front().id) see_cells(node->src[1]);
  }

  /// The same in every graph: looked at once, known or not.
  void see_embedding(int layer, const ggml_tensor* stored) {
    const std::size_t before = embeddings_.size();
    embedding& e = detail::of_id(embeddings_, layer);
    if (embeddings_.size() == before) return;
    e = detail::embedding_of(stored);
    e.id = layer;
  }

  void see_cells(const ggml_tensor* indices) {
    const ggml_tensor* positions = positions_;
    if (!detail::in_host_memory(indices) || !detail::in_host_memory(positions) || indices->type != GGML_TYPE_I64 ||
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

  /// With flash attention its node says all; without, the scale is known when the softmax is asked about, before anything
  /// else is computed unless a callback of the host's asks for it: the queries are copied, wherever they lie.
  void see_queries(const ggml_tensor* node) {
    const ggml_tensor* q = detail::attention_of(node).queries;
    queries_.resize(ggml_nbytes(q));
    ggml_backend_tensor_get(q, queries_.data(), 0, queries_.size());
    multiplied_ = node;
    if (node->op == GGML_OP_FLASH_ATTN_EXT) see_softmax(node);
  }

  void see_softmax(const ggml_tensor* node) {
    const detail::attention a = detail::attention_of(multiplied_);
    multiplied_ = nullptr;
    if (layers_.empty() || a.layer < layers_.front().id) return;
    if (a.layer == layers_.front().id) begin_batch(a.queries->ne[1]);
    if (recording_.rows().empty()) return;
    if (const status ok = add(a, detail::scale_of(node)); !ok) recording_.obstruct(ok.message());
  }

  void begin_batch(std::int64_t tokens) {
    if (positions_ == nullptr || positions_->type != GGML_TYPE_I32 || positions_->ne[0] < tokens)
      return recording_.obstruct("the positions of new tokens cannot be seen");
    batch_.resize(static_cast<std::size_t>(tokens));
    ggml_backend_tensor_get(positions_, batch_.data(), 0, batch_.size() * sizeof(llama_pos));
    recording_.append(batch_);
    cells_of_rows_.clear();
    if (recording_.what().accumulated_attention)
      for (const llama_pos p : recording_.rows()) cells_of_rows_.push_back(cell_of(p));
  }

  status add(const detail::attention& a, const result<float>& scale) {
    if (!scale) return error{scale.message()};
    const ggml_tensor* q = a.queries;
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float)) return error{"queries are not rows of f32: not taken"};
    if (q->ne[3] != 1 || a.keys->ne[3] != 1) return error{"the cache has several streams: must be one"};
    if (q->ne[1] != static_cast<std::int64_t>(batch_.size()))
      return error{"layers see different numbers of tokens in a micro-batch: not taken"};
    const auto heads = static_cast<std::size_t>(a.keys->ne[2]);
    const shape extent{static_cast<std::size_t>(q->ne[2]), static_cast<std::size_t>(q->ne[0])};
    const auto distance = [&](int i) { return static_cast<std::ptrdiff_t>(q->nb[i] / sizeof(float)); };
    const strided<float> as_met(reinterpret_cast<float*>(queries_.data()), extent, {.head = distance(2), .token = distance(1)},
                                batch_.size());
    const tensor queries = key_transform_ != 0 ? tensor(hadamard(as_met, key_transform_)) : tensor(as_met);
    tensor keys;
    if (recording_.what().accumulated_attention) {
      const matrix& m = detail::of_id(layers_, a.layer).keys;
      if (!obstacle_.empty()) return error{"accumulated attention: " + obstacle_};
      if (const status ok = check(m, heads, "accumulated attention: cache"); !ok) return ok;
      if (m.width != heads * extent.channels)
        return error{"accumulated attention: the cache's rows are not the keys of all heads: not taken"};
      for (std::size_t i = 0; i < cells_of_rows_.size(); ++i)
        if (cells_of_rows_[i] < 0)
          return error{"accumulated attention: the cell of position " + std::to_string(recording_.rows()[i]) +
                       " has not been seen"};
      keys = view(m, heads, cells_of_rows_);
    }
    recording_.add(a.layer, heads, queries, keys, *scale, workspace_);
    return {};
  }

  ggml_backend_sched_eval_callback next_ = nullptr;
  void* next_data_ = nullptr;
  bool mine_ = false, theirs_ = false;  // who asked for the node
  std::vector<cached_layer> layers_;
  std::vector<std::int32_t> cells_;                      // by position
  std::size_t key_transform_ = 0, value_transform_ = 0;  // channels of the Hadamard matrix, 0: none
  const ggml_tensor* positions_ = nullptr;
  std::string obstacle_;
  std::vector<embedding> embeddings_;

  recording recording_;
  const ggml_tensor* multiplied_ = nullptr;  // the attention node whose queries are held
  std::vector<std::byte> queries_;
  std::vector<llama_pos> batch_;
  std::vector<std::int32_t> cells_of_rows_;
  lagkv::workspace workspace_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
