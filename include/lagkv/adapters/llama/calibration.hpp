// Part of lagkv (MIT). What a model's queries usually are and what it looks back at, counted once over texts. Needs Eigen.
//
//   session with a cache_probe attached; no compressor at work
//   lagkv::llama::calibration all(probe, 2048);
//   for each text: llama_memory_clear(...); llama_decode(text, at most 2,048 tokens from position 0); all.add();
//   compressor::make(context, policy, &probe, all.statistics());
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/whereabouts.hpp>  // find_recorded_cache()
#include <lagkv/attention/estimate_queries.hpp>
#include <lagkv/attention/fit_importance.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

namespace detail {

/// Whether the probe has recorded the layers with full attention, whole.
inline status check_recorded(cache_probe& probe) {
  const recording& seen = probe.recorded();
  if (seen.rows().empty()) return error{"calibration: nothing has been decoded"};
  if (!probe.knows_recorded_cache())
    return error{"calibration: layers with a window have as many cells as the others: find_recorded_cache() tells them apart"};
  return seen.check(seen.rows().back(), seen.rows().size(), probe.layers().size());
}

}  // namespace detail

/// What the queries of a model usually are. From now on the probe records the queries of up to `tokens` tokens. The sums are in
/// doubles, 4 MB for a layer of 32 query heads and 128 channels. The probe must outlive it.
class calibration {
 public:
  calibration(cache_probe& probe, std::size_t tokens) : probe_(probe) { probe.record({.queries = tokens}); }

  /// Counts the queries of the sequence that has been decoded since the last time, without its first `skip` tokens, which are
  /// unlike the rest. If it fails nothing has been counted.
  status add(std::size_t skip = 4) {
    recording& seen = probe_.recorded();
    if (status ok = detail::check_recorded(probe_); !ok) return ok;
    const std::size_t rows = seen.rows().size();
    const result<std::vector<rope>> ropes = probe_.ropes(probe_.layers(), seen.beside(0).queries.channels());
    if (!ropes) return error{ropes.message()};

    for (std::size_t i = 0; i < ropes->size(); ++i) {
      const extras e = seen.beside(i);
      const std::size_t n = e.queries.capacity(), behind = rows - n;
      const rotated how{&(*ropes)[i], {.known = {}, .dropped = static_cast<std::size_t>(seen.rows()[behind])}};
      if (i == layers_.size()) layers_.push_back({query_moments(e.queries.heads(), e.queries.channels()), (*ropes)[i], e.scale});
      layers_[i].queries.add(pre_rope(e.queries, how, workspace_), {skip > behind ? (std::min)(skip - behind, n) : 0, n},
                             workspace_);
    }
    return {};
  }

  /// The statistics of each layer, before RoPE, with `rank` factors, for q.k times 1 / sqrt(channels): if the model has another
  /// scale, the queries are multiplied by the ratio.
  std::vector<query_statistics> statistics(std::size_t rank = 16) const {
    std::vector<query_statistics> all;
    for (const layer_part& l : layers_) {
      query_statistics s = factored(l.queries.statistics(), l.how, expected_queries, rank);
      if (l.scale > 0) s.multiply(l.scale * std::sqrt(static_cast<float>(s.channels)));
      all.push_back(std::move(s));
    }
    return all;
  }

 private:
  struct layer_part {
    query_moments queries;
    rope how;     ///< its factors are held by the probe, as long as its embeddings are not set anew
    float scale;  ///< of q.k
  };

  cache_probe& probe_;
  lagkv::workspace workspace_;
  std::vector<layer_part> layers_;
};

/// What a model looks back at when it says texts again: the map of each layer for `kvzap`, shares of layers, and the importance
/// of which head_budgets() makes budgets for `select=by_head`. Source: KVzap (arXiv 2601.07891), KVzip (arXiv 2505.23416).
class importance_calibration {
 public:
  /// From now on the probe records the queries of the last `tokens` tokens. The probe must outlive it.
  importance_calibration(cache_probe& probe, std::size_t tokens) : probe_(probe), tokens_(tokens) {
    probe.record({.queries = tokens});
  }

  /// Counts the sequence that has been decoded into an empty cache: `tokens` of a text, something between, and these tokens
  /// again. The first `skip` of them (sinks) are not counted. If it fails nothing has been counted. For layer_shares() and
  /// head_budgets() it holds 4 bytes a row: 8 MB for a text of 8,192 tokens in 32 layers of 8 heads.
  status add(std::size_t skip = 4) {
    recording& seen = probe_.recorded();
    if (status ok = detail::check_recorded(probe_); !ok) return ok;
    const std::size_t rows = static_cast<std::size_t>(seen.rows().back()) + 1;
    if (rows < 2 * tokens_)
      return error{"calibration: " + std::to_string(rows) + " tokens were decoded: must be at least twice the " +
                   std::to_string(tokens_) + " of a text"};
    std::vector<std::int32_t> cells;
    for (std::size_t i = 0; i < rows; ++i) cells.push_back(probe_.cell_of(static_cast<llama_pos>(i)));
    if (std::find(cells.begin(), cells.end(), -1) != cells.end()) return error{"calibration: tokens have left the cache"};
    std::vector<layer> layers;
    std::vector<extras> beside(probe_.layers().size());
    for (std::size_t i = 0; i < beside.size(); ++i) {
      result<layer> l = view(probe_.layers()[i], 0, cells);
      if (!l) return error{l.message()};
      if (!l->values) return error{"calibration: layer " + std::to_string(i) + " has no values"};
      beside[i] = seen.beside(i), l->extra = &beside[i];
      if (const std::size_t n = beside[i].queries.capacity(); n != tokens_)
        return error{"calibration: queries of " + std::to_string(n) + " tokens: must be of " + std::to_string(tokens_)};
      layers.push_back(*l);
    }
    const result<std::vector<rope>> ropes = probe_.ropes(probe_.layers(), layers[0].keys.channels());
    if (!ropes) return error{ropes.message()};
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const layer& l = layers[i];
      if (i == fits_.size()) {
        fits_.emplace_back(l.keys.heads(), l.keys.channels(), l.values.channels());
        importance_.emplace_back(l.keys.heads());
      }
      const rotated how{&(*ropes)[i], {.known = {}, .dropped = 0}};
      const tensor keys = pre_rope(l.keys, how, workspace_);
      const token_range counted{skip < tokens_ ? skip : tokens_, tokens_};
      for (std::size_t head = 0; head < l.keys.heads(); ++head) {
        const result<std::vector<float>> most = most_attention(l, head, tokens_, workspace_);
        if (!most) return error{most.message()};
        if (status s = fits_[i].add(keys, l.values, head, counted, *most, workspace_); !s) return s;
        std::vector<float>& all = importance_[i][head];
        all.insert(all.end(), most->begin() + static_cast<std::ptrdiff_t>(counted.begin), most->end());
      }
    }
    return {};
  }

  /// The map of each layer with full attention.
  std::vector<importance_map> maps() const {
    std::vector<importance_map> all;
    for (const importance_fit& f : fits_) all.push_back(f.map());
    return all;
  }

  /// lagkv::layer_shares() of these layers: for another host, since llama.cpp's layers share cells.
  result<std::vector<double>> layer_shares(double share, double safeguard = 0.2) const {
    std::vector<std::vector<float>> of_layers;
    for (const std::vector<std::vector<float>>& heads : importance_) {
      std::vector<float>& all = of_layers.emplace_back();
      for (const std::vector<float>& head : heads) all.insert(all.end(), head.begin(), head.end());
    }
    return lagkv::layer_shares(of_layers, share, safeguard);
  }

  /// [layer][head][row]: the importance of the rows that were counted, for head_budgets().
  const std::vector<std::vector<std::vector<float>>>& importance() const { return importance_; }

 private:
  cache_probe& probe_;
  std::size_t tokens_;
  lagkv::workspace workspace_;
  std::vector<importance_fit> fits_;
  std::vector<std::vector<std::vector<float>>> importance_;  // [layer][head][row]
};

}  // namespace lagkv::inline LAGKV_ABI::llama
