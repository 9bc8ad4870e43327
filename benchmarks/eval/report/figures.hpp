// The figures as JSON: what the page draws, and what other programs may read.
#pragma once

#include <string>

#include "summary.hpp"

namespace eval {

/// One object: runs, lengths, policies, tasks, rows, pass keys by depth, survivors, first answers and failures. An estimate is
/// [mean, low, high, samples]; what is not a number is null. Survivors and answers are those of `samples`, whose first sample
/// of each task and length is told.
[[nodiscard]] std::string figures_json(const summary& all, const results& samples);

}  // namespace eval
