// Samples sorted into rows, and each row's figures.
#include "summary.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>
#include <tuple>

namespace eval {
namespace {

struct names {
  std::string_view task, brief;
};
constexpr std::array ruler_names{names{"niah_single_1", "s1"},
                                 names{"niah_single_2", "s2"},
                                 names{"niah_single_3", "s3"},
                                 names{"niah_multikey_1", "mk1"},
                                 names{"niah_multikey_2", "mk2"},
                                 names{"niah_multikey_3", "mk3"},
                                 names{"niah_multivalue", "mv"},
                                 names{"niah_multiquery", "mq"},
                                 names{"vt", "vt"},
                                 names{"cwe", "cwe"},
                                 names{"fwe", "fwe"},
                                 names{"qa_1", "qa1"},
                                 names{"qa_2", "qa2"}};
constexpr std::array other_names{
    names{"passkey64", "pk64"},        names{"needles_16", "n16"},      names{"prose_recall", "prose"},
    names{"documents", "docs"},        names{"chat_facts", "chat"},     names{"table_row", "row"},
    names{"few_shot", "shots"},        names{"two_documents", "2docs"}, names{"summary", "sum"},
    names{"code_completion", "compl"}, names{"state_machine", "state"}, names{"perplexity_code", "code"}};
constexpr std::array<std::string_view, 3> writing_order{"perplexity", "perplexity_code", "generation"};

std::size_t ruler_place(std::string_view task) {
  return static_cast<std::size_t>(std::ranges::find(ruler_names, task, &names::task) - ruler_names.begin());
}

using sample_list = std::vector<const sample_result*>;

std::string failure_of(const sample_result& s) {
  if (!s.failure.empty()) return s.failure;
  for (const auto& [name, value] : s.scores)
    if (!std::isfinite(value)) return name + " is not a number";
  return s.scores.empty() ? "has no score" : "";
}

row_key key_of(const sample_result& s) { return {s.key.length, s.key.policy, s.key.removed}; }

template <class T>
void add_new(std::vector<T>& list, const T& value) {
  if (std::ranges::find(list, value) == list.end()) list.push_back(value);
}

// Where all samples of a task failed, its name has to do.
std::set<std::string> tasks_without_score(const results& all) {
  std::set<std::string> without(writing_order.begin(), writing_order.end());
  for (const sample_result& s : all.samples)
    if (s.scores.contains("nll") && !s.scores.contains("score")) without.insert(s.key.task);
  return without;
}

std::vector<double> values_of(const sample_list& samples, const std::string& score) {
  std::vector<double> values;
  for (const sample_result* s : samples)
    if (const auto found = s->scores.find(score); found != s->scores.end()) values.push_back(found->second);
  return values;
}

cost_figures cost_of(const sample_list& samples) {
  cost_figures cost;
  if (samples.empty()) return cost;
  double kept = 0, candidates = 0, kept_mb = 0, full_mb = 0;
  std::vector<double> compress_ms, rates;
  for (const sample_result* s : samples) {
    kept += static_cast<double>(s->kept_tokens);
    candidates += static_cast<double>(s->judged_tokens);
    kept_mb += s->kept_mb;
    full_mb += s->full_mb;
    compress_ms.push_back(s->compress_ms);
    if (s->decoded > 0 && s->decode_seconds > 0) rates.push_back(static_cast<double>(s->decoded) / s->decode_seconds);
  }
  const auto count = static_cast<double>(samples.size());
  cost.kept_tokens = kept / count;
  if (candidates > 0) cost.kept_share = kept / candidates;
  cost.kept_mb = kept_mb / count;
  cost.full_mb = full_mb / count;
  cost.compress_ms = median(std::move(compress_ms));
  cost.decode_rate = median(std::move(rates));
  return cost;
}

// The samples of one row, by task: those with a result, and the rest's reasons.
struct row_samples {
  std::map<std::string, sample_list> results;
  std::map<std::string, std::map<std::string, std::size_t>> reasons;
  std::string parsed;
};

task_figures figures_of(const sample_list& samples) {
  task_figures figures;
  figures.samples = samples.size();
  std::set<std::string> scores;
  for (const sample_result* s : samples)
    for (const auto& score : s->scores) scores.insert(score.first);
  for (const std::string& score : scores) figures.scores[score] = estimate_mean(values_of(samples, score));
  return figures;
}

summary_row row_of(const row_key& key, const row_samples& mine, const summary& all, const std::set<std::string>& ruler) {
  summary_row row{key, mine.parsed, {}, {}, {}, {}, {}};
  for (const auto& [task, samples] : mine.results) row.tasks[task] = figures_of(samples);
  for (const auto& [task, reasons] : mine.reasons)
    for (const auto& reason : reasons) row.tasks[task].failed += reason.second;

  sample_list answers, writing;
  const auto append = [&mine](sample_list& list, const std::string& task) {
    if (const auto found = mine.results.find(task); found != mine.results.end())
      list.insert(list.end(), found->second.begin(), found->second.end());
  };
  for (const std::string& task : all.answer_tasks) append(answers, task);
  for (const std::string& task : all.writing_tasks) append(writing, task);
  row.answers = cost_of(answers);
  row.writing = cost_of(writing);
  row.first_token = estimate_mean(values_of(answers, "first_token"));

  std::vector<std::vector<double>> scores;
  for (const std::string& task : ruler) {
    const auto found = mine.results.find(task);
    scores.push_back(found == mine.results.end() ? std::vector<double>{} : values_of(found->second, "score"));
  }
  row.ruler = estimate_macro_mean(scores);
  return row;
}

std::map<std::size_t, equality_figures> equality_of(const results& all) {
  struct ends {
    std::size_t least, most;
  };
  std::map<std::tuple<std::size_t, std::string, std::size_t, double>, ends> prompts;
  for (const sample_result& s : all.samples) {
    if (s.key.removed <= 0 || s.key.task == "generation" || !failure_of(s).empty()) continue;
    ends& kept = prompts.try_emplace({s.key.length, s.key.task, s.key.sample, s.key.removed}, ends{s.kept_tokens, s.kept_tokens})
                     .first->second;
    kept = {std::min(kept.least, s.kept_tokens), std::max(kept.most, s.kept_tokens)};
  }
  std::map<std::size_t, equality_figures> made;
  for (const auto& [prompt, kept] : prompts) {
    equality_figures& figures = made[std::get<0>(prompt)];
    ++figures.prompts;
    if ((kept.most - kept.least) * 100 <= kept.most) continue;
    ++figures.unequal;
    if (kept.most - kept.least > figures.most - figures.least) figures.least = kept.least, figures.most = kept.most;
  }
  return made;
}

// Depths as they are, where they are few; else their tenths.
std::function<double(double)> depth_steps(const results& all) {
  const auto fine = [](double depth) { return std::round(depth * 1000) / 1000; };
  std::set<double> steps;
  for (const sample_result& s : all.samples)
    if (s.key.task == "passkey64" && s.depth >= 0) steps.insert(fine(s.depth));
  constexpr std::size_t most = 21;
  if (steps.size() <= most) return fine;
  return [](double depth) { return std::round(depth * 10) / 10; };
}

void add_depths(const row_key& key, const row_samples& mine, const std::function<double(double)>& step,
                std::vector<depth_figures>& depths) {
  const auto found = mine.results.find("passkey64");
  if (found == mine.results.end()) return;
  std::map<double, sample_list> by_depth;
  for (const sample_result* s : found->second)
    if (s->depth >= 0) by_depth[step(s->depth)].push_back(s);
  for (const auto& [depth, samples] : by_depth) {
    depth_figures one{key, depth, {}, samples.size()};
    for (const auto& [name, score] : figures_of(samples).scores) one.scores[name] = score.mean;
    depths.push_back(std::move(one));
  }
}

}  // namespace

bool in_ruler(std::string_view task) { return ruler_place(task) < ruler_names.size(); }

std::string_view short_name(std::string_view task) {
  if (in_ruler(task)) return ruler_names[ruler_place(task)].brief;
  const auto found = std::ranges::find(other_names, task, &names::task);
  return found == other_names.end() ? task : found->brief;
}

summary summarize(const results& all) {
  summary sum;
  sum.runs = all.runs;
  const std::set<std::string> without_score = tasks_without_score(all);
  std::map<row_key, row_samples> rows;
  std::map<std::size_t, std::set<std::string>> ruler;  // of each length: a row without one of them has no mean
  for (const sample_result& s : all.samples) {
    add_new(sum.lengths, s.key.length);
    add_new(sum.policies, s.key.policy);
    add_new(without_score.contains(s.key.task) ? sum.writing_tasks : sum.answer_tasks, s.key.task);
    if (in_ruler(s.key.task)) ruler[s.key.length].insert(s.key.task);
    row_samples& row = rows[key_of(s)];
    if (row.parsed.empty()) row.parsed = s.parsed;
    if (const std::string reason = failure_of(s); reason.empty())
      row.results[s.key.task].push_back(&s);
    else
      ++row.reasons[s.key.task][reason];
  }
  std::ranges::sort(sum.lengths);
  std::ranges::stable_sort(sum.policies, {}, [](const std::string& policy) { return policy != "full"; });
  std::ranges::stable_sort(sum.answer_tasks, {}, ruler_place);
  std::ranges::stable_sort(sum.writing_tasks, {}, [](const std::string& task) {
    return std::ranges::find(writing_order, task) - writing_order.begin();
  });

  std::vector<row_key> order;
  for (const auto& row : rows) order.push_back(row.first);
  std::ranges::sort(order, {}, [&sum](const row_key& key) {
    return std::tuple(key.length, std::ranges::find(sum.policies, key.policy) - sum.policies.begin(), key.removed);
  });
  sum.equality = equality_of(all);
  const auto step = depth_steps(all);
  for (const row_key& key : order) {
    const row_samples& mine = rows[key];
    sum.rows.push_back(row_of(key, mine, sum, ruler[key.length]));
    add_depths(key, mine, step, sum.depths);
    for (const auto& [task, reasons] : mine.reasons)
      for (const auto& [reason, samples] : reasons) {
        const task_figures& figures = sum.rows.back().tasks[task];
        sum.failures.push_back({key, task, reason, samples, figures.samples + figures.failed});
      }
  }
  return sum;
}

}  // namespace eval
