// What a host offers beside keys and values: queries in any layout and type, accumulated attention, positions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include "host.hpp"

namespace support {

/// Any policy, those that need Eigen too; an empty one, which fails whatever uses it, where the string names none.
inline lagkv::policy named_any(const std::string& text) {
  auto p = lagkv::parse(text, lagkv::methods_with_eigen());
  return p ? *p : lagkv::policy{};
}

/// The last `n` rows of a cube, as a cube.
inline cube last_rows(const cube& x, std::size_t end, std::size_t n) {
  cube out(x.heads, n, x.channels);
  for (std::size_t h = 0; h < x.heads; ++h)
    for (std::size_t t = 0; t < n; ++t) std::copy_n(x.row(h, end - n + t), x.channels, out.row(h, t));
  return out;
}

/// A cache with the queries of its last tokens, and an embedding that its keys may be taken to carry.
struct asked_cache {
  cache kv;
  host queries;
  std::size_t count;
  lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  lagkv::extras extras;

  asked_cache(layout l, lagkv::dtype type, const cube& k, const cube& v, const cube& q)
      : kv(l, type, k, v), queries(l, type, q), count(q.tokens) {}

  lagkv::layer layer(std::size_t tokens) {
    extras.queries = queries.view(), extras.query_count = count, extras.rope = &rope;
    lagkv::layer l = kv.layer(tokens);
    l.extra = &extras;
    return l;
  }
};

}  // namespace support
