// A language model and one conversation with it: the few llama.cpp calls that the demo and lagkv-eval need.
#pragma once

#include <llama.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lagkv/adapters/llama/probe.hpp>

#include "calibration_file.hpp"
#include "hidden_rows.hpp"

namespace host {

/// How a model is loaded.
struct model_options {
  /// Its weights lie as llama.cpp likes them best on this processor (AMX tiles): logits differ in their last digits. Not with a
  /// llama.cpp that GCC has built without what llama-build.cmake gives it: that faults.
  bool repack = false;
  /// "host:port" of machines that run llama.cpp's ggml-rpc-server: the layers and their cache are spread over them.
  std::vector<std::string> servers{};
};

/// A GGUF model. What fails throws std::runtime_error with one readable line, what was asked wrongly (a file that is
/// no model) std::invalid_argument.
class model {
 public:
  /// Loads the file. llama.cpp's own messages are dropped; the reason of an error is in what is thrown.
  explicit model(const std::string& path, const model_options& options = {});

  [[nodiscard]] llama_model* get() const { return model_.get(); }

  /// Tokens of the text; control tokens written out in it are recognised. Where it does not begin the sequence, none are put
  /// before it.
  [[nodiscard]] std::vector<llama_token> tokenize(std::string_view text, bool begins = true) const;

  /// Tokens [first, second) of those given that hold the text where it stands first; nothing where it does not stand there.
  [[nodiscard]] std::optional<std::pair<std::size_t, std::size_t>> find(std::span<const llama_token> tokens,
                                                                        std::string_view text) const;

  /// The bytes a token stands for, control tokens included.
  [[nodiscard]] std::string piece(llama_token token) const;

  /// One user message in the model's chat template, up to where the assistant begins; the message itself where
  /// the model has no template (or none that llama.cpp knows).
  [[nodiscard]] std::string chat(const std::string& message) const;

  /// Which model it is, whatever its quantisation: "llama, 134515008 parameters".
  [[nodiscard]] std::string signature() const;

  /// True for tokens that end an answer.
  [[nodiscard]] bool ends(llama_token token) const;

 private:
  struct deleter {
    void operator()(llama_model* m) const { llama_model_free(m); }
  };
  std::unique_ptr<llama_model, deleter> model_;
};

/// Element types of keys and values.
struct cache_types {
  ggml_type keys = GGML_TYPE_F16;
  ggml_type values = GGML_TYPE_F16;
};

/// "f16" for both, or "q8_0/q4_0" for keys and values. What lagkv cannot compress throws std::invalid_argument.
[[nodiscard]] cache_types parse_cache_types(const std::string& text);

/// What a session is made with.
struct session_options {
  std::uint32_t cells = 0;      ///< tokens the cache has room for
  int threads = 0;              ///< for a prompt; 0: as many as there are cores
  int answer_threads = 0;       ///< for a token of an answer; 0: as many as for a prompt
  cache_types types{};          ///< of a cache
  bool flash_attention = true;  ///< off: the values lie transposed
  calibration counted{};        ///< of the model, for policies that read it
};

/// A sequence to be restored later.
struct saved_sequence {
  std::vector<std::uint8_t> state;      ///< keys and values
  lagkv::llama::recording attention{};  ///< as far as it was recorded
};

/// Index of the largest logit, the first of several.
[[nodiscard]] llama_token likeliest(std::span<const float> logits);

/// One context of a model, of which sequence 0 is used.
class session {
 public:
  /// Told how many of the tokens handed to `feed` are done.
  using progress = std::function<void(std::size_t)>;

  session(const model& m, const session_options& options);

  [[nodiscard]] llama_context* get() const { return context_.get(); }

  /// Lets the cache be compressed in place, and attention be recorded.
  [[nodiscard]] lagkv::llama::cache_probe& probe() { return probe_; }

  /// Cells that single heads do not see; without flash attention.
  [[nodiscard]] hidden_rows& hidden() { return hidden_; }

  /// What has been counted of the model; empty where it was made without.
  [[nodiscard]] const calibration& counted() const { return counted_; }

  /// Decodes tokens after those already there. False when the cache has no room for them.
  [[nodiscard]] bool feed(std::span<const llama_token> tokens, const progress& report = {});

  /// Told the logits after a token that was fed: its index among those handed to `feed_all`, one logit a token of the vocabulary.
  using listener = std::function<void(std::size_t, std::span<const float>)>;

  /// As `feed`, with the logits after each token.
  [[nodiscard]] bool feed_all(std::span<const llama_token> tokens, const listener& listen);

  /// After the last token fed: one logit a token of the vocabulary. Valid until the next call.
  [[nodiscard]] std::span<const float> logits() const;

  /// The likeliest token after the last one fed.
  [[nodiscard]] llama_token next() const;

  /// Forgets the sequence.
  void clear();

  [[nodiscard]] saved_sequence save();

  /// Puts a saved state in place of the sequence; its attention is for the compressor.
  void restore(const saved_sequence& saved);

 private:
  struct deleter {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  [[nodiscard]] bool decode(const llama_batch& batch);
  [[nodiscard]] std::span<const float> logits_after(std::int32_t index) const;

  hidden_rows hidden_;
  lagkv::llama::cache_probe probe_;  // outlives the context
  calibration counted_;
  std::unique_ptr<llama_context, deleter> context_;
};

}  // namespace host
