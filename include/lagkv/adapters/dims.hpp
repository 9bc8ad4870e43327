// Part of lagkv (MIT). What the adapters of array types (eigen.hpp, mdspan.hpp, dlpack.hpp) share: which dimension is which.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/strided.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {
inline constexpr char dimension_letters[] = "bhtc";
void dims_must_be_an_order_of_tc_or_htc_or_bhtc();  // never defined: what the compiler names where a literal is wrong
}  // namespace detail

/// Which index of an array is which, a letter for each, first index first: b batch, h heads, t tokens, c channels.
///
///  dims<2>  "tc" (the default), "ct"            one head
///  dims<3>  any order of "htc" (the default)
///  dims<4>  any order of "bhtc" (the default)   a view is of one batch index
///
/// Letters name indices as the host writes them, x(h, t, c); how far apart elements lie is told by the array's strides.
/// String literals convert; one that is no such order, or not of the array's rank, does not compile.
template <std::size_t Rank>
requires(Rank >= 2 && Rank <= 4) class dims {
 public:
  consteval dims() {
    for (std::size_t i = 0; i < Rank; ++i) text_[i] = detail::dimension_letters[4 - Rank + i];
  }

  consteval dims(const char (&letters)[Rank + 1]) {
    for (std::size_t i = 0; i < Rank; ++i) text_[i] = letters[i];
    for (std::size_t i = 0; i < Rank; ++i)
      if (of(detail::dimension_letters[4 - Rank + i]) == Rank) detail::dims_must_be_an_order_of_tc_or_htc_or_bhtc();
  }

  /// The index that the letter stands for; Rank where there is none.
  constexpr std::size_t of(char letter) const {
    std::size_t i = 0;
    while (i < Rank && text_[i] != letter) ++i;
    return i;
  }
  constexpr const char* text() const { return text_; }

 private:
  char text_[Rank + 1] = {};
};

/// The library's element type for a host's. Specialised for those that name their format; where a type does not (an integer
/// that holds the bits, say), the caller does: view_of<lagkv::f16>(x).
template <class Stored>
struct element_of {};
template <>
struct element_of<float> {
  using type = float;
};
template <>
struct element_of<f16> {
  using type = f16;
};
template <>
struct element_of<bf16> {
  using type = bf16;
};

namespace detail {

/// T, or where it is void what Stored is known as.
template <class T, class Stored>
using element = typename std::conditional_t<std::is_void_v<T>, element_of<Stored>, std::type_identity<T>>::type;

/// Elements that a view may stand on: of a known type, not const, since compaction writes, and no blocks of several elements.
template <class Stored, class T>
concept viewable = !std::is_const_v<Stored> && sizeof(Stored) <= sizeof(float) && requires {
  typename element<T, Stored>;
  requires stored_as<Stored, element<T, Stored>>;
};

template <class Stored, class T, std::size_t Rank>
concept viewable_whole = viewable<Stored, T> &&(Rank == 2 || Rank == 3);
template <class Stored, class T, std::size_t Rank>
concept viewable_by_batch = viewable<Stored, T> && Rank == 4;

/// Size and stride of each index.
template <std::size_t Rank>
using extents = std::array<dimension, Rank>;

/// The view of an array; `first` is element (0, 0, ...).
template <class T, class Stored, std::size_t Rank>
strided<T> array_view(Stored* first, const extents<Rank>& extent, const dims<Rank>& order, std::size_t batch = 0) {
  dimension heads{1, 0};
  if constexpr (Rank > 2) heads = extent[order.of('h')];
  if constexpr (Rank > 3)
    if (first != nullptr) {  // check() looks for null, and for addresses that none has
      const auto units = static_cast<std::uintptr_t>(batch) * static_cast<std::uintptr_t>(extent[order.of('b')].stride);
      first = reinterpret_cast<Stored*>(reinterpret_cast<std::uintptr_t>(first) + units * sizeof(Stored));
    }
  const dimension tokens = extent[order.of('t')], channels = extent[order.of('c')];
  return {first, {heads.size, channels.size}, {heads.stride, tokens.stride, channels.stride}, tokens.size};
}

/// Whether the array has this batch index, at a distance that memory can have.
inline status check_batch(std::size_t batch, const extents<4>& extent, const dims<4>& order) {
  if (const std::size_t size = extent[order.of('b')].size; batch >= size)
    return error{"batch=" + std::to_string(batch) + ": must be below " + std::to_string(size)};
  if (const std::ptrdiff_t stride = extent[order.of('b')].stride; !addressable(batch + 1, stride, sizeof(float)))
    return error{"stride of the batch=" + std::to_string(stride) + ": batch " + std::to_string(batch) +
                 " exceeds what memory can address"};
  return {};
}

/// The view of one batch index, which the array may not have.
template <class T, class Stored>
result<strided<T>> batch_view(Stored* first, const extents<4>& extent, const dims<4>& order, std::size_t batch) {
  if (status s = check_batch(batch, extent, order); !s) return error{s.message()};
  return array_view<T>(first, extent, order, batch);
}

}  // namespace detail

}  // namespace lagkv::inline LAGKV_ABI
