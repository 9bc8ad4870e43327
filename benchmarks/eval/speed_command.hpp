// How fast a model reads and answers under a policy, and what its cache weighs: what a user pays and gets.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace eval {

struct speed_options {
  std::string model;                                                                  ///< GGUF file
  std::vector<std::string> policies = {"novelty", "lagkv:lag=512", "streaming_llm"};  ///< without a budget
  double removed = 0.75;                           ///< share of the prompt's tokens that is to go
  std::vector<std::size_t> lengths = {4096};       ///< tokens of prompt and answer together
  std::size_t chunk = 512;                         ///< tokens of the prompt after each of which it compresses
  std::size_t answer = 64;                         ///< tokens that are decoded
  std::vector<int> threads = {0};                  ///< 0: all cores
  std::vector<std::string> attention = {"flash"};  ///< "flash", "plain"
  std::string cache_type = "f16";                  ///< as session_options::types
  std::size_t repeats = 3;                         ///< rounds; each runs every row once
  std::string out;                                 ///< JSON lines, one a run; empty: none are written
  bool markdown = false;                           ///< the table in markdown
};

/// Reads the prompt of a 64-digit pass key in chunks and decodes an answer, with the full cache, under each policy, and with a
/// full cache that has only as many tokens as the policies keep ("short"), also in as many cells as theirs ("short, same cells").
/// Each run has a context of its own, with as many cells as it needs. Prints a table a length, number of threads and kind of
/// attention: medians over the rounds, and their ratios to the full cache (time of the prompt) and to the short one (time of a
/// token), taken in each round. Rounds that the file has already are not run again. Returns 0. Throws as run_command does.
int speed_command(const speed_options& options);

}  // namespace eval
