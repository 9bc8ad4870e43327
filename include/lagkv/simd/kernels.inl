// Part of lagkv (MIT). Every kernel, once. Included once a target, inside the namespace of that target, which has defined
//   LAGKV_LANES           floats a vector; 1: plain floats
//   LAGKV_X86             1: x86's instructions for that many lanes may be named
//   LAGKV_TARGET          its enumerator
//   widen_halves          f16 bits -> vec; this and the next are what the compiler's vector types do not offer
//   root, fma             square root; a * b + c, rounded once where the target can
// All else is the compiler's vector types, so no intrinsics header is needed. No lambdas in here: they would lose the
// target. Small fixed groups are written out: a loop over an array of vectors may end up in memory.

inline constexpr std::size_t lanes = LAGKV_LANES;

LAGKV_INLINE vec load(const float* p) {
  vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LAGKV_INLINE ivec loadi(const std::int32_t* p) {
  ivec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LAGKV_INLINE halves load_halves(const void* p) {
  halves v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LAGKV_INLINE vec load(const f16* p) { return widen_halves(load_halves(p)); }
LAGKV_INLINE vec load(const bf16* p) { return from_bits(widen_integers(load_halves(p)) << 16); }
LAGKV_INLINE octets load_octets(const void* p) {
  octets v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LAGKV_INLINE vec load(const fp8_e5m2* p) { return widen_halves((halves)(widen_octets(load_octets(p)) << 8)); }
LAGKV_INLINE vec load(const fp8_e4m3* p) {
  // As an f16 with the same fields it is 2^8 times too small, and its NaN is a number.
  const halves b = widen_octets(load_octets(p));
  const vec v = widen_halves((halves)((b & 0x80) << 8 | (b & 0x7f) << 7)) * 256.0F;
  return from_bits(bits(v) | (yes((widen_integers(b) & 0x7f) == 0x7f) & 0x7fc00000));
}
LAGKV_INLINE vec load(const std::int8_t* p) { return to_float(widen_signed(load_octets(p))); }
LAGKV_INLINE vec load(const std::uint8_t* p) { return to_float(widen_integers(load_octets(p))); }

// The first n elements, zeros behind them. Whole vectors come here too, at the price of a comparison.
template <class T>
LAGKV_INLINE vec load_part(const T* p, std::size_t n) {
  if (lanes == 1 || n == lanes) return load(p);
  T padded[lanes] = {};
  __builtin_memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

LAGKV_INLINE void store(float* p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
LAGKV_INLINE void store_part(vec v, float* p, std::size_t n) {
  if (lanes == 1 || n == lanes) return store(p, v);
  __builtin_memcpy(p, &v, n * sizeof(float));
}
LAGKV_INLINE void storei(std::int32_t* p, ivec v) { __builtin_memcpy(p, &v, sizeof v); }
LAGKV_INLINE vec fill(float x) { return vec{} + x; }
LAGKV_INLINE float first_of(vec v) {
  float f;
  __builtin_memcpy(&f, &v, sizeof f);
  return f;
}
LAGKV_INLINE ivec filli(std::int32_t x) { return ivec{} + x; }

LAGKV_INLINE float sum_of(vec v) {
  float part[lanes];
  store(part, v);
  for (std::size_t width = lanes / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

LAGKV_INLINE vec pick(ivec mask, vec a, vec b) { return from_bits((bits(a) & mask) | (bits(b) & ~mask)); }

// On bits, so that a host built with -ffinite-math-only does not lose the check.
LAGKV_INLINE ivec finite(vec x) { return yes((bits(x) & 0x7f800000) != 0x7f800000); }
LAGKV_INLINE bool finite_one(float x) { return (__builtin_bit_cast(std::int32_t, x) & 0x7f800000) != 0x7f800000; }

// The sums over lanes of four vectors, as four floats.
#if LAGKV_LANES == 1
LAGKV_INLINE void sum4(vec a, vec b, vec c, vec d, float* out) { out[0] = a, out[1] = b, out[2] = c, out[3] = d; }
#else
typedef float quad __attribute__((vector_size(16)));

LAGKV_INLINE quad fold(vec v) {
#if LAGKV_LANES == 16
  typedef float oct __attribute__((vector_size(32)));
  const oct o = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(o, o, 0, 1, 2, 3) + __builtin_shufflevector(o, o, 4, 5, 6, 7);
#elif LAGKV_LANES == 8
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

LAGKV_INLINE void sum4(vec a, vec b, vec c, vec d, float* out) {
  // A transposed sum: two rounds of pairing halve the rows and the width together.
  const quad p = fold(a), q = fold(b), r = fold(c), s = fold(d);
  const quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  const quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  const quad total = __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
  __builtin_memcpy(out, &total, sizeof total);
}
#endif

// ---- rows by fours --------------------------------------------------------------------------------------------------

// Four rows that share the loads of what they meet and one reduction; a last group of less repeats its last row, so that a
// row is summed alike wherever it stands.
template <class T>
struct four_rows {
  const T *a, *b, *c, *d;
  std::size_t size;  // rows that count
};

template <class T>
LAGKV_INLINE four_rows<T> rows_from(const T* first, std::ptrdiff_t stride, std::size_t left) {
  const T* b = left > 1 ? first + stride : first;
  const T* c = left > 2 ? b + stride : b;
  return {first, b, c, left > 3 ? c + stride : c, left < 4 ? left : 4};
}

struct four {
  vec a{}, b{}, c{}, d{};
};

template <class T>
LAGKV_INLINE four load(four_rows<T> r, std::size_t channel) {
  return {load(r.a + channel), load(r.b + channel), load(r.c + channel), load(r.d + channel)};
}
template <class T>
LAGKV_INLINE four load_part(four_rows<T> r, std::size_t channel, std::size_t n) {
  return {load_part(r.a + channel, n), load_part(r.b + channel, n), load_part(r.c + channel, n), load_part(r.d + channel, n)};
}

// The sums over lanes of eight vectors: those of `x`, then those of `y`.
LAGKV_INLINE void sum8(const four& x, const four& y, float* out) {
#if LAGKV_LANES == 16
  // Each round halves the width and puts two vectors into one.
  const vec p0 = __builtin_shufflevector(x.a, x.b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(x.a, x.b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const vec p1 = __builtin_shufflevector(x.c, x.d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(x.c, x.d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const vec p2 = __builtin_shufflevector(y.a, y.b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(y.a, y.b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const vec p3 = __builtin_shufflevector(y.c, y.d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(y.c, y.d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const vec q0 = __builtin_shufflevector(p0, p1, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                 __builtin_shufflevector(p0, p1, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const vec q1 = __builtin_shufflevector(p2, p3, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                 __builtin_shufflevector(p2, p3, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const vec r = __builtin_shufflevector(q0, q1, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                __builtin_shufflevector(q0, q1, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  const vec total = r + __builtin_shufflevector(r, r, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  typedef float oct __attribute__((vector_size(32)));
  const oct sums = __builtin_shufflevector(total, total, 0, 4, 8, 12, 2, 6, 10, 14);
  __builtin_memcpy(out, &sums, sizeof sums);
#else
  sum4(x.a, x.b, x.c, x.d, out), sum4(y.a, y.b, y.c, y.d, out + 4);
#endif
}

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
  // Rows of f32 are read a few at a time, each from end to end, which spares a fifth of a step that waits for memory.
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
  switch (r.type) {
    case dtype::f32: return range_of(static_cast<const float*>(r.data), r, lo, hi);
    case dtype::f16: return range_of(static_cast<const f16*>(r.data), r, lo, hi);
    case dtype::bf16: return range_of(static_cast<const bf16*>(r.data), r, lo, hi);
    default: return;  // other types come widened
  }
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
  constexpr float near = 16.0F;
  ivec bad = filli(0), far = filli(0);
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
    far |= yes(distance > fill(near)) | yes(distance < fill(-near));
    store_part(from, lo + c, here), store_part(inverse, hi + c, here);
  }
  const bool fused = type != dtype::f32 && !any(far);
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
  moments a, b, c, d;
};

template <class T>
LAGKV_INLINE void accumulate(const T* type, four_moments& m, const four& x, vec shift, vec inverse, vec half) {
  accumulate(type, m.a, x.a, shift, inverse, half), accumulate(type, m.b, x.b, shift, inverse, half);
  accumulate(type, m.c, x.c, shift, inverse, half), accumulate(type, m.d, x.d, shift, inverse, half);
}

LAGKV_INLINE void widen_bounds(bounds& b, const four& x) {
  widen_bounds(b, x.a), widen_bounds(b, x.b), widen_bounds(b, x.c), widen_bounds(b, x.d);
}

// Memory is fastest where its lines are asked for in their order, which reading four rows at once is not.
LAGKV_INLINE void prefetch_rows(const std::byte* first, std::ptrdiff_t step, std::size_t count, std::size_t bytes) {
  constexpr std::size_t line = 64;
  for (std::size_t i = 0; i < count; ++i, first += step)
    for (std::size_t b = 0; b < bytes; b += line) __builtin_prefetch(first + b);
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
  const std::ptrdiff_t step = r.stride * static_cast<std::ptrdiff_t>(sizeof(T));

  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    if (r.ahead != nullptr)
      prefetch_rows(static_cast<const std::byte*>(r.ahead) + static_cast<std::ptrdiff_t>(t) * step, step, group.size,
                    r.channels * sizeof(T));
    four_moments m;
    for (std::size_t c = 0; c < whole; c += lanes) {
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
    for (std::size_t i = 0; i < group.size; ++i) {
      const float variance = (sums[4 + i] - sums[i] * (sums[i] * share)) * unbiased;
      out[t + i] = variance < 0.0F ? 0.0F : variance;
    }
  }
  for (std::size_t t = 0; t < r.tokens; t += lanes) {
    const std::size_t here = r.tokens - t < lanes ? r.tokens - t : lanes;
    store_part(root(load_part(out + t, here)), out + t, here);
  }
}

inline void deviation(const rows& r, const float* shift, const float* inverse, float* out, float* lo, float* hi) {
  switch (r.type) {
    case dtype::f32: return deviation_of(static_cast<const float*>(r.data), r, shift, inverse, out, lo, hi);
    case dtype::f16: return deviation_of(static_cast<const f16*>(r.data), r, shift, inverse, out, lo, hi);
    case dtype::bf16: return deviation_of(static_cast<const bf16*>(r.data), r, shift, inverse, out, lo, hi);
    default: return;  // other types come widened
  }
}

// ---- softmax --------------------------------------------------------------------------------------------------------

// e^x for x <= 0, within 2 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, then Taylor's series to r^7.
LAGKV_INLINE vec exp_nonpositive(vec x) {
  x = vmin(vmax(x, fill(-87.0F)), fill(0.0F));  // below it e^x is no normal f32; above stands padding only
  const ivec n = to_int(x * 1.44269504F - 0.5F);
  const vec whole = to_float(n);
  vec r = fma(whole, fill(-0.693359375F), x);  // ln 2 in two parts: the first has few bits, so n times it is exact
  r = fma(whole, fill(2.12194440e-4F), r);
  vec sum = fill(1.0F / 5040);
  constexpr float factor[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};
  for (float f : factor) sum = fma(sum, r, fill(f));
  return from_bits(bits(sum) + n * (1 << 23));
}

inline void add_softmax(float* x, std::size_t n, float weight, float* out) {
  constexpr float lowest = -3.402823466e38F;
  const std::size_t whole = n / lanes * lanes;
  vec most = fill(lowest);
  for (std::size_t i = 0; i < whole; i += lanes) {
    const vec value = load(x + i);
    most = vmax(pick(finite(value), value, fill(lowest)), most);
  }
  float part[lanes];
  store(part, most);
  float top = lowest;
  for (float p : part) top = p > top ? p : top;
  for (std::size_t i = whole; i < n; ++i)
    if (finite_one(x[i]) && x[i] > top) top = x[i];

  vec sum = fill(0.0F);
  for (std::size_t i = 0; i < n; i += lanes) {
    const std::size_t here = n - i < lanes ? n - i : lanes;
    const vec value = load_part(x + i, here);
    const vec e = pick(finite(value), exp_nonpositive(pick(finite(value), value, fill(top)) - top), fill(0.0F));
    store_part(e, x + i, here);
    sum += load_part(x + i, here);  // without what the padding gave
  }
  const float total = sum_of(sum);
  if (!(total > 0.0F)) return;  // nothing finite
  const float scale = weight / total;
  for (std::size_t i = 0; i < whole; i += lanes) store(out + i, load(out + i) + load(x + i) * scale);
  for (std::size_t i = whole; i < n; ++i) out[i] += x[i] * scale;
}

// ---- top_k ----------------------------------------------------------------------------------------------------------

// An integer with the order of the float: NaN below all, -0 beside +0.
LAGKV_INLINE std::int32_t order_of(float score) {
  std::int32_t b = __builtin_bit_cast(std::int32_t, score);
  if ((b & 0x7fffffff) > 0x7f800000) return -0x7fffffff - 1;
  if (b == -0x7fffffff - 1) b = 0;
  return b ^ ((b >> 31) & 0x7fffffff);
}

LAGKV_INLINE std::size_t count_from(const std::int32_t* keys, std::size_t n, std::int32_t threshold) {
  ivec found = filli(0);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) found -= yes(loadi(keys + i) >= threshold);
  std::int32_t part[lanes];
  storei(part, found);
  std::size_t count = 0;
  for (std::int32_t p : part) count += static_cast<std::size_t>(p);
  for (; i < n; ++i) count += keys[i] >= threshold ? 1 : 0;
  return count;
}

inline void top_k(const float* scores, std::size_t n, std::size_t k, std::uint32_t base, std::int32_t* keys, std::uint32_t* out) {
  if (k == 0) return;
  std::int64_t least = 0x7fffffff, most = -0x80000000LL;
  for (std::size_t i = 0; i < n; ++i) {
    keys[i] = order_of(scores[i]);
    least = keys[i] < least ? keys[i] : least;
    most = keys[i] > most ? keys[i] : most;
  }
  // Bisect for the largest threshold that at least k keys reach: passes over n integers in cache, no branches on data.
  // Usually a threshold that exactly k keys reach turns up after about log2(n) of them.
  std::size_t reached = n;
  while (least < most && reached != k) {
    const std::int64_t middle_key = least + (most - least + 1) / 2;
    const std::size_t count = count_from(keys, n, static_cast<std::int32_t>(middle_key));
    if (count >= k) {
      least = middle_key;
      reached = count;
    } else {
      most = middle_key - 1;
    }
  }
  const auto threshold = static_cast<std::int32_t>(least);
  std::size_t ties = n;  // how many of those at the threshold are taken, the earliest: all, unless more than k reach it
  if (reached > k) {
    const std::size_t above = threshold == 0x7fffffff ? 0 : count_from(keys, n, threshold + 1);
    ties = k - above;
  }
  std::size_t taken = 0;
  for (std::size_t i = 0; taken < k; ++i) {
    if (keys[i] < threshold) continue;
    if (keys[i] == threshold) {
      if (ties == 0) continue;
      --ties;
    }
    out[taken++] = base + static_cast<std::uint32_t>(i);
  }
}

// ---- widen ----------------------------------------------------------------------------------------------------------

template <class T>
inline void widen_of(const T* x, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, load(x + i));
  if (i < n) store_part(load_part(x + i, n - i), out + i, n - i);
}

// Blocks of 32 with f16 scales: i is the first of `lanes` bytes, which hold elements i and i + 16.

LAGKV_INLINE vec widen_one(f16 h) {
  const halves padded = {h.bits};
  return fill(first_of(widen_halves(padded)));
}

LAGKV_INLINE void widen_block(const q8_0& b, float* out) {
  const vec scale = widen_one(b.scale);
  for (std::size_t i = 0; i < 32; i += lanes) store(out + i, load(b.q + i) * scale);
}

struct halfbytes {
  ivec low, high;
};
LAGKV_INLINE halfbytes split(const std::uint8_t* q) {
  const ivec both = widen_integers(load_octets(q));
  return {both & 15, both >> 4};
}

// The fifth bits of elements i.. and i + 16.., in their place.
LAGKV_INLINE halfbytes fifth_bits(const std::uint8_t* high, std::size_t i) {
  constexpr std::int32_t count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  std::int32_t word;
  __builtin_memcpy(&word, high, sizeof word);
  const ivec shift = loadi(count + i);
  return {((filli(word & 0xffff) >> shift) & 1) << 4, ((filli((word >> 16) & 0xffff) >> shift) & 1) << 4};
}

LAGKV_INLINE void widen_block(const q4_0& b, float* out) {
  const vec scale = widen_one(b.scale);
  for (std::size_t i = 0; i < 16; i += lanes) {
    const halfbytes q = split(b.q + i);
    store(out + i, to_float(q.low - 8) * scale), store(out + 16 + i, to_float(q.high - 8) * scale);
  }
}
LAGKV_INLINE void widen_block(const q4_1& b, float* out) {
  const vec scale = widen_one(b.scale), least = widen_one(b.least);
  for (std::size_t i = 0; i < 16; i += lanes) {
    const halfbytes q = split(b.q + i);
    store(out + i, fma(to_float(q.low), scale, least)), store(out + 16 + i, fma(to_float(q.high), scale, least));
  }
}
LAGKV_INLINE void widen_block(const q5_0& b, float* out) {
  const vec scale = widen_one(b.scale);
  for (std::size_t i = 0; i < 16; i += lanes) {
    const halfbytes q = split(b.q + i), fifth = fifth_bits(b.high, i);
    store(out + i, to_float((q.low | fifth.low) - 16) * scale), store(out + 16 + i, to_float((q.high | fifth.high) - 16) * scale);
  }
}
LAGKV_INLINE void widen_block(const q5_1& b, float* out) {
  const vec scale = widen_one(b.scale), least = widen_one(b.least);
  for (std::size_t i = 0; i < 16; i += lanes) {
    const halfbytes q = split(b.q + i), fifth = fifth_bits(b.high, i);
    store(out + i, fma(to_float(q.low | fifth.low), scale, least));
    store(out + 16 + i, fma(to_float(q.high | fifth.high), scale, least));
  }
}

template <class Block>
inline void widen_blocks(const Block* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; i += 32, ++x) widen_block(*x, out + i);
}

inline void widen(const void* x, dtype type, std::size_t n, float* out) {
  switch (type) {
    case dtype::f32: return widen_of(static_cast<const float*>(x), n, out);
    case dtype::f16: return widen_of(static_cast<const f16*>(x), n, out);
    case dtype::bf16: return widen_of(static_cast<const bf16*>(x), n, out);
    case dtype::fp8_e4m3: return widen_of(static_cast<const fp8_e4m3*>(x), n, out);
    case dtype::fp8_e5m2: return widen_of(static_cast<const fp8_e5m2*>(x), n, out);
    case dtype::int8: return widen_of(static_cast<const std::int8_t*>(x), n, out);
    case dtype::uint8: return widen_of(static_cast<const std::uint8_t*>(x), n, out);
    case dtype::q8_0: return widen_blocks(static_cast<const q8_0*>(x), n, out);
    case dtype::q4_0: return widen_blocks(static_cast<const q4_0*>(x), n, out);
    case dtype::q4_1: return widen_blocks(static_cast<const q4_1*>(x), n, out);
    case dtype::q5_0: return widen_blocks(static_cast<const q5_0*>(x), n, out);
    case dtype::q5_1: return widen_blocks(static_cast<const q5_1*>(x), n, out);
  }
}

// ---- narrow ---------------------------------------------------------------------------------------------------------

#if LAGKV_LANES == 1
LAGKV_INLINE halves low_halves(ivec v) { return static_cast<halves>(v); }
#else
LAGKV_INLINE halves low_halves(ivec v) { return __builtin_convertvector(v, halves); }
#endif

// By integer arithmetic everywhere, so that all targets give the same bits, those of NaN included.
LAGKV_INLINE ivec magnitude_of(vec x) {
  const ivec magnitude = bits(x) & 0x7fffffff;
  return magnitude > 0x7f800000 ? filli(0x7fc00000) : magnitude;
}
LAGKV_INLINE ivec sign_of(vec x) { return (bits(x) >> 16) & 0x8000; }

LAGKV_INLINE halves narrow_to(const bf16*, vec x) {
  const ivec m = magnitude_of(x);
  return low_halves(sign_of(x) | ((m + 0x7fff + ((m >> 16) & 1)) >> 16));  // a carry becomes infinity by itself
}

LAGKV_INLINE halves narrow_to(const f16*, vec x) {
  const ivec m = magnitude_of(x);
  const ivec normal = (m - (112 << 23) + 0xfff + ((m >> 13) & 1)) >> 13;
  const ivec small = bits(from_bits(m) + 0.5F) - (126 << 23);  // f32 at 0.5 has the steps of denormal f16
  const ivec special = m > 0x7f800000 ? filli(0x7e00) : filli(0x7c00);
  const ivec large = m < (143 << 23) ? normal : special;  // from 2^16 on; below it a carry becomes infinity here, too
  return low_halves(sign_of(x) | (m < (113 << 23) ? small : large));
}

template <class T>
inline void narrow_of(const float* x, std::size_t n, T* out) {
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const halves h = narrow_to(out, load(x + i));
    __builtin_memcpy(out + i, &h, sizeof h);
  }
  if (i == n) return;
  const halves h = narrow_to(out, load_part(x + i, n - i));
  __builtin_memcpy(out + i, &h, (n - i) * sizeof(T));
}

inline void narrow(const float* x, dtype type, std::size_t n, void* out) {
  switch (type) {
    case dtype::f32: __builtin_memcpy(out, x, n * sizeof(float)); return;
    case dtype::f16: return narrow_of(x, n, static_cast<f16*>(out));
    case dtype::bf16: return narrow_of(x, n, static_cast<bf16*>(out));
    default: return;  // nothing is quantised
  }
}

// ---- sums over the channels of rows ---------------------------------------------------------------------------------

LAGKV_INLINE void store_sums(const four& sum, float* out, std::size_t n) {
  if (n == 4) return sum4(sum.a, sum.b, sum.c, sum.d, out);
  float sums[4];
  sum4(sum.a, sum.b, sum.c, sum.d, sums);
  for (std::size_t i = 0; i < n; ++i) out[i] = sums[i];
}

// ---- squares, distances ---------------------------------------------------------------------------------------------

LAGKV_INLINE void add_squares(four& sum, const four& x) {
  sum.a = fma(x.a, x.a, sum.a), sum.b = fma(x.b, x.b, sum.b), sum.c = fma(x.c, x.c, sum.c), sum.d = fma(x.d, x.d, sum.d);
}

template <class T>
inline void squares_of(const T* x, const rows& r, float* out) {
  const std::size_t whole = r.channels / lanes * lanes, rest = r.channels - whole;
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    four sum;
    for (std::size_t c = 0; c < whole; c += lanes) add_squares(sum, load(group, c));
    if (rest != 0) add_squares(sum, load_part(group, whole, rest));
    store_sums(sum, out + t, group.size);
  }
}

inline void squares(const rows& r, float* out) {
  switch (r.type) {
    case dtype::f32: return squares_of(static_cast<const float*>(r.data), r, out);
    case dtype::f16: return squares_of(static_cast<const f16*>(r.data), r, out);
    case dtype::bf16: return squares_of(static_cast<const bf16*>(r.data), r, out);
    default: return;  // other types come widened
  }
}

LAGKV_INLINE void add_distances(four& sum, const four& x, const four& factor, vec centre, vec weight) {
  const vec from = fill(0.0F) - centre;
  const vec a = fma(x.a, factor.a, from), b = fma(x.b, factor.b, from), c = fma(x.c, factor.c, from), d = fma(x.d, factor.d, from);
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
  switch (r.type) {
    case dtype::f32: return distances_of(static_cast<const float*>(r.data), r, factors, centre, weights, out);
    case dtype::f16: return distances_of(static_cast<const f16*>(r.data), r, factors, centre, weights, out);
    case dtype::bf16: return distances_of(static_cast<const bf16*>(r.data), r, factors, centre, weights, out);
    default: return;  // other types come widened
  }
}

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
  switch (r.type) {
    case dtype::f32: return dots_of(static_cast<const float*>(r.data), r, vectors, count, out, pitch);
    case dtype::f16: return dots_of(static_cast<const f16*>(r.data), r, vectors, count, out, pitch);
    case dtype::bf16: return dots_of(static_cast<const bf16*>(r.data), r, vectors, count, out, pitch);
    default: return;  // other types come widened
  }
}

// ---- add_rows -------------------------------------------------------------------------------------------------------

LAGKV_INLINE four load_four(const float* p) { return {load(p), load(p + lanes), load(p + 2 * lanes), load(p + 3 * lanes)}; }
LAGKV_INLINE void store_four(const four& v, float* p) {
  store(p, v.a), store(p + lanes, v.b), store(p + 2 * lanes, v.c), store(p + 3 * lanes, v.d);
}

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
  switch (r.type) {
    case dtype::f32: return add_rows_of(static_cast<const float*>(r.data), r, weights, sum);
    case dtype::f16: return add_rows_of(static_cast<const f16*>(r.data), r, weights, sum);
    case dtype::bf16: return add_rows_of(static_cast<const bf16*>(r.data), r, weights, sum);
    default: return;  // other types come widened
  }
}

// ---- add_moments ----------------------------------------------------------------------------------------------------

LAGKV_INLINE void add_moment(vec& sum, vec& square, vec x) {
  sum += x;
  square = fma(x, x, square);
}

template <class T>
inline void add_moments_of(const T* x, const rows& r, const float* factors, float* sum, float* square) {
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

inline void add_moments(const rows& r, const float* factors, float* sum, float* square) {
  switch (r.type) {
    case dtype::f32: return add_moments_of(static_cast<const float*>(r.data), r, factors, sum, square);
    case dtype::f16: return add_moments_of(static_cast<const f16*>(r.data), r, factors, sum, square);
    case dtype::bf16: return add_moments_of(static_cast<const bf16*>(r.data), r, factors, sum, square);
    default: return;  // other types come widened
  }
}

// ---- turn_back ------------------------------------------------------------------------------------------------------

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
LAGKV_INLINE void turn_row_back(const T* x, turned far, const float* near, std::size_t width, std::size_t c, std::size_t n,
                                float* out, vec& square) {
  const turned t = sum_of_turns(far, load_turned(near, width, c, n));
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
LAGKV_INLINE void turn_four_back(const four_rows<T>& x, const turn& by, const four_pointers<const float>& near, std::size_t width,
                                 std::size_t c, std::size_t n, const four_pointers<float>& out, four& square) {
  const turned far = load_turned(by.far, width, c, n);
  turn_row_back<Neighbours>(x.a, far, near.a, width, c, n, out.a, square.a);
  turn_row_back<Neighbours>(x.b, far, near.b, width, c, n, out.b, square.b);
  turn_row_back<Neighbours>(x.c, far, near.c, width, c, n, out.c, square.c);
  turn_row_back<Neighbours>(x.d, far, near.d, width, c, n, out.d, square.d);
}

template <class T>
LAGKV_INLINE void copy_turned(const T* x, std::size_t n, float* out, vec& square) {
  const vec v = load_part(x, n);
  store_part(v, out, n);
  square = fma(v, v, square);
}

template <bool Neighbours, class T>
inline void turn_back_by(const T* x, const rows& r, const turn& by, float* out, float* squares) {
  const std::size_t width = Neighbours ? by.dims : by.dims / 2, whole = width / lanes * lanes;
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const four_rows<T> group = rows_from(x + static_cast<std::ptrdiff_t>(t) * r.stride, r.stride, r.tokens - t);
    if (r.ahead != nullptr) {
      const std::ptrdiff_t step = r.stride * static_cast<std::ptrdiff_t>(sizeof(T));
      prefetch_rows(static_cast<const std::byte*>(r.ahead) + static_cast<std::ptrdiff_t>(t) * step, step, group.size,
                    r.channels * sizeof(T));
    }
    // As in rows_from, the last row stands for those that are missing.
    const std::size_t last = r.tokens - 1, i = t, j = t + 1 < last ? t + 1 : last, k = t + 2 < last ? t + 2 : last,
                      l = t + 3 < last ? t + 3 : last;
    const four_pointers<const float> near{by.near[i], by.near[j], by.near[k], by.near[l]};
    const four_pointers<float> to{out + i * r.channels, out + j * r.channels, out + k * r.channels, out + l * r.channels};
    four square;
    for (std::size_t c = 0; c < whole; c += lanes) turn_four_back<Neighbours>(group, by, near, width, c, lanes, to, square);
    if (whole < width) turn_four_back<Neighbours>(group, by, near, width, whole, width - whole, to, square);
    for (std::size_t c = by.dims; c < r.channels; c += lanes) {
      const std::size_t n = r.channels - c < lanes ? r.channels - c : lanes;
      copy_turned(group.a + c, n, to.a + c, square.a), copy_turned(group.b + c, n, to.b + c, square.b);
      copy_turned(group.c + c, n, to.c + c, square.c), copy_turned(group.d + c, n, to.d + c, square.d);
    }
    store_sums(square, squares + t, group.size);
  }
}

template <class T>
inline void turn_back_of(const T* x, const rows& r, const turn& by, float* out, float* squares) {
  return by.neighbours ? turn_back_by<true>(x, r, by, out, squares) : turn_back_by<false>(x, r, by, out, squares);
}

inline void turn_back(const rows& r, const turn& by, float* out, float* squares) {
  switch (r.type) {
    case dtype::f32: return turn_back_of(static_cast<const float*>(r.data), r, by, out, squares);
    case dtype::f16: return turn_back_of(static_cast<const f16*>(r.data), r, by, out, squares);
    case dtype::bf16: return turn_back_of(static_cast<const bf16*>(r.data), r, by, out, squares);
    default: return;  // other types come widened
  }
}

inline constexpr kernel_table table{LAGKV_TARGET, range,     normalise, deviation, add_softmax,      top_k,    widen, narrow,
                                    squares,      distances, dots,      add_rows,  add_moments, turn_back};
