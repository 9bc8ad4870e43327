// Part of lagkv (MIT). Included once a target (each_target.inl): rope_kernels.

// ---- inverse_rotate ------------------------------------------------------------------------------------------------------

struct turned {
  vec cosine, sine;
};

// Entries of a table from c on, its `width` cosines before its sines.
LAGKV_INLINE turned load_turned(const float* table, std::size_t width, std::size_t c, std::size_t n) {
  return {load_part(table + c, n), load_part(table + width + c, n)};
}

LAGKV_INLINE turned sum_of_turns(turned a, turned b) {
  return {fma(a.cosine, b.cosine, fill(0.0F) - a.sine * b.sine), fma(a.cosine, b.sine, a.sine * b.cosine)};
}

// `v` was loaded from x + c: lanes 2j and 2j + 1 change places.
template <class T>
LAGKV_INLINE vec swapped([[maybe_unused]] const T* x, [[maybe_unused]] std::size_t c, [[maybe_unused]] vec v) {
#if LAGKV_LANES == 16
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LAGKV_LANES == 8
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#elif LAGKV_LANES == 4
  return __builtin_shufflevector(v, v, 1, 0, 3, 2);
#else
  return load(x + (c ^ 1));
#endif
}

// n entries of the tables from c on.
template <bool Neighbours, class T>
LAGKV_INLINE void turn_row_back(const T* x, turned coarse, const float* fine, std::size_t width, std::size_t c, std::size_t n,
                                float* out, vec& square) {
  const turned t = sum_of_turns(coarse, load_turned(fine, width, c, n));
  const vec a = load_part(x + c, n);
  if constexpr (Neighbours) {
    const vec p = fma(swapped(x, c, a), t.sine, a * t.cosine);
    store_part(p, out + c, n);
    square = fma(p, p, square);
  } else {
    const vec b = load_part(x + width + c, n);
    const vec p = fma(b, t.sine, a * t.cosine), q = fma(b, t.cosine, fill(0.0F) - a * t.sine);
    store_part(p, out + c, n), store_part(q, out + width + c, n);
    square = fma(q, q, fma(p, p, square));
  }
}

// Four rows of the tables, or of what is written.
template <class T>
struct four_pointers {
  T *a, *b, *c, *d;
};

template <bool Neighbours, class T>
LAGKV_INLINE void turn_four_back(const four_rows<T>& x, const turn& by, const four_pointers<const float>& fine, std::size_t width,
                                 std::size_t c, const four_pointers<float>& out, four& square) {
  const turned coarse = load_turned(by.coarse, width, c, lanes);
  turn_row_back<Neighbours>(x.a, coarse, fine.a, width, c, lanes, out.a, square.a);
  turn_row_back<Neighbours>(x.b, coarse, fine.b, width, c, lanes, out.b, square.b);
  turn_row_back<Neighbours>(x.c, coarse, fine.c, width, c, lanes, out.c, square.c);
  turn_row_back<Neighbours>(x.d, coarse, fine.d, width, c, lanes, out.d, square.d);
}

// What is left of a row: the last turned channels, fewer than a vector, and those that carry no position. It stands in `out`, in
// f32, and is turned there. Not inlined, as all of its kind: it would stand four times in each kernel, and most models have
// neither.
[[gnu::noinline]] inline void turn_rest_in_place(std::size_t channels, const turn& by, const float* fine, std::size_t width,
                                                 std::size_t whole, float* out, vec& square) {
  if (whole < width) {
    const turned coarse = load_turned(by.coarse, width, whole, width - whole);
    if (by.neighbours)
      turn_row_back<true>(out, coarse, fine, width, whole, width - whole, out, square);
    else
      turn_row_back<false>(out, coarse, fine, width, whole, width - whole, out, square);
  }
  for (std::size_t c = by.dims; c < channels; c += lanes) {
    const vec v = load_part(out + c, channels - c < lanes ? channels - c : lanes);
    square = fma(v, v, square);
  }
}

template <class T>
[[gnu::noinline]] inline void turn_rest(const T* x, std::size_t channels, const turn& by, const float* fine, std::size_t width,
                                        std::size_t whole, float* out, vec& square) {
  const std::size_t begins[] = {whole, width + whole, by.dims};
  const std::size_t ends[] = {width, by.neighbours ? 0 : 2 * width, channels};
  for (std::size_t part = 0; part < 3; ++part)
    if (begins[part] < ends[part]) widen_of(x + begins[part], ends[part] - begins[part], out + begins[part]);
  turn_rest_in_place(channels, by, fine, width, whole, out, square);
}

template <bool Neighbours, class T>
inline void turn_back_by(const T* x, const rows& r, const turn& by, float* out, float* squares) {
  const std::size_t width = Neighbours ? by.dims : by.dims / 2, whole = width / lanes * lanes;
  const bool rest = whole < width || by.dims < r.channels;
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    constexpr std::size_t together = (Neighbours ? 4 : 8) * lanes * sizeof(T);  // bytes of one step of four rows
    ahead_of_four ahead = rows_ahead(r, group, t, together);
    // As in rows_from, the last row stands for those that are missing.
    const std::size_t last = r.tokens - 1, i = t, j = t + 1 < last ? t + 1 : last, k = t + 2 < last ? t + 2 : last,
                      l = t + 3 < last ? t + 3 : last;
    const four_pointers<const float> fine{by.fine[i], by.fine[j], by.fine[k], by.fine[l]};
    const four_pointers<float> to{out + i * r.channels, out + j * r.channels, out + k * r.channels, out + l * r.channels};
    four square;
    for (std::size_t c = 0; c < whole; c += lanes) {
      fetch(ahead, together);
      turn_four_back<Neighbours>(group, by, fine, width, c, to, square);
    }
    if (rest) {
      four copy = square;  // so that square can stay in registers
      turn_rest(group.a, r.channels, by, fine.a, width, whole, to.a, copy.a);
      turn_rest(group.b, r.channels, by, fine.b, width, whole, to.b, copy.b);
      turn_rest(group.c, r.channels, by, fine.c, width, whole, to.c, copy.c);
      turn_rest(group.d, r.channels, by, fine.d, width, whole, to.d, copy.d);
      square = copy;
    }
    store_sums(square, squares + t, group.size);
  }
}

template <class T>
inline void turn_back_of(const T* x, const rows& r, const turn& by, float* out, float* squares) {
  return by.neighbours ? turn_back_by<true>(x, r, by, out, squares) : turn_back_by<false>(x, r, by, out, squares);
}

inline void inverse_rotate(const rows& r, const turn& by, float* out, float* squares) {
  if (r.type == dtype::f32) return turn_back_of(static_cast<const float*>(r.data), r, by, out, squares);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return turn_back_of(static_cast<const f16*>(r.data), r, by, out, squares);
  if (r.type == dtype::bf16) return turn_back_of(static_cast<const bf16*>(r.data), r, by, out, squares);
#endif
  // other types come widened
}

inline constexpr rope_kernels rope_kernels_table{inverse_rotate};
