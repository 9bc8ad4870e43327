// What the trials came to: a table for people, JSON for programs.
#pragma once

#include "prompt.hpp"
#include "trial.hpp"

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace passkey {

/// One prompt and what every policy made of it.
struct prompt_result {
  std::uint64_t seed = 0;
  prompt asked;
  double prefill_seconds = 0;  ///< of the one prefill that all policies share; 0 when each has its own
  std::vector<trial> trials;   ///< one a policy, in the order asked for
};

/// The settings a reader needs to repeat the run.
struct run_settings {
  std::string model;
  std::size_t length = 0;
  double depth = 0;
  std::size_t chunk = 0;  ///< 0: compressed once
  std::size_t cells = 0;
  int threads = 0;
};

/// One row a policy, averaged over the prompts, with the answer to the first one.
void print_table(std::ostream& out, const run_settings& settings, const std::vector<prompt_result>& results);

/// Everything measured, per prompt and policy.
void write_json(std::ostream& out, const run_settings& settings, const std::vector<prompt_result>& results);

}  // namespace passkey
