// Rotary embedding in double, by complex numbers: nothing of it comes from the library but the options.
#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

#include <lagkv/rope.hpp>

#include "host.hpp"

namespace support {

inline constexpr lagkv::rope::pairing all_pairings[] = {lagkv::rope::pairing::halves, lagkv::rope::pairing::neighbours};

/// The key, in double, with the rotation of `positions` added.
inline std::vector<double> turned(const std::vector<double>& key, double positions, const lagkv::rope& r) {
  const std::size_t dims = r.dims != 0 ? r.dims : key.size(), pairs = dims / 2;
  std::vector<double> out = key;
  for (std::size_t j = 0; j < pairs; ++j) {
    const bool halves = r.pairs == lagkv::rope::pairing::halves;
    const std::size_t a = halves ? j : 2 * j, b = halves ? j + pairs : 2 * j + 1;
    double frequency = 1 / std::exp(std::log(r.base) * 2 * static_cast<double>(j) / static_cast<double>(dims));
    if (!r.factors.empty()) frequency /= static_cast<double>(r.factors[j]);
    const double angle = positions * frequency * static_cast<double>(r.position_scale);
    const std::complex<double> z = std::complex(key[a], key[b]) * std::polar(1.0, angle);
    out[a] = z.real(), out[b] = z.imag();
  }
  return out;
}

/// The elements of a row.
inline std::vector<double> values_of(const host& x, std::size_t head, std::size_t row) {
  std::vector<double> out;
  for (std::uint32_t bits : x.row(head, row)) out.push_back(static_cast<double>(decoded(x.type(), bits)));
  return out;
}

}  // namespace support
