// Part of lagkv (MIT). Included once a target (each_target.inl): dot_kernels.

// ---- dots -----------------------------------------------------------------------------------------------------------

LAGKV_INLINE void add_products(four& sum, const four& x, vec v) {
  sum.a = fma(x.a, v, sum.a), sum.b = fma(x.b, v, sum.b), sum.c = fma(x.c, v, sum.c), sum.d = fma(x.d, v, sum.d);
}

// Four rows against one vector.
template <class T>
LAGKV_INLINE void dots_of_one(four_rows<T> r, std::size_t channels, const float* v, float* out, ahead_of_four ahead) {
  const std::size_t whole = channels / lanes * lanes, rest = channels - whole;
  constexpr std::size_t together = 4 * lanes * sizeof(T);
  four sum;
  std::size_t c = 0;  // two loops, as in squares_of()
  for (; ahead.row != nullptr && c < whole; c += lanes) {
    fetch(ahead, together);
    add_products(sum, load(r, c), load(v + c));
  }
  for (; c < whole; c += lanes) add_products(sum, load(r, c), load(v + c));
  if (rest != 0) add_products(sum, load_part(r, whole, rest), load_part(v + whole, rest));
  store_sums(sum, out, r.size);
}

// Four rows against four vectors: sixteen sums in registers.
inline constexpr std::size_t vectors_together = 4;
template <class T>
LAGKV_INLINE void dots_of_block(four_rows<T> r, std::size_t channels, const float* v, float* out, std::size_t pitch,
                                ahead_of_four ahead) {
  const std::size_t whole = channels / lanes * lanes, rest = channels - whole;
  constexpr std::size_t together = 4 * lanes * sizeof(T);
  const float *v1 = v + channels, *v2 = v1 + channels, *v3 = v2 + channels;
  four sum0, sum1, sum2, sum3;
  for (std::size_t c = 0; c < whole; c += lanes) {
    fetch(ahead, together);
    const four x = load(r, c);
    add_products(sum0, x, load(v + c)), add_products(sum1, x, load(v1 + c));
    add_products(sum2, x, load(v2 + c)), add_products(sum3, x, load(v3 + c));
  }
  if (rest != 0) {
    const four x = load_part(r, whole, rest);
    add_products(sum0, x, load_part(v + whole, rest)), add_products(sum1, x, load_part(v1 + whole, rest));
    add_products(sum2, x, load_part(v2 + whole, rest)), add_products(sum3, x, load_part(v3 + whole, rest));
  }
  store_sums(sum0, out, r.size), store_sums(sum1, out + pitch, r.size);
  store_sums(sum2, out + 2 * pitch, r.size), store_sums(sum3, out + 3 * pitch, r.size);
}

// Rows against all vectors, four by four; the first look at them asks for the rows to come.
template <class T>
[[gnu::noinline]] inline void dots_by_fours(const T* x, rows r, const float* vectors, std::size_t count, float* out,
                                            std::size_t pitch) {
  constexpr std::size_t together = 4 * lanes * sizeof(T);
  std::size_t v = 0;
  for (; v + vectors_together <= count; v += vectors_together, r.ahead = nullptr)
    for (std::size_t i = 0; i < r.tokens; i += 4) {
      const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(i) * r.stride, r.stride, r.tokens - i);
      dots_of_block(group, r.channels, vectors + v * r.channels, out + v * pitch + i, pitch, rows_ahead(r, group, i, together));
    }
  for (; v < count; ++v, r.ahead = nullptr)
    for (std::size_t i = 0; i < r.tokens; i += 4) {
      const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(i) * r.stride, r.stride, r.tokens - i);
      dots_of_one(group, r.channels, vectors + v * r.channels, out + v * pitch + i, rows_ahead(r, group, i, together));
    }
}

// Rows of 16 bits: against many vectors they are widened once for all of them, where there is room for four.
template <class T>
inline void dots_of_tile(const T* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  constexpr std::size_t most = 4096;  // floats: 16 KiB of the first cache
  const std::size_t fit = most / r.channels / 4 * 4;
  if (sizeof(T) == sizeof(float) || count < 2 * vectors_together || fit == 0)
    return dots_by_fours(x, r, vectors, count, out, pitch);
  float wide[most];
  rows some{wide, dtype::f32, 0, r.channels, static_cast<std::ptrdiff_t>(r.channels)};
  for (std::size_t t = 0; t < r.tokens; t += fit) {
    some.tokens = r.tokens - t < fit ? r.tokens - t : fit;
    for (std::size_t i = 0; i < some.tokens; ++i)
      widen_of(x + static_cast<std::ptrdiff_t>(t + i) * r.stride, r.channels, wide + i * r.channels);
    dots_by_fours(wide, some, vectors, count, out + t, pitch);
  }
}

template <class T>
inline void dots_of(const T* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  constexpr std::size_t together = 32;  // rows that stay in the first cache while the vectors pass
  rows tile = r;
  for (std::size_t t = 0; t < r.tokens; t += together) {
    const std::ptrdiff_t before = static_cast<std::ptrdiff_t>(t) * r.stride;
    tile.tokens = r.tokens - t < together ? r.tokens - t : together;
    if (r.ahead != nullptr) tile.ahead = static_cast<const T*>(r.ahead) + before;
    dots_of_tile(x + before, tile, vectors, count, out + t, pitch);
  }
}

inline void dots(const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  if (r.type == dtype::f32) return dots_of(static_cast<const float*>(r.data), r, vectors, count, out, pitch);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return dots_of(static_cast<const f16*>(r.data), r, vectors, count, out, pitch);
  if (r.type == dtype::bf16) return dots_of(static_cast<const bf16*>(r.data), r, vectors, count, out, pitch);
#endif
  // other types come widened
}

inline constexpr dot_kernels dot_kernels_table{dots};
