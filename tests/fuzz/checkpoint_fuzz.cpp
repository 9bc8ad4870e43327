// A llama.cpp sequence is restored from a state and a checkpoint of anyone's making, then decodes and is compressed. On a tiny
// model with random weights.
#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "input.hpp"
#include "tests/llama/random_model.hpp"

namespace {

using fuzz::expect;
using bytes = std::vector<std::uint8_t>;

constexpr llama_seq_id sequence = 0;
constexpr const char* policies[] = {"lagkv:sink=2,lag=8,ratio=0.5", "key_diff:capacity=40,every=8", "h2o:capacity=40,every=8",
                                    "novelty:keep=0.5", "key_diff:pre_rope=yes,capacity=48"};

/// A context, a policy at work in it, and what a host has saved of a sequence that it compressed.
struct host {
  explicit host(const char* text) : policy(*lagkv::parse(text)) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256, params.n_batch = params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    probe.attach(params);
    static const auto model = support::random_model({"llama"});
    context.reset(llama_init_from_model(model.get(), params));
    begin();
    for (const int n : {50, 20}) {
      expect(feed(n));
      expect(static_cast<bool>(compressor->compress(sequence)));
    }
    saved = compressor->save(sequence);
    state.resize(llama_state_seq_get_size(context.get(), sequence));
    expect(llama_state_seq_get_data(context.get(), state.data(), state.size(), sequence) == state.size());
  }

  void begin() {
    llama_memory_clear(memory(), true);
    auto made = lagkv::llama::compressor::make(context.get(), policy, &probe);
    expect(static_cast<bool>(made));
    compressor = std::make_unique<lagkv::llama::compressor>(std::move(*made));
  }

  llama_memory_t memory() const { return llama_get_memory(context.get()); }

  /// False where there is no room.
  bool feed(int n) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    const llama_pos first = llama_memory_seq_pos_max(memory(), sequence) + 1;
    for (int i = 0; i < n; ++i, ++batch.n_tokens) {
      batch.token[i] = (first + i) % 1000 * 31 % static_cast<int>(support::random_vocabulary);
      batch.pos[i] = first + i, batch.n_seq_id[i] = 1, batch.seq_id[i][0] = sequence, batch.logits[i] = 0;
    }
    const int failed = first < 0 ? 1 : llama_decode(context.get(), batch);
    llama_batch_free(batch);
    return failed == 0;
  }

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  lagkv::policy policy;
  lagkv::llama::cache_probe probe;
  std::unique_ptr<llama_context, free_context> context;
  std::unique_ptr<lagkv::llama::compressor> compressor;
  lagkv::llama::checkpoint saved;
  bytes state;
};

host& host_of(std::size_t i) {
  static std::unique_ptr<host> all[std::size(policies)];
  if (!all[i]) all[i] = std::make_unique<host>(policies[i]);
  return *all[i];
}

/// A small number, mostly; or any.
std::size_t number(fuzz::input& in) { return in.below(4) == 0 ? in.take<std::uint64_t>() : in.take<std::uint8_t>(); }

template <class T>
void tamper(std::vector<T>& with, fuzz::input& in) {
  if (in.below(2) == 0) with.resize(in.below(2) == 0 ? in.take<std::uint8_t>() : with.size() * in.below(4) / 2);
  if (!with.empty() && in.below(2) == 0) with[in.take<std::uint16_t>() % with.size()] = in.take<T>();
}

void tamper(lagkv::llama::checkpoint& c, fuzz::input& in) {
  for (std::size_t n = in.below(4); n > 0; --n) switch (in.below(8)) {
      case 0:
        c.at.tokens = number(in);
        break;
      case 1:
        c.at.dropped = number(in);
        break;
      case 2:
        c.at.compressed = number(in);
        break;
      case 3:
        c.counted = number(in);
        break;
      case 4:
        if (in.below(2) == 0) c.key_statistics.resize(in.below(4));
        if (!c.key_statistics.empty()) tamper(c.key_statistics[in.below(c.key_statistics.size())], in);
        break;
      case 5:
        tamper(c.moved.cells, in);
        break;
      case 6:
        if (in.below(2) == 0) c.moved.positions.resize(in.below(4));
        if (!c.moved.positions.empty()) tamper(c.moved.positions[in.below(c.moved.positions.size())], in);
        break;
      default:
        c.recorded = host_of(in.below(std::size(policies))).saved.recorded;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::input in(data, size);
  host& h = host_of(in.below(std::size(policies)));
  lagkv::llama::checkpoint c = h.saved;
  tamper(c, in);
  bytes state = h.state;
  const bool positions_only = in.below(2) == 0;  // so that llama.cpp takes the state, too
  for (std::size_t n = in.below(6); n > 0; --n) {
    const std::size_t at = in.take<std::uint16_t>() % state.size(), cell = in.below(h.saved.at.tokens);
    if (positions_only) {
      const auto to = in.below(2) == 0 ? static_cast<llama_pos>(in.take<std::int8_t>()) : in.take<llama_pos>();
      std::memcpy(state.data() + 16 + lagkv::llama::state_cell * cell, &to, sizeof to);
    } else {
      state[at] = in.take<std::uint8_t>();
    }
  }
  h.begin();
  const bytes& loaded = positions_only ? state : h.state;
  if (llama_state_seq_set_data(h.context.get(), loaded.data(), loaded.size(), sequence) != loaded.size()) return 0;
  const lagkv::status restored = h.compressor->restore(sequence, state, c);
  expect(static_cast<bool>(restored) == restored.message().empty());
  if (!restored) return 0;
  for (std::size_t n = 1 + in.below(8); n > 0; --n) {
    if (in.below(4) == 0) {  // a span goes
      const auto first = static_cast<llama_pos>(in.take<std::uint8_t>());
      llama_memory_seq_rm(h.memory(), sequence, first, first + 1 + static_cast<llama_pos>(in.below(8)));
    }
    if (in.below(4) == 0) (void)h.compressor->save(sequence);
    if (in.below(8) == 0) (void)h.compressor->defragment(sequence);
    const auto done = h.compressor->compress(sequence);
    if (done) expect(done->tokens_after <= done->tokens_before);
    if (!h.feed(static_cast<int>(1 + in.below(12)))) return 0;
  }
  return 0;
}
