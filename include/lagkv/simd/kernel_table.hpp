// Part of lagkv (MIT). What a build of the kernels for one instruction set offers.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/core.hpp>

namespace lagkv::simd {

/// Instruction sets that the kernels are built for. `scalar` is plain C++: fallback, baseline and oracle.
enum class target : std::uint8_t { scalar, sse2, avx2, avx512, neon };

/// All of them, the plain one first.
inline constexpr target all_targets[] = {target::scalar, target::sse2, target::avx2, target::avx512, target::neon};

constexpr const char* name(target t) {
  constexpr const char* names[] = {"scalar", "sse2", "avx2", "avx512", "neon"};
  return names[static_cast<std::size_t>(t)];
}

/// Rows of one head: `tokens` rows of `channels` adjacent elements, `stride` elements from row to row. f32, f16 or bf16.
struct rows {
  const void* data;
  dtype type;
  std::size_t tokens;
  std::size_t channels;
  std::ptrdiff_t stride;
  const void* ahead = nullptr;  ///< as many rows at the same stride that will be read next, to be prefetched; null: not known
  const float* squares = nullptr;  ///< of each row the sum of its squares, which no kernel looks at; null: not known
};

/// What normalise() has made.
enum class normal : std::uint8_t {
  not_finite,  ///< nothing: a bound is not finite
  plain,       ///< z - 1/2 = (x - shift) * inverse - 1/2: for rows of f32
  fused        ///< z - 1/2 = x * inverse + shift: for rows of f16 and bf16
};

/// The turns of rows by their positions p = far + near: cosines, then sines, of each pair's angle. Where the pairs are
/// neighbours, each cosine stands twice, and each sine is followed by its negative.
struct turn {
  std::size_t dims;
  bool neighbours;           ///< channels (2j, 2j + 1) are a pair; else (j, j + dims / 2)
  const float* far;          ///< [2][dims / 2, neighbours: dims], of a part of the positions that all rows have
  const float* const* near;  ///< one a row, likewise, of the rest
};

/// One entry a kernel. Every kernel treats a row alike wherever it stands among others, so that results do not depend on
/// how the tokens are cut into runs.
struct kernel_table {
  target id;

  /// lo[c] = min(lo[c], x[.][c]), hi[c] = max(...); NaN is passed over, infinities count.
  void (*range)(const rows& x, float* lo, float* hi);

  /// Makes of the range of each channel what deviation() takes: of lo the shift, of hi the inverse of the width. A channel
  /// whose width is 0, or has no finite inverse, gets 0 for both: its z is 0. Where a bound is not finite nothing is changed.
  /// For 16-bit rows the answer is `plain` where fusing would lose digits: such rows must be widened to f32.
  normal (*normalise)(std::size_t channels, dtype type, float* lo, float* hi);

  /// deviation[t] = unbiased standard deviation over channels of z = (x[t][c] - lo[c]) / (hi[c] - lo[c]), with what
  /// normalise() has made of lo and hi for the type of x; not finite where a channel is not; 0 for one channel. In the same
  /// reading it extends the range own_lo, own_hi by the rows, as range() does.
  void (*deviation)(const rows& x, const float* shift, const float* inverse, float* deviation, float* own_lo, float* own_hi);

  /// out[t] += weight * softmax(x)[t]. Entries that are not finite take no part and get nothing. x is overwritten.
  void (*add_softmax)(float* x, std::size_t n, float weight, float* out);

  /// The indices of the k largest of n scores, ascending, each plus `base`; ties go to the earlier, NaN is below all.
  /// `keys` is scratch for n values. k <= n.
  void (*top_k)(const float* scores, std::size_t n, std::size_t k, std::uint32_t base, std::int32_t* keys, std::uint32_t* out);

  /// out[i] = x[i] as f32, for n adjacent elements: whole blocks where the type has them. Scales that lie elsewhere are not
  /// applied. The dtype tells how each is read (q4_1, q5_1: one rounding where the target has it, else two).
  void (*widen)(const void* x, dtype type, std::size_t n, float* out);

  /// out[i] = x[i] rounded to the nearest element, ties to even, for n adjacent elements of f32, f16 or bf16. What is too large
  /// becomes an infinity; NaN stays NaN, with its sign, its payload is lost (not for f32, which is copied). All targets give the
  /// same bits.
  void (*narrow)(const float* x, dtype type, std::size_t n, void* out);

  // The sums below are taken in f32 and follow IEEE rules: a channel that is NaN makes its sums NaN.

  /// out[t] = sum over channels of x[t][c]^2.
  void (*squares)(const rows& x, float* out);

  /// out[t] = sum over channels of weights[c] * (x[t][c] * factors[t] - centre[c])^2; null factors or weights are 1.
  void (*distances)(const rows& x, const float* factors, const float* centre, const float* weights, float* out);

  /// out[v * pitch + t] = sum over channels of x[t][c] * vectors[v][c], for `count` dense vectors of x.channels floats; pitch
  /// is at least x.tokens. Each product of a row and a vector is the same to the bit whatever others are in the call.
  void (*dots)(const rows& x, const float* vectors, std::size_t count, float* out, std::size_t pitch);

  /// sum[c] += weights[t] * x[t][c], for one t after the other: the same to the bit however the rows are cut into calls.
  void (*add_rows)(const rows& x, const float* weights, float* sum);

  /// Of y = factors[t] * x[t][c]: sum[c] += y, square[c] += y^2, likewise.
  void (*add_moments)(const rows& x, const float* factors, float* sum, float* square);

  /// out[t] = row t as it was before it was turned, dense; channels from by.dims on as they are. Apart from x. squares[t] = the
  /// sum of its squares.
  void (*turn_back)(const rows& x, const turn& by, float* out, float* squares);
};

}  // namespace lagkv::simd
