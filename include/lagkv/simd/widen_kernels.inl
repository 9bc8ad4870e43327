// Part of lagkv (MIT). Included once a target (each_target.inl): widen_kernels.

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
    case dtype::f32:
      return widen_of(static_cast<const float*>(x), n, out);
    case dtype::f16:
      return widen_of(static_cast<const f16*>(x), n, out);
    case dtype::bf16:
      return widen_of(static_cast<const bf16*>(x), n, out);
    case dtype::fp8_e4m3:
      return widen_of(static_cast<const fp8_e4m3*>(x), n, out);
    case dtype::fp8_e5m2:
      return widen_of(static_cast<const fp8_e5m2*>(x), n, out);
    case dtype::int8:
      return widen_of(static_cast<const std::int8_t*>(x), n, out);
    case dtype::uint8:
      return widen_of(static_cast<const std::uint8_t*>(x), n, out);
    case dtype::q8_0:
      return widen_blocks(static_cast<const q8_0*>(x), n, out);
    case dtype::q4_0:
      return widen_blocks(static_cast<const q4_0*>(x), n, out);
    case dtype::q4_1:
      return widen_blocks(static_cast<const q4_1*>(x), n, out);
    case dtype::q5_0:
      return widen_blocks(static_cast<const q5_0*>(x), n, out);
    case dtype::q5_1:
      return widen_blocks(static_cast<const q5_1*>(x), n, out);
  }
}

inline constexpr widen_kernels widen_kernels_table{widen};
