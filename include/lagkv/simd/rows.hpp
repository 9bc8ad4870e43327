// Part of lagkv (MIT). What kernels are given, and how they are reached: a table of functions for each family and target.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/simd/target.hpp>
#include <lagkv/view/dtype.hpp>

namespace lagkv::inline LAGKV_ABI::simd {

/// Rows of one head: `tokens` rows of `channels` adjacent elements, `stride` elements from row to row. f32, f16 or bf16.
struct rows {
  const void* data;
  dtype type;
  std::size_t tokens;
  std::size_t channels;
  std::ptrdiff_t stride;
  const void* ahead = nullptr;     ///< as many rows at the same stride that will be read next, to be prefetched; null: not known
  const float* squares = nullptr;  ///< of each row the sum of its squares, which no kernel looks at; null: not known
};

/// The kernels of one family, such as lagkv_kernels: a struct of function pointers, one table of them for each target. A file
/// compiles the families that it uses (LAGKV_COMPILED: none). Every kernel treats a row alike wherever it stands among others, so
/// that results do not depend on how the tokens are cut into runs.
///
/// The table of `t`, which must be supported() here. Each family's header specialises it.
template <class Family>
const Family& kernels(target t);

}  // namespace lagkv::inline LAGKV_ABI::simd

/// What a family's header ends with: its tables, which its .inl has made.
#if defined(__x86_64__)
#define LAGKV_WIDER_TABLE_OF(family, t)                     \
  if ((t) == target::avx512) return avx512::family##_table; \
  if ((t) == target::avx2) return avx2::family##_table;
#else
#define LAGKV_WIDER_TABLE_OF(family, t)
#endif
#define LAGKV_KERNELS_OF(family)                                      \
  namespace lagkv::inline LAGKV_ABI::simd {                           \
  template <>                                                         \
  LAGKV_FN const family& kernels<family>([[maybe_unused]] target t) { \
    LAGKV_WIDER_TABLE_OF(family, t)                                   \
    return LAGKV_BASELINE::family##_table;                            \
  }                                                                   \
  }
