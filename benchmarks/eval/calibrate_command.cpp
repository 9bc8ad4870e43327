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
#include "host/model.hpp"
#include "host/query_file.hpp"

namespace eval {

extern const std::string_view calibration_text;  // tasks/text/calibration.txt, compiled in

namespace {

constexpr std::size_t skipped = 4;  // tokens at a text's start, as kvpress does

std::vector<llama_token> tokens_of(const calibrate_options& o, const host::model& m) {
  std::string text(o.texts.empty() ? calibration_text : "");
  for (const std::string& path : o.texts) text += content(path);
  std::vector<llama_token> tokens = m.tokenize(text);
  tokens.resize(std::min(tokens.size(), o.tokens));
  if (tokens.size() <= skipped)
    throw std::invalid_argument(fmt::format("texts: {} tokens: must be more than {}", tokens.size(), skipped));
  return tokens;
}

}  // namespace

int calibrate_command(const calibrate_options& o) {
  if (!std::ifstream(o.model)) throw std::invalid_argument(o.model + ": cannot be read");
  const host::model model(o.model);
  const std::vector<llama_token> tokens = tokens_of(o, model);
  host::session session(model, {.cells = static_cast<std::uint32_t>(o.length), .threads = o.threads});
  lagkv::llama::calibration counted(session.probe(), o.length);
  for (std::size_t begin = 0; begin < tokens.size(); begin += o.length) {
    const auto part = std::span(tokens).subspan(begin, std::min(o.length, tokens.size() - begin));
    session.clear();
    if (!session.feed(part)) throw std::runtime_error("the cache has no room for the text");
    if (const lagkv::status added = counted.add(skipped); !added) throw std::runtime_error(added.message());
    std::cerr << fmt::format("{} of {} tokens\n", begin + part.size(), tokens.size());
  }
  host::write_queries(o.out, counted.statistics(o.rank));
  return 0;
}

}  // namespace eval
