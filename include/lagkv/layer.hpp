// Part of lagkv (MIT). One layer of a cache, and what a host may know about it beside keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <lagkv/core.hpp>
#include <lagkv/detail/message.hpp>
#include <lagkv/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

struct rope;

/// Sums over all keys that a sequence has had, in the host's memory, 0 at its start: for each head 2 * channels + 1 doubles, the
/// sum and the sum of squares of each channel of k / |k|, and of how many keys. observe_keys() adds to them; copy them with a
/// forked sequence, save them with a saved one.
struct key_moments {
  double* data = nullptr;

  explicit operator bool() const { return data != nullptr; }
  static std::size_t size(std::size_t channels) { return 2 * channels + 1; }
  double* of(std::size_t head, std::size_t channels) const { return data + head * size(channels); }
};

/// What some policies read beside keys and values; policy.needs says which. All of it is optional.
///
/// Query head q belongs to KV head q / (query heads / KV heads). "The last n tokens" are the last n rows in use: a host that
/// gives more queries than a policy asks for pays nothing for them, but all of them must still be in the cache.
struct extras {
  /// [query heads][n][channels of the keys]: queries of the last n tokens as they meet the keys in Q K^T (after RoPE).
  tensor queries;
  /// [query heads][n][at least tokens]: attention weights (after softmax) of the last n tokens, in place of queries.
  tensor weights;
  /// n, where it is less than the capacity of queries (or weights): their first n rows are in use. 0: all of them.
  std::size_t query_count = 0;
  /// [heads][tokens]: attention that each row has received so far; see add_attention() in attention.hpp.
  side_array<float> mass;
  /// What is usual in this sequence, dropped tokens included (novelty). Without it a policy takes it from the rows in use.
  key_moments moments;
  /// Statistics of queries to come, after the mean RoPE of the positions to come: [query heads][1][channels], and
  /// [query heads][channels][channels]; or in place of that, [query heads][n][channels], a few vectors whose products f f^T add
  /// up to it, or nearly.
  tensor query_mean, query_covariance, query_factors;
  /// Positions of the rows, where the host keeps them. Without them row r is taken to be position r + cursor.dropped, which
  /// is right for rows that are judged for the first time.
  side_array<std::uint32_t> positions;
  /// The rotary embedding that the keys carry, for policies that judge them without it.
  const lagkv::rope* rope = nullptr;
  /// Positions that are never dropped, ascending.
  std::span<const std::uint32_t> protect;
  /// What multiplies q.k before the softmax; 0: 1 / sqrt(channels).
  float scale = 0;

  /// What attention is taken from: weights where there are any, else queries.
  const tensor& asked() const { return weights ? weights : queries; }
  /// Rows of it in use.
  std::size_t offered() const;
};

/// One layer of a cache: keys and values with the same heads, whose first `tokens` rows are in use. Keys and values may
/// differ in everything else (element type, channels, layout); values may be empty for a policy that does not read them.
/// To leave a layer of the model uncompressed, do not offer it.
struct layer {
  tensor keys{};
  tensor values{};
  std::size_t tokens = 0;
  const extras* extra = nullptr;  ///< must outlive the call
};

namespace detail {

LAGKV_EDGE status check_query_side(const char* name, const tensor& x, const layer& l, std::size_t channels,
                                   bool at_least = false);

LAGKV_EDGE status check(const extras& e, const layer& l);

}  // namespace detail

/// Whether lagkv can work on this layer. Call it where a cache is set up; step() trusts what it is given.
LAGKV_EDGE status check(const layer& l);

#if LAGKV_BODIES

LAGKV_EDGE std::size_t extras::offered() const {
  const std::size_t n = asked() ? asked().capacity() : 0;
  return query_count != 0 && query_count < n ? query_count : n;
}

namespace detail {

LAGKV_EDGE status check_query_side(const char* name, const tensor& x, const layer& l, std::size_t channels, bool at_least) {
  if (!x) return {};
  if (x.capacity() > 0xffffffffU)
    return detail::refuse({name, ": ", "capacity is unbounded: must be the number of rows that there are"});
  if (status s = x.check(x.capacity()); !s) return detail::refuse({name, ": ", s.message()});
  if (x.heads() % l.keys.heads() != 0)
    return detail::refuse({name, ": ", "heads=", x.heads(), ": must be a multiple of the ", l.keys.heads(), " KV heads"});
  if (x.channels() != channels && !(at_least && x.channels() > channels))
    return detail::refuse({name, ": ", "channels=", x.channels(), ": must be ", (at_least ? "at least " : ""), channels});
  return {};
}

LAGKV_EDGE status check(const extras& e, const layer& l) {
  const std::size_t channels = l.keys.channels();
  if (status s = check_query_side("queries", e.queries, l, channels); !s) return s;
  if (status s = check_query_side("weights", e.weights, l, l.tokens, true); !s) return s;
  if (status s = check_query_side("query_mean", e.query_mean, l, channels); !s) return s;
  if (status s = check_query_side("query_covariance", e.query_covariance, l, channels); !s) return s;
  if (e.query_covariance && e.query_covariance.capacity() != channels)
    return detail::refuse({"query_covariance: rows=", e.query_covariance.capacity(), ": must be ", channels});
  if (e.query_covariance && (!e.query_mean || e.query_mean.heads() != e.query_covariance.heads()))
    return detail::refuse({"query_covariance: heads=", e.query_covariance.heads(), ": must be those of query_mean"});
  if (status s = check_query_side("query_factors", e.query_factors, l, channels); !s) return s;
  if (e.query_factors && (!e.query_mean || e.query_mean.heads() != e.query_factors.heads()))
    return detail::refuse({"query_factors: heads=", e.query_factors.heads(), ": must be those of query_mean"});
  for (std::size_t i = 1; i < e.protect.size(); ++i)
    if (e.protect[i] <= e.protect[i - 1])
      return detail::refuse({"protect: position ", e.protect[i], " after ", e.protect[i - 1], ": must be ascending"});
  if (!(e.scale >= 0)) return detail::refuse({"scale=", e.scale, ": must be 0 or more"});
  return {};
}

}  // namespace detail

LAGKV_EDGE status check(const layer& l) {
  if (status s = l.keys.check(l.tokens); !s) return detail::refuse({"keys: ", s.message()});
  if (l.values) {
    if (status s = l.values.check(l.tokens); !s) return detail::refuse({"values: ", s.message()});
    if (l.values.heads() != l.keys.heads())
      return detail::refuse({"values: heads=", l.values.heads(), ": must be the ", l.keys.heads(), " of the keys"});
  }
  return l.extra != nullptr ? detail::check(*l.extra, l) : status{};
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
