#include "glue.hpp"

#include <lagkv/lagkv.hpp>

std::size_t compress(std::uint16_t* keys, std::uint16_t* values, std::size_t heads, std::size_t channels, std::size_t capacity,
                     std::size_t tokens) {
  using half = lagkv::strided<lagkv::f16>;
  const lagkv::shape shape{heads, channels};
  const lagkv::strides strides{static_cast<std::ptrdiff_t>(capacity * channels), static_cast<std::ptrdiff_t>(channels), 1};
  const lagkv::layer layer{half{keys, shape, strides, capacity}, half{values, shape, strides, capacity}, tokens};
  const auto policy = lagkv::parse("lagkv:sink=4,lag=16,ratio=0.25");
  if (!policy || !lagkv::check(*policy, layer)) return 0;
  lagkv::cursor at;
  lagkv::workspace ws;
  return lagkv::compress(*policy, layer, at, ws);
}

const char* instructions() { return lagkv::simd::name(lagkv::simd::best()); }
