// Part of lagkv (MIT). Included once a target (each_target.inl): narrow_kernels.

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
  const ivec tiny = bits(from_bits(m) + 0.5F) - (126 << 23);  // f32 at 0.5 has the steps of denormal f16
  const ivec special = m > 0x7f800000 ? filli(0x7e00) : filli(0x7c00);
  const ivec large = m < (143 << 23) ? normal : special;  // from 2^16 on; below it a carry becomes infinity here, too
  return low_halves(sign_of(x) | (m < (113 << 23) ? tiny : large));
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
  if (type == dtype::f32) __builtin_memcpy(out, x, n * sizeof(float));
  if (type == dtype::f16) return narrow_of(x, n, static_cast<f16*>(out));
  if (type == dtype::bf16) return narrow_of(x, n, static_cast<bf16*>(out));
  // nothing is quantised
}

inline constexpr narrow_kernels narrow_kernels_table{narrow};
