// What a host offers beside keys and values: queries in any layout and type, accumulated attention, positions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "every_method.hpp"
#include "host.hpp"

namespace support {

/// The same numbers for the same sizes, fitted to nothing.
inline lagkv::importance_map any_importance(std::size_t heads, std::size_t key_channels, std::size_t value_channels) {
  lagkv::importance_map m{heads, key_channels, value_channels, {}};
  m.weights = make_cube(4711, heads, 1, m.width()).x;
  return m;
}

/// The last `n` rows of a cube, as a cube.
inline cube last_rows(const cube& x, std::size_t end, std::size_t n) {
  cube out(x.heads, n, x.channels);
  for (std::size_t h = 0; h < x.heads; ++h)
    for (std::size_t t = 0; t < n; ++t) std::copy_n(x.row(h, end - n + t), x.channels, out.row(h, t));
  return out;
}

/// A cache with the queries of its last tokens, an embedding that its keys may be taken to carry, and a map of importance.
struct asked_cache {
  cache kv;
  host queries;
  std::size_t count;
  lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  lagkv::importance_map importance;
  lagkv::extras extras;

  asked_cache(layout l, lagkv::dtype type, const cube& k, const cube& v, const cube& q)
      : kv(l, type, k, v), queries(l, type, q), count(q.tokens), importance(any_importance(k.heads, k.channels, v.channels)) {}

  lagkv::layer layer(std::size_t tokens) {
    extras.queries = queries.view(), extras.query_count = count, extras.rope = &rope;
    extras.importance = importance.view();
    lagkv::layer l = kv.layer(tokens);
    l.extra = &extras;
    return l;
  }
};

}  // namespace support
