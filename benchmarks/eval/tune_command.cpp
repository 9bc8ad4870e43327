#include "tune_command.hpp"

#include <lagkv/methods_with_eigen.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string_view>

#include "calibrate_command.hpp"
#include "host/compressor.hpp"
#include "report/text_table.hpp"
#include "run_command.hpp"
#include "tune.hpp"

namespace eval {
namespace {

using clock = std::chrono::steady_clock;

lagkv::needs needs_of(const std::string& policy) { return host::parse(policy, lagkv::methods_with_eigen()).rules.needs; }

bool reads_calibration(const std::string& policy) { return needs_of(policy).calibrated || needs_of(policy).importance; }

run_options run_of(const tune_options& o, const std::string& calibration) {
  run_options r;
  static_cast<host_options&>(r) = o;
  r.tasks = o.tasks, r.removed = {o.removed}, r.lengths = {o.length}, r.samples = o.samples;
  r.calibration = calibration, r.command = o.command;
  return r;
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

// What the reporting half says of the one that was chosen.
void conclude(const tune_options& o, const std::string& chosen, const std::vector<standing>& reported,
              const std::string& calibration) {
  const auto own = std::ranges::find(reported, chosen, &standing::policy);
  if (own == reported.end()) throw std::runtime_error(chosen + ": has no result on the other half of the prompts");
  const auto beaten = std::ranges::count_if(reported, [](const standing& s) { return !s.chance; }) - 1;
  if (own != reported.begin())
    std::cout << fmt::format("On other prompts {} is ahead of it{}.\n", reported.front().policy,
                             own->chance ? "; that may be chance" : ": the choice does not hold");
  else
    std::cout << fmt::format("On other prompts it is first again; of {} others {} lie behind by more than chance.\n",
                             reported.size() - 1, beaten);
  std::cout << fmt::format("Policy: {}{}keep={:.4g}\n", chosen, chosen.find(':') == std::string::npos ? ":" : ",", 1 - o.removed);
  if (!calibration.empty() && reads_calibration(chosen)) std::cout << "It needs the file " << calibration << '\n';
  std::cout << std::flush;
}

}  // namespace

int tune_command(const tune_options& o) {
  if (!(o.minutes > 0)) throw std::invalid_argument(fmt::format("--minutes {}: must be above 0", o.minutes));
  const clock::time_point start = clock::now();
  const auto part = [&](double share) {
    return start + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(60 * o.minutes * share));
  };
  std::string calibration;
  calibrate_options c;
  c.count.clear();
  if (std::ranges::any_of(o.policies, [](const std::string& p) { return needs_of(p).calibrated; })) c.count.push_back("queries");
  if (std::ranges::any_of(o.policies, [](const std::string& p) { return needs_of(p).importance; }))
    c.count.push_back("importance");
  if (!c.count.empty()) {
    calibration = o.out + ".safetensors";
    c.model = o.model, c.threads = o.threads, c.out = calibration;
    if (!std::filesystem::exists(calibration)) calibrate_command(c);
  }

  run_options choosing = run_of(o, calibration);
  choosing.policies = o.policies, choosing.seed = o.seed, choosing.out = o.out + "-choosing.jsonl", choosing.until = part(0.5);
  run_command(choosing);
  const std::vector<standing> first = standings(read_results(choosing.out), o.reach);
  print(first, "Choosing");

  run_options reporting = run_of(o, calibration);
  for (const std::string& policy :
       {first[0].policy, first.size() > 1 ? first[1].policy : first[0].policy, std::string("recommended")})
    if (std::ranges::find(reporting.policies, policy) == reporting.policies.end()) reporting.policies.push_back(policy);
  reporting.seed = o.seed + 1, reporting.out = o.out + "-reporting.jsonl", reporting.until = part(1);
  run_command(reporting);
  std::vector<standing> second = standings(read_results(reporting.out), o.reach);
  print(second, "Reporting, on other prompts");
  conclude(o, first.front().policy, second, calibration);
  return 0;
}

}  // namespace eval
