#include "budget.hpp"

#include <lagkv/methods.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "refit.hpp"

namespace eval {
namespace {

lagkv::result<lagkv::policy> parse(const std::string& policy) {
  return lagkv::parse(split_refit(policy).policy, lagkv::methods_with_eigen());
}

std::string with_share(const std::string& policy, double share) { return eval::with_share(policy, fmt::format("{:.6f}", share)); }

lagkv::policy parsed(const std::string& policy) {
  auto made = parse(policy);
  if (!made) throw std::invalid_argument(made.message());
  return *made;
}

lagkv::budget budget_of(const std::string& policy) { return parsed(policy).budget; }

std::size_t kept_by(const lagkv::budget& b, std::size_t tokens) {
  const lagkv::candidates due = b.due({}, tokens);
  return tokens - due.rows.size() + due.keep;
}

bool by_partition(const lagkv::budget& b) { return b.as<lagkv::keep::partitions>() != nullptr; }

std::size_t rounded(double x) { return static_cast<std::size_t>(std::lround(x)); }

// Where all candidates together are a little less than what is to go, they all go; the others then keep as many.
constexpr double most_short = 0.05;

budgeted share_each_partition(const std::string& policy, std::size_t asked, std::size_t tokens) {
  const lagkv::budget b = budget_of(with_share(policy, 0.5));
  const std::size_t candidates = b.due({}, tokens).rows.size();
  const std::size_t drop = std::min(asked, candidates);
  const bool nothing_can_go = drop == 0 && asked > 0;  // the others would have to keep everything, too
  if (nothing_can_go || static_cast<double>(asked - drop) > most_short * static_cast<double>(tokens))
    return {"", 0,
            fmt::format("{} of {} tokens are in partitions that can be candidates (sink {}, lag {}): {} cannot go", candidates,
                        tokens, b.sink, b.lag(), asked)};
  const std::size_t partitions = std::max<std::size_t>(candidates / b.lag(), 1);  // none: nothing is asked for
  const std::size_t each = b.lag() - std::min(b.lag(), rounded(static_cast<double>(drop) / static_cast<double>(partitions)));
  // Half a token more, so that int() cannot fall below; an empty partition still needs a ratio above 0.
  const double share = std::min(1.0, (static_cast<double>(each) + 0.5) / static_cast<double>(b.lag()));
  const std::string made = with_share(policy, share);
  return {made, kept_by(budget_of(made), tokens), ""};
}

// Each 32nd token of a text that grows makes the survivors candidates again.
std::string with_capacity(const std::string& policy, std::size_t rows) {
  const std::string name = policy.substr(0, policy.find(':'));
  return fmt::format("{}{}capacity={}{}", policy, name == policy ? ":" : ",", rows, name == "streaming_llm" ? "" : ",every=32");
}

budgeted share_of_all(const std::string& policy, std::size_t goal, std::size_t tokens, bool decoding) {
  const double share = std::min(1.0, (static_cast<double>(goal) + 0.5) / static_cast<double>(tokens));
  const std::string made = decoding ? with_capacity(policy, goal) : with_share(policy, share);
  const auto parsed = parse(made);
  if (!parsed) return {"", 0, parsed.message()};  // a budget that can never hold, such as keep=0.75 with a window of 0.75 of it
  const std::size_t kept = kept_by(parsed->budget, tokens);
  if (kept == goal) return {made, kept, ""};
  return {"", 0, fmt::format("keeps {} of {} tokens where {} are asked for (sinks and window stay)", kept, tokens, goal)};
}

}  // namespace

bool has_budget(const std::string& policy) {
  for (const char* key : {"keep=", "ratio=", "capacity=", "budget_mb="})
    for (const char before : {':', ','})
      if (policy.find(before + std::string(key)) != std::string::npos) return true;
  return false;
}

std::string with_share(const std::string& policy, std::string_view share) {
  const std::string name = policy.substr(0, policy.find(':'));
  return fmt::format("{}{}{}={}", policy, name == policy ? ":" : ",", name == "lagkv" ? "ratio" : "keep", share);
}

bool keeps_by_partition(const std::string& policy) { return by_partition(budget_of(with_share(policy, 0.5))); }

lagkv::needs needs_of(const std::string& policy) { return parsed(has_budget(policy) ? policy : with_share(policy, 0.5)).needs; }

std::vector<setting> settings_of(const std::vector<std::string>& policies, const std::vector<double>& removed) {
  for (const double share : removed)
    if (!(share > 0 && share < 1)) throw std::invalid_argument(fmt::format("removed {}: must be above 0 and below 1", share));
  std::vector<std::string> all = policies;
  const auto is_random = [](const std::string& p) { return p.substr(0, p.find(':')) == "random"; };
  if (std::none_of(all.begin(), all.end(), is_random)) all.push_back("random");
  std::vector<setting> made = {{"full", 0}};
  const auto add = [&](const setting& s) {
    if (std::find(made.begin(), made.end(), s) == made.end()) made.push_back(s);
  };
  for (const std::string& policy : all) {
    if (policy == "full") continue;
    if (has_budget(policy)) {
      static_cast<void>(budget_of(policy));  // throws where it is none
      add({policy, of_its_own});
      continue;
    }
    static_cast<void>(budget_of(with_share(policy, 0.5)));
    for (const double share : removed) add({policy, share});
  }
  return made;
}

std::map<setting, budgeted> equal_budgets(const std::vector<setting>& at_one_share, std::size_t tokens, bool decoding,
                                          std::optional<std::size_t> goal) {
  const bool bound = goal.has_value();
  std::map<setting, budgeted> made;
  std::vector<setting> free;  // can keep any number
  for (const setting& s : at_one_share) {
    if (s.policy == "full") {
      made[s] = {"", tokens, ""};
    } else if (s.removed == of_its_own) {
      made[s] = {s.policy, kept_by(budget_of(s.policy), tokens), ""};
    } else if (keeps_by_partition(s.policy)) {
      const std::size_t asked = bound ? tokens - std::min(*goal, tokens) : rounded(s.removed * static_cast<double>(tokens));
      made[s] = share_each_partition(s.policy, asked, tokens);
      if (!goal && made[s].failure.empty()) goal = made[s].kept;
    } else {
      free.push_back(s);
    }
  }
  for (const setting& s : free)
    made[s] = share_of_all(s.policy, goal.value_or(rounded((1 - s.removed) * static_cast<double>(tokens))), tokens, decoding);
  return made;
}

std::optional<std::size_t> earlier_goal(const results& before, const sample_key& of, std::size_t tokens) {
  std::optional<std::size_t> first;
  for (const sample_result& s : before.samples) {
    if (std::tie(s.key.task, s.key.length, s.key.sample, s.key.removed) != std::tie(of.task, of.length, of.sample, of.removed))
      continue;
    if (!s.failure.empty() || s.parsed.empty()) continue;
    const auto policy = parse(s.parsed);
    if (!policy) continue;  // of another version
    const std::size_t kept = kept_by(policy->budget, tokens);
    if (!by_partition(policy->budget)) return kept;
    if (!first) first = kept;
  }
  return first;
}

}  // namespace eval
