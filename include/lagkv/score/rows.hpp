// Part of lagkv (MIT). Feeds kernels with rows of adjacent channels, whatever the layout.
#pragma once

#include <cstddef>
#include <cstring>

#include <lagkv/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

namespace detail {

/// Copies n elements that lie `stride` elements apart to adjacent places.
inline void gather(const std::byte* from, std::ptrdiff_t stride, std::size_t n, std::size_t element, std::byte* to) {
  const std::ptrdiff_t step = stride * static_cast<std::ptrdiff_t>(element);
  for (std::size_t i = 0; i < n; ++i, from += step, to += element) {
    if (element == 4)
      std::memcpy(to, from, 4);
    else
      std::memcpy(to, from, 2);
  }
}

}  // namespace detail

/// Calls use(rows, offset) for runs that cover `tokens` of a head in order; offset counts from tokens.begin. Rows whose
/// channels are adjacent are used where they lie; others (transposed values) are widened to f32 a few at a time.
template <class Use>
void for_each_rows(const tensor& x, std::size_t head, token_range tokens, workspace& ws, const Use& use) {
  constexpr std::size_t few = 16;
  const std::size_t channels = x.channels(), element = size_of(x.type());
  for (std::size_t at = tokens.begin; at < tokens.end;) {
    const tile t = x.at(head, {at, tokens.end});
    if (t.channel_stride == 1) {
      use(simd::rows{t.data, x.type(), t.tokens, channels, t.token_stride}, at - tokens.begin);
      at += t.tokens;
      continue;
    }
    // Transposed: a few tokens of each channel in turn. Both strided: a row at a time.
    const std::size_t n = t.tokens < few ? t.tokens : few;
    float* wide = ws.floats(workspace::wide_rows, (few + 1) * channels + few);
    float* line = wide + few * channels;
    const auto bytes = static_cast<std::ptrdiff_t>(element);
    if (t.token_stride == 1) {
      for (std::size_t c = 0; c < channels; ++c) {
        ws.kernels().widen(t.data + static_cast<std::ptrdiff_t>(c) * t.channel_stride * bytes, x.type(), n, line);
        for (std::size_t i = 0; i < n; ++i) wide[i * channels + c] = line[i];
      }
    } else {
      for (std::size_t i = 0; i < n; ++i) {
        const std::byte* row = t.data + static_cast<std::ptrdiff_t>(i) * t.token_stride * bytes;
        detail::gather(row, t.channel_stride, channels, element, reinterpret_cast<std::byte*>(line));
        ws.kernels().widen(line, x.type(), channels, wide + i * channels);
      }
    }
    use(simd::rows{wide, dtype::f32, n, channels, static_cast<std::ptrdiff_t>(channels)}, at - tokens.begin);
    at += n;
  }
}

/// Calls use(i, std::span<const float> row) for each token tokens.begin + i of a head in order: the plain way to write a
/// scorer of one's own. The row holds until the next call.
template <class Use>
void for_each_row(const tensor& x, std::size_t head, token_range tokens, workspace& ws, const Use& use) {
  float* row = ws.floats(workspace::one_row, x.channels());
  for_each_rows(x, head, tokens, ws, [&](const simd::rows& r, std::size_t offset) {
    const auto* at = static_cast<const std::byte*>(r.data);
    for (std::size_t i = 0; i < r.tokens; ++i, at += r.stride * static_cast<std::ptrdiff_t>(size_of(r.type))) {
      ws.kernels().widen(at, r.type, r.channels, row);
      use(offset + i, std::span<const float>(row, r.channels));
    }
  });
}

}  // namespace lagkv
