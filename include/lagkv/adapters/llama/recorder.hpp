// Part of lagkv (MIT). Records the attention of all sequences whose rows lie in one cache, each for itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml.h>
#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/nodes.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// What is seen where queries meet the keys of a layer.
struct seen_attention {
  detail::attention node{};
  std::span<const std::byte> queries{};  ///< the bytes of node.queries
  std::size_t hadamard_block = 0;        ///< of the queries; 0: none
  result<float> scale{0.0F};
  const cached_layer* layer = nullptr;
  std::string_view obstacle{};  ///< why the cells cannot be read; empty where they can
};

class recorder {
 public:
  /// From now on this is wanted; what is not is dropped.
  void keep(const wanted& w) {
    what_ = w;
    for (auto& [track, r] : recordings_) r.keep(w);
    of(0);
  }

  /// That of a track; null if there is none.
  recording* find(std::size_t track) {
    const auto found = recordings_.find(track);
    return found == recordings_.end() ? nullptr : &found->second;
  }

  /// The same, made empty if there is none yet.
  recording& of(std::size_t track) {
    const auto [at, added] = recordings_.try_emplace(track);
    if (added) at->second.keep(what_);
    return at->second;
  }

  void put(std::size_t track, recording r) {
    r.keep(what_);
    recordings_[track] = std::move(r);
  }

  void obstruct(const std::string& why) {
    for (auto& [track, r] : recordings_) r.obstruct(why);
    parts_.clear();
  }

  /// A track that begins as another one, of rows in the same cells of this stream; that one may go on.
  void copy(std::size_t from, std::size_t to, const cell_table& table, std::size_t stream) {
    const recording* origin = find(from);
    if (origin == nullptr) return;
    recording r = *origin;
    std::vector<cell_token> cells(r.cells().begin(), r.cells().end());
    for (cell_token& c : cells)
      if (c.cell >= 0) c = table.token(stream, c.cell);
    r.lie_in(cells);
    put(to, std::move(r));
  }

  /// The rows of a sequence have been put into these cells.
  void lies_in(const cell_table& table, const sighting& s, std::span<const std::int32_t> cells) {
    if (recording* r = find(s.track)) r->lie_in(table.tokens(s.stream, table.rows(s.stream, {cells.begin(), cells.end()})));
  }

  /// A context shift has been applied: recordings whose rows are not known by their cells cannot follow it. `seen`: whether the
  /// table of cells could.
  void shift(bool seen) {
    for (auto& [track, r] : recordings_)
      if (!seen || !r.has_cells()) r.clear();
  }

  /// Recordings of tracks that nobody has any more go.
  template <class Has>
  void retain(const Has& has) {
    for (auto r = recordings_.begin(); r != recordings_.end();)
      r = r->first == 0 || has(r->first) ? std::next(r) : recordings_.erase(r);
  }

  /// A micro-batch: the positions of its tokens. `known`: whether the table has seen it; if not, it is of the only sequence.
  void begin(cell_table& table, bool known, std::span<const llama_pos> positions) {
    parts_.clear();
    if (!known) {
      part all;
      for (std::uint32_t token = 0; token < positions.size(); ++token) all.tokens.push_back(token);
      of(0).append(positions, {});
      parts_.push_back(std::move(all));
      return;
    }
    for (const batch_part& p : table.parts())  // before any goes on
      if (const sighting* s = table.seen_in(p))
        if (const recording* origin = find(p.forked_from)) put(s->track, *origin);
    for (const batch_part& p : table.parts()) {
      const sighting* s = table.seen_in(p);
      if (s == nullptr) continue;
      parts_.push_back({s->track, s->stream, p.tokens, {}});
      append(table, *s, parts_.back(), positions);
    }
  }

  /// The attention of the micro-batch in one layer.
  void add(const seen_attention& a) {
    for (const part& p : parts_) {
      recording* r = find(p.track);
      if (r == nullptr || r->rows().empty()) continue;
      if (const status ok = add(*r, p, a); !ok) r->obstruct(ok.message());
    }
  }

 private:
  struct part {
    std::size_t track = 0, stream = 0;
    std::vector<std::uint32_t> tokens{};
    std::vector<std::int32_t> cells{};  ///< of all rows; -1: not seen. For accumulated attention only
  };

  void append(const cell_table& table, const sighting& s, part& p, std::span<const llama_pos> positions) {
    recording& r = of(p.track);
    std::vector<llama_pos> batch;
    for (const std::uint32_t token : p.tokens) batch.push_back(positions[token]);
    const std::vector<std::int32_t> cells = table.rows(s);
    const std::vector<cell_token> rows = table.tokens(s.stream, cells);
    const std::vector<llama_pos> of_rows = table.positions(s.stream, cells);
    const std::size_t old = rows.size() - (std::min)(rows.size(), batch.size());
    r.follow(std::span(rows).first(old), std::span(of_rows).first(old));
    const bool all_seen = rows.size() >= batch.size();  // not in a window
    r.append(batch, all_seen ? std::span(rows).subspan(old) : std::span<const cell_token>{});
    if (!what_.accumulated_attention) return;
    std::size_t i = 0;  // the recorded rows are some of these, in the same order
    for (const llama_pos position : r.rows()) {
      while (i < cells.size() && of_rows[i] < position) ++i;
      p.cells.push_back(i < cells.size() && of_rows[i] == position ? cells[i] : -1);
    }
  }

  status add(recording& r, const part& p, const seen_attention& a) {
    if (!a.scale) return error{a.scale.message()};
    const ggml_tensor* q = a.node.queries;
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float)) return error{"queries are not rows of f32: not taken"};
    const auto each = static_cast<std::size_t>(q->ne[1]), streams = static_cast<std::size_t>(q->ne[3]);
    if (p.tokens.back() >= each * streams) return error{"layers see different numbers of tokens in a micro-batch: not taken"};
    const auto heads = static_cast<std::size_t>(a.node.keys->ne[2]);
    const shape extent{static_cast<std::size_t>(q->ne[2]), static_cast<std::size_t>(q->ne[0])};
    const std::size_t n = p.tokens.size();
    of_part_.resize(extent.heads * n * extent.channels);
    float* to = of_part_.data();
    for (std::size_t head = 0; head < extent.heads; ++head)
      for (const std::uint32_t token : p.tokens) {
        const std::size_t from = head * q->nb[2] + token % each * q->nb[1] + token / each * q->nb[3];
        std::memcpy(to, a.queries.data() + from, extent.channels * sizeof(float));
        to += extent.channels;
      }
    const auto width = static_cast<std::ptrdiff_t>(extent.channels);
    const strided<float> as_met(of_part_.data(), extent, {.head = width * static_cast<std::ptrdiff_t>(n), .token = width}, n);
    tensor keys;
    if (what_.accumulated_attention) {
      const std::string who = "accumulated attention: ";
      if (!a.obstacle.empty()) return error{who + std::string(a.obstacle)};
      const matrix m = a.layer->of_stream(p.stream).keys;
      if (const status ok = check(m, heads, who + "cache"); !ok) return ok;
      if (m.width != heads * extent.channels) return error{who + "the cache's rows are not the keys of all heads: not taken"};
      if (p.cells.empty()) return error{who + "the cells of new tokens cannot be seen"};
      if (p.cells.size() != r.rows().size())
        return error{who + std::to_string(p.cells.size()) + " cells of " + std::to_string(r.rows().size()) + " rows"};
      for (std::size_t i = 0; i < p.cells.size(); ++i)
        if (p.cells[i] < 0)
          return error{who + "the cell of position " + std::to_string(r.rows()[i]) +
                       " has not been seen: decode a token between restore() or a repack and a context shift"};
      keys = view(m, heads, p.cells);
    }
    const tensor queries = a.hadamard_block != 0 ? tensor(hadamard(as_met, a.hadamard_block)) : tensor(as_met);
    r.add(a.node.layer, heads, queries, keys, *a.scale, workspace_);
    return {};
  }

  wanted what_{};
  std::map<std::size_t, recording> recordings_;  // by track
  std::vector<part> parts_;                      // of the micro-batch that is computed
  std::vector<float> of_part_;
  lagkv::workspace workspace_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
