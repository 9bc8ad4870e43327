// Part of lagkv (MIT). Included once a target (each_target.inl): dot_kernels.

// ---- dots -----------------------------------------------------------------------------------------------------------

LAGKV_INLINE void add_products(four& sum, const four& x, vec v) {
  sum.a = fma(x.a, v, sum.a), sum.b = fma(x.b, v, sum.b), sum.c = fma(x.c, v, sum.c), sum.d = fma(x.d, v, sum.d);
}

// Four rows against one vector.
template <class T>
LAGKV_INLINE void dots_of_one(four_rows<T> r, std::size_t channels, const float* v, float* out) {
  const std::size_t whole = channels / lanes * lanes, rest = channels - whole;
  four sum;
  for (std::size_t c = 0; c < whole; c += lanes) add_products(sum, load(r, c), load(v + c));
  if (rest != 0) add_products(sum, load_part(r, whole, rest), load_part(v + whole, rest));
  store_sums(sum, out, r.size);
}

// Four rows against four vectors: sixteen sums in registers.
inline constexpr std::size_t vectors_together = 4;
LAGKV_INLINE void dots_of_block(four_rows<float> r, std::size_t channels, const float* v, float* out, std::size_t pitch) {
  const std::size_t whole = channels / lanes * lanes, rest = channels - whole;
  const float *v1 = v + channels, *v2 = v1 + channels, *v3 = v2 + channels;
  four sum0, sum1, sum2, sum3;
  for (std::size_t c = 0; c < whole; c += lanes) {
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

// One vector after the other.
template <class T>
[[gnu::noinline]] inline void dots_one_by_one(const T* x, const rows& r, const float* vectors, std::size_t count, float* out,
                                              std::size_t pitch) {
  for (std::size_t v = 0; v < count; ++v)
    for (std::size_t i = 0; i < r.tokens; i += 4)
      dots_of_one(rows_from(x + static_cast<std::ptrdiff_t>(i) * r.stride, r.stride, r.tokens - i), r.channels,
                  vectors + v * r.channels, out + v * pitch + i);
}

// Rows of f32 against all vectors, four by four.
inline void dots_of_tile(const float* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  const std::size_t fours = count / vectors_together * vectors_together;
  for (std::size_t v = 0; v < fours; v += vectors_together)
    for (std::size_t i = 0; i < r.tokens; i += 4)
      dots_of_block(rows_from(x + static_cast<std::ptrdiff_t>(i) * r.stride, r.stride, r.tokens - i), r.channels,
                    vectors + v * r.channels, out + v * pitch + i, pitch);
  dots_one_by_one(x, r, vectors + fours * r.channels, count - fours, out + fours * pitch, pitch);
}

// Rows of 16 bits: against many vectors they are widened once for all of them, where there is room for four.
template <class T>
inline void dots_of_tile(const T* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  constexpr std::size_t most = 4096;  // floats: 16 KiB of the first cache
  float wide[most];
  const std::size_t fit = most / r.channels / 4 * 4;
  if (count < vectors_together || fit == 0) return dots_one_by_one(x, r, vectors, count, out, pitch);
  rows some{wide, dtype::f32, 0, r.channels, static_cast<std::ptrdiff_t>(r.channels)};
  for (std::size_t t = 0; t < r.tokens; t += fit) {
    some.tokens = r.tokens - t < fit ? r.tokens - t : fit;
    for (std::size_t i = 0; i < some.tokens; ++i)
      widen_of(x + static_cast<std::ptrdiff_t>(t + i) * r.stride, r.channels, wide + i * r.channels);
    dots_of_tile(wide, some, vectors, count, out + t, pitch);
  }
}

template <class T>
inline void dots_of(const T* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  constexpr std::size_t together = 32;  // rows that stay in the first cache while the vectors pass
  rows tile = r;
  for (std::size_t t = 0; t < r.tokens; t += together) {
    tile.tokens = r.tokens - t < together ? r.tokens - t : together;
    dots_of_tile(x + static_cast<std::ptrdiff_t>(t) * r.stride, tile, vectors, count, out + t, pitch);
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
