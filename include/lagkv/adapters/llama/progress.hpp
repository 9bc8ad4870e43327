// Part of lagkv (MIT). How far a sequence has been compressed, and what is left of that after a host has changed the sequence.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/cells.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/cache/cursor.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Where the rows of compressed partitions come from: in each head a row may be another token than the one that its cell was made
/// for.
struct moved_rows {
  std::vector<llama_pos> cells{};                       ///< the position of each row's cell
  std::vector<std::vector<std::uint32_t>> positions{};  ///< of each layer, [heads][rows]; below 0 (context shift): modulo 2^32
};

/// What compression knows of a sequence, to be saved beside its state: plain data.
struct checkpoint {
  cursor at{};                                        ///< how far it has been compressed
  std::vector<std::vector<double>> key_statistics{};  ///< of each layer, dropped keys too (extras.key_statistics),
                                                      ///< if the policy reads them
  std::size_t counted = 0;                            ///< tokens of the sequence that are in them
  moved_rows moved{};                                 ///< the rows [0, at.compressed), if the policy reads where they come from
  recording recorded{};                               ///< queries and attention, if the policy reads them
};

/// A list of cells as two numbers, which tell it from another one. No list of 32,000 cells is copied at each call.
struct fingerprint {
  std::size_t cells = 0;
  running_hash hash{};

  void add(std::int32_t cell) {
    ++cells;
    hash.add(static_cast<std::uint32_t>(cell));
  }

  friend bool operator==(const fingerprint&, const fingerprint&) = default;
};

inline fingerprint fingerprint_of(std::span<const std::int32_t> cells) {
  fingerprint f;
  for (const std::int32_t cell : cells) f.add(cell);
  return f;
}

struct progress : checkpoint {
  static constexpr std::size_t unknown = ~std::size_t{0};

  std::vector<std::uint64_t> marks{};    ///< of the rows that the last compression left compressed: what tells them from others
  std::vector<std::size_t> still{};      ///< which of these the rows [0, at.compressed) are; empty: all
  fingerprint cells{};                   ///< where all rows lay at the last call, ascending; of no cells: not known
  std::uint64_t written = 0;             ///< tokens that the cache had taken then
  llama_pos offset = 0;                  ///< without a probe: the last position + 1, less the rows, at the last call
  std::vector<std::uint32_t> protect{};  ///< ascending
  std::size_t fresh = unknown;           ///< rows whose keys are in no statistics yet
  std::size_t uncounted = 0;             ///< such rows when it was restored
  std::uint64_t counted_written = 0;     ///< tokens that the cache had taken when they were last counted
  std::size_t track = no_track;          ///< of its recording

  void begin_anew() {
    std::vector<std::uint32_t> kept = std::move(protect);
    *this = {};
    protect = std::move(kept);
  }

  /// The host may have changed the sequence since the last call: how much of what was compressed is still there, as a prefix. Its
  /// rows lie in these cells, ascending, of a stream; `marked_layer`: that stream's last layer.
  void follow(const cell_table& table, std::size_t stream, std::span<const std::int32_t> rows, llama_pos last,
              const cached_layer& marked_layer) {
    fingerprint older, all;  // older: rows of the last call
    for (const std::int32_t cell : rows) {
      all.add(cell);
      if (table.written(stream, cell) <= written) older.add(cell);
    }
    const bool elsewhere = cells.cells == 0 && !marks.empty();  // it was repacked or restored
    if (elsewhere || older != cells) {
      const std::vector<std::int32_t> in_order = table.rows(stream, {rows.begin(), rows.end()});
      // What has been written since is none of them, however alike: a new sequence may begin as this one did.
      const auto newer = std::find_if(in_order.begin(), in_order.end(),
                                      [&](std::int32_t cell) { return table.written(stream, cell) > written; });
      recount(in_order.size(), static_cast<std::size_t>(newer - in_order.begin()), last,
              [&](std::size_t row) { return mark_of(marked(marked_layer), in_order[row]); });
    }
    take_back(at, rows.size());
    cells = all, written = table.written();
    fresh = uncounted;
    for (const std::int32_t cell : rows) fresh += table.written(stream, cell) > counted_written ? 1U : 0U;
  }

  /// The same of a sequence that has been read. Its rows do not say when they were written: a new sequence that begins as this
  /// one did is taken for it, as far as they are alike.
  void follow(const saved_sequence& saved) {
    recount(saved.tokens(), saved.tokens(), saved.positions().back(),
            [&](std::size_t row) { return mark_of(marked(saved), saved.cells()[row]); });
  }

  /// Of what is known of moved rows, that of those that are still there.
  moved_rows still_there() const {
    const std::size_t before = moved.cells.size(), n = at.compressed;
    if (before == 0 || still.empty()) return moved;
    moved_rows left;
    for (std::size_t row = 0; row < n; ++row) left.cells.push_back(moved.cells[still[row]]);
    for (const std::vector<std::uint32_t>& all : moved.positions) {
      std::vector<std::uint32_t>& of_layer = left.positions.emplace_back();
      for (std::size_t head = 0; head < all.size(); head += before)
        for (std::size_t row = 0; row < n; ++row) of_layer.push_back(all[head + still[row]]);
    }
    return left;
  }

  /// The host may have shifted the rows' cells to these positions.
  void follow_shift(std::span<const llama_pos> of_cells) {
    const std::size_t n = moved.cells.size();
    for (std::size_t row = 0; n > 0 && row < at.compressed; ++row) {
      const std::size_t i = still.empty() ? row : still[row];
      const auto by = static_cast<std::uint32_t>(of_cells[row]) - static_cast<std::uint32_t>(moved.cells[i]);
      for (std::vector<std::uint32_t>& all : moved.positions)
        for (std::size_t each = i; each < all.size(); each += n) all[each] += by;
      moved.cells[i] = of_cells[row];
    }
  }

  /// Rows [first, first + freed) of those that were offered are gone; `at` is that of after. `of_cells` and `of_rows` are the
  /// positions of before: of the cells, and of each layer's rows, [heads][rows].
  void note_moved(std::span<const llama_pos> of_cells, std::span<const std::vector<std::uint32_t>> of_rows, std::size_t first,
                  std::size_t freed) {
    const std::size_t n = of_cells.size();
    const auto source = [&](std::size_t row) { return row < first ? row : row + freed; };
    moved = {}, still.clear();
    for (std::size_t row = 0; row < at.compressed; ++row) moved.cells.push_back(of_cells[source(row)]);
    for (const std::vector<std::uint32_t>& all : of_rows) {
      std::vector<std::uint32_t>& of_layer = moved.positions.emplace_back();
      for (std::size_t head = 0; head < all.size() / n; ++head)
        for (std::size_t row = 0; row < at.compressed; ++row) of_layer.push_back(all[head * n + source(row)]);
    }
  }

  /// Nobody asks where rows come from.
  void forget_moved() { moved = {}, still.clear(); }

 private:
  /// Rows that were compressed are known again by their marks, among the first `older` ones.
  template <class Mark>
  void recount(std::size_t rows, std::size_t older, llama_pos last, const Mark& mark) {
    std::vector<std::size_t> found_again;  // which of them
    for (std::size_t row = 0, next = 0; row < older && row < marks.size(); ++row) {
      const auto found = std::find(marks.begin() + static_cast<std::ptrdiff_t>(next), marks.end(), mark(row));
      if (found == marks.end()) break;
      found_again.push_back(static_cast<std::size_t>(found - marks.begin()));
      next = found_again.back() + 1;
    }
    if (found_again.empty() && !marks.empty()) return begin_anew();
    at.compressed = found_again.size();
    // The others may come again: before a context shift is applied, its rows look like tokens taken back.
    still = std::move(found_again);
    take_back(at, rows);
    // A new sequence may begin like the old one, whose rows those then are: what was dropped behind them is no part of it.
    const auto seen = static_cast<std::size_t>((std::max)(last, llama_pos{-1}) + 1);
    if (still.size() < marks.size()) at.dropped = seen - (std::min)(seen, rows);
  }
};

}  // namespace lagkv::inline LAGKV_ABI::llama
