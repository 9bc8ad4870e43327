// LagKV's score in double, from the formulas: nothing of it comes from the library.
#pragma once

#include <cstddef>
#include <vector>

#include "cube.hpp"

namespace support {

struct oracle_options {
  std::size_t lag = 1;
  double value_weight = 1.0;
  bool own = false;  ///< LocalKV: normalised by the partition itself
};

/// softmax over a partition's tokens of the unbiased standard deviation, over channels, of (x - min) / (max - min), with
/// min and max over the next partition; for each of `partitions` partitions from token `begin` on.
/// What is not finite: passed over in the reference; a candidate that has such a channel gets 0, as if it were absent.
std::vector<double> deviation_shares(const cube& x, std::size_t head, std::size_t begin, std::size_t partitions,
                                     const oracle_options& o);

/// deviation_shares(keys) + value_weight * deviation_shares(values).
std::vector<double> lagkv_scores(const cube& keys, const cube& values, std::size_t head, std::size_t begin,
                                 std::size_t partitions, const oracle_options& o);

}  // namespace support
