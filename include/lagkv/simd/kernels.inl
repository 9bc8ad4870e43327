// Part of lagkv (MIT). Every kernel, once. Included once a target, inside the namespace of that target, which has defined
//   LAGKV_LANES           floats a vector; 1: plain floats
//   LAGKV_TARGET          its enumerator
//   widen_halves, root    f16 bits -> vec, and the square root: what the compiler's vector types do not offer
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

#if LAGKV_LANES == 1 && defined(__FP_FAST_FMAF)
// Left to itself, GCC contracts plain floats in the loop of one element type and, having vectorised it, not in another's.
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_fmaf(a, b, c); }
#else
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }  // contracted where the target can
#endif
LAGKV_INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }  // b where a is NaN
LAGKV_INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }

// The first n elements, zeros behind them. Whole vectors come here too, at the price of a comparison.
template <class T>
LAGKV_INLINE vec load_part(const T* p, std::size_t n) {
  if (n == lanes) return load(p);
  T padded[lanes] = {};
  __builtin_memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

LAGKV_INLINE void store(float* p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
LAGKV_INLINE void store_part(vec v, float* p, std::size_t n) {
  if (n == lanes) return store(p, v);
  __builtin_memcpy(p, &v, n * sizeof(float));
}
LAGKV_INLINE void storei(std::int32_t* p, ivec v) { __builtin_memcpy(p, &v, sizeof v); }
LAGKV_INLINE vec fill(float x) { return vec{} + x; }
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
  // Rows of f32 are read a few at a time, each from end to end, which spares a fifth of a step that waits for memory; of
  // 16-bit rows, which are bound by arithmetic, each block of channels goes down all of them (measured, d = 128).
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
  }
}

// ---- deviation ------------------------------------------------------------------------------------------------------

// Normalised channels lie around 0.5: the variance is taken about that point, which keeps the subtraction in it harmless.
inline constexpr float middle = 0.5F;

struct moments {
  vec sum{}, square{};
};

LAGKV_INLINE void accumulate(moments& m, vec x, vec lo, vec inverse, vec shift) {
  const vec z = fma(x - lo, inverse, shift);
  m.sum += z;
  m.square = fma(z, z, m.square);
}

template <class T>
inline void deviation_of(const T* x, const rows& r, const float* lo, const float* inverse, float* out) {
  const std::size_t whole = r.channels / lanes * lanes;
  const std::size_t rest = r.channels - whole;
  float shift_rest[lanes] = {};  // the padding of a last, partial vector must stay 0
  for (std::size_t i = 0; i < rest; ++i) shift_rest[i] = -middle;
  const float count = static_cast<float>(r.channels);
  const float unbiased = r.channels > 1 ? 1.0F / (count - 1.0F) : 0.0F;

  // Four rows at a time share the loads of lo and inverse and one reduction; a last group repeats its last row.
  for (std::size_t t = 0; t < r.tokens; t += 4) {
    const std::size_t group = r.tokens - t < 4 ? r.tokens - t : 4;
    const T* row0 = x + static_cast<std::ptrdiff_t>(t) * r.stride;
    const T* row1 = group > 1 ? row0 + r.stride : row0;
    const T* row2 = group > 2 ? row1 + r.stride : row1;
    const T* row3 = group > 3 ? row2 + r.stride : row2;
    moments m0, m1, m2, m3;
    const vec shift = fill(-middle);
    for (std::size_t c = 0; c < whole; c += lanes) {
      const vec low = load(lo + c), inv = load(inverse + c);
      accumulate(m0, load(row0 + c), low, inv, shift);
      accumulate(m1, load(row1 + c), low, inv, shift);
      accumulate(m2, load(row2 + c), low, inv, shift);
      accumulate(m3, load(row3 + c), low, inv, shift);
    }
    if (rest != 0) {
      const vec low = load_part(lo + whole, rest), inv = load_part(inverse + whole, rest), part = load(shift_rest);
      accumulate(m0, load_part(row0 + whole, rest), low, inv, part);
      accumulate(m1, load_part(row1 + whole, rest), low, inv, part);
      accumulate(m2, load_part(row2 + whole, rest), low, inv, part);
      accumulate(m3, load_part(row3 + whole, rest), low, inv, part);
    }
    float sum[4], square[4];
    sum4(m0.sum, m1.sum, m2.sum, m3.sum, sum), sum4(m0.square, m1.square, m2.square, m3.square, square);
    for (std::size_t i = 0; i < group; ++i) {
      const float variance = (square[i] - sum[i] * (sum[i] / count)) * unbiased;
      out[t + i] = variance < 0.0F ? 0.0F : variance;
    }
  }
  for (std::size_t t = 0; t < r.tokens; t += lanes) {
    const std::size_t here = r.tokens - t < lanes ? r.tokens - t : lanes;
    store_part(root(load_part(out + t, here)), out + t, here);
  }
}

inline void deviation(const rows& r, const float* lo, const float* inverse, float* out) {
  switch (r.type) {
    case dtype::f32: return deviation_of(static_cast<const float*>(r.data), r, lo, inverse, out);
    case dtype::f16: return deviation_of(static_cast<const f16*>(r.data), r, lo, inverse, out);
    case dtype::bf16: return deviation_of(static_cast<const bf16*>(r.data), r, lo, inverse, out);
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

inline void widen(const void* x, dtype type, std::size_t n, float* out) {
  switch (type) {
    case dtype::f32: return widen_of(static_cast<const float*>(x), n, out);
    case dtype::f16: return widen_of(static_cast<const f16*>(x), n, out);
    case dtype::bf16: return widen_of(static_cast<const bf16*>(x), n, out);
  }
}

inline constexpr kernel_table table{LAGKV_TARGET, range, deviation, add_softmax, top_k, widen};
