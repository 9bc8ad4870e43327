// Part of lagkv (MIT). A view of any regular array: [heads, tokens, channels], [tokens, heads, channels], transposed, padded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Members take any integer type.
struct shape {
  extent heads = 0;
  extent channels = 0;
};

/// Distances in units (elements, or blocks: see dtype), each of any size and sign. Members take any integer type.
struct strides {
  distance head = 0;
  distance token = 0;
  distance channel = 1;
};

/// A pointer to units that a view of T may stand on: T itself, or the host's own type of that size for all but float. Not const,
/// since rows move; not another of lagkv's own units (bf16 as f16).
template <class Pointee, class T>
concept stored_as = !std::is_const_v<Pointee> && std::is_trivially_copyable_v<Pointee> && sizeof(Pointee) == sizeof(T) &&
                    (std::is_same_v<T, Pointee> ||
                     (!std::is_same_v<T, float> && !(std::is_class_v<Pointee> && requires { dtype_of<Pointee>::value; })));

namespace detail {

struct dimension {
  std::size_t size;
  std::ptrdiff_t stride;
};

/// Refuses dimensions in which two combinations of indices have one address: sorted by stride, each dimension must step over all
/// that the smaller ones span. (Interleavings with coprime strides that would pass as well are not laid out by any engine.)
/// Refuses what a pointer cannot reach from `first`, too; a unit has so many bytes. `strides` says what they are, `of` of what.
LAGKV_EDGE status lie_apart(std::span<dimension> dims, const void* first, std::size_t unit, std::string_view strides,
                            std::string_view of);

inline std::string text(const strides& s) {
  return joined({"head=", s.head.value, ", token=", s.token.value, ", channel=", s.channel.value});
}

/// Whether `tokens` tokens at such strides lie apart; a row has `units` units of `bytes`.
LAGKV_EDGE status check_strides(const void* first, const shape& size, const strides& step, std::size_t tokens, std::size_t units,
                                std::size_t bytes);

/// Moves a pointer by units without ever forming an integer that overflows for caches beyond 2^32 elements.
template <class T>
T* moved(T* p, std::size_t a, std::ptrdiff_t stride_a, std::size_t b, std::ptrdiff_t stride_b) {
  return p + (static_cast<std::ptrdiff_t>(a) * stride_a + static_cast<std::ptrdiff_t>(b) * stride_b);
}

}  // namespace detail

/// One array of T, a unit of any dtype, with constant strides.
template <class T>
class strided {
 public:
  static constexpr std::size_t unbounded = (std::numeric_limits<std::size_t>::max)();

  strided() = default;

  /// `data` is element (head 0, token 0, channel 0) and stays the host's. `capacity` is in tokens; give it where it is
  /// known, so that check() can tell when it is exceeded.
  template <stored_as<T> Stored>
  strided(Stored* data, const shape& size, const strides& step, extent capacity = unbounded)
      : data_(reinterpret_cast<T*>(data)), extent_(size), distance_(step), capacity_(capacity) {}

  dtype type() const { return dtype_of<T>::value; }
  std::size_t heads() const { return extent_.heads; }
  std::size_t channels() const { return extent_.channels; }
  std::size_t capacity() const { return capacity_; }

  tile at(std::size_t head, token_range tokens) const {
    return {reinterpret_cast<std::byte*>(detail::moved(data_, head, distance_.head, tokens.begin, distance_.token)),
            tokens.size(), distance_.token, distance_.channel};
  }

  status check(std::size_t tokens) const {
    if (data_ == nullptr) return error{"data: is null"};
    const std::size_t addressed = capacity_ == unbounded ? tokens : capacity_;
    return detail::check_strides(data_, extent_, distance_, addressed, extent_.channels / elements_of(type()), sizeof(T));
  }

 private:
  T* data_ = nullptr;
  shape extent_{};
  strides distance_{};
  std::size_t capacity_ = unbounded;
};

#if LAGKV_BODIES

namespace detail {

LAGKV_EDGE status lie_apart(std::span<dimension> dims, const void* first, std::size_t unit, std::string_view strides,
                            std::string_view of) {
  for (std::size_t i = 1; i < dims.size(); ++i)
    for (std::size_t j = i; j > 0 && magnitude(dims[j].stride) < magnitude(dims[j - 1].stride); --j)
      std::swap(dims[j], dims[j - 1]);
  const std::size_t most = static_cast<std::size_t>((std::numeric_limits<std::ptrdiff_t>::max)()) / unit;
  std::size_t span = 0, below = 0;  // units
  for (const dimension& d : dims)
    if (d.size == 0) return {};
  for (const dimension& d : dims) {
    if (!addressable(d.size, d.stride, unit)) return refuse({"strides ", strides, ": exceed what memory can address", of});
    if (d.size <= 1) continue;
    if (magnitude(d.stride) <= span) return refuse({"strides ", strides, ": overlap", of});
    const std::size_t own = magnitude(d.stride) * (d.size - 1);
    if (own > most - span) return refuse({"strides ", strides, ": exceed what memory can address", of});
    span += own, below += d.stride < 0 ? own : 0;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(first);
  if (below <= address / unit && span - below < (~std::uintptr_t{0} - address) / unit) return {};
  return refuse({"strides ", strides, ": exceed what memory can address", of});
}

LAGKV_EDGE status check_strides(const void* first, const shape& size, const strides& step, std::size_t tokens, std::size_t units,
                                std::size_t bytes) {
  dimension dims[] = {{size.heads, step.head}, {tokens, step.token}, {units, step.channel}};
  return lie_apart(dims, first, bytes, text(step),
                   joined({" for ", size.heads.value, " heads, ", tokens, " tokens, ", size.channels.value, " channels"}));
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
