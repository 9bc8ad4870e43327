// Part of lagkv (MIT). The states of a context's sequences, and what their sizes tell without a copy of them: llama.cpp says in
// no other way how many cells a sequence has.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// The state of one sequence, and what it says.
struct read_state {
  std::vector<std::uint8_t> bytes{};
  saved_sequence saved{};
};

/// Cells of all sequences of a unified cache together, each counted once, and what they would be if none was shared.
struct occupancy {
  std::size_t cells = 0, rows = 0;
  /// How many cells are counted more than once.
  std::size_t shared() const { return rows - (std::min)(cells, rows); }
};

/// Bytes of a cell in the layers of a cache.
inline std::size_t row_bytes(const seen_cache& cache) {
  std::size_t n = 0;
  for (const cached_layer& l : cache.layers) n += row_bytes(l.keys) + (l.has_values() ? row_bytes(l.values) : 0);
  return n;
}

class sequence_states {
 public:
  explicit sequence_states(llama_context* context) : context_(context) {}

  /// Whether the model has window layers or recurrent ones. Where llama.cpp cannot say it, the state of such a model has bytes
  /// that are not expected, and is refused.
  bool have_other_memory() const {
    const llama_model* model = llama_get_model(context_);
    return llama_model_n_swa(model) > 0 || is_hybrid(model);
  }

  /// Bytes of a state that follow the first cache: window layers, recurrent ones. saved_sequence::unknown_rest: not known.
  std::size_t rest_of(llama_seq_id sequence) const {
    if (!have_other_memory()) return 0;
      // In a state of these alone the same header stands before them.
#if defined(LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
    return llama_state_seq_get_size_ext(context_, sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) - header_;
#elif defined(LLAMA_STATE_SEQ_FLAGS_SWA_ONLY)
    return llama_state_seq_get_size_ext(context_, sequence, LLAMA_STATE_SEQ_FLAGS_SWA_ONLY) - header_;
#else
    return saved_sequence::unknown_rest;
#endif
  }

  /// A copy of all that the sequence holds: through the buses of a GPU, or a network.
  result<read_state> read(llama_seq_id sequence) {
    read_state r;
    r.bytes.resize(llama_state_seq_get_size(context_, sequence));
    if (llama_state_seq_get_data(context_, r.bytes.data(), r.bytes.size(), sequence) != r.bytes.size())
      return error{"state: could not be read"};
    header_ = saved_sequence::header_of(r.bytes);
    result<saved_sequence> saved = saved_sequence::parse(r.bytes, rest_of(sequence));
    if (!saved) return error{saved.message()};
    r.saved = std::move(*saved);
    return r;
  }

  // ---- of a cache that has been seen ----

  /// Cells of a sequence in this cache, which is that of the layers with full attention. Asks llama.cpp, which looks at each
  /// cell.
  result<std::size_t> count(llama_seq_id sequence, const seen_cache& cache) {
    const std::size_t row = row_bytes(cache);
    if (result<std::size_t> cells = whole_cells(sequence, fixed_bytes(cache), row)) return cells;
    // Models with positions of several sections add to each cell; the first state tells how much.
    const result<read_state> state = read(sequence);
    if (!state) return error{state.message()};
    const saved_sequence& saved = state->saved;
    if (saved.payload_bytes() != row * saved.tokens())
      return error{"rows have " + std::to_string(row) + " bytes in the cache and " +
                   std::to_string(saved.payload_bytes() / saved.tokens()) + " in a state: they are padded"};
    added_to_cell_ = saved.added_to_cell();
    return saved.tokens();
  }

  /// Those of all sequences together, which have so many rows.
  occupancy occupied(const seen_cache& cache, std::size_t rows) const {
    const std::size_t size = llama_state_seq_get_size(context_, -1), fixed = fixed_bytes(cache) + rest_of(-1) + 4 * rows;
    const std::size_t each = 8 + added_to_cell_ + row_bytes(cache);
    return {.cells = size > fixed ? (size - fixed) / each : 0, .rows = rows};
  }

  // ---- where no cache has been seen: by what a state has told ----

  void learn(llama_seq_id sequence, const read_state& r) {
    row_bytes_ = r.saved.payload_bytes() / r.saved.tokens();
    added_to_cell_ = r.saved.added_to_cell();
    fixed_ = r.bytes.size() - rest_of(sequence) - r.saved.tokens() * (state_cell + added_to_cell_ + row_bytes_);
  }

  /// Bytes of keys and values of a token; 0: not known.
  std::size_t learnt_row_bytes() const { return row_bytes_; }

  /// Rows of a sequence; an error where that is not sure.
  result<std::size_t> learnt_count(llama_seq_id sequence) const {
    if (row_bytes_ == 0 || fixed_ == 0) return error{"not known"};
    return whole_cells(sequence, fixed_, row_bytes_);
  }

  /// Rows of a sequence at most.
  std::size_t most_rows(llama_seq_id sequence) const {
    const std::size_t size = llama_state_seq_get_size(context_, sequence), each = state_cell + added_to_cell_ + row_bytes_;
    return size > fixed_ ? (size - fixed_) / each : 0;
  }

 private:
  template <class Model>
  static bool is_hybrid(const Model* model) {
    if constexpr (requires { llama_model_is_hybrid(model); })
      return llama_model_is_hybrid(model);
    else
      return false;
  }

  /// Cells of a sequence, of so many bytes each beside their numbers, where its state has `fixed` bytes and whole cells; else an
  /// error.
  result<std::size_t> whole_cells(llama_seq_id sequence, std::size_t fixed, std::size_t row) const {
    const std::size_t rest = rest_of(sequence), size = llama_state_seq_get_size(context_, sequence);
    const std::size_t each = state_cell + added_to_cell_ + row;
    if (rest == saved_sequence::unknown_rest || size < fixed + rest || (size - fixed - rest) % each != 0)
      return error{"not known"};
    return (size - fixed - rest) / each;
  }

  /// Bytes of a state beside its cells.
  std::size_t fixed_bytes(const seen_cache& cache) const {
    std::size_t sections = 0;
    for (const cached_layer& l : cache.layers) sections += l.has_values() ? 2U : 1U;
    return header_ + 4 + 4 * cache.table.streams() + 8 + 12 * sections;
  }

  llama_context* context_;
  std::size_t header_ = state_header;
  std::size_t added_to_cell_ = 0;  // by models with positions of several sections
  std::size_t row_bytes_ = 0, fixed_ = 0;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
