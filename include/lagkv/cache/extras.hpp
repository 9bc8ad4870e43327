// Part of lagkv (MIT). What a host may offer beside keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/result.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/rope.hpp>
#include <lagkv/view/tensor.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Sums over all keys that a sequence has had but its sinks, dropped ones too, in the host's memory. For each head size()
/// doubles, 0 at the start of the sequence: the sum and the sum of squares of each channel of k / |k|, and the number of keys.
/// accumulate() adds to them; copy them with a forked sequence, save them with a saved one.
struct key_statistics {
  double* data = nullptr;

  explicit operator bool() const noexcept { return data != nullptr; }
  static std::size_t size(std::size_t channels) { return 2 * channels + 1; }
  double* of(std::size_t head, std::size_t channels) const { return data + head * size(channels); }
};

/// What a host may offer beside keys and values (docs/offers.md). All of it is optional: policy.needs says what a policy reads,
/// check() what is missing. Views and pointers are of the host's memory and must be valid during the call that they are given to.
///
/// Query head q belongs to KV head q / (query heads / KV heads). "The last n tokens" are the last n rows in use, oldest first: a
/// host that gives more queries than a policy asks for pays nothing for them, but all of them must still be in the cache.
struct extras {
  /// [query heads][n][channels of the keys]: queries of the last n tokens as they meet the keys in Q K^T (after RoPE).
  tensor queries{};
  /// [query heads][n][at least tokens]: attention weights (after softmax) of the last n tokens, in place of queries.
  tensor weights{};
  /// n, if it is less than the capacity of queries (or weights): their first n rows are in use. 0: all of them. It counts in
  /// each of the two up to its own capacity.
  std::size_t query_count = 0;
  /// [heads][tokens]: attention that each row has received so far, 0 for a new row. accumulate() adds to it, compress() moves it
  /// with the rows: it lives as long as the sequence.
  side_array<float> accumulated_attention{};
  /// Statistics of all keys of the sequence but its sinks, dropped ones too; without them a policy takes those of the candidates
  /// and the rows behind. accumulate() adds to them: they live as long as the sequence.
  lagkv::key_statistics key_statistics{};
  /// Statistics of queries to come, after the mean RoPE of the positions to come: mean [query heads][1][channels]; covariance
  /// [query heads][channels][channels], or in its place factors [query heads][n][channels], vectors whose products f f^T add up
  /// to it, or nearly. attention/query_statistics.hpp makes them.
  tensor query_mean{}, query_covariance{}, query_factors{};
  /// [heads][1][channels of the keys + channels of the values + 1], f32: for each head the factors of the channels of a key
  /// (before RoPE) and of its value, then a constant. The sum predicts how much attention a token will get:
  /// attention/importance.hpp.
  tensor importance{};
  /// Positions of the rows, if the host keeps them; compress() moves them with the rows. Without them row r is taken to be
  /// position r + cursor.dropped, which holds for rows that are candidates for the first time.
  side_array<std::uint32_t> positions{};
  /// The rotary embedding that the keys carry, for policies that score keys as they were before it.
  const lagkv::rope* rope = nullptr;
  /// Positions that are never dropped, ascending, each once.
  std::span<const std::uint32_t> protect{};
  /// [heads], for select=by_head: the budget of each head as a multiple of the policy's. 0 or more; the average over all heads of
  /// all layers is 1. head_budgets() of attention/head_budgets.hpp makes them, once a model.
  std::span<const float> head_budgets{};
  /// The factor of q.k before the softmax; 0: 1 / sqrt(channels).
  float scale = 0;

  /// `scale`, or what stands for it with keys of so many channels.
  float logit_scale(std::size_t channels) const noexcept {
    return scale > 0 ? scale : 1.0F / __builtin_sqrtf(static_cast<float>(channels));
  }

  /// What attention is taken from: weights if there are any, else queries.
  const tensor& attention_source() const noexcept { return weights ? weights : queries; }
  /// Rows of it in use.
  std::size_t offered() const { return offered(attention_source()); }
  /// Rows in use of queries, or of weights.
  std::size_t offered(const tensor& of) const {
    const std::size_t n = of ? of.capacity() : 0;
    return query_count != 0 && query_count < n ? query_count : n;
  }
};

}  // namespace lagkv::inline LAGKV_ABI
