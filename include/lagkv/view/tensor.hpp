// Part of lagkv (MIT). What lagkv asks of a host's memory, and the erased form that the rest of the library works on.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#include <lagkv/result.hpp>
#include <lagkv/view/dtype.hpp>
#include <lagkv/view/range.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Consecutive tokens of one head whose units (elements, or blocks: see dtype) lie at constant strides.
/// Unit u of token i is at data + (i * token_stride + u * channel_stride) units.
struct tile {
  std::byte* data = nullptr;
  std::size_t tokens = 0;
  std::ptrdiff_t token_stride = 0;
  std::ptrdiff_t channel_stride = 1;
};

/// A view of the keys or the values of one layer: a small value that can be copied as bytes and owns nothing.
///
///  type(), heads(), channels()   what is stored
///  capacity()                    tokens that may be addressed
///  at(head, tokens)              the longest run from tokens.begin on, at least 1 and at most tokens.size() long; the
///                                channel stride is the same for all runs
///  check(tokens)                 whether the first `tokens` tokens lie apart from each other; called at the edge only
///
/// Elements that mean numbers only with a scale beside them, or after a transform, come with functions more: see scaled.hpp
/// and hadamard.hpp.
template <class View>
concept kv_tensor = std::is_trivially_copyable_v<View> && requires(const View& view, std::size_t n, token_range tokens) {
  { view.type() } -> std::same_as<dtype>;
  { view.heads() } -> std::convertible_to<std::size_t>;
  { view.channels() } -> std::convertible_to<std::size_t>;
  { view.capacity() } -> std::convertible_to<std::size_t>;
  { view.at(n, tokens) } -> std::same_as<tile>;
  { view.check(n) } -> std::same_as<status>;
};

/// A view whose rows have scales of their own beside them (scaled.hpp).
template <class View>
concept has_row_scales = requires(const View& view, std::size_t n) {
  view.scale_of(n, n);
};

/// A view whose rows are stored under a transform (hadamard.hpp).
template <class View>
concept has_transform = requires(const View& view) {
  view.hadamard_block();
};

struct rope;
class tensor;
class workspace;

namespace simd {
struct rows;
}  // namespace simd

namespace detail {
/// Makes numbers of the first n rows of a tile, which begins at `token`, other than those that lie there.
using row_reader = simd::rows (*)(const tensor& x, std::size_t head, std::size_t token, const tile& t, dtype type, std::size_t n,
                                  workspace& ws);
}  // namespace detail

/// The rotary embedding that keys carry, and by which positions.
struct rotated {
  const rope* by = nullptr;
  row_positions positions{};
};

/// What makes numbers of the elements of a row: (element - zero) * factor.
struct row_scale {
  float factor = 1;
  float zero = 0;
};

/// Any kv_tensor, held by value: [heads][tokens][channels]. Empty by default (a cache without values, say).
class tensor {
 public:
  static constexpr std::size_t max_view_size = 192;

  tensor() = default;

  template <kv_tensor View>
  requires(!std::same_as<View, tensor>) tensor(const View& view)
      : heads_(view.heads()), channels_(view.channels()), capacity_(view.capacity()), type_(view.type()) {
    static_assert(sizeof(View) <= max_view_size, "a view is a small value: point to long-lived tables");
    std::memcpy(view_, &view, sizeof view);  // as policy/callable.hpp
    at_ = [](const void* v, std::size_t head, token_range tokens) { return as<View>(v).at(head, tokens); };
    check_ = [](const void* v, std::size_t tokens) { return as<View>(v).check(tokens); };
    if constexpr (has_row_scales<View>)
      scale_of_ = [](const void* v, std::size_t head, std::size_t token) { return as<View>(v).scale_of(head, token); };
    if constexpr (has_transform<View>) hadamard_block_ = view.hadamard_block();
    if constexpr (requires { view.scales(); }) scales_ = [](const void* v) { return tensor(as<View>(v).scales()); };
  }

  explicit operator bool() const { return at_ != nullptr; }

  dtype type() const noexcept { return type_; }
  std::size_t heads() const noexcept { return heads_; }
  std::size_t channels() const noexcept { return channels_; }
  std::size_t capacity() const noexcept { return capacity_; }
  /// Units of one token of one head.
  std::size_t row_units() const { return channels_ / elements_of(type_); }
  /// Bytes of them; scales that lie elsewhere are not counted.
  std::size_t row_bytes() const { return row_units() * size_of(type_); }

  /// The longest run of `tokens` from its first token on; `tokens` is not empty and ends within the capacity.
  tile at(std::size_t head, token_range tokens) const { return at_(view_, head, tokens); }

  /// Whether rows have scales of their own beside them.
  bool has_scale() const { return scale_of_ != nullptr; }
  /// Only where has_scale().
  row_scale scale_of(std::size_t head, std::size_t token) const { return scale_of_(view_, head, token); }
  /// The scales as a tensor of as many tokens, which moves with the rows; empty where tokens share them, or have none.
  tensor scales() const { return scales_ != nullptr ? scales_(view_) : tensor{}; }

  /// Neighbouring channels that are stored under one Walsh-Hadamard transform (hadamard.hpp); 0: none are.
  std::size_t hadamard_block() const noexcept { return hadamard_block_; }

  /// The same rows, shown to scorers as `by` makes them of `how`, which must outlive it; they move as they are.
  /// rows/pre_rope.hpp makes such tensors.
  tensor shown_by(detail::row_reader by, const lagkv::rotated& how) const {
    tensor t = *this;
    t.reader_ = by, t.rotated_ = &how;
    return t;
  }
  /// Null if rows are shown as they lie.
  detail::row_reader reader() const noexcept { return reader_; }
  const lagkv::rotated* rotated() const noexcept { return rotated_; }

  status check(std::size_t tokens) const;

 private:
  template <class View>
  static const View& as(const void* bytes) {
    return *std::launder(static_cast<const View*>(bytes));
  }

  std::size_t heads_ = 0;
  std::size_t channels_ = 0;
  std::size_t capacity_ = 0;
  std::size_t hadamard_block_ = 0;
  tile (*at_)(const void*, std::size_t, token_range) = nullptr;
  status (*check_)(const void*, std::size_t) = nullptr;
  row_scale (*scale_of_)(const void*, std::size_t, std::size_t) = nullptr;
  tensor (*scales_)(const void*) = nullptr;
  const lagkv::rotated* rotated_ = nullptr;
  detail::row_reader reader_ = nullptr;
  alignas(std::max_align_t) unsigned char view_[max_view_size] = {};
  dtype type_ = dtype::f32;
};

namespace detail {

/// Asks for the lines of a row that will be read soon.
inline void fetch_row(const std::byte* row, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

/// Copies n units between places with strides of their own, in units.
template <std::size_t Unit>
void copy_units(const std::byte* from, std::ptrdiff_t from_step, std::byte* to, std::ptrdiff_t to_step, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i, from += from_step, to += to_step) std::memcpy(to, from, Unit);
}

LAGKV_FN void copy_strided(const std::byte* from, std::ptrdiff_t from_stride, std::byte* to, std::ptrdiff_t to_stride,
                           std::size_t n, std::size_t unit);

}  // namespace detail

#if LAGKV_BODIES

LAGKV_EDGE status tensor::check(std::size_t tokens) const {
  if (at_ == nullptr) return error{"the tensor is empty"};
  if (heads_ == 0 || channels_ == 0) return detail::refuse({"heads=", heads_, ", channels=", channels_, ": must be 1 or more"});
  if (const std::size_t block = elements_of(type_); channels_ % block != 0)
    return detail::refuse({"channels=", channels_, ": must be a multiple of the ", block, " elements of a block of ", name(type_),
                           " (a block that spans tokens or heads cannot move alone)"});
  if (tokens > capacity_) return detail::refuse({"tokens=", tokens, ": the view addresses at most ", capacity_});
  return check_(view_, tokens);
}

namespace detail {

LAGKV_FN void copy_strided(const std::byte* from, std::ptrdiff_t from_stride, std::byte* to, std::ptrdiff_t to_stride,
                           std::size_t n, std::size_t unit) {
  const auto bytes = static_cast<std::ptrdiff_t>(unit);
  const std::ptrdiff_t from_step = from_stride * bytes, to_step = to_stride * bytes;
  switch (unit) {
    case 1:
      return copy_units<1>(from, from_step, to, to_step, n);
    case 2:
      return copy_units<2>(from, from_step, to, to_step, n);
    case 4:
      return copy_units<4>(from, from_step, to, to_step, n);
    default:
      for (std::size_t i = 0; i < n; ++i, from += from_step, to += to_step) std::memcpy(to, from, unit);
  }
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
