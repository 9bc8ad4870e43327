// Speculative decoding: a draft is decoded, verified and taken back from its first wrong token on. With compression between the
// rounds the text is that of plain decoding under the same policy.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "random_model.hpp"
#include "versions.hpp"

namespace {

using lagkv::llama::way;

llama_model* shared_model() {
  static const support::owned_model model = support::random_model({"llama"});
  return model.get();
}

struct free_context {
  void operator()(llama_context* c) const { llama_free(c); }
};

/// A text that is written under a policy. Its tokens are drawn: greedily, a random model soon repeats itself.
class writer {
 public:
  writer(const std::string& policy, way how) : policy_(*lagkv::parse(policy)), how_(how) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512, params.n_batch = params.n_ubatch = 128;
    params.n_threads = params.n_threads_batch = 1;
    support::set_flash_attention(params, true);
    probe_.attach(params);
    context_.reset(llama_init_from_model(shared_model(), params));
    auto made = lagkv::llama::compressor::make(context_.get(), policy_, &probe_);
    EXPECT_TRUE(made) << made.message();
    compressor_ = std::make_unique<lagkv::llama::compressor>(*made);
    std::vector<llama_token> prompt;
    for (int i = 0; i < 100; ++i) prompt.push_back(i * 7919 % static_cast<int>(support::random_vocabulary));
    next_ = decode(prompt).back();
    compress();
  }

  void plain(std::size_t tokens) {
    while (text.size() < tokens) {
      text.push_back(next_);
      next_ = decode({next_}).back();
      compress();
    }
  }

  /// `expected` is what a good draft model would say; every fourth token of the drafts is wrong.
  void speculative(std::size_t tokens, const std::vector<llama_token>& expected) {
    std::mt19937 random(5);
    llama_memory_t memory = llama_get_memory(context_.get());
    while (text.size() < tokens) {
      // A round must not go beyond a token after which something is due.
      const std::size_t rows = compressor_->at(0).tokens;
      std::size_t most = 1;
      while (most < 6 && policy_.budget.due(compressor_->at(0), rows + most).empty()) ++most;
      std::vector<llama_token> batch{next_};
      while (batch.size() < most && text.size() + batch.size() < expected.size()) {
        const llama_token right = expected[text.size() + batch.size()];
        batch.push_back(random() % 4 == 0 ? (right + 1) % static_cast<int>(support::random_vocabulary) : right);
      }
      const std::vector<llama_token> said = decode(batch);
      std::size_t accepted = 1;
      while (accepted < batch.size() && batch[accepted] == said[accepted - 1]) ++accepted;
      if (accepted < batch.size()) {
        ++taken_back;
        llama_memory_seq_rm(memory, 0, position_ - static_cast<llama_pos>(batch.size() - accepted), -1);
        position_ -= static_cast<llama_pos>(batch.size() - accepted);
      }
      text.insert(text.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(accepted));
      next_ = said[accepted - 1];
      compress();
    }
  }

  std::vector<llama_token> text;
  std::vector<std::size_t> compressed_to;  ///< rows left, each time
  int taken_back = 0;

 private:
  /// The token that is drawn after each one.
  std::vector<llama_token> decode(std::vector<llama_token> tokens) {
    llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
    for (const llama_token token : tokens) {
      const std::int32_t at = batch.n_tokens++;
      batch.token[at] = token, batch.pos[at] = position_++, batch.n_seq_id[at] = 1, batch.seq_id[at][0] = 0;
      batch.logits[at] = 1;
    }
    EXPECT_EQ(llama_decode(context_.get(), batch), 0);
    std::vector<llama_token> drawn;
    for (std::int32_t i = 0; i < batch.n_tokens; ++i)
      drawn.push_back(draw(llama_get_logits_ith(context_.get(), i), batch.pos[i]));
    llama_batch_free(batch);
    return drawn;
  }

  static llama_token draw(const float* logits, llama_pos position) {
    std::mt19937 noise(static_cast<std::uint32_t>(position));
    std::extreme_value_distribution<float> gumbel;
    std::vector<float> x(logits, logits + support::random_vocabulary);
    for (float& v : x) v += gumbel(noise);
    return static_cast<llama_token>(std::max_element(x.begin(), x.end()) - x.begin());
  }

  void compress() {
    const auto r = compressor_->compress(0, how_);
    ASSERT_TRUE(r) << r.message();
    if (r->compressed) compressed_to.push_back(r->tokens_after);
  }

  lagkv::policy policy_;
  way how_;
  lagkv::llama::cache_probe probe_;
  std::unique_ptr<llama_context, free_context> context_;
  std::unique_ptr<lagkv::llama::compressor> compressor_;
  llama_token next_ = 0;
  llama_pos position_ = 0;
};

TEST(Speculative, TheTextIsThatOfPlainDecoding) {
  for (const char* policy : {"lagkv:sink=4,lag=16,ratio=0.5", "key_diff:capacity=80,every=8", "novelty:capacity=80,every=8",
                             "streaming_llm:capacity=64", "tova:capacity=80"})
    for (const way how : {way::in_place, way::repack}) {
      writer plain(policy, how), speculative(policy, how);
      plain.plain(120);
      speculative.speculative(120, plain.text);
      speculative.text.resize(120);
      EXPECT_EQ(speculative.text, plain.text) << policy;
      EXPECT_EQ(speculative.compressed_to, plain.compressed_to) << policy;
      EXPECT_GT(plain.compressed_to.size(), 3U) << policy;
      if (std::string(policy).find("every") != std::string::npos) {
        EXPECT_GT(speculative.taken_back, 8) << policy;
      }
    }
}

}  // namespace
