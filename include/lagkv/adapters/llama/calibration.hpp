// Part of lagkv (MIT). What the queries of a model usually are, counted once over texts. Needs Eigen.
//
//   session with a cache_probe attached; no compressor at work
//   lagkv::llama::calibration all(probe, 2048);
//   for each text: llama_memory_clear(...); llama_decode(text, at most 2,048 tokens from position 0); all.add();
//   compressor::make(context, policy, &probe, all.statistics());
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/estimate_queries.hpp>

namespace lagkv::llama {

/// Has the probe record the queries of up to `tokens` tokens from now on; in doubles, 4 MB of a layer of 32 query heads and 128
/// channels. The probe must outlive it.
class calibration {
 public:
  calibration(cache_probe& probe, std::size_t tokens) : probe_(probe) { probe.record({.queries = tokens}); }

  /// Counts the queries of the sequence that has been decoded since the last time, less those of its first `skip` tokens, which
  /// are unlike the rest. Where it fails nothing has been counted.
  status add(std::size_t skip = 4) {
    recording& seen = probe_.recorded();
    const std::vector<embedding>& turns = probe_.embeddings();
    if (seen.rows().empty()) return error{"calibration: nothing has been decoded"};
    if (!seen.obstacle().empty()) return error{"calibration: " + seen.obstacle()};
    if (status ok = seen.check(seen.rows().back(), seen.rows().size(), probe_.layers().size()); !ok) return ok;
    if (turns.size() != probe_.layers().size()) return error{"calibration: the embedding of some layers has not been seen"};
    for (const embedding& e : turns)
      if (!e.obstacle.empty()) return error{"calibration: rope of layer " + std::to_string(e.id) + " " + e.obstacle};

    for (std::size_t i = 0; i < turns.size(); ++i) {
      const extras e = seen.beside(i);
      const std::size_t n = e.queries.capacity(), behind = seen.rows().size() - n;
      std::vector<std::uint32_t> positions(n);
      for (std::size_t t = 0; t < n; ++t) positions[t] = static_cast<std::uint32_t>(seen.rows()[behind + t]);
      const rope by = turns[i].with_factors();
      const rotated how{&by, {.known = {positions.data(), 0}}};
      if (i == layers_.size()) layers_.push_back({query_moments(e.queries.heads(), e.queries.channels()), e.scale});
      workspace_.turns.prepare(by, e.queries.channels());
      layers_[i].moments.add(e.queries.unrotated(how), {skip > behind ? std::min(skip - behind, n) : 0, n}, workspace_);
    }
    return {};
  }

  /// Of each layer, before RoPE, with `rank` factors, as they count where q.k is multiplied by 1 / sqrt(channels): where the
  /// model has another scale, the rest of it is in them.
  std::vector<query_statistics> statistics(std::size_t rank = 16) const {
    std::vector<query_statistics> all;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      query_statistics s =
          factored(layers_[i].moments.statistics(), probe_.embeddings()[i].with_factors(), expected_queries, rank);
      if (const float scale = layers_[i].scale; scale > 0) s.multiply(scale * std::sqrt(static_cast<float>(s.channels)));
      all.push_back(std::move(s));
    }
    return all;
  }

 private:
  struct layer_part {
    query_moments moments;
    float scale;  ///< of q.k
  };

  cache_probe& probe_;
  lagkv::workspace workspace_;
  std::vector<layer_part> layers_;
};

}  // namespace lagkv::llama
