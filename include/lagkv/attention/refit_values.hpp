// Part of lagkv (MIT). Values of the rows that stay, changed so that attention gives what it gave with all rows. Needs Eigen.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <lagkv/cache/layer.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/result.hpp>
#include <lagkv/rows/matrix.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/dot_kernels.hpp>
#include <lagkv/simd/narrow_kernels.hpp>
#include <lagkv/simd/widen_kernels.hpp>
#include <lagkv/view/dtype.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// Whether refit_values() can write values of this type.
inline status check_refit(dtype values) {
  if (is_float(values)) return {};
  return detail::refuse({"values: type ", name(values), ": must be f32, f16 or bf16 (others cannot be written)"});
}

/// Whether refit_values() can work on this layer: check(l), values of f32, f16 or bf16 that lie as they are (no scales, no
/// Hadamard matrix), queries, and a ridge of 1e-9 or more that is finite. Call it where a cache is set up.
inline status check_refit(const layer& l, double ridge) {
  constexpr double least = 1e-9;  // below it rounding would decide
  if (!detail::finite(ridge) || !(ridge >= least))
    return detail::refuse({"ridge=", ridge, ": must be ", least, " or more, and finite"});
  if (status s = check(l); !s) return s;
  if (!l.values) return error{"values: the layer has none to refit"};
  if (status s = check_refit(l.values.type()); !s) return s;
  if (!detail::stored_plain(l.values) || l.values.reader() != nullptr)
    return error{"values: are stored with a scale or under a Hadamard matrix: cannot be written"};
  if (l.extra == nullptr || l.extra->offered(l.extra->queries) == 0)
    return error{"queries: values are refitted to those of the last tokens; the layer offers none"};
  return {};
}

namespace detail {

/// The weights of one query, from its logits in any order.
struct softmax_sum {
  double most = -1e300, sum = 0;

  void add(double logit) {
    if (logit > most)
      sum = sum * std::exp(most - logit) + 1, most = logit;
    else
      sum += std::exp(logit - most);
  }
  double weight(double logit) const { return sum > 0 ? std::exp(logit - most) / sum : 0; }
};

/// The least squares of one KV head. Rows go through it a tile at a time, so that it holds no matrix of queries and rows.
class value_refit {
 public:
  value_refit(const layer& l, std::size_t head, const plan& p, workspace& ws)
      : layer_(l), head_(head), ws_(ws), rows_(l.tokens, {.stays = true}) {
    for (std::size_t row = p.candidates.begin; row < p.candidates.end; ++row) rows_[row].stays = false;
    for (const std::uint32_t row : p.of(head)) rows_[row].stays = rows_[row].kept = true;
    for_each_row(l.values, head, {0, l.tokens}, ws, [&](std::size_t row, std::span<const float> value) {
      for (const float x : value) rows_[row].usable = rows_[row].usable && finite(x);
    });
    take_queries();
  }

  void solve(double ridge);

 private:
  static constexpr std::size_t tile_rows = matrix_rows;

  struct row_facts {
    bool stays = false;       // after the plan
    bool kept = false;        // as a candidate
    bool usable = true;       // its value is finite
    Eigen::Index column = 0;  // of weights_, while its tile is weighed

    bool changes() const { return kept && usable; }
  };

  /// Queries of all heads of the group, scaled: query i of head g is row g * count + i.
  void take_queries() {
    const extras& e = *layer_.extra;
    const tensor& given = e.queries;
    const std::size_t channels = layer_.keys.channels(), offered = e.offered(given);
    group_ = given.heads() / layer_.keys.heads(), each_ = offered < layer_.tokens ? offered : layer_.tokens;
    const float scale = e.logit_scale(channels);
    queries_.resize(group_ * each_ * channels);
    for (std::size_t g = 0; g < group_; ++g)
      for_each_row(given, head_ * group_ + g, {offered - each_, offered}, ws_, [&](std::size_t i, std::span<const float> row) {
        float* to = queries_.data() + (g * each_ + i) * channels;
        for (std::size_t c = 0; c < channels; ++c) to[c] = row[c] * scale;
      });
    all_.resize(count()), those_that_stay_.resize(count());
  }

  std::size_t count() const { return group_ * each_; }
  /// Rows that query q sees: its own and those before it.
  std::size_t sees(std::size_t q) const { return layer_.tokens - each_ + q % each_ + 1; }

  /// Calls use(query, row of the tile, logit) for what each query sees of some rows; what is not finite is passed over.
  template <class Use>
  void for_each_logit(token_range rows, const Use& use) {
    const workspace::frame scratch(ws_);
    float* logits = ws_.take<float>(count() * rows.size());
    for_each_rows(layer_.keys, head_, rows, ws_, [&](const simd::rows& run, std::size_t offset) {
      ws_.kernels<simd::dot_kernels>().dots(run, queries_.data(), count(), logits + offset, rows.size());
    });
    for (std::size_t q = 0; q < count(); ++q)
      for (std::size_t i = 0; i < rows.size() && rows.begin + i < sees(q); ++i)
        if (const float x = logits[q * rows.size() + i]; rows_[rows.begin + i].usable && finite(x))
          use(q, i, static_cast<double>(x));
  }

  template <class Use>
  void for_each_tile(const Use& use) {
    for (std::size_t begin = 0; begin < layer_.tokens; begin += tile_rows)
      use(token_range{begin, begin + tile_rows < layer_.tokens ? begin + tile_rows : layer_.tokens});
  }

  /// Rows of a tile that change, in their order.
  std::vector<std::size_t> changing(token_range rows) const {
    std::vector<std::size_t> found;
    for (std::size_t row = rows.begin; row < rows.end; ++row)
      if (rows_[row].changes()) found.push_back(row);
    return found;
  }

  /// weights_ to the rows of a tile that change, and change_: weights with all rows less those with the rows that stay.
  void weigh(token_range rows) {
    const std::vector<std::size_t> columns = changing(rows);
    const auto queries = static_cast<Eigen::Index>(count());
    for (std::size_t i = 0; i < columns.size(); ++i) rows_[columns[i]].column = static_cast<Eigen::Index>(i);
    weights_.setZero(queries, static_cast<Eigen::Index>(columns.size()));
    change_.setZero(queries, static_cast<Eigen::Index>(rows.size()));
    for_each_logit(rows, [&](std::size_t q, std::size_t i, double logit) {
      const auto row = static_cast<Eigen::Index>(q), column = static_cast<Eigen::Index>(i);
      const double stay = rows_[rows.begin + i].stays ? those_that_stay_[q].weight(logit) : 0;
      change_(row, column) = all_[q].weight(logit) - stay;
      if (rows_[rows.begin + i].changes()) weights_(row, rows_[rows.begin + i].column) = stay;
    });
  }

  void write(std::size_t row, std::span<const double> by);

  const layer& layer_;
  std::size_t head_;
  workspace& ws_;
  std::vector<row_facts> rows_;
  std::size_t group_ = 0, each_ = 0;  // query heads; queries of one
  std::vector<float> queries_;
  std::vector<softmax_sum> all_, those_that_stay_;  // of each query
  matrix weights_, change_;                         // [queries][rows of a tile that change], [queries][rows of a tile]
};

inline void value_refit::solve(double ridge) {
  for_each_tile([&](token_range rows) {
    for_each_logit(rows, [&](std::size_t q, std::size_t i, double logit) {
      all_[q].add(logit);
      if (rows_[rows.begin + i].stays) those_that_stay_[q].add(logit);
    });
  });
  const auto queries = static_cast<Eigen::Index>(count()), channels = static_cast<Eigen::Index>(layer_.values.channels());
  matrix products = matrix::Zero(queries, queries), missing = matrix::Zero(queries, channels), values(tile_rows, channels);
  for_each_tile([&](token_range rows) {
    weigh(rows);
    const auto n = static_cast<Eigen::Index>(rows.size());
    for_each_row(layer_.values, head_, rows, ws_, [&](std::size_t i, std::span<const float> value) {
      for (std::size_t c = 0; c < value.size(); ++c)
        values(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(c)) =
            rows_[rows.begin + i].usable ? static_cast<double>(value[c]) : 0;
    });
    missing.noalias() += change_ * values.topRows(n);
    if (weights_.cols() > 0) products.selfadjointView<Eigen::Lower>().rankUpdate(weights_);  // Eigen divides by it
  });
  // min |W D - E|^2 + r |D|^2 has D = W^T (W W^T + r)^-1 E: as many equations as queries, of which there are fewer than rows.
  Eigen::Index voting = 0;
  for (Eigen::Index q = 0; q < queries; ++q) voting += products(q, q) > 0 ? 1 : 0;
  if (voting == 0) return;
  products.diagonal().array() += ridge * products.trace() / static_cast<double>(voting);
  const matrix solved = Eigen::MatrixXd(products).llt().solve(missing);
  for_each_tile([&](token_range rows) {
    const std::vector<std::size_t> changed = changing(rows);
    if (changed.empty()) return;
    weigh(rows);
    const matrix by = weights_.transpose() * solved;
    for (std::size_t i = 0; i < changed.size(); ++i)
      write(changed[i], {by.row(static_cast<Eigen::Index>(i)).data(), layer_.values.channels()});
  });
}

/// Adds to a value; one that would not fit its type stays.
inline void value_refit::write(std::size_t row, std::span<const double> by) {
  const tensor& x = layer_.values;
  const workspace::frame scratch(ws_);
  const tile t = x.at(head_, {row, row + 1});
  float* value = ws_.take<float>(x.channels());
  auto* elements = ws_.take<std::byte>(x.row_bytes());
  copy_strided(t.data, t.channel_stride, elements, 1, x.channels(), size_of(x.type()));
  const auto& widen = ws_.kernels<simd::widen_kernels>().widen;
  widen(elements, x.type(), x.channels(), value);
  for (std::size_t c = 0; c < x.channels(); ++c) value[c] = static_cast<float>(static_cast<double>(value[c]) + by[c]);
  ws_.kernels<simd::narrow_kernels>().narrow(value, x.type(), x.channels(), elements);
  widen(elements, x.type(), x.channels(), value);
  for (std::size_t c = 0; c < x.channels(); ++c)
    if (!finite(value[c])) return;
  copy_strided(elements, 1, t.data, t.channel_stride, x.channels(), size_of(x.type()));
}

}  // namespace detail

/// Changes the values of the candidates that `p` keeps, so that the queries that the layer offers (extras.queries, all of them,
/// of all heads of a group) get from the rows that stay what they get from all rows, as nearly as the ridge lets them. Call it
/// between plan_eviction() and compact(): it reads the rows that go.
///
/// For each KV head it finds the change D of these values that makes |W D - E|^2 + r |D|^2 least: W are the queries' weights to
/// the kept candidates, after a softmax over the rows that stay, E what their outputs lack, r = `ridge` times the mean over the
/// queries of a weight's squares. So the error at these queries grows by no more than the values' rounding to their type (f16,
/// bf16), and few queries change little. Sinks, window and earlier survivors stay as they are: a row's value is changed once, and
/// what is always kept is never changed.
///
/// Rows whose key or value is not finite, and queries that are not, take no part. A value that would exceed its type stays, and
/// the error may grow by it.
/// Errors: what check_refit() says, and a plan of another layer; then nothing is changed. Allocates.
///
/// Cost of a head, R = queries x group, n rows, m kept, d and d' channels of key and value: 2 R n (3 d + d') + R^2 n + R^3 / 3
/// flops and up to 5 R n exponentials. Source: Attention Matching (arXiv 2602.16284), its fit of values, without its biases, from
/// the values as they were instead of 0.
inline status refit_values(const layer& l, const plan& p, double ridge, workspace& ws) {
  if (status s = check_refit(l, ridge); !s) return s;
  if (p.empty()) return {};
  if (p.heads() != l.keys.heads()) return detail::refuse({"plan: heads=", p.heads(), ": must be the layer's ", l.keys.heads()});
  if (p.tokens_before != l.tokens)
    return detail::refuse({"plan: tokens=", p.tokens_before, ": must be the layer's ", l.tokens, " (before rows move)"});
  if (p.candidates.end > l.tokens)
    return detail::refuse({"plan: candidates end at ", p.candidates.end, ": must be at most the layer's ", l.tokens, " rows"});
  for (const std::uint32_t row : p.kept)
    if (row < p.candidates.begin || row >= p.candidates.end)
      return detail::refuse(
          {"plan: keeps row ", row, ": must be a candidate (", p.candidates.begin, " to ", p.candidates.end, ")"});
  for (std::size_t head = 0; head < p.heads(); ++head) detail::value_refit(l, head, p, ws).solve(ridge);
  return {};
}

}  // namespace lagkv::inline LAGKV_ABI
