// Pairs samples.
#include "differences.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <vector>

namespace eval {

results differences(const results& all, const std::string& policy) {
  std::map<sample_key, const sample_result*> partners;
  std::vector<std::string> policies;
  for (const sample_result& s : all.samples) {
    if (s.key.policy == policy && s.failure.empty()) partners[s.key] = &s;
    if (std::ranges::find(policies, s.key.policy) == policies.end()) policies.push_back(s.key.policy);
  }
  results made{all.runs, {}};
  for (const sample_result& s : all.samples) {
    sample_key same = s.key;
    same.policy = policy;
    if (policy == "full") same.removed = 0;
    const auto partner = partners.find(same);
    if (s.key.policy == policy || !s.failure.empty() || partner == partners.end()) continue;
    sample_result& d = made.samples.emplace_back(s);
    d.scores.clear();
    for (const auto& [name, score] : s.scores)
      if (const auto other = partner->second->scores.find(name); other != partner->second->scores.end())
        d.scores[name] = score - other->second;
  }
  if (made.samples.empty())
    throw std::invalid_argument(
        fmt::format("--against {}: no prompt has it and another policy: must be one of {}", policy, fmt::join(policies, "; ")));
  return made;
}

}  // namespace eval
