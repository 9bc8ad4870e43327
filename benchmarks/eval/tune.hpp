// Which of several policies lost least, and whether that is more than chance.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "budget.hpp"
#include "report/statistics.hpp"
#include "results.hpp"

namespace eval {

/// One policy among others on the same prompts.
struct standing {
  std::string policy;   ///< as it was named
  std::string parsed;   ///< with the budget that it had on the last prompt
  estimate worth;       ///< mean over tasks, of 100
  estimate behind;      ///< the first one's worth less this one's, prompt by prompt; of the first: not a number
  bool chance = false;  ///< 0 lies in the interval of `behind`, or there are fewer than 4 prompts of a task
};

/// A policy that failed on some prompts.
struct failed_policy {
  std::string policy;
  std::size_t failures = 0;
  std::size_t prompts = 0;  ///< that it was run on
  std::string why;          ///< the first failure
};

/// The results of one length, of these tasks and these settings: a file may hold those of other calls.
[[nodiscard]] results results_of(const results& all, std::size_t length, std::span<const std::string> tasks,
                                 std::span<const setting> settings);

/// In the order of the file.
[[nodiscard]] std::vector<failed_policy> failed_policies(const results& all);

/// The policies of results that have one length and one share removed, the best first; full is not among them. What a sample is
/// worth is its `score`, or, of a text that is read on, the share of tokens that are the full cache's likeliest (`same_token`).
/// Each task counts once. Left out are tasks in which the full cache has less than `least` (0 to 1), prompts that one of the
/// policies has not come to, and policies that have failed on every prompt. Ties go to the policy that comes first in the file.
/// Throws std::invalid_argument where no prompt is left.
[[nodiscard]] std::vector<standing> standings(const results& all, double least);

/// Those of the standings that are among the candidates, the best first: `random` is there only to compare with.
[[nodiscard]] std::vector<std::string> best_candidates(std::span<const standing> all, std::span<const std::string> candidates);

/// What the standings on other prompts say of the one that was chosen, a sentence. Throws std::runtime_error where it is not
/// among them.
[[nodiscard]] std::string verdict(std::span<const standing> reported, const std::string& chosen);

/// The policy string to use: with a share to keep, or, of a policy that keeps a share of each partition, as it was measured last
/// (its ratio depends on the number of tokens).
[[nodiscard]] std::string with_budget(const standing& s, double removed);

}  // namespace eval
