// The full cache's means decide.
#include "within_reach.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "summary.hpp"

namespace eval {

results within_reach(const results& all, double least) {
  results full{all.runs, {}};
  std::ranges::copy_if(all.samples, std::back_inserter(full.samples), [](const auto& s) { return s.key.policy == "full"; });
  std::set<std::pair<std::size_t, std::string>> reached;  // lengths and tasks
  double best = 0;
  for (const summary_row& row : summarize(full).rows)
    for (const auto& [task, figures] : row.tasks)
      if (const auto score = figures.scores.find("score"); score != figures.scores.end()) {
        best = std::max(best, score->second.mean);
        if (score->second.mean >= least) reached.insert({row.key.length, task});
      }
  if (reached.empty())
    throw std::invalid_argument(
        fmt::format("--reach {:g}: no task of the full cache has it: must be at most {:g}", 100 * least, 100 * best));
  results made{all.runs, {}};
  for (const sample_result& s : all.samples) {
    const bool writes = !s.scores.contains("score") && s.failure.empty();
    if (writes || reached.contains({s.key.length, s.key.task})) made.samples.push_back(s);
  }
  return made;
}

}  // namespace eval
