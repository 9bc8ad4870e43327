// Finds the policy that loses least on a model: chooses on some prompts, reports on others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "host_options.hpp"

namespace eval {

/// For caches whose heads can hold different numbers of rows (llama.cpp's cannot; it measures them by hiding rows). Chosen on the
/// prompts of docs/research.md.
inline constexpr const char* ragged_candidates[] = {
    "expected_attention:covariance=no,calibrated=yes,select=by_head",
    "fuse:key_diff+expected_attention,by=best,covariance=no,calibrated=yes,select=by_head",
    "key_diff:pre_rope=yes,select=by_head"};

struct tune_options : host_options {
  double removed = 0.75;
  double minutes = 30;  ///< for all of it; a prompt that has begun is finished, and one of each half is always run
  std::vector<std::string> policies = {"recommended",
                                       "novelty",
                                       "novelty:recent_share=0.5",
                                       "key_diff",
                                       "lagkv:lag=128",
                                       "streaming_llm",
                                       "nested:pre_rope=yes,smooth=8,heads=shared",
                                       "fuse:novelty+stripes,by=best",
                                       "fuse:novelty+expected_attention,by=best,recent_share=0.25,calibrated=yes"};
  bool ragged = false;  ///< ragged_candidates, too, without flash attention
  std::string tasks = "niah_multivalue,prose_recall,perplexity,passkey64,documents,perplexity_code";
  std::size_t length = 2048;
  std::size_t samples = 20;  ///< prompts a task, in each half, at most
  std::uint64_t seed = 1000;
  double reach = 0.3;        ///< tasks in which the full cache has less do not count
  std::string out = "tune";  ///< tune-choosing.jsonl, tune-reporting.jsonl, tune.safetensors
  std::string command;       ///< as it was called, for the record
};

/// Runs the candidates on the first prompts of `seed` for half of the time, the best of them, the next, `recommended` and
/// `random` on as many later ones for the other half. Prints both tables, the policy string, and whether the differences are more
/// than chance. Query statistics are counted first if a candidate reads them and there is no file of them yet; the time counts.
/// Results that are there already are not run again; those of calls with another share, length, tasks or candidates do not count.
/// Policies that fail are named with their first failure. Returns and throws as run_command does; throws std::runtime_error, too,
/// where no candidate has a result.
int tune_command(tune_options options);

}  // namespace eval
