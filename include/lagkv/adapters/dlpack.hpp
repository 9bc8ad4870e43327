// Part of lagkv (MIT). Views of DLPack tensors (PyTorch, NumPy, JAX, TVM, ...) in CPU memory. Not in the umbrella; needs
// <dlpack/dlpack.h> 0.5 or later (Debian: libdlpack-dev), 1.0 or later for DLManagedTensorVersioned.
//
//   lagkv::result<lagkv::tensor> keys = lagkv::view_of(*managed, batch);         // [batch, heads, tokens, channels]
//   if (!keys) return keys.message();
//
// A view points to the tensor's elements: keep the tensor, do not call its deleter, while views of it are in use. Nothing is
// copied, and nothing of the tensor is changed but the elements that compress() or compact() move.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include <dlpack/dlpack.h>

#include <lagkv/adapters/dims.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/dtype.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

inline result<dtype> dtype_of_dlpack(const DLDataType& type) {
  if (type.lanes == 1 && type.code == kDLFloat && type.bits == 32) return dtype::f32;
  if (type.lanes == 1 && type.code == kDLFloat && type.bits == 16) return dtype::f16;
  if (type.lanes == 1 && type.code == kDLBfloat && type.bits == 16) return dtype::bf16;
  return error{"dtype code=" + std::to_string(type.code) + ", bits=" + std::to_string(type.bits) +
               ", lanes=" + std::to_string(type.lanes) + ": must be float32, float16 or bfloat16 (code 2, 2 or 4) with one lane"};
}

/// Sizes and strides; where the tensor has no strides it is dense and its last index runs fastest.
template <std::size_t Rank>
result<extents<Rank>> extents_of(const DLTensor& x, const dims<Rank>& order) {
  if (x.ndim != static_cast<int>(Rank))
    return error{"ndim=" + std::to_string(x.ndim) + ": must be " + std::to_string(Rank) + " for the order " + order.text()};
  if (x.shape == nullptr) return error{"shape: is null"};
  extents<Rank> out;
  std::int64_t dense = 1;
  for (std::size_t i = Rank; i-- > 0;) {
    const std::int64_t size = x.shape[i];
    if (size < 0) return error{"shape[" + std::to_string(i) + "]=" + std::to_string(size) + ": must be 0 or more"};
    out[i] = {static_cast<std::size_t>(size), static_cast<std::ptrdiff_t>(x.strides != nullptr ? x.strides[i] : dense)};
    // Sizes come from outside, so their product may be anything.
    if (size != 0 && dense > (std::numeric_limits<std::int64_t>::max)() / 4 / size)
      return error{"shape[" + std::to_string(i) + "]=" + std::to_string(size) + ": the elements exceed what memory can address"};
    dense *= size;
  }
  return out;
}

template <class T, std::size_t Rank>
tensor dlpack_view(std::byte* first, const extents<Rank>& extent, const dims<Rank>& order, std::size_t batch) {
  return array_view<T>(reinterpret_cast<T*>(first), extent, order, batch);
}

template <std::size_t Rank>
result<tensor> dlpack_view(const DLTensor& x, const dims<Rank>& order, std::size_t batch = 0) {
  if (x.device.device_type != kDLCPU && x.device.device_type != kDLCUDAHost)
    return error{"device_type=" + std::to_string(static_cast<int>(x.device.device_type)) + ": must be " +
                 std::to_string(static_cast<int>(kDLCPU)) + " (kDLCPU) or " + std::to_string(static_cast<int>(kDLCUDAHost)) +
                 " (kDLCUDAHost)"};
  const result<dtype> type = dtype_of_dlpack(x.dtype);
  if (!type) return error{type.message()};
  const result<extents<Rank>> extent = extents_of(x, order);
  if (!extent) return error{extent.message()};
  if constexpr (Rank == 4)
    if (status s = check_batch(batch, *extent, order); !s) return error{s.message()};
  if (x.data == nullptr) return error{"data: is null"};
  if (x.byte_offset > (std::numeric_limits<std::uintptr_t>::max)() / 2 - reinterpret_cast<std::uintptr_t>(x.data) / 2)
    return error{"byte_offset=" + std::to_string(x.byte_offset) + ": exceeds what memory can address"};
  std::byte* first = static_cast<std::byte*>(x.data) + x.byte_offset;
  if (const auto rest = reinterpret_cast<std::uintptr_t>(first) % size_of(*type); rest != 0)
    return error{"data + byte_offset: is " + std::to_string(rest) + " bytes past a multiple of " +
                 std::to_string(size_of(*type)) + ": must be aligned to its elements"};
  switch (*type) {
    case dtype::f32:
      return dlpack_view<float>(first, *extent, order, batch);
    case dtype::f16:
      return dlpack_view<f16>(first, *extent, order, batch);
    default:
      return dlpack_view<bf16>(first, *extent, order, batch);
  }
}

}  // namespace detail

/// View of a tensor of rank 3. `order` says which index is which; the view's capacity is the extent of the tokens.
/// Refused, with the value and the limit in the message: tensors that are not in CPU memory (kDLCPU; kDLCUDAHost, once the host
/// has waited for what writes them), elements other than float32, float16 and bfloat16, another rank, shapes and pointers that
/// are none. Strides that overlap (an expanded tensor) and sizes of 0 are told by check(layer).
/// Whether the elements may be written a DLTensor does not say: the host must know.
inline result<tensor> view_of(const DLTensor& x, dims<3> order = {}) { return detail::dlpack_view(x, order); }

/// View of a tensor of rank 2, as one head.
inline result<tensor> view_of(const DLTensor& x, dims<2> order) { return detail::dlpack_view(x, order); }

/// View of one batch index of a tensor of rank 4; refused also where there is no such index.
inline result<tensor> view_of(const DLTensor& x, std::size_t batch, dims<4> order = {}) {
  return detail::dlpack_view(x, order, batch);
}

/// The same of managed tensors; they stay the caller's.
inline result<tensor> view_of(const DLManagedTensor& x, dims<3> order = {}) { return view_of(x.dl_tensor, order); }
inline result<tensor> view_of(const DLManagedTensor& x, dims<2> order) { return view_of(x.dl_tensor, order); }
inline result<tensor> view_of(const DLManagedTensor& x, std::size_t batch, dims<4> order = {}) {
  return view_of(x.dl_tensor, batch, order);
}

#if defined(DLPACK_MAJOR_VERSION) && DLPACK_MAJOR_VERSION >= 1

namespace detail {

inline status check_managed(const DLManagedTensorVersioned& x) {
  if (x.version.major != DLPACK_MAJOR_VERSION)
    return error{"version.major=" + std::to_string(x.version.major) + ": must be " + std::to_string(DLPACK_MAJOR_VERSION)};
  if ((x.flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0)
    return error{"flags=" + std::to_string(x.flags) + ": the tensor is read-only, and compaction writes"};
  return {};
}

}  // namespace detail

/// The same; refused also where the tensor is read-only or of another major version of DLPack. A copy that the producer made
/// (DLPACK_FLAG_BITMASK_IS_COPIED) is taken: then it is the copy that is compacted, not the producer's own tensor.
inline result<tensor> view_of(const DLManagedTensorVersioned& x, dims<3> order = {}) {
  if (status s = detail::check_managed(x); !s) return error{s.message()};
  return view_of(x.dl_tensor, order);
}
inline result<tensor> view_of(const DLManagedTensorVersioned& x, dims<2> order) {
  if (status s = detail::check_managed(x); !s) return error{s.message()};
  return view_of(x.dl_tensor, order);
}
inline result<tensor> view_of(const DLManagedTensorVersioned& x, std::size_t batch, dims<4> order = {}) {
  if (status s = detail::check_managed(x); !s) return error{s.message()};
  return view_of(x.dl_tensor, batch, order);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
