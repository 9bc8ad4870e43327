// Part of lagkv (MIT). Keys as they were before RoPE: for scorers that ask what a token is, not where.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/detail/vector.hpp>
#include <lagkv/simd/rope_kernels.hpp>
#include <lagkv/view/rope.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

/// The rotations of positions: a table of those of all remainders by 64, and that of the multiple of 64 that was asked for last.
/// Costs cosines and sines once an embedding, then two multiplications a channel every 64 rows. 32 KiB for 128 channels (64 if
/// pairs are neighbours).
class rotations {
 public:
  /// Keeps what is there for the same embedding.
  void prepare(const rope& r, std::size_t channels);

  /// Calls use(i, rows, turns) for runs of the n positions position(0), position(1), ..., at most 64, that share a multiple
  /// of 64. A context shift may leave positions below 0: they are signed here.
  template <class Position, class Use>
  void for_each_run(std::size_t n, const Position& position, const Use& use) {
    assert(n <= rows_together);
    const float* fine[together];
    for (std::size_t begin = 0; begin < n;) {
      const std::int32_t block = position(begin) >> log2_together;
      if (block != block_) turn_to(block);
      std::size_t run = 0;
      for (; begin + run < n; ++run) {
        const std::int32_t at = position(begin + run);
        if (at >> log2_together != block) break;
        fine[run] = fine_.data() + static_cast<std::size_t>(at & (together - 1)) * 2 * width();
      }
      use(begin, run, simd::turn{dims(), neighbours(), coarse_.data(), fine});
      begin += run;
    }
  }

 private:
  static constexpr int log2_together = 6, together = 1 << log2_together;
  static constexpr std::size_t rows_together = together;
  static constexpr std::int32_t none = (std::numeric_limits<std::int32_t>::max)();

  struct turned {
    double cosine, sine;

    static turned by(double angle) { return {__builtin_cos(angle), __builtin_sin(angle)}; }
    turned operator*(turned by) const { return {cosine * by.cosine - sine * by.sine, cosine * by.sine + sine * by.cosine}; }
  };
  struct pair {
    double angle = 0;
    turned step{}, jump{}, now{};  // by one block, by jump_ of them, and by those of block_

    turned turned_by(std::int32_t blocks) const { return turned::by(angle * (static_cast<double>(blocks) * together)); }
  };

  std::size_t dims() const { return by_.rotated(channels_); }
  bool neighbours() const { return by_.pairs == rope::pairing::neighbours; }
  std::size_t width() const { return neighbours() ? dims() : dims() / 2; }  // of a row of cosines

  bool same(const rope& r, std::size_t channels) const;

  void fill_in(float* row, std::size_t j, turned t) const;

  /// One block on, or as many as the last time that it was more, products take the place of cosines; in double that costs no
  /// digit of f32. (Every n-th block of rows: their positions lie in two blocks each.)
  void turn_to(std::int32_t block);

  std::size_t channels_ = 0;
  std::int32_t block_ = none;
  std::int32_t jump_ = 0;  ///< blocks; 0: none yet
  rope by_{};
  vector<float> factors_{}, fine_{}, coarse_{};
  vector<pair> pairs_{};
};

/// The first n rows of f32, f16 or bf16 of a tile, rotated back by the positions from `token` on.
LAGKV_FN simd::rows inverse_rotated(const tensor& x, std::size_t head, std::size_t token, const tile& t, dtype type,
                                    std::size_t n, workspace& ws);

}  // namespace detail

/// `keys`, shown to scorers as they were before RoPE; they move as they are. `how` must outlive it, and `ws` be the workspace of
/// all that reads it.
LAGKV_FN tensor pre_rope(const tensor& keys, const rotated& how, workspace& ws);

#if LAGKV_BODIES

namespace detail {

LAGKV_FN simd::rows inverse_rotated(const tensor& x, std::size_t head, std::size_t token, const tile& t, dtype type,
                                    std::size_t n, workspace& ws) {
  const std::size_t channels = x.channels();
  float* out = ws.take<float>(n * channels);  // n: few_rows, or fewer at the end of a run
  float* squares = ws.take<float>(n);
  const std::ptrdiff_t step = t.token_stride * static_cast<std::ptrdiff_t>(size_of(type));
  const auto row = [&](std::size_t i) { return t.data + static_cast<std::ptrdiff_t>(i) * step; };
  const auto position = [&](std::size_t i) { return static_cast<std::int32_t>(x.rotated()->positions.of(head, token + i)); };
  ws.kept<rotations>().for_each_run(n, position, [&](std::size_t i, std::size_t run, const simd::turn& by) {
    const bool more = i + n + run <= t.tokens;  // the next rows, while these are worked on
    ws.kernels<simd::rope_kernels>().inverse_rotate({row(i), type, run, channels, t.token_stride, more ? row(i + n) : nullptr},
                                                    by, out + i * channels, squares + i);
  });
  return {out, dtype::f32, n, channels, static_cast<std::ptrdiff_t>(channels), nullptr, squares};
}

LAGKV_FN void rotations::prepare(const rope& r, std::size_t channels) {
  if (same(r, channels)) return;
  channels_ = 0;  // until all memory is there, this is prepared for nothing
  by_ = r;
  factors_.assign(r.factors.begin(), r.factors.end());
  by_.factors = factors_;
  const std::size_t pairs = r.rotated(channels) / 2, row = 2 * (neighbours() ? 2 * pairs : pairs);
  pairs_.assign(pairs, {});
  fine_.resize(rows_together * row);
  coarse_.resize(row);
  channels_ = channels;
  for (std::size_t j = 0; j < pairs; ++j) {
    pair& p = pairs_[j];
    p.angle = r.angle(j, channels);
    p.step = p.turned_by(1);
    for (std::size_t i = 0; i < rows_together; ++i)
      fill_in(fine_.data() + i * 2 * width(), j, turned::by(p.angle * static_cast<double>(i)));
  }
  block_ = none;
  jump_ = 0;
}

LAGKV_FN bool rotations::same(const rope& r, std::size_t channels) const {
  if (channels != channels_ || differ(r.base, by_.base) || r.pairs != by_.pairs || r.dims != by_.dims ||
      differ(r.position_scale, by_.position_scale) || r.factors.size() != factors_.size())
    return false;
  for (std::size_t j = 0; j < factors_.size(); ++j)
    if (differ(r.factors[j], factors_[j])) return false;
  return true;
}

LAGKV_FN void rotations::fill_in(float* row, std::size_t j, turned t) const {
  const auto cosine = static_cast<float>(t.cosine), sine = static_cast<float>(t.sine);
  float* sines = row + width();
  if (neighbours())
    row[2 * j] = row[2 * j + 1] = cosine, sines[2 * j] = sine, sines[2 * j + 1] = -sine;
  else
    row[j] = cosine, sines[j] = sine;
}

LAGKV_FN void rotations::turn_to(std::int32_t block) {
  const std::int64_t jump = block_ != none ? std::int64_t{block} - block_ : 0;
  const bool next = jump == 1, again = jump > 1 && jump == jump_;
  if (!next && !again) jump_ = jump > 1 ? static_cast<std::int32_t>(jump) : 0;  // a head begins anew: no history counts
  for (std::size_t j = 0; j < pairs_.size(); ++j) {
    pair& p = pairs_[j];
    if (next || again) {
      p.now = p.now * (next ? p.step : p.jump);
    } else {
      p.now = p.turned_by(block);
      if (jump_ != 0) p.jump = p.turned_by(jump_);
    }
    fill_in(coarse_.data(), j, p.now);
  }
  block_ = block;
}

}  // namespace detail

LAGKV_FN tensor pre_rope(const tensor& keys, const rotated& how, workspace& ws) {
  ws.kept<detail::rotations>().prepare(*how.by, keys.channels());
  return keys.shown_by(detail::inverse_rotated, how);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
