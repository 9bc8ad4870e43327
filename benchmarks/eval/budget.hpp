// Equal budgets: from a share that is to go, the parameters with which every policy keeps the same number of tokens.
#pragma once

#include <lagkv/policy/policy.hpp>

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "results.hpp"

namespace eval {

/// What the user asked for: a policy string without a budget, and the share of tokens that is to go.
struct setting {
  std::string policy;
  double removed = 0;  ///< 0 for full; of_its_own where the string has a budget already

  friend auto operator<=>(const setting&, const setting&) = default;
};

/// The string has a budget already: it is taken as it is, once.
inline constexpr double of_its_own = -1;

/// The settings that a list of policies and a list of shares come to: full first, then every policy at every share; `random` is
/// added where it is missing. A policy that names its own budget comes once. Throws std::invalid_argument for strings that are
/// no policy, and for shares that are not above 0 and below 1.
[[nodiscard]] std::vector<setting> settings_of(const std::vector<std::string>& policies, const std::vector<double>& removed);

/// Whether a policy string names a budget: keep=, ratio=, capacity= or budget_mb=.
[[nodiscard]] bool has_budget(const std::string& policy);

/// The policy string with a share to keep, as `share` is written. lagkv calls its share ratio, all others call it keep.
[[nodiscard]] std::string with_share(const std::string& policy, std::string_view share);

/// Whether a policy without a budget keeps a share of each partition (lagkv, and others with lag=), not of all tokens.
[[nodiscard]] bool keeps_by_partition(const std::string& policy);

/// What a policy reads besides keys and values, whether its string names a budget or not. Throws std::invalid_argument for a
/// string that is no policy.
[[nodiscard]] lagkv::needs needs_of(const std::string& policy);

/// A policy with a budget, for a cache of a given number of tokens.
struct budgeted {
  std::string policy;    ///< with its keep= or ratio=; empty for full, and where there is none
  std::size_t kept = 0;  ///< tokens that it keeps
  std::string failure;   ///< why it cannot keep that few
};

/// The policies at one share, for a cache of `tokens`.
///
/// Policies that keep a share of each partition (lagkv, and others with lag=) can drop only whole numbers of tokens a partition:
/// with S sinks, partitions of L and N tokens, P = floor((N - S) / L) - 1 partitions are candidates, and
///   kept = N - P (L - int(ratio L))            (the paper's equation 13, with its floors)
/// so the ratio is solved for int(ratio L) = L - round(removed N / P). Where P L is less than what is to go by at most a
/// twentieth of N, all of it goes; by more, the policy cannot. The first such policy sets the goal for all others; without one it
/// is round((1 - removed) N). `goal`: what an earlier call's policies kept of this prompt; then all policies aim at it. All
/// others keep a share of all tokens, which meets any goal: share = (goal + 0.5) / N. `decoding`: the cache grows to `tokens` one
/// by one; then they have the goal as their capacity from the start, score survivors again, and may hold 31 more for a while.
[[nodiscard]] std::map<setting, budgeted> equal_budgets(const std::vector<setting>& at_one_share, std::size_t tokens,
                                                        bool decoding = false, std::optional<std::size_t> goal = {});

/// What the results of a prompt at one share bind others to: the tokens that the first policy keeps that can keep any number, or
/// else the first. The prompt and the share are those of `of`, whose policy does not matter; its cache has `tokens`. Nothing
/// where no result is there.
[[nodiscard]] std::optional<std::size_t> earlier_goal(const results& before, const sample_key& of, std::size_t tokens);

}  // namespace eval
