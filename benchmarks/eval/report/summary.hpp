// What a file of results amounts to: a row a policy, share removed and length, with a column a task.
#pragma once

#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "results.hpp"
#include "statistics.hpp"

namespace eval {

/// One task of one row.
struct task_figures {
  std::map<std::string, estimate> scores;  ///< by name, over the samples that have a result
  std::size_t samples = 0;                 ///< with a result
  std::size_t failed = 0;                  ///< without
};

/// What the cache weighed and what its compression took. Not a number where it was not measured.
struct cost_figures {
  double kept_tokens = std::numeric_limits<double>::quiet_NaN();  ///< mean
  double kept_share = std::numeric_limits<double>::quiet_NaN();   ///< of the candidates, 0 to 1
  double kept_mb = std::numeric_limits<double>::quiet_NaN();      ///< mean
  double full_mb = std::numeric_limits<double>::quiet_NaN();      ///< mean
  double compress_ms = std::numeric_limits<double>::quiet_NaN();  ///< median
  double decode_rate = std::numeric_limits<double>::quiet_NaN();  ///< tokens a second, median
};

/// What all figures of a row share: a length, a policy, a share removed.
struct row_key {
  std::size_t length = 0;
  std::string policy;
  double removed = 0;

  friend auto operator<=>(const row_key&, const row_key&) = default;
};

struct summary_row {
  row_key key;
  std::string parsed;
  std::map<std::string, task_figures> tasks;
  estimate ruler;        ///< mean of the RULER tasks' scores; only where the row has all that its length has
  estimate first_token;  ///< share of samples whose first token is the full cache's
  cost_figures answers;  ///< of the tasks that are answered
  cost_figures writing;  ///< of the writing tasks
};

/// Pass keys at one depth.
struct depth_figures {
  row_key key;
  double depth = 0;
  std::map<std::string, double> scores;  ///< means
  std::size_t samples = 0;
};

/// Whether the policies of a length kept equal numbers of tokens. A prompt at one share removed counts once; not policies with a
/// budget of their own, and not generation, where a cache may hold some more for a while.
struct equality_figures {
  std::size_t prompts = 0;
  std::size_t unequal = 0;          ///< of those: in which the numbers differ by more than 1 %
  std::size_t least = 0, most = 0;  ///< tokens kept in the prompt in which they differ most
};

/// Why samples of a row have no result.
struct failure_note {
  row_key key;
  std::string task;
  std::string reason;
  std::size_t samples = 0;  ///< that failed so
  std::size_t of = 0;       ///< all of the task in this row
};

/// Rows: lengths ascending, then the full cache, then policies as they came, shares removed ascending.
struct summary {
  std::vector<run_info> runs;
  std::vector<std::size_t> lengths;
  std::vector<std::string> policies;
  std::vector<std::string> answer_tasks;   ///< that have a score: RULER's in its order, then others as they came
  std::vector<std::string> writing_tasks;  ///< perplexity, of code too, and generation, in this order; then others as they came
  std::vector<summary_row> rows;
  std::vector<depth_figures> depths;
  std::map<std::size_t, equality_figures> equality;  ///< by length
  std::vector<failure_note> failures;
};

/// A sample with a failure, or with a score that is no number, counts as not available.
[[nodiscard]] summary summarize(const results& all);

[[nodiscard]] bool in_ruler(std::string_view task);

/// "s1" for "niah_single_1" and so on; the name itself where it has no short one.
[[nodiscard]] std::string_view short_name(std::string_view task);

}  // namespace eval
