// Part of lagkv (MIT). A view of several layers as one, for policies that decide for all of them together.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Head h is head h % heads of layer h / heads: with `heads=shared` all layers keep the same tokens, by the mean of all scores;
/// with `select=adaptive` they share one budget. All that goes by head (queries, weights, accumulated attention, positions, key
/// statistics, the plan) goes by these; the layers share one cursor. `layers` is the host's and must outlive the view; they have
/// the same type, heads and channels. Scales go around it: scaled(stacked(bytes), stacked(scales)), likewise
/// hadamard(stacked(rows), n). Whether layers lie apart from each other is not checked.
template <kv_tensor View>
class stacked {
  static_assert(!has_row_scales<View>, "put the layers inside scaled");
  static_assert(!has_transform<View>, "put the layers inside hadamard");

 public:
  stacked() = default;
  explicit stacked(std::span<const View> layers) : layers_(layers) {}

  dtype type() const { return layers_.empty() ? dtype::f32 : layers_[0].type(); }
  std::size_t heads() const { return layers_.size() * each(); }
  std::size_t channels() const { return layers_.empty() ? 0 : layers_[0].channels(); }
  std::size_t capacity() const {
    std::size_t least = layers_.empty() ? 0 : layers_[0].capacity();
    for (const View& v : layers_) least = v.capacity() < least ? v.capacity() : least;
    return least;
  }

  tile at(std::size_t head, token_range tokens) const { return layers_[head / each()].at(head % each(), tokens); }

  status check(std::size_t tokens) const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const View& v = layers_[i];
      const std::string name = detail::joined({"layer ", i, " of ", layers_.size(), ": "});
      if (v.type() != type() || v.heads() != each() || v.channels() != channels())
        return detail::refuse({name, text(v), ": must be as layer 0, ", text(layers_[0])});
      if (v.heads() == 0) return detail::refuse({name, "heads=0: must be 1 or more"});
      if (const status s = v.check(tokens); !s) return detail::refuse({name, s.message()});
    }
    return {};
  }

 private:
  std::size_t each() const { return layers_.empty() ? 0 : layers_[0].heads(); }
  static std::string text(const View& v) {
    return detail::joined({name(v.type()), ", heads=", v.heads(), ", channels=", v.channels()});
  }

  std::span<const View> layers_{};
};

}  // namespace lagkv::inline LAGKV_ABI
