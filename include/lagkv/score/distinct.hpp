// Part of lagkv (MIT). Distinct: of keys that are alike the latest, as they were before RoPE.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/mean_and_variance.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Minus the number of later rows with the same code; of rows with equally many the later one scores higher, by less than 1/2.
/// (Not if they lie closer than count * rows / 2^22: then f32 may give them the same score.) Later rows are the candidates behind
/// it and all rows behind those, or in its partition and the next.
///
/// The code of a key are `bits` signs: of sum over channels of s_bc (u - m) / sqrt(v), u = k / |k|, m and v as novelty has them,
/// s_bc = 1 or -1 as sign() says. So keys that differ by an angle a, in units of what is usual, share each sign with probability
/// 1 - a / pi (Charikar, STOC 2002). A key that is not finite takes no part and gets NaN, so it goes first.
///
/// Reads each key once, and up to 1,535 of a head twice; values never. 2 * bits * channels flops a row. Keys are read as they
/// were before RoPE unless the policy says otherwise. Source: this project; docs/research.md.
struct distinct_score {
  static constexpr std::size_t most_bits = 16;

  std::size_t bits = 10;  ///< 1 to 16: at most 2^bits kinds of keys
  std::size_t lag = 0;    ///< tokens a partition; 0: all candidates at once

  /// Of which side of plane `bit` channel c pushes to: 1 or -1, fixed for ever.
  static float sign(std::size_t bit, std::size_t c) {
    return (detail::split_mix((std::uint64_t{bit} << 32U) + c) & 1U) != 0 ? 1.0F : -1.0F;
  }

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  /// -1 for rows that are not finite.
  void encode(const layer& l, std::size_t head, token_range all, token_range reference, std::int32_t* code, workspace& ws) const;
};

inline method method_of(const distinct_score& s) {
  return {.score = s, .needs = {.key_statistics = true}, .pre_rope = pre_rope_keys};
}

inline constexpr parameter distinct_parameters[] = {
    option<&distinct_score::bits>("bits", accepts::whole(1, 16), "signs of a key's code: up to 2^bits kinds of keys")};

constexpr std::span<const parameter> options_of(const distinct_score&) { return distinct_parameters; }

inline constexpr method_entry distinct_entry =
    entry_of<distinct_score>({.name = "distinct",
                              .meaning = "of keys that are alike the latest, without their positions",
                              .source = "this project",
                              .reads = "keys and their RoPE"},
                             distinct_parameters);

#if LAGKV_BODIES

LAGKV_FN void distinct_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                         workspace& ws) const {
  const std::size_t kinds = std::size_t{1} << bits;
  const auto score = [&](token_range part, token_range reference) {
    const token_range all{part.begin, reference.end};
    const workspace::frame scratch(ws);
    std::int32_t* code = ws.take<std::int32_t>(all.size() + kinds);
    std::int32_t* later = code + all.size();
    encode(l, head, all, reference, code, ws);
    for (std::size_t kind = 0; kind < kinds; ++kind) later[kind] = 0;
    float* scores = out.data() + (part.begin - candidates.begin);
    const float step = 0.5F / static_cast<float>(all.size());
    for (std::size_t i = all.size(); i-- > 0;) {
      const bool known = code[i] >= 0;
      if (i < part.size())
        scores[i] = known ? static_cast<float>(i) * step - static_cast<float>(later[code[i]]) : detail::not_a_number();
      if (known) ++later[code[i]];
    }
  };
  if (lag == 0) return score(candidates, {candidates.begin, l.tokens});
  for_each_reference(l, candidates, lag, score);
}

LAGKV_FN void distinct_score::encode(const layer& l, std::size_t head, token_range all, token_range reference, std::int32_t* code,
                                     workspace& ws) const {
  const std::size_t channels = l.keys.channels();
  const workspace::frame scratch(ws);
  float* mean = ws.take<float>(2 * channels);
  float* scale = mean + channels;
  detail::usual_keys(l, head, reference, mean, scale, ws);
  for (std::size_t c = 0; c < channels; ++c) scale[c] = __builtin_sqrtf(scale[c]);
  float* planes = ws.take<float>(bits * channels);
  for (std::size_t b = 0; b < bits; ++b)
    for (std::size_t c = 0; c < channels; ++c) planes[b * channels + c] = sign(b, c) * scale[c];
  float centre[most_bits];
  ws.kernels<simd::dot_kernels>().dots({mean, dtype::f32, 1, channels, 0}, planes, bits, centre, 1);
  for_each_rows_and_next(l.keys, head, all, {}, ws, [&](const simd::rows& rows, std::size_t offset) {
    const float* factors = detail::inverse_norms(rows, ws);
    float* sides = ws.take<float>(bits * detail::piece_rows(l.keys.row_bytes()));
    ws.kernels<simd::dot_kernels>().dots(rows, planes, bits, sides, rows.tokens);
    std::int32_t* to = code + offset;
    for (std::size_t i = 0; i < rows.tokens; ++i) to[i] = 0;
    for (std::size_t b = 0; b < bits; ++b)
      for (std::size_t i = 0; i < rows.tokens; ++i)
        to[i] = 2 * to[i] + (sides[b * rows.tokens + i] * factors[i] > centre[b] ? 1 : 0);
    for (std::size_t i = 0; i < rows.tokens; ++i)
      if (!detail::finite(factors[i])) to[i] = -1;
  });
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
