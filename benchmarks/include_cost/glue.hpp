// What the files beside this one have in common: a host's cache of f16, [heads][capacity][channels], compressed by one call.
#pragma once

#include <lagkv/lagkv.hpp>

struct cache {
  std::uint16_t *keys, *values;
  std::size_t heads, channels, capacity, tokens;
};

inline lagkv::layer view(const cache& c) {
  using half = lagkv::strided<lagkv::f16>;
  const lagkv::shape shape{c.heads, c.channels};
  const lagkv::strides strides{static_cast<std::ptrdiff_t>(c.capacity * c.channels), static_cast<std::ptrdiff_t>(c.channels), 1};
  return {half{c.keys, shape, strides, c.capacity}, half{c.values, shape, strides, c.capacity}, c.tokens};
}

inline bool compress(const lagkv::policy& policy, cache& c, lagkv::cursor& at, lagkv::workspace& ws) {
  if (!lagkv::check(policy, view(c))) return false;
  c.tokens = lagkv::compress(policy, view(c), at, ws);
  return true;
}
