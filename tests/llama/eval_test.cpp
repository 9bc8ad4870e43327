// lagkv-eval on a real model: what it measures is what llama.cpp does, and a run that stops goes on.
#include <gtest/gtest.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <regex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "calibrate_command.hpp"
#include "host/calibration_file.hpp"
#include "host/compressor.hpp"
#include "host/model.hpp"
#include "report/report_command.hpp"
#include "results.hpp"
#include "run_command.hpp"
#include "tasks/task.hpp"
#include "trial.hpp"
#include "tune_command.hpp"

#include "model.hpp"

namespace {

// What is compared here holds for any model; where right answers are counted the whole one gives them.
constexpr std::uint32_t layers = 4;

const std::string& model_file() {
  static const support::first_layers file(LAGKV_LLAMA_MODEL, layers);
  return file.path();
}

using tokens = std::vector<llama_token>;

const host::model& model() {
  static const host::model loaded(model_file());
  return loaded;
}

const host::model& whole_model() {
  static const host::model loaded(LAGKV_LLAMA_MODEL);
  return loaded;
}

const eval::task& task(const std::string& name) { return *eval::tasks_of(name, {}).front(); }

eval::prompt prompt_of(const eval::task& t, std::size_t length) {
  eval::request r;
  r.length = length;
  r.count = [](std::string_view text) { return model().tokenize(text).size(); };
  return t.make(r);
}

// llama.cpp by itself: one context, explicit positions, nothing of ours.
class plain {
 public:
  explicit plain(const host::model& m = model()) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context_.reset(llama_init_from_model(m.get(), params));
  }

  void read_silently(const tokens& text) { decode(text, false); }

  // Logits after each token.
  std::vector<std::vector<float>> read(const tokens& text) {
    decode(text, true);
    const auto vocabulary = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model().get())));
    std::vector<std::vector<float>> made;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const float* logits = llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(i));
      made.emplace_back(logits, logits + vocabulary);
    }
    return made;
  }

 private:
  void decode(const tokens& text, bool logits) {
    llama_batch batch = llama_batch_init(static_cast<std::int32_t>(text.size()), 0, 1);
    batch.n_tokens = static_cast<std::int32_t>(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
      batch.token[i] = text[i], batch.pos[i] = position_++, batch.n_seq_id[i] = 1, batch.seq_id[i][0] = 0;
      batch.logits[i] = logits ? 1 : 0;
    }
    EXPECT_EQ(llama_decode(context_.get(), batch), 0);
    llama_batch_free(batch);
  }

  struct deleter {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  std::unique_ptr<llama_context, deleter> context_;
  llama_pos position_ = 0;
};

double nll(const std::vector<float>& logits, llama_token token) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - most);
  return std::log(sum) + most - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

// Where the processor has AMX, this also tells whether llama.cpp was built so that it works.
TEST(Model, AnswersNearlyTheSameWithRepackedWeights) {
  const host::model repacked(model_file(), {.repack = true});
  const tokens text = model().tokenize(prompt_of(task("niah_single_2"), 300).context);
  std::vector<std::vector<float>> logits[2];
  for (const host::model* m : {&model(), &repacked}) {
    host::session session(*m, {.cells = 512, .threads = 1});
    std::vector<std::vector<float>>& made = logits[m == &repacked];
    ASSERT_TRUE(session.feed_all(text, [&](std::size_t, std::span<const float> l) { made.emplace_back(l.begin(), l.end()); }));
  }
  double apart = 0, of = 0;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    of += nll(logits[0][i], text[i + 1]);
    apart += std::abs(nll(logits[0][i], text[i + 1]) - nll(logits[1][i], text[i + 1]));
  }
  EXPECT_LT(apart, 0.05 * of);
}

// One prompt, prefilled once, as lagkv-eval does.
class Trial : public testing::Test {
 protected:
  explicit Trial(const host::model& m = model()) : model_(m) {}

  static host::session_options options() { return {.cells = 1024, .threads = 1, .answer_threads = 1}; }

  void prepare(const std::string& name, std::size_t length, const std::vector<std::string>& policies, bool seen = false) {
    what_ = &task(name);
    asked_ = prompt_of(*what_, length);
    tokens_ = eval::tokenize(model_, *what_, asked_, seen);
    std::vector<host::named_policy> all;
    for (const std::string& policy : policies) all.push_back(host::parse(policy));
    host::compressor::prepare(session_, all);
    ASSERT_TRUE(session_.feed(tokens_.before));
    prefill_ = session_.save();
  }

  eval::sample_result run(const std::string& policy, std::size_t chunk = 0) {
    const eval::trial t{.model = &model_,
                        .what = what_,
                        .asked = &asked_,
                        .tokens = &tokens_,
                        .policy = host::parse(policy),
                        .prefill = chunk == 0 ? &prefill_ : nullptr,
                        .chunk = chunk};
    if (policy != "full")
      return eval::run(
          t, session_, [this]() -> const eval::reference& { return said_; }, nullptr);
    said_ = {};
    return eval::run(t, session_, {}, &said_);
  }

  const host::model& model_;
  host::session session_{model_, options()};
  const eval::task* what_ = nullptr;
  eval::prompt asked_;
  eval::tokenized tokens_;
  host::saved_sequence prefill_;
  eval::reference said_;
};

class WholeTrial : public Trial {
 protected:
  WholeTrial() : Trial(whole_model()) {}
};

TEST_F(WholeTrial, FullCacheAnswersAsLlamaCppWithoutUs) {
  prepare("niah_single_1", 500, {});
  const eval::sample_result full = run("full");
  EXPECT_EQ(full.kept_tokens, tokens_.before.size());
  EXPECT_DOUBLE_EQ(full.kept_mb, full.full_mb);

  plain alone(whole_model());
  alone.read_silently(tokens_.before);
  tokens fed = tokens_.after, written;
  while (written.size() < said_.tokens.size()) {
    written.push_back(host::likeliest(alone.read(fed).back()));
    fed = {written.back()};
  }
  EXPECT_EQ(written, said_.tokens);
  EXPECT_EQ(full.scores.at("score"), 1) << full.answer;
}

TEST_F(Trial, PerplexityIsLlamaCppsAndPositionsAreRight) {
  prepare("perplexity", 700, {});
  const eval::sample_result full = run("full");
  plain alone;
  alone.read_silently(tokens_.before);
  tokens fed = tokens_.after;
  fed.insert(fed.end(), tokens_.continuation.begin(), tokens_.continuation.end() - 1);
  const auto logits = alone.read(fed);
  double expected = 0;
  for (std::size_t i = 0; i < tokens_.continuation.size(); ++i)
    expected += nll(logits[i], tokens_.continuation[i]) / static_cast<double>(tokens_.continuation.size());
  EXPECT_NEAR(full.scores.at("nll"), expected, 1e-4);

  // A compressed cache goes on at the position of the text, not of its rows.
  for (const char* policy : {"lagkv:lag=64,ratio=0.25", "streaming_llm:keep=0.3", "key_diff:keep=0.5"}) {
    const eval::sample_result r = run(policy);
    EXPECT_LT(r.kept_tokens, tokens_.before.size());
    const auto last = static_cast<std::size_t>(llama_memory_seq_pos_max(llama_get_memory(session_.get()), 0));
    EXPECT_EQ(last + 1, tokens_.before.size() + tokens_.after.size() + tokens_.continuation.size() - 1) << policy;
    EXPECT_GT(r.scores.at("kl"), 0) << policy;
    EXPECT_LT(r.scores.at("nll"), full.scores.at("nll") + 1) << policy;
  }

  // Were cells one position off, the comparison with llama.cpp would show it.
  constexpr std::size_t head = 16, cell = 12;  // bytes of the state before its cells, and of a cell, whose position comes first
  for (std::size_t i = 0; i < tokens_.before.size(); ++i) {
    llama_pos position = 0;
    std::memcpy(&position, prefill_.state.data() + head + cell * i, sizeof position);
    ++position;
    std::memcpy(prefill_.state.data() + head + cell * i, &position, sizeof position);
  }
  EXPECT_GT(std::abs(run("full").scores.at("nll") - expected), 1e-3);
}

TEST_F(Trial, APolicyThatKeepsEverythingIsTheFullCache) {
  const std::vector<std::string> policies = {"lagkv:lag=32,ratio=1", "h2o:capacity=5000"};
  for (const char* name : {"niah_single_1", "perplexity", "generation"}) {
    session_.clear();
    prepare(name, 400, policies);
    const eval::sample_result full = run("full");
    for (const std::string& policy : policies) {
      const eval::sample_result r = run(policy);
      EXPECT_EQ(r.kept_tokens, r.judged_tokens) << policy;
      EXPECT_EQ(r.answer, full.answer) << policy;
      EXPECT_EQ(r.scores, full.scores) << policy;
    }
  }
}

TEST_F(Trial, ChunksAndSeenQuestionsKeepTheBudget) {
  prepare("niah_single_1", 500, {"lagkv:lag=32,ratio=0.5"}, true);
  static_cast<void>(run("full"));
  EXPECT_EQ(tokens_.after.size(), 1U);
  const eval::sample_result whole = run("lagkv:lag=32,ratio=0.5"), chunks = run("lagkv:lag=32,ratio=0.5", 64);
  const std::size_t partitions = (tokens_.before.size() - 16) / 32 - 1;
  EXPECT_EQ(whole.kept_tokens, tokens_.before.size() - 16 * partitions);
  EXPECT_EQ(chunks.kept_tokens, whole.kept_tokens);
  EXPECT_EQ(chunks.judged_tokens, tokens_.before.size());
}

// A session of plain attention, of whose heads each has the budget of all.
class UnevenTrial : public Trial {
 protected:
  explicit UnevenTrial(ggml_type keys = GGML_TYPE_F16) : plain_(model(), plain_options(keys)) {}

  static host::session_options plain_options(ggml_type keys) {
    host::session_options o = options();
    o.flash_attention = false;
    o.types.keys = keys;
    const auto heads = static_cast<std::size_t>(llama_model_n_head_kv(model().get()));
    std::vector<float> falling(10000);
    for (std::size_t i = 0; i < falling.size(); ++i) falling[i] = 1 - static_cast<float>(i) / 10000;
    o.counted.head_importance.assign(layers, std::vector(heads, falling));
    return o;
  }

  /// `compared_with` it from then on, in place of the full cache.
  eval::sample_result run_plain(const std::string& policy, bool compared_with = false) {
    const eval::trial t{.model = &model(),
                        .what = what_,
                        .asked = &asked_,
                        .tokens = &tokens_,
                        .policy = host::parse(policy),
                        .prefill = &prefill_};
    if (policy != "full" && !compared_with)
      return eval::run(
          t, plain_, [this]() -> const eval::reference& { return said_; }, nullptr);
    said_ = {};
    return eval::run(t, plain_, {}, &said_);
  }

  void prepare_plain(const std::string& name, std::size_t length, const std::vector<std::string>& policies) {
    what_ = &task(name);
    asked_ = prompt_of(*what_, length);
    tokens_ = eval::tokenize(model(), *what_, asked_, false);
    std::vector<host::named_policy> all;
    for (const std::string& policy : policies) all.push_back(host::parse(policy));
    plain_.clear();
    host::compressor::prepare(plain_, all);
    ASSERT_TRUE(plain_.feed(tokens_.before));
    prefill_ = plain_.save();
    static_cast<void>(run_plain("full"));
  }

  host::session plain_;
};

// What is hidden is as good as gone: with equal budgets a model reads on as it does where the rows have been dropped.
TEST_F(UnevenTrial, HiddenRowsAreAsGoodAsDropped) {
  for (const std::string dropped : {"key_diff:keep=0.25", "snapkv:keep=0.5"}) {
    const std::string hidden = dropped + ",select=by_head";
    prepare_plain("perplexity", 600, {dropped, hidden});
    const double lost = run_plain(hidden).scores.at("kl");
    const eval::sample_result a = run_plain(dropped, true), b = run_plain(hidden);
    ASSERT_EQ(b.failure, "");
    EXPECT_EQ(a.kept_tokens, b.kept_tokens) << hidden;
    EXPECT_LT(b.scores.at("kl"), lost / 3) << hidden << ": the rest is from plain to flash attention";
  }
}

class UnevenQuantisedTrial : public UnevenTrial {
 protected:
  UnevenQuantisedTrial() : UnevenTrial(GGML_TYPE_Q8_0) {}
};

// Such keys are stored transformed: the scores of what is hidden are those of the keys that the model means.
TEST_F(UnevenQuantisedTrial, HiddenRowsAreAsGoodAsDropped) {
  const std::string dropped = "novelty:keep=0.25", hidden = dropped + ",select=by_head";
  prepare_plain("perplexity", 600, {dropped, hidden});
  const double lost = run_plain(hidden).scores.at("kl");
  static_cast<void>(run_plain(dropped, true));
  EXPECT_LT(run_plain(hidden).scores.at("kl"), lost / 3);
}

// Whatever was hidden is seen again in the next trial; heads that share a budget unequally keep as many in the mean.
TEST_F(UnevenTrial, HidesForOneTrialOnly) {
  const std::string adaptive = "key_diff:keep=0.3,select=adaptive";
  prepare_plain("perplexity", 500, {adaptive});
  const double before = run_plain("full").scores.at("nll");
  const eval::sample_result r = run_plain(adaptive), equal = run_plain("key_diff:keep=0.3");
  EXPECT_NEAR(static_cast<double>(r.kept_tokens), static_cast<double>(equal.kept_tokens), 1);
  EXPECT_GT(std::abs(r.scores.at("nll") - before), 1e-3);
  EXPECT_DOUBLE_EQ(run_plain("full").scores.at("nll"), before);
  prepare_plain("generation", 400, {adaptive});
  EXPECT_EQ(run_plain(adaptive).failure, "heads of different lengths: not in a text that grows");
}

class Run : public testing::Test {
 protected:
  Run() { std::filesystem::remove_all(folder_), std::filesystem::create_directories(folder_); }
  ~Run() override { std::filesystem::remove_all(folder_); }

  eval::run_options options() const {
    eval::run_options o;
    o.model = model_file();
    o.tasks = "niah_single_1,passkey64";
    o.policies = {"lagkv:lag=32", "snapkv"};
    o.removed = {0.5};
    o.lengths = {400};
    o.samples = 2;
    o.threads = 2;
    o.out = (folder_ / "results.jsonl").string();
    return o;
  }

  static std::map<eval::sample_key, std::string> answers(const std::string& path) {
    std::map<eval::sample_key, std::string> made;
    for (const eval::sample_result& r : eval::read_results(path).samples) made[r.key] = r.answer;
    return made;
  }

  std::filesystem::path folder_ = std::filesystem::temp_directory_path() / "lagkv_eval_test";
};

TEST_F(Run, GoesOnWhereItWasInterrupted) {
  eval::run_options o = options();
  o.model = LAGKV_LLAMA_MODEL, o.policies = {"lagkv:lag=32"};
  EXPECT_EQ(eval::run_command(o), 0);
  const auto whole = answers(o.out);
  EXPECT_EQ(whole.size(), 2U * 2U * 3U);  // full, lagkv, and random, which comes by itself
  const eval::results before = eval::read_results(o.out);
  EXPECT_EQ(before.samples.size(), whole.size());
  EXPECT_EQ(before.runs.size(), 1U);
  EXPECT_EQ(before.runs[0].model_sha256.size(), 64U);
  EXPECT_TRUE(std::regex_match(before.runs[0].lagkv, std::regex(R"(\d+\.\d+\.\d+ \(([0-9a-f]{12}(-dirty)?|unknown)\))")))
      << before.runs[0].lagkv;
  double full = 0;
  std::size_t pictures = 0;
  for (const eval::sample_result& r : before.samples) {
    EXPECT_EQ(r.failure, "");
    EXPECT_LE(r.prompt_tokens, o.lengths[0]);
    if (r.key.policy == "full") full += r.scores.at("score") / 4;
    if (!r.survivors.empty()) ++pictures;
    if (r.key.policy != "full") {
      EXPECT_NEAR(static_cast<double>(r.kept_tokens), static_cast<double>(r.judged_tokens) / 2, 8);
    }
  }
  EXPECT_GE(full, 0.5);
  EXPECT_EQ(pictures, 2U);

  // Cut in the middle of a line.
  std::filesystem::resize_file(o.out, std::filesystem::file_size(o.out) * 6 / 10);
  EXPECT_LT(answers(o.out).size(), whole.size());
  EXPECT_EQ(eval::run_command(o), 0);
  EXPECT_EQ(answers(o.out), whole);
  EXPECT_EQ(eval::read_results(o.out).runs.size(), 2U);

  const std::string page = (folder_ / "page.html").string();
  EXPECT_EQ(eval::report_command({o.out, page, "", false}), 0);
  EXPECT_GT(std::filesystem::file_size(page), 20000U);
}

TEST_F(Run, TakesThePromptsFromTheFirstThatIsAskedFor) {
  eval::run_options o = options(), whole = options();
  for (eval::run_options* of : {&o, &whole}) of->tasks = "niah_single_1", of->policies = {"lagkv:lag=32"};
  whole.out = (folder_ / "whole.jsonl").string();
  o.first_sample = 1;
  ASSERT_EQ(eval::run_command(o), 0);
  const auto part = answers(o.out);
  EXPECT_EQ(part.size(), 3U);
  for (const auto& [key, answer] : part) EXPECT_EQ(key.sample, 1U);
  o.first_sample = 0;  // goes on with those before
  ASSERT_EQ(eval::run_command(o), 0);
  whole.lengths.push_back(whole.lengths.front());  // named twice, run once
  ASSERT_EQ(eval::run_command(whole), 0);
  EXPECT_EQ(answers(o.out), answers(whole.out));
  std::ifstream in(whole.out);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(std::ranges::count(text, '\n'), 1 + 2 * 3) << "a run, and two prompts of three policies";
}

// A refit is asked for in a policy's string: the same tokens stay, with other values; a huge ridge leaves these as they are.
TEST_F(Run, RefitsValues) {
  eval::run_options o = options();
  o.tasks = "perplexity", o.policies = {"random", "random:refit=3", "random:refit=3,refit_queries=128", "random:refit=1000000"};
  o.lengths = {600}, o.samples = 1;
  EXPECT_EQ(eval::run_command(o), 0);
  std::map<std::string, double> kl;
  std::map<std::string, std::size_t> kept;
  for (const eval::sample_result& r : eval::read_results(o.out).samples) {
    EXPECT_EQ(r.failure, "");
    kl[r.key.policy] += r.scores.at("kl"), kept[r.key.policy] += r.kept_tokens;
  }
  for (const std::string& policy : o.policies) EXPECT_EQ(kept.at(policy), kept.at("random")) << policy;
  EXPECT_NE(kl.at(o.policies[1]), kl.at("random"));
  EXPECT_NE(kl.at(o.policies[2]), kl.at("random"));
  EXPECT_NE(kl.at(o.policies[1]), kl.at(o.policies[2]));
  EXPECT_NEAR(kl.at(o.policies[3]), kl.at("random"),
              0.1 * kl.at("random"));  // values that are nearly 0 change in their last digits
  o.cache_type = "q8_0", o.out = (folder_ / "quantised.jsonl").string();
  try {
    static_cast<void>(eval::run_command(o));
    FAIL() << "not refused";
  } catch (const std::invalid_argument& e) {  // before the first prompt is read
    EXPECT_NE(std::string(e.what()).find("refit: values: type q8_0: must be f32, f16 or bf16"), std::string::npos) << e.what();
  }
}

// Queries of 120 tokens at a time, rotated back by complex arithmetic in double.
TEST_F(Run, CalibratesOnceAndRunsWithThat) {
  constexpr std::size_t length = 120, skipped = 4, channels = 64, heads = 9;
  const std::string text = prompt_of(task("niah_single_2"), 400).context;
  std::ofstream(folder_ / "text.txt") << text;
  eval::calibrate_options c;
  c.model = model_file(), c.texts = {(folder_ / "text.txt").string()}, c.tokens = 2 * length, c.length = length;
  c.threads = 1, c.rank = channels, c.out = (folder_ / "calibration").string();
  EXPECT_EQ(eval::calibrate_command(c), 0);
  const host::calibration read = host::read_calibration(c.out, model().signature());
  const auto& counted = read.queries;
  ASSERT_EQ(read.importance.size(), layers);
  ASSERT_EQ(counted.size(), layers);

  host::session session(model(), {.cells = length, .threads = 1});
  session.probe().record({.queries = length});
  const tokens all = model().tokenize(text);
  std::vector<std::vector<double>> sums(counted.size()), products(counted.size());
  for (std::size_t begin = 0; begin < 2 * length; begin += length) {
    session.clear();
    ASSERT_TRUE(session.feed(std::span(all).subspan(begin, length)));
    for (const std::size_t l : {std::size_t{0}, std::size_t{layers - 2}}) {
      sums[l].resize(heads * channels), products[l].resize(heads * channels * channels);
      const lagkv::rope by = session.probe().embeddings()[l].with_factors();
      const lagkv::tensor queries = session.probe().recorded().beside(l).queries;
      lagkv::workspace ws;
      for (std::size_t h = 0; h < heads; ++h)
        lagkv::for_each_row(queries, h, {skipped, length}, ws, [&](std::size_t i, std::span<const float> row) {
          std::vector<double> q(channels);
          for (std::size_t j = 0; j < channels / 2; ++j) {  // neighbours are pairs
            const std::complex<double> turned(row[2 * j], row[2 * j + 1]);
            const auto back = turned * std::polar(1.0, -by.angle(j, channels) * static_cast<double>(skipped + i));
            q[2 * j] = back.real(), q[2 * j + 1] = back.imag();
          }
          for (std::size_t a = 0; a < channels; ++a) {
            sums[l][h * channels + a] += q[a];
            for (std::size_t b = 0; b < channels; ++b) products[l][(h * channels + a) * channels + b] += q[a] * q[b];
          }
        });
    }
  }
  constexpr double n = 2 * (length - skipped);
  for (const std::size_t l : {std::size_t{0}, std::size_t{layers - 2}}) {
    lagkv::query_statistics exact{heads, channels, {}, {}, {}};
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t a = 0; a < channels; ++a) {
        exact.mean.push_back(static_cast<float>(sums[l][h * channels + a] / n));
        for (std::size_t b = 0; b < channels; ++b)
          exact.covariance.push_back(static_cast<float>(products[l][(h * channels + a) * channels + b] / n -
                                                        sums[l][h * channels + a] / n * sums[l][h * channels + b] / n));
      }
    const lagkv::rope by = session.probe().embeddings()[l].with_factors();
    const auto theirs = moved(exact, by, length, lagkv::expected_queries),
               ours = moved(counted[l], by, length, lagkv::expected_queries);
    ASSERT_EQ(ours.rank(), channels);
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t a = 0; a < channels; ++a) {
        ASSERT_NEAR(ours.mean[h * channels + a], theirs.mean[h * channels + a], 1e-4) << "layer " << l << " head " << h;
        for (std::size_t b = 0; b < channels; ++b) {
          double sum = 0;
          for (std::size_t f = 0; f < channels; ++f)
            sum += static_cast<double>(ours.factors[(h * channels + f) * channels + a]) *
                   static_cast<double>(ours.factors[(h * channels + f) * channels + b]);
          ASSERT_NEAR(sum, theirs.covariance[(h * channels + a) * channels + b], 1e-3) << "layer " << l << " head " << h;
        }
      }
  }

  eval::run_options o = options();
  o.tasks = "niah_single_1", o.samples = 1, o.policies = {"lagkv:lag=32", "expected_attention:calibrated=yes", "kvzap"};
  EXPECT_THROW(eval::run_command(o), std::invalid_argument) << "it has no statistics";
  o.calibration = c.out;
  EXPECT_EQ(eval::run_command(o), 0);
  const eval::results done = eval::read_results(o.out);
  ASSERT_EQ(done.runs.back().calibration.size(), 3U);  // queries and both importances
  EXPECT_EQ(done.runs.back().calibration.at("queries").size(), 64U);
  std::size_t calibrated = 0;
  for (const eval::sample_result& r : done.samples) {
    EXPECT_EQ(r.failure, "");
    if (r.key.policy != "full") {
      EXPECT_NEAR(static_cast<double>(r.kept_tokens), static_cast<double>(r.judged_tokens) / 2, 8);
    }
    if (r.key.policy == o.policies[1] || r.key.policy == o.policies[2]) ++calibrated;
  }
  EXPECT_EQ(calibrated, 2U);

  c.rank = 4, c.out = (folder_ / "another").string(), o.calibration = c.out, o.samples = 2;
  EXPECT_EQ(eval::calibrate_command(c), 0);
  try {
    eval::run_command(o);
    ADD_FAILURE() << "results of two calibrations in one file";
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("was made with calibrated queries of SHA-256"), std::string::npos) << e.what();
  }
  EXPECT_EQ(eval::read_results(o.out).samples.size(), done.samples.size());

  c.rank = channels, c.count = {"queries"};  // less was counted, but the same
  o.policies.pop_back(), o.samples = 1;
  EXPECT_EQ(eval::calibrate_command(c), 0);
  EXPECT_EQ(eval::run_command(o), 0);
}

// Out of time from the start: one prompt of each half, and the second call has nothing left to run.
TEST_F(Run, TunesInTheTimeItHasAndOnOtherPromptsThanItChoseBy) {
  eval::tune_options o;
  o.model = model_file(), o.policies = {"recommended", "key_diff"}, o.tasks = "perplexity", o.length = 600, o.samples = 2;
  o.threads = 1, o.minutes = 1e-6, o.out = (folder_ / "tune").string();
  for (int call = 0; call < 2; ++call) {
    testing::internal::CaptureStdout();
    ASSERT_EQ(eval::tune_command(o), 0);
    const std::string said = testing::internal::GetCapturedStdout();
    for (const char* word : {"Choosing", "Reporting", "random", "may be chance", "keep=0.25"})
      EXPECT_NE(said.find(word), std::string::npos) << word << " is not in\n" << said;
    const eval::results first = eval::read_results(o.out + "-choosing.jsonl"),
                        second = eval::read_results(o.out + "-reporting.jsonl");
    EXPECT_EQ(first.samples.size(), 4U) << "full, two candidates, random; one prompt";
    std::set<std::string> reported;
    for (const eval::sample_result& s : second.samples) reported.insert(s.key.policy);
    reported.erase("key_diff");  // if it is neither the best nor the second
    EXPECT_EQ(reported, (std::set<std::string>{"full", "random", "recommended"}));
    for (const eval::sample_result& s : first.samples) EXPECT_EQ(s.key.sample, 0U);
    for (const eval::sample_result& s : second.samples) EXPECT_EQ(s.key.sample, o.samples);
    EXPECT_EQ(first.runs.front().seed, second.runs.front().seed);
    EXPECT_FALSE(std::filesystem::exists(o.out + ".safetensors")) << "no candidate reads it";
  }
  o.minutes = 0;
  EXPECT_THROW(static_cast<void>(eval::tune_command(o)), std::invalid_argument);
}

// The candidates that it has by itself, some of which are no policy without a budget.
TEST_F(Run, TunesItsOwnCandidates) {
  eval::tune_options o;
  o.model = model_file(), o.tasks = "few_shot", o.reach = 0, o.length = 480, o.samples = 1, o.threads = 1;
  o.removed = 0.25, o.out = (folder_ / "tune").string();  // a quarter of so few tokens is what lagkv:lag=128 can do
  o.ragged = true;
  eval::calibrate_options c;  // shorter than its own
  c.model = o.model, c.count = {"queries", "importance"}, c.tokens = 240, c.length = 120, c.threads = 1;
  c.out = o.out + ".safetensors";
  ASSERT_EQ(eval::calibrate_command(c), 0);
  testing::internal::CaptureStdout();
  ASSERT_EQ(eval::tune_command(o), 0);
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_EQ(said.find("failed"), std::string::npos) << said;
  const eval::results first = eval::read_results(o.out + "-choosing.jsonl");
  EXPECT_EQ(first.samples.size(), o.policies.size() + std::size(eval::ragged_candidates) + 2) << "full and random, too";
  EXPECT_TRUE(first.runs.front().transposed);
}

// Candidates of a second call may read what the file of the first does not have.
TEST_F(Run, TuneNamesTheCalibrationThatLacksSomething) {
  eval::tune_options o;
  o.model = model_file(), o.policies = {"kvzap"}, o.tasks = "few_shot", o.out = (folder_ / "tune").string();
  eval::calibrate_options c;
  c.model = o.model, c.count = {"queries"}, c.tokens = 240, c.length = 120, c.threads = 1, c.out = o.out + ".safetensors";
  ASSERT_EQ(eval::calibrate_command(c), 0);
  try {
    static_cast<void>(eval::tune_command(o));
    FAIL() << "not refused";
  } catch (const std::invalid_argument& e) {
    EXPECT_EQ(e.what(), c.out + ": has no importance, which a candidate reads: name another --out, or other --policies");
  }
}

// Its files may be gone on with under another share and other candidates: what they held before does not count.
TEST_F(Run, TunesByTheResultsOfItsOwnCall) {
  eval::tune_options o;
  o.model = model_file(), o.policies = {"key_diff", "streaming_llm"}, o.tasks = "few_shot", o.reach = 0, o.length = 320;
  o.samples = 1, o.threads = 1, o.out = (folder_ / "tune").string();
  const auto said = [&] {
    testing::internal::CaptureStdout();
    EXPECT_EQ(eval::tune_command(o), 0);
    return testing::internal::GetCapturedStdout();
  };
  const std::string alone = said();
  o.removed = 0.5, o.policies = {"novelty"};
  EXPECT_EQ(said().find("streaming_llm"), std::string::npos);
  o.removed = 0.75, o.policies = {"key_diff", "streaming_llm"};
  EXPECT_EQ(said(), alone);
  o.policies.emplace_back("snapkv:select=adaptive");  // which this cache cannot hold
  EXPECT_NE(said().find("snapkv:select=adaptive: failed on 1 of 1 prompts: heads of different lengths"), std::string::npos);
  o.policies = {"lagkv:lag=1024"};  // there is no partition of that
  EXPECT_THROW(static_cast<void>(said()), std::runtime_error);
  static_cast<void>(testing::internal::GetCapturedStdout());
}

// A length that has no room for the pass key has room for what is shorter. The least that is named works for all samples.
TEST_F(Run, ATaskThatIsTooLongStopsNoOther) {
  eval::run_options o = options();
  o.tasks = "passkey64,niah_single_1", o.policies = {"lagkv:lag=32"}, o.lengths = {270}, o.samples = 3, o.threads = 1;
  testing::internal::CaptureStderr();
  EXPECT_EQ(eval::run_command(o), 2);
  const std::string said = testing::internal::GetCapturedStderr();
  std::set<std::string> tasks;
  for (const eval::sample_result& r : eval::read_results(o.out).samples) tasks.insert(r.key.task);
  EXPECT_EQ(tasks, std::set<std::string>{"niah_single_1"});
  const std::string words = "passkey64: length 270 is too short; the least that works is ";
  const std::size_t at = said.find(words);
  ASSERT_NE(at, std::string::npos) << said;
  o.lengths = {std::stoul(said.substr(at + words.size()))}, o.tasks = "passkey64", o.out = (folder_ / "least.jsonl").string();
  EXPECT_EQ(eval::run_command(o), 0);
  EXPECT_EQ(answers(o.out).size(), 3U * 3U);
  for (const eval::sample_result& r : eval::read_results(o.out).samples) EXPECT_LE(r.prompt_tokens, o.lengths[0]);
  --o.lengths[0];
  EXPECT_EQ(eval::run_command(o), 2);
}

TEST_F(Run, OtherConditionsNeedAnotherFile) {
  eval::run_options o = options();
  o.tasks = "passkey64", o.policies = {"lagkv:lag=32"}, o.samples = 1, o.threads = 1;
  ASSERT_EQ(eval::run_command(o), 0);
  o.samples = 2;
  const auto refused = [&](const eval::run_options& other, const std::string& why) {
    try {
      static_cast<void>(eval::run_command(other));
      ADD_FAILURE() << "not refused: " << why;
    } catch (const std::invalid_argument& thrown) {
      EXPECT_NE(std::string(thrown.what()).find(why), std::string::npos) << thrown.what();
    }
  };
  eval::run_options other = o;
  other.depths = {0.5};
  refused(other, "was made with depths 0.05,0.15,0.25,0.35,0.45,0.55,0.65,0.75,0.85,0.95, not 0.5: name another file");
  other = o, other.repack = true;
  refused(other, "was made with repacked weights false, not true");
  other = o, other.tasks = "niah_single_1", other.depths = {0.5};  // has no depths
  EXPECT_EQ(eval::run_command(other), 0);
}

TEST_F(Run, RefusesBeforeItWorks) {
  const auto message = [](const eval::run_options& o) {
    try {
      eval::run_command(o);
    } catch (const std::invalid_argument& wrong) {
      return std::string(wrong.what());
    }
    return std::string();
  };
  eval::run_options o = options();
  o.tasks = "niah_single_9";
  EXPECT_NE(message(o).find("niah_single_9"), std::string::npos);
  o = options(), o.policies = {"snapkv:select=adaptive"};
  EXPECT_NE(message(o).find("heads of different lengths: give --transposed"), std::string::npos);
  o = options(), o.lengths = {80};
  EXPECT_NE(message(o).find("length"), std::string::npos);
  o = options(), o.first_sample = 2;
  EXPECT_EQ(message(o), "--first-sample 2: there are 2 prompts a task, counted from 0 (--samples)");
  o = options(), o.model = "no such file";
  EXPECT_EQ(message(o), "no such file: cannot be read");
  EXPECT_TRUE(!std::filesystem::exists(options().out) || std::filesystem::is_empty(options().out)) << "binds it to its seed";
  o = options(), o.out = "/dev/full";
  EXPECT_THROW(eval::run_command(o), std::runtime_error) << "reads without end";
  // A file of other conditions is not mixed with these.
  eval::run_info was;
  was.model_sha256 = "0";
  eval::results_file(options().out).add(was);
  EXPECT_NE(message(options()).find("name another file with --out"), std::string::npos);
}

// Attention with sinks of its own cannot be recorded, for one: the other policies still run.
TEST_F(Run, APolicyThatTheModelCannotHaveStopsNoOther) {
  eval::run_options o = options();
  o.tasks = "niah_single_1", o.policies = {"snapkv:select=adaptive", "lagkv:lag=32"}, o.samples = 1;
  EXPECT_EQ(eval::run_command(o), 0);
  std::map<std::string, std::string> failures;
  for (const eval::sample_result& r : eval::read_results(o.out).samples) failures[r.key.policy] = r.failure;
  EXPECT_EQ(failures.size(), 4U);
  EXPECT_NE(failures.at("snapkv:select=adaptive").find("heads of different lengths: give --transposed"), std::string::npos);
  EXPECT_EQ(failures.at("full") + failures.at("lagkv:lag=32") + failures.at("random"), "");
}

// Nor does one that has no budget on the first prompt: it cannot keep half of so few tokens.
TEST_F(Run, APolicyThatIsRefusedOnALaterPromptStopsNoOther) {
  eval::run_options o = options();
  o.tasks = "niah_single_1", o.policies = {"random:recent=100,refit=1"}, o.samples = 1;
  o.lengths = {280, 500}, o.cache_type = "q8_0";
  EXPECT_EQ(eval::run_command(o), 0);
  std::map<std::size_t, std::string> failures;
  for (const eval::sample_result& r : eval::read_results(o.out).samples)
    if (r.key.policy == o.policies[0])
      failures[r.key.length] = r.failure;
    else
      EXPECT_EQ(r.failure, "");
  EXPECT_NE(failures.at(280).find("sinks and window stay"), std::string::npos) << failures.at(280);
  EXPECT_NE(failures.at(500).find("type q8_0"), std::string::npos) << failures.at(500);
}

}  // namespace
