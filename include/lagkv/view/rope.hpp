// Part of lagkv (MIT). Which rotary position embedding keys carry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Which rotary embedding the keys carry. Pair j turns by base^(-2j / dims) / factors[j] * position_scale radians a position. A
/// factor on the length of keys (YaRN's attention factor) is not undone.
struct rope {
  /// Which channels form pair j. There is no default: keys rotated back by the wrong pairs are noise, and nothing else shows it.
  enum class pairing : std::uint8_t {
    unnamed,    ///< refused by check()
    halves,     ///< (j, j + dims / 2): NeoX, and all models as Hugging Face has them
    neighbours  ///< (2j, 2j + 1): the papers' RoPE, llama.cpp's "norm"
  };

  double base = 10000;  ///< above 0; "theta" of many models
  pairing pairs = pairing::unnamed;
  std::size_t dims = 0;              ///< the first channels, which are rotated: even; 0: all
  std::span<const float> factors{};  ///< frequency divisors, one a pair (Llama 3, YaRN), which must outlive it; empty: 1
  float position_scale = 1;          ///< of linear scaling: 0.25 stretches the context to 4 times its length

  /// Rotated channels of a key that has `channels`.
  std::size_t rotated(std::size_t channels) const { return dims == 0 ? channels : dims; }

  /// The two channels that pair j turns.
  struct channel_pair {
    std::size_t first, second;
  };
  channel_pair pair(std::size_t j, std::size_t channels) const;

  /// Radians by which one position turns this pair.
  double angle(std::size_t pair, std::size_t channels) const;
};

/// Whether keys of so many channels can carry this embedding. Call it where a cache is set up.
LAGKV_EDGE status check(const rope& r, std::size_t channels);

#if LAGKV_BODIES

LAGKV_FN rope::channel_pair rope::pair(std::size_t j, std::size_t channels) const {
  if (pairs == pairing::neighbours) return {2 * j, 2 * j + 1};
  return {j, j + rotated(channels) / 2};
}

LAGKV_FN double rope::angle(std::size_t pair, std::size_t channels) const {
  const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(rotated(channels));
  const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[pair]);
  return __builtin_pow(base, exponent) / factor * static_cast<double>(position_scale);
}

LAGKV_EDGE status check(const rope& r, std::size_t channels) {
  const auto positive = [](double x) { return x > 0 && x <= (std::numeric_limits<double>::max)(); };
  const std::string range = ": must be above 0 and finite";
  const std::size_t dims = r.rotated(channels);
  if (r.pairs == rope::pairing::unnamed)
    return error{
        "pairs: must be named: rope::pairing::halves (Hugging Face, NeoX) or rope::pairing::neighbours (llama.cpp's norm)"};
  if (dims > channels) return detail::refuse({"dims=", dims, ": must be at most the ", channels, " channels of the keys"});
  if (dims % 2 != 0) return detail::refuse({"dims=", dims, ": must be even"});
  if (!positive(r.base)) return detail::refuse({"base=", r.base, range});
  if (!positive(r.position_scale)) return detail::refuse({"position_scale=", r.position_scale, range});
  if (!r.factors.empty() && r.factors.size() != dims / 2)
    return detail::refuse({"factors of ", r.factors.size(), ": must be ", dims / 2, ", one a pair"});
  for (std::size_t j = 0; j < r.factors.size(); ++j)
    if (!positive(r.factors[j])) return detail::refuse({"factors[", j, "]=", r.factors[j], range});
  return {};
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
