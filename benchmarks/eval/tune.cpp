#include "tune.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace eval {
namespace {

constexpr std::size_t fewest = 4;  // prompts of a task from which an interval is believed

using prompt_key = std::tuple<std::string, std::size_t, std::size_t>;  // task, length, sample

struct runs_of_policy {
  std::string name, parsed;
  std::map<prompt_key, double> worth;
};

const double* worth_of(const sample_result& s) {
  for (const char* name : {"score", "same_token"})
    if (const auto found = s.scores.find(name); found != s.scores.end()) return &found->second;
  return nullptr;
}

// Tasks in which the full cache has less; text that is read on has none (its score is that of another name).
std::set<std::string> out_of_reach(const results& all, double least) {
  std::map<std::string, std::pair<double, double>> sums;
  for (const sample_result& s : all.samples)
    if (const auto score = s.scores.find("score"); s.key.policy == "full" && score != s.scores.end())
      sums[s.key.task].first += score->second, ++sums[s.key.task].second;
  std::set<std::string> made;
  for (const auto& [task, sum] : sums)
    if (sum.first < least * sum.second) made.insert(task);
  return made;
}

std::vector<runs_of_policy> policies_of(const results& all, double least) {
  const std::set<std::string> hard = out_of_reach(all, least);
  std::vector<runs_of_policy> made;
  for (const sample_result& s : all.samples) {
    const double* worth = worth_of(s);
    if (s.key.policy == "full" || !s.failure.empty() || worth == nullptr || hard.contains(s.key.task)) continue;
    auto found = std::ranges::find(made, s.key.policy, &runs_of_policy::name);
    if (found == made.end()) found = made.insert(made.end(), {s.key.policy, "", {}});
    found->parsed = s.parsed;
    found->worth[{s.key.task, s.key.length, s.key.sample}] = 100 * *worth;
  }
  return made;
}

std::set<prompt_key> common_prompts(const std::vector<runs_of_policy>& policies) {
  std::set<prompt_key> common;
  if (policies.empty()) return common;
  for (const auto& [prompt, worth] : policies.front().worth) common.insert(prompt);
  for (const runs_of_policy& p : policies) std::erase_if(common, [&](const prompt_key& k) { return !p.worth.contains(k); });
  return common;
}

// Of each task the values on its prompts: those of `a`, or less those of `b`.
std::vector<std::vector<double>> by_task(const std::set<prompt_key>& prompts, const runs_of_policy& a, const runs_of_policy* b) {
  std::map<std::string, std::vector<double>> tasks;
  for (const prompt_key& k : prompts) tasks[std::get<0>(k)].push_back(a.worth.at(k) - (b != nullptr ? b->worth.at(k) : 0));
  std::vector<std::vector<double>> made;
  for (auto& [task, values] : tasks) made.push_back(std::move(values));
  return made;
}

}  // namespace

results results_of(const results& all, std::size_t length, std::span<const std::string> tasks,
                   std::span<const setting> settings) {
  results made{all.runs, {}};
  std::ranges::copy_if(all.samples, std::back_inserter(made.samples), [&](const sample_result& s) {
    return s.key.length == length && std::ranges::find(tasks, s.key.task) != tasks.end() &&
           std::ranges::find(settings, setting{s.key.policy, s.key.removed}) != settings.end();
  });
  return made;
}

std::vector<failed_policy> failed_policies(const results& all) {
  std::vector<failed_policy> made;
  for (const sample_result& s : all.samples) {
    auto found = std::ranges::find(made, s.key.policy, &failed_policy::policy);
    if (found == made.end()) found = made.insert(made.end(), {s.key.policy, 0, 0, ""});
    ++found->prompts;
    if (!s.failure.empty() && found->failures++ == 0) found->why = s.failure;
  }
  std::erase_if(made, [](const failed_policy& p) { return p.failures == 0; });
  return made;
}

std::vector<standing> standings(const results& all, double least) {
  std::vector<runs_of_policy> policies = policies_of(all, least);
  const std::set<prompt_key> prompts = common_prompts(policies);
  if (prompts.empty())
    throw std::invalid_argument(
        "no prompt of a task that the full cache can do has a result of every policy: must be one or more");
  const auto worth = [&](const runs_of_policy& p) { return estimate_macro_mean(by_task(prompts, p, nullptr)); };
  std::ranges::stable_sort(policies, std::ranges::greater{}, [&](const runs_of_policy& p) { return worth(p).mean; });
  std::vector<standing> made;
  for (const runs_of_policy& p : policies) {
    standing s{p.name, p.parsed, worth(p), {}, false};
    if (!made.empty()) {
      s.behind = estimate_macro_mean(by_task(prompts, policies.front(), &p));
      s.chance = s.behind.samples < fewest || s.behind.low <= 0;
    }
    made.push_back(std::move(s));
  }
  return made;
}

std::vector<std::string> best_candidates(std::span<const standing> all, std::span<const std::string> candidates) {
  std::vector<std::string> made;
  for (const standing& s : all)
    if (std::ranges::find(candidates, s.policy) != candidates.end()) made.push_back(s.policy);
  return made;
}

std::string verdict(std::span<const standing> reported, const std::string& chosen) {
  const auto own = std::ranges::find(reported, chosen, &standing::policy);
  if (own == reported.end()) throw std::runtime_error(chosen + ": has no result on the other half of the prompts");
  const auto level = [&](const standing& s) { return std::abs(s.worth.mean - own->worth.mean) < 1e-9; };
  if (!level(reported.front()))
    return fmt::format("On other prompts {} is ahead of it{}.", reported.front().policy,
                       own->chance ? "; that may be chance" : ": the choice does not hold");
  const auto beaten = std::ranges::count_if(reported, [](const standing& s) { return !s.chance; }) - 1;
  const auto other = std::ranges::find_if(reported, [&](const standing& s) { return s.policy != chosen && level(s); });
  return fmt::format("On other prompts it is {}; of {} others {} lie behind by more than chance.",
                     other == reported.end() ? "first again" : "level with " + other->policy, reported.size() - 1, beaten);
}

std::string with_budget(const standing& s, double removed) {
  if (has_budget(s.policy)) return s.policy;
  return keeps_by_partition(s.policy) ? s.parsed : with_share(s.policy, fmt::format("{:.4g}", 1 - removed));
}

}  // namespace eval
