// Part of lagkv (MIT). Random scores: the baseline that every method has to beat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Uniform in [0, 1), a function of the seed, the head, the row and the first bits of its key: reproducible, yet different
/// from layer to layer and head to head. Reads one element a token.
struct random_score {
  std::uint64_t seed = 0;

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace&) const;
};

inline constexpr parameter random_parameters[] = {
    option<&random_score::seed>("seed", accepts::seed, "another seed, other tokens")};

inline constexpr method_entry random_entry = entry_of<random_score>(
    {.name = "random", .meaning = "random tokens: the baseline to beat", .source = "", .reads = "2 bytes of each key"},
    random_parameters);

#if LAGKV_BODIES

LAGKV_FN void random_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                       workspace&) const {
  for (std::size_t token = candidates.begin; token < candidates.end;) {
    const tile t = l.keys.at(head, {token, candidates.end});
    const std::size_t unit = size_of(l.keys.type());
    const std::ptrdiff_t step = t.token_stride * static_cast<std::ptrdiff_t>(unit);
    const std::byte* key = t.data;
    for (std::size_t i = 0; i < t.tokens; ++i, ++token, key += step) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, key, unit < sizeof bits ? unit : sizeof bits);
      const std::uint64_t x = detail::split_mix(detail::split_mix(detail::split_mix(seed) + head) + token * 65536 + bits);
      out[token - candidates.begin] = static_cast<float>(x >> 40) * 0x1p-24F;
    }
  }
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
