// Part of lagkv (MIT). The vectors of one target, and what all kernels do with them: loads of every element type, sums over
// lanes, rows by fours. On the compiler's vector types, and documented intrinsics where those offer nothing, or GCC makes too
// much of them. See each_target.inl for what is defined here.

#if LAGKV_LANES == 1
using vec = float;
using ivec = std::int32_t;
using halves = std::uint16_t;
using octets = std::uint8_t;
LAGKV_INLINE ivec yes(bool condition) { return condition ? -1 : 0; }  // masks are integers, all ones for yes
LAGKV_INLINE ivec to_int(vec v) { return static_cast<ivec>(v); }
LAGKV_INLINE vec to_float(ivec v) { return static_cast<vec>(v); }
LAGKV_INLINE halves as_halves(int v) { return static_cast<halves>(v); }
LAGKV_INLINE ivec widen_integers(halves h) { return h; }
LAGKV_INLINE ivec widen_integers(octets b) { return b; }
LAGKV_INLINE ivec widen_signed(octets b) { return static_cast<std::int8_t>(b); }
LAGKV_INLINE halves widen_octets(octets b) { return b; }
#else
typedef float vec __attribute__((vector_size(4 * LAGKV_LANES)));
typedef std::int32_t ivec __attribute__((vector_size(4 * LAGKV_LANES)));
typedef std::uint16_t halves __attribute__((vector_size(2 * LAGKV_LANES)));
typedef std::uint8_t octets __attribute__((vector_size(LAGKV_LANES)));
typedef std::int8_t signed_octets __attribute__((vector_size(LAGKV_LANES)));
LAGKV_INLINE ivec yes(ivec condition) { return condition; }
LAGKV_INLINE ivec to_int(vec v) { return __builtin_convertvector(v, ivec); }
LAGKV_INLINE vec to_float(ivec v) { return __builtin_convertvector(v, vec); }
LAGKV_INLINE halves as_halves(halves v) { return v; }
#if LAGKV_ISA == 2
LAGKV_INLINE __m128i in_m128i(octets b) { return _mm_cvtsi64_si128(__builtin_bit_cast(long long, b)); }
LAGKV_INLINE ivec widen_integers(halves h) {
  return __builtin_bit_cast(ivec, _mm256_cvtepu16_epi32(__builtin_bit_cast(__m128i, h)));
}
LAGKV_INLINE ivec widen_integers(octets b) { return __builtin_bit_cast(ivec, _mm256_cvtepu8_epi32(in_m128i(b))); }
LAGKV_INLINE ivec widen_signed(octets b) { return __builtin_bit_cast(ivec, _mm256_cvtepi8_epi32(in_m128i(b))); }
LAGKV_INLINE halves widen_octets(octets b) { return __builtin_bit_cast(halves, _mm_cvtepu8_epi16(in_m128i(b))); }
#elif LAGKV_ISA == 3
// Forms with a mask, all of which is set: they make no other instruction, and GCC (12) warns of what the plain ones do inside.
inline constexpr __mmask16 all = 0xffff;
LAGKV_INLINE __m128i in_m128i(octets b) { return __builtin_bit_cast(__m128i, b); }
LAGKV_INLINE ivec widen_integers(halves h) {
  return __builtin_bit_cast(ivec, _mm512_maskz_cvtepu16_epi32(all, __builtin_bit_cast(__m256i, h)));
}
LAGKV_INLINE ivec widen_integers(octets b) { return __builtin_bit_cast(ivec, _mm512_maskz_cvtepu8_epi32(all, in_m128i(b))); }
LAGKV_INLINE ivec widen_signed(octets b) { return __builtin_bit_cast(ivec, _mm512_maskz_cvtepi8_epi32(all, in_m128i(b))); }
LAGKV_INLINE halves widen_octets(octets b) { return __builtin_bit_cast(halves, _mm256_cvtepu8_epi16(in_m128i(b))); }
#else
LAGKV_INLINE ivec widen_integers(halves h) { return __builtin_convertvector(h, ivec); }
LAGKV_INLINE ivec widen_integers(octets b) { return __builtin_convertvector(b, ivec); }
LAGKV_INLINE ivec widen_signed(octets b) { return __builtin_convertvector(__builtin_bit_cast(signed_octets, b), ivec); }
LAGKV_INLINE halves widen_octets(octets b) { return __builtin_convertvector(b, halves); }
#endif
#endif

LAGKV_INLINE ivec bits(vec v) { return __builtin_bit_cast(ivec, v); }
LAGKV_INLINE vec from_bits(ivec v) { return __builtin_bit_cast(vec, v); }

// f16 by integer arithmetic, for targets without an instruction; right where denormals are flushed to zero, too.
LAGKV_INLINE vec widen_by_bits(halves h) {
  const ivec half = widen_integers(h);
  const ivec sign = (half & 0x8000) << 16, magnitude = (half & 0x7fff) << 13;
  const ivec normal_bits = magnitude + (112 << 23);
  const vec tiny = from_bits(magnitude + (113 << 23)) - 0x1p-14F;
  const ivec is_tiny = yes(magnitude < (1 << 23)), is_special = yes(magnitude >= (31 << 23));
  return from_bits(sign | ((normal_bits + (is_special & (112 << 23))) & ~is_tiny) | (bits(tiny) & is_tiny));
}

// vmin, vmax: min(a, b) and max(a, b); b where either is NaN. widen_halves: f16 bits -> vec. root: square root.
//
// fma: a * b + c, rounded once where the target can. Each target says what it is: left to itself, a compiler contracts a * b + c
// in one loop and not in another (GCC does so for plain floats that it vectorises, and by -mtune), and a row's result would
// depend on the loop that it went through.
#if LAGKV_ISA == 2
LAGKV_INLINE vec vmin(vec a, vec b) { return _mm256_min_ps(a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
LAGKV_INLINE vec widen_halves(halves h) { return _mm256_cvtph_ps(__builtin_bit_cast(__m128i, h)); }
LAGKV_INLINE vec root(vec v) { return _mm256_sqrt_ps(v); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#elif LAGKV_ISA == 3
LAGKV_INLINE vec vmin(vec a, vec b) { return _mm512_maskz_min_ps(all, a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return _mm512_maskz_max_ps(all, a, b); }
LAGKV_INLINE vec widen_halves(halves h) { return _mm512_maskz_cvtph_ps(all, __builtin_bit_cast(__m256i, h)); }
LAGKV_INLINE vec root(vec v) { return _mm512_maskz_sqrt_ps(all, v); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
#else
LAGKV_INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
LAGKV_INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }
#if LAGKV_ISA == 4
LAGKV_INLINE vec widen_halves(halves h) { return __builtin_bit_cast(vec, vcvt_f32_f16(__builtin_bit_cast(float16x4_t, h))); }
LAGKV_INLINE vec root(vec v) { return __builtin_bit_cast(vec, vsqrtq_f32(__builtin_bit_cast(float32x4_t, v))); }
LAGKV_INLINE vec fma(vec a, vec b, vec c) {
  return __builtin_bit_cast(
      vec, vfmaq_f32(__builtin_bit_cast(float32x4_t, c), __builtin_bit_cast(float32x4_t, a), __builtin_bit_cast(float32x4_t, b)));
}
#elif LAGKV_LANES == 1
LAGKV_INLINE vec widen_halves(halves h) { return widen_by_bits(h); }
LAGKV_INLINE vec root(vec v) { return __builtin_sqrtf(v); }
#if defined(__FP_FAST_FMAF)
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return __builtin_fmaf(a, b, c); }
#else
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
#else
LAGKV_INLINE vec widen_halves(halves h) { return widen_by_bits(h); }
LAGKV_INLINE vec root(vec v) {
  for (int i = 0; i < LAGKV_LANES; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
LAGKV_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
#endif

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
LAGKV_INLINE vec load(const fp8_e5m2* p) { return widen_halves(as_halves(widen_octets(load_octets(p)) << 8)); }
LAGKV_INLINE vec load(const fp8_e4m3* p) {
  // As an f16 with the same fields it is 2^8 times too small, and its NaN is a number.
  const halves b = widen_octets(load_octets(p));
  const vec v = widen_halves(as_halves((b & 0x80) << 8 | (b & 0x7f) << 7)) * 256.0F;
  return from_bits(bits(v) | (yes((widen_integers(b) & 0x7f) == 0x7f) & 0x7fc00000));
}
LAGKV_INLINE vec load(const std::int8_t* p) { return to_float(widen_signed(load_octets(p))); }
LAGKV_INLINE vec load(const std::uint8_t* p) { return to_float(widen_integers(load_octets(p))); }

// The first n < lanes elements, zeros behind them. Not inlined: it is the last vector of rows whose length is no multiple of
// lanes, and stands in many places.
template <class T>
[[gnu::noinline]] inline void load_padded(const T* p, std::size_t n, vec& out) {
  T padded[lanes] = {};
  __builtin_memcpy(padded, p, n * sizeof(T));
  out = load(padded);
}

// The first n elements, zeros behind them. Whole vectors come here too, at the price of a comparison.
template <class T>
LAGKV_INLINE vec load_part(const T* p, std::size_t n) {
  if (lanes == 1 || n == lanes) return load(p);
  vec v;
  load_padded(p, n, v);
  return v;
}

LAGKV_INLINE void store(float* p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
LAGKV_INLINE void store_part(vec v, float* p, std::size_t n) {
  if (lanes == 1 || n == lanes) return store(p, v);
  __builtin_memcpy(p, &v, n * sizeof(float));
}
// n adjacent elements.
template <class T>
inline void widen_of(const T* x, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, load(x + i));
  if (i < n) store_part(load_part(x + i, n - i), out + i, n - i);
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
  const oct o =
      __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
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

// Those of the first n < 4; not inlined, as load_padded.
[[gnu::noinline]] inline void store_some_sums(const four& sum, float* out, std::size_t n) {
  float sums[4];
  sum4(sum.a, sum.b, sum.c, sum.d, sums);
  for (std::size_t i = 0; i < n; ++i) out[i] = sums[i];
}

LAGKV_INLINE void store_sums(const four& sum, float* out, std::size_t n) {
  if (n == 4) return sum4(sum.a, sum.b, sum.c, sum.d, out);
  const four copy = sum;  // so that sum can stay in registers
  store_some_sums(copy, out, n);
}

// Four vectors of one row.
LAGKV_INLINE four load_four(const float* p) { return {load(p), load(p + lanes), load(p + 2 * lanes), load(p + 3 * lanes)}; }
LAGKV_INLINE void store_four(const four& v, float* p) {
  store(p, v.a), store(p + lanes, v.b), store(p + 2 * lanes, v.c), store(p + 3 * lanes, v.d);
}

// Asks for the lines of four rows that come later, while four others are worked on. Memory is fastest where its lines are asked
// for in their order, which reading four rows at once is not; and slower by a third where all are asked for at once, so it goes a
// few at a time.
struct ahead_of_four {
  const std::byte* row = nullptr;  // null: nothing to ask for
  std::ptrdiff_t step = 0;
  std::size_t bytes = 0, at = 0;  // of a row, and how many have been asked for
};

// `group` are rows t.. of r, and each vector step of the loop to come calls fetch() for `together` bytes.
template <class T>
LAGKV_INLINE ahead_of_four rows_ahead(const rows& r, const four_rows<T>& group, std::size_t t, std::size_t together) {
  constexpr std::size_t line = 64;
  const std::ptrdiff_t step = r.stride * static_cast<std::ptrdiff_t>(sizeof(T));
  const std::size_t bytes = r.channels * sizeof(T);
  if (r.ahead == nullptr) return {};
  const std::byte* row = static_cast<const std::byte*>(r.ahead) + static_cast<std::ptrdiff_t>(t) * step;
  if (bytes % together == 0 && group.size == 4) return {row, step, bytes, 0};
  for (std::size_t i = 0; i < group.size; ++i, row += step)  // rows that do not go into steps, at once
    for (std::size_t b = 0; b < bytes; b += line) __builtin_prefetch(row + b);
  return {};
}

LAGKV_INLINE void fetch(ahead_of_four& a, std::size_t together) {
  if (a.row == nullptr) return;
  for (std::size_t b = 0; b < together; b += 64) __builtin_prefetch(a.row + a.at + b);
  a.at += together;
  if (a.at >= a.bytes) a.at = 0, a.row += a.step;
}
