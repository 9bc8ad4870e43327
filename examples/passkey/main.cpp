// Hides a 64-digit pass key in a long prompt, compresses the model's cache and asks for the key.
#include <lagkv/policy/budget.hpp>

#include "host/compressor.hpp"
#include "host/model.hpp"
#include "host/run.hpp"
#include "host/stopwatch.hpp"
#include "picture.hpp"
#include "progress.hpp"
#include "prompt.hpp"
#include "report.hpp"
#include "trial.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct arguments {
  std::string model = PASSKEY_MODEL;
  std::vector<std::string> policies;
  std::vector<double> ratios = {0.25};
  bool attention = false;
  passkey::prompt_options prompt;
  std::size_t prompts = 1;
  std::size_t answer = 72;  // 64 digits, one token each with most models, and what may stand around them
  std::size_t chunk = 0;
  std::size_t cells = 0;
  int threads = 0;
  std::string cache_type = "f16";
  bool transposed = false;
  std::vector<std::string> servers;
  std::string json;
  std::string picture;
};

void declare(CLI::App& app, arguments& a) {
  app.option_defaults()->always_capture_default();
  app.add_option("--model", a.model, "GGUF model");
  CLI::Option* policy = app.add_option("--policy", a.policies, "How to compress; repeatable")
                            ->allow_extra_args(false)
                            ->default_str("full, lagkv, and novelty, streaming_llm and random of lagkv's size");
  app.add_option("--ratio", a.ratios, "What lagkv keeps of each 1024 tokens; repeatable, all sizes come in one table")
      ->allow_extra_args(false)
      ->check(CLI::Range(0.0, 1.0))
      ->excludes(policy);
  app.add_flag("--attention", a.attention, "Also snapkv and h2o of that size, which look at attention")->excludes(policy);
  app.add_option("--length", a.prompt.length, "Tokens of the prompt at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--depth", a.prompt.depth, "Where the key stands, 0 to 1")->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", a.prompt.seed, "Draws the key; prompt i uses seed + i");
  app.add_option("--prompts", a.prompts, "Prompts to average over")->check(CLI::Range(1, 10000));
  app.add_option("--answer", a.answer, "Tokens of the answer at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", a.threads, "0: all cores")->check(CLI::Range(0, 1024));
  app.add_option("--chunk", a.chunk, "Compress after each so many prompt tokens; 0: once")->check(CLI::Range(0, 1 << 20));
  app.add_option("--cells", a.cells, "Tokens the cache has room for; 0: the prompt and the answer")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--cache-type", a.cache_type, "Element type of the cache, or of keys and values: q8_0/q4_0");
  app.add_flag("--transposed", a.transposed, "Without flash attention, which stores values transposed");
  app.add_option("--rpc", a.servers, "host:port of ggml-rpc-servers, over which the model is split")->delimiter(',');
  app.add_option("--json", a.json, "Write everything measured to this file");
  app.add_option("--picture", a.picture, "Draw which tokens of the first prompt survive (SVG)");
}

// LagKV as its reference code sets it up, and others that keep as many of so many tokens.
std::vector<std::string> of_equal_sizes(const arguments& a, std::size_t tokens) {
  std::vector<std::string> policies = {"full"};
  for (const double ratio : a.ratios) {
    const lagkv::budget lagkv{.sink = 16, .keeps = lagkv::keep::partitions{1024, ratio}};
    const lagkv::candidates due = lagkv.due({}, tokens);
    const std::size_t kept = tokens - due.rows.size() + due.keep;
    const double share = std::min(1.0, (static_cast<double>(kept) + 0.5) / static_cast<double>(tokens));
    policies.push_back(fmt::format("lagkv:lag=1024,ratio={}", ratio));
    policies.push_back(fmt::format("novelty:keep={:.5f}", share));
    policies.push_back(fmt::format("streaming_llm:capacity={}", kept));
    policies.push_back(fmt::format("random:keep={:.5f}", share));
    if (!a.attention) continue;
    policies.push_back(fmt::format("snapkv:keep={:.5f}", share));
    policies.push_back(fmt::format("h2o:keep={:.5f}", share));
  }
  return policies;
}

// Opened before the work, so that a bad path does not cost a run.
std::ofstream open(const std::string& path) {
  std::ofstream file(path);
  if (!file) throw std::invalid_argument(path + ": cannot be written");
  return file;
}

void check(arguments& a) {
  for (const std::string& policy : a.policies) static_cast<void>(host::parse(policy));  // throws where it is none
  if (a.model.empty()) throw std::invalid_argument("--model: name a GGUF model, none came with this build");
  if (!std::ifstream(a.model)) throw std::invalid_argument(a.model + ": cannot be read");
  if (a.cells > 0 && a.chunk == 0) a.chunk = 512;
}

passkey::prompt_result run(const arguments& a, const host::model& m, host::session& s, std::size_t index,
                           passkey::progress& progress) {
  passkey::prompt_result result;
  passkey::prompt_options options = a.prompt;
  options.seed += index;
  result.seed = options.seed;
  result.asked = passkey::make_prompt(m, options);
  const bool follow = !a.picture.empty() && index == 0;
  std::vector<host::named_policy> policies;
  for (const std::string& policy : a.policies) policies.push_back(host::parse(policy));
  const std::string name = fmt::format("prompt {} of {}", index + 1, a.prompts);
  const std::size_t first_part = result.asked.tokens.size() - 1;  // the last token is fed after the compression
  const auto report = [&](std::size_t done) { progress.step(done, first_part); };

  if (a.chunk > 0) {
    for (const host::named_policy& policy : policies) {
      progress.begin(name + ", " + policy.name);
      result.trials.push_back(passkey::run_chunked(m, s, result.asked, a.chunk, policy, a.answer, follow, report));
    }
    return result;
  }
  s.clear();
  host::compressor::prepare(s, policies);
  progress.begin(name + ", reading");
  const host::stopwatch watch;
  if (!s.feed(std::span(result.asked.tokens).first(first_part), report))
    throw std::runtime_error("the cache has no room for the prompt");
  result.prefill_seconds = watch.seconds();
  const host::saved_sequence prefill = s.save();
  for (const host::named_policy& policy : policies) {
    progress.begin(name + ", " + policy.name);
    result.trials.push_back(passkey::run_restored(m, s, result.asked, prefill, policy, a.answer, follow));
  }
  return result;
}

void run(arguments& a) {
  check(a);
  std::ofstream json, picture;
  if (!a.json.empty()) json = open(a.json);
  if (!a.picture.empty()) picture = open(a.picture);

  const host::model m(a.model, {.servers = a.servers});
  host::session_options options;
  options.cells = static_cast<std::uint32_t>(a.cells > 0 ? a.cells : a.prompt.length + a.answer);
  options.threads = a.threads;
  options.types = host::parse_cache_types(a.cache_type);
  options.flash_attention = !a.transposed;
  host::session s(m, options);

  // The last token of a prompt comes after the compression.
  if (a.policies.empty()) a.policies = of_equal_sizes(a, passkey::make_prompt(m, a.prompt).tokens.size() - 1);

  std::vector<passkey::prompt_result> results;
  passkey::progress progress(std::cerr, ::isatty(STDERR_FILENO) == 1);
  for (std::size_t i = 0; i < a.prompts; ++i) results.push_back(run(a, m, s, i, progress));
  progress.wipe();

  const passkey::run_settings settings{a.model, a.prompt.length, a.prompt.depth, a.chunk, llama_n_ctx(s.get()), a.threads};
  passkey::print_table(std::cout, settings, results);
  if (json.is_open()) {
    passkey::write_json(json, settings, results);
    if (!json.flush()) throw std::runtime_error(a.json + ": could not be written");
  }
  if (!picture.is_open()) return;
  passkey::draw_kept(picture, results.front().asked, results.front().trials);
  if (!picture.flush()) throw std::runtime_error(a.picture + ": could not be written");
  std::cout << "picture of the tokens that stay: " << a.picture << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Finds a 64-digit pass key again in a compressed cache.");
  arguments a;
  declare(app, a);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked_for_help) {
    return app.exit(asked_for_help);
  } catch (const CLI::ParseError& wrong) {
    std::cerr << "passkey: " << wrong.what() << '\n';
    return host::bad_input;
  }
  return host::run("passkey", [&] { run(a); });
}
