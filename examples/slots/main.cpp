// Several conversations in one llama.cpp context, as a server's slots: prompts of different length, continuous batching, one
// cache, each sequence compressed by its own cursor as it grows. Each prompt hides a 64-digit pass key.
#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "host/model.hpp"
#include "host/run.hpp"
#include "prompt.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct arguments {
  std::string model = SLOTS_MODEL;
  std::string policy = "lagkv:lag=512,ratio=0.5";
  std::uint32_t slots = 4;
  std::uint32_t cells = 0;
  std::size_t length = 1200;
  std::size_t answer = 72;
  std::size_t chunk = 128;
  bool streams = false;
  int threads = 0;
};

struct slot {
  llama_seq_id sequence = 0;
  passkey::prompt asked;
  std::size_t fed = 0;  ///< tokens of the prompt
  llama_token next = 0;
  std::string answer;
  std::size_t answered = 0;
  std::int32_t logits_at = -1;  ///< in the batch; -1: none
  lagkv::llama::report last{};
  std::size_t calls_in_place = 0, calls_repacked = 0;
  bool done = false;

  bool reads() const { return fed < asked.tokens.size(); }
};

struct free_context {
  void operator()(llama_context* c) const { llama_free(c); }
};

/// The next tokens of all slots: one of each that answers, a part of each prompt that is still being read. At most `most` in all:
/// in few cells llama.cpp takes smaller batches than it is asked for, and ends the program at more. The last slots then wait.
void fill(llama_batch& batch, std::vector<slot>& slots, std::size_t chunk, std::size_t most, llama_memory_t memory) {
  batch.n_tokens = 0;
  for (slot& s : slots) {
    s.logits_at = -1;
    if (s.done) continue;
    const std::size_t room = most - static_cast<std::size_t>(batch.n_tokens);
    const std::size_t n = std::min(room, s.reads() ? std::min(chunk, s.asked.tokens.size() - s.fed) : 1);
    const llama_pos first = llama_memory_seq_pos_max(memory, s.sequence) + 1;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t at = batch.n_tokens++;
      batch.token[at] = s.reads() ? s.asked.tokens[s.fed] : s.next;
      batch.pos[at] = first + static_cast<llama_pos>(i);
      batch.n_seq_id[at] = 1;
      batch.seq_id[at][0] = s.sequence;
      s.fed += s.reads() ? 1U : 0U;
      const bool wanted = i + 1 == n && !s.reads();
      batch.logits[at] = wanted ? 1 : 0;
      if (wanted) s.logits_at = at;
    }
  }
}

void run(const arguments& a) {
  const auto policy = lagkv::parse(a.policy);
  if (!policy) throw std::invalid_argument(policy.message());
  const host::model m(a.model);
  std::vector<slot> slots(a.slots);
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    slots[i].sequence = static_cast<llama_seq_id>(i);
    slots[i].asked = passkey::make_prompt(m, {.length = a.length * (2 + i) / 2, .depth = 0.5, .seed = 42 + i});
    tokens += slots[i].asked.tokens.size() + a.answer;
  }

  lagkv::llama::cache_probe probe;  // outlives the context
  llama_context_params params = llama_context_default_params();
  params.n_ctx = a.cells > 0 ? a.cells : static_cast<std::uint32_t>(tokens);
  params.n_seq_max = a.slots;
  params.kv_unified = !a.streams;
  params.n_batch = static_cast<std::uint32_t>(a.chunk * a.slots);
  if (a.threads > 0) params.n_threads = params.n_threads_batch = a.threads;
  probe.attach(params);
  const std::unique_ptr<llama_context, free_context> context(llama_init_from_model(m.get(), params));
  if (context == nullptr) throw std::runtime_error("llama.cpp could not make the context");
  auto compressor = lagkv::llama::compressor::make(context.get(), *policy, &probe);
  if (!compressor) throw std::invalid_argument(compressor.message());

  llama_memory_t memory = llama_get_memory(context.get());
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(a.chunk * a.slots), 0, 1);
  const std::unique_ptr<llama_batch, void (*)(llama_batch*)> freed(&batch, [](llama_batch* b) { llama_batch_free(*b); });
  const auto vocabulary = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(m.get())));
  std::size_t most_rows = 0;
  while (std::any_of(slots.begin(), slots.end(), [](const slot& s) { return !s.done; })) {
    fill(batch, slots, a.chunk, llama_n_batch(context.get()), memory);
    if (const std::int32_t status = llama_decode(context.get(), batch); status == 1)
      throw std::runtime_error(
          fmt::format("the cache of {} cells has no room: give it more --cells, or keep less", llama_n_ctx(context.get())));
    else if (status != 0)
      throw std::runtime_error(fmt::format("llama_decode failed with status {}", status));
    std::size_t rows = 0;
    for (slot& s : slots) {
      if (s.logits_at >= 0) {
        s.next = host::likeliest({llama_get_logits_ith(context.get(), s.logits_at), vocabulary});
        s.done = m.ends(s.next) || ++s.answered >= a.answer;
        if (!m.ends(s.next)) s.answer += m.piece(s.next);
      }
      const auto done = compressor->compress(s.sequence);
      if (!done) throw std::runtime_error(done.message());
      s.last = *done;
      s.calls_in_place += done->compressed && done->in_place ? 1U : 0U;
      s.calls_repacked += done->compressed && !done->in_place ? 1U : 0U;
      rows += done->tokens_after;
    }
    most_rows = std::max(most_rows, rows);
  }

  fmt::print("{} slots, one cache of {} cells, {}\n", a.slots, llama_n_ctx(context.get()), a.policy);
  fmt::print("{:>4} {:>7} {:>11} {:>9} {:>9} {:>7}  {}\n", "slot", "prompt", "tokens kept", "in place", "repacked", "digits",
             "answer");
  for (const slot& s : slots)
    fmt::print("{:>4} {:>7} {:>11} {:>9} {:>9} {:>7}  {:.40}\n", s.sequence, s.asked.tokens.size(), s.last.tokens_after,
               s.calls_in_place, s.calls_repacked, passkey::digits_recalled(s.answer, s.asked.key), s.answer);
  fmt::print("at most {} rows in use at once, of {} tokens in all\n", most_rows, tokens);
}

}  // namespace

int main(int argc, char** argv) {
  arguments a;
  CLI::App app("Compresses each of several sequences in one cache as they are read and answered.");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", a.model, "GGUF model");
  app.add_option("--policy", a.policy, "How to compress");
  app.add_option("--slots", a.slots, "Sequences at once")->check(CLI::Range(1, 64));
  app.add_option("--length", a.length, "Tokens of the first prompt; each further one is half as much longer")
      ->check(CLI::Range(200, 1 << 20));
  app.add_option("--answer", a.answer, "Tokens of an answer at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--chunk", a.chunk, "Prompt tokens of a slot at once")->check(CLI::Range(1, 4096));
  app.add_option("--cells", a.cells, "Tokens the cache has room for; 0: all")->check(CLI::Range(0, 1 << 20));
  app.add_flag("--streams", a.streams, "A part of the cache for each slot, in place of one for all");
  app.add_option("--threads", a.threads, "0: all cores")->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);
  return host::run("slots", [&] { run(a); });
}
