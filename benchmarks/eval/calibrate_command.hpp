// Counts once what the queries of a model usually are, and what it looks back at, for policies that read it.
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
  std::vector<std::string> count = {"queries", "importance"};
  int threads = 0;  ///< 0: all cores
  std::string out = "calibration.safetensors";
};

/// Writes the file that `run --calibration` takes. Returns 0. Throws as run_command does.
int calibrate_command(const calibrate_options& options);

}  // namespace eval
