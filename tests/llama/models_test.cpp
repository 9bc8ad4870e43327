// Every kind of memory that llama.cpp has, on tiny models with random weights: a policy that keeps all changes no byte, in place
// and the state API give the same bytes, the rows that stay are those of a plain computation in double, and window layers and
// recurrent ones are left alone. docs/llama.md shows the table that it makes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/adapters/llama/calibration.hpp>
#include <lagkv/lagkv.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include "../support/oracle.hpp"
#include "random_model.hpp"

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;
using list = std::vector<std::uint32_t>;

struct kind {
  support::architecture model;
  std::string memory;  ///< in words, for the table
  bool has_values = true;
  std::string refused{};  ///< what make() says
};

const std::vector<kind>& kinds() {
  static const std::vector<std::pair<std::string, support::metadata>> experts = {
      {"expert_count", 2U}, {"expert_used_count", 2U}, {"expert_feed_forward_length", 64U}};
  static const std::vector<std::pair<std::string, support::metadata>> states = {{"ssm.conv_kernel", 4U},
                                                                                {"ssm.inner_size", 128U},
                                                                                {"ssm.state_size", 64U},
                                                                                {"ssm.time_step_rank", 2U},
                                                                                {"ssm.group_count", 2U}};
  static const std::vector<std::pair<std::string, support::metadata>> second_layer_recurrent = {
      {"attention.head_count", list{2, 0}}, {"attention.head_count_kv", list{2, 0}}};
  const auto with = [](std::initializer_list<std::vector<std::pair<std::string, support::metadata>>> parts) {
    std::vector<std::pair<std::string, support::metadata>> all;
    for (const auto& p : parts) all.insert(all.end(), p.begin(), p.end());
    return all;
  };
  static const std::vector<kind> all = {
      {{"llama"}, "attention"},
      {{"phi3"}, "attention; its windows are off in llama.cpp"},
      {{"openelm",
        {{"attention.head_count", list{2, 4}},
         {"attention.head_count_kv", list{1, 2}},
         {"feed_forward_length", list{96, 96}},
         {"attention.key_length", 32U},
         {"attention.value_length", 32U}}},
       "attention, layers of 1 and 2 KV heads"},
      {{"gemma3"}, "windows of 32 and attention"},
      {{"gemma4",
        {{"block_count", 5U},
         {"embedding_length_per_layer_input", 32U},
         {"attention.shared_kv_layers", 0U},
         {"attention.key_length_swa", 32U},
         {"attention.value_length_swa", 32U},
         {"rope.freq_base_swa", 1e4F},
         {"attention.sliding_window_pattern", list{1, 1, 1, 1, 0}}}},
       "windows of 32 and attention"},
      {{"olmo2"}, "windows of 32 and attention"},
      {{"cohere2", {{"logit_scale", 1.0F}}}, "windows of 32 and attention without RoPE"},
      {{"gpt-oss", experts}, "windows of 32 and attention, sinks of its own"},
      {{"llama4", with({experts, {{"block_count", 4U}, {"interleave_moe_layer_step", 2U}}})},
       "chunks of 8192 and attention without RoPE"},
      {{"qwen2vl"}, "attention, M-RoPE"},
      {{"deepseek2", with({experts,
                           {{"embedding_length", 128U},
                            {"attention.head_count", 1U},
                            {"attention.head_count_kv", 1U},
                            {"leading_dense_block_count", 1U},
                            {"attention.key_length", 576U},
                            {"attention.value_length", 512U},
                            {"attention.key_length_mla", 192U},
                            {"attention.value_length_mla", 128U},
                            {"rope.dimension_count", 64U},
                            {"attention.q_lora_rank", 64U},
                            {"attention.kv_lora_rank", 512U},
                            {"expert_shared_count", 1U},
                            {"expert_weights_scale", 1.0F},
                            {"expert_gating_func", 2U}}})},
       "MLA: one latent row, no values",
       false},
      {{"lfm2", with({second_layer_recurrent, {{"shortconv.l_cache", 3U}, {"attention.sliding_window", 0U}}})},
       "attention and short convolutions"},
      {{"granitehybrid",
        with({second_layer_recurrent,
              states,
              {{"logit_scale", 1.0F}, {"residual_scale", 1.0F}, {"embedding_scale", 1.0F}, {"attention.scale", 0.2F}}})},
       "attention and Mamba-2"},
      {{"jamba", with({second_layer_recurrent, states, experts, {{"ssm.state_size", 16U}}})}, "attention and Mamba"},
      {{"falcon-h1", states}, "attention beside Mamba-2 in each layer"},
      {{"nemotron_h", with({states,
                            {{"block_count", 3U},
                             {"attention.head_count", list{2, 0, 2}},
                             {"attention.head_count_kv", list{2, 0, 2}},
                             {"feed_forward_length", list{0, 0, 96}}}})},
       "attention and Mamba-2"},
      {{"qwen35", with({states,
                        {{"full_attention_interval", 2U},
                         {"ssm.inner_size", 256U},
                         {"ssm.state_size", 128U},
                         {"rope.dimension_count", 32U}}})},
       "attention and gated delta nets, M-RoPE"},
      {{"t5", {{"attention.relative_buckets_count", 32U}, {"decoder_start_token_id", 0U}}},
       "encoder, and a decoder with a bias by distance"},
      {{"t5encoder", {{"attention.relative_buckets_count", 32U}}},
       "encoder alone",
       true,
       "model: keeps no tokens: an encoder has no cache"},
      {{"mamba", with({states, {{"ssm.state_size", 16U}}})},
       "recurrent",
       true,
       "model: has recurrent memory, no cache of keys and values"},
  };
  return all;
}

struct options {
  bool flash = true;
  bool whole_windows = true;  ///< swa_full: the cache of window layers is as large as the other
};

struct session {
  session(llama_model* model, const options& o) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512, params.n_batch = params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = o.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.swa_full = o.whole_windows;
    probe.attach(params);
    context.reset(llama_init_from_model(model, params));
  }

  bool feed(int n) {
    const bool encodes = fed == 0 && llama_model_has_encoder(llama_get_model(context.get()));
    if (encodes && llama_encode(context.get(), batch_of(next(20))) != 0) return false;
    for (; n > 0; n -= 40)
      if (llama_decode(context.get(), batch_of(next((std::min)(n, 40)))) != 0) return false;
    return true;
  }

  std::vector<llama_token>& next(int n) {
    tokens.resize(static_cast<std::size_t>(n));
    for (llama_token& t : tokens) t = static_cast<llama_token>(fed++ * 7919 % support::random_vocabulary);
    return tokens;
  }

  static llama_batch batch_of(std::vector<llama_token>& all) {
    return llama_batch_get_one(all.data(), static_cast<std::int32_t>(all.size()));
  }

  bytes state() const {
    bytes b(llama_state_seq_get_size(context.get(), 0));
    EXPECT_EQ(llama_state_seq_get_data(context.get(), b.data(), b.size(), 0), b.size());
    return b;
  }

  lagkv::result<lagkv::llama::compressor> compressor(const std::string& policy) {
    return lagkv::llama::compressor::make(context.get(), *lagkv::parse(policy), &probe);
  }

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  std::uint32_t fed = 0;
  std::vector<llama_token> tokens;
  lagkv::llama::cache_probe probe;
  std::unique_ptr<llama_context, free_context> context;
};

std::string lag_policy(const kind& k, const std::string& ratio) {
  return "lagkv:sink=4,lag=16,ratio=" + ratio + (k.has_values ? "" : ",value_weight=0");
}

llama_model* model_of(const kind& k) { return support::made_once(k.model); }

class Models : public testing::TestWithParam<std::tuple<std::size_t, bool, bool>> {
 protected:
  const kind& model_kind() const { return kinds()[std::get<0>(GetParam())]; }
  options how() const { return {std::get<1>(GetParam()), std::get<2>(GetParam())}; }
};

/// The first cache of a state, whatever follows.
lagkv::result<lagkv::llama::saved_sequence> parse(bytes& state) {
  return lagkv::llama::saved_sequence::parse(state, lagkv::llama::saved_sequence::unknown_rest);
}

support::cube cube_of(const lagkv::llama::matrix& m, std::span<const std::int32_t> cells, std::size_t heads) {
  support::cube x(heads, cells.size(), m.width / heads);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t row = 0; row < cells.size(); ++row)
      for (std::size_t c = 0; c < x.channels; ++c) {
        const std::size_t cell = static_cast<std::size_t>(cells[row]), channel = h * x.channels + c;
        ggml_fp16_t half = 0;
        std::memcpy(&half,
                    static_cast<const char*>(m.data) + 2 * (m.transposed ? channel * m.pitch + cell : cell * m.pitch + channel),
                    2);
        x.row(h, row)[c] = ggml_fp16_to_fp32(half);
      }
  return x;
}

TEST_P(Models, KeepingAllChangesNoByte) {
  const kind& k = model_kind();
  session s(model_of(k), how());
  ASSERT_TRUE(s.context);
  auto c = s.compressor(lag_policy(k, "1"));
  if (!k.refused.empty()) {
    ASSERT_FALSE(c);
    EXPECT_EQ(c.message(), k.refused);
    return;
  }
  ASSERT_TRUE(c) << c.message();
  ASSERT_TRUE(s.feed(200));
  const bytes before = s.state();
  for (const way w : {way::automatic, way::repack}) {
    const auto r = c->compress(0, w);
    ASSERT_TRUE(r) << r.message();
    EXPECT_EQ(r->tokens_after, 200U);
    EXPECT_EQ(s.state(), before);
  }
}

TEST_P(Models, BothWaysGiveTheSameBytesAndGoOn) {
  const kind& k = model_kind();
  if (!k.refused.empty()) return;
  session a(model_of(k), how()), b(model_of(k), how());
  ASSERT_TRUE(a.feed(200) && b.feed(200));
  auto in_place = a.compressor(lag_policy(k, "0.5")), repacked = b.compressor(lag_policy(k, "0.5"));
  ASSERT_TRUE(in_place && repacked);
  const bytes before = a.state();
  const auto x = in_place->compress(0, way::in_place), y = repacked->compress(0, way::repack);
  ASSERT_TRUE(y) << y.message();
  EXPECT_EQ(y->tokens_after, 112U);
  if (x) {
    EXPECT_EQ(x->tokens_after, y->tokens_after);
    EXPECT_EQ(x->bytes_after, y->bytes_after);
    if (how().whole_windows && llama_model_n_swa(model_of(k)) > 0) {
      // The window cache holds cells that no window sees any more; in place frees those that were freed in the other cache.
      bytes m = a.state(), r = b.state();
      const auto p = parse(m), q = parse(r);
      ASSERT_TRUE(p && q);
      EXPECT_EQ(p->tokens(), q->tokens());
      for (std::size_t l = 0; l < p->layers(); ++l)
        for (std::size_t i = 0; i < p->tokens(); ++i)
          ASSERT_TRUE(same_row(p->keys(l), p->cells()[i], q->keys(l), q->cells()[i])) << "layer " << l << " row " << i;
    } else {
      EXPECT_EQ(a.state(), b.state());
    }
  } else {
    EXPECT_EQ(a.state(), before) << x.message();
    ASSERT_TRUE(in_place->compress(0)) << "automatic must fall back";
    EXPECT_EQ(a.state(), b.state());
  }
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(a.feed(80) && b.feed(80));
    const auto more = repacked->compress(0, way::automatic);
    ASSERT_TRUE(more) << more.message();
    EXPECT_TRUE(more->compressed);
    ASSERT_TRUE(in_place->compress(0));
    EXPECT_EQ(in_place->at(0), repacked->at(0));
  }
}

TEST_P(Models, RowsThatStayAreThoseOfADoubleComputation) {
  const kind& k = model_kind();
  if (!k.refused.empty()) return;
  session s(model_of(k), how());
  ASSERT_TRUE(s.feed(200));
  bytes before = s.state();
  auto c = s.compressor(lag_policy(k, "0.5"));
  ASSERT_TRUE(c);
  const auto done = c->compress(0);
  ASSERT_TRUE(done) << done.message();
  bytes after = s.state();
  const auto was = parse(before), is = parse(after);
  ASSERT_TRUE(was) << was.message();
  ASSERT_TRUE(is) << is.message();
  ASSERT_EQ(was->tokens(), 200U);
  ASSERT_EQ(is->tokens(), 112U);
  for (std::size_t l = 0; l < was->layers(); ++l) {
    const std::size_t heads = s.probe.caches()[0].layers.size() == was->layers() ? s.probe.caches()[0].layers[l].heads
                                                                                 : s.probe.caches()[1].layers[l].heads;
    ASSERT_GT(heads, 0U);
    const support::cube keys = cube_of(was->keys(l), was->cells(), heads), left = cube_of(is->keys(l), is->cells(), heads);
    const support::cube values = k.has_values ? cube_of(was->values(l), was->cells(), heads) : keys;
    for (std::size_t h = 0; h < heads; ++h) {
      // 4 sinks, then 12 partitions of 16, of which 11 are judged: 8 of each stay.
      const support::oracle_options o{.lag = 16, .value_weight = k.has_values ? 1.0 : 0.0};
      const std::vector<double> scores = lagkv_scores(keys, values, h, 4, 11, o);
      std::size_t row = 4;
      for (std::size_t p = 0; p < 11; ++p) {
        std::vector<double> sorted(scores.begin() + static_cast<std::ptrdiff_t>(16 * p),
                                   scores.begin() + static_cast<std::ptrdiff_t>(16 * p + 16));
        std::sort(sorted.rbegin(), sorted.rend());
        std::size_t from = 4 + 16 * p;
        for (std::size_t i = 0; i < 8; ++i, ++row, ++from) {
          while (from < 4 + 16 * (p + 1) && std::memcmp(left.row(h, row), keys.row(h, from), keys.channels * sizeof(float)) != 0)
            ++from;
          ASSERT_LT(from, 4 + 16 * (p + 1)) << "layer " << l << " head " << h << " row " << row << " is none of its partition";
          ASSERT_GE(scores[from - 4], sorted[7] - 1e-5) << "layer " << l << " head " << h << " row " << from;
        }
      }
    }
  }
}

std::string name_of(const testing::TestParamInfo<std::tuple<std::size_t, bool, bool>>& info) {
  std::string name = kinds()[std::get<0>(info.param)].model.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name + (std::get<1>(info.param) ? "_flash" : "_transposed") + (std::get<2>(info.param) ? "" : "_short_windows");
}

INSTANTIATE_TEST_SUITE_P(Llama, Models,
                         testing::Combine(testing::Range<std::size_t>(0, kinds().size()), testing::Bool(), testing::Bool()),
                         name_of);

/// "yes", or why not.
std::string outcome(const kind& k, bool flash, way w) {
  session s(model_of(k), {.flash = flash, .whole_windows = false});
  auto c = s.compressor(lag_policy(k, "0.5"));
  if (!c) return "no: " + c.message();
  if (!s.feed(200)) return "decode failed";
  const auto r = c->compress(0, w);
  return r ? "yes" : "no: " + r.message();
}

std::string table() {
  std::ostringstream out;
  out << "| architecture | its layers | in place | without flash attention | through the state API |\n|---|---|---|---|---|\n";
  for (const kind& k : kinds())
    out << "| " << k.model.name << " | " << k.memory << " | " << outcome(k, true, way::in_place) << " | "
        << outcome(k, false, way::in_place) << " | " << outcome(k, true, way::repack) << " |\n";
  return out.str();
}

TEST(ModelTable, IsThatOfTheDocs) {
  std::ifstream file(LAGKV_LLAMA_PAGE);
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_NE(page.str().find(table()), std::string::npos) << "docs/llama.md must hold:\n" << table();
}

// Layers with a window see only part of a text and have a RoPE of their own: what is counted is of the others alone.
TEST(Calibration, IsOfTheLayersWithFullAttention) {
  constexpr std::size_t text = 40;
  constexpr double base = 1e6;  // llama.cpp gives the window layers of Gemma 3 10,000
  const support::owned_model model = support::random_model({"gemma3", {{"rope.freq_base", static_cast<float>(base)}}});
  session s(model.get(), {.flash = true, .whole_windows = false});
  lagkv::llama::importance_calibration counted(s.probe, text);
  ASSERT_TRUE(s.feed(2 * text + 8));
  ASSERT_TRUE(counted.add()) << counted.add().message();
  ASSERT_EQ(s.probe.layers().size(), 1U);
  EXPECT_EQ(s.probe.layers()[0].id, 1);
  ASSERT_EQ(counted.maps().size(), 1U);
  const auto ropes = s.probe.ropes(s.probe.layers(), 32);
  ASSERT_TRUE(ropes) << ropes.message();
  EXPECT_EQ((*ropes)[0].base, base);

  // The same of what the state holds.
  bytes state = s.state();
  const auto saved = parse(state);
  ASSERT_TRUE(saved) << saved.message();
  std::vector<std::int32_t> rows(saved->tokens());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int32_t>(i);
  support::cube keys = cube_of(saved->all_layers()[0].keys, rows, 2), values = cube_of(saved->all_layers()[0].values, rows, 2);
  const lagkv::extras beside = s.probe.recorded().beside(0);
  const lagkv::shape shape{2, 32};
  const lagkv::strides strides{static_cast<std::ptrdiff_t>(rows.size() * 32), 32};
  const lagkv::layer l{lagkv::strided<float>{keys.x.data(), shape, strides, rows.size()},
                       lagkv::strided<float>{values.x.data(), shape, strides, rows.size()}, rows.size(), &beside};
  lagkv::workspace ws;
  lagkv::importance_fit fit(2, 32, 32);
  for (std::size_t head = 0; head < 2; ++head) {
    const auto most = lagkv::most_attention(l, head, text, ws);
    ASSERT_TRUE(most) << most.message();
    ASSERT_TRUE(fit.add(lagkv::pre_rope(l.keys, {&(*ropes)[0], {}}, ws), l.values, head, {4, text}, *most, ws));
  }
  const lagkv::importance_map found = counted.maps()[0], wanted = fit.map();
  ASSERT_EQ(found.weights.size(), wanted.weights.size());
  for (std::size_t i = 0; i < wanted.weights.size(); ++i) EXPECT_NEAR(found.weights[i], wanted.weights[i], 1e-4) << i;

  lagkv::llama::calibration queries(s.probe, 200);
  llama_memory_clear(llama_get_memory(s.context.get()), true);
  ASSERT_TRUE(s.feed(150));
  ASSERT_TRUE(queries.add()) << queries.add().message();
  ASSERT_EQ(queries.statistics(4).size(), 1U);
  for (const char* policy : {"kvzap:sink=4,keep=0.5", "expected_attention:sink=4,keep=0.5,calibrated=yes"}) {
    auto c = lagkv::llama::compressor::make(s.context.get(), *lagkv::parse(policy, lagkv::methods_with_eigen()), &s.probe,
                                            queries.statistics(4), counted.maps());
    ASSERT_TRUE(c) << c.message();
    const auto r = c->compress(0);
    ASSERT_TRUE(r) << r.message();
    EXPECT_LT(r->tokens_after, r->tokens_before);
  }
}

TEST(Calibration, IsRefusedWhereWindowLayersCannotBeToldApart) {
  session s(support::made_once({"gemma3"}), {.flash = true, .whole_windows = true});
  lagkv::llama::calibration queries(s.probe, 200);
  ASSERT_TRUE(s.feed(100));
  EXPECT_EQ(queries.add().message(),
            "calibration: layers with a window have as many cells as the others: find_recorded_cache() tells them apart");
  ASSERT_TRUE(lagkv::llama::find_recorded_cache(s.context.get(), s.probe));
  EXPECT_TRUE(queries.add()) << queries.add().message();
  ASSERT_EQ(queries.statistics(4).size(), 1U);
  ASSERT_EQ(s.probe.layers().size(), 1U);
  EXPECT_EQ(s.probe.layers()[0].id, 1) << "the one with full attention";
}

// As a host does that reads a prompt once, and compresses it by several policies in other contexts.
TEST(Recorded, IsOfTheLayersWithFullAttentionBeforeThereIsACompressor) {
  for (const char* name : {"gemma3", "olmo2"})
    for (const bool whole : {true, false})
      for (const bool flash : {true, false}) {
        SCOPED_TRACE(std::string(name) + (whole ? ", windows as large as the rest" : ", small windows") +
                     (flash ? ", flash" : ""));
        const options how{.flash = flash, .whole_windows = whole};
        llama_model* model = support::made_once({name});
        const auto snapkv = lagkv::parse("snapkv:window=16,keep=0.5");
        session read(model, how), other(model, how), direct(model, how);
        read.probe.record({.queries = 16});
        ASSERT_TRUE(read.feed(200) && other.feed(1));
        ASSERT_TRUE(lagkv::llama::find_recorded_cache(read.context.get(), read.probe));
        const lagkv::llama::recording recorded = read.probe.recorded();
        const bytes state = read.state();
        llama_memory_clear(llama_get_memory(other.context.get()), true);
        ASSERT_EQ(llama_state_seq_set_data(other.context.get(), state.data(), state.size(), 0), state.size());
        auto restored = lagkv::llama::compressor::make(other.context.get(), *snapkv, &other.probe);
        ASSERT_TRUE(restored) << restored.message();
        ASSERT_TRUE(restored->restore(0, state, {.recorded = recorded}));
        const auto done = restored->compress(0);
        ASSERT_TRUE(done) << done.message();

        auto alone = lagkv::llama::compressor::make(direct.context.get(), *snapkv, &direct.probe);
        ASSERT_TRUE(alone) << alone.message();
        ASSERT_TRUE(direct.feed(200));
        const auto same = alone->compress(0);
        ASSERT_TRUE(same) << same.message();
        EXPECT_EQ(done->tokens_after, same->tokens_after);
        EXPECT_LT(done->tokens_after, 200U);
        bytes a = other.state(), b = direct.state();
        const auto x = parse(a), y = parse(b);
        ASSERT_TRUE(x && y);
        for (std::size_t l = 0; l < x->layers(); ++l)
          for (std::size_t i = 0; i < x->tokens(); ++i)
            ASSERT_TRUE(same_row(x->keys(l), x->cells()[i], y->keys(l), y->cells()[i])) << "layer " << l << " row " << i;
      }
}

}  // namespace
