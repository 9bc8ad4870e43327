// Part of lagkv (MIT). The decision as data: which tokens of each head stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <lagkv/detail/vector.hpp>
#include <lagkv/view/range.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Which rows of a layer stay: all that are not candidates, and of the candidates those listed for each head, in ascending
/// order. Plain data: print it, send it to a device, apply it with compact().
struct plan {
  token_range candidates{};              ///< the rows that this plan chooses among, as they lay before compaction
  std::size_t tokens_before = 0;         ///< rows in use before compaction
  detail::vector<std::uint32_t> kept{};  ///< rows that stay, head after head
  detail::vector<std::size_t> first{0};  ///< head h keeps kept[first[h]] .. kept[first[h + 1] - 1]

  std::size_t heads() const { return first.size() - 1; }

  /// The candidates that this head keeps, ascending.
  std::span<const std::uint32_t> of(std::size_t head) const {
    return std::span(kept).subspan(first[head], first[head + 1] - first[head]);
  }

  /// Rows of this head after compaction.
  std::size_t tokens_after(std::size_t head = 0) const {
    return heads() == 0 ? tokens_before : tokens_before - candidates.size() + of(head).size();
  }

  /// Whether there are no candidates: nothing moves or goes. A plan that keeps all its candidates (ratio=1) is not empty; compare
  /// tokens_after() with tokens_before.
  bool empty() const { return candidates.empty(); }

  /// The row that lies at row `i` of this head after compaction to the front.
  std::size_t source(std::size_t head, std::size_t i) const;

  /// The rows that this head keeps, sinks, window and all, in the order in which they lie after compaction to the front:
  /// tokens_after(head) of them. The indices of a gather, for hosts that keep their cache elsewhere.
  std::vector<std::uint32_t> rows(std::size_t head) const;

  /// The plan of `n` heads that keep `each` rows of `range`, to be filled in through row().
  void reset(token_range range, std::size_t tokens, std::size_t n, std::size_t each);

  /// The plan without candidates, which drops nothing.
  void clear(std::size_t tokens) {
    candidates = {};
    tokens_before = tokens;
    kept.clear();
    if (first.size() != 1) first.resize(1);
  }

  std::uint32_t* row(std::size_t head) { return kept.data() + first[head]; }
};

/// Whether all heads of both plans keep the same number of rows, as hosts with one length for all layers need.
bool equal_counts(const plan& a, const plan& b);

#if LAGKV_BODIES

LAGKV_FN bool equal_counts(const plan& a, const plan& b) {
  const auto equal = [count = a.tokens_after()](const plan& p) {
    for (std::size_t head = 0; head < p.heads(); ++head)
      if (p.tokens_after(head) != count) return false;
    return p.tokens_after() == count;
  };
  return equal(a) && equal(b);
}

LAGKV_FN std::size_t plan::source(std::size_t head, std::size_t i) const {
  if (empty() || i < candidates.begin) return i;
  const std::size_t inside = i - candidates.begin, stay = of(head).size();
  return inside < stay ? of(head)[inside] : candidates.end + (inside - stay);
}

LAGKV_FN std::vector<std::uint32_t> plan::rows(std::size_t head) const {
  std::vector<std::uint32_t> all(tokens_after(head));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint32_t>(source(head, i));
  return all;
}

LAGKV_FN void plan::reset(token_range range, std::size_t tokens, std::size_t n, std::size_t each) {
  kept.resize(n * each);
  first.resize(n + 1);
  candidates = range;
  tokens_before = tokens;
  for (std::size_t h = 0; h <= n; ++h) first[h] = h * each;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
