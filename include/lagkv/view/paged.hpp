// Part of lagkv (MIT). A view of a pool of blocks through one sequence's block table (vLLM, SGLang slots, llama.cpp cells).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <lagkv/detail/vector.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// How a pool of blocks lies in memory; distances in units (elements, or blocks of a block type: see dtype).
struct block_layout {
  extent tokens = 16;      ///< tokens a block; 1 for a list of slots
  distance block = 0;      ///< from a block to the next one in the pool
  strides within{};        ///< inside a block
  extent pool_blocks = 0;  ///< blocks in the pool, where known (0: not checked)
};

namespace detail {

/// Blocks [first, last] that follow each other in the pool.
struct block_run {
  std::size_t first, last;
};

/// Refuses runs that share a block; all blocks are below `spanned`. Sorts them.
LAGKV_EDGE status check_disjoint(vector<block_run>& runs, std::size_t spanned);

}  // namespace detail

/// Token t of the sequence is token t % layout.tokens of block table[t / layout.tokens].
/// `table` is the host's and must outlive the view.
template <class T, std::integral Index = std::int32_t>
class paged {
 public:
  paged() = default;

  template <stored_as<T> Stored>
  paged(Stored* pool, const shape& size, const block_layout& layout, std::span<const Index> table)
      : pool_(reinterpret_cast<T*>(pool)), extent_(size), layout_(layout), table_(table) {}

  dtype type() const { return dtype_of<T>::value; }
  std::size_t heads() const { return extent_.heads; }
  std::size_t channels() const { return extent_.channels; }
  std::size_t capacity() const {
    const bool whole = layout_.tokens == 0 || table_.size() <= ~std::size_t{0} / layout_.tokens;
    return whole ? table_.size() * layout_.tokens : ~std::size_t{0};
  }

  tile at(std::size_t head, token_range tokens) const {
    std::size_t block = tokens.begin / layout_.tokens;
    const std::size_t offset = tokens.begin % layout_.tokens;
    const T* first = detail::moved(pool_, number(block), layout_.block, head, layout_.within.head) +
                     static_cast<std::ptrdiff_t>(offset) * layout_.within.token;
    std::size_t run = layout_.tokens - offset;
    // Neighbours in the table that are neighbours in the pool are one run: slots are mostly handed out in order.
    if (layout_.block == static_cast<std::ptrdiff_t>(layout_.tokens) * layout_.within.token)
      while (run < tokens.size() && number(block + 1) == number(block) + 1) {
        run += layout_.tokens;
        ++block;
      }
    return {reinterpret_cast<std::byte*>(const_cast<T*>(first)), run < tokens.size() ? run : tokens.size(), layout_.within.token,
            layout_.within.channel};
  }

  status check(std::size_t tokens) const {
    if (pool_ == nullptr) return error{"pool: is null"};
    if (layout_.tokens == 0) return error{"block tokens=0: must be 1 or more"};
    const std::size_t blocks = tokens / layout_.tokens + (tokens % layout_.tokens != 0 ? 1 : 0);
    if (blocks > table_.size())
      return detail::refuse({"block table of ", table_.size(), ": must be ", blocks, " or more for ", tokens, " tokens"});
    std::size_t spanned = 0;
    if (status s = check_table(blocks, spanned); !s) return s;
    detail::dimension dims[] = {{spanned, layout_.block},
                                {extent_.heads, layout_.within.head},
                                {layout_.tokens, layout_.within.token},
                                {extent_.channels / elements_of(type()), layout_.within.channel}};
    return detail::lie_apart(dims, pool_, sizeof(T),
                             detail::joined({"block=", layout_.block.value, ", ", detail::text(layout_.within)}),
                             detail::joined({" for ", spanned, " blocks of ", layout_.tokens.value, " tokens, ",
                                             extent_.heads.value, " heads, ", extent_.channels.value, " channels"}));
  }

 private:
  /// Whether the first `blocks` entries are blocks of the pool, each once; the highest of them is `spanned` - 1. Most tables are
  /// a few runs of neighbours, so this costs a comparison an entry.
  status check_table(std::size_t blocks, std::size_t& spanned) const {
    detail::vector<detail::block_run> runs;
    for (std::size_t i = 0; i < blocks; ++i) {
      const Index block = table_[i];
      if (std::cmp_less(block, 0)) return detail::refuse({"block ", block, ": must be 0 or more"});
      if (layout_.pool_blocks != 0 && std::cmp_greater_equal(block, layout_.pool_blocks.value))
        return detail::refuse({"block ", block, ": the pool has ", layout_.pool_blocks.value, " blocks"});
      if (std::cmp_greater_equal(block, ~std::size_t{0} / 2))
        return detail::refuse({"block ", block, ": exceeds what memory can address"});
      const std::size_t n = number(i);
      spanned = n < spanned ? spanned : n + 1;
      if (i > 0 && n == runs.back().last + 1)
        runs.back().last = n;
      else
        runs.push_back({n, n});
    }
    return detail::check_disjoint(runs, spanned);
  }

  std::size_t number(std::size_t entry) const { return static_cast<std::size_t>(table_[entry]); }

  T* pool_ = nullptr;
  shape extent_{};
  block_layout layout_{};
  std::span<const Index> table_{};
};

#if LAGKV_BODIES

namespace detail {

/// By the first block, a byte of it at a time: in scattered tables a sort that compares takes ten times as long.
LAGKV_FN void sort_runs(vector<block_run>& runs, std::size_t spanned) {
  vector<block_run> sorted;
  sorted.resize(runs.size());
  for (std::size_t shift = 0; shift < sizeof(std::size_t) * 8 && spanned >> shift != 0; shift += 8) {
    const auto digit = [&](const block_run& r) { return r.first >> shift & 255U; };
    std::size_t place[257] = {};
    for (const block_run& r : runs) ++place[digit(r) + 1];
    for (std::size_t d = 0; d < 256; ++d) place[d + 1] += place[d];
    for (const block_run& r : runs) sorted[place[digit(r)]++] = r;
    std::swap(runs, sorted);
  }
}

LAGKV_EDGE status check_disjoint(vector<block_run>& runs, std::size_t spanned) {
  bool ascending = true;
  for (std::size_t i = 1; i < runs.size(); ++i) ascending = ascending && runs[i].first > runs[i - 1].last;
  if (ascending) return {};
  sort_runs(runs, spanned);
  for (std::size_t i = 1; i < runs.size(); ++i)
    if (runs[i].first <= runs[i - 1].last) return refuse({"block ", runs[i].first, ": stands twice in the table"});
  return {};
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
