// The scores of the field in double, from the papers' formulas: nothing of it comes from the library.
//
// Cubes are [heads, tokens, channels]; queries are [query heads, n, channels] and belong to the last n of the tokens.
// A KV head serves queries.heads / keys.heads query heads in a row. Scores come one a candidate, in their order; the higher
// stays. Finite input; ranges lie within the cube and are not empty.
#pragma once

#include <cstddef>
#include <vector>

#include "cube.hpp"

namespace support {

struct row_range {
  std::size_t begin = 0, end = 0;
  std::size_t size() const { return end - begin; }
};

// ---- Keys and values only ---------------------------------------------------------------------------------------------

/// -|k| (arXiv 2406.11430).
std::vector<double> key_norm_scores(const cube& keys, std::size_t head, row_range candidates);

/// |v|.
std::vector<double> value_norm_scores(const cube& values, std::size_t head, row_range candidates);

/// KeyDiff (arXiv 2504.15364): -cos(k, anchor), anchor = mean over the reference of k / |k|, where a row of norm 0 counts as
/// zeros. 0 where the row or the anchor has norm 0.
std::vector<double> key_diff_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference);

/// NestedKV (arXiv 2605.26678), sections 2.2 to 2.4: blocks of `block` rows from row 0, a window of `window` rows up to the row's
/// own.
std::vector<double> nested_scores(const cube& keys, std::size_t head, row_range candidates, std::size_t block,
                                  std::size_t window);

struct cur_options {
  std::size_t window = 16;  ///< rows, counted from candidates.begin; the last window may be shorter
  bool normalised = false;  ///< divided by their sum, as kvpress does: the order stays
};

/// CUR (CurDKV, arXiv 2509.15038): |k|^2 over its sum in the window, times the same of v. 0 where a sum is 0.
std::vector<double> cur_scores(const cube& keys, const cube& values, std::size_t head, row_range candidates,
                               const cur_options& o = {});

/// ManifoldKV (arXiv 2602.08343): |k - mean over the reference|.
std::vector<double> manifold_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference);

/// The same from the mean of the row's own window: `window` rows from candidates.begin on, the last may be shorter.
std::vector<double> windowed_manifold_scores(const cube& keys, std::size_t head, row_range candidates, std::size_t window);

/// Novelty: sqrt(sum over channels of (u - mean)^2 / (variance + ridge * mean variance)) over the root of its mean over the
/// reference, u = k / |k|, mean and variance of u over the reference. Channels whose variance is not above 1e-6 of their mean
/// square are left out.
std::vector<double> novelty_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference,
                                   double ridge = 0);

/// Distinct: minus the rows behind with the same code, plus 1/2 times the share of the rows that lie before. Codes are the signs
/// of sum of s (u - mean) / deviation, u, mean and deviation (of the reference) as in novelty; s is 1 where SplitMix64 seeded
/// with 2^32 * bit + channel draws an odd number, else -1. Rows from candidates.begin to the end of the reference count.
std::vector<double> distinct_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference,
                                    std::size_t bits);

/// Minus the mean cosine of each candidate to all other rows of `all`; the last other row to which a row's cosine is above
/// `similar` is spared that one.
std::vector<double> redundancy_scores(const cube& keys, std::size_t head, row_range candidates, row_range all, double similar);

/// Leverage (part of Compactor, arXiv 2507.08143): x^T (X^T X + epsilon I)^-1 x, X the reference minus its mean, x the row
/// minus the same mean.
std::vector<double> leverage_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference,
                                    double epsilon = 0.01);

// ---- Attention --------------------------------------------------------------------------------------------------------

/// softmax(q.k / sqrt(channels)) of the i-th query over the rows it sees, which are those up to its own; 0 for the others.
/// Query i is that of row keys.tokens - queries.tokens + i.
std::vector<double> attention_weights(const cube& queries, const cube& keys, std::size_t query_head, std::size_t i);

/// SnapKV's pooling: mean of `kernel` neighbours, kernel / 2 of them before; beyond the ends are zeros, which count.
std::vector<double> average_pool(const std::vector<double>& x, std::size_t kernel);

/// SnapKV (arXiv 2404.14469): mean weight from the last `window` queries, pooled over the candidates, mean over the group.
std::vector<double> snapkv_scores(const cube& queries, const cube& keys, std::size_t head, row_range candidates,
                                  std::size_t window, std::size_t kernel);

/// H2O (arXiv 2306.14048): sum of the weights from all queries, mean over the group. `mean`: over the number of queries that
/// see the row (kvpress's ObservedAttention).
std::vector<double> h2o_scores(const cube& queries, const cube& keys, std::size_t head, row_range candidates, bool mean);

/// TOVA (arXiv 2401.06104): weights from the last query, mean over all query heads; the same for every KV head.
std::vector<double> tova_scores(const cube& queries, const cube& keys, row_range candidates);

/// What is known of queries to come.
struct query_statistics {
  std::size_t heads = 0, channels = 0;
  std::vector<double> mean;        ///< [query heads, channels]
  std::vector<double> covariance;  ///< [query heads, channels, channels], or empty
};

struct expected_query_options {
  std::size_t sink = 0;    ///< first queries, left out
  std::size_t seen = 0;    ///< the first position to come
  std::size_t future = 1;  ///< positions to come, over which the rotation is averaged
  bool covariance = true;
  double base = 10000;  ///< of RoPE
};

/// Mean and population covariance of queries before RoPE, moved by the mean rotation R of the positions to come: R m and
/// R S R^T. RoPE turns the pair (i, i + channels / 2) by position * base^(-2 i / channels).
query_statistics expected_queries(const cube& queries, const expected_query_options& o);

/// Expected attention (arXiv 2510.00636): softmax over the candidates of m.k / sqrt(d) + k^T S k / (2 d), mean over the
/// group; with `value_norm` times |v|.
std::vector<double> expected_attention_scores(const query_statistics& queries, const cube& keys, const cube& values,
                                              std::size_t head, row_range candidates, bool value_norm);

// ---- From scores to rows ----------------------------------------------------------------------------------------------

/// The k best, ascending; of equal ones the earlier.
std::vector<std::size_t> top_k(const std::vector<double>& scores, std::size_t k);

/// AdaKV (arXiv 2407.11550) over scores [heads][rows]: which rows stay. Each head keeps int(k * alpha) of its own best; the
/// rest of heads * k go to the best of all heads. Of equal ones the earlier head's, then the earlier row.
std::vector<std::vector<bool>> adakv_mask(const std::vector<std::vector<double>>& scores, std::size_t k, double alpha);

/// ChunkKV (arXiv 2502.00299) over scores [heads][rows]: the rows that stay in every head, ascending. Scores are summed over
/// heads; chunks of `length` rows (the last may be shorter) with the best mean stay whole while they fit into the budget; the
/// first that does not gives its best rows. Of equal ones the earlier.
std::vector<std::size_t> chunk_rows(const std::vector<std::vector<double>>& scores, std::size_t length, std::size_t budget);

/// The share of rows that score lower; of equal ones the later counts as lower.
std::vector<double> rank_shares(const std::vector<double>& scores);

/// sum of weights[i] * rank_shares(scorers[i]); scorers are [scorers][rows] of one head.
std::vector<double> rank_fusion(const std::vector<std::vector<double>>& scorers, const std::vector<double>& weights);

}  // namespace support
