// Part of lagkv (MIT). Compression of a sequence within its cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/compression.hpp>
#include <lagkv/adapters/llama/offers.hpp>
#include <lagkv/adapters/llama/progress.hpp>
#include <lagkv/adapters/llama/report.hpp>
#include <lagkv/adapters/llama/sizes.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/adapters/llama/whereabouts.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Drops what is due: rows move toward the window, and llama.cpp frees the cells of the first candidates. Where it fails nothing
/// has changed, unless `moved` says that rows have moved: llama.cpp has freed other cells then, and the sequence is of no use.
template <class Observe>
result<report> compress_in_place(const compression& c, const certain_rows& rows, const Observe& observe, bool& moved) {
  progress& s = c.of;
  seen_cache& cache = *c.where.base();
  const std::size_t n = rows.cells.size(), stream = rows.seen->stream, each = row_bytes(cache);
  const std::vector<llama_pos>& positions = rows.positions;
  if (positions.front() < 0) return error{"the positions of its tokens have not been seen"};
  offered_rows offered;
  for (const cached_layer& l : cache.layers) offered.layers.push_back(l.of_stream(stream));
  offered.cells = rows.cells, offered.positions = positions;
  offered.recorded = c.recorded(), offered.written = cache.table.written();
  const result<std::vector<layer>> layers = c.with.make(s, offered, c.workspace);
  if (!layers) return error{layers.message()};

  // Before anything moves: the positions that will be freed are those of the first candidates, and of no other token.
  const candidates due = c.with.rules().budget.due(s.at, n);
  const std::size_t most = due.rows.size() - (std::min)(due.keep, due.rows.size());
  const std::size_t first = due.rows.begin;
  const auto freed_alone = [&](std::size_t end) {
    return (first == 0 || positions[first - 1] < positions[first]) && (end == n || positions[end - 1] < positions[end]);
  };
  if (const int window = llama_model_n_swa(llama_get_model(c.context));
      window > 0 && positions[first + most - 1] > positions.back() - window)
    return error{"tokens that the window layers (" + std::to_string(window) + " tokens) still see would go from them too"};
  if (!freed_alone(first + most)) return error{"several tokens have one position"};

  std::vector<cursor> cursors(layers->size(), s.at);
  constexpr bool observed = !std::is_same_v<Observe, unobserved>;
  std::vector<plan> plans;
  const auto planned = [&](std::size_t i, const plan& p) {
    if (observed) plans.push_back(p);
    if (c.change) c.change((*layers)[i], p, c.workspace);
  };
  compress_options how{.direction = toward::window};
  if (observed || c.change) how.planned = planned;
  if (status ok = compress(c.with.rules(), *layers, cursors, c.workspace, how); !ok) return error{ok.message()};
  moved = true;
  s.at = cursors[0];
  s.at.mark = 0;  // of layer 0, while this cursor is that of all layers
  const std::size_t left = s.at.tokens, freed = n - left;
  std::vector<std::int32_t> cells = rows.cells;
  if (freed > 0) {
    const bool removed =
        llama_memory_seq_rm(llama_get_memory(c.context), c.sequence, positions[first], positions[first + freed - 1] + 1);
    const result<std::size_t> rest = c.where.states().count(c.sequence, cache);
    if (!removed || !rest || *rest != left) {
      s.begin_anew();
      c.where.lose_sight_of(c.sequence);
      return error{"in place: llama.cpp has " + (rest ? std::to_string(*rest) : "an unknown number of") + " rows left, " +
                   std::to_string(left) + " should be: the sequence must be decoded again"};
    }
    const auto begin = cells.begin() + static_cast<std::ptrdiff_t>(first);
    cells.erase(begin, begin + static_cast<std::ptrdiff_t>(freed));
  }
  c.note(last_plan(c.workspace), freed, positions);
  s.marks = marks_of(marked(offered.layers.back()), std::span(cells).first(s.at.compressed));
  rows.seen->last_cell = cells.back(), rows.seen->sequence = c.sequence;
  std::sort(cells.begin(), cells.end());
  s.cells = fingerprint_of(cells), s.written = cache.table.written();
  rows.seen->cells = std::move(cells);
  for (std::size_t i = 0; i < plans.size(); ++i) observe(i, plans[i]);
  return report{.tokens_before = n,
                .tokens_after = left,
                .bytes_before = n * each,
                .bytes_after = left * each,
                .compressed = true,
                .in_place = true};
}

}  // namespace lagkv::inline LAGKV_ABI::llama
