// Talks to a model for as long as you like in a cache of fixed size. The system prompt stays; what else stays the policy decides.
#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "host/model.hpp"
#include "host/run.hpp"
#include "host/stopwatch.hpp"
#include "saved.hpp"
#include "turns.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct arguments {
  std::string model = CHAT_MODEL;
  std::string policy;  // empty: of the cells
  std::string system = "You are a helpful assistant. You answer in one short sentence.";
  std::uint32_t cells = 1024;
  std::size_t answer = 64;
  int threads = 0;
};

class conversation {
 public:
  conversation(const host::model& m, const arguments& a)
      : model_(m), arguments_(a), session_(m, {.cells = a.cells, .threads = a.threads}), compressor_(make_compressor()) {}

  /// Answers one line; commands begin with '/'.
  void say(const std::string& line) {
    if (line == "/stats") return print_stats();
    if (line.starts_with("/save ")) return save(line.substr(6));
    if (line.starts_with("/load ")) return load(line.substr(6));
    if (line.starts_with("/")) return fmt::print("commands: /stats, /save FILE, /load FILE, /quit\n");
    const std::string text =
        seen_ == 0 ? chat::first_turn(model_.get(), arguments_.system, line) : chat::next_turn(model_.get(), line, ended_by_);
    feed(model_.tokenize(text, seen_ == 0));
    answer();
  }

 private:
  std::size_t system_tokens() const { return model_.tokenize(chat::system_part(model_.get(), arguments_.system)).size(); }

  /// Room is left for a part of a prompt, which is read before the cache is compressed.
  lagkv::llama::compressor make_compressor() {
    const std::size_t capacity = arguments_.cells * 3 / 4;
    const std::string text =
        arguments_.policy.empty() ? fmt::format("key_diff:recent_share=0.5,capacity={},every=32", capacity) : arguments_.policy;
    auto policy = lagkv::parse(text);
    if (!policy) throw std::invalid_argument(policy.message());
    policy->budget.sink = std::max(policy->budget.sink, system_tokens());  // the system prompt comes first
    auto made = lagkv::llama::compressor::make(session_.get(), *policy, &session_.probe());
    if (!made) throw std::invalid_argument(text + ": " + made.message());
    policy_ = text;
    return *made;
  }

  void feed(const std::vector<llama_token>& tokens) {
    const std::size_t part = std::max<std::size_t>(1, arguments_.cells / 8);
    for (std::size_t done = 0; done < tokens.size(); done += part) {
      const std::size_t n = std::min(part, tokens.size() - done);
      const host::stopwatch watch;
      if (!session_.feed(std::span(tokens).subspan(done, n)))
        throw std::runtime_error(
            fmt::format("the cache of {} cells is full: {} keeps too many tokens", arguments_.cells, policy_));
      seconds_ += watch.seconds(), seen_ += n;
      compress();
    }
  }

  void compress() {
    const auto done = compressor_.compress(0);
    if (!done) throw std::runtime_error(done.message());
    last_ = *done;
    compressions_ += done->compressed ? 1U : 0U;
    go_back();
  }

  /// Positions run on while tokens are dropped. Before they leave what the model was trained for, all rows behind the system
  /// prompt move down to where it ends.
  void go_back() {
    llama_memory_t memory = llama_get_memory(session_.get());
    const llama_pos last = llama_memory_seq_pos_max(memory, 0);
    if (last + 1 < llama_model_n_ctx_train(model_.get()) - static_cast<llama_pos>(arguments_.cells)) return;
    if (!llama_memory_can_shift(memory)) return;
    const std::vector<llama_pos> rows = session_.probe().positions();  // not of a window, which begins far behind the prompt
    const auto stay = static_cast<llama_pos>(system_tokens());
    if (rows.size() <= static_cast<std::size_t>(stay)) return;
    const llama_pos first = rows[static_cast<std::size_t>(stay)];
    if (first > stay) llama_memory_seq_add(memory, 0, first, -1, stay - first);
  }

  void answer() {
    ended_by_.clear();
    for (std::size_t n = 0; n < arguments_.answer; ++n) {
      const llama_token token = session_.next();
      const std::string piece = model_.piece(token);
      feed({token});
      if (model_.ends(token)) {
        ended_by_ = piece;
        break;
      }
      fmt::print("{}", piece);
      std::fflush(stdout);
    }
    fmt::print("\n");
  }

  void print_stats() const {
    fmt::print("{} tokens seen, {} kept in {} cells, {:.1f} MB, {:.0f} tokens/s, {} compressions by {}\n", seen_,
               last_.tokens_after, arguments_.cells, static_cast<double>(last_.bytes_after) / 1e6,
               static_cast<double>(seen_) / std::max(seconds_, 1e-9), compressions_, policy_);
  }

  void save(const std::string& path) {
    const host::saved_sequence saved = session_.save();
    chat::write(path, {saved.state, compressor_.save(0)});
    fmt::print("saved: {}\n", path);
  }

  /// What cannot be taken (more tokens than there are cells, another model) leaves the conversation as it was.
  void load(const std::string& path) {
    const chat::saved_chat saved = chat::read(path), now{session_.save().state, compressor_.save(0)};
    try {
      put(saved);
    } catch (const std::runtime_error& e) {
      session_.clear();
      compressor_.forget(0);
      if (seen_ > 0) put(now);
      throw std::runtime_error(path + ": " + e.what());
    }
    seen_ = saved.beside.at.seen();
    ended_by_.clear();
    fmt::print("loaded: {}\n", path);
  }

  void put(const chat::saved_chat& saved) {
    session_.restore({saved.state, {}});
    if (const auto ok = compressor_.restore(0, saved.state, saved.beside); !ok) throw std::runtime_error(ok.message());
  }

  const host::model& model_;
  const arguments& arguments_;
  host::session session_;
  std::string policy_;
  lagkv::llama::compressor compressor_;
  lagkv::llama::report last_{};
  std::string ended_by_;  // the text of the token that ended the last answer
  std::size_t seen_ = 0, compressions_ = 0;
  double seconds_ = 0;
};

void run(const arguments& a) {
  const host::model m(a.model);
  conversation talk(m, a);
  const bool asks = ::isatty(STDIN_FILENO) == 1;
  for (std::string line; (asks ? fmt::print("> "), std::fflush(stdout) : 0), std::getline(std::cin, line);) {
    if (line == "/quit") break;
    if (line.empty()) continue;
    try {
      talk.say(line);
    } catch (const std::runtime_error& e) {
      if (!asks) throw;
      fmt::print("{}\n", e.what());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  arguments a;
  CLI::App app("A conversation of any length in a cache of fixed size. Reads a line for each turn; /stats, /save, /load, /quit.");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", a.model, "GGUF model");
  app.add_option("--policy", a.policy, "How to compress")
      ->default_str("key_diff:recent_share=0.5,every=32,capacity=(3/4 of the cells)");
  app.add_option("--system", a.system, "System prompt, which stays");
  app.add_option("--cells", a.cells, "Tokens the cache has room for")->check(CLI::Range(256, 1 << 20));
  app.add_option("--answer", a.answer, "Tokens of an answer at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", a.threads, "0: all cores")->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);
  return host::run("chat", [&] { run(a); });
}
