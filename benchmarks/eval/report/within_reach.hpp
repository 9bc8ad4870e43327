// Leaves out what the model cannot do with its whole cache: there no policy can lose or win.
#pragma once

#include "results.hpp"

namespace eval {

/// All samples but those of tasks whose mean score with the full cache, at the same length, is below `least` (0 to 1) or unknown.
/// Samples without a score (perplexity, generation) stay. Throws std::invalid_argument where no score is left, with the highest
/// mean that there is.
[[nodiscard]] results within_reach(const results& all, double least);

}  // namespace eval
