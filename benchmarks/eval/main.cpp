// lagkv-eval: which policy loses what, on a real model.
#include <CLI/CLI.hpp>

#include <cstdint>
#include <iostream>
#include <limits>
#include <map>
#include <string>

#include "calibrate_command.hpp"
#include "host/run.hpp"
#include "report/report_command.hpp"
#include "run_command.hpp"
#include "speed_command.hpp"
#include "tune_command.hpp"

namespace {

// CLI11 itself takes -1 for the largest of the unsigned numbers.
const CLI::Range not_negative(std::int64_t{0}, std::numeric_limits<std::int64_t>::max());

void declare_host(CLI::App& command, eval::host_options& o) {
  command.add_option("--model", o.model, "GGUF model")->required(o.model.empty());
  command.add_option("--threads", o.threads, "0: all cores. Read the prompt together, then a policy each")
      ->check(CLI::Range(0, 1024));
  command.add_option("--cache-type", o.cache_type, "Element type of the cache, or of keys and values: q8_0/q4_0");
  command.add_flag("--transposed", o.transposed, "Without flash attention, which stores values transposed");
  command.add_flag("--repack", o.repack, "Weights as llama.cpp likes them best on this processor (AMX tiles)");
}

void declare_run(CLI::App& run, eval::run_options& o) {
  run.option_defaults()->always_capture_default();
  declare_host(run, o);
  run.add_option("--tasks", o.tasks,
                 "Tasks, as docs/eval.md lists them, and groups of them: ruler, niah, beyond, everyday, work, all");
  run.add_option("--policies", o.policies, "Policy strings without a budget, parted by ';'; full and random are always there")
      ->delimiter(';');
  run.add_option("--removed", o.removed, "Shares of the cached tokens that are to go")->delimiter(',');
  run.add_option("--length", o.lengths, "Tokens of prompt and answer together")->delimiter(',')->check(CLI::Range(64, 1 << 20));
  run.add_option("--samples", o.samples, "Prompts a task and length")->check(CLI::Range(1, 100000));
  run.add_option("--first-sample", o.first_sample, "The prompts before this one, counted from 0, are left out")
      ->check(not_negative);
  run.add_option("--depths", o.depths, "Where the pass key stands, 0 to 1, sample by sample in turn")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0));
  run.add_option("--seed", o.seed, "Draws the prompts")->check(not_negative);
  run.add_flag("--question-seen", o.question_seen, "The question is in the cache when it is compressed");
  run.add_option("--chunk", o.chunk, "Compress after each so many tokens of the prompt; 0: once, after all")
      ->check(CLI::Range(0, 1 << 20));
  run.add_option("--calibration", o.calibration, "What calibrate has written, for calibrated=yes, kvzap and select=by_head");
  run.add_option("--squad", o.files["qa_1"], "SQuAD 2.0 file, for qa_1");
  run.add_option("--hotpotqa", o.files["qa_2"], "HotpotQA file (distractor setting), for qa_2");
  run.add_option("--out", o.out, "Results, a JSON line each; a run that was interrupted goes on with them");
}

void declare_calibrate(CLI::App& calibrate, eval::calibrate_options& o) {
  calibrate.option_defaults()->always_capture_default();
  calibrate.add_option("texts", o.texts,
                       "Text files that the model reads; none: prose, documentation and code, which no task uses");
  calibrate.add_option("--model", o.model, "GGUF model")->required(o.model.empty());
  calibrate.add_option("--tokens", o.tokens, "Tokens in all")->check(CLI::Range(64, 1 << 24));
  calibrate.add_option("--length", o.length, "Tokens that are read as one text")->check(CLI::Range(64, 1 << 20));
  calibrate.add_option("--rank", o.rank, "Vectors that stand for the covariance of a head's queries")->check(CLI::Range(0, 1024));
  calibrate.add_option("--threads", o.threads, "0: all cores")->check(CLI::Range(0, 1024));
  calibrate.add_option("--count", o.count, "queries (for calibrated=yes), importance (for kvzap and select=by_head), or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"queries", "importance"}));
  calibrate.add_option("--out", o.out, "The file, safetensors");
}

void declare_speed(CLI::App& speed, eval::speed_options& o) {
  speed.option_defaults()->always_capture_default();
  speed.add_option("--model", o.model, "GGUF model")->required(o.model.empty());
  speed.add_option("--policies", o.policies, "Policy strings without a budget, parted by ';'; full is always there")
      ->delimiter(';');
  speed.add_option("--removed", o.removed, "Share of the prompt's tokens that is to go")->check(CLI::Range(0.0, 0.99));
  speed.add_option("--length", o.lengths, "Tokens of prompt and answer together")
      ->delimiter(',')
      ->check(CLI::Range(256, 1 << 20));
  speed.add_option("--chunk", o.chunk, "Compress after each so many tokens of the prompt")->check(CLI::Range(1, 1 << 20));
  speed.add_option("--answer", o.answer, "Tokens that are decoded")->check(CLI::Range(1, 1 << 16));
  speed.add_option("--threads", o.threads, "0: all cores")->delimiter(',')->check(CLI::Range(0, 1024));
  speed.add_option("--attention", o.attention, "flash, plain")->delimiter(',');
  speed.add_option("--cache-type", o.cache_type, "Element type of the cache, or of keys and values: q8_0/q4_0");
  speed.add_option("--repeats", o.repeats, "Rounds; each runs every row once")->check(CLI::Range(1, 1000));
  speed.add_option("--out", o.out, "A JSON line a run; what is there already is not run again");
  speed.add_flag("--markdown", o.markdown, "Print the tables as markdown");
}

void declare_report(CLI::App& report, eval::report_options& o) {
  report.add_option("results", o.results, "File that run has written")->required();
  report.add_option("--html", o.html, "Write a page with curves and tables to this file");
  report.add_option("--json", o.json, "Write the figures of the tables to this file");
  report.add_option("--against", o.against, "Print gains and losses: differences from this policy on the same prompts");
  report.add_option("--reach", o.reach, "Leave out tasks in which the full cache has less than this, of 100")
      ->check(CLI::Range(0.0, 100.0));
  report.add_flag("--markdown", o.markdown, "Print the tables as markdown");
}

void declare_tune(CLI::App& tune, eval::tune_options& o) {
  tune.option_defaults()->always_capture_default();
  declare_host(tune, o);
  tune.add_option("--removed", o.removed, "Share of the cached tokens that is to go")->check(CLI::Range(0.01, 0.99));
  tune.add_option("--minutes", o.minutes, "Time for all of it; one prompt of each task and half is always run")
      ->check(CLI::Range(0.01, 1e5));
  tune.add_option("--policies", o.policies, "Candidates: policy strings without a budget, parted by ';'")->delimiter(';');
  tune.add_flag("--ragged", o.ragged, "Candidates with head budgets, too: if the heads of your cache can differ in length");
  tune.add_option("--tasks", o.tasks, "Tasks, as for run");
  tune.add_option("--length", o.length, "Tokens of prompt and answer together")->check(CLI::Range(64, 1 << 20));
  tune.add_option("--samples", o.samples, "Prompts a task in each half, at most")->check(CLI::Range(1, 100000));
  tune.add_option("--seed", o.seed, "Draws the prompts, those to choose on and those to report on")->check(not_negative);
  tune.add_option("--reach", o.reach, "Tasks in which the full cache has less than this share do not count")
      ->check(CLI::Range(0.0, 1.0));
  tune.add_option("--out", o.out, "What its files begin with; a call that was interrupted goes on with them");
}

std::string joined(int argc, char** argv) {
  std::string command = "lagkv-eval";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    command += word.find_first_of(" ;") == std::string::npos ? " " + word : " \"" + word + "\"";
  }
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Which KV-cache policy loses what, measured on a GGUF model through llama.cpp.", "lagkv-eval");
  app.require_subcommand(1);
  eval::run_options run_options;
  run_options.model = LAGKV_EVAL_MODEL;
  run_options.command = joined(argc, argv);
  eval::speed_options speed_options;
  speed_options.model = LAGKV_EVAL_MODEL;
  CLI::App& speed = *app.add_subcommand("speed", "Measure how fast a model reads and answers under policies");
  declare_speed(speed, speed_options);
  eval::report_options report_options;
  CLI::App& run = *app.add_subcommand("run", "Run tasks under policies and write the results");
  declare_run(run, run_options);
  eval::calibrate_options calibrate_options;
  calibrate_options.model = LAGKV_EVAL_MODEL;
  CLI::App& calibrate = *app.add_subcommand("calibrate", "Count what the model's queries usually are");
  declare_calibrate(calibrate, calibrate_options);
  CLI::App& report = *app.add_subcommand("report", "Print and draw results");
  declare_report(report, report_options);
  eval::tune_options tune_options;
  tune_options.model = LAGKV_EVAL_MODEL;
  tune_options.command = run_options.command;
  CLI::App& tune = *app.add_subcommand("tune", "Find the policy that loses least on a model");
  declare_tune(tune, tune_options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked_for_help) {
    return app.exit(asked_for_help);
  } catch (const CLI::ParseError& wrong) {
    std::cerr << "lagkv-eval: " << wrong.what() << '\n';
    return host::bad_input;
  }
  std::erase_if(run_options.files, [](const auto& file) { return file.second.empty(); });
  int code = 0;
  const auto call = [&] {
    if (tune.parsed()) return eval::tune_command(tune_options);
    if (speed.parsed()) return eval::speed_command(speed_options);
    if (calibrate.parsed()) return eval::calibrate_command(calibrate_options);
    return run.parsed() ? eval::run_command(run_options) : eval::report_command(report_options);
  };
  const int failed = host::run("lagkv-eval", [&] { code = call(); });
  return failed != 0 ? failed : code;
}
