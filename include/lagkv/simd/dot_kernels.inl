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

// Four rows against four vectors: sixteen sums in registers, and each element is widened once for all of them.
inline constexpr std::size_t vectors_together = 4;
template <class T>
LAGKV_INLINE void dots_of_block(four_rows<T> r, std::size_t channels, const float* v, float* out, std::size_t pitch) {
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

template <class T>
inline void dots_of(const T* x, const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  constexpr std::size_t together = 32;  // rows that stay in the first cache while the vectors pass
  for (std::size_t t = 0; t < r.tokens; t += together) {
    const std::size_t end = r.tokens - t < together ? r.tokens : t + together;
    for (std::size_t v = 0; v < count;) {
      const std::size_t block = count - v < vectors_together ? 1 : vectors_together;
      for (std::size_t i = t; i < end; i += 4) {
        const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(i) * r.stride, r.stride, r.tokens - i);
        if (block == 1)
          dots_of_one(group, r.channels, vectors + v * r.channels, out + v * pitch + i);
        else
          dots_of_block(group, r.channels, vectors + v * r.channels, out + v * pitch + i, pitch);
      }
      v += block;
    }
  }
}

inline void dots(const rows& r, const float* vectors, std::size_t count, float* out, std::size_t pitch) {
  if (r.type == dtype::f32) return dots_of(static_cast<const float*>(r.data), r, vectors, count, out, pitch);
  if (r.type == dtype::f16) return dots_of(static_cast<const f16*>(r.data), r, vectors, count, out, pitch);
  if (r.type == dtype::bf16) return dots_of(static_cast<const bf16*>(r.data), r, vectors, count, out, pitch);
  // other types come widened
}

inline constexpr dot_kernels dot_kernels_table{dots};
