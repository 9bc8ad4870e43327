// From the options of lagkv-npy to arrays and a policy that have been checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "tools/npy.hpp"

namespace tool {

/// The command line, as given.
struct options {
  std::string policy, keys, values, queries, query_mean, query_covariance, protect, layer, steps, target, out;
  std::string rope_factors, rope_pairs = "halves";
  std::optional<double> rope_base;
  std::size_t rope_dims = 0;
  float rope_scale = 1;
  bool scores = false, list = false, list_markdown = false;
};

/// All that is read, checked and ready to be compressed. Arrays that are not given are empty.
struct job {
  std::string method;  ///< the policy's name
  lagkv::policy policy;
  npy::array keys, values;                  ///< [heads, tokens, dim]
  npy::array queries;                       ///< [query heads, tokens, dim]
  npy::array query_mean, query_covariance;  ///< [query heads, 1, dim], [query heads, dim, dim]
  npy::array rope_factors;                  ///< float32 [pairs]
  std::optional<lagkv::rope> rope;          ///< that the keys carry, where the user says it; points into rope_factors
  std::vector<std::uint32_t> protect;
  std::vector<std::uint32_t> positions;  ///< 0, 1, 2, ...: one for each token
  std::vector<std::size_t> steps;        ///< empty: all tokens at once
  lagkv::simd::target target = lagkv::simd::best();
  std::size_t heads = 0, tokens = 0;
};

lagkv::result<job> prepare(const options& o);

/// What the host knows beside keys and values, all tokens offered at once. Points into `j`.
lagkv::extras extras_of(job& j);

}  // namespace tool
