#include "run_command.hpp"

#include <lagkv/attention/refit_values.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "budget.hpp"
#include "content.hpp"
#include "facts.hpp"
#include "host/calibration_file.hpp"
#include "host/compressor.hpp"
#include "host/model.hpp"
#include "host/run.hpp"
#include "host/stopwatch.hpp"
#include "progress.hpp"
#include "refit.hpp"
#include "results.hpp"
#include "tasks/task.hpp"
#include "trial.hpp"
#include "uneven.hpp"

namespace eval {
namespace {

constexpr std::size_t picture_columns = 128;

host::named_policy parse(const std::string& policy) {
  const refitted_policy asked = split_refit(policy.empty() ? "full" : policy);
  host::named_policy made = host::parse(asked.policy, lagkv::methods_with_eigen());
  made.name = policy;
  if (!asked.how) return made;
  made.rules.needs.queries = std::max(made.rules.needs.queries, asked.how->queries);  // so that they are recorded
  made.change = [ridge = asked.how->ridge](const lagkv::layer& l, const lagkv::plan& p, lagkv::workspace& ws) {
    if (const lagkv::status ok = lagkv::refit_values(l, p, ridge, ws); !ok) throw std::runtime_error("refit: " + ok.message());
  };
  return made;
}

std::map<std::string, std::string> contents(const std::map<std::string, std::string>& paths) {
  std::map<std::string, std::string> made;
  for (const auto& [task, path] : paths) made[task] = content(path);
  return made;
}

results results_at(const std::string& path) {
  check_regular(path);  // a pipe would be waited for, a device may have no end
  return std::filesystem::exists(path) ? read_results(path) : results{};
}

// One prompt, and the settings that have no result of it yet.
struct assignment {
  const task* what = nullptr;
  std::size_t length = 0;
  std::size_t sample = 0;
  std::vector<setting> missing;

  [[nodiscard]] sample_key key(const setting& s) const { return {std::string(what->name), length, sample, s.policy, s.removed}; }
};

class runner {
 public:
  explicit runner(const run_options& o);
  int run_all();

 private:
  struct job {
    setting asked;
    budgeted with;
    trial doing;
    bool written = false;  ///< was in the file before: only run for what the full cache says
  };

  void check_settings() const;
  void make_sessions();
  std::vector<assignment> assignments() const;
  prompt make_prompt(const assignment& a);
  void leave_out(const assignment& a);
  void run_one(const assignment& a);
  std::string refusal(const host::named_policy& policy);
  void find_refusals(const std::map<setting, budgeted>& with);
  std::map<setting, budgeted> budgets(const assignment& a, const tokenized& tokens) const;
  static std::vector<job> jobs_of(const assignment& a, const std::map<setting, budgeted>& with);
  void run_jobs(const assignment& a, const std::vector<job>& jobs, double depth, double prefill_seconds);
  void write(sample_result r, const assignment& a, const job& j);
  bool draws_picture(const assignment& a) const;

  const run_options& options_;
  request request_;  ///< of the prompt at work; its data sets stay
  std::vector<setting> settings_;
  results before_;
  host::model model_;
  std::size_t template_tokens_;
  run_info info_;
  std::unique_ptr<host::session> prefill_;
  std::vector<std::unique_ptr<host::session>> workers_;
  std::vector<const task*> tasks_;
  std::map<setting, std::string> refusals_;  ///< why, by what was asked; empty where the model can have it
  std::map<std::pair<const task*, std::size_t>, std::string> left_out_;  ///< why, by task and length
  std::unique_ptr<results_file> file_;
  bool run_written_ = false;  ///< the line of this run is in the file
  std::unique_ptr<progress> bar_;
  std::mutex writing_;
};

runner::runner(const run_options& o)
    : options_(o),
      request_{.files = contents(o.files)},
      settings_(settings_of(o.policies, o.removed)),
      before_(results_at(o.out)),
      model_(o.model, {.repack = o.repack}),
      template_tokens_(eval::template_tokens(model_)),
      info_(facts(model_, o.model)),
      tasks_(tasks_of(o.tasks, request_.files)) {
  request_.seed = o.seed;
  request_.count = [this](std::string_view text) { return model_.tokenize(text).size(); };
  info_.command = o.command;
  info_.seed = o.seed;
  info_.threads = o.threads > 0 ? o.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  info_.question_seen = o.question_seen;
  info_.chunk = o.chunk;
  info_.cache_type = o.cache_type;
  info_.transposed = o.transposed;
  if (!o.calibration.empty()) info_.calibration = sha256_of_calibration(o.calibration);
  info_.repack = o.repack;
  for (const task* t : tasks_) {
    if (t->name == "passkey64") info_.depths = o.depths;
    if (!t->file.empty()) info_.data_sets[std::string(t->name)] = sha256_of_text(request_.files.at(std::string(t->name)));
  }
  check_settings();
  make_sessions();
}

// A file holds one model under one set of conditions.
void runner::check_settings() const {
  for (const run_info& was : before_.runs)
    if (const std::string why = conflict(was, info_); !why.empty())
      throw std::invalid_argument(fmt::format("{}: {}: name another file with --out", options_.out, why));
}

void runner::make_sessions() {
  host::session_options o;
  std::size_t more = 0;  // a continuation is cut in words: it may have up to twice as many tokens as are asked for
  for (const task* t : tasks_)
    if (t->how == kind::perplexity) more = std::max(more, t->new_tokens);
  o.cells =
      static_cast<std::uint32_t>(*std::max_element(options_.lengths.begin(), options_.lengths.end()) + 2 * spare_tokens + more);
  o.types = host::parse_cache_types(options_.cache_type);
  o.flash_attention = !options_.transposed;
  o.threads = info_.threads;
  o.answer_threads = 1;
  if (!options_.calibration.empty()) o.counted = host::read_calibration(options_.calibration, model_.signature());
  prefill_ = std::make_unique<host::session>(model_, o);
  o.threads = 1;
  for (int i = 0; i < info_.threads; ++i) {
    workers_.push_back(std::make_unique<host::session>(model_, o));
    // Its probe has seen the cache then, knows which layers have full attention, and llama.cpp has its first logits from one
    // thread.
    const std::vector<llama_token> some = model_.tokenize("The grass is green.");
    if (!workers_.back()->feed(some)) throw std::runtime_error("the cache has no room for a sentence");
    static_cast<void>(workers_.back()->next());
    static_cast<void>(lagkv::llama::find_recorded_cache(workers_.back()->get(), workers_.back()->probe()));
  }
}

// Samples outermost: an interrupted run has fewer samples, but of all tasks.
std::vector<assignment> runner::assignments() const {
  std::set<sample_key> done;
  for (const sample_result& r : before_.samples) done.insert(r.key);
  std::vector<assignment> made;
  for (std::size_t sample = options_.first_sample; sample < options_.samples; ++sample)
    for (const std::size_t length : options_.lengths)
      for (const task* t : tasks_) {
        assignment a{t, length, sample, {}};
        for (const setting& s : settings_)
          if (done.insert(a.key(s)).second) a.missing.push_back(s);  // a length may be named twice
        if (!a.missing.empty()) made.push_back(std::move(a));
      }
  return made;
}

prompt runner::make_prompt(const assignment& a) {
  set_length(request_, *a.what, a.length, template_tokens_);
  request_.sample = a.sample;
  request_.depth = options_.depths[a.sample % options_.depths.size()];
  return a.what->make(request_);
}

// Says so once for a task and length, with the least length that has room for all its samples.
void runner::leave_out(const assignment& a) {
  bar_->leave_out(a.missing.size());
  std::string& why = left_out_[{a.what, a.length}];
  if (!why.empty()) return;
  std::size_t least = a.length;
  for (std::size_t sample = 0; sample < options_.samples;) try {
      static_cast<void>(make_prompt({a.what, least, sample, {}}));
      ++sample;
    } catch (const too_short& longer) {
      least = longer.least;
    }
  why = too_short(a.what->name, a.length, least).what();
  std::cerr << why << ": left out\n";
}

int runner::run_all() {
  const std::vector<assignment> todo = assignments();
  std::size_t steps = 0;
  for (const assignment& a : todo) steps += a.missing.size();
  std::cerr << fmt::format("{}: {} results are there, {} are missing\n", options_.out, before_.samples.size(), steps);
  if (steps == 0) return 0;
  file_ = std::make_unique<results_file>(options_.out);
  if (file_->bytes_found() != before_.bytes)
    throw std::runtime_error(options_.out + ": another run has written to it since this one began: start again");
  bar_ = std::make_unique<progress>(steps);
  for (const assignment& a : todo) {
    if (a.sample > options_.first_sample && std::chrono::steady_clock::now() >= options_.until) break;
    try {
      run_one(a);
    } catch (const too_short&) {
      leave_out(a);
    }
  }
  if (left_out_.empty()) return 0;
  if (!run_written_ && before_.samples.empty()) throw std::invalid_argument("--length: has room for none of the tasks");
  for (const auto& [what, why] : left_out_) std::cerr << why << ": was left out\n";
  return host::bad_input;
}

// A middle sample of the pass key, or of the first task that hides something.
bool runner::draws_picture(const assignment& a) const {
  if (a.sample != options_.samples / 2 || a.what->how != kind::answer) return false;
  const auto named = [](const task* t) { return t->name == "passkey64"; };
  const auto found = std::find_if(tasks_.begin(), tasks_.end(), named);
  return a.what == (found != tasks_.end() ? *found : tasks_.front());
}

std::map<setting, budgeted> runner::budgets(const assignment& a, const tokenized& tokens) const {
  // A generation is compressed up to its end, the last token of which is not read.
  const std::size_t grows = a.what->how == kind::generation ? tokens.after.size() + a.what->new_tokens - 1 : 0;
  std::map<setting, budgeted> made;
  std::set<double> shares;
  for (const setting& s : settings_) shares.insert(s.removed);
  for (const double share : shares) {
    std::vector<setting> at;  // in the user's order: the first that keeps a share of each partition sets the goal
    for (const setting& s : settings_)
      if (s.removed == share) at.push_back(s);
    const std::size_t size = tokens.before.size() + grows;
    made.merge(equal_budgets(at, size, grows > 0, earlier_goal(before_, a.key({"", share}), size)));
  }
  return made;
}

// The full cache comes first: the others are compared with it.
std::vector<runner::job> runner::jobs_of(const assignment& a, const std::map<setting, budgeted>& with) {
  std::vector<job> jobs;
  const bool full_missing = a.missing.front().policy == "full";
  const setting full{"full", 0};
  jobs.push_back({full, with.at(full), {}, !full_missing});
  for (const setting& s : a.missing)
    if (s != full) jobs.push_back({s, with.at(s), {}, false});
  return jobs;
}

// Why the model cannot be compressed so (attention that cannot be recorded, say); empty where it can. A policy that wants
// a file is not excused: it may be the wrong file.
std::string runner::refusal(const host::named_policy& policy) {
  if (policy.change) {
    const auto type = lagkv::llama::dtype_of_ggml(host::parse_cache_types(options_.cache_type).values);
    if (const lagkv::status ok = lagkv::check_refit(*type); !ok) return "refit: " + ok.message();
  }
  if (policy.rules.ragged) return uneven_obstacle(policy, *prefill_, options_.transposed, options_.chunk > 0);
  try {
    host::compressor::prepare(*prefill_, {&policy, 1});
  } catch (const std::invalid_argument& why) {
    if (policy.rules.needs.calibrated || policy.rules.needs.importance) throw;
    return why.what();
  }
  return {};
}

// Found once for each policy, with the budget of the first prompt on which it has one. Throws where none of the user's policies
// is possible on the first prompt.
void runner::find_refusals(const std::map<setting, budgeted>& with) {
  const bool first_prompt = refusals_.empty();
  bool any_possible = !first_prompt;
  std::string reason;
  for (const auto& [s, budget] : with) {
    if (!budget.failure.empty() || refusals_.contains(s)) continue;
    const std::string& refused = refusals_[s] = refusal(parse(budget.policy));
    if (!refused.empty())
      reason = refused;
    else if (s.policy != "full" && s.policy != "random")
      any_possible = true;
  }
  if (!any_possible && !reason.empty()) throw std::invalid_argument(reason);
}

void runner::run_one(const assignment& a) {
  const prompt asked = make_prompt(a);
  const tokenized tokens = tokenize(model_, *a.what, asked, options_.question_seen);

  const std::map<setting, budgeted> with = budgets(a, tokens);
  find_refusals(with);
  std::vector<job> jobs = jobs_of(a, with);
  std::vector<host::named_policy> policies;
  for (job& j : jobs) {
    j.doing = {.model = &model_, .what = a.what, .asked = &asked, .tokens = &tokens, .policy = parse(j.with.policy)};
    j.doing.chunk = options_.chunk;
    j.doing.picture_columns = draws_picture(a) && j.asked.policy != "full" ? picture_columns : 0;
    if (j.with.failure.empty()) j.with.failure = refusals_.at(j.asked);
    if (j.with.failure.empty()) policies.push_back(j.doing.policy);
  }

  host::saved_sequence prefill;
  double seconds = 0;
  host::compressor::prepare(*prefill_, policies);
  if (options_.chunk == 0) {
    prefill_->clear();
    const host::stopwatch watch;
    if (!prefill_->feed(tokens.before)) throw std::runtime_error("the cache has no room for the prompt");
    seconds = watch.seconds();
    prefill = prefill_->save();
    for (job& j : jobs) j.doing.prefill = &prefill;
  }
  run_jobs(a, jobs, a.what->name == "passkey64" ? request_.depth : -1, seconds);
}

void runner::run_jobs(const assignment& a, const std::vector<job>& jobs, double depth, double prefill_seconds) {
  std::promise<reference> said;
  const std::shared_future<reference> heard = said.get_future().share();
  std::atomic<std::size_t> next{0};
  std::mutex failing;
  std::exception_ptr failure;

  const auto do_job = [&](const job& j, host::session& s) {
    sample_result r;
    if (!j.with.failure.empty()) {
      r.failure = j.with.failure;
    } else if (j.asked.policy == "full") {
      reference own;
      r = run(j.doing, s, {}, &own);
      const std::lock_guard lock(failing);
      if (!failure) said.set_value(std::move(own));  // else said has the exception
    } else {
      r = run(
          j.doing, s, [&]() -> const reference& { return heard.get(); }, nullptr);
    }
    r.depth = depth;
    r.prefill_seconds = prefill_seconds;
    write(std::move(r), a, j);
  };
  const auto work = [&](host::session& s) {
    try {
      for (std::size_t i; (i = next++) < jobs.size();) do_job(jobs[i], s);
    } catch (...) {
      next = jobs.size();
      const std::lock_guard lock(failing);
      if (!failure) failure = std::current_exception();
      if (heard.wait_for(std::chrono::seconds(0)) != std::future_status::ready) said.set_exception(failure);
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < workers_.size(); ++i) threads.emplace_back(work, std::ref(*workers_[i]));
  work(*workers_[0]);
  for (std::thread& t : threads) t.join();
  if (failure) std::rethrow_exception(failure);
}

void runner::write(sample_result r, const assignment& a, const job& j) {
  if (j.written) return;
  r.key = a.key(j.asked);
  r.parsed = j.with.policy;
  const std::lock_guard lock(writing_);
  if (!std::exchange(run_written_, true)) file_->add(info_);  // a call that is refused binds the file to nothing
  file_->add(r);
  bar_->step(fmt::format("{} at {} tokens, sample {} of {}", a.what->name, a.length, a.sample + 1, options_.samples));
}

}  // namespace

int run_command(const run_options& options) {
  if (options.model.empty()) throw std::invalid_argument("--model: name a GGUF model");
  if (!std::ifstream(options.model)) throw std::invalid_argument(options.model + ": cannot be read");
  if (options.lengths.empty() || options.depths.empty()) throw std::invalid_argument("--length, --depths: name one at least");
  if (options.first_sample >= options.samples)
    throw std::invalid_argument(fmt::format("--first-sample {}: there are {} prompts a task, counted from 0 (--samples)",
                                            options.first_sample, options.samples));
  return runner(options).run_all();
}

}  // namespace eval
