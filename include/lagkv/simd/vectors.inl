// Part of lagkv (MIT). The vector types of one target and what to do with their bits. Included like kernels.inl, before it.

#if LAGKV_LANES == 1
using vec = float;
using ivec = std::int32_t;
using halves = std::uint16_t;
using octets = std::uint8_t;
LAGKV_INLINE ivec yes(bool condition) { return condition ? -1 : 0; }  // masks are integers, all ones for yes
LAGKV_INLINE ivec to_int(vec v) { return static_cast<ivec>(v); }
LAGKV_INLINE vec to_float(ivec v) { return static_cast<vec>(v); }
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
#if LAGKV_X86 && LAGKV_LANES >= 8 && !defined(__clang__)  // of the others GCC makes four instructions and more
typedef short signed_words __attribute__((vector_size(2 * LAGKV_LANES)));
typedef char bytes16 __attribute__((vector_size(16)));
#if LAGKV_LANES == 8
typedef long long words64 __attribute__((vector_size(16)));
LAGKV_INLINE bytes16 in_bytes16(octets b) { return (bytes16)words64{__builtin_bit_cast(long long, b), 0}; }
LAGKV_INLINE ivec widen_integers(halves h) { return (ivec)__builtin_ia32_pmovzxwd256((signed_words)h); }
LAGKV_INLINE ivec widen_integers(octets b) { return (ivec)__builtin_ia32_pmovzxbd256(in_bytes16(b)); }
LAGKV_INLINE ivec widen_signed(octets b) { return (ivec)__builtin_ia32_pmovsxbd256(in_bytes16(b)); }
LAGKV_INLINE halves widen_octets(octets b) { return (halves)__builtin_ia32_pmovzxbw128(in_bytes16(b)); }
#else
LAGKV_INLINE ivec widen_integers(halves h) { return (ivec)__builtin_ia32_pmovzxwd512_mask((signed_words)h, ivec{}, 0xffff); }
LAGKV_INLINE ivec widen_integers(octets b) { return (ivec)__builtin_ia32_pmovzxbd512_mask((bytes16)b, ivec{}, 0xffff); }
LAGKV_INLINE ivec widen_signed(octets b) { return (ivec)__builtin_ia32_pmovsxbd512_mask((bytes16)b, ivec{}, 0xffff); }
LAGKV_INLINE halves widen_octets(octets b) { return (halves)__builtin_ia32_pmovzxbw256((bytes16)b); }
#endif
#else
LAGKV_INLINE ivec widen_integers(halves h) { return __builtin_convertvector(h, ivec); }
LAGKV_INLINE ivec widen_integers(octets b) { return __builtin_convertvector(b, ivec); }
LAGKV_INLINE ivec widen_signed(octets b) { return __builtin_convertvector((signed_octets)b, ivec); }
LAGKV_INLINE halves widen_octets(octets b) { return __builtin_convertvector(b, halves); }
#endif
#endif

// min(a, b) and max(a, b); b where either is NaN. GCC makes a comparison and a choice of the plain form.
#if LAGKV_X86 && LAGKV_LANES == 4 && !defined(__clang__)
LAGKV_INLINE vec vmin(vec a, vec b) { return __builtin_ia32_minps(a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return __builtin_ia32_maxps(a, b); }
#elif LAGKV_X86 && LAGKV_LANES == 8 && !defined(__clang__)
LAGKV_INLINE vec vmin(vec a, vec b) { return __builtin_ia32_minps256(a, b); }
LAGKV_INLINE vec vmax(vec a, vec b) { return __builtin_ia32_maxps256(a, b); }
#elif LAGKV_X86 && LAGKV_LANES == 16 && !defined(__clang__)
LAGKV_INLINE vec vmin(vec a, vec b) { return __builtin_ia32_minps512_mask(a, b, vec{}, all, current_rounding); }
LAGKV_INLINE vec vmax(vec a, vec b) { return __builtin_ia32_maxps512_mask(a, b, vec{}, all, current_rounding); }
#else
LAGKV_INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
LAGKV_INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }
#endif

LAGKV_INLINE ivec bits(vec v) { return __builtin_bit_cast(ivec, v); }
LAGKV_INLINE vec from_bits(ivec v) { return __builtin_bit_cast(vec, v); }

// f16 by integer arithmetic, for targets without an instruction; right where denormals are flushed to zero, too.
LAGKV_INLINE vec widen_by_bits(halves h) {
  const ivec half = widen_integers(h);
  const ivec sign = (half & 0x8000) << 16, magnitude = (half & 0x7fff) << 13;
  const ivec normal = magnitude + (112 << 23);
  const vec small = from_bits(magnitude + (113 << 23)) - 0x1p-14F;
  const ivec is_small = yes(magnitude < (1 << 23)), is_special = yes(magnitude >= (31 << 23));
  return from_bits(sign | ((normal + (is_special & (112 << 23))) & ~is_small) | (bits(small) & is_small));
}
