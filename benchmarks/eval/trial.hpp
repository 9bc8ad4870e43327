// One policy on one prompt: compress, answer, compare with the full cache.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "host/compressor.hpp"
#include "host/model.hpp"
#include "results.hpp"
#include "tasks/task.hpp"

namespace eval {

/// A prompt in the model's tokens.
struct tokenized {
  std::vector<llama_token> before;        ///< in the cache when it is compressed
  std::vector<llama_token> after;         ///< then read, one token at least: the question, or the last token of `before`'s text
  std::vector<llama_token> continuation;  ///< perplexity: what is read instead of an answer
  std::size_t needle_begin = 0;           ///< tokens [begin, end) of before; 0, 0: there is no needle
  std::size_t needle_end = 0;
};

/// Room that a prompt leaves: pieces cut into tokens by themselves may take a token more than together.
inline constexpr std::size_t spare_tokens = 8;

/// Tokens that the model's chat template puts around a message: a prompt must leave room for them.
[[nodiscard]] std::size_t template_tokens(const host::model& m);

/// Has a request ask for a prompt of `length` tokens in all: those to spare and, of a task that answers, the template's counted.
void set_length(request& asked, const task& t, std::size_t length, std::size_t template_tokens);

/// A question stands in the chat template; a text to go on with stands alone.
[[nodiscard]] tokenized tokenize(const host::model& m, const task& t, const prompt& p, bool question_seen);

/// What the full cache said, for the others to be compared with.
struct reference {
  std::vector<llama_token> tokens;                    ///< of the answer or generation
  std::vector<std::vector<float>> log_probabilities;  ///< perplexity: of the vocabulary, for each token of the continuation
};

/// What a trial needs; the pointers must outlive it.
struct trial {
  const host::model* model = nullptr;
  const task* what = nullptr;
  const prompt* asked = nullptr;
  const tokenized* tokens = nullptr;
  host::named_policy policy;
  const host::saved_sequence* prefill = nullptr;  ///< null: the trial reads `before` itself, in chunks
  std::size_t chunk = 0;                          ///< tokens after which it compresses then
  std::size_t picture_columns = 0;                ///< of sample_result::survivors; 0: no picture
};

/// Runs it in sequence 0 of a session. `full` gives what the full cache said, and waits for it; where it is empty this is the
/// full cache, and `said` receives it. Fills in all but key, parsed, depth and prefill_seconds.
[[nodiscard]] sample_result run(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said);

}  // namespace eval
