#include "report.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <ostream>

namespace passkey {
namespace {

constexpr double megabyte = 1e6;

double recalled(const trial& t, const prompt& p) { return static_cast<double>(t.digits) / static_cast<double>(p.key.size()); }

// Line breaks and other control bytes would tear the table, and a model that has lost the key tells long stories.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c >= 0 && c < ' '; }, ' ');
  constexpr std::size_t most = 72;
  if (text.size() <= most) return text;
  std::size_t end = most - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // not within a UTF-8 character
  return text.substr(0, end) + "...";
}

}  // namespace

void print_table(std::ostream& out, const run_settings& settings, const std::vector<prompt_result>& results) {
  if (results.empty()) return;
  const auto prompts = static_cast<double>(results.size());
  const prompt& first = results.front().asked;
  const std::size_t policies = results.front().trials.size();

  std::size_t width = std::string_view("policy").size();
  for (const trial& t : results.front().trials) width = std::max(width, t.policy.size());

  out << fmt::format("\n{} {} of {} tokens, key at depth {}", results.size(), results.size() == 1 ? "prompt" : "prompts",
                     first.tokens.size(), settings.depth);
  if (settings.chunk > 0) out << fmt::format(", read {} tokens at a time", settings.chunk);
  out << fmt::format("; cache of {} cells\n", settings.cells);
  out << fmt::format("{:<{}}  {:>11}  {:>8}  {:>7}  {:>8}  {:>11}  {:>6}  {:>7}  {}\n", "policy", width, "tokens kept",
                     "MB whole", "MB peak", "MB after", "ms compress", "digits", "in full", "answer to the first prompt");
  constexpr std::size_t numbers = 11 + 8 + 7 + 8 + 11 + 6 + 7 + 2 * 8;  // columns up to the answer
  out << fmt::format("{:<{}}{}\n", "key", width + numbers, first.key);
  for (std::size_t i = 0; i < policies; ++i) {
    double kept = 0, whole = 0, peak = 0, after = 0, ms = 0, digits = 0;
    std::size_t in_full = 0;
    for (const prompt_result& r : results) {
      const trial& t = r.trials[i];
      kept += static_cast<double>(t.tokens_kept) / prompts;
      whole += static_cast<double>(t.bytes_full) / megabyte / prompts;
      peak += static_cast<double>(t.bytes_peak) / megabyte / prompts;
      after += static_cast<double>(t.bytes_left) / megabyte / prompts;
      ms += t.compress_seconds * 1000 / prompts;
      digits += recalled(t, r.asked) * 100 / prompts;
      if (t.digits == r.asked.key.size()) ++in_full;
    }
    const trial& shown = results.front().trials[i];
    const bool failed = !shown.failure.empty();
    const std::string said = failed ? "(" + shown.failure + ")" : one_line(shown.answer);
    out << fmt::format("{:<{}}  {:>11.0f}  {:>8.1f}  {:>7.1f}  {:>8.1f}  {:>11.1f}  {:>6}  {:>7}  {}\n", shown.policy, width,
                       kept, whole, peak, after, ms, failed ? "-" : fmt::format("{:.0f} %", digits),
                       failed ? "-" : fmt::format("{}/{}", in_full, results.size()), said);
  }
  out << "digits: share of the 64 digits before the first mistake; in full: prompts whose whole key came back\n";
}

void write_json(std::ostream& out, const run_settings& settings, const std::vector<prompt_result>& results) {
  using nlohmann::json;
  json root = {{"model", settings.model}, {"length", settings.length}, {"depth", settings.depth},
               {"chunk", settings.chunk}, {"cells", settings.cells},   {"threads", settings.threads}};
  root["prompts"] = json::array();
  for (const prompt_result& r : results) {
    json one = {{"seed", r.seed},
                {"tokens", r.asked.tokens.size()},
                {"key", r.asked.key},
                {"needle", {r.asked.needle_begin, r.asked.needle_end}},
                {"prefill_seconds", r.prefill_seconds},
                {"trials", json::array()}};
    for (const trial& t : r.trials) {
      one["trials"].push_back({{"policy", t.policy},
                               {"tokens_fed", t.tokens_fed},
                               {"tokens_kept", t.tokens_kept},
                               {"bytes_whole", t.bytes_full},
                               {"bytes_peak", t.bytes_peak},
                               {"bytes_after", t.bytes_left},
                               {"compress_seconds", t.compress_seconds},
                               {"prefill_seconds", t.prefill_seconds},
                               {"answer_seconds", t.answer_seconds},
                               {"answer_tokens", t.answer_tokens},
                               {"digits", t.digits},
                               {"recalled", recalled(t, r.asked)},
                               {"answer", t.answer},
                               {"failure", t.failure}});
    }
    root["prompts"].push_back(one);
  }
  // A small model may answer with half a character: replaced, not thrown at.
  out << root.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
}

}  // namespace passkey
