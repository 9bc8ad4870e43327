// One policy on one prompt: compress, answer, count.
#pragma once

#include "host/compressor.hpp"
#include "host/model.hpp"
#include "prompt.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace passkey {

/// What came out of one policy on one prompt.
struct trial {
  std::string policy;
  std::size_t tokens_fed = 0;   ///< of the prompt
  std::size_t tokens_kept = 0;  ///< of each layer and head
  std::size_t bytes_full = 0;   ///< the cache as it would be uncompressed
  std::size_t bytes_peak = 0;   ///< the most that was held at once while the prompt was read
  std::size_t bytes_left = 0;   ///< after the prompt
  double compress_seconds = 0;  ///< all compressions, those during the answer included
  double prefill_seconds = 0;   ///< 0 when a saved prefill was restored
  double answer_seconds = 0;
  std::size_t answer_tokens = 0;
  std::size_t digits = 0;  ///< of the key, up to the first mistake
  std::string answer;
  std::string failure;        ///< why there is no answer; empty when there is one
  host::kept_positions kept;  ///< after the prompt
};

/// Compresses a prefill that was saved just before the prompt's last token, then feeds that token and answers with
/// at most `answer_limit` tokens. `follow`: fill in trial::kept.
[[nodiscard]] trial run_restored(const host::model& m, host::session& s, const prompt& p, const host::saved_sequence& prefill,
                                 const host::named_policy& policy, std::size_t answer_limit, bool follow);

/// Feeds the prompt `chunk` tokens at a time and compresses after each, so that the cache may be smaller than the
/// prompt; then answers likewise. `report` is told how many tokens of the prompt are done.
[[nodiscard]] trial run_chunked(const host::model& m, host::session& s, const prompt& p, std::size_t chunk,
                                const host::named_policy& policy, std::size_t answer_limit, bool follow,
                                const host::session::progress& report);

}  // namespace passkey
