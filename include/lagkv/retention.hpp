// Part of lagkv (MIT). When tokens are judged, which, and how many of them stay. Plain data; no scores, no memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <lagkv/core.hpp>
#include <lagkv/detail/message.hpp>
#include <lagkv/layer.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How far a layer of one sequence has been compressed. Copy it with a forked sequence, save it with a saved one.
struct cursor {
  std::size_t tokens = 0;   ///< rows in use after the last step (physical length)
  std::size_t dropped = 0;  ///< rows dropped so far
  std::size_t judged = 0;   ///< rows [0, judged) are sinks or survivors and are not judged again

  /// Tokens the sequence has seen: the position of the next one, for RoPE.
  std::size_t seen() const { return tokens + dropped; }

  friend bool operator==(const cursor&, const cursor&) = default;
};

/// What is due now: each head keeps `keep` rows of `judged`; where `partition` is not 0, it keeps `keep_each` of each
/// partition of that many tokens (more of one that holds more protected rows).
struct due {
  token_range judged;
  std::size_t keep = 0;
  std::size_t partition = 0;
  std::size_t keep_each = 0;
  row_positions positions{};
  std::span<const std::uint32_t> protect{};  ///< positions that stay whatever their scores, ascending

  bool empty() const { return judged.empty(); }

  bool spares(std::size_t head, std::size_t row) const {
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

  std::size_t count_spared(std::size_t head, token_range rows) const {
    std::size_t n = 0;
    if (!protect.empty())
      for (std::size_t row = rows.begin; row < rows.end; ++row) n += spares(head, row) ? 1U : 0U;
    return n;
  }

  /// Rows that compete with each other: those of a partition, or all.
  std::size_t part() const { return partition != 0 ? partition : judged.size(); }

  /// Rows that a head keeps of a part of the judged range, which is a partition or all of it.
  std::size_t keep_of(std::size_t head, token_range part) const {
    const std::size_t least = partition != 0 ? keep_each : keep;
    if (protect.empty()) return least;
    const std::size_t n = count_spared(head, part);
    return n > least ? n : least;
  }
};

/// What a policy promises to keep.
enum class budget : std::uint8_t {
  share_of_partition,  ///< int(amount * lag) of each partition
  share_of_all,        ///< int(amount * tokens seen), sinks and window counted
  capacity,            ///< amount rows
  bytes                ///< amount bytes in all layers together; fit() in policy.hpp makes it a capacity
};

/// Budgets that fall from layer to layer (PyramidKV, arXiv 2406.02069): what a layer keeps beside sinks and window is
/// 2 - 1/beta times the average in the first layer, less by the same step from one to the next, 1/beta times in the last.
/// Where the first could not hold that much, the slope is less steep. All layers together keep what they would without it.
struct pyramid {
  double beta = 0;  ///< 1: no slope; the paper's 20; 0: not used
  std::size_t layer = 0;
  std::size_t layers = 1;

  bool used() const { return beta > 1 && layers > 1; }

  /// Times the average that this layer keeps, where the first could hold `most` times the average.
  double factor(double most) const {
    const double steep = 2 - 1 / beta, first = steep < most ? steep : (most > 1 ? most : 1.0);
    return first - 2 * (first - 1) * static_cast<double>(layer) / static_cast<double>(layers - 1);
  }
};

/// The first `sink` tokens stay, and the most recent ones, the window. Which of the others are judged, and when:
///  - lag > 0: the tokens after the part already judged form partitions of `lag`; all but the last whole one are judged,
///    once ever, as soon as there are two of them; the last and what follows it are the window.
///  - lag == 0: the window is the last `recent` tokens; those between it and the part already judged are judged together,
///    once ever, as soon as they are `recent` or more.
///  - lag == 0 and `again`: all between sinks and window are judged, survivors of earlier times too, whenever `every` rows
///    or more exceed the budget.
struct retention {
  std::size_t sink = 16;
  std::size_t lag = 0;
  std::size_t recent = 0;
  budget kind = budget::share_of_partition;
  double amount = 0.5;
  /// Instead of all this: whatever exceeds the budget goes, the oldest after the sinks first (StreamingLLM).
  bool oldest_first = false;
  bool again = false;
  std::size_t every = 1;
  double recent_share = 0;  ///< the window is at least this share of the budget (H2O: half)
  pyramid slope{};

  /// A few comparisons; no loop. `tokens` are the rows in use. Where the host took tokens back (tokens < at.judged), the
  /// judged part ends with them.
  lagkv::due due(const cursor& at, std::size_t tokens) const {
    lagkv::due d = due_rows(at, tokens);
    d.positions.dropped = at.dropped;
    return d;
  }

  /// int(amount * n) as Python computes it: in f64, so that 0.29 * 100 is 28.
  static std::size_t share(double amount, std::size_t n) { return static_cast<std::size_t>(amount * static_cast<double>(n)); }

 private:
  lagkv::due due_rows(const cursor& at, std::size_t tokens) const {
    const std::size_t done = at.judged < tokens ? at.judged : tokens;
    const std::size_t begin = done > sink && !again ? done : sink;
    if (kind == budget::share_of_partition && !oldest_first) return due_partitions(begin, tokens);
    const std::size_t goal = target(tokens + at.dropped);
    if (tokens <= begin || tokens <= goal) return {};
    const std::size_t excess = tokens - goal;
    if (oldest_first) return {.judged = {begin, begin + least(excess, tokens - begin)}};
    const std::size_t window = recent_rows(goal);
    std::size_t end = tokens;
    if (again) {
      if (excess < every) return {};
      end = tokens > window ? tokens - window : 0;
    } else {
      const std::size_t unit = lag != 0 ? lag : window;
      if (tokens - begin < 2 * unit) return {};
      end = lag != 0 ? begin + ((tokens - begin) / lag - 1) * lag : tokens - window;
    }
    if (end <= begin) return {};
    const std::size_t n = end - begin;
    return {.judged = {begin, end}, .keep = n - least(excess, n)};
  }

  static std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

  lagkv::due due_partitions(std::size_t begin, std::size_t tokens) const {
    if (tokens < begin || tokens - begin < 2 * lag) return {};
    const std::size_t partitions = (tokens - begin) / lag - 1, each = share(amount, lag);
    return {.judged = {begin, begin + partitions * lag}, .keep = partitions * each, .partition = lag, .keep_each = each};
  }

  std::size_t recent_rows(std::size_t goal) const {
    const std::size_t at_least = share(recent_share, goal);
    return at_least > recent ? at_least : recent;
  }

  std::size_t target(std::size_t seen) const {
    const std::size_t goal = kind == budget::share_of_all ? share(amount, seen) : static_cast<std::size_t>(amount);
    return slope.used() ? sloped(goal, seen) : goal;
  }

  std::size_t sloped(std::size_t goal, std::size_t seen) const {
    const std::size_t outside = sink + recent_rows(goal);
    if (goal <= outside || seen <= goal) return goal;
    const double average = static_cast<double>(goal - outside);
    const double factor = slope.factor(static_cast<double>(seen - outside) / average);
    return outside + static_cast<std::size_t>(average * factor + 0.5);
  }
};

/// A cursor as 28 bytes, the same on every machine: a version, then three integers, little endian.
using saved_cursor = std::array<std::byte, 28>;

inline saved_cursor save(const cursor& c) {
  saved_cursor bytes{};
  std::size_t at = 0;
  const auto put = [&](std::uint64_t x, int n) {
    for (int i = 0; i < n; ++i) bytes[at++] = static_cast<std::byte>(x >> (8 * i));
  };
  put(1, 4);
  put(c.tokens, 8), put(c.dropped, 8), put(c.judged, 8);
  return bytes;
}

LAGKV_EDGE result<cursor> load_cursor(std::span<const std::byte> bytes);

#if LAGKV_BODIES

LAGKV_EDGE result<cursor> load_cursor(std::span<const std::byte> bytes) {
  if (bytes.size() != saved_cursor{}.size())
    return detail::refuse({"saved cursor of ", bytes.size(), " bytes: must be ", saved_cursor{}.size()});
  std::size_t at = 0;
  const auto get = [&](int n) {
    std::uint64_t x = 0;
    for (int i = 0; i < n; ++i) x |= static_cast<std::uint64_t>(bytes[at++]) << (8 * i);
    return x;
  };
  if (const std::uint64_t version = get(4); version != 1)
    return detail::refuse({"saved cursor of version ", version, ": must be 1"});
  constexpr std::uint64_t most = (std::numeric_limits<std::size_t>::max)() / 4;  // sums of them hold, on 32 bits too
  std::uint64_t count[3];
  for (std::uint64_t& n : count)
    if ((n = get(8)) > most) return detail::refuse({"saved cursor: a count of ", n, ": must be at most ", most});
  const auto in_memory = [](auto n) { return static_cast<std::size_t>(n); };
  const cursor c{in_memory(count[0]), in_memory(count[1]), in_memory(count[2])};
  if (c.judged > c.tokens) return detail::refuse({"saved cursor: judged=", c.judged, ": must be at most tokens=", c.tokens});
  return c;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
