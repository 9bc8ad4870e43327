// Part of lagkv (MIT). The rows of a view as numbers, whatever its layout and element type: what scorers read by.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

#include <lagkv/cache/layer.hpp>
#include <lagkv/detail/function_ref.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/simd/row_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

namespace detail {

/// What is done with a run of rows, the first of which is row `offset` of those asked for.
using use_of_rows = function_ref<void(const simd::rows& run, std::size_t offset)>;

/// Rows that are copied or widened together: they stay in the first cache.
inline constexpr std::size_t few_rows = 16;

/// Rows of a piece of for_each_rows_and_next(), at most: about 8 KiB of them. Kernels take four at a time.
inline std::size_t piece_rows(std::size_t row_bytes) {
  const std::size_t fit = row_bytes > 0 ? 8192 / row_bytes / 4 * 4 : 4;
  return fit > 4 ? fit : 4;
}

/// Bytes of scratch by which one range of rows may need more than another of as many, since they lie in other runs or hold what
/// is not finite. Scratch that a scorer takes for a run is to be as much as for piece_rows().
inline std::size_t room_of_rows(const tensor& x) {
  const std::size_t piece = piece_rows(x.row_bytes()), rows = piece > few_rows ? piece : few_rows;
  return 4096 + rows * (x.row_bytes() + 4 * (x.channels() + 4) * sizeof(float));
}

template <std::size_t Unit>
void turn_units(const tile& t, std::size_t n, std::size_t units, std::byte* out) {
  const std::byte* from = t.data;
  for (std::size_t u = 0; u < units; ++u, from += t.channel_stride * static_cast<std::ptrdiff_t>(Unit))
    for (std::size_t i = 0; i < n; ++i) std::memcpy(out + (i * units + u) * Unit, from + i * Unit, Unit);
}

/// The first few rows of a tile whose units do not lie side by side, copied so that they do. Transposed rows: a few tokens of
/// each channel in turn.
LAGKV_FN tile gathered(const tensor& x, const tile& t, workspace& ws);

/// Whether the elements that lie there are numbers as they are.
inline bool stored_plain(const tensor& x) { return is_float(x.type()) && !x.has_scale() && x.hadamard_block() == 0; }

/// Row i of a tile becomes (x - zero) * factor, with the scales that its tensor has for it.
LAGKV_FN void apply_scales(const tensor& x, std::size_t head, std::size_t token, float* wide, std::size_t n);

/// The first few rows of a tile, which begins at `token`, as numbers in f32.
LAGKV_FN simd::rows widened(const tensor& x, std::size_t head, std::size_t token, const tile& t, workspace& ws);

/// out[i] = sum of the squares of row i.
LAGKV_FN void squares(const simd::rows& rows, float* out, workspace& ws);

/// Whether the kernels of `t` take its elements as they are.
inline bool taken_as_stored(const tensor& x, simd::target t) {
  return stored_plain(x) && (x.type() == dtype::f32 || simd::reads_16_bits(t));
}

/// Whether the kernels of `t` can read rows where they lie.
inline bool plain(const tensor& x, simd::target t) { return taken_as_stored(x, t) && x.reader() == nullptr; }

/// Calls use(run, numbers of the run) for the runs of rows whose numbers are finite.
LAGKV_FN void for_each_finite_run(const simd::rows& rows, float* numbers, function_ref<void(const simd::rows&, float*)> use);

}  // namespace detail

/// Calls use(rows, offset) for runs that cover `tokens` of a head in order; offset counts from tokens.begin. Rows of f32, f16
/// or bf16 whose channels are adjacent are used where they lie. Of others a few at a time are copied (transposed values) or
/// widened to f32 (quantised types; those of 16 bits where simd::reads_16_bits() says no).
LAGKV_FN void for_each_rows(const tensor& x, std::size_t head, token_range tokens, workspace& ws, detail::use_of_rows use);

/// As for_each_rows, in pieces of about 8 KiB, each of which names the rows that will be read after it (rows.ahead): those of
/// the next piece, and behind the last one the first of `next`.
LAGKV_FN void for_each_rows_and_next(const tensor& x, std::size_t head, token_range tokens, token_range next, workspace& ws,
                                     detail::use_of_rows use);

/// Calls use(i, std::span<const float> row) for each token tokens.begin + i of a head in order: the plain way to write a
/// scorer of one's own. The row holds until the next call.
template <class Use>
void for_each_row(const tensor& x, std::size_t head, token_range tokens, workspace& ws, const Use& use) {
  const workspace::frame scratch(ws);
  float* row = ws.take<float>(x.channels());
  for_each_rows(x, head, tokens, ws, [&](const simd::rows& r, std::size_t offset) {
    const auto* at = static_cast<const std::byte*>(r.data);
    for (std::size_t i = 0; i < r.tokens; ++i, at += r.stride * static_cast<std::ptrdiff_t>(size_of(r.type))) {
      ws.kernels<simd::widen_kernels>().widen(at, r.type, r.channels, row);
      use(offset + i, std::span<const float>(row, r.channels));
    }
  });
}

/// out[i] = sum of the squares of row tokens.begin + i.
LAGKV_FN void squares_of_rows(const tensor& x, std::size_t head, token_range tokens, float* out, workspace& ws);

/// Calls use(part, reference) for what is scored together and the rows that it is compared with: with `lag` 0 all candidates
/// and all rows in use; else each partition of `lag` rows and the next one.
LAGKV_FN void for_each_reference(const layer& l, token_range candidates, std::size_t lag,
                                 detail::function_ref<void(token_range part, token_range reference)> use);

/// mean[c] = sum of weight(|x_t|^2) * x_t[c] over the rows of `tokens` whose squares add up to a finite number, divided by
/// how many they are; 0 where there is none. Sums of f32 over 256 rows at a time, so that many rows lose no digits. If `lengths`
/// is not null it gets |x_t|^2 of all of them.
template <class Weight>
void mean_of_rows(const tensor& x, std::size_t head, token_range tokens, float* mean, workspace& ws, const Weight& weight,
                  float* lengths = nullptr) {
  constexpr std::size_t together = 256;
  const std::size_t channels = x.channels();
  const workspace::frame scratch(ws);
  float* part = ws.take<float>(channels);
  float* weights = ws.take<float>(together);
  std::size_t used = 0;
  for (std::size_t c = 0; c < channels; ++c) mean[c] = 0.0F;
  for (std::size_t begin = tokens.begin; begin < tokens.end; begin += together) {
    const token_range some{begin, begin + together < tokens.end ? begin + together : tokens.end};
    for (std::size_t c = 0; c < channels; ++c) part[c] = 0.0F;
    for_each_rows_and_next(x, head, some, {some.end, tokens.end}, ws, [&](const simd::rows& rows, std::size_t offset) {
      detail::squares(rows, weights, ws);
      if (lengths != nullptr) std::memcpy(lengths + (begin - tokens.begin) + offset, weights, rows.tokens * sizeof(float));
      detail::for_each_finite_run(rows, weights, [&](const simd::rows& run, float* of_run) {
        for (std::size_t i = 0; i < run.tokens; ++i) of_run[i] = weight(of_run[i]);
        ws.kernels<simd::row_kernels>().add_rows(run, of_run, part);
        used += run.tokens;
      });
    });
    for (std::size_t c = 0; c < channels; ++c) mean[c] += part[c];
  }
  for (std::size_t c = 0; c < channels; ++c) mean[c] /= used > 0 ? static_cast<float>(used) : 1.0F;
}

#if LAGKV_BODIES

namespace detail {

LAGKV_FN tile gathered(const tensor& x, const tile& t, workspace& ws) {
  const std::size_t units = x.row_units(), unit = size_of(x.type()), n = t.tokens < few_rows ? t.tokens : few_rows;
  auto* out = ws.take<std::byte>(few_rows * x.row_bytes());  // the same for every run: see room_of_rows()
  if (t.token_stride == 1 && unit == 2) {
    turn_units<2>(t, n, units, out);
  } else if (t.token_stride == 1 && unit == 4) {
    turn_units<4>(t, n, units, out);
  } else {
    const std::ptrdiff_t step = t.token_stride * static_cast<std::ptrdiff_t>(unit);
    for (std::size_t i = 0; i < n; ++i)
      copy_strided(t.data + static_cast<std::ptrdiff_t>(i) * step, t.channel_stride, out + i * x.row_bytes(), 1, units, unit);
  }
  return {out, n, static_cast<std::ptrdiff_t>(units), 1};
}

LAGKV_FN void apply_scales(const tensor& x, std::size_t head, std::size_t token, float* wide, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i, wide += x.channels()) {
    const row_scale s = x.scale_of(head, token + i);
    for (std::size_t c = 0; c < x.channels(); ++c) wide[c] = (wide[c] - s.zero) * s.factor;
  }
}

LAGKV_FN simd::rows widened(const tensor& x, std::size_t head, std::size_t token, const tile& t, workspace& ws) {
  const std::size_t channels = x.channels(), n = t.tokens < few_rows ? t.tokens : few_rows;
  if (x.reader() != nullptr && taken_as_stored(x, ws.target())) return x.reader()(x, head, token, t, x.type(), n, ws);
  float* wide = ws.take<float>(few_rows * channels);
  const std::ptrdiff_t step = t.token_stride * static_cast<std::ptrdiff_t>(size_of(x.type()));
  for (std::size_t i = 0; i < n; ++i)
    ws.kernels<simd::widen_kernels>().widen(t.data + static_cast<std::ptrdiff_t>(i) * step, x.type(), channels,
                                            wide + i * channels);
  if (x.has_scale()) apply_scales(x, head, token, wide, n);
  if (x.hadamard_block() != 0) transform_blocks(wide, n * channels, x.hadamard_block());
  if (x.reader() != nullptr) {
    const tile dense{reinterpret_cast<std::byte*>(wide), n, static_cast<std::ptrdiff_t>(channels)};
    return x.reader()(x, head, token, dense, dtype::f32, n, ws);
  }
  return {wide, dtype::f32, n, channels, static_cast<std::ptrdiff_t>(channels)};
}

LAGKV_FN void squares(const simd::rows& rows, float* out, workspace& ws) {
  if (rows.squares == nullptr) return ws.kernels<simd::row_kernels>().squares(rows, out);
  std::memcpy(out, rows.squares, rows.tokens * sizeof(float));
}

LAGKV_FN void for_each_finite_run(const simd::rows& rows, float* numbers, function_ref<void(const simd::rows&, float*)> use) {
  for (std::size_t i = 0, run = 0; i < rows.tokens; i += run + 1) {
    for (run = 0; i + run < rows.tokens && finite(numbers[i + run]);) ++run;
    if (run == 0) continue;
    simd::rows good = rows;
    good.data = static_cast<const std::byte*>(rows.data) +
                static_cast<std::ptrdiff_t>(i) * rows.stride * static_cast<std::ptrdiff_t>(size_of(rows.type));
    good.tokens = run;
    good.ahead = nullptr, good.squares = nullptr;
    use(good, numbers + i);
  }
}

}  // namespace detail

LAGKV_FN void squares_of_rows(const tensor& x, std::size_t head, token_range tokens, float* out, workspace& ws) {
  for_each_rows_and_next(x, head, tokens, {}, ws,
                         [&](const simd::rows& rows, std::size_t offset) { detail::squares(rows, out + offset, ws); });
}

LAGKV_FN void for_each_rows(const tensor& x, std::size_t head, token_range tokens, workspace& ws, detail::use_of_rows use) {
  for (std::size_t at = tokens.begin; at < tokens.end;) {
    const workspace::frame scratch(ws);
    tile t = x.at(head, {at, tokens.end});
    if (t.channel_stride != 1) t = detail::gathered(x, t, ws);
    const simd::rows rows = detail::plain(x, ws.target()) ? simd::rows{t.data, x.type(), t.tokens, x.channels(), t.token_stride}
                                                          : detail::widened(x, head, at, t, ws);
    use(rows, at - tokens.begin);
    at += rows.tokens;
  }
}

LAGKV_FN void for_each_rows_and_next(const tensor& x, std::size_t head, token_range tokens, token_range next, workspace& ws,
                                     detail::use_of_rows use) {
  const std::size_t few = detail::piece_rows(x.row_bytes());
  for_each_rows(x, head, tokens, ws, [&](const simd::rows& run, std::size_t offset) {
    const bool in_place = detail::plain(x, ws.target());
    const std::ptrdiff_t step = run.stride * static_cast<std::ptrdiff_t>(size_of(run.type));
    simd::rows piece = run;
    for (std::size_t at = 0; at < run.tokens; at += piece.tokens) {
      const workspace::frame scratch(ws);
      piece.data = static_cast<const std::byte*>(run.data) + static_cast<std::ptrdiff_t>(at) * step;
      piece.tokens = run.tokens - at < few ? run.tokens - at : few;
      piece.ahead = nullptr;
      piece.squares = run.squares != nullptr ? run.squares + at : nullptr;
      const std::size_t behind = tokens.begin + offset + at + piece.tokens;
      const token_range after = behind < tokens.end ? token_range{behind, tokens.end} : next;
      if (in_place && !after.empty()) {
        const tile t = x.at(head, {after.begin, after.begin + piece.tokens < after.end ? after.begin + piece.tokens : after.end});
        if (t.tokens == piece.tokens && t.token_stride == run.stride && t.channel_stride == 1) piece.ahead = t.data;
      }
      use(piece, offset + at);
    }
  });
}

LAGKV_FN void for_each_reference(const layer& l, token_range candidates, std::size_t lag,
                                 detail::function_ref<void(token_range part, token_range reference)> use) {
  if (lag == 0) return use(candidates, token_range{0, l.tokens});
  for (std::size_t begin = candidates.begin; begin < candidates.end; begin += lag)
    use(token_range{begin, begin + lag}, token_range{begin + lag, begin + 2 * lag});
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
