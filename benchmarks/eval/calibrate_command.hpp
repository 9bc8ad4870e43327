// Counts what the queries of a model usually are, once, for policies that are calibrated.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace eval {

struct calibrate_options {
  std::string model;               ///< GGUF file
  std::vector<std::string> texts;  ///< files; none: the shipped one, which no task uses
  std::size_t tokens = 16384;      ///< of all texts together, the first ones
  std::size_t length = 2048;       ///< tokens that are read as one text
  std::size_t rank = 16;           ///< factors of the covariance
  int threads = 0;                 ///< 0: all cores
  std::string out = "queries.npy";
};

/// Writes the file that `run --queries` takes. Returns 0. Throws as run_command does.
int calibrate_command(const calibrate_options& options);

}  // namespace eval
