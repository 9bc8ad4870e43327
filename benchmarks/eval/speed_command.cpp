#include "speed_command.hpp"

#include <lagkv/methods_with_eigen.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

#include "budget.hpp"
#include "facts.hpp"
#include "host/compressor.hpp"
#include "host/model.hpp"
#include "host/stopwatch.hpp"
#include "report/line_file.hpp"
#include "report/statistics.hpp"
#include "report/text_table.hpp"
#include "tasks/task.hpp"
#include "trial.hpp"

namespace eval {
namespace {

constexpr double megabyte = 1e6;
constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t padding = 256;  // llama.cpp rounds the cells of a context up to it
constexpr const char* short_same_cells = "short, same cells";

// One row of a table, and one run of it.
struct run_key {
  std::size_t length = 0;
  int threads = 0;
  std::string attention;
  std::string policy;  ///< "full", "short", short_same_cells, or without a budget
  std::size_t round = 0;

  friend auto operator<=>(const run_key&, const run_key&) = default;
};

struct speed {
  std::string parsed;            ///< the policy with its budget
  double prompt_seconds = none;  ///< to read and to compress it
  double compress_seconds = none;
  double token_ms = none;     ///< median of the answer's, compression included
  std::size_t tokens = 0;     ///< kept when the answer begins
  double cache_mb = none;     ///< of all cells of the context
  double peak_rss_mb = none;  ///< of the process, model included; not a number where the system does not say
  double recalled = none;     ///< longest part of the key in the answer / 64
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(run_key, length, threads, attention, policy, round)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(speed, parsed, prompt_seconds, compress_seconds, token_ms, tokens, cache_mb, peak_rss_mb,
                                   recalled)

// JSON has no word for what is not a number: null is written for a peak that the system does not say.
speed speed_of(nlohmann::json j) {
  if (j.at("peak_rss_mb").is_null()) j["peak_rss_mb"] = none;
  return j.get<speed>();
}

// Linux counts the peak anew after this.
void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << 5; }

double peak_rss_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) * 1024 / megabyte;
  return none;
}

struct prompt_in_tokens {
  prompt asked;
  tokenized tokens;
};

class runner {
 public:
  explicit runner(const speed_options& o);
  void run_all();

 private:
  prompt_in_tokens make_prompt(std::size_t length) const;
  void run_table(std::size_t length, const run_key& table);
  speed run_one(const prompt_in_tokens& p, const run_key& key, const budgeted& with) const;
  void print_table(const run_key& table, std::span<const std::string> policies) const;

  const speed_options& options_;
  host::model model_;
  const task* passkey_;
  nlohmann::json facts_;
  std::unique_ptr<line_file> file_;
  std::map<run_key, speed> done_;
};

runner::runner(const speed_options& o) : options_(o), model_(o.model), passkey_(tasks_of("passkey64", {}).front()) {
  const run_info info = facts(model_, o.model);
  facts_ = {{"model", info.model},      {"model_sha256", info.model_sha256},
            {"machine", info.machine},  {"llama", info.llama},
            {"lagkv", info.lagkv},      {"removed", o.removed},
            {"chunk", o.chunk},         {"answer", o.answer},
            {"date", info.date},        {"cache_type", o.cache_type},
            {"compiler", info.compiler}};
  if (o.out.empty()) return;
  file_ = std::make_unique<line_file>(o.out, R"({"key":)");  // members come by name
  std::ifstream before(o.out);
  std::size_t number = 0;
  for (std::string line; std::getline(before, line);) {
    ++number;
    try {
      const nlohmann::json j = nlohmann::json::parse(line);
      for (const char* same : {"model_sha256", "removed", "chunk", "answer", "cache_type"})
        if (j.at("run").at(same) != facts_.at(same))
          throw std::invalid_argument(fmt::format("{}: was made with {} {}, not {}: name another file with --out", o.out, same,
                                                  j.at("run").at(same).dump(), facts_.at(same).dump()));
      done_[j.at("key").get<run_key>()] = speed_of(j.at("speed"));
    } catch (const nlohmann::json::exception& fault) {
      throw std::invalid_argument(fmt::format("{}, line {}: is none of ours: {}", o.out, number, fault.what()));
    }
  }
}

prompt_in_tokens runner::make_prompt(std::size_t length) const {
  request asked;
  set_length(asked, *passkey_, length, template_tokens(model_));
  asked.count = [this](std::string_view text) { return model_.tokenize(text).size(); };
  prompt_in_tokens made{passkey_->make(asked), {}};
  made.tokens = tokenize(model_, *passkey_, made.asked, false);
  return made;
}

speed runner::run_one(const prompt_in_tokens& p, const run_key& key, const budgeted& with) const {
  std::span<const llama_token> before = p.tokens.before;
  const bool compressed = !with.policy.empty();
  const bool roomy = key.policy == short_same_cells;
  if (key.policy == "short" || roomy) before = before.last(with.kept);
  const std::size_t after = p.tokens.after.size() + options_.answer;
  host::session_options o;
  // Beside what is kept a chunk must fit in, and what waits for its partition to be full.
  const std::size_t cells = compressed || roomy ? with.kept + 2 * options_.chunk + padding + after : before.size() + after;
  o.cells = static_cast<std::uint32_t>((cells + padding - 1) / padding * padding);
  o.threads = key.threads;
  o.flash_attention = key.attention == "flash";
  o.types = host::parse_cache_types(options_.cache_type);
  reset_peak_rss();
  host::session s(model_, o);
  const host::named_policy policy = host::parse(compressed ? with.policy : "full", lagkv::methods_with_eigen());
  host::compressor c(s, policy, nullptr, false);
  const auto must_fit = [&](bool fits) {
    if (!fits) throw std::runtime_error(fmt::format("{}: {} cells have no room for a chunk", with.policy, o.cells));
  };
  const auto feed = [&](std::span<const llama_token> tokens) {
    must_fit(s.feed(tokens));
    return c.compress();
  };

  speed made{.parsed = policy.name, .compress_seconds = 0};
  const host::stopwatch prompt_watch;
  host::compression last;
  for (std::size_t i = 0; i < before.size(); i += options_.chunk) {
    last = feed(before.subspan(i, std::min(options_.chunk, before.size() - i)));
    made.compress_seconds += last.seconds;
  }
  made.compress_seconds += c.defragment();
  must_fit(s.feed(p.tokens.after));
  made.prompt_seconds = prompt_watch.seconds();
  made.tokens = last.tokens_after;
  const double row_bytes = static_cast<double>(last.bytes_before) / static_cast<double>(last.tokens_before);
  made.cache_mb = row_bytes * static_cast<double>(o.cells) / megabyte;

  std::string answer;
  std::vector<double> token_ms;
  llama_token token = s.next();
  for (std::size_t i = 0; i < options_.answer; ++i) {
    answer += model_.piece(token);
    const host::stopwatch watch;
    feed({&token, 1});
    token = s.next();
    token_ms.push_back(watch.seconds() * 1000);
  }
  made.token_ms = median(std::move(token_ms));
  made.recalled = passkey_->score(answer, p.asked).at("partial");
  made.peak_rss_mb = peak_rss_mb();
  return made;
}

void runner::run_table(std::size_t length, const run_key& table) {
  const prompt_in_tokens p = make_prompt(length);
  std::vector<std::pair<std::string, budgeted>> rows{{"full", {}}};
  std::vector<setting> at_one_share;  // in the user's order: the first that keeps a share of each partition sets the goal
  for (const setting& s : settings_of(options_.policies, {options_.removed}))
    if (s.removed == options_.removed) at_one_share.push_back(s);
  const std::map<setting, budgeted> with = equal_budgets(at_one_share, p.tokens.before.size(), true);
  budgeted fewer;
  for (const std::string& policy : options_.policies) {
    const auto found = with.find({policy, options_.removed});
    if (found == with.end()) throw std::invalid_argument(policy + ": name it without a budget");
    if (!found->second.failure.empty()) throw std::invalid_argument(fmt::format("{}: {}", policy, found->second.failure));
    rows.emplace_back(policy, found->second);
    fewer.kept = std::max(fewer.kept, found->second.kept);
  }
  rows.emplace_back("short", fewer);
  rows.emplace_back(short_same_cells, fewer);

  for (std::size_t round = 0; round < options_.repeats; ++round)
    for (const auto& [policy, budget] : rows) {
      run_key key = table;
      key.policy = policy, key.round = round;
      if (done_.count(key)) continue;
      std::cerr << fmt::format("{} tokens, {} threads, {}: {}, round {} of {}\n", length, key.threads, key.attention, policy,
                               round + 1, options_.repeats);
      done_[key] = run_one(p, key, budget);
      if (file_) file_->add(nlohmann::json{{"run", facts_}, {"key", key}, {"speed", done_[key]}}.dump());
    }
  std::vector<std::string> policies;
  for (const auto& row : rows) policies.push_back(row.first);
  print_table(table, policies);
}

void runner::print_table(const run_key& table, std::span<const std::string> policies) const {
  const auto each = [&](const std::string& policy, const auto& value) {
    std::vector<double> values;
    for (std::size_t round = 0; round < options_.repeats; ++round) {
      run_key key = table;
      key.policy = policy, key.round = round;
      values.push_back(value(done_.at(key), key));
    }
    return median(values);
  };
  const auto of = [&](run_key key, const char* policy) -> const speed& {
    key.policy = policy;
    return done_.at(key);
  };
  text_table t;
  t.heads = {"policy",  "prompt s",     "x full", "compress s", "token ms",    "x full",
             "x short", "x same cells", "kept",   "cache MB",   "peak RSS MB", "key"};
  for (const std::string& policy : policies) {
    const auto median_of = [&](double speed::*member) {
      return each(policy, [&](const speed& s, const run_key&) { return s.*member; });
    };
    const double rss = median_of(&speed::peak_rss_mb);
    const auto ratio = [&](double speed::*member, const char* to) {
      return fmt::format("{:.2f}",
                         each(policy, [&](const speed& s, const run_key& k) { return s.*member / (of(k, to).*member); }));
    };
    t.rows.push_back(
        {policy, fmt::format("{:.1f}", median_of(&speed::prompt_seconds)), ratio(&speed::prompt_seconds, "full"),
         fmt::format("{:.2f}", median_of(&speed::compress_seconds)), fmt::format("{:.1f}", median_of(&speed::token_ms)),
         ratio(&speed::token_ms, "full"), ratio(&speed::token_ms, "short"), ratio(&speed::token_ms, short_same_cells),
         fmt::format("{:.0f}", each(policy, [](const speed& s, const run_key&) { return static_cast<double>(s.tokens); })),
         fmt::format("{:.0f}", median_of(&speed::cache_mb)), std::isfinite(rss) ? fmt::format("{:.0f}", rss) : "-",
         policy.starts_with("short") ? "-" : fmt::format("{:.0f} %", 100 * median_of(&speed::recalled))});
  }
  std::cout << fmt::format("\n{} tokens in chunks of {}, {} threads, {} attention, {} rounds\n\n", table.length, options_.chunk,
                           table.threads, table.attention, options_.repeats);
  print(std::cout, t, options_.markdown);
}

void runner::run_all() {
  for (const std::size_t length : options_.lengths)
    for (const std::string& attention : options_.attention)
      for (const int threads : options_.threads) {
        const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
        run_key table;
        table.length = length, table.threads = threads > 0 ? threads : cores, table.attention = attention;
        run_table(length, table);
      }
}

}  // namespace

int speed_command(const speed_options& o) {
  if (o.model.empty()) throw std::invalid_argument("--model: name a GGUF model");
  if (!std::ifstream(o.model)) throw std::invalid_argument(o.model + ": cannot be read");
  if (o.policies.empty() || o.lengths.empty()) throw std::invalid_argument("--policies, --length: name one at least");
  for (const std::string& kind : o.attention)
    if (kind != "flash" && kind != "plain")
      throw std::invalid_argument(fmt::format("--attention {}: must be flash or plain", kind));
  runner(o).run_all();
  return 0;
}

}  // namespace eval
