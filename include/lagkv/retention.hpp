// Part of lagkv (MIT). When tokens are judged, which, and how many of them stay. Plain data; no scores, no memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <lagkv/core.hpp>

namespace lagkv {

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
/// partition of that many tokens.
struct due {
  token_range judged;
  std::size_t keep = 0;
  std::size_t partition = 0;
  std::size_t keep_each = 0;

  bool empty() const { return judged.empty(); }
};

/// What a policy promises to keep.
enum class budget : std::uint8_t {
  share_of_partition,  ///< int(amount * lag) of each partition
  share_of_all,        ///< int(amount * tokens seen), sinks and window counted
  capacity             ///< amount rows
};

/// The first `sink` tokens stay. With `lag` > 0 the tokens after the part already judged form partitions of `lag`; all
/// but the last whole one are judged, once ever, as soon as there are two of them; the last and what follows it are the
/// window. With `lag` == 0 the window is the last `recent` tokens, and the tokens between it and the part already judged
/// are judged together, once ever, as soon as they are `recent` or more.
struct retention {
  std::size_t sink = 16;
  std::size_t lag = 0;
  std::size_t recent = 0;
  budget kind = budget::share_of_partition;
  double amount = 0.5;
  /// Instead of all this: whatever exceeds the budget goes, the oldest after the sinks first (StreamingLLM).
  bool oldest_first = false;

  /// A few comparisons; no loop. `tokens` are the rows in use. Where the host took tokens back (tokens < at.judged), the
  /// judged part ends with them.
  lagkv::due due(const cursor& at, std::size_t tokens) const {
    if (oldest_first) {
      const std::size_t goal = target(tokens + at.dropped);
      if (tokens <= goal || tokens <= sink) return {};
      const std::size_t excess = tokens - goal, most = tokens - sink;
      return {{sink, sink + (excess < most ? excess : most)}, 0, 0, 0};
    }
    const std::size_t done = at.judged < tokens ? at.judged : tokens;
    const std::size_t begin = done > sink ? done : sink;
    const std::size_t unit = lag != 0 ? lag : recent;
    if (tokens < begin || tokens - begin < 2 * unit) return {};
    const std::size_t end = lag != 0 ? begin + ((tokens - begin) / lag - 1) * lag : tokens - recent;
    lagkv::due d{{begin, end}, end - begin, 0, 0};
    if (kind == budget::share_of_partition) {
      d.partition = unit;
      d.keep_each = share(amount, unit);
      d.keep = d.keep_each * (d.judged.size() / unit);
    } else {
      const std::size_t goal = target(tokens + at.dropped);
      const std::size_t excess = tokens > goal ? tokens - goal : 0;
      d.keep = d.judged.size() - (excess < d.judged.size() ? excess : d.judged.size());
      if (excess == 0) return {};
    }
    return d;
  }

  /// int(amount * n) as Python computes it: in f64, so that 0.29 * 100 is 28.
  static std::size_t share(double amount, std::size_t n) { return static_cast<std::size_t>(amount * static_cast<double>(n)); }

 private:
  std::size_t target(std::size_t seen) const {
    return kind == budget::capacity ? static_cast<std::size_t>(amount) : share(amount, seen);
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

inline result<cursor> load_cursor(std::span<const std::byte> bytes) {
  if (bytes.size() != saved_cursor{}.size())
    return error{"saved cursor of " + std::to_string(bytes.size()) + " bytes: must be " + std::to_string(saved_cursor{}.size())};
  std::size_t at = 0;
  const auto get = [&](int n) {
    std::uint64_t x = 0;
    for (int i = 0; i < n; ++i) x |= static_cast<std::uint64_t>(bytes[at++]) << (8 * i);
    return x;
  };
  if (const std::uint64_t version = get(4); version != 1)
    return error{"saved cursor of version " + std::to_string(version) + ": must be 1"};
  cursor c;
  c.tokens = get(8), c.dropped = get(8), c.judged = get(8);
  if (c.judged > c.tokens)
    return error{"saved cursor: judged=" + std::to_string(c.judged) + ": must be at most tokens=" + std::to_string(c.tokens)};
  return c;
}

}  // namespace lagkv
