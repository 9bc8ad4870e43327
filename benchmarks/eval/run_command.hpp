// Runs tasks under policies on a model, and writes what comes out as it comes.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "host_options.hpp"

namespace eval {

struct run_options : host_options {
  std::string tasks = "ruler,passkey64";
  std::vector<std::string> policies = {"lagkv:lag=128", "snapkv", "streaming_llm", "h2o", "key_diff", "random"};
  std::vector<double> removed = {0.25, 0.5, 0.75, 0.875};
  std::vector<std::size_t> lengths = {2048};
  std::size_t samples = 10;
  std::size_t first_sample = 0;  ///< those before are left out: a part of the prompts for each machine
  std::vector<double> depths = {0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95};  ///< of the pass key, in turn
  std::uint64_t seed = 42;
  bool question_seen = false;                ///< compress context and question, not the context alone
  std::size_t chunk = 0;                     ///< compress after each so many tokens of the prompt; 0: once, after all
  std::string calibration;                   ///< file of calibrate_command, for policies that read it; empty: none
  std::map<std::string, std::string> files;  ///< by task: paths of the data sets of qa_1 and qa_2
  std::string out = "results.jsonl";
  std::string command;  ///< as it was called, for the record
  /// No prompt is begun later than that, but for one of each task.
  std::chrono::steady_clock::time_point until = std::chrono::steady_clock::time_point::max();
};

/// Samples that the file has already are not run again. A task that is too long for a length is left out there; the others run.
/// Returns 0, or 2 where one was left out. Throws std::invalid_argument for what was asked wrongly, before anything is run or
/// written; std::runtime_error where the model or the disk fails.
int run_command(const run_options& options);

}  // namespace eval
