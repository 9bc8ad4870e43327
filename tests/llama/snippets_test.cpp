// The code for llama.cpp of docs/usage.md and docs/engines.md, on a real model (tests/snippets.cmake cuts it out).
#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "model.hpp"

namespace {

llama_model* shared_model() { return support::loaded_once(LAGKV_LLAMA_MODEL); }

llama_context_params some_params() {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 512;
  params.n_threads = params.n_threads_batch = 2;
  return params;
}

std::string refuse(const std::string& why) { return why; }

std::vector<llama_token> text(std::size_t n) {
  std::vector<llama_token> tokens(n);
  std::iota(tokens.begin(), tokens.end(), 100);
  return tokens;
}

/// What a sequence is: the last position, and tokens left in the cache by the compressor's own account.
struct outcome {
  std::string error;
  llama_pos last = -1;
  std::size_t rows = 0;
};

/// Decodes parts as the page's loop does.
outcome engines(llama_context_params context_params, std::vector<std::size_t> parts) {
  outcome out;
  llama_model* const model = shared_model();
  out.error = [&]() -> std::string {
    std::vector<llama_token> tokens = text(parts.front());
    std::unique_ptr<llama_context, decltype(&llama_free)> owner(nullptr, llama_free);
    const auto next = [&](llama_context* of) {
      if (!owner) owner.reset(of);
      out.last = llama_memory_seq_pos_max(llama_get_memory(of), 0);
      parts.erase(parts.begin());
      return parts.empty() ? std::vector<llama_token>() : text(parts.front());
    };
#include "engines/llama.cpp-1.inc"
    out.rows = compressor->at(0).tokens;
    return "";
  }();
  return out;
}

TEST(LlamaSnippets, Engines) {
  const outcome done = engines(some_params(), {300, 1, 1});
  ASSERT_EQ(done.error, "");
  EXPECT_EQ(done.last, 301);
  EXPECT_LT(done.rows, 301U);
  EXPECT_EQ(engines(some_params(), {20, 500}).error, "no room");
}

/// Becomes a context when it is asked for, as late as the page says, with a prompt in it.
class late_context {
 public:
  late_context(const llama_context_params& params, std::size_t prompt) : params_(params), prompt_(prompt) {}

  operator llama_context*() {
    made_.reset(llama_init_from_model(shared_model(), params_));
    std::vector<llama_token> tokens = text(prompt_);
    EXPECT_EQ(llama_decode(made_.get(), llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size()))), 0);
    return made_.get();
  }

 private:
  const llama_context_params& params_;
  std::size_t prompt_;
  std::unique_ptr<llama_context, decltype(&llama_free)> made_{nullptr, llama_free};
};

std::string usage(const lagkv::result<lagkv::policy>& policy, std::size_t prompt, lagkv::llama::report& report) {
  llama_context_params context_params = some_params();
  late_context context(context_params, prompt);
#include "usage/in-llama.cpp-1.inc"
  report = *done;
  return "";
}

TEST(LlamaSnippets, Usage) {
  lagkv::llama::report report;
  ASSERT_EQ(usage(lagkv::parse("lagkv:lag=128,ratio=0.25"), 300, report), "");
  EXPECT_TRUE(report.compressed && report.in_place);
  EXPECT_EQ(report.tokens_before, 300U);
  EXPECT_NE(usage(lagkv::parse("key_diff:keep=0.5,select=adaptive"), 8, report), "");
}

}  // namespace
