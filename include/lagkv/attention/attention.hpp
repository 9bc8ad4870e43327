// Part of lagkv (MIT). What the most recent queries attend to: from the queries themselves, or from weights that the host has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/cache/layer.hpp>
#include <lagkv/detail/numbers.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/score_kernels.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Queries, or rows of weights, that the layer offers: those of its last so many tokens.
LAGKV_FN std::size_t offered_queries(const layer& l);

/// How the attention weights of several queries become one number of a row: by their sum, which a weight makes a mean, or by the
/// largest.
enum class aggregation : std::uint8_t { mean, max };

namespace detail {

/// Floats of logits that are held at once, unless one query alone needs more: 4 MiB.
inline constexpr std::size_t most_logits = std::size_t{1} << 20;

/// Keys that are read for all queries of a block while they are in cache.
inline constexpr std::size_t key_tile = 256;

LAGKV_FN void add_given_weights(const layer& l, std::size_t query_head, token_range queries, float weight, aggregation how,
                                std::span<float> out, workspace& ws);

/// Logits of a block of queries (dense, scaled) with all rows that the last of them sees: [queries][pitch].
LAGKV_FN void logits_of(const layer& l, std::size_t head, const float* queries, std::size_t count, std::size_t pitch,
                        float* logits, workspace& ws);

/// All query heads of a group together, so that a tile of keys is read once for them.
LAGKV_FN void add_computed_weights(const layer& l, std::size_t head, std::size_t group, token_range queries, float weight,
                                   aggregation how, std::span<float> out, workspace& ws);

}  // namespace detail

/// out[row] += weight * a[row] for the rows in use, where a is the sum, over the last `queries` queries of each query head of
/// the group of `head`, of softmax(scale * q.k) over the rows that the query sees (its own and those before it).
///
/// Weights that the host offers are taken as they are; else they are computed from its queries, a block of them and a tile of
/// keys at a time: never more than 4 MiB of logits, or those of one token. A key that is not finite gets nothing, a query
/// that is not finite gives nothing. By aggregation::max out[row] becomes the largest of itself and of weight times these
/// softmaxes.
///
/// Cost: 2 * queries * group * tokens * channels flops and an exponential for each weight; it reads the keys once for each
/// block. Source: SnapKV (arXiv 2404.14469), section 4; H2O (arXiv 2306.14048).
LAGKV_FN void add_attention(const layer& l, std::size_t head, std::size_t queries, float weight, std::span<float> out,
                            workspace& ws, aggregation how = aggregation::mean);

/// The weight with which add_attention() gives a mean over the query heads of a group.
LAGKV_FN float group_share(const layer& l);

namespace detail {

/// Only what add_attention() gives, for all rows in use. The workspace's.
LAGKV_FN const float* attention_alone(const layer& l, std::size_t head, std::size_t queries, float weight, workspace& ws,
                                      aggregation how = aggregation::mean);

/// NaN, which goes first, for candidates that have received nothing because their keys are not finite. Reads only keys of rows
/// that have received nothing.
LAGKV_FN void mark_bad_keys(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws);

}  // namespace detail

/// Adds the attention of the last `queries` tokens to extras.accumulated_attention, as the mean over the query heads of each
/// group: call it after each chunk or token, with its queries (or weights), before compress(). New rows of it must be 0. Weights
/// of fewer rows than are in use add nothing.
LAGKV_FN void accumulate_attention(const layer& l, std::size_t queries, workspace& ws);

#if LAGKV_BODIES

LAGKV_FN std::size_t offered_queries(const layer& l) {
  const std::size_t n = l.extra != nullptr ? l.extra->offered() : 0;
  return n < l.tokens ? n : l.tokens;
}

namespace detail {

LAGKV_FN void add_given_weights(const layer& l, std::size_t query_head, token_range queries, float weight, aggregation how,
                                std::span<float> out, workspace& ws) {
  const tensor& given = l.extra->weights;
  const std::size_t n = offered_queries(l), skipped = l.extra->offered() - n;
  for_each_row(given, query_head, {skipped + queries.begin, skipped + queries.end}, ws,
               [&](std::size_t i, std::span<const float> row) {
                 const std::size_t sees = l.tokens - n + queries.begin + i + 1;
                 for (std::size_t t = 0; t < sees; ++t)
                   if (finite(row[t]) && row[t] > 0.0F) {
                     if (how == aggregation::mean) out[t] += weight * row[t];
                     if (how == aggregation::max && weight * row[t] > out[t]) out[t] = weight * row[t];
                   }
               });
}

LAGKV_FN void logits_of(const layer& l, std::size_t head, const float* queries, std::size_t count, std::size_t pitch,
                        float* logits, workspace& ws) {
  for (std::size_t begin = 0; begin < pitch; begin += key_tile) {
    const std::size_t end = begin + key_tile < pitch ? begin + key_tile : pitch;
    for_each_rows(l.keys, head, {begin, end}, ws, [&](const simd::rows& rows, std::size_t offset) {
      ws.kernels<simd::dot_kernels>().dots(rows, queries, count, logits + begin + offset, pitch);
    });
  }
}

LAGKV_FN void add_computed_weights(const layer& l, std::size_t head, std::size_t group, token_range queries, float weight,
                                   aggregation how, std::span<float> out, workspace& ws) {
  const tensor& given = l.extra->queries;
  const std::size_t channels = l.keys.channels(), n = offered_queries(l);
  const std::size_t skipped = l.extra->offered() - n, first_sees = l.tokens - n + 1;
  const float scale = l.extra->logit_scale(channels);
  const std::size_t fit = most_logits / ((first_sees + queries.end) * group), all = queries.end - queries.begin;
  const std::size_t together = all < fit ? all : (fit > 0 ? fit : 1);
  const workspace::frame scratch(ws);  // taken for the largest block, before `out` changes
  float* wide = ws.take<float>(group * together * channels);
  float* logits = ws.take<float>(group * together * (first_sees + queries.end));
  float* one = how == aggregation::max ? ws.take<float>(first_sees + queries.end) : nullptr;  // softmax of one query
  ws.reserve(2 * (room_of_rows(given) + room_of_rows(l.keys)));
  for (std::size_t at = queries.begin; at < queries.end;) {
    const std::size_t left = queries.end - at, count = left < together ? left : together;
    const std::size_t pitch = first_sees + at + count - 1;  // what the last query of the block sees
    for (std::size_t g = 0; g < group; ++g)
      for_each_row(given, head * group + g, {skipped + at, skipped + at + count}, ws,
                   [&](std::size_t i, std::span<const float> row) {
                     float* to = wide + (g * count + i) * channels;
                     for (std::size_t c = 0; c < channels; ++c) to[c] = row[c] * scale;
                   });
    logits_of(l, head, wide, group * count, pitch, logits, ws);
    for (std::size_t i = 0; i < group * count; ++i) {
      const std::size_t sees = first_sees + at + i % count;
      for (std::size_t t = 0; one != nullptr && t < sees; ++t) one[t] = 0.0F;
      ws.kernels<simd::score_kernels>().add_softmax(logits + i * pitch, sees, weight, one != nullptr ? one : out.data());
      for (std::size_t t = 0; one != nullptr && t < sees; ++t) out[t] = one[t] > out[t] ? one[t] : out[t];
    }
    at += count;
  }
}

}  // namespace detail

LAGKV_FN void add_attention(const layer& l, std::size_t head, std::size_t queries, float weight, std::span<float> out,
                            workspace& ws, aggregation how) {
  const std::size_t n = offered_queries(l);
  if (n == 0) return;
  const tensor& side = l.extra->attention_source();
  const std::size_t group = side.heads() / l.keys.heads(), last = queries < n ? queries : n;
  if (!l.extra->weights) return detail::add_computed_weights(l, head, group, {n - last, n}, weight, how, out, ws);
  for (std::size_t q = head * group; q < (head + 1) * group; ++q)
    detail::add_given_weights(l, q, {n - last, n}, weight, how, out, ws);
}

LAGKV_FN float group_share(const layer& l) {
  const tensor& side = l.extra->attention_source();
  return static_cast<float>(l.keys.heads()) / static_cast<float>(side.heads());
}

namespace detail {

LAGKV_FN const float* attention_alone(const layer& l, std::size_t head, std::size_t queries, float weight, workspace& ws,
                                      aggregation how) {
  float* weights = ws.take<float>(l.tokens);
  for (std::size_t i = 0; i < l.tokens; ++i) weights[i] = 0.0F;
  add_attention(l, head, queries, weight, {weights, l.tokens}, ws, how);
  return weights;
}

LAGKV_FN void mark_bad_keys(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) {
  const auto nothing = [&](std::size_t i) { return i < out.size() && finite(out[i]) && !(out[i] > 0); };
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!nothing(i)) continue;
    const std::size_t begin = i;
    while (nothing(i)) ++i;
    squares_of_rows(l.keys, head, {candidates.begin + begin, candidates.begin + i}, out.data() + begin, ws);
    for (std::size_t j = begin; j < i; ++j) out[j] = finite(out[j]) ? 0.0F : not_a_number();
  }
}

}  // namespace detail

LAGKV_FN void accumulate_attention(const layer& l, std::size_t queries, workspace& ws) {
  if (offered_queries(l) == 0 || !l.extra->accumulated_attention) return;
  if (l.extra->weights && l.extra->weights.channels() < l.tokens) return;
  const workspace::frame scratch(ws);  // of given weights, a row at a time
  if (const tensor& side = l.extra->attention_source(); l.extra->weights)
    ws.reserve(2 * detail::room_of_rows(side) + side.channels() * sizeof(float));
  for (std::size_t head = 0; head < l.keys.heads(); ++head)
    add_attention(l, head, queries, group_share(l), {l.extra->accumulated_attention.of(head), l.tokens}, ws);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
