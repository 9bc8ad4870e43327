// The reference vectors of tests/golden.
#pragma once

#include <cstddef>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <lagkv/score/lagkv.hpp>

#include "cube.hpp"
#include "npy.hpp"

namespace support {

/// One entry of manifest.json; CMake turns the file into a table.
struct golden_case {
  const char* name;
  const char* kind;
  std::size_t tokens = 0, heads = 0, query_heads = 0, channels = 0;
  std::size_t sink = 0, lag = 0;
  double ratio = 0, value_weight = 1;
  std::size_t middle_step = 0, future = 0;
  bool covariance = false, value_norm = false;

  friend std::ostream& operator<<(std::ostream& out, const golden_case& c) { return out << c.name; }

  lagkv::lagkv_options options() const { return {.sink = sink, .lag = lag, .ratio = ratio, .value_weight = value_weight}; }
  std::size_t partitions() const { return lag == 0 || tokens < sink + 2 * lag ? 0 : (tokens - sink) / lag - 1; }
};

inline constexpr golden_case golden_cases[] = {
#include <golden_cases.inc>
};

inline std::vector<golden_case> golden_of(const std::string& kind) {
  std::vector<golden_case> out;
  for (const golden_case& c : golden_cases)
    if (c.kind == kind) out.push_back(c);
  return out;
}

inline npy::array golden_array(const golden_case& c, const std::string& file) {
  auto a = npy::load(std::string(LAGKV_GOLDEN) + "/" + c.name + "/" + file + ".npy");
  if (!a) throw std::runtime_error(a.message());
  return *a;
}

template <class T>
std::vector<T> golden(const golden_case& c, const std::string& file) {
  const npy::array a = golden_array(c, file);
  const auto items = a.as<T>();
  return {items.begin(), items.end()};
}

inline cube golden_cube(const golden_case& c, const std::string& file) {
  const npy::array a = golden_array(c, file);
  cube x(a.shape.at(0), a.shape.at(1), a.shape.at(2));
  for (std::size_t i = 0; i < x.x.size(); ++i)
    x.x[i] = a.type == "<f2" ? decoded(lagkv::dtype::f16, a.as<std::uint16_t>()[i]) : a.as<float>()[i];
  return x;
}

/// The type in which the reference read the case: its own numbers hold for that one only.
inline lagkv::dtype golden_type(const golden_case& c) {
  return golden_array(c, "keys").type == "<f2" ? lagkv::dtype::f16 : lagkv::dtype::f32;
}

}  // namespace support
