// lagkv::llama on a real model: both ways to the cache give the same bytes, what they keep is what a plain array gives,
// and what cannot be taken is refused with the sequence left as it was.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;

llama_model* shared_model() {
  static llama_model* model = [] {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = false;  // some virtual machines report AMX and fault on it
    return llama_model_load_from_file(LAGKV_LLAMA_MODEL, params);
  }();
  return model;
}

/// A context of the model with a probe, and tokens fed to it.
struct session {
  struct options {
    ggml_type type = GGML_TYPE_F16;
    bool flash = true;
    std::uint32_t cells = 1024;
    std::uint32_t sequences = 1;
  };

  explicit session(const options& o) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = o.cells;
    params.n_batch = params.n_ubatch = 128;
    params.n_seq_max = o.sequences;
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = 2;
    params.type_k = params.type_v = o.type;
    params.flash_attn_type = o.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    probe.attach(params);
    context.reset(llama_init_from_model(shared_model(), params));
  }

  /// Decodes n made-up tokens after those already there; false where the cache has no room.
  bool feed(int n, llama_seq_id sequence = 0) {
    llama_memory_t memory = llama_get_memory(context.get());
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(shared_model()));
    while (n > 0) {
      const int here = n < 128 ? n : 128;
      const llama_pos first = llama_memory_seq_pos_max(memory, sequence) + 1;
      llama_batch batch = llama_batch_init(here, 0, 1);
      for (int i = 0; i < here; ++i) {
        const int p = first + i;
        batch.token[i] = (p * 7919 + p / 13 * 104729 + 17) % (vocabulary - 100) + 50;
        batch.pos[i] = p;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = i == here - 1 ? 1 : 0;
      }
      batch.n_tokens = here;
      const int failed = llama_decode(context.get(), batch);
      llama_batch_free(batch);
      if (failed != 0) return false;
      n -= here;
    }
    return true;
  }

  bytes state(llama_seq_id sequence = 0) const {
    bytes b(llama_state_seq_get_size(context.get(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(context.get(), b.data(), b.size(), sequence), b.size());
    return b;
  }

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  lagkv::llama::cache_probe probe;  // outlives the context
  std::unique_ptr<llama_context, free_context> context;
};

lagkv::llama::compressor compressor_of(session& s, const std::string& policy) {
  auto parsed = lagkv::parse(policy);
  EXPECT_TRUE(parsed) << parsed.message();
  auto made = lagkv::llama::compressor::make(s.context.get(), *parsed, &s.probe);
  EXPECT_TRUE(made) << made.message();
  return *made;
}

lagkv::llama::report must(const lagkv::result<lagkv::llama::report>& r) {
  EXPECT_TRUE(r) << r.message();
  return r ? *r : lagkv::llama::report{};
}

/// Rows of one layer in the order of tokens, one array a head: [heads][tokens][channels] bytes.
bytes rows_of(const lagkv::llama::matrix& m, std::span<const std::int32_t> cells, std::size_t heads) {
  const std::size_t element = ggml_type_size(m.type), channels = m.width / heads;
  bytes out(heads * cells.size() * channels * element);
  std::uint8_t* to = out.data();
  for (std::size_t c0 = 0; c0 < m.width; c0 += channels)
    for (std::int32_t cell : cells)
      for (std::size_t c = c0; c < c0 + channels; ++c, to += element) {
        const auto i = static_cast<std::size_t>(cell);
        const std::size_t at = m.transposed ? c * m.pitch + i : i * m.pitch + c;
        std::memcpy(to, static_cast<const std::uint8_t*>(m.data) + at * element, element);
      }
  return out;
}

lagkv::tensor dense(bytes& b, ggml_type type, std::size_t heads, std::size_t tokens) {
  const std::size_t channels = b.size() / ggml_type_size(type) / heads / tokens;
  const lagkv::shape shape{heads, channels};
  const lagkv::strides strides{static_cast<std::ptrdiff_t>(tokens * channels), static_cast<std::ptrdiff_t>(channels)};
  if (type == GGML_TYPE_F32) return lagkv::strided<float>(reinterpret_cast<float*>(b.data()), shape, strides, tokens);
  if (type == GGML_TYPE_BF16)
    return lagkv::strided<lagkv::bf16>(reinterpret_cast<std::uint16_t*>(b.data()), shape, strides, tokens);
  return lagkv::strided<lagkv::f16>(reinterpret_cast<std::uint16_t*>(b.data()), shape, strides, tokens);
}

constexpr std::size_t kv_heads = 3;  // SmolLM2-135M
constexpr const char* small_lag = "lagkv:sink=16,lag=32,ratio=0.25";

struct cache_case {
  ggml_type type;
  bool flash;
};

class EveryCache : public testing::TestWithParam<cache_case> {};

TEST_P(EveryCache, BothWaysGiveTheSameBytes) {
  session a({.type = GetParam().type, .flash = GetParam().flash}), b({.type = GetParam().type, .flash = GetParam().flash});
  ASSERT_TRUE(a.context && b.context);
  ASSERT_TRUE(a.feed(280) && b.feed(280));
  ASSERT_EQ(a.state(), b.state()) << "the same tokens must give the same cache before it is compressed";
  auto in_place = compressor_of(a, small_lag), repacked = compressor_of(b, small_lag);
  const auto x = must(in_place.compress(0, way::in_place)), y = must(repacked.compress(0, way::repack));
  EXPECT_TRUE(x.in_place && x.compressed && y.compressed && !y.in_place);
  EXPECT_EQ(x.tokens_before, 280U);
  EXPECT_EQ(x.tokens_after, 16 + 8 * 7 + 32 + 8U);  // S + rL(floor((n - S) / L) - 1) + L + (n - S) mod L
  EXPECT_EQ(x.tokens_after, y.tokens_after);
  EXPECT_EQ(x.bytes_before, y.bytes_before);
  EXPECT_EQ(x.bytes_after, y.bytes_after);
  EXPECT_EQ(in_place.at(0), repacked.at(0));
  EXPECT_EQ(a.state(), b.state());
}

TEST_P(EveryCache, KeepsWhatAPlainArrayKeeps) {
  session s({.type = GetParam().type, .flash = GetParam().flash});
  ASSERT_TRUE(s.feed(280));
  bytes before = s.state();
  auto saved = lagkv::llama::saved_sequence::parse(before);
  ASSERT_TRUE(saved) << saved.message();
  auto c = compressor_of(s, small_lag);
  must(c.compress(0));
  bytes after = s.state();
  auto left = lagkv::llama::saved_sequence::parse(after);
  ASSERT_TRUE(left) << left.message();
  EXPECT_EQ(left->positions().back(), 279);

  lagkv::workspace ws;
  const auto policy = lagkv::parse(small_lag);
  for (std::size_t l = 0; l < saved->layers(); ++l) {
    bytes k = rows_of(saved->keys(l), saved->cells(), kv_heads), v = rows_of(saved->values(l), saved->cells(), kv_heads);
    lagkv::cursor at;
    const lagkv::layer plain{dense(k, GetParam().type, kv_heads, 280), dense(v, GetParam().type, kv_heads, 280), 280};
    const std::size_t n = lagkv::step(*policy, plain, at, ws);
    ASSERT_EQ(n, left->tokens());
    for (auto [mine, theirs] : {std::pair{&k, &left->keys(l)}, std::pair{&v, &left->values(l)}}) {
      const bytes found = rows_of(*theirs, left->cells(), kv_heads);
      const std::size_t head = mine->size() / kv_heads, short_head = found.size() / kv_heads;
      for (std::size_t h = 0; h < kv_heads; ++h)
        ASSERT_EQ(std::memcmp(mine->data() + h * head, found.data() + h * short_head, short_head), 0)
            << "layer " << l << " head " << h;
    }
  }
}

TEST_P(EveryCache, GoesOnInHolesAndStaysPairedWithTheCache) {
  session s({.type = GetParam().type, .flash = GetParam().flash, .cells = 256});
  auto c = compressor_of(s, small_lag);
  for (int chunk = 0; chunk < 8; ++chunk) {  // 480 tokens through 256 cells
    ASSERT_TRUE(s.feed(60)) << "chunk " << chunk;
    const auto r = must(c.compress(0, way::in_place));
    bytes b = s.state();
    auto saved = lagkv::llama::saved_sequence::parse(b);
    ASSERT_TRUE(saved) << saved.message();
    ASSERT_EQ(saved->tokens(), r.tokens_after);
    // The cell that the probe names for a position holds what the state says of that position.
    const auto& cached = s.probe.layers().front().keys;
    const std::size_t row = ggml_row_size(cached.type, static_cast<std::int64_t>(cached.width));
    for (std::size_t i = 0; i < saved->tokens(); ++i) {
      const auto cell = s.probe.cell_of(saved->positions()[i]);
      ASSERT_GE(cell, 0);
      ASSERT_EQ(
          std::memcmp(static_cast<const std::uint8_t*>(cached.data) + static_cast<std::size_t>(cell) * row,
                      static_cast<const std::uint8_t*>(saved->keys(0).data) + static_cast<std::size_t>(saved->cells()[i]) * row,
                      row),
          0);
    }
  }
  EXPECT_EQ(c.at(0).seen(), 480U);
}

TEST_P(EveryCache, RepacksInTheMiddleAndGoesOnInPlace) {
  session s({.type = GetParam().type, .flash = GetParam().flash});
  auto c = compressor_of(s, small_lag);
  ASSERT_TRUE(s.feed(150));
  must(c.compress(0, way::in_place));
  ASSERT_TRUE(s.feed(90));
  must(c.compress(0, way::repack));
  ASSERT_TRUE(s.feed(90));
  EXPECT_TRUE(must(c.compress(0, way::in_place)).compressed);
  ASSERT_TRUE(s.feed(1));
  EXPECT_FALSE(must(c.compress(0)).compressed);
}

INSTANTIATE_TEST_SUITE_P(Llama, EveryCache,
                         testing::Values(cache_case{GGML_TYPE_F16, true}, cache_case{GGML_TYPE_F16, false},
                                         cache_case{GGML_TYPE_F32, true}, cache_case{GGML_TYPE_F32, false},
                                         cache_case{GGML_TYPE_BF16, true}, cache_case{GGML_TYPE_BF16, false}),
                         [](const auto& c) {
                           return std::string(ggml_type_name(c.param.type)) + (c.param.flash ? "_flash" : "_transposed");
                         });

TEST(LlamaAdapter, BaselinesKeepTheirBudget) {
  for (const char* policy :
       {"streaming_llm:sink=4,capacity=120", "random:keep=0.5,seed=3", "lagkv:lag=32,ratio=0.5,form=kvpress"}) {
    session s({});
    ASSERT_TRUE(s.feed(240));
    auto c = compressor_of(s, policy);
    EXPECT_EQ(must(c.compress(0)).tokens_after, 120U) << policy;
    EXPECT_TRUE(s.feed(1));
  }
}

TEST(LlamaAdapter, QuantisedCachesAreRefusedAndLeftAlone) {
  session s({.type = GGML_TYPE_Q8_0});
  ASSERT_TRUE(s.feed(120));
  const bytes before = s.state();
  auto c = compressor_of(s, small_lag);
  for (way how : {way::automatic, way::in_place, way::repack}) {
    const auto r = c.compress(0, how);
    ASSERT_FALSE(r);
    EXPECT_NE(r.message().find("q8_0: must be f32, f16 or bf16"), std::string::npos) << r.message();
  }
  EXPECT_EQ(before, s.state());
  EXPECT_EQ(c.at(0), lagkv::cursor{});
}

TEST(LlamaAdapter, ASelectorThatKeepsUnequalCountsIsRefusedAndNothingMoves) {
  session s({});
  ASSERT_TRUE(s.feed(120));
  const bytes before = s.state();
  auto policy = *lagkv::parse(small_lag);
  policy.select = [](std::span<const float>, std::size_t heads, const lagkv::due& d, lagkv::plan& out, lagkv::workspace&) {
    out.kept.clear();
    for (std::size_t h = 0; h < heads; ++h) {
      out.first[h] = out.kept.size();
      for (std::size_t i = 0; i <= h; ++i) out.kept.push_back(static_cast<std::uint32_t>(d.judged.begin + i));
    }
    out.first[heads] = out.kept.size();
  };
  auto c = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe);
  ASSERT_TRUE(c);
  for (way how : {way::in_place, way::repack}) EXPECT_FALSE(c->compress(0, how));
  EXPECT_EQ(before, s.state());
}

TEST(LlamaAdapter, AForkIsRepackedAndItsOriginStays) {
  session s({.sequences = 2});
  ASSERT_TRUE(s.feed(200));
  auto c = compressor_of(s, small_lag);
  llama_memory_seq_cp(llama_get_memory(s.context.get()), 0, 1, -1, -1);
  c.copy(0, 1);
  const bytes origin = s.state(0);
  EXPECT_FALSE(c.compress(1, way::in_place));
  EXPECT_TRUE(must(c.compress(1)).compressed);
  EXPECT_EQ(origin, s.state(0));
  EXPECT_EQ(c.at(0), lagkv::cursor{});
  EXPECT_GT(c.at(1).dropped, 0U);
  EXPECT_TRUE(s.feed(50, 1));
}

TEST(LlamaAdapter, ARestoredSequenceGoesOnWithItsCursor) {
  session a({}), b({});
  auto ca = compressor_of(a, small_lag), cb = compressor_of(b, small_lag);
  ASSERT_TRUE(a.feed(200));
  must(ca.compress(0));
  const bytes saved = a.state();
  const lagkv::cursor cursor = ca.at(0);
  ASSERT_TRUE(b.feed(8));  // so that its cache has been seen
  llama_memory_clear(llama_get_memory(b.context.get()), true);
  ASSERT_EQ(llama_state_seq_set_data(b.context.get(), saved.data(), saved.size(), 0), saved.size());
  ASSERT_TRUE(cb.restore(0, saved, cursor));
  ASSERT_TRUE(b.feed(100));
  const auto r = must(cb.compress(0, way::in_place));
  EXPECT_TRUE(r.compressed);
  EXPECT_EQ(r.tokens_before, cursor.tokens + 100);
  EXPECT_EQ(cb.at(0).judged, 16U + 8 * ((300 - 16) / 32 - 1));
}

TEST(LlamaAdapter, TokensTakenBackAreNotMissed) {
  session s({});
  auto c = compressor_of(s, small_lag);
  ASSERT_TRUE(s.feed(200));
  must(c.compress(0));
  ASSERT_TRUE(s.feed(30));
  llama_memory_seq_rm(llama_get_memory(s.context.get()), 0, 210, -1);
  ASSERT_TRUE(s.feed(75));
  EXPECT_TRUE(must(c.compress(0, way::in_place)).compressed);
  bytes b = s.state();
  const auto saved = lagkv::llama::saved_sequence::parse(b);
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->positions().back(), 284);
  EXPECT_EQ(c.at(0).seen(), 285U);
}

TEST(LlamaAdapter, DamagedStatesAreRefused) {
  session s({.flash = false});
  ASSERT_TRUE(s.feed(40));
  const bytes whole = s.state();
  for (std::size_t n = 0; n < whole.size(); n += n < 600 ? 1 : 997) {
    bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_FALSE(lagkv::llama::saved_sequence::parse(cut)) << n;
  }
  bytes longer = whole;
  longer.push_back(1);
  EXPECT_FALSE(lagkv::llama::saved_sequence::parse(longer));
  for (std::size_t at = 0; at < 520; ++at) {  // any answer, but no crash (the sanitizers watch)
    bytes wrong = whole;
    wrong[at] = static_cast<std::uint8_t>(wrong[at] ^ 0xff);
    (void)lagkv::llama::saved_sequence::parse(wrong);
  }
}

}  // namespace
