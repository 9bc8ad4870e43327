// Results as JSON lines: one list of fields a struct, walked by what writes them and by what reads them.
#include "results.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <concepts>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace eval {
namespace {

// Ordered: a line begins with its type, by which a torn one is known as ours.
using json = nlohmann::ordered_json;
constexpr std::string_view line_begins = R"({"type":")";

template <class Run, class Visit>
void run_fields(Run& r, Visit visit) {
  visit("command", r.command);
  visit("date", r.date);
  visit("model", r.model);
  visit("model_sha256", r.model_sha256);
  visit("model_name", r.model_name);
  visit("lagkv", r.lagkv);
  visit("llama", r.llama);
  visit("compiler", r.compiler);
  visit("machine", r.machine);
  visit("seed", r.seed);
  visit("threads", r.threads);
  visit("question_seen", r.question_seen);
  visit("chunk", r.chunk);
  visit("cache_type", r.cache_type);
  visit("transposed", r.transposed);
  visit("calibration", r.calibration);
  visit("repack", r.repack);
  visit("depths", r.depths);
  visit("data_sets", r.data_sets);
}

template <class Key, class Visit>
void key_fields(Key& k, Visit visit) {
  visit("task", k.task);
  visit("length", k.length);
  visit("sample", k.sample);
  visit("policy", k.policy);
  visit("removed", k.removed);
}

// The third argument is what a field that is not there means; else a zero or an empty one.
template <class Sample, class Visit>
void sample_fields(Sample& s, Visit visit) {
  visit("parsed", s.parsed);
  visit("depth", s.depth, -1.0);
  visit("prompt_tokens", s.prompt_tokens);
  visit("judged_tokens", s.judged_tokens);
  visit("kept_tokens", s.kept_tokens);
  visit("kept_mb", s.kept_mb);
  visit("full_mb", s.full_mb);
  visit("prefill_seconds", s.prefill_seconds);
  visit("compress_ms", s.compress_ms);
  visit("decoded", s.decoded);
  visit("decode_seconds", s.decode_seconds);
  visit("scores", s.scores);
  visit("answer", s.answer);
  visit("failure", s.failure);
  visit("survivors", s.survivors);
  visit("needle_begin", s.needle_begin, -1.0);
  visit("needle_end", s.needle_end, -1.0);
}

struct writer {
  json& line;
  template <class T>
  void operator()(const char* name, const T& value, const T& absent = {}) const {
    if (value != absent) line[name] = value;
  }
  void operator()(const char* name, const std::optional<bool>& value) const {
    if (value) line[name] = *value;
  }
};

void get(const json& field, std::string& value) {
  if (!field.is_string()) throw std::invalid_argument("must be a text");
  value = field.get<std::string>();
}

void get(const json& field, bool& value) {
  if (!field.is_boolean()) throw std::invalid_argument("must be true or false");
  value = field.get<bool>();
}

void get(const json& field, std::optional<bool>& value) { get(field, value.emplace()); }

// JSON has no word for what is not a number: null is written, and read as that.
void get(const json& field, double& value) {
  if (!field.is_number() && !field.is_null()) throw std::invalid_argument("must be a number");
  value = field.is_null() ? std::numeric_limits<double>::quiet_NaN() : field.get<double>();
}

template <std::integral T>
void get(const json& field, T& value) {
  if (!field.is_number_unsigned() || !std::in_range<T>(field.get<std::uint64_t>()))
    throw std::invalid_argument("must be a whole number, 0 or more");
  value = field.get<T>();
}

template <class T>
void get(const json& field, std::map<std::string, T>& value) {
  if (!field.is_object()) throw std::invalid_argument("must be an object");
  for (const auto& [name, each] : field.items()) get(each, value[name]);
}

template <class T>
void get(const json& field, std::vector<T>& value) {
  if (!field.is_array()) throw std::invalid_argument("must be a list");
  for (const json& each : field) get(each, value.emplace_back());
}

struct reader {
  const json& line;
  template <class T>
  void operator()(const char* name, T& value, const T& = {}) const {
    const auto field = line.find(name);
    if (field == line.end()) return;
    try {
      get(*field, value);
    } catch (const std::invalid_argument& fault) {
      throw std::invalid_argument(fmt::format("{}: {}", name, fault.what()));
    }
  }
};

// What can only be a share; null, read as not a number, is none.
void check_shares(const std::map<std::string, double>& scores) {
  for (const char* name : {"score", "partial", "prefix", "edit", "first_token", "same_token"})
    if (const auto found = scores.find(name); found != scores.end() && (found->second < 0 || found->second > 1))
      throw std::invalid_argument(fmt::format("scores: {} {}: must be from 0 to 1", name, found->second));
}

sample_result sample_of(const json& line) {
  for (const char* needed : {"task", "length", "sample", "policy"})
    if (!line.contains(needed)) throw std::invalid_argument(fmt::format("{}: is missing", needed));
  sample_result sample;
  key_fields(sample.key, reader{line});
  sample_fields(sample, reader{line});
  if (!std::isfinite(sample.key.removed)) throw std::invalid_argument("removed: must be a number");
  check_shares(sample.scores);
  for (const std::string& row : sample.survivors)
    if (row.find_first_not_of("0123456789") != std::string::npos) throw std::invalid_argument("survivors: must be digits");
  return sample;
}

run_info run_of(const json& line) {
  run_info run;
  run_fields(run, reader{line});
  return run;
}

// The whole file; nothing where there is none.
std::optional<std::string> text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (in.bad()) return std::nullopt;
  return text;
}

// A small model may answer with half a character: replaced, not thrown at.
std::string text_of_line(const json& line) { return line.dump(-1, ' ', false, json::error_handler_t::replace); }

}  // namespace

results read_results(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw std::runtime_error(path + ": is a folder");
  if (std::filesystem::is_character_file(path)) throw std::runtime_error(path + ": is a device, which may have no end");
  const std::optional<std::string> text = text_of(path);
  if (!text) throw std::runtime_error(path + ": cannot be read");
  results all;
  all.bytes = text->size();
  std::map<sample_key, std::size_t> places;
  std::size_t number = 0;
  for (std::string_view rest = *text; !rest.empty();) {
    ++number;
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    const bool ended = end != std::string_view::npos;
    rest.remove_prefix(ended ? end + 1 : rest.size());
    if (!ended && torn(line, line_begins)) break;
    try {
      const json fields = json::parse(line, nullptr, false);
      if (!fields.is_object()) throw std::invalid_argument("is not a JSON object");
      std::string type;
      reader{fields}("type", type);
      if (type == "run") {
        all.runs.push_back(run_of(fields));
      } else if (type == "sample") {
        sample_result sample = sample_of(fields);
        const auto [place, fresh] = places.emplace(sample.key, all.samples.size());
        if (fresh)
          all.samples.push_back(std::move(sample));
        else
          all.samples[place->second] = std::move(sample);
      } else {
        throw std::invalid_argument("type: must be run or sample");
      }
    } catch (const std::invalid_argument& fault) {
      throw std::invalid_argument(fmt::format("{}, line {}: {}", path, number, fault.what()));
    }
  }
  return all;
}

std::string conflict(const run_info& was, const run_info& now) {
  std::string found;
  const auto same = [&](std::string_view name, const auto& then, const auto& asked) {
    if (found.empty() && then != asked) found = fmt::format("was made with {} {}, not {}", name, then, asked);
  };
  same("a model of SHA-256", was.model_sha256, now.model_sha256);
  same("seed", was.seed, now.seed);
  same("question seen", was.question_seen, now.question_seen);
  same("chunk", was.chunk, now.chunk);
  same("cache type", was.cache_type, now.cache_type);
  same("transposed values", was.transposed, now.transposed);
  if (was.repack && now.repack) same("repacked weights", *was.repack, *now.repack);
  const auto listed = [](const std::vector<double>& depths) { return fmt::format("{}", fmt::join(depths, ",")); };
  if (!was.depths.empty() && !now.depths.empty()) same("depths", listed(was.depths), listed(now.depths));
  const auto same_files = [&](std::string_view what, const auto& then, const auto& asked) {
    for (const auto& [name, sha256] : asked)
      if (const auto known = then.find(name); known != then.end())
        same(fmt::format("{} {} of SHA-256", what, name), known->second, sha256);
  };
  same_files("a data set of", was.data_sets, now.data_sets);
  same_files("calibrated", was.calibration, now.calibration);
  return found;
}

results_file::results_file(const std::string& path) : lines_(path, line_begins) {}

void results_file::add(const run_info& run) {
  json line = {{"type", "run"}};
  run_fields(run, writer{line});
  lines_.add(text_of_line(line));
}

void results_file::add(const sample_result& sample) {
  json line = {{"type", "sample"}};
  line["task"] = sample.key.task;
  line["length"] = sample.key.length;
  line["sample"] = sample.key.sample;
  line["policy"] = sample.key.policy;
  key_fields(sample.key, writer{line});
  sample_fields(sample, writer{line});
  lines_.add(text_of_line(line));
}

}  // namespace eval
