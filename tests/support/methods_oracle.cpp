#include "methods_oracle.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace support {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using Eigen::VectorXd;
using row_major = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Index index(std::size_t i) { return static_cast<Index>(i); }

/// [rows, channels] of one head.
MatrixXd matrix(const cube& x, std::size_t head, row_range r) {
  using rows = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
  return rows(x.row(head, r.begin), index(r.size()), index(x.channels)).cast<double>();
}

std::vector<double> list(const VectorXd& x) { return {x.begin(), x.end()}; }

/// Each over the sum of its window.
VectorXd window_shares(VectorXd x, Index window) {
  for (Index begin = 0; begin < x.size(); begin += window) {
    auto part = x.segment(begin, std::min(window, x.size() - begin));
    const double sum = part.sum();
    if (sum > 0) part /= sum;
  }
  return x;
}

VectorXd softmax(const VectorXd& x) {
  const VectorXd e = (x.array() - x.maxCoeff()).exp();
  return e / e.sum();
}

/// Calls f with each query head that the KV head serves; the mean of what it returns.
template <class F>
VectorXd group_mean(std::size_t query_heads, std::size_t heads, std::size_t head, const F& f) {
  const std::size_t group = query_heads / heads;
  VectorXd sum = f(head * group);
  for (std::size_t g = 1; g < group; ++g) sum += f(head * group + g);
  return sum / static_cast<double>(group);
}

/// attention_weights on the candidates.
VectorXd weights_on(const cube& queries, const cube& keys, std::size_t query_head, std::size_t i, row_range candidates) {
  const std::vector<double> w = attention_weights(queries, keys, query_head, i);
  return Eigen::Map<const VectorXd>(w.data() + candidates.begin, index(candidates.size()));
}

/// Row numbers, best first; of equal ones the earlier.
std::vector<std::size_t> by_score(const std::vector<double>& scores) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

std::vector<double> key_norm_scores(const cube& keys, std::size_t head, row_range candidates) {
  return list(-matrix(keys, head, candidates).rowwise().norm());
}

std::vector<double> value_norm_scores(const cube& values, std::size_t head, row_range candidates) {
  return list(matrix(values, head, candidates).rowwise().norm());
}

std::vector<double> key_diff_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference) {
  const MatrixXd k = matrix(keys, head, candidates), r = matrix(keys, head, reference);
  RowVectorXd anchor = RowVectorXd::Zero(r.cols());
  for (Index t = 0; t < r.rows(); ++t)
    if (r.row(t).norm() > 0) anchor += r.row(t) / r.row(t).norm();
  anchor /= static_cast<double>(r.rows());
  VectorXd out = VectorXd::Zero(k.rows());
  for (Index t = 0; t < k.rows(); ++t)
    if (k.row(t).norm() > 0 && anchor.norm() > 0) out(t) = -k.row(t).dot(anchor) / (k.row(t).norm() * anchor.norm());
  return list(out);
}

std::vector<double> nested_scores(const cube& keys, std::size_t head, row_range candidates, std::size_t block,
                                  std::size_t window) {
  using anomalies = std::vector<std::vector<double>>;
  const auto to_unit_range = [](std::vector<double> x) {
    const double least = *std::min_element(x.begin(), x.end()), most = *std::max_element(x.begin(), x.end());
    for (double& v : x) v = most - least > 1e-6 ? (v - least) / (most - least) : 0;
    return x;
  };
  anomalies a(3);
  for (std::size_t i = candidates.begin; i < candidates.end; ++i) {
    const std::size_t first = i / block * block;
    const row_range references[] = {
        {0, keys.tokens}, {first, std::min(first + block, keys.tokens)}, {i + 1 > window ? i + 1 - window : 0, i + 1}};
    for (std::size_t k = 0; k < 3; ++k) a[k].push_back(key_diff_scores(keys, head, {i, i + 1}, references[k])[0]);
  }
  double weights[3] = {0.4, 0.4, 0.2}, total = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    a[k] = to_unit_range(a[k]);
    std::vector<double> sorted = a[k];
    std::sort(sorted.begin(), sorted.end());
    const auto n = static_cast<std::ptrdiff_t>(std::max(1.0, std::floor(static_cast<double>(sorted.size()) / 10 + 0.5)));
    const double worst = std::accumulate(sorted.begin(), sorted.begin() + n, 0.0);
    const double best = std::accumulate(sorted.end() - n, sorted.end(), 0.0);
    weights[k] *= std::exp(3 * (best - worst) / static_cast<double>(n));
    total += weights[k];
  }
  std::vector<double> surprise, blend, most;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Eigen::Vector3d s(a[0][i], a[1][i], a[2][i]);
    surprise.push_back(std::sqrt((s.array() - s.mean()).square().mean()));
    blend.push_back((weights[0] * s(0) + weights[1] * s(1) + weights[2] * s(2)) / total);
    most.push_back(s.maxCoeff());
  }
  surprise = to_unit_range(surprise);
  const double usual = std::accumulate(surprise.begin(), surprise.end(), 0.0) / static_cast<double>(surprise.size());
  std::vector<double> out;
  for (std::size_t i = 0; i < surprise.size(); ++i) {
    const double gate = 1 / (1 + std::exp(-10 * (std::max(0.0, surprise[i] - usual) - 0.6)));
    out.push_back((1 - gate) * blend[i] + gate * most[i]);
  }
  return out;
}

std::vector<double> cur_scores(const cube& keys, const cube& values, std::size_t head, row_range candidates,
                               const cur_options& o) {
  const VectorXd k = window_shares(matrix(keys, head, candidates).rowwise().squaredNorm(), index(o.window));
  const VectorXd v = window_shares(matrix(values, head, candidates).rowwise().squaredNorm(), index(o.window));
  const VectorXd product = k.cwiseProduct(v);
  return list(o.normalised ? window_shares(product, product.size()) : product);
}

std::vector<double> manifold_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference) {
  const RowVectorXd centre = matrix(keys, head, reference).colwise().mean();
  return list((matrix(keys, head, candidates).rowwise() - centre).rowwise().norm());
}

std::vector<double> windowed_manifold_scores(const cube& keys, std::size_t head, row_range candidates, std::size_t window) {
  std::vector<double> out;
  for (std::size_t begin = candidates.begin; begin < candidates.end; begin += window) {
    const row_range own{begin, std::min(begin + window, candidates.end)};
    const std::vector<double> part = manifold_scores(keys, head, own, own);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

std::vector<double> novelty_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference, double ridge) {
  MatrixXd k = matrix(keys, head, candidates), r = matrix(keys, head, reference);
  for (MatrixXd* x : {&k, &r})
    for (Index t = 0; t < x->rows(); ++t)
      if (x->row(t).norm() > 0) x->row(t) /= x->row(t).norm();
  const RowVectorXd mean = r.colwise().mean(), square = r.cwiseAbs2().colwise().mean();
  const RowVectorXd variance = (r.rowwise() - mean).cwiseAbs2().colwise().mean();
  const Eigen::Array<bool, 1, Eigen::Dynamic> varies = variance.array() > 1e-6 * square.array();
  const double usual_variance = varies.any() ? varies.select(variance.array(), 0).sum() / static_cast<double>(varies.count()) : 0;
  VectorXd sum = VectorXd::Zero(k.rows());
  double mean_square = 0;  // of the reference
  for (Index c = 0; c < k.cols(); ++c) {
    if (!varies(c)) continue;
    const double by = variance(c) + ridge * usual_variance;
    sum += (k.col(c).array() - mean(c)).square().matrix() / by;
    mean_square += variance(c) / by;
  }
  if (mean_square > 0) sum /= mean_square;
  return list(sum.cwiseSqrt());
}

std::vector<double> distinct_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference,
                                    std::size_t bits) {
  const auto odd = [](std::uint64_t seed) {
    std::uint64_t z = seed + 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return ((z ^ z >> 31) & 1) == 1;
  };
  MatrixXd u = matrix(keys, head, {candidates.begin, reference.end}), r = matrix(keys, head, reference);
  for (MatrixXd* x : {&u, &r})
    for (Index t = 0; t < x->rows(); ++t)
      if (x->row(t).norm() > 0) x->row(t) /= x->row(t).norm();
  const RowVectorXd mean = r.colwise().mean(), square = r.cwiseAbs2().colwise().mean();
  const RowVectorXd variance = (r.rowwise() - mean).cwiseAbs2().colwise().mean();
  MatrixXd planes = MatrixXd::Zero(u.cols(), static_cast<Index>(bits));
  for (Index c = 0; c < u.cols(); ++c)
    for (Index b = 0; b < planes.cols() && variance(c) > 1e-6 * square(c); ++b)
      planes(c, b) =
          (odd((static_cast<std::uint64_t>(b) << 32) + static_cast<std::uint64_t>(c)) ? 1 : -1) / std::sqrt(variance(c));
  const MatrixXd sides = (u.rowwise() - mean) * planes;
  std::vector<double> out;
  for (Index t = 0; t < static_cast<Index>(candidates.end - candidates.begin); ++t) {
    double score = 0.5 * static_cast<double>(t) / static_cast<double>(u.rows());
    for (Index later = t + 1; later < u.rows(); ++later)
      if (((sides.row(t).array() > 0) == (sides.row(later).array() > 0)).all()) score -= 1;
    out.push_back(score);
  }
  return out;
}

std::vector<double> redundancy_scores(const cube& keys, std::size_t head, row_range candidates, row_range all, double similar) {
  MatrixXd u = matrix(keys, head, all);
  for (Index t = 0; t < u.rows(); ++t)
    if (u.row(t).norm() > 0) u.row(t) /= u.row(t).norm();
  MatrixXd cosines = u * u.transpose();
  cosines.diagonal().setZero();
  for (Index i = 0; i < cosines.rows(); ++i) {
    for (Index j = cosines.cols() - 1; j >= 0; --j) {
      if (i == j || !(cosines(i, j) > similar)) continue;
      cosines(i, j) = 0;
      break;
    }
  }
  const auto first = static_cast<Index>(candidates.begin - all.begin);
  const auto n = static_cast<Index>(candidates.end - candidates.begin);
  return list(-cosines.colwise().mean().segment(first, n).transpose());
}

std::vector<double> leverage_scores(const cube& keys, std::size_t head, row_range candidates, row_range reference,
                                    double epsilon) {
  MatrixXd r = matrix(keys, head, reference);
  const RowVectorXd centre = r.colwise().mean();
  r.rowwise() -= centre;
  const MatrixXd x = matrix(keys, head, candidates).rowwise() - centre;
  const MatrixXd gram = r.transpose() * r + epsilon * MatrixXd::Identity(r.cols(), r.cols());
  const MatrixXd solved = gram.llt().solve(x.transpose());
  return list(x.cwiseProduct(solved.transpose()).rowwise().sum());
}

std::vector<double> attention_weights(const cube& queries, const cube& keys, std::size_t query_head, std::size_t i) {
  const std::size_t head = query_head / (queries.heads / keys.heads);
  const std::size_t visible = keys.tokens - queries.tokens + i + 1;
  const MatrixXd q = matrix(queries, query_head, {i, i + 1});
  const VectorXd logits = matrix(keys, head, {0, visible}) * q.transpose() / std::sqrt(static_cast<double>(keys.channels));
  std::vector<double> out = list(softmax(logits));
  out.resize(keys.tokens);
  return out;
}

std::vector<double> average_pool(const std::vector<double>& x, std::size_t kernel) {
  std::vector<double> out(x.size());
  for (std::size_t t = 0; t < x.size(); ++t) {
    for (std::size_t j = 0; j < kernel; ++j) {
      const std::size_t shifted = t + j;  // by kernel / 2, so that it is never negative
      if (shifted >= kernel / 2 && shifted - kernel / 2 < x.size()) out[t] += x[shifted - kernel / 2];
    }
    out[t] /= static_cast<double>(kernel);
  }
  return out;
}

std::vector<double> snapkv_scores(const cube& queries, const cube& keys, std::size_t head, row_range candidates,
                                  std::size_t window, std::size_t kernel) {
  const VectorXd mean = group_mean(queries.heads, keys.heads, head, [&](std::size_t query_head) {
    VectorXd sum = VectorXd::Zero(index(candidates.size()));
    for (std::size_t i = queries.tokens - window; i < queries.tokens; ++i)
      sum += weights_on(queries, keys, query_head, i, candidates);
    const std::vector<double> pooled = average_pool(list(sum / static_cast<double>(window)), kernel);
    return VectorXd(Eigen::Map<const VectorXd>(pooled.data(), index(pooled.size())));
  });
  return list(mean);
}

std::vector<double> h2o_scores(const cube& queries, const cube& keys, std::size_t head, row_range candidates, bool mean) {
  std::vector<double> out = list(group_mean(queries.heads, keys.heads, head, [&](std::size_t query_head) {
    VectorXd sum = VectorXd::Zero(index(candidates.size()));
    for (std::size_t i = 0; i < queries.tokens; ++i) sum += weights_on(queries, keys, query_head, i, candidates);
    return sum;
  }));
  for (std::size_t i = 0; mean && i < out.size(); ++i)
    out[i] /= static_cast<double>(std::min(queries.tokens, keys.tokens - (candidates.begin + i)));
  return out;
}

std::vector<double> tova_scores(const cube& queries, const cube& keys, row_range candidates) {
  return list(group_mean(queries.heads, 1, 0, [&](std::size_t query_head) {
    return weights_on(queries, keys, query_head, queries.tokens - 1, candidates);
  }));
}

query_statistics expected_queries(const cube& queries, const expected_query_options& o) {
  const Index channels = index(queries.channels), half = channels / 2;
  MatrixXd rotation = MatrixXd::Zero(channels, channels);
  for (std::size_t position = o.seen; position < o.seen + o.future; ++position)
    for (Index i = 0; i < half; ++i) {
      const double frequency = std::pow(o.base, -2.0 * static_cast<double>(i) / static_cast<double>(channels));
      const double angle = static_cast<double>(position) * frequency;
      rotation(i, i) += std::cos(angle), rotation(i, i + half) -= std::sin(angle);
      rotation(i + half, i) += std::sin(angle), rotation(i + half, i + half) += std::cos(angle);
    }
  rotation /= static_cast<double>(o.future);

  query_statistics out{queries.heads, queries.channels, {}, {}};
  for (std::size_t h = 0; h < queries.heads; ++h) {
    MatrixXd q = matrix(queries, h, {o.sink, queries.tokens});
    const RowVectorXd mean = q.colwise().mean();
    const VectorXd moved = rotation * mean.transpose();
    out.mean.insert(out.mean.end(), moved.begin(), moved.end());
    if (!o.covariance) continue;
    q.rowwise() -= mean;
    const row_major s = rotation * (q.transpose() * q / static_cast<double>(q.rows())) * rotation.transpose();
    out.covariance.insert(out.covariance.end(), s.data(), s.data() + s.size());
  }
  return out;
}

std::vector<double> expected_attention_scores(const query_statistics& queries, const cube& keys, const cube& values,
                                              std::size_t head, row_range candidates, bool value_norm) {
  const MatrixXd k = matrix(keys, head, candidates);
  const Index channels = k.cols();
  const double d = static_cast<double>(channels);
  VectorXd out = group_mean(queries.heads, keys.heads, head, [&](std::size_t query_head) {
    const Eigen::Map<const VectorXd> mean(queries.mean.data() + query_head * queries.channels, channels);
    VectorXd logits = k * mean / std::sqrt(d);
    if (!queries.covariance.empty()) {
      const Eigen::Map<const row_major> s(queries.covariance.data() + query_head * queries.channels * queries.channels, channels,
                                          channels);
      logits += (k * s).cwiseProduct(k).rowwise().sum() / (2 * d);
    }
    return softmax(logits);
  });
  if (value_norm) out.array() *= matrix(values, head, candidates).rowwise().norm().array();
  return list(out);
}

std::vector<std::size_t> top_k(const std::vector<double>& scores, std::size_t k) {
  std::vector<std::size_t> out = by_score(scores);
  out.resize(k);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::vector<bool>> adakv_mask(const std::vector<std::vector<double>>& scores, std::size_t k, double alpha) {
  const std::size_t heads = scores.size(), rows = scores.at(0).size();
  const auto own = static_cast<std::size_t>(static_cast<double>(k) * alpha);
  std::vector<std::vector<bool>> out(heads, std::vector<bool>(rows));
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t : top_k(scores[h], own)) out[h][t] = true;

  std::vector<double> all;
  for (const std::vector<double>& s : scores) all.insert(all.end(), s.begin(), s.end());
  std::size_t left = heads * k - heads * own;
  for (std::size_t i : by_score(all)) {
    if (left == 0) break;
    if (out[i / rows][i % rows]) continue;
    out[i / rows][i % rows] = true, --left;
  }
  return out;
}

std::vector<std::size_t> chunk_rows(const std::vector<std::vector<double>>& scores, std::size_t length, std::size_t budget) {
  std::vector<double> sums(scores.at(0).size());
  for (const std::vector<double>& s : scores)
    for (std::size_t t = 0; t < sums.size(); ++t) sums[t] += s[t];
  std::vector<std::vector<double>> chunks;
  std::vector<double> means;
  for (std::size_t begin = 0; begin < sums.size(); begin += length) {
    const std::size_t end = std::min(begin + length, sums.size());
    chunks.emplace_back(sums.begin() + index(begin), sums.begin() + index(end));
    means.push_back(std::accumulate(chunks.back().begin(), chunks.back().end(), 0.0) / static_cast<double>(end - begin));
  }
  std::vector<std::size_t> out;
  for (std::size_t c : by_score(means)) {
    const std::size_t taken = std::min(chunks[c].size(), budget - out.size());
    for (std::size_t t : top_k(chunks[c], taken)) out.push_back(c * length + t);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<double> rank_shares(const std::vector<double>& scores) {
  std::vector<double> out(scores.size());
  const std::vector<std::size_t> order = by_score(scores);
  for (std::size_t i = 0; i < order.size(); ++i)
    out[order[i]] = static_cast<double>(order.size() - 1 - i) / static_cast<double>(order.size());
  return out;
}

std::vector<double> rank_fusion(const std::vector<std::vector<double>>& scorers, const std::vector<double>& weights) {
  std::vector<double> out(scorers.at(0).size());
  for (std::size_t s = 0; s < scorers.size(); ++s) {
    const std::vector<double> shares = rank_shares(scorers[s]);
    for (std::size_t t = 0; t < out.size(); ++t) out[t] += weights[s] * shares[t];
  }
  return out;
}

}  // namespace support
