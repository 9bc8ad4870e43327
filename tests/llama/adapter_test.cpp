// lagkv::llama on a real model: both ways to the cache give the same bytes, what they keep is what a plain array gives, what
// is recorded is the model's own attention, and what cannot be taken is refused with the sequence left as it was.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "model.hpp"
#include "versions.hpp"

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;

constexpr std::size_t layers = 6, kv_heads = 3, query_heads = 9, head_size = 64;  // of SmolLM2-135M's 30 layers

llama_model* shared_model() {
  static const support::owned_model model = support::load_first_layers(LAGKV_LLAMA_MODEL, layers);
  return model.get();
}

/// A context of the model with a probe, and tokens fed to it.
struct session {
  struct options {
    ggml_type type = GGML_TYPE_F16;
    ggml_type values = GGML_TYPE_COUNT;  // as the keys
    bool flash = true;
    std::uint32_t cells = 1024;
    std::uint32_t sequences = 1;
    std::function<bool(ggml_tensor*, bool)> host = {};  // a callback that was there before the probe
    std::function<void(llama_context_params&)> more = {};
    int different_tokens = 0;  // 0: as many as there are
  };

  explicit session(const options& o) : host(o.host), different_tokens(o.different_tokens) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = o.cells;
    params.n_batch = params.n_ubatch = 128;
    params.n_seq_max = o.sequences;
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = 2;
    params.type_k = o.type;
    params.type_v = o.values == GGML_TYPE_COUNT ? o.type : o.values;
    support::set_flash_attention(params, o.flash);
    if (o.more) o.more(params);
    if (host) {
      params.cb_eval = [](ggml_tensor* node, bool ask, void* self) { return static_cast<session*>(self)->host(node, ask); };
      params.cb_eval_user_data = this;
    }
    probe.attach(params);
    probe_callback = {params.cb_eval, params.cb_eval_user_data};
    params.cb_eval = [](ggml_tensor* node, bool ask, void* self) {
      auto& s = *static_cast<session*>(self);
      const bool answer = s.probe_callback.first(node, ask, s.probe_callback.second);
      s.nodes_asked_for += ask && answer ? 1 : 0;
      return answer;
    };
    params.cb_eval_user_data = this;
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
        const int p = first + i, which = different_tokens != 0 ? p % different_tokens : p;
        batch.token[i] = (which * 7919 + which / 13 * 104729 + 17) % (vocabulary - 100) + 50;
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
  std::function<bool(ggml_tensor*, bool)> host;
  int different_tokens;
  std::pair<ggml_backend_sched_eval_callback, void*> probe_callback;
  int nodes_asked_for = 0;
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
  const auto block = static_cast<std::size_t>(ggml_blck_size(m.type));
  const std::size_t unit = ggml_type_size(m.type), width = m.width / block, units = width / heads;
  bytes out(heads * cells.size() * units * unit);
  std::uint8_t* to = out.data();
  for (std::size_t c0 = 0; c0 < width; c0 += units)
    for (std::int32_t cell : cells)
      for (std::size_t c = c0; c < c0 + units; ++c, to += unit) {
        const auto i = static_cast<std::size_t>(cell);
        const std::size_t at = m.transposed ? c * m.pitch + i : i * m.pitch / block + c;
        std::memcpy(to, static_cast<const std::uint8_t*>(m.data) + at * unit, unit);
      }
  return out;
}

/// The same rows as ggml itself makes numbers of them, without the Hadamard matrix under which llama.cpp stores them.
std::vector<float> numbers_of(const bytes& rows, ggml_type type, std::size_t channels, std::size_t transform) {
  const std::size_t row = ggml_row_size(type, static_cast<std::int64_t>(channels)), n = rows.size() / row;
  std::vector<float> x(n * channels);
  if (type == GGML_TYPE_F32) std::memcpy(x.data(), rows.data(), rows.size());
  for (std::size_t i = 0; i < n && type != GGML_TYPE_F32; ++i)
    ggml_get_type_traits(type)->to_float(rows.data() + i * row, x.data() + i * channels, static_cast<std::int64_t>(channels));
  if (transform == 0) return x;
  std::vector<float> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t first = i / transform * transform;
    double sum = 0;
    for (std::size_t j = 0; j < transform; ++j)
      sum += (std::popcount((i - first) & j) % 2 == 0 ? 1.0 : -1.0) * static_cast<double>(x[first + j]);
    out[i] = static_cast<float>(sum / std::sqrt(static_cast<double>(transform)));
  }
  return out;
}

lagkv::tensor dense(std::vector<float>& x, std::size_t heads, std::size_t tokens) {
  const std::size_t channels = x.size() / heads / tokens;
  return lagkv::strided<float>(x.data(), {heads, channels},
                               {static_cast<std::ptrdiff_t>(tokens * channels), static_cast<std::ptrdiff_t>(channels)}, tokens);
}

constexpr const char* small_lag = "lagkv:sink=16,lag=32,ratio=0.25";

struct cache_case {
  ggml_type type;
  bool flash;
  ggml_type values = GGML_TYPE_COUNT;

  session::options options() const { return {.type = type, .values = values, .flash = flash}; }
  std::string name() const {
    return std::string(ggml_type_name(type)) + (values != GGML_TYPE_COUNT ? std::string("_") + ggml_type_name(values) : "") +
           (flash ? "_flash" : "_transposed");
  }
};

class EveryCache : public testing::TestWithParam<cache_case> {};

TEST_P(EveryCache, BothWaysGiveTheSameBytes) {
  session a(GetParam().options()), b(GetParam().options());
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
  session s(GetParam().options());
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
    const bytes k = rows_of(saved->keys(l), saved->cells(), kv_heads), v = rows_of(saved->values(l), saved->cells(), kv_heads);
    const auto& seen = s.probe.layers()[l];
    std::vector<float> wide_k = numbers_of(k, saved->keys(l).type, head_size, seen.keys.hadamard_block);
    std::vector<float> wide_v = numbers_of(v, saved->values(l).type, head_size, seen.values.hadamard_block);
    const auto& plan = plan_eviction(*policy, {dense(wide_k, kv_heads, 280), dense(wide_v, kv_heads, 280), 280}, {}, ws);
    ASSERT_EQ(plan.tokens_after(), left->tokens());
    for (auto [mine, theirs] : {std::pair{&k, &left->keys(l)}, std::pair{&v, &left->values(l)}}) {
      const bytes found = rows_of(*theirs, left->cells(), kv_heads);
      const std::size_t row = mine->size() / kv_heads / 280, n = left->tokens();
      for (std::size_t h = 0; h < kv_heads; ++h)
        for (std::size_t i = 0; i < n; ++i)
          ASSERT_EQ(std::memcmp(mine->data() + (h * 280 + plan.source(h, i)) * row, found.data() + (h * n + i) * row, row), 0)
              << "layer " << l << " head " << h << " row " << i;
    }
  }
}

TEST_P(EveryCache, GoesOnInHolesAndStaysPairedWithTheCache) {
  auto options = GetParam().options();
  options.cells = 256;
  session s(options);
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
  session s(GetParam().options());
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

TEST_P(EveryCache, DefragmentedRowsLieInAdjacentCellsAndGoOn) {
  session s(GetParam().options());
  auto c = compressor_of(s, small_lag);
  for (int chunk = 0; chunk < 4; ++chunk) {
    ASSERT_TRUE(s.feed(100));
    must(c.compress(0, way::in_place));
  }
  const auto highest = [&] {  // what attention reads up to
    const auto& cells = s.probe.caches()[0].table.sightings().back().cells;
    return static_cast<std::size_t>(cells.back()) + 1;
  };
  const bytes before = s.state();
  const std::size_t rows = c.at(0).tokens;
  ASSERT_GT(highest(), rows + 20) << "there are holes";
  ASSERT_TRUE(c.defragment(0));
  EXPECT_EQ(s.state(), before);
  EXPECT_EQ(c.at(0).tokens, rows);
  ASSERT_TRUE(s.feed(1));
  EXPECT_EQ(highest(), rows + 1);
  const bytes adjacent = s.state();
  ASSERT_TRUE(c.defragment(0)) << "nothing to do";
  EXPECT_EQ(s.state(), adjacent);
  ASSERT_TRUE(s.feed(90));
  EXPECT_TRUE(must(c.compress(0, way::in_place)).compressed);
  EXPECT_FALSE(c.defragment(1)) << "a sequence that there is not";
}

INSTANTIATE_TEST_SUITE_P(Llama, EveryCache,
                         testing::Values(cache_case{GGML_TYPE_F16, true}, cache_case{GGML_TYPE_F16, false},
                                         cache_case{GGML_TYPE_F32, true}, cache_case{GGML_TYPE_BF16, false},
                                         cache_case{GGML_TYPE_Q8_0, true, GGML_TYPE_Q4_0},
                                         cache_case{GGML_TYPE_Q8_0, false, GGML_TYPE_F16},
                                         cache_case{GGML_TYPE_Q5_0, true, GGML_TYPE_Q5_1}),
                         [](const auto& c) { return c.param.name(); });

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

TEST(LlamaAdapter, NumbersOfBlocksAreThoseOfGgml) {
  constexpr std::size_t n = 64 * 32;
  std::vector<float> x(n), theirs(n), mine(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = std::sin(static_cast<float>(i) * 1.7F) * static_cast<float>(1 + i / 32);
  for (ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1}) {
    bytes blocks(ggml_row_size(type, n));
    ggml_quantize_chunk(type, x.data(), blocks.data(), 0, 1, n, nullptr);
    ggml_get_type_traits(type)->to_float(blocks.data(), theirs.data(), n);
    for (auto target : lagkv::simd::all_targets) {
      if (!lagkv::simd::supported(target)) continue;
      const auto& kernels = lagkv::simd::kernels<lagkv::simd::widen_kernels>(target);
      kernels.widen(blocks.data(), *lagkv::llama::dtype_of_ggml(type), n, mine.data());
      for (std::size_t i = 0; i < n; ++i)  // where a sum is rounded once here and twice there, a unit in the last place
        ASSERT_NEAR(mine[i], theirs[i], type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1 ? 64 * 0x1p-23 : 0)
            << ggml_type_name(type) << " " << lagkv::simd::name(target) << " " << i;
    }
  }
}

TEST(LlamaAdapter, QuantisedCachesAreSeenUnderTheirTransform) {
  if (support::older_llama) GTEST_SKIP() << "this llama.cpp stores them without one";
  session all({.type = GGML_TYPE_Q8_0}), values({.values = GGML_TYPE_Q8_0}), none({});
  for (session* s : {&all, &values, &none}) ASSERT_TRUE(s->feed(20));
  for (std::size_t l = 0; l < layers; ++l) {
    EXPECT_EQ(all.probe.layers()[l].keys.hadamard_block, 64U);
    EXPECT_EQ(all.probe.layers()[l].values.hadamard_block, 64U);
    EXPECT_EQ(values.probe.layers()[l].keys.hadamard_block, 0U);
    EXPECT_EQ(values.probe.layers()[l].values.hadamard_block, 64U);
    EXPECT_EQ(none.probe.layers()[l].values.hadamard_block, 0U);
  }
  // So rotated back, keys are those of a cache of f16, but for their rounding.
  bytes a = all.state(), b = none.state();
  const auto x = lagkv::llama::saved_sequence::parse(a), y = lagkv::llama::saved_sequence::parse(b);
  ASSERT_TRUE(x && y);
  const auto quantised = numbers_of(rows_of(x->keys(0), x->cells(), kv_heads), GGML_TYPE_Q8_0, head_size, 64);
  const auto plain = numbers_of(rows_of(y->keys(0), y->cells(), kv_heads), GGML_TYPE_F16, head_size, 0);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    error += std::pow(static_cast<double>(quantised[i] - plain[i]), 2);
    size += std::pow(static_cast<double>(plain[i]), 2);
  }
  EXPECT_LT(std::sqrt(error / size), 0.01);
}

// ---- keys without their positions ----

/// Largest difference between layer 0's keys of one token at different positions, over the size of a key. Before RoPE they are
/// the same: nothing but the token has gone into them.
double spread_over_positions(session& s, bool inverse_rotated) {
  constexpr std::size_t different = 7, tokens = 250;
  EXPECT_TRUE(s.feed(tokens));
  bytes state = s.state();
  const auto saved = lagkv::llama::saved_sequence::parse(state);
  EXPECT_TRUE(saved) << saved.message();
  auto cached = saved->all_layers().at(0);
  cached.keys.hadamard_block = s.probe.layers()[0].keys.hadamard_block;
  const auto l = lagkv::llama::view(cached, kv_heads, saved->cells());
  EXPECT_TRUE(l) << l.message();
  const lagkv::llama::embedding& e = s.probe.embeddings().at(0);
  EXPECT_EQ(e.obstacle, "");
  EXPECT_EQ(e.channels, head_size);
  const lagkv::rope r = e.with_factors();
  EXPECT_EQ(check(r, head_size).message(), "");
  const lagkv::rotated how{&r, {}};
  lagkv::workspace ws;
  double worst = 0;
  for (std::size_t h = 0; h < kv_heads; ++h) {
    std::vector<float> rows;
    lagkv::for_each_row(inverse_rotated ? lagkv::pre_rope(l->keys, how, ws) : l->keys, h, {0, tokens}, ws,
                        [&](std::size_t, std::span<const float> row) { rows.insert(rows.end(), row.begin(), row.end()); });
    for (std::size_t t = different; t < tokens; ++t) {
      double apart = 0, size = 0;
      for (std::size_t c = 0; c < head_size; ++c) {
        const double first = rows[t % different * head_size + c];
        apart += std::pow(rows[t * head_size + c] - first, 2), size += first * first;
      }
      worst = std::max(worst, std::sqrt(apart / size));
    }
  }
  return worst;
}

TEST(LlamaEmbedding, RotatedBackATokensKeyIsTheSameWhereverItStands) {
  const auto linear = [](llama_context_params& p) {
    p.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_LINEAR, p.rope_freq_scale = 0.25F;
  };
  const auto yarn = [](llama_context_params& p) {
    p.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN, p.rope_freq_scale = 0.125F, p.yarn_orig_ctx = 256;
  };
  const auto base = [](llama_context_params& p) { p.rope_freq_base = 3000; };
  struct expected {
    session::options how;
    double most;
  };
  for (const auto& [how, most] : {expected{{.different_tokens = 7}, 0.003},
                                  {{.type = GGML_TYPE_F32, .different_tokens = 7}, 1e-3},
                                  {{.more = linear, .different_tokens = 7}, 0.003},
                                  {{.more = yarn, .different_tokens = 7}, 0.003},
                                  {{.more = base, .different_tokens = 7}, 0.003},
                                  {{.type = GGML_TYPE_Q8_0, .different_tokens = 7}, 0.03}}) {
    session s(how);
    ASSERT_TRUE(s.context);
    EXPECT_LT(spread_over_positions(s, true), most);
  }
  session s({.different_tokens = 7});
  EXPECT_GT(spread_over_positions(s, false), 0.3) << "or the test would show nothing";
}

TEST(LlamaEmbedding, IsThatOfTheModel) {
  session s({});
  ASSERT_TRUE(s.feed(3));
  ASSERT_EQ(s.probe.embeddings().size(), layers);
  char base[32] = {};
  ASSERT_GT(llama_model_meta_val_str(shared_model(), "llama.rope.freq_base", base, sizeof base), 0);
  for (const auto& e : s.probe.embeddings()) {
    EXPECT_EQ(e.obstacle, "");
    EXPECT_EQ(e.turns.base, std::stod(base));
    EXPECT_EQ(e.turns.dims, head_size);
    EXPECT_EQ(e.turns.pairs, lagkv::rope::pairing::neighbours);
    EXPECT_EQ(e.turns.position_scale, 1.0F);
    EXPECT_TRUE(e.factors.empty());
  }
}

TEST(LlamaEmbedding, WhatIsNotKnownIsNamedAndTheSequenceLeftAlone) {
  session full({}), empty({});
  const auto novelty = lagkv::parse("novelty:keep=0.5");
  const auto no_probe = lagkv::llama::compressor::make(full.context.get(), *novelty);
  ASSERT_FALSE(no_probe);
  EXPECT_EQ(no_probe.message(),
            "policy: reads keys as they were before RoPE: give the compressor a cache_probe, which sees their embedding");

  ASSERT_TRUE(full.feed(100));
  bytes state = full.state();
  ASSERT_EQ(llama_state_seq_set_data(empty.context.get(), state.data(), state.size(), 0), state.size());
  auto c = compressor_of(empty, "novelty:keep=0.5");
  const auto r = c.compress(0);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.message(), "rope: that of layer 0 has not been seen: decode a token, or give the probe another's embeddings");
  EXPECT_EQ(empty.state(), state);
  empty.probe.set_embeddings(full.probe.embeddings());
  EXPECT_TRUE(must(c.compress(0)).compressed);
  auto own = compressor_of(full, "novelty:keep=0.5");
  EXPECT_TRUE(must(own.compress(0, way::repack)).compressed);
  EXPECT_EQ(empty.state(), full.state());
}

TEST(LlamaAdapter, TypesThatCannotBeReadAreRefusedAndLeftAlone) {
  session s({.type = GGML_TYPE_IQ4_NL});
  ASSERT_TRUE(s.feed(120));
  const bytes before = s.state();
  auto c = compressor_of(s, small_lag);
  for (way how : {way::automatic, way::in_place, way::repack}) {
    const auto r = c.compress(0, how);
    ASSERT_FALSE(r);
    EXPECT_NE(r.message().find("iq4_nl: must be f32, f16, bf16, q8_0"), std::string::npos) << r.message();
  }
  EXPECT_EQ(before, s.state());
  EXPECT_EQ(c.at(0), lagkv::cursor{});
}

TEST(LlamaAdapter, BlocksThatCannotMoveAloneAreRefused) {
  const lagkv::llama::matrix columns{.type = GGML_TYPE_Q8_0, .width = 192, .pitch = 256, .transposed = true},
      narrow{.type = GGML_TYPE_Q4_0, .width = 3 * 80, .pitch = 3 * 80};
  EXPECT_EQ(lagkv::llama::check(columns, 3, "values").message(),
            "values: type q8_0, transposed: a block spans 32 tokens, which cannot move alone");
  EXPECT_EQ(lagkv::llama::check(narrow, 3, "keys").message(),
            "keys: heads of 80: must be a multiple of the 32 elements of a block of q4_0");
}

TEST(LlamaAdapter, ASelectorThatKeepsUnequalCountsIsRefusedAndNothingMoves) {
  session s({});
  ASSERT_TRUE(s.feed(120));
  const bytes before = s.state();
  auto policy = *lagkv::parse(small_lag);
  policy.select = [](std::span<const float>, std::size_t heads, const lagkv::candidates& d, lagkv::plan& out, lagkv::workspace&) {
    out.kept.clear();
    for (std::size_t h = 0; h < heads; ++h) {
      out.first[h] = out.kept.size();
      for (std::size_t i = 0; i <= h; ++i) out.kept.push_back(static_cast<std::uint32_t>(d.rows.begin + i));
    }
    out.first[heads] = out.kept.size();
  };
  auto c = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe);
  ASSERT_TRUE(c);
  for (way how : {way::in_place, way::repack}) EXPECT_FALSE(c->compress(0, how));
  EXPECT_EQ(before, s.state());
}

// Its first rows may be taken for the old ones, which they equal; what the old one dropped behind them is not counted.
TEST(LlamaAdapter, ANewSequenceThatBeginsLikeTheOldOneCountsItsOwnTokens) {
  for (const way how : {way::in_place, way::repack}) {
    session s({});
    auto c = compressor_of(s, small_lag);
    llama_memory_t memory = llama_get_memory(s.context.get());
    ASSERT_TRUE(s.feed(200));
    must(c.compress(0, how));
    EXPECT_EQ(c.at(0).seen(), 200U);
    for (const llama_pos stays : {0, 1, 10}) {  // none of its rows, its first one, a part of its sinks
      llama_memory_seq_rm(memory, 0, stays, -1);
      ASSERT_TRUE(s.feed(190 - stays));
      EXPECT_TRUE(must(c.compress(0, how)).compressed);
      EXPECT_EQ(c.at(0).seen(), 190U) << stays;
    }
  }
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
  ASSERT_TRUE(cb.restore(0, saved, ca.save(0)));
  ASSERT_TRUE(b.feed(100));
  const auto r = must(cb.compress(0, way::in_place));
  EXPECT_TRUE(r.compressed);
  EXPECT_EQ(r.tokens_before, cursor.tokens + 100);
  EXPECT_EQ(cb.at(0).compressed, 16U + 8 * ((300 - 16) / 32 - 1));
}

TEST(LlamaAdapter, ARestoredSequenceIsScoredByTheStatisticsOfAllItsKeys) {
  constexpr const char* again = "novelty:sink=4,recent=16,capacity=64";
  session a({});
  auto ca = compressor_of(a, again);
  ASSERT_TRUE(a.feed(150));
  ASSERT_TRUE(must(ca.compress(0, way::repack)).compressed);
  const bytes saved = a.state();
  const lagkv::llama::checkpoint beside = ca.save(0);
  const auto go_on = [&](session& s, lagkv::llama::compressor& c, const lagkv::llama::checkpoint* restored) {
    if (restored != nullptr) {
      llama_memory_clear(llama_get_memory(s.context.get()), true);
      EXPECT_EQ(llama_state_seq_set_data(s.context.get(), saved.data(), saved.size(), 0), saved.size());
      EXPECT_TRUE(c.restore(0, saved, *restored));
    }
    EXPECT_TRUE(s.feed(40));
    EXPECT_TRUE(must(c.compress(0, way::in_place)).compressed);
    return s.state();
  };
  session fresh({}), busy({.different_tokens = 5});
  auto cf = compressor_of(fresh, again), cb = compressor_of(busy, again);
  ASSERT_TRUE(fresh.feed(8));  // so that its cache has been seen
  ASSERT_TRUE(busy.feed(120));
  ASSERT_TRUE(must(cb.compress(0)).compressed);
  busy.different_tokens = 0;
  const bytes uninterrupted = go_on(a, ca, nullptr);
  EXPECT_EQ(go_on(fresh, cf, &beside), uninterrupted);
  EXPECT_EQ(go_on(busy, cb, &beside), uninterrupted);
  lagkv::llama::checkpoint without = beside;
  without.key_statistics.clear(), without.counted = 0;
  EXPECT_NE(go_on(fresh, cf, &without), uninterrupted) << "or the key statistics do not count here";
}

TEST(LlamaAdapter, KeyStatisticsOfAnotherModelAreRefused) {
  session s({});
  auto c = compressor_of(s, "novelty:sink=4,recent=16,capacity=64");
  ASSERT_TRUE(s.feed(100));
  const bytes before = s.state();
  lagkv::llama::checkpoint other;
  other.key_statistics.resize(7);
  ASSERT_TRUE(c.restore(0, before, other));
  EXPECT_EQ(c.compress(0).message(), "key statistics of 7 layers: must be those of 6");
  other.key_statistics.assign(layers, std::vector<double>(5));
  ASSERT_TRUE(c.restore(0, before, other));
  EXPECT_EQ(c.compress(0).message(), "key statistics of 5 numbers a layer: must be 387");
  EXPECT_EQ(s.state(), before);
}

/// After tokens were removed and shifted, rows are rotated back by their own positions: the plan is that of plain arrays to which
/// the positions are given.
TEST(LlamaAdapter, KeysAreRotatedBackByShiftedPositions) {
  for (const char* policy : {"novelty:keep=0.5", "key_diff:pre_rope=yes,capacity=100"}) {
    session s({.type = GGML_TYPE_F32});
    auto c = compressor_of(s, policy);
    ASSERT_TRUE(s.feed(180));
    if (std::string(policy).find("capacity") != std::string::npos) {
      ASSERT_TRUE(must(c.compress(0)).compressed);
      ASSERT_TRUE(s.feed(80));
    }
    llama_memory_t memory = llama_get_memory(s.context.get());
    const llama_pos last = llama_memory_seq_pos_max(memory, 0), end = last - 60;
    llama_memory_seq_rm(memory, 0, end - 40, end);
    llama_memory_seq_add(memory, 0, end, -1, -40);
    ASSERT_TRUE(s.feed(1));
    bytes b = s.state();
    const auto saved = lagkv::llama::saved_sequence::parse(b);
    ASSERT_TRUE(saved) << saved.message();
    const lagkv::llama::moved_rows moved = c.save(0).moved;
    const std::size_t n = saved->tokens(), compressed = moved.cells.size();
    std::vector<lagkv::plan> plans(layers);
    ASSERT_TRUE(must(c.compress(0, way::automatic, [&](std::size_t l, const lagkv::plan& p) { plans[l] = p; })).compressed);
    const auto ropes = s.probe.ropes(s.probe.layers(), head_size);
    ASSERT_TRUE(ropes) << ropes.message();
    lagkv::workspace ws;
    const lagkv::policy parsed = *lagkv::parse(policy);
    for (std::size_t l = 0; l < layers; ++l) {
      std::vector<std::uint32_t> positions;
      for (std::size_t h = 0; h < kv_heads; ++h)
        for (std::size_t row = 0; row < n; ++row)
          positions.push_back(row < compressed ? moved.positions[l][h * compressed + row]
                                               : static_cast<std::uint32_t>(saved->positions()[row]));
      lagkv::extras beside;
      beside.positions = {positions.data(), static_cast<std::ptrdiff_t>(n)};
      beside.rope = &(*ropes)[l];
      lagkv::layer layer{lagkv::llama::view(saved->keys(l), kv_heads, saved->cells()),
                         lagkv::llama::view(saved->values(l), kv_heads, saved->cells()), n};
      layer.extra = &beside;
      ASSERT_TRUE(check(parsed, layer)) << check(parsed, layer).message();
      const lagkv::plan& p = plan_eviction(parsed, layer, {.tokens = n, .compressed = compressed}, ws);
      ASSERT_EQ(p.kept, plans[l].kept) << policy << " layer " << l;
    }
  }
}

TEST(LlamaAdapter, MovedRowsOfAnotherSequenceAreRefused) {
  session s({});
  auto c = compressor_of(s, "novelty:sink=4,recent=16,capacity=64");
  ASSERT_TRUE(s.feed(100));
  ASSERT_TRUE(must(c.compress(0)).compressed);
  ASSERT_TRUE(s.feed(40));
  const bytes before = s.state();
  const lagkv::llama::checkpoint own = c.save(0);
  lagkv::llama::checkpoint other = own;
  other.moved.cells.pop_back();
  EXPECT_EQ(c.restore(0, before, other).message(), "checkpoint: moved rows: 47: must be the 48 that were compressed");
  other = own;
  other.moved = {};
  ASSERT_TRUE(c.restore(0, before, other));
  EXPECT_EQ(c.compress(0).message(), "checkpoint: moved rows: 0 of 0 layers: must be the 48 that were compressed, of 6");
  other = own;
  other.moved.positions[3].pop_back();
  EXPECT_EQ(c.restore(0, before, other).message(),
            "checkpoint: moved rows: 143 positions of layer 3: must be a multiple of the 48 rows");
  for (const std::size_t heads : {2U, 0U}) {
    other.moved.positions[3].resize(48 * heads);
    ASSERT_TRUE(c.restore(0, before, other));
    EXPECT_EQ(c.compress(0).message(),
              "checkpoint: moved rows: " + std::to_string(48 * heads) + " positions of layer 3: must be 144");
    EXPECT_EQ(s.state(), before);
    // Rows are taken out of what is there, also by whoever does not compress.
    llama_memory_seq_rm(llama_get_memory(s.context.get()), 0, 70, 75);
    EXPECT_EQ(c.save(0).moved.positions[3].size(), 43 * heads);
    ASSERT_TRUE(c.defragment(0));
    llama_memory_seq_rm(llama_get_memory(s.context.get()), 0, -1, -1);
    ASSERT_EQ(llama_state_seq_set_data(s.context.get(), before.data(), before.size(), 0), before.size());
  }
  EXPECT_EQ(s.state(), before);
  ASSERT_TRUE(c.restore(0, before, own));
  EXPECT_TRUE(must(c.compress(0)).compressed);
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

// ---- recorded attention ----

/// Sums over rows and heads: [layer][KV head][row].
using attention_sums = std::vector<std::vector<std::vector<double>>>;

attention_sums zeros(std::size_t rows) { return attention_sums(layers, {kv_heads, std::vector<double>(rows)}); }

/// What the probe has recorded.
attention_sums attention_of(session& s) {
  const std::size_t rows = s.probe.recorded().rows().size();
  attention_sums m = zeros(rows);
  for (std::size_t l = 0; l < layers; ++l) {
    const auto side = s.probe.recorded().beside(l).accumulated_attention;
    EXPECT_TRUE(side) << "layer " << l;
    for (std::size_t h = 0; h < kv_heads && side; ++h) m[l][h].assign(side.of(h), side.of(h) + rows);
  }
  return m;
}

/// Adds the attention of the last `queries` recorded queries to the rows there are, by a plain double loop over the keys in
/// the cache.
void add_by_hand(session& s, std::size_t queries, attention_sums& m) {
  lagkv::workspace ws;
  const auto rows = s.probe.recorded().rows();
  std::vector<std::int32_t> cells;
  for (const llama_pos p : rows) cells.push_back(s.probe.cell_of(p));
  for (std::size_t l = 0; l < layers; ++l) {
    const lagkv::extras e = s.probe.recorded().beside(l);
    ASSERT_GE(e.queries.capacity(), queries);
    const lagkv::tensor keys = lagkv::llama::view(s.probe.layers()[l].keys, kv_heads, cells);
    for (std::size_t q = 0; q < query_heads; ++q) {
      const std::size_t head = q / (query_heads / kv_heads);
      std::vector<std::vector<float>> k;
      lagkv::for_each_row(keys, head, {0, rows.size()}, ws,
                          [&](std::size_t, std::span<const float> row) { k.emplace_back(row.begin(), row.end()); });
      const std::size_t n = e.queries.capacity();
      lagkv::for_each_row(e.queries, q, {n - queries, n}, ws, [&](std::size_t i, std::span<const float> query) {
        const std::size_t sees = rows.size() - queries + i + 1;
        std::vector<double> w(sees);
        double sum = 0;
        for (std::size_t t = 0; t < sees; ++t) {
          double dot = 0;
          for (std::size_t c = 0; c < head_size; ++c) dot += static_cast<double>(query[c]) * static_cast<double>(k[t][c]);
          sum += w[t] = std::exp(dot / 8);
        }
        for (std::size_t t = 0; t < sees; ++t) m[l][head][t] += w[t] / sum * kv_heads / query_heads;
      });
    }
  }
}

/// Of each row, relative to what the rows of a head have on average.
double worst_difference(const attention_sums& a, const attention_sums& b) {
  double worst = 0;
  for (std::size_t l = 0; l < layers; ++l)
    for (std::size_t h = 0; h < kv_heads; ++h) {
      EXPECT_EQ(a[l][h].size(), b[l][h].size());
      double sum = 0;
      for (double x : a[l][h]) sum += x;
      for (std::size_t i = 0; i < a[l][h].size() && i < b[l][h].size(); ++i)
        worst = std::max(worst, std::abs(a[l][h][i] - b[l][h][i]) * static_cast<double>(a[l][h].size()) / sum);
    }
  return worst;
}

std::vector<float> queries_of(session& s, std::size_t layer) {
  lagkv::workspace ws;
  std::vector<float> all;
  const lagkv::tensor t = s.probe.recorded().beside(layer).queries;
  for (std::size_t q = 0; q < t.heads(); ++q)
    lagkv::for_each_row(t, q, {0, t.capacity()}, ws,
                        [&](std::size_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
  return all;
}

class EveryAttention : public testing::TestWithParam<cache_case> {};

TEST_P(EveryAttention, AccumulatedAttentionIsWhatTheModelAttendedTo) {
  session s(GetParam().options());
  s.probe.record({.queries = 300, .accumulated_attention = true});
  ASSERT_TRUE(s.feed(150) && s.feed(9) && s.feed(1) && s.feed(1));
  ASSERT_EQ(s.probe.recorded().obstacle(), "");
  attention_sums by_hand = zeros(161);
  add_by_hand(s, 161, by_hand);
  EXPECT_LT(worst_difference(by_hand, attention_of(s)), 1e-3);
}

TEST_P(EveryAttention, TheLastQueriesAreHeldWhateverTheBatches) {
  session a({.type = GetParam().type, .flash = GetParam().flash}), b({.type = GetParam().type, .flash = GetParam().flash});
  a.probe.record({.queries = 40});
  b.probe.record({.queries = 400});
  for (int n : {100, 7, 1, 1, 1, 130, 38, 1, 1}) {
    ASSERT_TRUE(a.feed(n) && b.feed(n));
    for (std::size_t l : {std::size_t{0}, layers - 1}) {
      const std::vector<float> few = queries_of(a, l), all = queries_of(b, l);
      const std::size_t held = few.size() / query_heads / head_size, seen = all.size() / query_heads / head_size;
      ASSERT_EQ(held, std::min<std::size_t>(seen, 40));
      for (std::size_t q = 0; q < query_heads; ++q)
        ASSERT_EQ(std::memcmp(few.data() + q * held * head_size, all.data() + ((q + 1) * seen - held) * head_size,
                              held * head_size * sizeof(float)),
                  0)
            << "after " << seen << " tokens, layer " << l << ", query head " << q;
    }
  }
}

/// Attention is recorded alike for a compression in place and through the state API.
void expect_both_ways_the_same(const session::options& options, const char* policy) {
  session a(options), b(options);
  auto in_place = compressor_of(a, policy), repacked = compressor_of(b, policy);
  ASSERT_TRUE(a.feed(120) && b.feed(120));
  ASSERT_EQ(a.state(), b.state()) << policy;
  const auto x = must(in_place.compress(0, way::in_place)), y = must(repacked.compress(0, way::repack));
  EXPECT_TRUE(x.compressed && x.in_place && y.compressed && !y.in_place) << policy;
  const std::size_t kept = std::string(policy).starts_with("fuse:lagkv") ? 4 + 2 * 16 + 32 + 20U : 60U;
  EXPECT_EQ(x.tokens_after, kept) << policy;
  EXPECT_EQ(y.tokens_after, kept) << policy;
  EXPECT_EQ(in_place.at(0), repacked.at(0)) << policy;
  EXPECT_EQ(a.state(), b.state()) << policy;
  auto &left = a.probe.recorded(), &right = b.probe.recorded();
  if (a.probe.what().any()) {
    EXPECT_TRUE(std::equal(left.rows().begin(), left.rows().end(), right.rows().begin(), right.rows().end())) << policy;
  }
  if (a.probe.what().accumulated_attention) {
    EXPECT_EQ(worst_difference(attention_of(a), attention_of(b)), 0) << policy;
  }
  for (std::size_t l = 0; l < layers && a.probe.what().queries > 0; ++l) EXPECT_EQ(queries_of(a, l), queries_of(b, l)) << policy;
  EXPECT_TRUE(a.feed(1) && b.feed(1));
}

TEST_P(EveryAttention, BothWaysGiveTheSameBytes) {
  std::vector<const char*> policies = {"fuse:h2o+snapkv,recent=32,keep=0.5"};
  if (GetParam().type == GGML_TYPE_F16 && GetParam().flash)
    policies = {"snapkv:window=32,keep=0.5",
                "h2o:keep=0.5",
                "tova:keep=0.5",
                "fuse:lagkv+snapkv,lag=32,keep=0.5",
                "snapkv:window=16,keep=0.5,select=chunks,chunk=8",
                "key_diff:capacity=60",
                "h2o:form=mean,capacity=60",
                "novelty:keep=0.5",
                "novelty:heads=own,capacity=60,every=8",
                "key_diff:pre_rope=yes,keep=0.5",
                "fuse:key_diff+h2o,heads=shared,keep=0.5"};
  for (const char* policy : policies) expect_both_ways_the_same(GetParam().options(), policy);
}

// A host that changes rows that stay: it sees all plans before rows move, and its changes are kept.
TEST_P(EveryAttention, WhatIsChangedBeforeRowsMoveStaysChangedBothWays) {
  session a(GetParam().options()), b(GetParam().options()), c(GetParam().options());
  const char* policy = "snapkv:window=32,keep=0.5";
  auto in_place = compressor_of(a, policy), repacked = compressor_of(b, policy), unchanged = compressor_of(c, policy);
  std::size_t told = 0;
  const auto zero_first_channel = [&](const lagkv::layer& l, const lagkv::plan& p, lagkv::workspace&) {
    ++told;
    ASSERT_GT(l.extra->offered(l.extra->queries), 0U);
    for (std::size_t head = 0; head < p.heads(); ++head)
      for (const std::uint32_t row : p.of(head)) {
        const lagkv::tile value = l.values.at(head, {row, row + std::size_t{1}});
        std::memset(value.data, 0, lagkv::size_of(l.values.type()));
      }
  };
  in_place.set_before_moving(zero_first_channel), repacked.set_before_moving(zero_first_channel);
  for (const int more : {120, 90}) {
    ASSERT_TRUE(a.feed(more) && b.feed(more) && c.feed(more));
    if (more == 120) {
      ASSERT_EQ(a.state(), b.state());
    }
    EXPECT_TRUE(must(in_place.compress(0, way::in_place)).compressed);
    EXPECT_TRUE(must(repacked.compress(0, way::repack)).compressed);
    EXPECT_TRUE(must(unchanged.compress(0, way::in_place)).compressed);
    EXPECT_EQ(in_place.at(0), repacked.at(0));
    // Later the cells lie differently, so that what is decoded differs in its last digits.
    if (more == 120) {
      EXPECT_EQ(a.state(), b.state());
    }
    EXPECT_NE(a.state(), c.state());
  }
  EXPECT_EQ(told, 4 * layers);
  EXPECT_FALSE(in_place.compress(0, way::in_place)->compressed);
  EXPECT_EQ(told, 4 * layers) << "nothing was due";
}

TEST(LlamaRecording, BothWaysGiveTheSameBytesOfQuantisedCaches) {
  for (const char* policy : {"fuse:h2o+snapkv,recent=32,keep=0.5", "snapkv:window=16,keep=0.5,select=chunks,chunk=8"})
    expect_both_ways_the_same({.type = GGML_TYPE_Q8_0, .values = GGML_TYPE_Q4_0}, policy);
}

INSTANTIATE_TEST_SUITE_P(Llama, EveryAttention,
                         testing::Values(cache_case{GGML_TYPE_F16, true}, cache_case{GGML_TYPE_F16, false},
                                         cache_case{GGML_TYPE_F32, true}, cache_case{GGML_TYPE_BF16, true}),
                         [](const auto& c) { return c.param.name(); });

void expect_the_models_own_softmax(ggml_type keys, double tolerance) {
  attention_sums own = zeros(141);
  session s({.type = keys, .values = GGML_TYPE_F32, .flash = false, .host = [&](ggml_tensor* node, bool ask) {
               const std::string_view name(node->name), prefix = "kq_soft_max-";
               if (name.substr(0, prefix.size()) != prefix) return false;
               if (ask) return true;
               const auto l = static_cast<std::size_t>(std::stoi(std::string(name.substr(prefix.size()))));
               const auto cells = static_cast<std::size_t>(node->ne[0]), tokens = static_cast<std::size_t>(node->ne[1]);
               const auto* w = static_cast<const float*>(node->data);
               for (std::size_t q = 0; q < query_heads; ++q)
                 for (std::size_t i = 0; i < tokens; ++i, w += cells)
                   for (std::size_t t = 0; t < std::min<std::size_t>(cells, 141); ++t)
                     own[l][q / 3][t] += static_cast<double>(w[t]) / 3;
               return true;
             }});
  s.probe.record({.accumulated_attention = true});
  ASSERT_TRUE(s.feed(130) && s.feed(10) && s.feed(1));
  EXPECT_LT(worst_difference(own, attention_of(s)), tolerance);
}

TEST(LlamaRecording, AccumulatedAttentionIsThatOfTheModelsOwnSoftmax) {
  if (support::older_llama) GTEST_SKIP() << "this llama.cpp gives the softmax another name";
  expect_the_models_own_softmax(GGML_TYPE_F32, 1e-3);
  expect_the_models_own_softmax(GGML_TYPE_Q8_0, 0.1);  // llama.cpp rounds the queries to q8_0, too
}

TEST(LlamaRecording, AsksForNothingUnlessAskedItself) {
  session s({});
  ASSERT_TRUE(s.feed(140));
  auto lagkv = compressor_of(s, small_lag);
  must(lagkv.compress(0));
  ASSERT_TRUE(s.feed(1));
  EXPECT_EQ(s.nodes_asked_for, 0);
  {
    auto snapkv = compressor_of(s, "snapkv:keep=0.5");
    ASSERT_TRUE(s.feed(1));
    EXPECT_EQ(s.nodes_asked_for, layers);
  }
  auto key_diff = compressor_of(s, "key_diff:keep=0.5");  // reads keys only: no longer
  ASSERT_TRUE(s.feed(1));
  EXPECT_EQ(s.nodes_asked_for, layers);
}

TEST(LlamaRecording, ChunksGiveTheAttentionOfOneFeed) {
  session whole({.type = GGML_TYPE_F32}), chunked({.type = GGML_TYPE_F32});
  for (session* s : {&whole, &chunked}) s->probe.record({.accumulated_attention = true});
  ASSERT_TRUE(whole.feed(120));
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(chunked.feed(20));
  // In deeper layers the sizes of batches alone change a quantised model's queries: there only the sums are compared.
  attention_sums first[2] = {attention_of(whole), attention_of(chunked)};
  for (attention_sums& m : first) std::fill(m.begin() + 1, m.end(), m[0]);
  EXPECT_LT(worst_difference(first[0], first[1]), 0.01);
  attention_sums total[2] = {attention_of(whole), attention_of(chunked)};
  for (const attention_sums& m : total)
    for (const auto& heads : m)
      for (const auto& rows : heads) {
        double sum = 0;
        for (double x : rows) sum += x;
        EXPECT_NEAR(sum, 120, 1e-3);  // each token gives away 1
      }
}

TEST(LlamaRecording, AccumulatedAttentionFollowsItsRows) {
  for (way how : {way::in_place, way::repack}) {
    session s({});
    auto c = compressor_of(s, "h2o:capacity=100,every=20");
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(s.feed(round == 0 ? 130 : 40));
      const attention_sums before = attention_of(s);
      std::vector<lagkv::plan> plans(layers);
      ASSERT_TRUE(must(c.compress(0, how, [&](std::size_t l, const lagkv::plan& p) { plans[l] = p; })).compressed);
      const attention_sums after = attention_of(s);
      for (std::size_t l = 0; l < layers; ++l)
        for (std::size_t h = 0; h < kv_heads; ++h) {
          ASSERT_EQ(after[l][h].size(), 100U);
          for (std::size_t i = 0; i < 100; ++i) ASSERT_EQ(after[l][h][i], before[l][h][plans[l].source(h, i)]);
        }
    }
    // In holes or repacked cells alike, new tokens add to the rows that are there.
    s.probe.record({.queries = 64, .accumulated_attention = true});
    attention_sums expected = attention_of(s);
    ASSERT_TRUE(s.feed(16));
    for (auto& heads : expected)
      for (auto& rows : heads) rows.resize(116);
    add_by_hand(s, 16, expected);
    EXPECT_LT(worst_difference(expected, attention_of(s)), 1e-3);
  }
}

TEST(LlamaRecording, IsPutBackWithASavedSequence) {
  session a({}), b({});
  auto ca = compressor_of(a, "fuse:h2o+snapkv,keep=0.5"), cb = compressor_of(b, "fuse:h2o+snapkv,keep=0.5");
  ASSERT_TRUE(a.feed(200) && b.feed(50));
  const bytes saved = a.state();
  const lagkv::llama::recording recording = a.probe.recorded();
  llama_memory_clear(llama_get_memory(b.context.get()), true);
  ASSERT_EQ(llama_state_seq_set_data(b.context.get(), saved.data(), saved.size(), 0), saved.size());
  ASSERT_TRUE(cb.restore(0, saved, {}));
  const auto without = cb.compress(0);
  ASSERT_FALSE(without);
  EXPECT_NE(without.message().find("0 rows have been seen up to position -1, there are 200 up to 199"), std::string::npos)
      << without.message();
  ASSERT_EQ(b.state(), saved);
  ASSERT_TRUE(cb.restore(0, saved, {.recorded = recording}));
  must(ca.compress(0)), must(cb.compress(0));
  EXPECT_EQ(a.state(), b.state());
  // And it goes on: what is recorded after a restore adds to it.
  ASSERT_TRUE(a.feed(120) && b.feed(120));
  ASSERT_EQ(a.state(), b.state());
  EXPECT_EQ(worst_difference(attention_of(a), attention_of(b)), 0);
}

TEST(LlamaRecording, APrefillForSeveralPoliciesServesEach) {
  session s({});
  s.probe.record({.queries = 64, .accumulated_attention = true});
  ASSERT_TRUE(s.feed(200));
  const bytes saved = s.state();
  const lagkv::llama::recording recording = s.probe.recorded();
  for (const char* policy : {"h2o:keep=0.5", small_lag, "snapkv:keep=0.5", "tova:keep=0.5"}) {
    llama_memory_clear(llama_get_memory(s.context.get()), true);
    ASSERT_EQ(llama_state_seq_set_data(s.context.get(), saved.data(), saved.size(), 0), saved.size());
    auto c = compressor_of(s, policy);
    ASSERT_TRUE(c.restore(0, saved, {.recorded = recording}));
    EXPECT_TRUE(must(c.compress(0)).compressed) << policy;
    EXPECT_TRUE(s.feed(3));
  }
}

TEST(LlamaRecording, RowsThatTheHostTakesBackAreForgotten) {
  session s({});
  auto c = compressor_of(s, "h2o:keep=0.5");
  s.probe.record({.queries = 64, .accumulated_attention = true});
  llama_memory_t memory = llama_get_memory(s.context.get());
  ASSERT_TRUE(s.feed(120));
  llama_memory_seq_rm(memory, 0, 80, -1);
  attention_sums expected = attention_of(s);  // what the rows taken back gave to others stays counted
  for (auto& heads : expected)
    for (auto& rows : heads) {
      rows.resize(80);
      rows.resize(110);
    }
  ASSERT_TRUE(s.feed(30));
  EXPECT_EQ(s.probe.recorded().rows().size(), 110U);
  add_by_hand(s, 30, expected);
  EXPECT_LT(worst_difference(expected, attention_of(s)), 1e-3);

  llama_memory_seq_rm(memory, 0, 100, -1);  // compressed before anything is decoded again
  EXPECT_EQ(must(c.compress(0, way::in_place)).tokens_after, 50U);
  EXPECT_EQ(s.probe.recorded().beside(0).queries.capacity(), 25U) << "those in the window; others may have lost their rows";

  llama_memory_clear(memory, false);  // from the beginning
  c.forget(0);
  ASSERT_TRUE(s.feed(60));
  expected = zeros(60);
  add_by_hand(s, 60, expected);
  EXPECT_LT(worst_difference(expected, attention_of(s)), 1e-3);
}

TEST(LlamaRecording, AttentionThatIsMoreThanASoftmaxIsRefused) {
  std::unique_ptr<ggml_context, decltype(&ggml_free)> graph(ggml_init({1 << 20, nullptr, true}), &ggml_free);
  ggml_context* c = graph.get();
  namespace nodes = lagkv::llama::detail;
  ggml_tensor* cache = ggml_new_tensor_2d(c, GGML_TYPE_F32, 192, 256);
  ggml_set_name(cache, "cache_k_l7");
  ggml_tensor* k = ggml_view_3d(c, cache, 64, 256, 3, 192 * 4, 64 * 4, 0);
  ggml_tensor* v = ggml_new_tensor_3d(c, GGML_TYPE_F16, 64, 256, 3);
  ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, 64, 5, 9);
  ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, 256, 64);
  ggml_tensor* sinks = ggml_new_tensor_1d(c, GGML_TYPE_F32, 9);

  const auto flash = [&](float bias, float cap) {
    return ggml_flash_attn_ext(c, q, ggml_cast(c, k, GGML_TYPE_F16), v, mask, 0.3F, bias, cap);
  };
  ggml_tensor* plain = flash(0, 0);
  EXPECT_EQ(nodes::attention_of(plain).layer, 7);
  EXPECT_EQ(nodes::attention_of(plain).queries, q);
  EXPECT_EQ(*nodes::scale_of(plain), 0.3F);
  EXPECT_NE(nodes::scale_of(flash(8, 0)).message().find("ALiBi"), std::string::npos);
  EXPECT_NE(nodes::scale_of(flash(0, 50)).message().find("caps"), std::string::npos);
  ggml_flash_attn_ext_add_sinks(plain, sinks);
  EXPECT_NE(nodes::scale_of(plain).message().find("sinks"), std::string::npos);

  ggml_tensor* kq = ggml_mul_mat(c, k, q);
  EXPECT_EQ(nodes::attention_of(kq).layer, 7);
  EXPECT_EQ(nodes::attention_of(ggml_mul_mat(c, v, q)).layer, -1);
  EXPECT_EQ(*nodes::scale_of(ggml_soft_max_ext(c, kq, mask, 0.3F, 0)), 0.3F);
  EXPECT_FALSE(nodes::scale_of(ggml_soft_max_ext(c, kq, mask, 0.3F, 8)));
  ggml_tensor* with_sinks = ggml_soft_max_ext(c, kq, mask, 0.3F, 0);
  ggml_soft_max_add_sinks(with_sinks, sinks);
  EXPECT_FALSE(nodes::scale_of(with_sinks));
}

TEST(LlamaRecording, StatisticsAreServedByTheRecentQueries) {
  session s({});
  auto policy = *lagkv::parse("key_diff:keep=0.5");
  policy.needs.query_statistics = true;
  policy.score = [](const lagkv::layer& l, std::size_t, lagkv::token_range, std::span<float> out, lagkv::workspace&) {
    for (float& score : out) score = static_cast<float>(l.extra->queries.capacity());
    EXPECT_EQ(l.extra->queries.capacity(), 256U);
    EXPECT_EQ(l.extra->scale, 0.125F);
  };
  auto c = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe);
  ASSERT_TRUE(c && s.feed(300));
  EXPECT_EQ(must(c->compress(0)).tokens_after, 150U);
}

/// The same for all layers.
std::vector<lagkv::query_statistics> made_up_statistics(std::size_t n) {
  lagkv::query_statistics s{query_heads, head_size, {}, {}, {}};
  for (std::size_t i = 0; i < query_heads * head_size; ++i) s.mean.push_back(static_cast<float>(i % 17) / 8 - 1);
  for (std::size_t i = 0; i < query_heads * head_size * head_size; ++i)
    s.covariance.push_back(i % head_size == i / head_size % head_size ? 1.0F + static_cast<float>(i % 5) : 0.0F);
  return std::vector<lagkv::query_statistics>(n, s);
}

TEST(LlamaRecording, CalibratedStatisticsAreThoseOfThePositionsToCome) {
  session s({});
  auto policy = *lagkv::parse("key_diff:keep=0.5");
  policy.needs.query_statistics = policy.needs.calibrated = true;
  std::vector<lagkv::query_statistics> found;
  policy.score = [&found](const lagkv::layer& l, std::size_t, lagkv::token_range, std::span<float> out, lagkv::workspace& ws) {
    lagkv::query_statistics seen{l.extra->query_mean.heads(), l.extra->query_mean.channels(), {}, {}, {}};
    for (std::size_t q = 0; q < seen.heads; ++q) {
      lagkv::for_each_row(l.extra->query_mean, q, {0, 1}, ws,
                          [&](std::size_t, auto row) { seen.mean.insert(seen.mean.end(), row.begin(), row.end()); });
      lagkv::for_each_row(l.extra->query_covariance, q, {0, seen.channels}, ws,
                          [&](std::size_t, auto row) { seen.covariance.insert(seen.covariance.end(), row.begin(), row.end()); });
    }
    found.push_back(seen);
    for (float& score : out) score = 0;
  };
  const auto statistics = made_up_statistics(layers);
  auto c = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe, statistics);
  ASSERT_TRUE(c && s.feed(150));
  EXPECT_EQ(must(c->compress(0)).tokens_after, 75U);
  EXPECT_EQ(s.nodes_asked_for, 0) << "nothing is recorded";
  const auto expected = moved(statistics[0], s.probe.embeddings()[0].with_factors(), 150, 512);
  ASSERT_EQ(found.size(), layers * kv_heads);
  for (const auto& f : found) {
    EXPECT_EQ(f.mean, expected.mean);
    EXPECT_EQ(f.covariance, expected.covariance);
  }
  EXPECT_NE(expected.mean, statistics[0].mean);
}

TEST(LlamaRecording, StatisticsThatAreNotTheModelsAreRefusedAndTheSequenceLeftAlone) {
  session s({});
  auto policy = *lagkv::parse("key_diff:keep=0.5");
  policy.needs.query_statistics = policy.needs.calibrated = true;
  const auto none = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.message(), "policy: reads statistics of the model's queries: give them to make() (calibration.hpp)");
  const auto blind = lagkv::llama::compressor::make(s.context.get(), policy, nullptr, made_up_statistics(layers));
  ASSERT_FALSE(blind);
  EXPECT_EQ(blind.message(),
            "policy: reads statistics of queries: give the compressor a cache_probe, which sees their embedding");

  ASSERT_TRUE(s.feed(100));
  const bytes before = s.state();
  auto narrow = made_up_statistics(layers), uneven = narrow;
  narrow[3].channels = 32, uneven[5].covariance.pop_back();
  for (auto& [given, why] :
       {std::pair{made_up_statistics(layers - 1), "query statistics of 5 layers: must be those of 6"},
        {narrow,
         "query statistics of layer 3: channels=32, 576 means, 36864 covariances, 0 of factors: must be those of 64 channels"},
        {uneven,
         "query statistics of layer 5: channels=64, 576 means, 36863 covariances, 0 of factors: must be those of 64 channels"}}) {
    auto c = lagkv::llama::compressor::make(s.context.get(), policy, &s.probe, given);
    ASSERT_TRUE(c) << c.message();
    for (way how : {way::in_place, way::repack}) EXPECT_EQ(c->compress(0, how).message(), why);
    EXPECT_EQ(s.state(), before);
  }
}

TEST(LlamaRecording, WhatWasNotRecordedIsNamed) {
  session s({});
  ASSERT_TRUE(s.feed(150));
  const bytes before = s.state();
  auto h2o = compressor_of(s, "h2o:keep=0.5");
  ASSERT_TRUE(s.feed(1));
  for (way how : {way::in_place, way::repack}) {
    const auto r = h2o.compress(0, how);
    ASSERT_FALSE(r);
    EXPECT_NE(r.message().find("recording: 1 rows have been seen up to position 150, there are 151"), std::string::npos)
        << r.message();
  }
  auto snapkv = compressor_of(s, "snapkv:window=8,keep=0.5");
  EXPECT_FALSE(snapkv.compress(0));
  ASSERT_TRUE(s.feed(3));
  EXPECT_TRUE(must(snapkv.compress(0)).compressed) << "fewer queries than its window serve";
}

TEST(LlamaRecording, WhatCannotBeRecordedIsRefused) {
  session one({});
  const auto snapkv = lagkv::parse("snapkv:keep=0.5");
  const auto no_probe = lagkv::llama::compressor::make(one.context.get(), *snapkv);
  ASSERT_FALSE(no_probe);
  EXPECT_EQ(no_probe.message(), "policy: reads queries: give the compressor a cache_probe");

  session unknown({.type = GGML_TYPE_IQ4_NL});
  auto c = compressor_of(unknown, "h2o:keep=0.5");
  ASSERT_TRUE(unknown.feed(100));
  const auto r = c.compress(0, way::in_place);
  ASSERT_FALSE(r);
  EXPECT_NE(r.message().find("cache: type iq4_nl: must be f32"), std::string::npos) << r.message();
  if (support::older_llama) return;  // its state is read first
  EXPECT_NE(r.message().find("recording: accumulated attention: cache: "), std::string::npos) << r.message();
}

TEST(LlamaAdapter, PoliciesOfUnevenSizesAreRefused) {
  session s({});
  ASSERT_TRUE(s.feed(120));
  const bytes before = s.state();
  for (auto [policy, why] : {std::pair{"key_diff:keep=0.5,select=adaptive", "different numbers of tokens a head"},
                             std::pair{"key_diff:keep=0.5,pyramid=20", "layers keep different numbers of tokens"}}) {
    const auto made = lagkv::llama::compressor::make(s.context.get(), *lagkv::parse(policy), &s.probe);
    ASSERT_FALSE(made) << policy;
    EXPECT_NE(made.message().find(why), std::string::npos) << made.message();
  }
  EXPECT_EQ(before, s.state());
}

TEST(LlamaAdapter, ABudgetInBytesIsThatOfAllLayers) {
  for (bool with_probe : {true, false}) {
    session s({});
    ASSERT_TRUE(s.feed(150));
    auto c =
        lagkv::llama::compressor::make(s.context.get(), *lagkv::parse("key_diff:budget_mb=0.4"), with_probe ? &s.probe : nullptr);
    ASSERT_TRUE(c) << c.message();
    const auto r = must(c->compress(0));
    EXPECT_EQ(r.tokens_after, 400000U / (layers * kv_heads * head_size * 2 * 2));
    EXPECT_LE(r.bytes_after, 400000U);
  }
  session s({});
  ASSERT_TRUE(s.feed(40));
  auto c = compressor_of(s, "key_diff:budget_mb=0.1");
  const auto r = c.compress(0);
  ASSERT_FALSE(r);
  EXPECT_NE(r.message().find("budget: holds 21 tokens of 4608 bytes"), std::string::npos) << r.message();
}

/// Keys of the model's layers by position, as they were decoded: [layer][head][position].
using keys_by_position = std::vector<std::vector<std::vector<std::vector<float>>>>;

/// Reads the rows that have come since.
void note_new_keys(session& s, keys_by_position& known) {
  lagkv::workspace ws;
  known.resize(layers, keys_by_position::value_type(kv_heads));
  const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(s.context.get()), 0);
  for (std::size_t l = 0; l < layers; ++l)
    for (std::size_t h = 0; h < kv_heads; ++h)
      for (auto p = static_cast<llama_pos>(known[l][h].size()); p <= last; ++p) {
        const std::int32_t cell = s.probe.cell_of(p);
        lagkv::for_each_row(lagkv::llama::view(s.probe.layers()[l].keys, kv_heads, {&cell, 1}), h, {0, 1}, ws,
                            [&](std::size_t, std::span<const float> row) { known[l][h].emplace_back(row.begin(), row.end()); });
      }
}

TEST(LlamaAdapter, ProtectedPositionsStay) {
  const std::vector<std::uint32_t> wanted = {90, 40, 41, 42, 200, 40};
  for (const char* policy : {"key_diff:capacity=80", "lagkv:lag=32,ratio=0.25", "h2o:capacity=90,every=8"})
    for (way how : {way::in_place, way::repack}) {
      session s({});
      auto c = compressor_of(s, policy);
      c.protect(0, wanted);
      const bool again = std::string(policy).find("capacity") != std::string::npos;
      keys_by_position original;
      std::vector<std::vector<std::vector<std::uint32_t>>> kept(layers, std::vector<std::vector<std::uint32_t>>(kv_heads));
      for (int n : {60, 50, 1, 60, 70}) {
        ASSERT_TRUE(s.feed(n));
        note_new_keys(s, original);
        const std::size_t dropped = c.at(0).dropped;  // when the plan is told, it has been carried out
        ASSERT_TRUE(must(c.compress(0, how, [&](std::size_t l, const lagkv::plan& p) {
                      for (std::size_t h = 0; h < kv_heads; ++h) {
                        auto& list = kept[l][h];
                        while (list.size() < p.tokens_before) list.push_back(static_cast<std::uint32_t>(list.size() + dropped));
                        lagkv::compact(list.data(), h, p);
                        list.resize(p.tokens_after(h));
                      }
                    })).tokens_after > 0);
      }
      std::vector<std::int32_t> cells;
      bytes b = s.state();
      const auto state = lagkv::llama::saved_sequence::parse(b);
      ASSERT_TRUE(state);
      lagkv::workspace ws;
      for (std::size_t l = 0; l < layers; ++l)
        for (std::size_t h = 0; h < kv_heads; ++h) {
          auto& list = kept[l][h];
          while (list.size() < state->tokens()) list.push_back(static_cast<std::uint32_t>(list.size() + c.at(0).dropped));
          ASSERT_EQ(list.size(), state->tokens());
          for (std::uint32_t p : wanted) ASSERT_NE(std::find(list.begin(), list.end(), p), list.end()) << policy << " " << p;
          // The list is right: the rows are the keys that were decoded at those positions.
          lagkv::for_each_row(lagkv::llama::view(state->keys(l), kv_heads, state->cells()), h, {0, list.size()}, ws,
                              [&](std::size_t i, std::span<const float> row) {
                                ASSERT_TRUE(std::equal(row.begin(), row.end(), original[l][h][list[i]].begin()));
                              });
          if (!again) continue;
          const lagkv::llama::moved_rows& moved = c.save(0).moved;
          const std::size_t n = moved.cells.size();
          ASSERT_EQ(n, c.at(0).compressed);
          ASSERT_TRUE(std::equal(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(n),
                                 moved.positions[l].begin() + static_cast<std::ptrdiff_t>(h * n)));
        }
    }
}

TEST(LlamaAdapter, ProtectionMayComeLate) {
  session s({});
  auto c = lagkv::llama::compressor::make(s.context.get(), *lagkv::parse("key_diff:capacity=98"));  // without a probe
  ASSERT_TRUE(c);
  ASSERT_TRUE(s.feed(100));
  ASSERT_TRUE(must(c->compress(0)).compressed);
  const auto kept = [&](std::size_t l, std::size_t h) {
    const lagkv::llama::moved_rows moved = c->save(0).moved;
    const auto begin = moved.positions[l].begin() + static_cast<std::ptrdiff_t>(h * moved.cells.size());
    return std::vector<std::uint32_t>(begin, begin + static_cast<std::ptrdiff_t>(moved.cells.size()));
  };
  std::vector<std::uint32_t> in_all = kept(0, 0);  // in each head
  for (std::size_t l = 0; l < layers; ++l)
    for (std::size_t h = 0; h < kv_heads; ++h) {
      const std::vector<std::uint32_t> here = kept(l, h);
      std::erase_if(in_all, [&](std::uint32_t p) { return std::find(here.begin(), here.end(), p) == here.end(); });
    }
  ASSERT_GT(in_all.size(), 8U);
  const std::vector<std::uint32_t> wanted(in_all.end() - 8, in_all.end());
  c->protect(0, wanted);
  ASSERT_TRUE(s.feed(100));
  ASSERT_TRUE(must(c->compress(0)).compressed);
  for (std::size_t l = 0; l < layers; ++l)
    for (std::size_t h = 0; h < kv_heads; ++h) {
      const std::vector<std::uint32_t> here = kept(l, h);
      for (const std::uint32_t p : wanted) ASSERT_NE(std::find(here.begin(), here.end(), p), here.end()) << p;
    }
}

/// Until 2025 a state began with the number of its streams.
TEST(LlamaAdapter, StatesOfTheOlderFormAreRead) {
  session s({.flash = false});
  ASSERT_TRUE(s.feed(40));
  bytes now = s.state();
  if (lagkv::llama::saved_sequence::header_of(now) == 0) GTEST_SKIP() << "this llama.cpp writes the older form";
  bytes older(now.begin() + lagkv::llama::state_header, now.end());
  const auto a = lagkv::llama::saved_sequence::parse(now), b = lagkv::llama::saved_sequence::parse(older);
  ASSERT_TRUE(a && b) << b.message();
  ASSERT_EQ(b->tokens(), 40U);
  EXPECT_TRUE(std::equal(a->positions().begin(), a->positions().end(), b->positions().begin()));
  lagkv::plan all;
  all.reset({0, 0}, 40, 3, 0);
  const std::vector<lagkv::plan> plans(a->layers(), all);
  EXPECT_EQ(b->rebuilt(plans), older);
  for (std::size_t n = 0; n < older.size(); n += n < 600 ? 1 : 997)
    EXPECT_FALSE(lagkv::llama::saved_sequence::parse(std::span(older).first(n))) << n;
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
