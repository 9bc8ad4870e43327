// Part of lagkv (MIT). Views of Eigen's maps. Not in the umbrella; needs Eigen 3.4 or later.
//
//   Eigen::TensorMap<Eigen::Tensor<Eigen::half, 3, Eigen::RowMajor>> keys(data, tokens, heads, channels);
//   lagkv::layer layer{lagkv::view_of(keys, "thc"), lagkv::view_of(values, "thc"), used};
//
// TensorMaps: include <unsupported/Eigen/CXX11/Tensor> yourself; this header does not, since it is large.
// A view points to the map's elements and must not outlive them; the map itself may go. Nothing is copied. Matrices and tensors
// that own their elements are not taken as they are: wrap them in a Map, Ref or TensorMap.
#pragma once

#include <concepts>
#include <cstddef>

#include <Eigen/Core>

#include <lagkv/adapters/dims.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/strided.hpp>

namespace lagkv::inline LAGKV_ABI {

template <>
struct element_of<Eigen::half> {
  using type = f16;
};
template <>
struct element_of<Eigen::bfloat16> {
  using type = bf16;
};

/// Eigen::Map, Eigen::Ref, or a block of one, with elements that may be written.
template <class M>
concept eigen_map = std::derived_from<M, Eigen::MapBase<M, Eigen::WriteAccessors>>;

/// Eigen::TensorMap of a Tensor or TensorFixedSize of either storage order, with elements that may be written: data() of a const
/// one gives a plain pointer, which that of a tensor that owns its elements does not.
template <class M>
concept eigen_tensor_map = requires(const M& x) {
  typename M::Scalar;
  typename M::Index;
  { M::NumIndices } -> std::convertible_to<std::size_t>;
  { static_cast<int>(M::Layout) } -> std::same_as<int>;
  { x.dimension(0) } -> std::convertible_to<std::ptrdiff_t>;
  { x.data() } -> std::convertible_to<typename M::Scalar*>;
};

namespace detail {

template <eigen_tensor_map M>
inline constexpr auto rank_of = static_cast<std::size_t>(M::NumIndices);

/// Sizes, and the strides that follow from them: tensors are dense, and their storage order says which index runs fastest.
template <eigen_tensor_map M>
auto extents_of(const M& x) {
  constexpr std::size_t rank = rank_of<M>;
  extents<rank> out;
  std::ptrdiff_t stride = 1;
  for (std::size_t i = 0; i < rank; ++i) {
    const std::size_t index = static_cast<int>(M::Layout) == static_cast<int>(Eigen::RowMajor) ? rank - 1 - i : i;
    const Eigen::Index size = x.dimension(static_cast<typename M::Index>(index));
    out[index] = {static_cast<std::size_t>(size), stride};
    stride *= size;
  }
  return out;
}

}  // namespace detail

/// View of a Map (Ref, block) of a matrix or two-dimensional array, of any inner and outer stride, as one head: rows are tokens
/// and columns are channels, or with the order "ct" the other way round. The view's capacity is the number of rows
/// (columns). T: the library's element type, where Scalar does not tell (see element_of).
/// Overlapping strides, a null pointer and sizes of 0 are told by check(layer).
template <class T = void, eigen_map M>
requires detail::viewable<typename M::Scalar, T>
auto view_of(M x, dims<2> order = {}) {  // by value: data() of a const map is a pointer to const
  const detail::extents<2> extent{
      {{static_cast<std::size_t>(x.rows()), x.rowStride()}, {static_cast<std::size_t>(x.cols()), x.colStride()}}};
  return detail::array_view<detail::element<T, typename M::Scalar>>(x.data(), extent, order);
}

/// View of a TensorMap of rank 3, or of rank 2 as one head. `order` says which index is which.
template <class T = void, eigen_tensor_map M>
requires detail::viewable_whole<typename M::Scalar, T, detail::rank_of<M>>
auto view_of(const M& x, dims<detail::rank_of<M>> order = {}) {
  return detail::array_view<detail::element<T, typename M::Scalar>>(x.data(), detail::extents_of(x), order);
}

/// View of one batch index of a TensorMap of rank 4: a result, which names `batch` and its limit where it is too high.
template <class T = void, eigen_tensor_map M>
requires detail::viewable_by_batch<typename M::Scalar, T, detail::rank_of<M>>
auto view_of(const M& x, std::size_t batch, dims<4> order = {}) {
  return detail::batch_view<detail::element<T, typename M::Scalar>>(x.data(), detail::extents_of(x), order, batch);
}

}  // namespace lagkv::inline LAGKV_ABI
