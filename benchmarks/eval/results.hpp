// A file of results: JSON lines, appended as they come, so that an interrupted run can go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "report/line_file.hpp"

namespace eval {

/// What was run where: a line before the first result of every run, also of one that goes on.
struct run_info {
  std::string command;
  std::string date;                    ///< UTC, ISO 8601
  std::string model;                   ///< file name, without its folder
  std::string model_sha256;            ///< of the file, hexadecimal
  std::string model_name;              ///< as the file describes itself: "llama 135M Q4_1"
  std::string lagkv, llama, compiler;  ///< versions; of lagkv and ggml with their revision in git: "0.2.0 (9a4e299d1c02)"
  std::string machine;                 ///< processor, cores, system
  std::uint64_t seed = 0;
  int threads = 0;
  bool question_seen = false;
  std::size_t chunk = 0;    ///< tokens of a chunk, where the cache was compressed chunk by chunk; 0: after the prefill
  std::string cache_type;   ///< f16, ...
  bool transposed = false;  ///< values, in llama.cpp without flash attention
  /// SHA-256 by tensor of the calibration file; empty: there was none. One that is not there: had not been counted, or not known.
  std::map<std::string, std::string> calibration;
  std::optional<bool> repack;                    ///< weights as llama.cpp likes them best; nothing: not known (the file is older)
  std::vector<double> depths;                    ///< of the pass key, in turn; empty: it was not asked for, or not known
  std::map<std::string, std::string> data_sets;  ///< SHA-256 by task; a task that is not there: not asked for, or not known
};

/// Why results of `now` cannot be added to those of `was`: the first condition that differs, "was made with X, not Y". Empty
/// where they can. What one of the two does not know is no difference.
[[nodiscard]] std::string conflict(const run_info& was, const run_info& now);

/// Which sample under which policy: unique in a file.
struct sample_key {
  std::string task;
  std::size_t length = 0;  ///< tokens asked for: prompt and answer
  std::size_t sample = 0;
  std::string policy;  ///< as the user wrote it; "full": nothing is dropped
  double removed = 0;  ///< share of the context's tokens that was to go; 0 for full, -1: the policy had its own budget

  friend auto operator<=>(const sample_key&, const sample_key&) = default;
};

/// One sample, one policy: a line.
struct sample_result {
  sample_key key;
  std::string parsed;             ///< the policy string with its budget; empty for full
  double depth = -1;              ///< where the needle stood, 0 to 1; -1: the task has none, or several
  std::size_t prompt_tokens = 0;  ///< fed before the answer
  std::size_t judged_tokens = 0;  ///< in the cache when it was compressed (question not seen: the context's)
  std::size_t kept_tokens = 0;    ///< of those, a layer and head
  double kept_mb = 0;             ///< 10^6 bytes of keys and values that they take
  double full_mb = 0;             ///< that judged_tokens take
  double prefill_seconds = 0;     ///< of the prompt, which all policies share
  double compress_ms = 0;         ///< all layers, all calls
  std::size_t decoded = 0;        ///< tokens decoded one by one
  double decode_seconds = 0;
  /// `score` and the task's other figures. Shares from 0 to 1, but for perplexity and generation: `nll`, `kl` (nats a token),
  /// `agreed` (tokens).
  std::map<std::string, double> scores;
  std::string answer;
  std::string failure;                 ///< why there is no result (a budget that the policy cannot meet, say); else empty
  std::vector<std::string> survivors;  ///< for pictures, of few samples: a row per layer and head, a digit 0..9 a column of
                                       ///< positions: the share of it that is kept
  double needle_begin = -1, needle_end = -1;  ///< with survivors: where the needle lies, 0 to 1
};

/// What a file holds.
struct results {
  std::vector<run_info> runs;
  std::vector<sample_result> samples;  ///< the later line wins where one is there twice
  std::size_t bytes = 0;               ///< of the file
};

/// Throws std::runtime_error where it cannot be read, std::invalid_argument with the number of a line that is none of ours.
/// A last line that was cut off (an interrupted run) is left out.
[[nodiscard]] results read_results(const std::string& path);

/// Where results go: see line_file.
class results_file {
 public:
  /// Throws as line_file does.
  explicit results_file(const std::string& path);

  /// Throw as line_file::add() does.
  void add(const run_info& run);
  void add(const sample_result& sample);

  /// As read_results() counted them, where nobody has written to the file since.
  [[nodiscard]] std::size_t bytes_found() const { return lines_.bytes_found(); }

 private:
  line_file lines_;
};

}  // namespace eval
