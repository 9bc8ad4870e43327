// Part of lagkv (MIT). How far keys point away from the mean direction of others.
#pragma once

#include <cstddef>

#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/row_kernels.hpp>

namespace lagkv::inline LAGKV_ABI::detail {

/// The mean of k / |k| over the rows of `reference` whose square is finite; a row of 0 counts as 0. If `lengths` is not null
/// it gets |k|^2 of all of them.
LAGKV_FN void mean_direction(const tensor& keys, std::size_t head, token_range reference, float* mean, workspace& ws,
                             float* lengths = nullptr);

/// out[i] = -cos(k, a) for row of.begin + i, a = mean of k / |k| over the rows of `reference`. 0 if k or a is 0; NaN if the
/// square of k is not finite. Reads each row of both ranges once.
LAGKV_FN void away_from_mean(const tensor& keys, std::size_t head, token_range of, token_range reference, float* out,
                             workspace& ws);

#if LAGKV_BODIES

LAGKV_FN void mean_direction(const tensor& keys, std::size_t head, token_range reference, float* mean, workspace& ws,
                             float* lengths) {
  const auto inverse = [](float square) { return square > 0 ? 1 / __builtin_sqrtf(square) : 0.0F; };
  mean_of_rows(keys, head, reference, mean, ws, inverse, lengths);
}

LAGKV_FN void away_from_mean(const tensor& keys, std::size_t head, token_range of, token_range reference, float* out,
                             workspace& ws) {
  const std::size_t channels = keys.channels();
  const workspace::frame scratch(ws);
  float* anchor = ws.take<float>(channels);
  const bool among = reference.begin <= of.begin && of.end <= reference.end;
  float* norms = ws.take<float>(among ? reference.size() : of.size());
  mean_direction(keys, head, reference, anchor, ws, among ? norms : nullptr);
  if (among) norms += of.begin - reference.begin;
  float square = 0;
  ws.kernels<simd::row_kernels>().squares({anchor, dtype::f32, 1, channels, 0}, &square);
  for_each_rows_and_next(keys, head, of, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
    simd::rows piece = rows;
    if (!among) squares(rows, norms + offset, ws), piece.ahead = nullptr;  // it has asked for the rows to come
    ws.kernels<simd::dot_kernels>().dots(piece, anchor, 1, out + offset, of.size());
  });
  for (std::size_t i = 0; i < of.size(); ++i) {
    const float length = norm(norms[i]) * __builtin_sqrtf(square);
    out[i] = length > 0 ? -out[i] / length : length;  // a NaN stays one
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI::detail
