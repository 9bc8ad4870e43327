// The results file: what goes in comes out, and what an interruption leaves is mended.
#include "results.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string_view>

namespace {

class ResultsFile : public testing::Test {
 protected:
  ResultsFile() { std::filesystem::remove(path); }
  ~ResultsFile() override { std::filesystem::remove(path); }

  void write(std::string_view text) const { std::ofstream(path, std::ios::binary) << text; }

  [[nodiscard]] std::string text() const {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // What reading throws; empty where it does not.
  [[nodiscard]] std::string fault() const {
    try {
      (void)eval::read_results(path);
    } catch (const std::invalid_argument& thrown) {
      return thrown.what();
    }
    return {};
  }

  std::string path = testing::TempDir() + "lagkv_eval_" + testing::UnitTest::GetInstance()->current_test_info()->name();
};

eval::sample_result sample(std::size_t number, double score) {
  eval::sample_result s;
  s.key = {"vt", 2048, number, "lagkv:lag=128", 0.5};
  s.scores["score"] = score;
  return s;
}

TEST_F(ResultsFile, RoundTrip) {
  eval::run_info run;
  run.command = "lagkv-eval --model \"a b.gguf\"\n";
  run.date = "2026-01-02T03:04:05Z";
  run.model = "a b.gguf";
  run.model_sha256 = "0123abcd";
  run.model_name = "llama 135M Q4_1";
  run.lagkv = "0.1";
  run.llama = "b1";
  run.compiler = "g++ 12";
  run.machine = "two cores";
  run.seed = 0xFFFFFFFFFFFFFFFFU;
  run.threads = 2;
  run.question_seen = true;
  run.chunk = 512;
  run.cache_type = "f16";
  run.transposed = true;
  run.repack = false;
  run.depths = {0.05, 0.5};
  run.data_sets = {{"qa_1", "4567ef"}};
  eval::sample_result full;
  full.key = {"niah_single_1", 4096, 3, "full", 0};
  full.answer = "line\nline \"quoted\" \\ \t </script> \x01 \xE2\x82\xAC";
  full.scores = {{"score", 1.0 / 3}, {"first_token", 0}};
  eval::sample_result s;
  s.key = {"passkey64", 2048, 0, "own:policy", -1};
  s.parsed = "own:policy,budget=10";
  s.depth = 0;
  s.prompt_tokens = 2000;
  s.judged_tokens = 1990;
  s.kept_tokens = 497;
  s.kept_mb = 0.1;
  s.full_mb = 45.9;
  s.prefill_seconds = 1.5;
  s.compress_ms = 12.25;
  s.decoded = 64;
  s.decode_seconds = 2.5;
  s.failure = "why";
  s.survivors = {"0129", "9999"};
  s.needle_begin = 0;
  s.needle_end = 0.25;
  {
    eval::results_file file(path);
    file.add(run);
    file.add(full);
    file.add(s);
  }
  const eval::results all = eval::read_results(path);
  ASSERT_EQ(all.runs.size(), 1U);
  const eval::run_info& r = all.runs[0];
  EXPECT_EQ(std::tie(r.command, r.date, r.model, r.model_sha256, r.model_name, r.lagkv, r.llama),
            std::tie(run.command, run.date, run.model, run.model_sha256, run.model_name, run.lagkv, run.llama));
  EXPECT_EQ(
      std::tie(r.compiler, r.machine, r.seed, r.threads, r.question_seen, r.chunk, r.cache_type, r.transposed),
      std::tie(run.compiler, run.machine, run.seed, run.threads, run.question_seen, run.chunk, run.cache_type, run.transposed));
  EXPECT_EQ(std::tie(r.repack, r.depths, r.data_sets), std::tie(run.repack, run.depths, run.data_sets));
  ASSERT_EQ(all.samples.size(), 2U);
  EXPECT_EQ(all.samples[0].key, full.key);
  EXPECT_EQ(all.samples[0].answer, full.answer);
  EXPECT_EQ(all.samples[0].scores, full.scores);
  EXPECT_EQ(all.samples[0].depth, -1);
  EXPECT_EQ(all.samples[0].needle_begin, -1);
  const eval::sample_result& t = all.samples[1];
  EXPECT_EQ(t.key, s.key);
  EXPECT_EQ(std::tie(t.parsed, t.depth, t.prompt_tokens, t.judged_tokens, t.kept_tokens, t.kept_mb, t.full_mb),
            std::tie(s.parsed, s.depth, s.prompt_tokens, s.judged_tokens, s.kept_tokens, s.kept_mb, s.full_mb));
  EXPECT_EQ(std::tie(t.prefill_seconds, t.compress_ms, t.decoded, t.decode_seconds, t.failure, t.survivors),
            std::tie(s.prefill_seconds, s.compress_ms, s.decoded, s.decode_seconds, s.failure, s.survivors));
  EXPECT_EQ(std::tie(t.needle_begin, t.needle_end), std::tie(s.needle_begin, s.needle_end));
}

TEST_F(ResultsFile, LinesLeaveOutWhatIsNotThere) {
  eval::sample_result s;
  s.key = {"vt", 2048, 0, "full", 0};
  s.scores["score"] = 1;
  eval::results_file(path).add(s);
  EXPECT_EQ(text(), R"({"type":"sample","task":"vt","length":2048,"sample":0,"policy":"full","scores":{"score":1.0}})"
                    "\n");
}

TEST_F(ResultsFile, HalfACharacterIsReplaced) {
  eval::sample_result s = sample(0, 1);
  s.answer = "a\xE2\x82 b\xFF";
  eval::results_file(path).add(s);
  EXPECT_EQ(eval::read_results(path).samples.at(0).answer, "a\xEF\xBF\xBD b\xEF\xBF\xBD");
}

TEST_F(ResultsFile, NotANumberComesBack) {
  eval::results_file(path).add(sample(0, std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(std::isnan(eval::read_results(path).samples.at(0).scores.at("score")));
}

TEST_F(ResultsFile, LaterLineWinsInTheEarlierPlace) {
  {
    eval::results_file file(path);
    file.add(sample(0, 0.1));
    file.add(sample(1, 0.2));
    file.add(sample(0, 0.3));
  }
  const eval::results all = eval::read_results(path);
  ASSERT_EQ(all.samples.size(), 2U);
  EXPECT_EQ(all.samples[0].scores.at("score"), 0.3);
  EXPECT_EQ(all.samples[1].scores.at("score"), 0.2);
}

TEST_F(ResultsFile, TornAtEveryByte) {
  {
    eval::results_file file(path);
    file.add(sample(0, 1));
    file.add(sample(1, 0.25));
  }
  const std::string whole = text();
  const std::size_t first = whole.find('\n') + 1;
  for (std::size_t end = first; end <= whole.size(); ++end) {
    write(whole.substr(0, end));
    const std::size_t kept = end + 1 >= whole.size() ? 2 : 1;  // without its line end alone, the line is whole
    EXPECT_EQ(eval::read_results(path).samples.size(), kept) << end;
    eval::results_file(path).add(sample(2, 0));
    EXPECT_EQ(eval::read_results(path).samples.size(), kept + 1) << end;
  }
}

TEST_F(ResultsFile, IsOneWritersAtATime) {
  const std::string said = path + ": another run writes to it: wait until it ends, or name another file with --out";
  {
    eval::results_file file(path);
    try {
      const eval::results_file second(path);
      ADD_FAILURE() << "opened twice";
    } catch (const std::runtime_error& thrown) {
      EXPECT_EQ(thrown.what(), said);
    }
    const pid_t child = fork();
    if (child == 0) {  // another process, too
      try {
        const eval::results_file other(path);
      } catch (const std::runtime_error& thrown) {
        _exit(thrown.what() == said ? 7 : 8);
      }
      _exit(9);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), 7);
    file.add(sample(0, 1));
  }
  eval::results_file(path).add(sample(1, 1));
  EXPECT_EQ(eval::read_results(path).samples.size(), 2U);
}

TEST_F(ResultsFile, OfWritersThatAreKilledLosesAtMostTheLastLine) {
  std::size_t before = 0;
  for (int round = 0; round < 10; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      eval::results_file file(path);
      for (std::size_t i = 0; i < 5000; ++i, usleep(200)) {
        eval::sample_result s = sample(static_cast<std::size_t>(round) * 1000000 + i, 1);
        s.survivors.assign(30, std::string(200, '5'));
        file.add(s);
      }
      _exit(0);
    }
    const auto enough = before + 3;
    while (std::filesystem::exists(path) ? eval::read_results(path).samples.size() < enough : true) usleep(500);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const std::size_t now = eval::read_results(path).samples.size();  // throws where a line in the middle is broken
    EXPECT_GE(now, enough);
    before = now;
  }
}

// A file system that takes no more ends the file with the last whole line.
TEST_F(ResultsFile, OnAFullDiskEndsWithTheLineBefore) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit most{3000, 3000};  // bytes of a file: what a full disk does to it
    setrlimit(RLIMIT_FSIZE, &most);
    eval::results_file file(path);
    for (std::size_t i = 0; i < 1000; ++i) try {
        file.add(sample(i, 1));
      } catch (const std::runtime_error& thrown) {
        const bool named = std::string_view(thrown.what()).find(path + ": cannot be written: ") == 0;
        _exit(named && i > 5 ? 7 : 8);
      }
    _exit(9);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  const std::string whole = text();
  ASSERT_FALSE(whole.empty());
  EXPECT_EQ(whole.back(), '\n');
  const std::size_t samples = eval::read_results(path).samples.size();
  EXPECT_EQ(static_cast<std::size_t>(std::count(whole.begin(), whole.end(), '\n')), samples);
  EXPECT_GT(samples, 5U);
}

TEST_F(ResultsFile, WhatIsNotOursIsLeftAlone) {
  write("not a line of ours");
  EXPECT_THROW(eval::results_file{path}, std::runtime_error);
  EXPECT_EQ(text(), "not a line of ours");
  EXPECT_EQ(fault(), path + ", line 1: is not a JSON object");
}

TEST_F(ResultsFile, BrokenLinesAreNamed) {
  const std::string good = R"({"type":"run"})"
                           "\n";
  const auto line_two = [&](const std::string& line) {
    write(good + line + "\n" + good);
    return fault();
  };
  const std::string at = path + ", line 2: ";
  EXPECT_EQ(line_two(R"({"type":"sam)"), at + "is not a JSON object");
  EXPECT_EQ(line_two(""), at + "is not a JSON object");
  EXPECT_EQ(line_two("[1]"), at + "is not a JSON object");
  EXPECT_EQ(line_two("{}"), at + "type: must be run or sample");
  EXPECT_EQ(line_two(R"({"type":7})"), at + "type: must be a text");
  EXPECT_EQ(line_two(R"({"type":"sample","task":"vt","length":1,"sample":0})"), at + "policy: is missing");
  const std::string begin = R"({"type":"sample","task":"vt","sample":0,"policy":"x","length":)";
  EXPECT_EQ(line_two(begin + "-1}"), at + "length: must be a whole number, 0 or more");
  EXPECT_EQ(line_two(begin + "1.5}"), at + "length: must be a whole number, 0 or more");
  EXPECT_EQ(line_two(begin + R"(1,"removed":null})"), at + "removed: must be a number");
  EXPECT_EQ(line_two(begin + R"(1,"scores":{"score":"1"}})"), at + "scores: must be a number");
  EXPECT_EQ(line_two(begin + R"(1,"scores":[]})"), at + "scores: must be an object");
  EXPECT_EQ(line_two(begin + R"(1,"scores":{"score":5}})"), at + "scores: score 5: must be from 0 to 1");
  EXPECT_EQ(line_two(begin + R"(1,"scores":{"kl":5,"first_token":-0.5}})"), at + "scores: first_token -0.5: must be from 0 to 1");
  EXPECT_EQ(line_two(begin + R"(1,"scores":{"score":NaN}})"), at + "is not a JSON object");
  EXPECT_EQ(line_two(begin + R"(1,"survivors":["01x"]})"), at + "survivors: must be digits");
  EXPECT_EQ(line_two(begin + R"(1,"of_a_later_version":1})"), "");
}

TEST_F(ResultsFile, CannotBeReadOrWritten) {
  EXPECT_THROW((void)eval::read_results(path + ".none"), std::runtime_error);
  EXPECT_THROW((void)eval::read_results(testing::TempDir()), std::runtime_error);
  EXPECT_THROW((void)eval::read_results("/dev/full"), std::runtime_error) << "reads without end";
  EXPECT_THROW(eval::results_file{path + ".none/results"}, std::runtime_error);
}

TEST_F(ResultsFile, IsNoPipeAndNoDevice) {
  EXPECT_NO_THROW(eval::check_regular(path));  // free
  write("");
  EXPECT_NO_THROW(eval::check_regular(path));
  std::filesystem::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  for (const std::string& other : {path, std::string("/dev/full"), testing::TempDir()}) {
    EXPECT_THROW(eval::check_regular(other), std::runtime_error) << other;
    EXPECT_THROW(eval::results_file{other}, std::runtime_error) << other;
  }
}

// Conditions of a run, and what says that they differ.
TEST(Conflict, NamesBothConditions) {
  eval::run_info now;
  now.model_sha256 = "ab", now.seed = 42, now.cache_type = "f16", now.repack = true, now.depths = {0.25, 0.5};
  now.calibration = {{"queries", "cd"}}, now.data_sets = {{"qa_1", "12"}, {"qa_2", "34"}};
  EXPECT_EQ(eval::conflict(now, now), "");
  const auto with = [&](auto change) {
    eval::run_info was = now;
    change(was);
    return eval::conflict(was, now);
  };
  using run = eval::run_info;
  EXPECT_EQ(with([](run& r) { r.model_sha256 = "x"; }), "was made with a model of SHA-256 x, not ab");
  EXPECT_EQ(with([](run& r) { r.seed = 7; }), "was made with seed 7, not 42");
  EXPECT_EQ(with([](run& r) { r.question_seen = true; }), "was made with question seen true, not false");
  EXPECT_EQ(with([](run& r) { r.chunk = 512; }), "was made with chunk 512, not 0");
  EXPECT_EQ(with([](run& r) { r.cache_type = "q8_0"; }), "was made with cache type q8_0, not f16");
  EXPECT_EQ(with([](run& r) { r.transposed = true; }), "was made with transposed values true, not false");
  EXPECT_EQ(with([](run& r) { r.calibration["queries"] = "x"; }), "was made with calibrated queries of SHA-256 x, not cd");
  EXPECT_EQ(with([](run& r) { r.repack = false; }), "was made with repacked weights false, not true");
  EXPECT_EQ(with([](run& r) { r.depths = {0.25}; }), "was made with depths 0.25, not 0.25,0.5");
  EXPECT_EQ(with([](run& r) { r.data_sets["qa_2"] = "x"; }), "was made with a data set of qa_2 of SHA-256 x, not 34");
}

// Files of older versions do not say all, and one to which a task is added says less.
TEST(Conflict, IsNotWhatOneOfTheTwoDoesNotKnow) {
  eval::run_info was, now;
  now.calibration = {{"queries", "cd"}}, now.repack = true, now.depths = {0.5}, now.data_sets = {{"qa_1", "12"}};
  EXPECT_EQ(eval::conflict(was, now), "");
  EXPECT_EQ(eval::conflict(now, was), "");
  was.data_sets = {{"qa_2", "34"}}, was.calibration = {{"importance", "ef"}};
  EXPECT_EQ(eval::conflict(was, now), "");
}

TEST_F(ResultsFile, OfAnOlderVersionIsRead) {
  write(R"({"type":"run","command":"lagkv-eval run","model_sha256":"ab","seed":42,"threads":1,"cache_type":"f16"})"
        "\n");
  const eval::results all = eval::read_results(path);
  ASSERT_EQ(all.runs.size(), 1U);
  EXPECT_FALSE(all.runs[0].repack.has_value());
  EXPECT_TRUE(all.runs[0].depths.empty());
  EXPECT_TRUE(all.runs[0].data_sets.empty());
}

// lagkv-eval speed writes other lines into a file of the same kind.
TEST(line_file, keeps_whole_lines_and_one_writer) {
  const std::string path = testing::TempDir() + "lagkv_line_file.jsonl";
  std::filesystem::remove(path);
  const auto text = [&] {
    std::ifstream in(path, std::ios::binary);
    return std::string{std::istreambuf_iterator<char>(in), {}};
  };
  constexpr std::string_view begins = R"({"key":)";
  {
    eval::line_file first(path, begins);
    EXPECT_EQ(first.bytes_found(), 0U);
    first.add(R"({"key":1})");
    EXPECT_THROW(eval::line_file(path, begins), std::runtime_error) << "one writer at a time";
  }
  std::ofstream(path, std::ios::app) << R"({"key":{"len)";
  EXPECT_TRUE(eval::torn(R"({"key":{"len)", begins));
  EXPECT_TRUE(eval::torn(R"({"k)", begins));
  EXPECT_FALSE(eval::torn(R"({"type":"ru)", begins)) << "of another file";
  EXPECT_FALSE(eval::torn(R"({"key":2})", begins)) << "whole";
  {
    eval::line_file second(path, begins);
    EXPECT_EQ(second.bytes_found(), std::string_view("{\"key\":1}\n{\"key\":{\"len").size());
    second.add(R"({"key":2})");
  }
  EXPECT_EQ(text(), "{\"key\":1}\n{\"key\":2}\n");
  std::ofstream(path, std::ios::app) << "no line of ours";
  EXPECT_THROW(eval::line_file(path, begins), std::runtime_error);
  EXPECT_EQ(text(), "{\"key\":1}\n{\"key\":2}\nno line of ours") << "left as it is";
}

}  // namespace
