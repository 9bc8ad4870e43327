// Part of lagkv (MIT). A view of a ring buffer, whose tokens go round the end of another view.
#pragma once

#include <cstddef>
#include <limits>

#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Token t is token (first + t) % slots of `View`, whose capacity is the slots: a regular array mostly, or a block table.
/// Scales and transforms go around rings: scaled(ring(bytes, first), ring(scales, first)), hadamard(ring(rows, first), n).
///
/// If `freed` rows went and n are left, the host does one of these before the next token:
///  toward::front   nothing: token n goes to slot (first + n) % slots, as ever.
///  toward::window  the freed rows lie right after the tokens before the range. It moves those tokens up by `freed` (compact()
///                  with a plan that says so, see docs/layouts.md), and first becomes (first + freed) % slots. The window
///                  has not moved: where the last token lies, and where the next one goes, is as without compaction. For
///                  hosts whose slots are position % slots.
template <kv_tensor View>
class ring {
  static_assert(!has_row_scales<View>, "put the ring inside scaled");
  static_assert(!has_transform<View>, "put the ring inside hadamard");

 public:
  ring() = default;
  ring(const View& slots, std::size_t first) : slots_(slots), first_(first) {}

  dtype type() const { return slots_.type(); }
  std::size_t heads() const { return slots_.heads(); }
  std::size_t channels() const { return slots_.channels(); }
  std::size_t capacity() const { return slots_.capacity(); }

  tile at(std::size_t head, token_range tokens) const {
    const std::size_t slot = (first_ + tokens.begin) % capacity(), left = capacity() - slot;
    return slots_.at(head, {slot, slot + (tokens.size() < left ? tokens.size() : left)});
  }

  status check(std::size_t tokens) const {
    if (capacity() == (std::numeric_limits<std::size_t>::max)())
      return error{"ring: capacity is unbounded: must be the number of slots"};
    if (first_ >= capacity()) return detail::refuse({"ring: first=", first_, ": must be below the ", capacity(), " slots"});
    if (tokens > capacity()) return detail::refuse({"ring: tokens=", tokens, ": must be at most the ", capacity(), " slots"});
    return slots_.check(capacity());  // wherever the tokens lie, and will lie
  }

 private:
  View slots_{};
  std::size_t first_ = 0;
};

}  // namespace lagkv::inline LAGKV_ABI
