// Part of lagkv (MIT). Rows that are stored after a Walsh-Hadamard transform, as quantising engines do to flatten outliers.
#pragma once

#include <cstddef>

#include <lagkv/result.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// What `View` shows, where each `block` neighbouring channels of a row are stored as H x: H is the orthonormal
/// Walsh-Hadamard matrix, which is its own inverse. Scorers get x; rows move as they are. Queries that meet such keys are
/// given with the same wrapper, if they were transformed, too. Scales go inside: hadamard(scaled(bytes, scales), n).
///
/// Cost: log2(block) additions an element. Source: llama.cpp (llama-kv-cache.cpp, ggml_gen_hadamard; its quantised caches are
/// stored so), QuaRot (arXiv 2404.00456).
template <kv_tensor View>
class hadamard : public View {
  static_assert(!has_transform<View>, "rows are stored under one transform");

 public:
  hadamard() = default;
  hadamard(const View& stored, std::size_t block) : View(stored), block_(block) {}

  std::size_t hadamard_block() const { return block_; }

  status check(std::size_t tokens) const {
    if (block_ == 0 || (block_ & (block_ - 1)) != 0 || View::channels() % block_ != 0)
      return detail::refuse(
          {"hadamard: block=", block_, ": must be a power of two that divides the ", View::channels(), " channels"});
    return View::check(tokens);
  }

 private:
  std::size_t block_ = 1;
};

namespace detail {

/// x = H x for each `block` of n elements.
LAGKV_FN void transform_blocks(float* x, std::size_t n, std::size_t block);

}  // namespace detail

#if LAGKV_BODIES

namespace detail {

LAGKV_FN void transform_blocks(float* x, std::size_t n, std::size_t block) {
  const float scale = 1.0F / __builtin_sqrtf(static_cast<float>(block));
  for (std::size_t i = 0; i < n; ++i) x[i] *= scale;
  for (std::size_t half = 1; half < block; half *= 2)
    for (std::size_t i = 0; i < n; i += 2 * half)
      for (std::size_t j = i; j < i + half; ++j) {
        const float a = x[j], b = x[j + half];
        x[j] = a + b, x[j + half] = a - b;
      }
}

}  // namespace detail

#endif

}  // namespace lagkv::inline LAGKV_ABI
