// Rotary embedding in double, by complex numbers: nothing of it comes from the library but the options.
#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <span>
#include <vector>

#include <lagkv/view/rope.hpp>

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

/// Embeddings that differ in everything, for keys of 10 to 128 channels.
inline std::vector<lagkv::rope> ropes(std::size_t channels) {
  static const std::vector<float> many = [] {
    std::vector<float> x(64);
    for (std::size_t j = 0; j < x.size(); ++j) x[j] = 1 + 0.37F * static_cast<float>(j % 9);
    return x;
  }();
  static const std::vector<float> three{2, 0.5F, 4};
  std::vector<lagkv::rope> out;
  for (lagkv::rope::pairing p : all_pairings) {
    out.push_back({.pairs = p});
    out.push_back({.base = 500000, .pairs = p, .factors = std::span(many).first(channels / 2)});
    out.push_back({.pairs = p, .dims = 6, .factors = three, .position_scale = 0.25F});
    out.push_back({.base = 100, .pairs = p, .dims = 10, .position_scale = 0.5F});
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
