// A key that lagkv-eval adds to every policy string: values that stay are changed to make up for those that go.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace eval {

/// How refit_values() is called.
struct refit {
  double ridge = 0;
  std::size_t queries = 64;  ///< of the last so many tokens; of more, if the policy reads more
};

/// A policy string of the library, and what was asked of it beside.
struct refitted_policy {
  std::string policy;
  std::optional<refit> how{};
};

/// Takes refit=RIDGE (from 1e-9 to 1e6) and refit_queries=N (1 or more; 64) off a string. Throws std::invalid_argument for other
/// values, and for refit_queries without refit.
[[nodiscard]] refitted_policy split_refit(const std::string& text);

}  // namespace eval
