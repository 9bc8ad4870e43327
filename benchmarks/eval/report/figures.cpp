// One function for each part of the object.
#include "figures.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "text_table.hpp"

namespace eval {
namespace {

using json = nlohmann::ordered_json;

// Twelve significant digits: no figure has more to say, and the page stays small.
json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  if (value == 0) return 0;
  const double scale = std::pow(10.0, 11 - std::floor(std::log10(std::abs(value))));
  const double rounded = std::round(value * scale) / scale;
  return std::isfinite(rounded) ? rounded : value;
}

json estimate_json(const estimate& e) { return {number(e.mean), number(e.low), number(e.high), e.samples}; }

json with_key(const row_key& key) { return {{"length", key.length}, {"policy", key.policy}, {"removed", key.removed}}; }

json run_json(const run_info& run) {
  return {{"command", run.command},       {"date", run.date},
          {"model", run.model},           {"model_sha256", run.model_sha256},
          {"model_name", run.model_name}, {"lagkv", run.lagkv},
          {"llama", run.llama},           {"compiler", run.compiler},
          {"machine", run.machine},       {"seed", run.seed},
          {"threads", run.threads},       {"question_seen", run.question_seen},
          {"chunk", run.chunk},           {"cache_type", run.cache_type},
          {"transposed", run.transposed}, {"calibration", run.calibration}};
}

json tasks_json(const summary& all) {
  json tasks = json::array();
  for (const std::string& task : all.answer_tasks)
    tasks.push_back({{"name", task}, {"brief", short_name(task)}, {"kind", "answer"}, {"ruler", in_ruler(task)}});
  for (const std::string& task : all.writing_tasks)
    tasks.push_back({{"name", task}, {"brief", short_name(task)}, {"kind", "writing"}, {"ruler", false}});
  return tasks;
}

json cost_json(const cost_figures& cost) {
  return {{"kept_tokens", number(cost.kept_tokens)}, {"kept_share", number(cost.kept_share)},
          {"kept_mb", number(cost.kept_mb)},         {"full_mb", number(cost.full_mb)},
          {"compress_ms", number(cost.compress_ms)}, {"decode_rate", number(cost.decode_rate)}};
}

json row_json(const summary_row& row) {
  json one = with_key(row.key);
  one["parsed"] = row.parsed;
  one["ruler"] = estimate_json(row.ruler);
  one["first_token"] = estimate_json(row.first_token);
  one["answers"] = cost_json(row.answers);
  one["writing"] = cost_json(row.writing);
  one["tasks"] = json::object();
  for (const auto& [task, figures] : row.tasks) {
    json& mine = one["tasks"][task] = {{"samples", figures.samples}, {"failed", figures.failed}};
    mine["scores"] = json::object();
    for (const auto& [name, score] : figures.scores) mine["scores"][name] = estimate_json(score);
  }
  return one;
}

json depth_json(const depth_figures& figures) {
  json one = with_key(figures.key);
  one["depth"] = figures.depth;
  one["samples"] = figures.samples;
  one["scores"] = json::object();
  for (const auto& [name, score] : figures.scores) one["scores"][name] = number(score);
  return one;
}

json failure_json(const failure_note& note) {
  json one = with_key(note.key);
  one["task"] = note.task;
  one["reason"] = one_line(note.reason);
  one["samples"] = note.samples;
  one["of"] = note.of;
  return one;
}

json picture_json(const sample_result& s) {
  return {{"task", s.key.task},     {"length", s.key.length},   {"sample", s.key.sample},
          {"policy", s.key.policy}, {"removed", s.key.removed}, {"needle", {number(s.needle_begin), number(s.needle_end)}},
          {"rows", s.survivors}};
}

json answer_json(const sample_result& s) {
  constexpr std::size_t most = 240;
  std::string told = shortened(one_line(s.answer), most);
  if (told.size() < s.answer.size()) told += "...";
  return {{"task", s.key.task},     {"length", s.key.length},   {"sample", s.key.sample},
          {"policy", s.key.policy}, {"removed", s.key.removed}, {"answer", told}};
}

// The lowest sample number that each task and length has.
std::map<std::pair<std::string, std::size_t>, std::size_t> first_samples(const results& samples) {
  std::map<std::pair<std::string, std::size_t>, std::size_t> first;
  for (const sample_result& s : samples.samples) {
    const auto [place, fresh] = first.emplace(std::pair(s.key.task, s.key.length), s.key.sample);
    if (!fresh) place->second = std::min(place->second, s.key.sample);
  }
  return first;
}

template <class List, class Make>
json list_json(const List& list, Make make) {
  json made = json::array();
  for (const auto& one : list) made.push_back(make(one));
  return made;
}

// Pictures and answers in the order of the rows, not in that of the run.
std::vector<const sample_result*> by_row(const summary& all, const results& samples) {
  std::map<row_key, std::size_t> places;
  for (const summary_row& row : all.rows) places.emplace(row.key, places.size());
  std::vector<const sample_result*> sorted;
  for (const sample_result& s : samples.samples) sorted.push_back(&s);
  std::ranges::stable_sort(sorted, {}, [&places](const sample_result* s) {
    return places[{s->key.length, s->key.policy, s->key.removed}];
  });
  return sorted;
}

}  // namespace

std::string figures_json(const summary& all, const results& samples) {
  json root;
  root["runs"] = list_json(all.runs, run_json);
  root["lengths"] = all.lengths;
  root["policies"] = all.policies;
  root["tasks"] = tasks_json(all);
  root["rows"] = list_json(all.rows, row_json);
  root["depths"] = list_json(all.depths, depth_json);
  root["failures"] = list_json(all.failures, failure_json);
  root["pictures"] = json::array();
  root["answers"] = json::array();
  const auto first = first_samples(samples);
  for (const sample_result* s : by_row(all, samples)) {
    if (!s->survivors.empty()) root["pictures"].push_back(picture_json(*s));
    if (!s->answer.empty() && first.at({s->key.task, s->key.length}) == s->key.sample) root["answers"].push_back(answer_json(*s));
  }
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace eval
