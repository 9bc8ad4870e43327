// Part of lagkv (MIT). Included once a target (each_target.inl): lagkv_kernels.

// ---- range ----------------------------------------------------------------------------------------------------------

struct bounds {
  vec least, most;
};

LAGKV_INLINE bounds load_bounds(const float* lo, const float* hi) { return {load(lo), load(hi)}; }
LAGKV_INLINE void store_bounds(bounds b, float* lo, float* hi) { store(lo, b.least), store(hi, b.most); }
LAGKV_INLINE void widen_bounds(bounds& b, vec x) { b.least = vmin(x, b.least), b.most = vmax(x, b.most); }

// Four vectors of channels, whose bounds stay in registers over all tokens.
template <class T>
LAGKV_INLINE void range_of_four(const T* x, std::size_t tokens, std::ptrdiff_t stride, float* lo, float* hi) {
  constexpr std::size_t l = lanes;
  bounds a = load_bounds(lo, hi), b = load_bounds(lo + l, hi + l), c = load_bounds(lo + 2 * l, hi + 2 * l),
         d = load_bounds(lo + 3 * l, hi + 3 * l);
  for (std::size_t t = 0; t < tokens; ++t, x += stride) {
    widen_bounds(a, load(x));
    widen_bounds(b, load(x + l));
    widen_bounds(c, load(x + 2 * l));
    widen_bounds(d, load(x + 3 * l));
  }
  store_bounds(a, lo, hi), store_bounds(b, lo + l, hi + l), store_bounds(c, lo + 2 * l, hi + 2 * l);
  store_bounds(d, lo + 3 * l, hi + 3 * l);
}

template <class T>
inline void range_of(const T* x, const rows& r, float* lo, float* hi) {
  // Rows of f32 are read a few at a time, each from end to end, which saves a fifth of the time where memory is waited for.
  const std::size_t together = sizeof(T) == 4 ? 4 : r.tokens;
  for (std::size_t t = 0; t < r.tokens; t += together) {
    const T* first = x + static_cast<std::ptrdiff_t>(t) * r.stride;
    const std::size_t group = r.tokens - t < together ? r.tokens - t : together;
    std::size_t c = 0;
    for (; c + 4 * lanes <= r.channels; c += 4 * lanes) range_of_four(first + c, group, r.stride, lo + c, hi + c);
    for (; c < r.channels; c += lanes) {
      const std::size_t here = r.channels - c < lanes ? r.channels - c : lanes;
      bounds b = {load_part(lo + c, here), load_part(hi + c, here)};
      const T* at = first + c;
      for (std::size_t i = 0; i < group; ++i, at += r.stride) widen_bounds(b, load_part(at, here));
      store_part(b.least, lo + c, here), store_part(b.most, hi + c, here);
    }
  }
}

inline void range(const rows& r, float* lo, float* hi) {
  if (r.type == dtype::f32) return range_of(static_cast<const float*>(r.data), r, lo, hi);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return range_of(static_cast<const f16*>(r.data), r, lo, hi);
  if (r.type == dtype::bf16) return range_of(static_cast<const bf16*>(r.data), r, lo, hi);
#endif
  // other types come widened
}

// ---- normalise ------------------------------------------------------------------------------------------------------

// Normalised channels lie around 0.5: the variance is taken about that point, which keeps the subtraction in it harmless.
inline constexpr float middle = 0.5F;

LAGKV_INLINE bool any(ivec mask) {
  std::int32_t part[lanes], found = 0;
  storei(part, mask);
  for (std::int32_t p : part) found |= p;
  return found != 0;
}

inline normal normalise(std::size_t channels, dtype type, float* lo, float* hi) {
  // Where lo lies within 16 widths of 0, (x - lo) * inverse - 1/2 may be taken as x * inverse + (-lo * inverse - 1/2), which
  // saves an operation an element: what rounding the second term costs stays below 1e-6 of the range.
  constexpr float widths = 16.0F;
  ivec bad = filli(0), distant = filli(0);
  for (std::size_t c = 0; c < channels; c += lanes) {
    const std::size_t here = channels - c < lanes ? channels - c : lanes;
    bad |= ~finite(load_part(lo + c, here)) | ~finite(load_part(hi + c, here));
  }
  if (any(bad)) return normal::not_finite;
  for (std::size_t c = 0; c < channels; c += lanes) {
    const std::size_t here = channels - c < lanes ? channels - c : lanes;
    const vec low = load_part(lo + c, here), width = load_part(hi + c, here) - low, reciprocal = fill(1.0F) / width;
    const ivec counts = yes(width > fill(0.0F)) & finite(reciprocal);  // z = 0 in a channel that does not
    const vec inverse = pick(counts & ~yes(reciprocal == fill(0.0F)), reciprocal, fill(0.0F));
    const vec from = pick(~yes(inverse == fill(0.0F)), low, fill(0.0F));
    const vec distance = from * inverse;
    distant |= yes(distance > fill(widths)) | yes(distance < fill(-widths));
    store_part(from, lo + c, here), store_part(inverse, hi + c, here);
  }
  const bool fused = type != dtype::f32 && !any(distant);
  if (fused)
    for (std::size_t c = 0; c < channels; c += lanes) {
      const std::size_t here = channels - c < lanes ? channels - c : lanes;
      store_part(fma(fill(0.0F) - load_part(lo + c, here), load_part(hi + c, here), fill(-middle)), lo + c, here);
    }
  return fused ? normal::fused : normal::plain;
}

// ---- deviation ------------------------------------------------------------------------------------------------------

struct moments {
  vec sum{}, square{};
};

// Rows of f32 wait for memory: they can afford the subtraction. Rows of 16 bits come fused, or widened to f32.
LAGKV_INLINE vec normalised(const float*, vec x, vec shift, vec inverse, vec half) { return fma(x - shift, inverse, half); }
template <class T>
LAGKV_INLINE vec normalised(const T*, vec x, vec shift, vec inverse, vec) {
  return fma(x, inverse, shift);
}

template <class T>
LAGKV_INLINE void accumulate(const T* type, moments& m, vec x, vec shift, vec inverse, vec half) {
  const vec z = normalised(type, x, shift, inverse, half);
  m.sum += z;
  m.square = fma(z, z, m.square);
}

struct four_moments {
  moments a{}, b{}, c{}, d{};
};

template <class T>
LAGKV_INLINE void accumulate(const T* type, four_moments& m, const four& x, vec shift, vec inverse, vec half) {
  accumulate(type, m.a, x.a, shift, inverse, half), accumulate(type, m.b, x.b, shift, inverse, half);
  accumulate(type, m.c, x.c, shift, inverse, half), accumulate(type, m.d, x.d, shift, inverse, half);
}

LAGKV_INLINE void widen_bounds(bounds& b, const four& x) {
  widen_bounds(b, x.a), widen_bounds(b, x.b), widen_bounds(b, x.c), widen_bounds(b, x.d);
}

// Four rows at a time share the loads of shift, inverse and bounds, and one reduction; a last group repeats its last row.
template <class T>
inline void deviation_of(const T* x, const rows& r, const float* shift, const float* inverse, float* out, float* lo, float* hi) {
  const std::size_t whole = r.channels / lanes * lanes;
  const std::size_t rest = r.channels - whole;
  float half_rest[lanes] = {};  // the padding of a last, partial vector must stay 0
  for (std::size_t i = 0; i < rest; ++i) half_rest[i] = -middle;
  const float share = 1.0F / static_cast<float>(r.channels);
  const float unbiased = r.channels > 1 ? 1.0F / static_cast<float>(r.channels - 1) : 0.0F;
  const vec half = fill(-middle);
  constexpr std::size_t together = 4 * lanes * sizeof(T);  // bytes of one vector of four rows

  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    ahead_of_four ahead = rows_ahead(r, group, t, together);
    four_moments m;
    for (std::size_t c = 0; c < whole; c += lanes) {
      fetch(ahead, together);
      const four v = load(group, c);
      bounds b = load_bounds(lo + c, hi + c);
      widen_bounds(b, v);
      store_bounds(b, lo + c, hi + c);
      accumulate(x, m, v, load(shift + c), load(inverse + c), half);
    }
    if (rest != 0) {
      const four v = load_part(group, whole, rest);
      bounds b = {load_part(lo + whole, rest), load_part(hi + whole, rest)};
      widen_bounds(b, v);
      store_part(b.least, lo + whole, rest), store_part(b.most, hi + whole, rest);
      accumulate(x, m, v, load_part(shift + whole, rest), load_part(inverse + whole, rest), load(half_rest));
    }
    float sums[8];
    sum8({m.a.sum, m.b.sum, m.c.sum, m.d.sum}, {m.a.square, m.b.square, m.c.square, m.d.square}, sums);
    for (std::size_t i = 0; i < group.size; ++i) out[t + i] = (sums[4 + i] - sums[i] * (sums[i] * share)) * unbiased;
  }
  for (std::size_t t = 0; t < r.tokens; t += lanes) {
    const std::size_t here = r.tokens - t < lanes ? r.tokens - t : lanes;
    const vec variance = load_part(out + t, here);
    // With -ffast-math a comparison alone makes 0 of NaN, and the row would count.
    const ivec below = yes(variance < fill(0.0F)) & finite(variance);
    store_part(root(pick(below, fill(0.0F), variance)), out + t, here);
  }
}

inline void deviation(const rows& r, const float* shift, const float* inverse, float* out, float* lo, float* hi) {
  if (r.type == dtype::f32) return deviation_of(static_cast<const float*>(r.data), r, shift, inverse, out, lo, hi);
#if LAGKV_READS_16_BITS
  if (r.type == dtype::f16) return deviation_of(static_cast<const f16*>(r.data), r, shift, inverse, out, lo, hi);
  if (r.type == dtype::bf16) return deviation_of(static_cast<const bf16*>(r.data), r, shift, inverse, out, lo, hi);
#endif
  // other types come widened
}

inline constexpr lagkv_kernels lagkv_kernels_table{range, normalise, deviation};
