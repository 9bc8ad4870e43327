// Part of lagkv (MIT). Bytes with a scale beside them: fp8 and int8 caches with a scale a tensor, a head or a token.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Scales that all tokens share, in the host's memory, which must outlive the view: the one of a head is
/// factors[head * head_stride], zeros likewise.
struct shared_scales {
  const float* factors = nullptr;
  std::ptrdiff_t head_stride = 0;  ///< 0: one for the tensor; 1: one a head
  const float* zeros = nullptr;    ///< null: zero points are 0
};

/// Elements of `Elements` (a view of fp8_e4m3, fp8_e5m2, int8 or uint8), each of which means (element - zero) * factor.
/// `Scales` is shared_scales, or a view of float with as many heads and tokens and 1 or 2 channels: factor, zero point. The
/// second kind moves with the rows, whatever its layout: beside the elements or in front of each row, in blocks or not.
template <kv_tensor Elements, class Scales = shared_scales>
class scaled {
  static_assert(!has_transform<Elements>, "put scaled inside hadamard");
  static_assert(!has_row_scales<Elements>, "elements have one scale: multiply the factors");
  static_assert(!has_row_scales<Scales> && !has_transform<Scales>, "scales are plain floats");

 public:
  static constexpr bool each_token = !std::is_same_v<Scales, shared_scales>;

  scaled() = default;
  scaled(const Elements& elements, const Scales& scales) : elements_(elements), scales_(scales) {}

  dtype type() const { return elements_.type(); }
  std::size_t heads() const { return elements_.heads(); }
  std::size_t channels() const { return elements_.channels(); }
  std::size_t capacity() const { return elements_.capacity(); }
  tile at(std::size_t head, token_range tokens) const { return elements_.at(head, tokens); }

  row_scale scale_of(std::size_t head, std::size_t token) const {
    row_scale s;
    if constexpr (each_token) {
      const tile t = scales_.at(head, {token, token + 1});
      std::memcpy(&s.factor, t.data, sizeof s.factor);
      if (scales_.channels() == 2)
        std::memcpy(&s.zero, t.data + t.channel_stride * static_cast<std::ptrdiff_t>(sizeof s.zero), sizeof s.zero);
    } else {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(head) * scales_.head_stride;
      s.factor = scales_.factors[at];
      if (scales_.zeros != nullptr) s.zero = scales_.zeros[at];
    }
    return s;
  }

  const Scales& scales() const requires each_token { return scales_; }

  status check(std::size_t tokens) const {
    if (!is_byte(type())) return detail::refuse({"type ", name(type()), ": a scale goes with fp8_e4m3, fp8_e5m2, int8 or uint8"});
    if (status s = elements_.check(tokens); !s) return s;
    if constexpr (each_token) {
      if (scales_.type() != dtype::f32) return detail::refuse({"scales: type ", name(scales_.type()), ": must be f32"});
      if (scales_.heads() != heads()) return detail::refuse({"scales: heads=", scales_.heads(), ": must be ", heads()});
      if (scales_.channels() != 1 && scales_.channels() != 2)
        return detail::refuse({"scales: channels=", scales_.channels(), ": must be 1 (factor) or 2 (factor, zero point)"});
      if (tokens > scales_.capacity())
        return detail::refuse({"scales: capacity=", scales_.capacity(), ": must be ", tokens, " or more"});
      if (status s = scales_.check(tokens); !s) return detail::refuse({"scales: ", s.message()});
    } else if (scales_.factors == nullptr) {
      return error{"scales: factors are null"};
    } else if (!detail::addressable(heads(), scales_.head_stride, sizeof(float))) {
      return detail::refuse(
          {"scales: head_stride=", scales_.head_stride, ": ", heads(), " heads exceed what memory can address"});
    }
    return {};
  }

 private:
  Elements elements_{};
  Scales scales_{};
};

}  // namespace lagkv::inline LAGKV_ABI
