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
#include <lagkv/adapters/llama/recorder.hpp>
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
  recorder attention{};
};

/// Rows that llama_state_seq_set_data has put somewhere into a stream of a cache, in the order of the state's cells.
struct expected_rows {
  llama_seq_id sequence = 0;
  std::size_t cache = 0, stream = 0;
  std::size_t layers = 0;                                  ///< of the state
  std::vector<std::uint64_t> first_marks{}, last_marks{};  ///< of the keys in its first layer and in its last one
  std::vector<llama_pos> positions{};
  std::size_t track = no_track;  ///< of their recording
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

  /// The layers with full attention, of the recorded cache.
  std::span<const cached_layer> layers() const {
    return caches_.empty() ? std::span<const cached_layer>{} : std::span<const cached_layer>(caches_[recorded_cache()].layers);
  }

  /// Empty where the cache can be worked on in place; else why not.
  const std::string& obstacle() const { return obstacle_; }

  /// The cell of these layers that holds a position of the sequence that was decoded last, or -1.
  std::int32_t cell_of(llama_pos position) const {
    if (caches_.empty()) return -1;
    const cell_table& table = caches_[recorded_cache()].table;
    if (table.sightings().empty()) return -1;
    const sighting& last = table.sightings().back();
    for (const std::int32_t cell : last.cells)
      if (table.position(last.stream, cell) == position) return cell;
    return -1;
  }

  /// Positions of the rows that these layers hold of the sequence that was decoded last, in the order of tokens.
  std::vector<llama_pos> positions() const {
    if (caches_.empty()) return {};
    const cell_table& table = caches_[recorded_cache()].table;
    if (table.sightings().empty()) return {};
    const sighting& last = table.sightings().back();
    return table.positions(last.stream, table.rows(last));
  }

  /// Rows that llama_state_seq_set_data has put somewhere: the next graph of their sequence shows where.
  void expect(expected_rows rows) {
    std::erase_if(expected_, [&](const expected_rows& e) { return e.sequence == rows.sequence; });
    expected_.push_back(std::move(rows));
  }

  /// The same rows, once more in another stream; nothing if none are expected.
  void expect_copy(llama_seq_id from, llama_seq_id to, std::size_t stream, std::size_t track) {
    for (const expected_rows& e : expected_)
      if (e.sequence == from) {
        expected_rows copy = e;
        copy.sequence = to, copy.stream = stream, copy.track = track;
        return expect(std::move(copy));
      }
  }

  /// The context that it listens to; the compressor says it.
  void set_context(const llama_context* context) {
    memory_ = llama_get_memory(context);
    sequences_ = llama_n_seq_max(context);
  }

  /// What is recorded of the tokens to come, in place of what was before; of the layers with full attention. Accumulated
  /// attention needs the cache in host memory, and so do several sequences; queries of one sequence come from any.
  void record(const wanted& what) {
    what_ = what;
    only_.keep(what);
    for (seen_cache& c : caches_) c.attention.keep(what);
  }

  const wanted& what() const { return what_; }

  /// The recording of a context's only sequence; with several, checkpoint.recorded has that of each.
  recording& recorded() { return attention().of(0); }

  /// Which cache is that of the layers with full attention; until it is said, the one with the most cells.
  void set_recorded_cache(std::size_t cache) { recorded_cache_ = cache; }

  /// Whether layers() are those with full attention: that has been said, or no other cache has as many cells.
  bool knows_recorded_cache() const {
    if (recorded_cache_ < caches_.size()) return true;
    const std::size_t most = caches_.empty() ? 0 : caches_[recorded_cache()].table.cells();
    return std::count_if(caches_.begin(), caches_.end(), [&](const seen_cache& c) { return c.table.cells() == most; }) < 2;
  }

  /// What records it.
  recorder& attention() { return caches_.empty() ? only_ : caches_[recorded_cache()].attention; }

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
    const int layer = detail::attention_of(node).layer;
    mine_ = what_.any() && is_recorded(layer);
    if (mine_ && layer == cache_of(layer)->layers.front().id && !detail::in_host_memory(positions_)) copy_positions();
    theirs_ = next_ != nullptr && next_(node, true, next_data_);
    return mine_ || theirs_;
  }

  void see_positions(const ggml_tensor* node) {
    const int layer = detail::cached_layer_of(detail::origin(node->src[0]), 'k');
    if (layer < 0) {
      positions_ = node->src[1];
      if (detail::in_host_memory(positions_)) copy_positions();
    } else if (seen_cache* c = cache_of(layer); c != nullptr) {  // a context shift rotates the cache itself, renumbers its cells
      see_shift(*c, layer, node->src[1]);
    }
  }

  /// Before a node that reads them is computed: afterwards their memory may serve for something else.
  void copy_positions() {
    if (!what_.any()) return;
    batch_.resize(positions_ != nullptr && positions_->type == GGML_TYPE_I32 ? static_cast<std::size_t>(positions_->ne[0]) : 0);
    if (!batch_.empty()) ggml_backend_tensor_get(positions_, batch_.data(), 0, batch_.size() * sizeof(llama_pos));
  }

  /// Each layer's node reads the same numbers: they count once a graph, in which layers come in the order of their ids.
  void see_shift(seen_cache& c, int layer, const ggml_tensor* by) {
    const bool again = shifted_ >= 0 && layer > shifted_ && cache_of(shifted_) == &c;
    shifted_ = layer;
    if (again) return;
    const bool seen = detail::in_host_memory(by) && by->type == GGML_TYPE_I32;
    c.attention.shift(seen);
    if (!seen) return c.table.forget();
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
      if (same == caches_.size()) {
        caches_.emplace_back(), indices_.push_back(indices), noted_.push_back(true);
        caches_.back().attention = same == 0 ? std::move(only_) : recorder{};
        caches_.back().attention.keep(what_);
      }
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
    begins_.resize(memory_ != nullptr ? sequences_ : 0), ends_.resize(begins_.size());
    for (std::size_t s = 0; s < ends_.size(); ++s) {
      begins_[s] = llama_memory_seq_pos_min(memory_, static_cast<llama_seq_id>(s));
      ends_[s] = llama_memory_seq_pos_max(memory_, static_cast<llama_seq_id>(s));
    }
    b.begins = begins_, b.ends = ends_;
    if (!seen) c->table.lose_parts();
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

  /// Whether one of the sequences that were just seen has these rows, or what the host has left of them; then their positions are
  /// known, and the track.
  static bool place(seen_cache& c, const expected_rows& e) {
    for (sighting& s : c.table.sightings()) {
      if (s.stream != e.stream) continue;
      const std::vector<std::int32_t> cells = c.table.unknown(s);
      const std::vector<llama_pos> positions = positions_of(cells, c, e);
      if (positions.empty()) continue;
      for (std::size_t i = 0; i < cells.size(); ++i) c.table.set_position(s.stream, cells[i], positions[i]);
      if (e.track != no_track) {
        s.track = e.track;
        if (recording* r = c.attention.find(e.track); r != nullptr && cells.size() < e.positions.size()) r->keep_at(positions);
        c.attention.lies_in(c.table, s, cells);
      }
      return true;
    }
    return false;
  }

  /// Of the rows in these cells, if they are the expected ones; else nothing. In a context's first graph only the first layer is
  /// known when it is asked; there the same word may have the same key at several places, so that the order must be right, too.
  /// Where no other sequence can be meant some of the rows will do: the host may have taken back the others.
  static std::vector<llama_pos> positions_of(const std::vector<std::int32_t>& cells, const seen_cache& c,
                                             const expected_rows& e) {
    const bool all_layers = c.layers.size() == e.layers;
    const bool some_will_do = all_layers && c.table.has_one_sequence();
    if (cells.empty() || cells.size() > e.positions.size() || (cells.size() < e.positions.size() && !some_will_do)) return {};
    const matrix keys = (all_layers ? c.layers.back() : c.layers.front()).of_stream(e.stream).keys;
    const std::vector<std::uint64_t>& marks = all_layers ? e.last_marks : e.first_marks;
    const std::vector<std::uint64_t> found = marks_of(keys, cells);
    if (found == marks) return e.positions;
    std::vector<llama_pos> positions;
    for (std::size_t i = 0; i < cells.size() && all_layers; ++i) {
      const auto same = std::find(marks.begin(), marks.end(), found[i]);
      if (same == marks.end()) return {};
      positions.push_back(e.positions[static_cast<std::size_t>(same - marks.begin())]);
    }
    return positions;
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
    seen_cache* c = cache_of(a.layer);
    if (c == nullptr || !is_recorded(a.layer)) return;
    if (a.layer == c->layers.front().id) begin_batch(*c, a.queries->ne[1] * a.queries->ne[3]);
    c->attention.add({a, queries_, key_transform_, detail::scale_of(node), &detail::of_id(c->layers, a.layer), obstacle_});
  }

  void begin_batch(seen_cache& c, std::int64_t tokens) {
    if (static_cast<std::int64_t>(batch_.size()) < tokens)
      return c.attention.obstruct("the positions of new tokens cannot be seen");
    const bool known = !c.table.parts().empty();
    if (!known && sequences_ > 1) return c.attention.obstruct("several sequences, and the cells of new tokens cannot be seen");
    c.attention.begin(c.table, known, {batch_.begin(), batch_.begin() + tokens});
    if (sequences_ == 1) return;
    c.attention.retain([&](std::size_t track) {
      return c.table.has(track) ||
             std::any_of(expected_.begin(), expected_.end(), [&](const expected_rows& e) { return e.track == track; });
    });
  }

  std::size_t recorded_cache() const {
    if (recorded_cache_ < caches_.size()) return recorded_cache_;
    const auto fewer = [](const seen_cache& a, const seen_cache& b) { return a.table.cells() < b.table.cells(); };
    return static_cast<std::size_t>(std::max_element(caches_.begin(), caches_.end(), fewer) - caches_.begin());
  }

  /// Where two caches have as many cells, both are, until it is said which one it is.
  bool is_recorded(int layer) {
    const seen_cache* c = layer >= 0 ? cache_of(layer) : nullptr;
    if (c == nullptr) return false;
    const seen_cache& recorded = caches_[recorded_cache()];
    return c == &recorded || (recorded_cache_ >= caches_.size() && c->table.cells() == recorded.table.cells());
  }

  ggml_backend_sched_eval_callback next_ = nullptr;
  void* next_data_ = nullptr;
  bool mine_ = false, theirs_ = false;  // who asked for the node
  std::vector<seen_cache> caches_;
  std::vector<const ggml_tensor*> indices_;  // of each cache: where this graph stores new rows
  std::vector<bool> noted_;                  // whether the table knows of them
  std::vector<expected_rows> expected_;
  llama_memory_t memory_ = nullptr;
  std::size_t sequences_ = 1;
  std::vector<llama_pos> begins_, ends_;                 // of each sequence
  int shifted_ = -1, attending_ = -1;                    // layers
  std::size_t key_transform_ = 0, value_transform_ = 0;  // channels of the Hadamard matrix, 0: none
  const ggml_tensor* positions_ = nullptr;
  std::string obstacle_;
  std::vector<embedding> embeddings_;

  wanted what_{};
  recorder only_;                                 // as long as no cache has been seen
  std::size_t recorded_cache_ = ~std::size_t{0};  // not known
  const ggml_tensor* multiplied_ = nullptr;       // the attention node whose queries are held
  std::vector<std::byte> queries_;
  std::vector<llama_pos> batch_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
