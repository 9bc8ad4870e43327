#include "tune_command.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string_view>

#include "budget.hpp"
#include "calibrate_command.hpp"
#include "host/calibration_file.hpp"
#include "host/model.hpp"
#include "report/text_table.hpp"
#include "run_command.hpp"
#include "tasks/task.hpp"
#include "tune.hpp"

namespace eval {
namespace {

using clock = std::chrono::steady_clock;

bool reads_importance(const std::string& policy) { return needs_of(policy).importance || needs_of(policy).head_budgets; }

bool reads_calibration(const std::string& policy) { return needs_of(policy).calibrated || reads_importance(policy); }

// A file of an earlier call has what the candidates of that call read. Results of this call's files are bound to it, so it is
// not written anew.
void check_holds(const std::string& path, const std::string& model, const std::vector<std::string>& wanted) {
  const host::calibration there = host::read_calibration(path, host::model(model).signature());
  for (const std::string& what : wanted)
    if (what == "queries" ? there.queries.empty() : there.importance.empty() || there.head_importance.empty())
      throw std::invalid_argument(
          fmt::format("{}: has no {}, which a candidate reads: name another --out, or other --policies", path, what));
}

run_options run_of(const tune_options& o, const std::string& calibration) {
  run_options r;
  static_cast<host_options&>(r) = o;
  r.tasks = o.tasks, r.removed = {o.removed}, r.lengths = {o.length}, r.samples = o.samples;
  r.calibration = calibration, r.command = o.command;
  return r;
}

// What the call's own prompts say: its files may hold the results of calls with other shares, lengths, tasks, policies or numbers
// of prompts.
results own_results(const run_options& o) {
  std::vector<std::string> tasks;
  for (const task* t : tasks_of(o.tasks, {})) tasks.emplace_back(t->name);
  results own = results_of(read_results(o.out), o.lengths.front(), tasks, settings_of(o.policies, o.removed));
  std::erase_if(own.samples, [&](const sample_result& s) { return s.key.sample < o.first_sample || s.key.sample >= o.samples; });
  return own;
}

void print(const std::vector<standing>& all, std::string_view title) {
  std::cout << fmt::format("{}: {} prompts a task at least\n\n", title, all.front().worth.samples);
  text_table table{1, {"policy", "mean of tasks", "95 %", "behind the first", "95 %", ""}, {}};
  for (const standing& s : all) {
    const bool first = &s == &all.front();
    table.rows.push_back({s.policy, fmt::format("{:.1f}", s.worth.mean),
                          fmt::format("[{:.1f}, {:.1f}]", s.worth.low, s.worth.high),
                          first ? "-" : fmt::format("{:.1f}", s.behind.mean),
                          first ? "-" : fmt::format("[{:.1f}, {:.1f}]", s.behind.low, s.behind.high),
                          first      ? "-"
                          : s.chance ? "may be chance"
                                     : "lost"});
  }
  eval::print(std::cout, table, false);
  std::cout << '\n';
}

// Runs one half and prints what it says. `code`: run_command's, where that is not 0.
std::vector<standing> run_half(const run_options& half, double reach, std::string_view title, int& code) {
  code = std::max(code, run_command(half));
  const results all = own_results(half);
  for (const failed_policy& p : failed_policies(all))
    std::cout << fmt::format("{}: failed on {} of {} prompts: {}\n", p.policy, p.failures, p.prompts, p.why);
  std::vector<standing> made = standings(all, reach);
  print(made, title);
  return made;
}

// What the reporting half says of the one that was chosen.
void conclude(const tune_options& o, const std::string& chosen, const std::vector<standing>& reported,
              const std::string& calibration) {
  std::cout << verdict(reported, chosen) << '\n';
  std::cout << "Policy: " << with_budget(*std::ranges::find(reported, chosen, &standing::policy), o.removed) << '\n';
  if (!has_budget(chosen) && keeps_by_partition(chosen))
    std::cout << fmt::format("It removes {:.4g} % of a prompt as long as the last one here, and another share of others.\n",
                             100 * o.removed);
  if (!calibration.empty() && reads_calibration(chosen)) std::cout << "It needs the file " << calibration << '\n';
  std::cout << std::flush;
}

}  // namespace

int tune_command(tune_options o) {
  if (!(o.minutes > 0)) throw std::invalid_argument(fmt::format("--minutes {}: must be above 0", o.minutes));
  if (o.ragged) {
    o.transposed = true;
    o.policies.insert(o.policies.end(), std::begin(ragged_candidates), std::end(ragged_candidates));
  }
  const clock::time_point start = clock::now();
  const auto part = [&](double share) {
    return start + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(60 * o.minutes * share));
  };
  std::string calibration;
  calibrate_options c;
  c.count.clear();
  if (std::ranges::any_of(o.policies, [](const std::string& p) { return needs_of(p).calibrated; })) c.count.push_back("queries");
  if (std::ranges::any_of(o.policies, reads_importance)) c.count.push_back("importance");
  if (!c.count.empty()) {
    calibration = o.out + ".safetensors";
    c.model = o.model, c.threads = o.threads, c.out = calibration;
    if (std::filesystem::exists(calibration))
      check_holds(calibration, o.model, c.count);
    else
      calibrate_command(c);
  }

  int code = 0;
  run_options choosing = run_of(o, calibration);
  choosing.policies = o.policies, choosing.seed = o.seed, choosing.out = o.out + "-choosing.jsonl", choosing.until = part(0.5);
  const std::vector<standing> first = run_half(choosing, o.reach, "Choosing", code);
  const std::vector<std::string> best = best_candidates(first, o.policies);
  if (best.empty()) throw std::runtime_error("no candidate has a result: must be one or more");

  run_options reporting = run_of(o, calibration);
  reporting.policies.clear();  // random comes by itself
  for (const std::string& policy : {best.front(), best[best.size() > 1 ? 1 : 0], std::string("recommended")})
    if (std::ranges::find(reporting.policies, policy) == reporting.policies.end()) reporting.policies.push_back(policy);
  // Later prompts of the same seed: tasks with few questions ask all of them before one comes again.
  reporting.first_sample = o.samples, reporting.samples = 2 * o.samples, reporting.seed = o.seed,
  reporting.out = o.out + "-reporting.jsonl", reporting.until = part(1);
  const std::vector<standing> second = run_half(reporting, o.reach, "Reporting, on other prompts", code);
  conclude(o, best.front(), second, calibration);
  return code;
}

}  // namespace eval
