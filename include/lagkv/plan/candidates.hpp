// Part of lagkv (MIT). The rows that a policy chooses among at one call, and how many of them stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/view/range.hpp>

namespace lagkv::inline LAGKV_ABI {

/// int(share * n) as Python computes it: in f64, so that 0.29 * 100 is 28. At least 0, and at most what a std::size_t holds.
constexpr std::size_t share_of(double share, std::size_t n) {
  constexpr std::size_t most = ~std::size_t{0};
  const double rows = share * static_cast<double>(n);
  return !(rows > 0) ? 0 : rows < static_cast<double>(most) ? static_cast<std::size_t>(rows) : most;
}

/// The rows that may go now. Each head keeps `keep` of them; if `partition` is not 0, `keep_each` of each partition of that
/// many rows. If a head holds more protected rows than that, all heads keep as many as it holds. With head_budgets each head has
/// its own number.
struct candidates {
  token_range rows{};  ///< empty: nothing goes now
  std::size_t keep = 0;
  std::size_t partition = 0;
  std::size_t keep_each = 0;
  row_positions positions{};
  std::span<const std::uint32_t> protect{};  ///< positions that stay whatever their scores, ascending
  std::span<const float> head_budgets{};     ///< [heads]: multiples of `keep` + the rows that are not candidates; or empty
  std::size_t heads = 1;                     ///< heads whose rows have positions of their own: all, or 1 if all have the same

  bool empty() const noexcept { return rows.empty(); }

  /// Whether the position of a row is protected: a binary search.
  bool is_protected(std::size_t head, std::size_t row) const {
    const std::size_t p = positions.of(head, row);
    std::size_t low = 0, high = protect.size();
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      if (protect[middle] < p)
        low = middle + 1;
      else
        high = middle;
    }
    return low < protect.size() && protect[low] == p;
  }

  std::size_t count_protected(std::size_t head, token_range among) const {
    std::size_t n = 0;
    if (!protect.empty())
      for (std::size_t row = among.begin; row < among.end; ++row) n += is_protected(head, row) ? 1U : 0U;
    return n;
  }

  /// How many rows compete with each other: those of a partition, or all.
  std::size_t group() const noexcept { return partition != 0 ? partition : rows.size(); }

  /// The most protected rows that a head holds of `among`.
  std::size_t most_protected(token_range among) const {
    std::size_t most = 0;
    for (std::size_t head = 0; head < heads; ++head)
      if (const std::size_t n = count_protected(head, among); n > most) most = n;
    return most;
  }

  /// Rows that each head keeps of `among`, which is a partition, or all candidates.
  std::size_t keep_of(token_range among) const {
    const std::size_t least = partition != 0 ? keep_each : keep, n = most_protected(among);
    return n > least ? n : least;
  }
};

}  // namespace lagkv::inline LAGKV_ABI
