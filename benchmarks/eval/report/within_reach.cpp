// The full cache's means decide.
#include "within_reach.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace eval {
namespace {

struct tally {
  double sum = 0;
  std::size_t samples = 0;
  double mean() const { return samples == 0 ? 0 : sum / static_cast<double>(samples); }
};

bool answers(const sample_result& s) { return s.scores.count("score") > 0; }

}  // namespace

results within_reach(const results& all, double least) {
  std::map<std::pair<std::size_t, std::string>, tally> full;
  for (const sample_result& s : all.samples)
    if (s.key.policy == "full" && answers(s)) {
      tally& t = full[{s.key.length, s.key.task}];
      t.sum += s.scores.at("score"), ++t.samples;
    }
  double best = 0;
  for (const auto& [task, t] : full) best = std::max(best, t.mean());
  if (full.empty() || best < least)
    throw std::invalid_argument(
        fmt::format("--reach {:g}: no task of the full cache has it: must be at most {:g}", 100 * least, 100 * best));
  results made{all.runs, {}};
  for (const sample_result& s : all.samples) {
    const auto t = full.find({s.key.length, s.key.task});
    const bool writes = !answers(s) && s.failure.empty();
    if (writes || (t != full.end() && t->second.mean() >= least)) made.samples.push_back(s);
  }
  return made;
}

}  // namespace eval
