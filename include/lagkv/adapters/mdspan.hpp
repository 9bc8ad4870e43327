// Part of lagkv (MIT). Views of mdspans: std::mdspan, its reference implementation, cuda::std::mdspan, or a host's own type with
// their members. Includes none of them, and is not in the umbrella.
//
//   std::mdspan keys(data, tokens, heads, channels);
//   lagkv::layer layer{lagkv::view_of(keys, "thc"), lagkv::view_of(values, "thc"), used};
//
// A view points to the mdspan's elements and must not outlive them; the mdspan itself may go. Nothing is copied.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

#include <lagkv/adapters/dims.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/strided.hpp>

namespace lagkv::inline LAGKV_ABI {

/// What is asked of an mdspan: element_type, rank(), extent(i), stride(i) in elements, and a data_handle() that is a pointer.
/// Layouts that have no constant strides (is_always_strided() is false) are not taken.
template <class M>
concept mdspan_like = requires(const M& x) {
  typename M::element_type;
  { M::rank() } -> std::convertible_to<std::size_t>;
  { x.extent(0) } -> std::convertible_to<std::size_t>;
  { x.stride(0) } -> std::convertible_to<std::ptrdiff_t>;
  { x.data_handle() } -> std::convertible_to<typename M::element_type*>;
}
&&(!requires { requires !M::is_always_strided(); });

namespace detail {

template <mdspan_like M>
extents<M::rank()> extents_of(const M& x) {
  extents<M::rank()> out;
  for (std::size_t i = 0; i < M::rank(); ++i)
    out[i] = {static_cast<std::size_t>(x.extent(i)), static_cast<std::ptrdiff_t>(x.stride(i))};
  return out;
}

/// Element (0, 0, ...). Layouts with negative strides keep it elsewhere than at the handle.
template <mdspan_like M>
typename M::element_type* first_of(const M& x) {
  typename M::element_type* first = x.data_handle();
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    if constexpr (requires { x.mapping()((I * 0)...); })
      if ((... && (x.extent(I) != 0))) first += static_cast<std::ptrdiff_t>(x.mapping()((I * 0)...));
    return first;
  }
  (std::make_index_sequence<M::rank()>{});
}

}  // namespace detail

/// View of an mdspan of rank 3, or of rank 2 as one head. `order` says which index is which. The view's capacity is the
/// extent of the tokens. T: the library's element type, where element_type does not tell (see element_of).
/// Overlapping strides, a null handle and extents of 0 are told by check(layer).
template <class T = void, mdspan_like M>
requires detail::viewable_whole<typename M::element_type, T, M::rank()>
auto view_of(const M& x, dims<M::rank()> order = {}) {
  return detail::array_view<detail::element<T, typename M::element_type>>(detail::first_of(x), detail::extents_of(x), order);
}

/// View of one batch index of an mdspan of rank 4: a result, which names `batch` and its limit where it is too high.
template <class T = void, mdspan_like M>
requires detail::viewable_by_batch<typename M::element_type, T, M::rank()>
auto view_of(const M& x, std::size_t batch, dims<4> order = {}) {
  return detail::batch_view<detail::element<T, typename M::element_type>>(detail::first_of(x), detail::extents_of(x), order,
                                                                          batch);
}

}  // namespace lagkv::inline LAGKV_ABI
