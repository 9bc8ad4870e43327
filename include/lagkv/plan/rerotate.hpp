// Part of lagkv (MIT). Gives the keys that stay consecutive positions.
#pragma once

#include <cassert>
#include <cstddef>

#include <lagkv/plan/plan.hpp>
#include <lagkv/result.hpp>
#include <lagkv/simd/narrow_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>
#include <lagkv/view/rope.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Whether keys like these can be rotated in place. Call it where a cache is set up; rerotate() trusts what it is given.
LAGKV_FN status check(const rope& r, const tensor& keys);

namespace detail {

/// Rotates rows, with a table of cosines and sines that neighbours, which move by the same or nearly the same shift, share.
class rotation {
 public:
  rotation(const rope& r, const tensor& keys, workspace& ws)
      : scratch_(ws),
        widen_(ws.kernels<simd::widen_kernels>().widen),
        narrow_(ws.kernels<simd::narrow_kernels>().narrow),
        type_(keys.type()),
        dims_(r.rotated(keys.channels())),
        pairs_(dims_ / 2),
        first_(r.pair(1, keys.channels()).first),
        second_(r.pair(0, keys.channels()).second),
        turns_(ws.take<double>(5 * pairs_)),
        table_(ws.take<float>(3 * dims_)) {
    for (std::size_t j = 0; j < pairs_; ++j) {
      double* t = turns_ + 5 * j;
      t[angle] = r.angle(j, keys.channels());
      t[back_cos] = __builtin_cos(t[angle]), t[back_sin] = -__builtin_sin(t[angle]);
      t[now_cos] = 1, t[now_sin] = 0;
    }
  }

  /// Rotates the first row of t; `shift` is not 0.
  void turn(const tile& t, std::ptrdiff_t shift);

 private:
  enum column : std::uint8_t { angle, back_cos, back_sin, now_cos, now_sin };  // of turns_, a row a pair

  void prepare(std::ptrdiff_t shift);

  workspace::frame scratch_;
  decltype(simd::widen_kernels::widen) widen_;
  decltype(simd::narrow_kernels::narrow) narrow_;
  dtype type_;
  std::size_t dims_, pairs_, first_, second_;
  double* turns_;
  float* table_;  // cosines and sines, a row in f32, a row of adjacent elements
  std::ptrdiff_t shift_ = 0;
};

}  // namespace detail

/// Rotates one key in place by `shift` positions, which may be negative: what carried position p carries p + shift. Computed
/// in f32 from cosines and sines of double angles, rounded to the nearest element; n rotations one after the other leave n
/// roundings. Channels from dims on are not touched, and nothing is where shift is 0. Any layout.
///
/// Costs a power, two cosines and two sines a pair, about 3 us for 128 channels: for many rows take the other one. Allocates
/// nothing once ws has grown.
inline void rerotate(const tensor& keys, std::size_t head, std::size_t row, std::ptrdiff_t shift, const rope& r, workspace& ws) {
  if (shift != 0) detail::rotation(r, keys, ws).turn(keys.at(head, {row, row + 1}), shift);
}

/// Gives the keys that stay consecutive positions, after compact(keys, applied) toward the front: row i, which was row
/// applied.source(head, i), is rotated by the difference. That is right where a row's number is its position, so where this
/// has followed every compaction; the next token's position is then applied.tokens_after(head), not cursor.seen(). Policies that
/// read positions, or protected ones, need extras.positions from then on, with each row's number written into it after each call.
/// Heads may keep different numbers of rows: each has positions of its own. Rows before the first one dropped are not touched.
/// `keys` has the heads of the plan; `applied` may be last_plan(ws).
///
/// Costs about 0.15 to 0.4 us a moved row of 128 channels (f16, AVX-512; the more the further apart the rows that stay).
///
/// Source: arXiv 2309.17453, section 3.2 (keys carry their position in the cache instead of in the text); so do SinkCache of
/// transformers and KeyRerotationPress of kvpress 0.5.5.
LAGKV_FN void rerotate(const tensor& keys, const plan& applied, const rope& r, workspace& ws);

#if LAGKV_BODIES

LAGKV_FN status check(const rope& r, const tensor& keys) {
  if (status s = keys.check(0); !s) return detail::refuse({"keys: ", s.message()});
  if (!is_float(keys.type()))
    return detail::refuse({"keys: type ", name(keys.type()), ": must be f32, f16 or bf16 (others would lose digits)"});
  if (keys.hadamard_block() != 0)
    return error{"keys: are stored under a Hadamard matrix, in which RoPE cannot be changed in place"};
  return check(r, keys.channels());
}

namespace detail {

LAGKV_FN void rotation::turn(const tile& t, std::ptrdiff_t shift) {
  assert(shift != 0);
  if (shift != shift_) prepare(shift);
  float* row = table_ + dims_;
  const bool adjacent = t.channel_stride == 1;
  std::byte* elements = adjacent ? t.data : reinterpret_cast<std::byte*>(row + dims_);
  if (!adjacent) copy_strided(t.data, t.channel_stride, elements, 1, dims_, size_of(type_));
  widen_(elements, type_, dims_, row);
  for (std::size_t j = 0; j < pairs_; ++j) {
    const float cosine = table_[j], sine = table_[pairs_ + j];
    float &a = row[j * first_], &b = row[j * first_ + second_];
    const float turned = a * cosine - b * sine;
    b = a * sine + b * cosine;
    a = turned;
  }
  narrow_(row, type_, dims_, elements);
  if (!adjacent) copy_strided(elements, 1, t.data, t.channel_stride, dims_, size_of(type_));
}

LAGKV_FN void rotation::prepare(std::ptrdiff_t shift) {
  // From one row that stays to the next the shift grows by the few tokens dropped in between. A product for each is far
  // cheaper than a cosine and a sine; in double it costs no digit of f32 (1e-10 after a million of them).
  constexpr std::ptrdiff_t few = 16;
  const std::ptrdiff_t gap = shift_ - shift;
  for (std::size_t j = 0; j < pairs_; ++j) {
    double* t = turns_ + 5 * j;
    if (gap > 0 && gap <= few) {
      for (std::ptrdiff_t i = 0; i < gap; ++i) {
        const double turned = t[now_cos] * t[back_cos] - t[now_sin] * t[back_sin];
        t[now_sin] = t[now_cos] * t[back_sin] + t[now_sin] * t[back_cos];
        t[now_cos] = turned;
      }
    } else {
      t[now_cos] = __builtin_cos(static_cast<double>(shift) * t[angle]);
      t[now_sin] = __builtin_sin(static_cast<double>(shift) * t[angle]);
    }
    table_[j] = static_cast<float>(t[now_cos]), table_[pairs_ + j] = static_cast<float>(t[now_sin]);
  }
  shift_ = shift;
}

}  // namespace detail

LAGKV_FN void rerotate(const tensor& keys, const plan& applied, const rope& r, workspace& ws) {
  if (applied.empty()) return;
  detail::rotation rotation(r, keys, ws);
  for (std::size_t head = 0; head < applied.heads(); ++head) {
    const std::size_t n = applied.tokens_after(head);
    for (std::size_t row = applied.candidates.begin; row < n; ++row) {
      const std::size_t was = applied.source(head, row);
      if (was != row)
        rotation.turn(keys.at(head, {row, row + 1}), static_cast<std::ptrdiff_t>(row) - static_cast<std::ptrdiff_t>(was));
    }
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
