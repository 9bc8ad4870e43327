// Tasks: prompts made from a seed, and what an answer is worth. Nothing here knows a model; only its tokenizer's count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// Tokens that the model makes of a text.
using token_count = std::function<std::size_t(std::string_view)>;

/// What a prompt is made from.
struct request {
  std::size_t length = 0;   ///< tokens that context, question, answer_begins and the answer may take together
  std::size_t beside = 0;   ///< tokens that the host needs beside them; messages count them in
  std::size_t sample = 0;   ///< the number of the prompt: others have other words, numbers and places
  std::uint64_t seed = 42;  ///< the same for all samples of a run
  double depth = 0.5;       ///< passkey64: where the key stands, 0 = first word, 1 = last; other tasks draw their own
  token_count count{};
  std::map<std::string, std::string> files;  ///< data sets that the user named, by task: their content
};

/// One question about one text. The user's message is context + question; answer_begins opens the reply. A policy compresses
/// the context before it sees the question (or the whole, where the question is to be seen).
struct prompt {
  std::string context;
  std::string question;
  std::string answer_begins;
  std::vector<std::string> references;  ///< what the answer should contain
  std::string continuation;             ///< tasks without a question: the text that follows the context
  std::vector<std::string> needles;     ///< spans of the context that the answer depends on, for pictures; may be empty
};

/// Thrown where a length has no room for a task's prompt. Its text names the task, the length and the least that works.
struct too_short : std::invalid_argument {
  too_short(std::string_view task, std::size_t length, std::size_t works);
  std::size_t least;
};

/// How a task is run.
enum class kind : std::uint8_t {
  answer,      ///< the model answers greedily; the answer is scored
  perplexity,  ///< the continuation is read, its tokens' probabilities are compared with the full cache's
  generation   ///< the model goes on writing for new_tokens, compressing while it decodes; compared with the full cache
};

/// Named results of a sample, each better when higher; `score` is the one that tables show. All are shares, 0 to 1.
using scores = std::map<std::string, double>;

/// One task.
struct task {
  std::string_view name;     ///< as in RULER, for its tasks
  std::string_view meaning;  ///< one line
  std::string_view group{};  ///< "ruler"; "beyond", "everyday" or "work": what RULER does not ask; empty where it has none
  kind how = kind::answer;
  std::size_t new_tokens = 0;  ///< of the answer or generation at most; of the continuation at least, for perplexity
  std::string_view file{};     ///< option that names its data set; empty where it needs none
  /// The longest prompt of at most request.length tokens, the answer counted. Throws too_short where the length has no room for
  /// it, std::invalid_argument where a data set is not as it should be.
  prompt (*make)(const request&) = nullptr;
  /// Null for tasks without an answer.
  scores (*score)(std::string_view answer, const prompt&) = nullptr;
};

/// All tasks, in the order of tables.
[[nodiscard]] std::span<const task> all_tasks();

/// Tasks of a list such as "ruler,passkey64": names of tasks and groups (ruler: its 11 tasks that need no file, and qa where a
/// file is named; niah; beyond, everyday, work: what RULER does not ask; all). Throws std::invalid_argument for unknown names,
/// which names those that exist.
[[nodiscard]] std::vector<const task*> tasks_of(std::string_view list, const std::map<std::string, std::string>& files);

}  // namespace eval
