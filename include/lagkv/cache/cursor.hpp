// Part of lagkv (MIT). How far a layer of one sequence has been compressed.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How far a layer of one sequence has been compressed. A new sequence has a new cursor; copy it with a forked sequence, save
/// it with a saved one, take_back() if the host removes tokens from the end, take_out() if it removes others. docs/cursor.md
/// has the life of a cursor.
struct cursor {
  std::size_t tokens = 0;      ///< rows in use after the last compress()
  std::size_t dropped = 0;     ///< rows dropped so far
  std::size_t compressed = 0;  ///< rows [0, compressed) are sinks or survivors: candidates again only with a capacity
  std::uint32_t mark = 0;  ///< debug builds: what row `compressed` - 1 held, so that another sequence is noticed; 0: not known

  /// Tokens of the sequence up to the last compress(): the position of the next one for RoPE. It changes in compress(),
  /// take_back() and take_out(), so the host counts the tokens appended since by itself.
  std::size_t seen() const noexcept { return tokens + dropped; }

  friend bool operator==(const cursor& a, const cursor& b) noexcept {
    return a.tokens == b.tokens && a.dropped == b.dropped && a.compressed == b.compressed;
  }
};

/// The host has removed rows from the end, so that `rows` are left (speculation that failed, an answer that is tried again):
/// at.tokens and at.compressed become at most that. What was dropped before stays dropped. `rows` below at.compressed is not
/// refused, but positions are then wrong (docs/cursor.md).
inline void take_back(cursor& at, std::size_t rows) noexcept {
  if (rows < at.tokens) at.tokens = rows;
  if (rows < at.compressed) at.compressed = rows, at.mark = 0;
}

/// What becomes of the positions of removed tokens. `kept`: later tokens have the positions that they had, and the removed ones
/// count as dropped. `closed`: later tokens move up (a context shift), and the removed ones never were.
enum class gap { kept, closed };

/// The host has removed rows [begin, end) of those in use and moved the later ones up: an old turn of a chat, the output of a
/// tool. Rows that were appended since the last compress() count, too; an empty range changes nothing. With gap::kept, tokens
/// before the gap that have never been candidates lie at other positions than cursor and row say: offer `positions` to a policy
/// that reads them. Below at.compressed a row is another token in each head.
inline void take_out(cursor& at, std::size_t begin, std::size_t end, gap positions) noexcept {
  if (begin >= end) return;
  const auto before = [&](std::size_t row) { return (std::min)(end, row) - (std::min)(begin, row); };
  if (const std::size_t n = before(at.compressed); n != 0) at.compressed -= n, at.mark = 0;
  at.tokens -= before(at.tokens);
  if (positions == gap::kept) at.dropped += end - begin;
}

/// A cursor as 28 bytes, the same on every machine: a version, then three integers, little endian.
using saved_cursor = std::array<std::byte, 28>;

inline saved_cursor save(const cursor& c) {
  saved_cursor bytes{};
  std::size_t at = 0;
  const auto put = [&](std::uint64_t x, int n) {
    for (int i = 0; i < n; ++i) bytes[at++] = static_cast<std::byte>(x >> (8 * i));
  };
  put(1, 4);
  put(c.tokens, 8), put(c.dropped, 8), put(c.compressed, 8);
  return bytes;
}

/// The cursor that was saved; refused if the bytes are not 28, of another version, or name numbers that no cache has.
LAGKV_EDGE result<cursor> load_cursor(std::span<const std::byte> bytes);

namespace detail {

/// The most that a count of a cursor may be: sums of them hold, on 32 bits too.
inline constexpr std::size_t most_counted = (std::numeric_limits<std::size_t>::max)() / 4;

/// Whether [begin, end) may be taken out: for callers that know no more of it.
inline status check_take_out(const cursor& at, std::size_t begin, std::size_t end) {
  if (begin > end) return refuse({"begin=", begin, ": must be at most end=", end});
  const std::size_t most = most_counted - (std::min)(at.dropped, most_counted);
  if (end > most) return refuse({"end=", end, ": must be at most ", most});
  return {};
}

}  // namespace detail

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
  std::uint64_t count[3];
  for (std::uint64_t& n : count)
    if ((n = get(8)) > detail::most_counted)
      return detail::refuse({"saved cursor: a count of ", n, ": must be at most ", detail::most_counted});
  const auto in_memory = [](auto n) { return static_cast<std::size_t>(n); };
  const cursor c{in_memory(count[0]), in_memory(count[1]), in_memory(count[2])};
  if (c.compressed > c.tokens)
    return detail::refuse({"saved cursor: compressed=", c.compressed, ": must be at most tokens=", c.tokens});
  return c;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
