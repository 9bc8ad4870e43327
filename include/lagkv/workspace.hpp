// Part of lagkv (MIT). Scratch memory that only grows, and the choice of the SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/detail/vector.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/simd/rows.hpp>
#include <lagkv/unrotate.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Scratch for one thread at a time; share it among layers and sequences. It allocates only when a request is larger than
/// all before it.
class workspace {
 public:
  /// The kernels of `t`; those of simd::best() where `t` cannot run on this CPU (target() tells).
  explicit workspace(simd::target t = simd::best()) : target_(simd::supported(t) ? t : simd::best()) {}

  simd::target target() const { return target_; }
  /// Those of one family, such as simd::row_kernels.
  template <class Family>
  const Family& kernels() const {
    return simd::kernels<Family>(target_);
  }

  /// The plan of the last judge() or step().
  plan decision{};

  /// Cosines and sines for rows that are turned back.
  detail::turn_tables turns{};

  /// What the scratch is for. Each purpose has its own memory; `own` is for scorers, transforms and selectors of the host's.
  enum purpose : std::uint8_t {
    range_low,  // lag_relative: of the reference, a channel
    range_high,
    deviation,
    reference,      // mean, anchor or centroid, a channel
    per_row,        // norms and the like, a row
    gathered_rows,  // rows.hpp
    wide_rows,
    turned_rows,
    turned_squares,
    one_row,
    query_rows,  // attention.hpp: queries in f32, logits, weights of all rows
    logits,
    weights,
    scores,    // of all heads
    fused,     // of one scorer of a fusion
    rows_own,  // transforms and selectors of the library
    own,
    purposes
  };

  /// n floats with undefined content, valid until the next request for the same purpose.
  float* floats(purpose p, std::size_t n) {
    if (floats_[p].size() < n) floats_[p].resize(n);
    return floats_[p].data();
  }

  /// n integers likewise.
  std::int32_t* keys(std::size_t n) {
    if (keys_.size() < n) keys_.resize(n);
    return keys_.data();
  }

  /// n doubles likewise: matrices.
  double* doubles(std::size_t n) {
    if (doubles_.size() < n) doubles_.resize(n);
    return doubles_.data();
  }

 private:
  simd::target target_;
  detail::vector<float> floats_[purposes]{};
  detail::vector<std::int32_t> keys_{};
  detail::vector<double> doubles_{};
};

}  // namespace lagkv::inline LAGKV_ABI
