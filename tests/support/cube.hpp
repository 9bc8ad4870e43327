// Plain [heads, tokens, channels] arrays of f32: what the caches of the tests are filled from.
#pragma once

#include <cmath>
#include <cstddef>
#include <map>
#include <random>
#include <span>
#include <tuple>
#include <vector>

#include "numbers.hpp"

namespace support {

struct cube {
  std::size_t heads = 0, tokens = 0, channels = 0;
  std::vector<float> x;

  cube() = default;
  cube(std::size_t h, std::size_t t, std::size_t c) : heads(h), tokens(t), channels(c), x(h * t * c) {}

  float* row(std::size_t head, std::size_t token) { return x.data() + (head * tokens + token) * channels; }
  const float* row(std::size_t head, std::size_t token) const { return x.data() + (head * tokens + token) * channels; }
};

/// As real keys are: channels differ in scale and offset, tokens drift, a few stand out (data() of make_goldens.py).
inline cube draw_cube(unsigned seed, std::size_t heads, std::size_t tokens, std::size_t channels) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  cube out(heads, tokens, channels);
  for (std::size_t h = 0; h < heads; ++h) {
    std::vector<double> scale(channels), offset(channels), drift(channels);
    for (std::size_t c = 0; c < channels; ++c) scale[c] = std::exp(normal(random)), offset[c] = 2 * normal(random);
    for (std::size_t t = 0; t < tokens; ++t) {
      const double loud = random() % 32 == 0 ? 2.5 : 1.0;
      for (std::size_t c = 0; c < channels; ++c) {
        drift[c] += 0.05 * normal(random);
        out.row(h, t)[c] = static_cast<float>(loud * (offset[c] + scale[c] * (normal(random) + drift[c])));
      }
    }
  }
  return out;
}

/// The same, drawn once a program: tests ask for few of them, often.
inline const cube& make_cube(unsigned seed, std::size_t heads, std::size_t tokens, std::size_t channels) {
  thread_local std::map<std::tuple<unsigned, std::size_t, std::size_t, std::size_t>, cube> drawn;
  cube& x = drawn[{seed, heads, tokens, channels}];
  if (x.x.empty()) x = draw_cube(seed, heads, tokens, channels);
  return x;
}

/// What a cache of this type holds of it.
inline cube rounded(lagkv::dtype type, cube x) {
  for (float& v : x.x) v = rounded(type, v);
  return x;
}

}  // namespace support
