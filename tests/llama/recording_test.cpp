// Queries and attention of several sequences: what is recorded of each is what a context of its own records, whatever the host
// does to the others. On tiny models with random weights.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "random_model.hpp"

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;

constexpr std::uint32_t sequences = 3;
constexpr const char* policy = "fuse:h2o+snapkv,recent=24,keep=0.5";

struct setting {
  const char* name;
  const char* architecture;
  bool flash, unified;
};

llama_model* model_of(const std::string& architecture) {
  static std::vector<std::pair<std::string, std::unique_ptr<llama_model, support::free_model>>> made;
  for (const auto& [name, model] : made)
    if (name == architecture) return model.get();
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  made.emplace_back(architecture, support::random_model({architecture}));
  return made.back().second.get();
}

/// Tokens of a sequence that go into one batch.
struct piece {
  llama_seq_id sequence;
  int tokens;
};

struct session {
  session(const setting& how, std::uint32_t n) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512 * n, params.n_batch = params.n_ubatch = 96;
    params.n_seq_max = n, params.kv_unified = how.unified;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = how.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    probe.attach(params);
    context.reset(llama_init_from_model(model_of(how.architecture), params));
    auto made = lagkv::llama::compressor::make(context.get(), *lagkv::parse(policy), &probe);
    EXPECT_TRUE(made) << made.message();
    compressor = std::make_unique<lagkv::llama::compressor>(*made);
  }

  llama_memory_t memory() const { return llama_get_memory(context.get()); }

  /// `text`: tells the sequences' tokens apart, whichever context they are in.
  bool feed(std::initializer_list<piece> pieces, int text = -1) {
    llama_batch batch = llama_batch_init(96, 0, 1);
    for (const piece& p : pieces) {
      const llama_pos first = llama_memory_seq_pos_max(memory(), p.sequence) + 1;
      for (int i = 0; i < p.tokens; ++i, ++batch.n_tokens) {
        const int of = text >= 0 ? text : p.sequence, at = first + i;
        batch.token[batch.n_tokens] = (at * 7919 + of * 104729 + at / 7 * 31) % static_cast<int>(support::random_vocabulary);
        batch.pos[batch.n_tokens] = at, batch.n_seq_id[batch.n_tokens] = 1, batch.seq_id[batch.n_tokens][0] = p.sequence;
        batch.logits[batch.n_tokens] = 0;
      }
    }
    const int failed = llama_decode(context.get(), batch);
    llama_batch_free(batch);
    return failed == 0;
  }

  bytes state(llama_seq_id s) const {
    bytes b(llama_state_seq_get_size(context.get(), s));
    EXPECT_EQ(llama_state_seq_get_data(context.get(), b.data(), b.size(), s), b.size());
    return b;
  }

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  lagkv::llama::cache_probe probe;
  std::unique_ptr<llama_context, free_context> context;
  std::unique_ptr<lagkv::llama::compressor> compressor;
};

/// The numbers of a recording: rows, and of each layer queries and accumulated attention.
std::vector<float> numbers_of(lagkv::llama::recording r) {
  std::vector<float> all;
  for (const llama_pos p : r.rows()) all.push_back(static_cast<float>(p));
  lagkv::workspace ws;
  for (std::size_t l = 0; l < r.layers(); ++l) {
    const lagkv::extras e = r.beside(l);
    for (std::size_t q = 0; q < e.queries.heads(); ++q)
      lagkv::for_each_row(e.queries, q, {0, e.queries.capacity()}, ws,
                          [&](std::size_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
    for (std::size_t head = 0; head < 2; ++head)
      all.insert(all.end(), e.accumulated_attention.of(head), e.accumulated_attention.of(head) + r.rows().size());
  }
  return all;
}

void expect_the_same(session& many, llama_seq_id s, session& alone, const char* when) {
  const auto a = many.compressor->save(s).recorded, b = alone.compressor->save(0).recorded;
  EXPECT_EQ(a.obstacle(), "") << when;
  EXPECT_GT(b.rows().size(), 0U) << when;
  EXPECT_GT(b.layers(), 0U) << when;
  const std::vector<float> x = numbers_of(a), y = numbers_of(b);
  ASSERT_EQ(x.size(), y.size()) << when << ", sequence " << s;
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, static_cast<double>(std::abs(x[i] - y[i])) / (1 + static_cast<double>(std::abs(y[i]))));
  EXPECT_LT(worst, 2e-3) << when << ", sequence " << s;
}

class Recordings : public testing::TestWithParam<setting> {
 protected:
  Recordings() {
    for (std::uint32_t i = 0; i < sequences; ++i) alone.push_back(std::make_unique<session>(GetParam(), 1));
  }

  /// The same tokens into the sequences of one context, in one batch, and into contexts of their own.
  void feed(std::initializer_list<piece> pieces) {
    ASSERT_TRUE(many.feed(pieces));
    for (const piece& p : pieces) ASSERT_TRUE(one(p.sequence).feed({{0, p.tokens}}, p.sequence));
  }

  session& one(llama_seq_id s) { return *alone[static_cast<std::size_t>(s)]; }

  void expect_the_same_of_all(const char* when) {
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(sequences); ++s) expect_the_same(many, s, one(s), when);
  }

  /// Both drop the same rows.
  void compress(llama_seq_id s, way how) {
    std::vector<std::vector<std::uint32_t>> kept[2];
    const auto into = [](auto& all) {
      return [&all](std::size_t, const lagkv::plan& p) { all.emplace_back(p.kept.begin(), p.kept.end()); };
    };
    const auto x = many.compressor->compress(s, how, into(kept[0])), y = one(s).compressor->compress(0, how, into(kept[1]));
    ASSERT_TRUE(x && y) << x.message() << y.message();
    EXPECT_TRUE(x->compressed && y->compressed);
    EXPECT_LT(x->tokens_after, x->tokens_before);
    EXPECT_EQ(x->tokens_after, y->tokens_after);
    EXPECT_EQ(kept[0], kept[1]);
  }

  session many{GetParam(), sequences};
  std::vector<std::unique_ptr<session>> alone;
};

TEST_P(Recordings, OfEachSequenceAreThoseOfItAlone) {
  feed({{0, 40}, {1, 30}, {2, 20}});
  feed({{2, 25}, {0, 40}});
  for (int i = 0; i < 5; ++i) feed({{1, 1}, {0, 1}, {2, 1}});
  expect_the_same_of_all("fed");
  for (const way how : {way::in_place, way::repack}) {
    compress(how == way::in_place ? 0 : 1, how);
    expect_the_same_of_all("after compression");
    feed({{0, 20}, {1, 60}});
    for (int i = 0; i < 3; ++i) feed({{2, 1}, {1, 1}});
    expect_the_same_of_all("fed on");
  }
}

TEST_P(Recordings, FollowAContextShift) {
  if (std::string(GetParam().architecture) == "gemma3") GTEST_SKIP() << "llama.cpp does not shift it";
  feed({{0, 60}, {1, 36}});
  feed({{2, 50}});
  for (auto& [s, of] : {std::pair{&many, 1}, std::pair{&one(1), 0}}) {
    llama_memory_seq_rm(s->memory(), of, 5, 15);
    llama_memory_seq_add(s->memory(), of, 15, -1, -10);
  }
  feed({{0, 1}, {1, 30}, {2, 1}});
  expect_the_same_of_all("shifted");
  EXPECT_EQ(many.compressor->save(1).recorded.rows().size(), 56U);
  EXPECT_EQ(many.compressor->save(1).recorded.rows().back(), 55);
  compress(1, way::automatic);
}

TEST_P(Recordings, FollowTokensTakenBackAndASequenceBegunAnew) {
  feed({{0, 60}, {1, 36}});
  feed({{2, 50}});
  for (auto& [s, of] : {std::pair{&many, 0}, std::pair{&one(0), 0}}) llama_memory_seq_rm(s->memory(), of, 50, -1);
  feed({{0, 20}, {2, 9}});
  many.compressor->forget(1);
  one(1).compressor->forget(0);
  for (auto& [s, of] : {std::pair{&many, 1}, std::pair{&one(1), 0}}) llama_memory_seq_rm(s->memory(), of, -1, -1);
  feed({{1, 44}, {0, 3}, {2, 3}});
  expect_the_same_of_all("begun anew");
}

TEST_P(Recordings, OfAForkBeginWithThoseOfItsOrigin) {
  ASSERT_TRUE(many.feed({{0, 60}}));
  ASSERT_TRUE(one(0).feed({{0, 60}}, 0) && one(1).feed({{0, 60}}, 0));
  llama_memory_seq_cp(many.memory(), 0, 1, -1, -1);
  many.compressor->copy(0, 1);
  if (GetParam().flash) feed({{0, 5}});  // its origin first
  for (int i = 0; i < 4; ++i) feed({{0, 3}, {1, 2}});
  expect_the_same(many, 0, one(0), "the origin");
  expect_the_same(many, 1, one(1), "the fork");
}

TEST_P(Recordings, ArePutBackWithASavedSequence) {
  feed({{0, 40}, {1, 30}, {2, 20}});
  const bytes saved = many.state(1);
  const auto beside = many.compressor->save(1);
  feed({{0, 10}});
  ASSERT_TRUE(many.feed({{1, 10}}));  // and taken back with all the rest
  llama_memory_seq_rm(many.memory(), 1, -1, -1);
  ASSERT_EQ(llama_state_seq_set_data(many.context.get(), saved.data(), saved.size(), 1), saved.size());
  ASSERT_TRUE(many.compressor->restore(1, saved, beside));
  feed({{1, 20}, {2, 20}});
  expect_the_same_of_all("restored");
}

INSTANTIATE_TEST_SUITE_P(Llama, Recordings,
                         testing::Values(setting{"one_stream", "llama", true, true}, setting{"plain", "llama", false, true},
                                         setting{"streams", "llama", true, false},
                                         setting{"plain_streams", "llama", false, false},
                                         setting{"windows", "gemma3", true, true},
                                         setting{"windows_streams", "gemma3", false, false}),
                         [](const auto& s) { return std::string(s.param.name); });

}  // namespace
