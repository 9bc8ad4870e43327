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
#include <string>
#include <utility>
#include <vector>

#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/attention/estimate_queries.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Has the probe record the queries of up to `tokens` tokens from now on; in doubles, 4 MB of a layer of 32 query heads and 128
/// channels. The probe must outlive it.
class calibration {
 public:
  calibration(cache_probe& probe, std::size_t tokens) : probe_(probe) { probe.record({.queries = tokens}); }

  /// Counts the queries of the sequence that has been decoded since the last time, less those of its first `skip` tokens, which
  /// are unlike the rest. Where it fails nothing has been counted.
  status add(std::size_t skip = 4) {
    recording& seen = probe_.recorded();
    if (seen.rows().empty()) return error{"calibration: nothing has been decoded"};
    const std::size_t rows = seen.rows().size();
    if (status ok = seen.check(seen.rows().back(), rows, probe_.layers().size()); !ok) return ok;
    const result<std::vector<rope>> ropes = probe_.ropes(probe_.layers(), seen.beside(0).queries.channels());
    if (!ropes) return error{ropes.message()};

    for (std::size_t i = 0; i < ropes->size(); ++i) {
      const extras e = seen.beside(i);
      const std::size_t n = e.queries.capacity(), behind = rows - n;
      const rotated how{&(*ropes)[i], {.known = {}, .dropped = static_cast<std::size_t>(seen.rows()[behind])}};
      if (i == layers_.size()) layers_.push_back({query_moments(e.queries.heads(), e.queries.channels()), e.scale});
      layers_[i].queries.add(pre_rope(e.queries, how, workspace_), {skip > behind ? (std::min)(skip - behind, n) : 0, n},
                             workspace_);
    }
    return {};
  }

  /// Of each layer, before RoPE, with `rank` factors, as they count where q.k is multiplied by 1 / sqrt(channels): where the
  /// model has another scale, the rest of it is in them.
  std::vector<query_statistics> statistics(std::size_t rank = 16) const {
    std::vector<query_statistics> all;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      query_statistics s =
          factored(layers_[i].queries.statistics(), probe_.embeddings()[i].with_factors(), expected_queries, rank);
      if (const float scale = layers_[i].scale; scale > 0) s.multiply(scale * std::sqrt(static_cast<float>(s.channels)));
      all.push_back(std::move(s));
    }
    return all;
  }

 private:
  struct layer_part {
    query_moments queries;
    float scale;  ///< of q.k
  };

  cache_probe& probe_;
  lagkv::workspace workspace_;
  std::vector<layer_part> layers_;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
