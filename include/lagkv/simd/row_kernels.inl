// Part of lagkv (MIT). Included once a target (each_target.inl): row_kernels.

// ---- squares, distances ---------------------------------------------------------------------------------------------

LAGKV_INLINE void add_squares(four& sum, const four& x) {
  sum.a = fma(x.a, x.a, sum.a), sum.b = fma(x.b, x.b, sum.b), sum.c = fma(x.c, x.c, sum.c), sum.d = fma(x.d, x.d, sum.d);
}

template <class T>
inline void squares_of(const T* x, const rows& r, float* out) {
  const std::size_t whole = r.channels / lanes * lanes, rest = r.channels - whole;
  constexpr std::size_t together = 4 * lanes * sizeof(T);  // bytes of one vector of four rows
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    ahead_of_four ahead = rows_ahead(r, group, t, together);
    four sum;
    std::size_t c = 0;  // two loops: one that may have nothing to fetch takes a fifth longer where it has not
    for (; ahead.row != nullptr && c < whole; c += lanes) {
      fetch(ahead, together);
      add_squares(sum, load(group, c));
    }
    for (; c < whole; c += lanes) add_squares(sum, load(group, c));
    if (rest != 0) add_squares(sum, load_part(group, whole, rest));
    store_sums(sum, out + t, group.size);
  }
}

inline void squares(const rows& r, float* out) {
  if (r.type == dtype::f32) return squares_of(static_cast<const float*>(r.data), r, out);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return squares_of(static_cast<const f16*>(r.data), r, out);
  if (r.type == dtype::bf16) return squares_of(static_cast<const bf16*>(r.data), r, out);
#endif
  // other types come widened
}

LAGKV_INLINE void add_distances(four& sum, const four& x, const four& factor, vec centre, vec weight) {
  const vec from = fill(0.0F) - centre;
  const vec a = fma(x.a, factor.a, from), b = fma(x.b, factor.b, from), c = fma(x.c, factor.c, from),
            d = fma(x.d, factor.d, from);
  sum.a = fma(a * weight, a, sum.a), sum.b = fma(b * weight, b, sum.b);
  sum.c = fma(c * weight, c, sum.c), sum.d = fma(d * weight, d, sum.d);
}

template <class T>
inline void distances_of(const T* x, const rows& r, const float* factors, const float* centre, const float* weights, float* out) {
  const std::size_t whole = r.channels / lanes * lanes, rest = r.channels - whole;
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    float factor[4] = {1.0F, 1.0F, 1.0F, 1.0F};
    for (std::size_t i = 0; factors != nullptr && i < 4; ++i) factor[i] = factors[t + (i < group.size ? i : group.size - 1)];
    const four scale{fill(factor[0]), fill(factor[1]), fill(factor[2]), fill(factor[3])};
    four sum;
    for (std::size_t c = 0; c < whole; c += lanes)
      add_distances(sum, load(group, c), scale, load(centre + c), weights != nullptr ? load(weights + c) : fill(1.0F));
    if (rest != 0)
      add_distances(sum, load_part(group, whole, rest), scale, load_part(centre + whole, rest),
                    weights != nullptr ? load_part(weights + whole, rest) : fill(1.0F));
    store_sums(sum, out + t, group.size);
  }
}

inline void distances(const rows& r, const float* factors, const float* centre, const float* weights, float* out) {
  if (r.type == dtype::f32) return distances_of(static_cast<const float*>(r.data), r, factors, centre, weights, out);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return distances_of(static_cast<const f16*>(r.data), r, factors, centre, weights, out);
  if (r.type == dtype::bf16) return distances_of(static_cast<const bf16*>(r.data), r, factors, centre, weights, out);
#endif
  // other types come widened
}

// ---- add_rows -------------------------------------------------------------------------------------------------------

// Four vectors of one row.
template <class T>
LAGKV_INLINE void add_scaled(four& sum, vec weight, const T* x) {
  sum.a = fma(weight, load(x), sum.a), sum.b = fma(weight, load(x + lanes), sum.b);
  sum.c = fma(weight, load(x + 2 * lanes), sum.c), sum.d = fma(weight, load(x + 3 * lanes), sum.d);
}

template <class T>
inline void add_rows_of(const T* x, const rows& r, const float* weights, float* sum) {
  // The sums of a block of channels stay in registers over all rows. Each waits for the row before: the more, the better.
  std::size_t c = 0;
  for (; c + 8 * lanes <= r.channels; c += 8 * lanes) {
    four low = load_four(sum + c), high = load_four(sum + c + 4 * lanes);
    const T* at = x + c;
    for (std::size_t t = 0; t < r.tokens; ++t, at += r.stride)
      add_scaled(low, fill(weights[t]), at), add_scaled(high, fill(weights[t]), at + 4 * lanes);
    store_four(low, sum + c), store_four(high, sum + c + 4 * lanes);
  }
  for (; c + 4 * lanes <= r.channels; c += 4 * lanes) {
    four low = load_four(sum + c);
    const T* at = x + c;
    for (std::size_t t = 0; t < r.tokens; ++t, at += r.stride) add_scaled(low, fill(weights[t]), at);
    store_four(low, sum + c);
  }
  for (; c < r.channels; c += lanes) {
    const std::size_t here = r.channels - c < lanes ? r.channels - c : lanes;
    vec total = load_part(sum + c, here);
    const T* at = x + c;
    for (std::size_t t = 0; t < r.tokens; ++t, at += r.stride) total = fma(fill(weights[t]), load_part(at, here), total);
    store_part(total, sum + c, here);
  }
}

inline void add_rows(const rows& r, const float* weights, float* sum) {
  if (r.type == dtype::f32) return add_rows_of(static_cast<const float*>(r.data), r, weights, sum);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return add_rows_of(static_cast<const f16*>(r.data), r, weights, sum);
  if (r.type == dtype::bf16) return add_rows_of(static_cast<const bf16*>(r.data), r, weights, sum);
#endif
  // other types come widened
}

// ---- add_statistics ----------------------------------------------------------------------------------------------------

LAGKV_INLINE void add_moment(vec& sum, vec& square, vec x) {
  sum += x;
  square = fma(x, x, square);
}

template <class T>
inline void add_statistics_of(const T* x, const rows& r, const float* factors, float* sum, float* square) {
  std::size_t c = 0;
  for (; c + 4 * lanes <= r.channels; c += 4 * lanes) {
    four sums = load_four(sum + c), squares = load_four(square + c);
    const T* at = x + c;
    for (std::size_t t = 0; t < r.tokens; ++t, at += r.stride) {
      const vec factor = fill(factors[t]);
      add_moment(sums.a, squares.a, load(at) * factor), add_moment(sums.b, squares.b, load(at + lanes) * factor);
      add_moment(sums.c, squares.c, load(at + 2 * lanes) * factor), add_moment(sums.d, squares.d, load(at + 3 * lanes) * factor);
    }
    store_four(sums, sum + c), store_four(squares, square + c);
  }
  for (; c < r.channels; c += lanes) {
    const std::size_t here = r.channels - c < lanes ? r.channels - c : lanes;
    vec sums = load_part(sum + c, here), squares = load_part(square + c, here);
    const T* at = x + c;
    for (std::size_t t = 0; t < r.tokens; ++t, at += r.stride) add_moment(sums, squares, load_part(at, here) * fill(factors[t]));
    store_part(sums, sum + c, here), store_part(squares, square + c, here);
  }
}

inline void add_statistics(const rows& r, const float* factors, float* sum, float* square) {
  if (r.type == dtype::f32) return add_statistics_of(static_cast<const float*>(r.data), r, factors, sum, square);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return add_statistics_of(static_cast<const f16*>(r.data), r, factors, sum, square);
  if (r.type == dtype::bf16) return add_statistics_of(static_cast<const bf16*>(r.data), r, factors, sum, square);
#endif
  // other types come widened
}

// ---- norms --------------------------------------------------------------------------------------------------------------

LAGKV_INLINE vec nan_unless(ivec holds, vec v) { return pick(holds, v, from_bits(filli(0x7fc00000))); }

inline void inverse_roots(float* squares, std::size_t n) {
  for (std::size_t i = 0; i < n; i += lanes) {
    const std::size_t here = n - i < lanes ? n - i : lanes;
    const vec square = load_part(squares + i, here), length = root(square);
    const vec inverse = pick(yes(length > fill(0.0F)), fill(1.0F) / length, fill(0.0F));
    store_part(nan_unless(finite(square), inverse), squares + i, here);
  }
}

inline void add_roots(const float* squares, std::size_t n, float scale, float weight, float* out) {
  for (std::size_t i = 0; i < n; i += lanes) {
    const std::size_t here = n - i < lanes ? n - i : lanes;
    const vec square = load_part(squares + i, here) * fill(scale);
    const vec length = nan_unless(finite(square), root(square));
    store_part(fma(fill(weight), length, load_part(out + i, here)), out + i, here);
  }
}

inline constexpr row_kernels row_kernels_table{squares, distances, add_rows, add_statistics, inverse_roots, add_roots};
