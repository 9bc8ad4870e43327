// Part of lagkv (MIT). One layer of a cache.
#pragma once

#include <cstddef>

#include <lagkv/cache/extras.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// One layer of a cache: keys and values with the same heads, whose first `tokens` rows are in use. Keys and values may
/// differ in everything else (element type, channels, layout); values may be empty for a policy that does not read them.
/// To leave a layer of the model uncompressed, do not offer it.
struct layer {
  tensor keys{};
  tensor values{};
  std::size_t tokens = 0;
  const extras* extra = nullptr;  ///< must outlive the call
  /// Which layer of the sequence it is, for methods that treat layers differently. 0: the first, or not known; then compress()
  /// for all layers takes its place in the list.
  std::size_t index = 0;
};

namespace detail {

LAGKV_EDGE status check_query_side(const char* name, const tensor& x, const layer& l, std::size_t channels,
                                   bool at_least = false);

LAGKV_EDGE status check(const extras& e, const layer& l);

}  // namespace detail

/// Whether lagkv can work on this layer. Call it where a cache is set up; compress() trusts what it is given.
LAGKV_EDGE status check(const layer& l);

#if LAGKV_BODIES

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

/// Whether the rows of all heads lie apart, in numbers of 4 bytes; `shared`: all heads may have the same.
LAGKV_EDGE status check_side_array(const char* name, std::ptrdiff_t stride, const layer& l, bool shared) {
  if (l.keys.heads() == 1) return {};
  const std::size_t heads = l.keys.heads(), distance = magnitude(stride);
  if (!addressable(heads, stride, 4))
    return refuse({name, ": head_stride=", stride, ": ", heads, " heads exceed what memory can address"});
  if (distance >= l.tokens || (shared && distance == 0)) return {};
  return refuse({name, ": head_stride=", distance, ": must be at least the ", l.tokens, " rows in use",
                 shared ? ", or 0 if all heads keep the same tokens" : ""});
}

LAGKV_EDGE status check_importance(const tensor& x, const layer& l) {
  if (!x) return {};
  const std::size_t heads = l.keys.heads();
  if (x.heads() != heads) return refuse({"importance: heads=", x.heads(), ": must be the ", heads, " of the keys"});
  // Without values no policy reads it.
  if (const std::size_t width = l.keys.channels() + l.values.channels() + 1; l.values && x.channels() != width)
    return refuse({"importance: channels=", x.channels(), ": must be ", width, ", those of keys and values and 1"});
  if (x.capacity() == 0) return error{"importance: rows=0: must be 1 or more"};
  if (status s = x.check(1); !s) return refuse({"importance: ", s.message()});
  return {};
}

LAGKV_EDGE status check(const extras& e, const layer& l) {
  const std::size_t channels = l.keys.channels();
  if (status s = check_query_side("queries", e.queries, l, channels); !s) return s;
  if (status s = check_query_side("weights", e.weights, l, l.tokens, true); !s) return s;
  if (status s = check_query_side("query_mean", e.query_mean, l, channels); !s) return s;
  if (e.query_mean && e.query_mean.capacity() == 0) return error{"query_mean: rows=0: must be 1 or more"};
  if (status s = check_query_side("query_covariance", e.query_covariance, l, channels); !s) return s;
  if (e.query_covariance && e.query_covariance.capacity() != channels)
    return detail::refuse({"query_covariance: rows=", e.query_covariance.capacity(), ": must be ", channels});
  if (e.query_covariance && (!e.query_mean || e.query_mean.heads() != e.query_covariance.heads()))
    return detail::refuse({"query_covariance: heads=", e.query_covariance.heads(), ": must be those of query_mean"});
  if (status s = check_query_side("query_factors", e.query_factors, l, channels); !s) return s;
  if (e.query_factors && (!e.query_mean || e.query_mean.heads() != e.query_factors.heads()))
    return detail::refuse({"query_factors: heads=", e.query_factors.heads(), ": must be those of query_mean"});
  if (status s = check_importance(e.importance, l); !s) return s;
  if (e.positions)
    if (status s = check_side_array("positions", e.positions.head_stride.value, l, true); !s) return s;
  if (e.accumulated_attention)
    if (status s = check_side_array("accumulated_attention", e.accumulated_attention.head_stride.value, l, false); !s) return s;
  for (std::size_t i = 1; i < e.protect.size(); ++i)
    if (e.protect[i] <= e.protect[i - 1])
      return detail::refuse({"protect: position ", e.protect[i], " after ", e.protect[i - 1], ": must be ascending"});
  if (!e.head_budgets.empty() && e.head_budgets.size() != l.keys.heads())
    return detail::refuse({"head_budgets: ", e.head_budgets.size(), " heads: must be the ", l.keys.heads(), " of the keys"});
  for (std::size_t head = 0; head < e.head_budgets.size(); ++head)
    if (const float m = e.head_budgets[head]; !finite(m) || !(m >= 0))
      return detail::refuse({"head_budgets: ", m, " of head ", head, ": must be 0 or more, and finite"});
  if (!finite(e.scale) || !(e.scale >= 0)) return detail::refuse({"scale=", e.scale, ": must be 0 or more, and finite"});
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
