// Gains and losses against one policy, prompt by prompt.
#pragma once

#include <string>

#include "results.hpp"

namespace eval {

/// Each sample's scores less those that `policy` has on the same prompt with the same share removed; against "full", which
/// removes nothing, with any share. Samples that have no such partner, or where either has no result, are left out, and so is
/// `policy` itself. Throws std::invalid_argument where nothing is left, with the policies that there are.
[[nodiscard]] results differences(const results& all, const std::string& policy);

}  // namespace eval
