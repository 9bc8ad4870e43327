#include "calibrate_command.hpp"

#include <lagkv/adapters/llama/calibration.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string_view>

#include "content.hpp"
#include "host/calibration_file.hpp"
#include "host/model.hpp"

namespace eval {

extern const std::string_view calibration_text;  // tasks/text/calibration.txt, compiled in

namespace {

constexpr std::size_t skipped = 4;    // tokens at a text's start, as kvpress does
constexpr std::size_t sampled = 256;  // rows that stand for those of a head

std::vector<llama_token> tokens_of(const calibrate_options& o, const host::model& m) {
  std::string text(o.texts.empty() ? calibration_text : "");
  for (const std::string& path : o.texts) text += content(path);
  std::vector<llama_token> tokens = m.tokenize(text);
  tokens.resize(std::min(tokens.size(), o.tokens));
  if (tokens.size() <= skipped)
    throw std::invalid_argument(fmt::format("texts: {} tokens: must be more than {}", tokens.size(), skipped));
  return tokens;
}

void feed(host::session& s, std::span<const llama_token> tokens) {
  s.clear();
  if (!s.feed(tokens)) throw std::runtime_error("the cache has no room for the text");
}

// What `counted` has seen of the tokens that were fed.
template <class Calibration>
void add(Calibration& counted, host::session& session) {
  if (const lagkv::status found = lagkv::llama::find_recorded_cache(session.get(), session.probe()); !found)
    throw std::runtime_error(found.message());
  if (const lagkv::status added = counted.add(skipped); !added) throw std::runtime_error(added.message());
}

void say(const char* what, std::size_t done, std::size_t all) {
  std::cerr << fmt::format("{}: {} of {} tokens\n", what, done, all);
}

std::vector<lagkv::query_statistics> count_queries(const calibrate_options& o, host::session& session,
                                                   std::span<const llama_token> tokens) {
  lagkv::llama::calibration counted(session.probe(), o.length);
  for (std::size_t begin = 0; begin < tokens.size(); begin += o.length) {
    const auto part = tokens.subspan(begin, std::min(o.length, tokens.size() - begin));
    feed(session, part);
    add(counted, session);
    say("queries", begin + part.size(), tokens.size());
  }
  return counted.statistics(o.rank);
}

// Each text, an instruction to say it again, and the text again.
void count_importance(const calibrate_options& o, const host::model& model, host::session& session,
                      std::span<const llama_token> tokens, host::calibration& c) {
  const std::vector<llama_token> between = model.tokenize("\n\nRepeat the previous context exactly.\n\n", false);
  const std::size_t n = (o.length - std::min(o.length, between.size())) / 2;
  if (n <= skipped || n > tokens.size())
    throw std::invalid_argument(fmt::format("texts: {} tokens: must be more than half of --length {}", tokens.size(), o.length));
  lagkv::llama::importance_calibration counted(session.probe(), n);
  for (std::size_t begin = 0; begin + n <= tokens.size(); begin += n) {
    const auto part = tokens.subspan(begin, n);
    std::vector<llama_token> twice(part.begin(), part.end());
    twice.insert(twice.end(), between.begin(), between.end());
    twice.insert(twice.end(), part.begin(), part.end());
    feed(session, twice);
    add(counted, session);
    say("importance", begin + n, tokens.size());
  }
  c.importance = counted.maps();
  for (const auto& heads : counted.importance()) {
    auto& samples = c.head_importance.emplace_back();
    for (const std::vector<float>& head : heads) samples.push_back(lagkv::even_sample(head, sampled));
  }
}

}  // namespace

int calibrate_command(const calibrate_options& o) {
  if (!std::ifstream(o.model)) throw std::invalid_argument(o.model + ": cannot be read");
  const host::model model(o.model);
  const std::vector<llama_token> tokens = tokens_of(o, model);
  host::session session(model, {.cells = static_cast<std::uint32_t>(o.length), .threads = o.threads});
  host::calibration c{.model = model.signature()};
  const auto asked = [&](const char* what) { return std::ranges::find(o.count, what) != o.count.end(); };
  if (asked("queries")) c.queries = count_queries(o, session, tokens);
  if (asked("importance")) count_importance(o, model, session, tokens, c);
  host::write_calibration(o.out, c);
  return 0;
}

}  // namespace eval
