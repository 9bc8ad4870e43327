// Part of lagkv (MIT). Listens to a context's graphs: finds its caches in host memory and which cells hold which tokens, and
// records attention for policies that read it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/embedding.hpp>
#include <lagkv/adapters/llama/nodes.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Layers whose rows lie in the same cells. Models with window layers have a cache of them beside that of the others.
struct seen_cache {
  std::vector<cached_layer> layers{};  ///< in the order of their ids
  cell_table table{};
};

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

  /// The caches that have been seen, in the order of their first layers.
  std::span<seen_cache> caches() { return caches_; }
  std::span<const seen_cache> caches() const { return caches_; }

  /// The layers of the first cache.
  std::span<const cached_layer> layers() const {
    return caches_.empty() ? std::span<const cached_layer>{} : std::span<const cached_layer>(caches_[0].layers);
  }

  /// Empty where the cache can be worked on in place; else why not.
  const std::string& obstacle() const { return obstacle_; }

  /// The cell of the first cache that holds a position of the sequence that was decoded last, or -1.
  std::int32_t cell_of(llama_pos position) const {
    if (caches_.empty() || caches_[0].table.sightings().empty()) return -1;
    const sighting& last = caches_[0].table.sightings().back();
    for (const std::int32_t cell : last.cells)
      if (caches_[0].table.position(last.stream, cell) == position) return cell;
    return -1;
  }

  /// Rows that llama_state_seq_set_data has put somewhere into a stream of a cache: their keys' marks in the last layer, and
  /// their positions. The next graph of their sequence shows where.
  void expect(std::size_t cache, std::size_t stream, std::vector<std::uint64_t> marks, std::span<const llama_pos> positions) {
    expected_.push_back({cache, stream, std::move(marks), {positions.begin(), positions.end()}});
    if (expected_.size() > sequences_) expected_.erase(expected_.begin());
  }

  /// How many sequences the context may have; the compressor says it.
  void set_sequences(std::size_t sequences) { sequences_ = sequences; }

  /// What is recorded of the tokens to come, in place of what was before. One sequence a context is taken. Accumulated attention
  /// needs the cache in host memory; queries come from any.
  void record(const wanted& what) { recording_.keep(what); }

  recording& recorded() { return recording_; }

  /// The rotary embedding of each layer's keys, from the first graph on, in the order of their ids.
  const std::vector<embedding>& embeddings() const { return embeddings_; }

  /// The same as ropes of keys of so many channels, one for each of `layers`; their factors stay the probe's.
  result<std::vector<rope>> ropes(std::span<const cached_layer> layers, std::size_t channels) const {
    std::vector<rope> all;
    for (const cached_layer& l : layers) {
      const std::string who = "rope: that of layer " + std::to_string(l.id) + " ";
      const auto found = std::find_if(embeddings_.begin(), embeddings_.end(), [&](const embedding& e) { return e.id == l.id; });
      if (found == embeddings_.end())
        return error{who + "has not been seen: decode a token, or give the probe another's embeddings"};
      if (!found->obstacle.empty()) return error{who + found->obstacle};
      if (found->channels != channels)
        return error{who + "turns rows of " + std::to_string(found->channels) + " channels: must be the " +
                     std::to_string(channels) + " of a head"};
      all.push_back(found->with_factors());
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
    see_mask(node);
    if (multiplied_ != nullptr && node->op == GGML_OP_SOFT_MAX && node->src[0] == multiplied_) see_softmax(node);
    mine_ = recording_.what().any() && detail::attention_of(node).layer >= 0;
    theirs_ = next_ != nullptr && next_(node, true, next_data_);
    return mine_ || theirs_;
  }

  void see_positions(const ggml_tensor* node) {
    const int layer = detail::cached_layer_of(detail::origin(node->src[0]), 'k');
    if (layer < 0) {
      positions_ = node->src[1];
    } else {  // a context shift rotates the cache itself and renumbers its cells
      recording_.clear();
      if (seen_cache* c = cache_of(layer); c != nullptr) see_shift(*c, layer, node->src[1]);
    }
  }

  /// Each layer's node reads the same numbers: they count once a graph, in which layers come in the order of their ids.
  void see_shift(seen_cache& c, int layer, const ggml_tensor* by) {
    const bool again = shifted_ >= 0 && layer > shifted_ && cache_of(shifted_) == &c;
    shifted_ = layer;
    if (again) return;
    if (!detail::in_host_memory(by) || by->type != GGML_TYPE_I32) return c.table.forget();
    c.table.shift({static_cast<const std::int32_t*>(by->data), static_cast<std::size_t>(by->ne[0])});
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
    shifted_ = -1;
    if (!detail::in_host_memory(cache)) obstacle_ = "the cache is not in host memory";
    const auto width = static_cast<std::size_t>(cache->ne[0]), cells = static_cast<std::size_t>(cache->ne[1]);
    // Without flash attention values are stored element by element into the transposed cache: rows of one element.
    const bool transposed = value_layer >= 0 && node->ne[0] == 1 && width > 1;
    const matrix rows{cache->data, cache->type,
                      width,       transposed ? cells : width,
                      transposed,  key_layer >= 0 ? key_transform_ : value_transform_};
    if (key_layer >= 0) {
      see_embedding(key_layer, node->src[0]);
      see_keys(key_layer, rows, node->src[1], cache);
    } else if (seen_cache* c = cache_of(value_layer); c != nullptr) {
      cached_layer& l = detail::of_id(c->layers, value_layer);
      l.values = rows, l.stream_bytes_of_values = cache->nb[2];
      if (l.value_width != 0) l.values.width = l.value_width;
    }
  }

  void see_keys(int layer, const matrix& rows, const ggml_tensor* indices, const ggml_tensor* cache) {
    seen_cache* c = cache_of(layer);
    if (c == nullptr) {  // layers whose rows go to the same cells are of one cache
      const auto same = static_cast<std::size_t>(std::find(indices_.begin(), indices_.end(), indices) - indices_.begin());
      if (same == caches_.size()) caches_.emplace_back(), indices_.push_back(indices), noted_.push_back(true);
      c = &caches_[same];
    }
    cached_layer& l = detail::of_id(c->layers, layer);
    if (l.keys.data != nullptr && l.keys.data != rows.data) obstacle_ = "two caches hold keys of layer " + std::to_string(layer);
    l.keys = rows, l.stream_bytes_of_keys = cache->nb[2];
    if (layer != c->layers.front().id) return;
    const auto number = static_cast<std::size_t>(c - caches_.data());
    indices_[number] = indices, noted_[number] = false;
    c->table.resize(static_cast<std::size_t>(cache->ne[1]), static_cast<std::size_t>(cache->ne[2]), sequences_);
  }

  seen_cache* cache_of(int layer) {
    for (seen_cache& c : caches_)
      for (const cached_layer& l : c.layers)
        if (l.id == layer) return &c;
    return nullptr;
  }

  /// Where the first layer of a cache attends, its mask tells whose cells are whose.
  void see_mask(const ggml_tensor* node) {
    const detail::attention a = detail::attention_of(node);
    if (a.layer >= 0) {
      attending_ = a.layer;
      if (seen_cache* c = cache_of(a.layer); c != nullptr)
        detail::of_id(c->layers, a.layer).heads = static_cast<std::size_t>(a.keys->ne[2]);
    }
    if (node->op == GGML_OP_MUL_MAT) see_padding(node->src[0]);
    if ((node->op != GGML_OP_SOFT_MAX && node->op != GGML_OP_FLASH_ATTN_EXT) || attending_ < 0) return;
    seen_cache* c = cache_of(attending_);
    if (c == nullptr || attending_ != c->layers.front().id) return;
    const auto number = static_cast<std::size_t>(c - caches_.data());
    attending_ = -1;
    if (noted_[number]) return;  // a later layer that reads the same keys
    noted_[number] = true;
    const ggml_tensor *indices = indices_[number], *mask = detail::mask_of(node);
    micro_batch b;
    b.mask = mask;
    const bool seen = detail::in_host_memory(indices) && indices->type == GGML_TYPE_I64 && detail::in_host_memory(mask);
    if (seen) b.cells = {static_cast<const std::int64_t*>(indices->data), static_cast<std::size_t>(indices->ne[0])};
    if (detail::in_host_memory(positions_) && positions_->type == GGML_TYPE_I32 && positions_->ne[0] >= indices->ne[0])
      b.positions = {static_cast<const llama_pos*>(positions_->data), b.cells.size()};
    if (!seen || !c->table.note(b)) {
      obstacle_ = "the cells of new tokens cannot be seen";
      return;
    }
    for (auto e = expected_.begin(); e != expected_.end();) e = e->cache == number && place(*c, *e) ? expected_.erase(e) : e + 1;
  }

  /// Transposed values of layers that differ in width are padded to the widest: [cells, channels, heads] are read.
  void see_padding(const ggml_tensor* values) {
    const int layer = detail::cached_layer_of(detail::origin(values), 'v');
    seen_cache* c = layer < 0 ? nullptr : cache_of(layer);
    if (c == nullptr) return;
    cached_layer& l = detail::of_id(c->layers, layer);
    if (!l.values.transposed) return;
    l.value_width = l.values.width = static_cast<std::size_t>(values->ne[1] * values->ne[2]);
  }

  struct expected_rows {
    std::size_t cache = 0, stream = 0;
    std::vector<std::uint64_t> marks{};
    std::vector<llama_pos> positions{};
  };

  /// Whether one of the sequences that were just seen has these rows; then their positions are known.
  bool place(seen_cache& c, const expected_rows& e) {
    for (const sighting& s : c.table.sightings()) {
      if (s.stream != e.stream) continue;
      const std::vector<std::int32_t> cells = c.table.unknown(s);
      if (cells.size() != e.marks.size()) continue;
      const matrix keys = c.layers.back().of_stream(s.stream).keys;
      std::vector<llama_pos> positions;
      for (const std::int32_t cell : cells) {
        const auto found = std::find(e.marks.begin(), e.marks.end(), mark_of(keys, cell));
        if (found == e.marks.end()) break;
        positions.push_back(e.positions[static_cast<std::size_t>(found - e.marks.begin())]);
      }
      if (positions.size() != cells.size()) continue;
      for (std::size_t i = 0; i < cells.size(); ++i) c.table.set_position(s.stream, cells[i], positions[i]);
      return true;
    }
    return false;
  }

  /// The same in every graph: looked at once, known or not.
  void see_embedding(int layer, const ggml_tensor* stored) {
    const std::size_t before = embeddings_.size();
    embedding& e = detail::of_id(embeddings_, layer);
    if (embeddings_.size() == before) return;
    e = detail::embedding_of(stored);
    e.id = layer;
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
    const std::span<const cached_layer> of_cache = layers();
    if (of_cache.empty() || a.layer < of_cache.front().id) return;
    if (a.layer == of_cache.front().id) begin_batch(a.queries->ne[1]);
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
    const cell_table& table = caches_[0].table;
    if (recording_.what().accumulated_attention && !table.sightings().empty()) {
      const sighting& all = table.sightings().back();
      std::size_t i = 0;  // of the cells in the order of positions, which the recorded rows follow
      const std::vector<std::int32_t> cells = table.rows(all);
      for (const llama_pos p : recording_.rows()) {
        while (i < cells.size() && table.position(all.stream, cells[i]) < p) ++i;
        const bool found = i < cells.size() && table.position(all.stream, cells[i]) == p;
        cells_of_rows_.push_back(found ? cells[i] : -1);
      }
    }
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
      const matrix& m = detail::of_id(caches_[0].layers, a.layer).keys;
      if (!obstacle_.empty()) return error{"accumulated attention: " + obstacle_};
      if (const status ok = check(m, heads, "accumulated attention: cache"); !ok) return ok;
      if (m.width != heads * extent.channels)
        return error{"accumulated attention: the cache's rows are not the keys of all heads: not taken"};
      if (cells_of_rows_.empty()) return error{"accumulated attention: the cells of new tokens cannot be seen"};
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
  std::vector<seen_cache> caches_;
  std::vector<const ggml_tensor*> indices_;  // of each cache: where this graph stores new rows
  std::vector<bool> noted_;                  // whether the table knows of them
  std::vector<expected_rows> expected_;
  std::size_t sequences_ = 1;
  int shifted_ = -1, attending_ = -1;                    // layers
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
