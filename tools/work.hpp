// What lagkv-npy computes, and the files that it writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "job.hpp"

namespace tool {

/// What is left. Keys and values lie head by head, without gaps.
struct outcome {
  std::vector<std::uint8_t> mask;    ///< [heads, tokens], 1: kept
  std::size_t fewest = 0, most = 0;  ///< rows of a head
  // Not where heads have different lengths:
  std::vector<std::int32_t> kept;     ///< [heads, rows]: where each row came from
  std::vector<std::int32_t> lengths;  ///< rows after each step
  std::vector<std::byte> keys, values;
};

/// Appends the tokens step by step, as prefill and decode would, and lets the policy drop some after each step. At each the
/// policy is offered as many queries as it reads, of the last tokens, as far back as all heads still hold every token; the
/// attention that tokens have received so far is kept here, and so are the key statistics.
outcome compress(job& j);

struct score_array {
  std::vector<std::size_t> shape;
  std::vector<float> data;
};

/// The scores of all tokens offered at once, whatever the steps, and where the budget is met too. Where partitions decide by
/// themselves [heads, partitions - 1, lag]; else [heads, tokens]: there tokens that are no candidates hold NaN, and in the
/// forms of lagkv 1, as in kvpress.
score_array compute_scores(job& j);

/// `scores` may be empty.
lagkv::status write(const job& j, const outcome& result, const score_array& scores, const std::filesystem::path& folder);

}  // namespace tool
