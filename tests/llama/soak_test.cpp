// Soak: a real model decodes many tokens, one by one, in a cache of fixed size. At each compression a plain reference in double
// says which rows stay; cursor and cache agree after every token; memory stays flat. LAGKV_SOAK: tokens, of the whole model and
// not of its first layers (docs/reliability.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "support/methods_oracle.hpp"
#include "support/oracle.hpp"

#include "model.hpp"
#include "versions.hpp"

namespace {

using bytes = std::vector<std::uint8_t>;

struct free_context {
  void operator()(llama_context* c) const { llama_free(c); }
};
struct free_sampler {
  void operator()(llama_sampler* s) const { llama_sampler_free(s); }
};

/// Resident memory in KiB, without what the C library keeps of memory that was freed.
std::size_t resident() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::strtoul(line.c_str() + 6, nullptr, 10);
  return 0;
}

const char* asked_for() { return std::getenv("LAGKV_SOAK"); }

std::size_t tokens_of_a_run() { return asked_for() != nullptr ? std::strtoul(asked_for(), nullptr, 10) : 1000; }

/// The rows of a sequence as a state has them: of each layer the keys, then the values, in f16.
class saved {
 public:
  explicit saved(llama_context* context) : state_(llama_state_seq_get_size(context, 0)) {
    EXPECT_EQ(llama_state_seq_get_data(context, state_.data(), state_.size(), 0), state_.size());
    auto parsed = lagkv::llama::saved_sequence::parse(state_);
    EXPECT_TRUE(parsed) << parsed.message();
    if (parsed) rows_ = std::make_unique<lagkv::llama::saved_sequence>(*parsed);
  }
  std::size_t tokens() const { return rows_ ? rows_->tokens() : 0; }
  std::size_t layers() const { return rows_ ? rows_->layers() : 0; }
  llama_pos last() const { return rows_->positions().back(); }

  support::cube cube(std::size_t layer, bool values, std::size_t heads) const {
    const lagkv::llama::matrix& m = values ? rows_->values(layer) : rows_->keys(layer);
    support::cube x(heads, tokens(), m.width / heads);
    for (std::size_t row = 0; row < tokens(); ++row) {
      const auto cell = static_cast<std::size_t>(rows_->cells()[row]);
      for (std::size_t i = 0; i < m.width; ++i) {
        ggml_fp16_t half = 0;
        const std::size_t at = m.transposed ? i * m.pitch + cell : cell * m.pitch + i;
        std::memcpy(&half, static_cast<const char*>(m.data) + 2 * at, 2);
        x.row(i / x.channels, row)[i % x.channels] = ggml_fp16_to_fp32(half);
      }
    }
    return x;
  }

 private:
  bytes state_;
  std::unique_ptr<lagkv::llama::saved_sequence> rows_;
};

struct soak {
  explicit soak(const std::string& text) : policy(*lagkv::parse(text)) {
    model = asked_for() != nullptr ? support::load_model(LAGKV_LLAMA_MODEL) : support::load_first_layers(LAGKV_LLAMA_MODEL, 6);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = cells, params.n_batch = params.n_ubatch = 16;
    params.n_threads = params.n_threads_batch = 1;
    support::set_flash_attention(params, true);
    probe.attach(params);
    context.reset(llama_init_from_model(model.get(), params));
    auto made = lagkv::llama::compressor::make(context.get(), policy, &probe);
    EXPECT_TRUE(made) << made.message();
    compressor = std::make_unique<lagkv::llama::compressor>(*made);
    heads = static_cast<std::size_t>(llama_model_n_head_kv(model.get()));
  }

  /// One token: the one that is drawn after the token before.
  bool feed() {
    const bool ok = llama_decode(context.get(), llama_batch_get_one(&next, 1)) == 0;
    if (!ok) return false;
    ++seen, ++total;
    next = llama_sampler_sample(draw.get(), context.get(), -1);
    return true;
  }

  /// Survivors of a share fill any cache in the end: the sequence then begins anew.
  void begin_anew() {
    ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(context.get()), 0, -1, -1));
    seen = 0, ++sequences, next = 1;  // as many texts begin
  }

  static constexpr std::size_t cells = 512;
  lagkv::policy policy;
  support::owned_model model;
  lagkv::llama::cache_probe probe;
  std::unique_ptr<llama_context, free_context> context;
  std::unique_ptr<lagkv::llama::compressor> compressor;
  std::size_t heads = 0, seen = 0, total = 0, sequences = 1;
  std::unique_ptr<llama_sampler, free_sampler> draw{llama_sampler_init_dist(1)};
  llama_token next = 1;
};

bool same(const support::cube& a, std::size_t x, const support::cube& b, std::size_t y, std::size_t head) {
  return std::memcmp(a.row(head, x), b.row(head, y), a.channels * sizeof(float)) == 0;
}

/// Which rows of `before` those of `after` are: ascending, one by one. Empty, where one is none of them.
std::vector<std::size_t> sources(const support::cube& before, const support::cube& values_before, const support::cube& after,
                                 const support::cube& values_after, std::size_t head) {
  std::vector<std::size_t> from;
  std::size_t next = 0;
  for (std::size_t i = 0; i < after.tokens; ++i, ++next) {
    while (next < before.tokens && !(same(after, i, before, next, head) && same(values_after, i, values_before, next, head)))
      ++next;
    if (next == before.tokens) return {};
    from.push_back(next);
  }
  return from;
}

/// Whether the kept rows of [begin, begin + n) are the best by the scores, up to what float and double differ by.
void expect_best(const std::vector<double>& scores, std::size_t begin, const std::vector<std::size_t>& kept, double near) {
  std::vector<bool> stays(scores.size());
  for (const std::size_t row : kept)
    if (row >= begin && row < begin + scores.size()) stays[row - begin] = true;
  double least = 1e300, most = -1e300;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (stays[i]) least = std::min(least, scores[i]);
    if (!stays[i]) most = std::max(most, scores[i]);
  }
  ASSERT_GE(least, most - near);
}

template <class Reference>
void run(const std::string& text, bool anew, const Reference& reference) {
  soak s(text);
  ASSERT_TRUE(s.context);
  const std::size_t tokens = tokens_of_a_run();
  std::size_t compressions = 0, rows = 0, first_memory = 0, memory = 0;
  while (s.total < tokens) {
    if (rows == soak::cells) {
      ASSERT_TRUE(anew) << "the cache grows";
      s.begin_anew(), rows = 0;
    }
    ASSERT_TRUE(s.feed()) << "no room after " << s.seen << " tokens";
    ++rows;
    const lagkv::cursor before = s.seen == 1 ? lagkv::cursor{} : s.compressor->at(0);
    const lagkv::candidates due = s.policy.budget.due(before, rows);
    const std::unique_ptr<saved> was = due.empty() ? nullptr : std::make_unique<saved>(s.context.get());
    const auto done = s.compressor->compress(0);
    ASSERT_TRUE(done) << done.message();
    ASSERT_EQ(done->tokens_before, rows);
    ASSERT_EQ(done->tokens_after < rows, !due.empty());
    rows = done->tokens_after;
    ASSERT_EQ(llama_memory_seq_pos_max(llama_get_memory(s.context.get()), 0) + 1, static_cast<llama_pos>(s.seen));
    if (s.total >= 900 && !was) {  // all scratch has been asked for, and the test holds no copies of its own
      if (first_memory == 0) first_memory = resident();
      if (s.total % 100 < 5) memory = std::max(memory, resident());
    }
    if (s.total % 5000 == 0) {
      std::printf("%zu tokens, %zu compressions, %zu KiB\n", s.total, compressions, resident());
      std::fflush(stdout);
    }
    if (!was) continue;
    ++compressions;
    const lagkv::cursor now = s.compressor->at(0);
    ASSERT_EQ(now.tokens, rows) << "the cursor drifts from the cache";
    ASSERT_EQ(now.seen(), s.seen);
    const saved is(s.context.get());
    ASSERT_EQ(is.tokens(), rows);
    ASSERT_EQ(is.last() + 1, static_cast<llama_pos>(s.seen));
    for (std::size_t layer = 0; layer < was->layers(); ++layer) {
      const support::cube keys = was->cube(layer, false, s.heads), values = was->cube(layer, true, s.heads);
      const support::cube left = is.cube(layer, false, s.heads), left_values = is.cube(layer, true, s.heads);
      for (std::size_t head = 0; head < s.heads; ++head) {
        SCOPED_TRACE("token " + std::to_string(s.total) + " layer " + std::to_string(layer) + " head " + std::to_string(head));
        const std::vector<std::size_t> kept = sources(keys, values, left, left_values, head);
        ASSERT_EQ(kept.size(), rows) << "a row is none that was there";
        reference(keys, values, head, due, kept);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
  ASSERT_GT(compressions, 0U);
  ASSERT_GT(first_memory, 0U);
  EXPECT_LE(memory, first_memory + 8192) << "KiB: memory grows";
  std::printf(
      "%s: %zu tokens in %zu sequences, %zu compressions of %zu layers, %zu rows; %zu KiB after 900 tokens, at most %zu KiB "
      "later\n",
      text.c_str(), s.total, s.sequences, compressions, static_cast<std::size_t>(llama_model_n_layer(s.model.get())), rows,
      first_memory, memory);
}

TEST(Soak, LagKVKeepsWhatTheReferenceInDoubleKeeps) {
  run("lagkv:sink=4,lag=64,ratio=0.25", true,
      [](const support::cube& keys, const support::cube& values, std::size_t head, const lagkv::candidates& due,
         const std::vector<std::size_t>& kept) {
        const std::size_t partitions = due.rows.size() / 64;
        ASSERT_EQ(partitions * 64, due.rows.size());
        const std::vector<double> scores =
            support::lagkv_scores(keys, values, head, due.rows.begin, partitions, {64, 1.0, false});
        for (std::size_t p = 0; p < partitions; ++p) {
          const auto from = scores.begin() + static_cast<std::ptrdiff_t>(64 * p);
          expect_best({from, from + 64}, due.rows.begin + 64 * p, kept, 1e-5);
        }
      });
}

TEST(Soak, KeyDiffInAFixedCacheKeepsWhatTheReferenceInDoubleKeeps) {
  run("key_diff:sink=4,recent=32,capacity=384,every=64", false,
      [](const support::cube& keys, const support::cube&, std::size_t head, const lagkv::candidates& due,
         const std::vector<std::size_t>& kept) {
        expect_best(support::key_diff_scores(keys, head, {due.rows.begin, due.rows.end}, {0, keys.tokens}), due.rows.begin, kept,
                    1e-5);
      });
}

}  // namespace
