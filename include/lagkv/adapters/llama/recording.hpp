// Part of lagkv (MIT). What policies read beside keys and values: recorded by the probe, compacted with the rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/nodes.hpp>
#include <lagkv/attention/attention.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/strided.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// What is recorded. By default nothing is.
struct wanted {
  std::size_t queries = 0;             ///< those of the last so many tokens
  bool accumulated_attention = false;  ///< the attention that each row has received so far

  bool any() const { return queries > 0 || accumulated_attention; }

  friend wanted operator|(const wanted& a, const wanted& b) {
    return {(std::max)(a.queries, b.queries), a.accumulated_attention || b.accumulated_attention};
  }
};

/// What a policy reads of it. Statistics of queries, where they are not `calibrated`, are taken from the last 256 tokens'.
inline wanted wanted_by(const policy& p, bool calibrated) {
  constexpr std::size_t for_statistics = 256;
  return {.queries = (std::max)(p.needs.queries, p.needs.query_statistics && !calibrated ? for_statistics : 0),
          .accumulated_attention = p.needs.accumulated_attention};
}

/// A number a row and head, [heads][rows].
template <class T>
class row_array {
 public:
  /// New rows are 0.
  void resize(std::size_t heads, std::size_t rows) {
    if (heads != heads_ || rows > pitch_) {
      const std::size_t pitch = rows + rows / 4 + 64;
      std::vector<T> wider(heads * pitch);
      for (std::size_t head = 0; head < (std::min)(heads, heads_); ++head)
        std::copy_n(data_.data() + head * pitch_, rows_, wider.data() + head * pitch);
      data_ = std::move(wider), heads_ = heads, pitch_ = pitch;
    }
    for (std::size_t head = 0; head < heads && rows > rows_; ++head)
      std::fill_n(data_.data() + head * pitch_ + rows_, rows - rows_, T{});
    rows_ = rows;
  }

  void shrink(std::size_t rows) { rows_ = (std::min)(rows, rows_); }

  void erase(std::size_t first, std::size_t n) {
    if (rows_ == 0) return;
    for (T* head = data_.data(); head != data_.data() + heads_ * pitch_; head += pitch_)
      std::copy(head + first + n, head + rows_, head + first);
    rows_ -= n;
  }

  /// Only the rows that are marked stay.
  void retain(const std::vector<bool>& stays) {
    std::size_t left = 0;
    for (T* head = data_.data(); head != data_.data() + heads_ * pitch_; head += pitch_) {
      left = 0;
      for (std::size_t row = 0; row < rows_ && row < stays.size(); ++row)
        if (stays[row]) head[left++] = head[row];
    }
    rows_ = (std::min)(left, rows_);
  }

  std::size_t rows() const { return rows_; }
  std::size_t heads() const { return heads_; }
  T* of(std::size_t head) { return data_.data() + head * pitch_; }
  const T* of(std::size_t head) const { return data_.data() + head * pitch_; }
  side_array<T> view() { return {rows_ > 0 ? data_.data() : nullptr, static_cast<std::ptrdiff_t>(pitch_)}; }

 private:
  std::vector<T> data_;
  std::size_t heads_ = 0, pitch_ = 0, rows_ = 0;
};

/// A recording in plain numbers: to be written somewhere, and to be looked at.
struct recorded_numbers {
  struct of_layer {
    int id = 0;
    llama_pos last = -1;  ///< position of the last token that was added
    float scale = 0;
    std::size_t query_heads = 0, channels = 0, hadamard_block = 0;
    std::vector<float> queries{};                ///< [tokens][query heads][channels], of the last tokens
    std::size_t heads = 0;                       ///< KV heads of the accumulated attention; 0: there is none
    std::vector<float> accumulated_attention{};  ///< [heads][rows]
  };

  wanted what{};
  std::string obstacle{};         ///< why it is of no use; empty where it is
  std::vector<llama_pos> rows{};  ///< ascending
  std::vector<of_layer> layers{};
};

/// The attention of one sequence, as far as it is wanted. A plain value: copy it beside a saved state.
///
/// Held are at most twice the queries that are wanted, and a float for each row, KV head and layer. A micro-batch's queries are
/// used when its attention has been computed, and forgotten. Rows that are known by their cells follow what the host does to
/// them.
class recording {
 public:
  const wanted& what() const { return what_; }

  /// Why there is none; empty where there is.
  const std::string& obstacle() const { return obstacle_; }

  /// Positions of the cells of the rows that have been seen, ascending; where only queries are wanted, of the last ones.
  std::span<const llama_pos> rows() const { return rows_; }

  /// From now on this is wanted: what is not is dropped. What was not recorded for the rows so far cannot be had for them.
  void keep(const wanted& w) {
    if (!w.any() || (w.accumulated_attention && !what_.accumulated_attention)) clear();
    for (layer_part& l : layers_) {
      if (!w.accumulated_attention) l.accumulated_attention = {};
      if (w.queries == 0) l.queries = {};
    }
    what_ = w;
  }

  void clear() { rows_.clear(), cells_.clear(), layers_.clear(), obstacle_.clear(); }

  void obstruct(std::string why) {
    if (obstacle_.empty()) obstacle_ = std::move(why);
  }

  /// A micro-batch has come. Where it begins at or before the last row, the host has taken rows back; what those attended to
  /// stays counted. `cells`: of its tokens, or empty.
  void append(std::span<const llama_pos> batch, std::span<const cell_token> cells) {
    for (std::size_t i = 1; i < batch.size(); ++i)
      if (batch[i] != batch[i - 1] + 1)
        return obstruct("position " + std::to_string(batch[i]) + " after " + std::to_string(batch[i - 1]) +
                        " in one micro-batch: must be consecutive");
    truncate(batch.front());
    if (!rows_.empty() && rows_.back() + 1 != batch.front()) clear();  // some have been decoded unseen
    if (rows_.empty()) obstacle_.clear();
    rows_.insert(rows_.end(), batch.begin(), batch.end());
    cells_.insert(cells_.end(), cells.begin(), cells.end());
    cells_.resize(rows_.size());
  }

  /// The rows of the sequence as they are now, in the order of tokens: those that are gone go, the others take their positions.
  /// Rows whose cells are not known stay as they are.
  void follow(std::span<const cell_token> now, std::span<const llama_pos> positions) {
    if (!has_cells() || !obstacle_.empty()) return;  // with an obstacle its numbers are of no use any more
    if (rows_.empty() || std::find(positions.begin(), positions.end(), -1) != positions.end()) return;
    std::vector<std::size_t> place_of;  // by cell; made if a row is not where it is looked for
    const auto place = [&](const cell_token& token, std::size_t expected) {
      const auto is = [&](std::size_t i) { return now[i].cell == token.cell && now[i].written == token.written; };
      if (expected < now.size() && is(expected)) return expected;
      if (place_of.empty())
        for (std::size_t i = 0; i < now.size(); ++i) {
          const auto cell = static_cast<std::size_t>(now[i].cell);
          if (cell >= place_of.size()) place_of.resize(cell + 1, now.size());
          place_of[cell] = i;
        }
      const auto cell = static_cast<std::size_t>(token.cell);
      const std::size_t found = cell < place_of.size() ? place_of[cell] : now.size();
      return found < now.size() && found >= expected && is(found) ? found : now.size();
    };
    const llama_pos last = rows_.back();
    std::vector<bool> stays(rows_.size(), false);
    std::size_t next = place(cells_[0], 0);
    if (next == now.size()) next = 0;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      const std::size_t found = place(cells_[row], next);
      if (found == now.size()) continue;
      stays[row] = true, rows_[row] = positions[found];
      next = found + 1;
    }
    retain(stays, last);
  }

  /// Of its rows those at these positions are still there.
  void keep_at(std::vector<llama_pos> positions) {
    if (rows_.empty()) return;
    std::sort(positions.begin(), positions.end());
    const llama_pos last = rows_.back();
    std::vector<bool> stays;
    for (const llama_pos row : rows_) stays.push_back(std::binary_search(positions.begin(), positions.end(), row));
    retain(stays, last);
  }

  /// Its rows, or the last of them, lie in these cells now.
  void lie_in(std::span<const cell_token> now) {
    const std::size_t n = (std::min)(now.size(), rows_.size());
    cells_.assign(rows_.size(), cell_token{});
    std::copy(now.end() - static_cast<std::ptrdiff_t>(n), now.end(), cells_.end() - static_cast<std::ptrdiff_t>(n));
  }

  std::span<const cell_token> cells() const { return cells_; }

  /// Whether the cells of all rows are known.
  bool has_cells() const {
    return std::none_of(cells_.begin(), cells_.end(), [](const cell_token& c) { return c.cell < 0; });
  }

  /// Its attention in one layer: queries [query heads][tokens of the micro-batch][channels], f32, channels adjacent, as they
  /// meet the stored keys; keys of all rows, read for the accumulated attention only.
  void add(int id, std::size_t heads, const tensor& queries, const tensor& keys, float scale, workspace& ws) {
    if (!obstacle_.empty()) return;
    layer_part& l = detail::of_id(layers_, id);
    if (l.last == rows_.back()) return obstruct("layers of the model share a cache: not taken");
    if (!l.queries.empty() && (l.query_heads != queries.heads() || l.channels != queries.channels()))
      return obstruct("its queries are of another model: " + std::to_string(l.query_heads) + " heads of " +
                      std::to_string(l.channels) + " channels in layer " + std::to_string(id));
    l.last = rows_.back(), l.scale = scale;
    l.query_heads = queries.heads(), l.channels = queries.channels(), l.hadamard_block = queries.hadamard_block();
    if (what_.queries > 0) add_queries(l, queries);
    if (!what_.accumulated_attention) return;
    l.accumulated_attention.resize(heads, rows_.size());
    extras beside;
    beside.queries = queries, beside.accumulated_attention = l.accumulated_attention.view(), beside.scale = scale;
    layer rows;
    rows.keys = keys, rows.tokens = rows_.size(), rows.extra = &beside;
    accumulate_attention(rows, queries.capacity(), ws);
  }

  /// The host has taken back the rows from this position on.
  void truncate(llama_pos end) {
    const std::size_t before = rows_.size();
    while (!rows_.empty() && rows_.back() >= end) rows_.pop_back();
    const std::size_t taken = before - rows_.size();
    if (taken == 0) return;
    cells_.resize(rows_.size());
    for (layer_part& l : layers_) {
      l.last = rows_.empty() ? -1 : rows_.back();
      l.queries.resize((l.held() - (std::min)(taken, l.held())) * l.width());
      l.accumulated_attention.shrink(rows_.size());
    }
  }

  /// Rows [first, first + n) are gone; all behind them but the last `window` may have changed their places. The arrays have
  /// been compacted toward the window.
  void erase(std::size_t first, std::size_t n, std::size_t window) {
    if (!what_.accumulated_attention) first = 0, n = rows_.size() - (std::min)(window, rows_.size());
    const auto drop = [&](auto& all) {
      all.erase(all.begin() + static_cast<std::ptrdiff_t>(first), all.begin() + static_cast<std::ptrdiff_t>(first + n));
    };
    drop(rows_), drop(cells_);
    for (layer_part& l : layers_) {
      l.accumulated_attention.erase(first, n);  // of no rows if it is not wanted
      if (l.held() > window) l.forget_before(window);
    }
  }

  /// Whether it is of the rows that there are: `tokens`, the last one at position `last`.
  status check(llama_pos last, std::size_t tokens, std::size_t layers) const {
    if (!what_.any()) return {};
    if (!obstacle_.empty()) return error{"recording: " + obstacle_};
    if ((what_.accumulated_attention && rows_.size() != tokens) || rows_.empty() || rows_.back() != last)
      return error{"recording: " + std::to_string(rows_.size()) + " rows have been seen up to position " +
                   std::to_string(rows_.empty() ? -1 : rows_.back()) + ", there are " + std::to_string(tokens) + " up to " +
                   std::to_string(last) + ": make the compressor before the first token, give restore() the recording"};
    if (layers_.size() != layers)
      return error{"recording: the attention of " + std::to_string(layers_.size()) + " layers has been seen, there are " +
                   std::to_string(layers)};
    for (const layer_part& l : layers_) {
      if (l.last != last)
        return error{"recording: the attention of layer " + std::to_string(l.id) +
                     " cannot be seen: something stands between the product of keys and queries and the softmax"};
      if (what_.queries > 0 && l.queries.empty()) return error{"recording: no queries of the rows that are left"};
    }
    return {};
  }

  recorded_numbers numbers() const {
    recorded_numbers all{what_, obstacle_, rows_, {}};
    for (const layer_part& l : layers_) {
      all.layers.push_back({l.id, l.last, l.scale, l.query_heads, l.channels, l.hadamard_block, l.queries, 0, {}});
      const std::size_t n = l.accumulated_attention.rows();
      if (n == 0) continue;
      recorded_numbers::of_layer& to = all.layers.back();
      to.heads = l.accumulated_attention.heads();
      for (std::size_t head = 0; head < to.heads; ++head) {
        const float* from = l.accumulated_attention.of(head);
        to.accumulated_attention.insert(to.accumulated_attention.end(), from, from + n);
      }
    }
    return all;
  }

  /// The recording that has these numbers, of rows in cells that are not known; an error where no recording has them.
  static result<recording> of(recorded_numbers n) {
    const auto ascending = std::adjacent_find(n.rows.begin(), n.rows.end(), [](llama_pos a, llama_pos b) { return a > b; });
    if (ascending != n.rows.end() || (!n.rows.empty() && n.rows.front() < 0))
      return error{"recording: positions of rows must ascend from 0"};
    recording made;
    made.what_ = n.what, made.obstacle_ = std::move(n.obstacle);
    for (recorded_numbers::of_layer& l : n.layers) {
      const std::string who = "recording: layer " + std::to_string(l.id) + ": ";
      if (l.id < 0 || (!made.layers_.empty() && l.id <= made.layers_.back().id)) return error{who + "ids must ascend from 0"};
      constexpr std::size_t most = 1U << 20U;
      if (l.query_heads > most || l.channels > most || l.heads > most)
        return error{who + std::to_string(l.query_heads) + " query heads of " + std::to_string(l.channels) + " channels, " +
                     std::to_string(l.heads) + " KV heads: must be at most " + std::to_string(most)};
      const std::size_t width = l.query_heads * l.channels;
      if (!l.queries.empty() && (width == 0 || l.queries.size() % width != 0 || l.queries.size() / width > n.rows.size()))
        return error{who + std::to_string(l.queries.size()) + " numbers of queries: must be " + std::to_string(width) +
                     " a token, of at most " + std::to_string(n.rows.size())};
      const std::size_t block = l.hadamard_block;
      if (block != 0 && ((block & (block - 1)) != 0 || l.channels % block != 0))
        return error{who + "block=" + std::to_string(block) + ": must be a power of two that divides the " +
                     std::to_string(l.channels) + " channels"};
      if (l.accumulated_attention.size() != l.heads * n.rows.size())
        return error{who + "accumulated attention of " + std::to_string(l.accumulated_attention.size()) +
                     " numbers: must be one for each of " + std::to_string(l.heads) + " heads and " +
                     std::to_string(n.rows.size()) + " rows"};
      layer_part& to = made.layers_.emplace_back();
      to.id = l.id, to.last = l.last, to.scale = l.scale;
      to.query_heads = l.query_heads, to.channels = l.channels, to.hadamard_block = block;
      to.queries = std::move(l.queries);
      if (l.heads > 0) to.accumulated_attention.resize(l.heads, n.rows.size());
      for (std::size_t head = 0; head < l.heads; ++head)
        std::copy_n(l.accumulated_attention.data() + head * n.rows.size(), n.rows.size(), to.accumulated_attention.of(head));
    }
    made.rows_ = std::move(n.rows);
    made.cells_.resize(made.rows_.size());
    return made;
  }

  /// Whether the i-th layer can be that of a layer of so many KV heads.
  status check_heads(std::size_t i, std::size_t heads) const {
    const row_array<float>& accumulated = layers_[i].accumulated_attention;
    if (accumulated.rows() == 0 || accumulated.heads() == heads) return {};
    return error{"recording: the accumulated attention of layer " + std::to_string(layers_[i].id) + " is of " +
                 std::to_string(accumulated.heads()) + " heads: must be the " + std::to_string(heads) + " of its keys"};
  }

  /// How many layers have been seen.
  std::size_t layers() const { return layers_.size(); }

  /// What is beside keys and values of the i-th layer, until the recording changes.
  extras beside(std::size_t i) {
    layer_part& l = layers_[i];
    extras e;
    e.accumulated_attention = l.accumulated_attention.view(), e.scale = l.scale;
    const std::size_t n = (std::min)(l.held(), what_.queries);
    if (n > 0) {
      const strided<float> as_met(
          l.queries.data() + (l.held() - n) * l.width(), {l.query_heads, l.channels},
          {.head = static_cast<std::ptrdiff_t>(l.channels), .token = static_cast<std::ptrdiff_t>(l.width())}, n);
      e.queries = l.hadamard_block != 0 ? tensor(hadamard(as_met, l.hadamard_block)) : tensor(as_met);
    }
    return e;
  }

 private:
  struct layer_part {
    int id = -1;
    llama_pos last = -1;  ///< position of the last token that was added
    float scale = 0;
    std::size_t query_heads = 0, channels = 0, hadamard_block = 0;
    std::vector<float> queries;  ///< [tokens][query heads][channels]
    row_array<float> accumulated_attention;

    std::size_t width() const { return query_heads * channels; }
    std::size_t held() const { return queries.empty() ? 0 : queries.size() / width(); }
    void forget_before(std::size_t last_tokens) {
      queries.erase(queries.begin(), queries.end() - static_cast<std::ptrdiff_t>(last_tokens * width()));
    }
  };

  /// Only the rows that are marked stay; `last`: the position that the last one had.
  void retain(const std::vector<bool>& stays, llama_pos last) {
    std::size_t left = 0;
    for (std::size_t row = 0; row < stays.size(); ++row)
      if (stays[row]) rows_[left] = rows_[row], cells_[left++] = cells_[row];
    for (layer_part& l : layers_)
      if (l.last == last) l.last = left > 0 ? rows_[left - 1] : -1;
    if (left == rows_.size()) return;
    for (layer_part& l : layers_) {
      l.accumulated_attention.retain(stays);
      const std::size_t held = (std::min)(l.held(), stays.size()), width = l.width();
      std::size_t to = 0;
      for (std::size_t i = 0; i < held; ++i)
        if (stays[stays.size() - held + i])
          std::copy_n(l.queries.begin() + static_cast<std::ptrdiff_t>((l.held() - held + i) * width), width,
                      l.queries.begin() + static_cast<std::ptrdiff_t>(to++ * width));
      l.queries.resize(to * width);
    }
    rows_.resize(left), cells_.resize(left);
  }

  /// Up to twice what is wanted is held, so that a token of an answer moves the others seldom.
  void add_queries(layer_part& l, const tensor& queries) {
    const std::size_t given = queries.capacity(), n = (std::min)(given, what_.queries);
    if (l.held() + n > 2 * what_.queries) l.forget_before((std::min)(l.held(), what_.queries - n));
    const std::size_t before = l.queries.size();
    l.queries.resize(before + n * l.width());
    float* to = l.queries.data() + before;
    for (std::size_t token = given - n; token < given; ++token)
      for (std::size_t head = 0; head < l.query_heads; ++head, to += l.channels)
        std::memcpy(to, queries.at(head, {token, token + 1}).data, l.channels * sizeof(float));
  }

  wanted what_;
  std::string obstacle_;
  std::vector<llama_pos> rows_;
  std::vector<cell_token> cells_;  // of the rows
  std::vector<layer_part> layers_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
