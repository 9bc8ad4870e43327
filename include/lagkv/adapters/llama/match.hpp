// Part of lagkv (MIT). The rows of a saved sequence found again in a cache, byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/probe.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// The cell of each row of the saved sequence, in the order of tokens, all of them among those of a sighting; empty where they
/// are not, or where equal rows leave a doubt.
inline std::vector<std::int32_t> cells_of(const saved_sequence& saved, const seen_cache& c, const sighting& s) {
  const std::size_t n = saved.tokens(), layers = c.layers.size();
  if (n > s.cells.size() || layers != saved.layers()) return {};
  const cached_layer first = c.layers.front().of_stream(s.stream), last = c.layers.back().of_stream(s.stream);
  const auto same = [&](std::size_t i, std::int32_t cell) {
    const auto of_state = static_cast<std::int32_t>(i);
    return same_row(saved.keys(0), of_state, first.keys, cell) && same_row(saved.keys(layers - 1), of_state, last.keys, cell) &&
           (!saved.has_values() || same_row(saved.values(layers - 1), of_state, last.values, cell));
  };
  // Both are in the order of cells. What fits from the front and from the back is the only way.
  std::vector<std::int32_t> cells(n);
  std::size_t i = 0;
  for (std::size_t at = 0; at < s.cells.size() && i < n; ++at)
    if (same(i, s.cells[at])) cells[i++] = s.cells[at];
  if (i < n) return {};
  for (std::size_t at = s.cells.size(); at > 0 && i > 0; --at)
    if (same(i - 1, s.cells[at - 1]) && cells[--i] != s.cells[at - 1]) return {};
  std::vector<std::int32_t> rows(n);
  for (std::size_t row = 0; row < n; ++row) rows[row] = cells[static_cast<std::size_t>(saved.cells()[row])];
  return rows;
}

/// What tells the rows of a saved sequence, which llama.cpp has put into a stream of a cache.
inline expected_rows expected(llama_seq_id sequence, const saved_sequence& saved, std::size_t cache, std::size_t stream,
                              std::size_t track) {
  const std::size_t n = saved.tokens();
  std::vector<std::int32_t> cells(n);
  std::iota(cells.begin(), cells.end(), 0);
  expected_rows e{sequence,
                  cache,
                  stream,
                  saved.layers(),
                  marks_of(saved.keys(0), cells),
                  marks_of(saved.keys(saved.layers() - 1), cells),
                  std::vector<llama_pos>(n),
                  track};
  for (std::size_t row = 0; row < n; ++row) e.positions[static_cast<std::size_t>(saved.cells()[row])] = saved.positions()[row];
  return e;
}

/// The cells of a stream that no sequence is known to have.
inline sighting untaken(const cell_table& table, std::size_t stream) {
  std::vector<bool> taken(table.cells());
  for (const sighting& s : table.sightings())
    if (s.stream == stream)
      for (const std::int32_t cell : s.cells) taken[static_cast<std::size_t>(cell)] = true;
  sighting free{.stream = stream};
  for (std::size_t cell = 0; cell < taken.size(); ++cell)
    if (!taken[cell]) free.cells.push_back(static_cast<std::int32_t>(cell));
  return free;
}

}  // namespace lagkv::inline LAGKV_ABI::llama
