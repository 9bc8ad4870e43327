#include "oracle.hpp"

#include <Eigen/Core>
#include <limits>

namespace support {

namespace {

using rows = Eigen::Map<const Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

rows partition(const cube& x, std::size_t head, std::size_t begin, std::size_t lag) {
  return {x.row(head, begin), static_cast<Eigen::Index>(lag), static_cast<Eigen::Index>(x.channels)};
}

}  // namespace

std::vector<double> deviation_shares(const cube& x, std::size_t head, std::size_t begin, std::size_t partitions,
                                     const oracle_options& o) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> out;
  for (std::size_t p = 0; p < partitions; ++p, begin += o.lag) {
    const Eigen::ArrayXXd candidates = partition(x, head, begin, o.lag).cast<double>();
    const Eigen::ArrayXXd reference = partition(x, head, o.own ? begin : begin + o.lag, o.lag).cast<double>();
    const Eigen::ArrayXXd low = reference.isFinite().select(reference, infinity).colwise().minCoeff();
    const Eigen::ArrayXXd high = reference.isFinite().select(reference, -infinity).colwise().maxCoeff();
    const Eigen::Index channels = candidates.cols();

    Eigen::ArrayXd s(candidates.rows());
    for (Eigen::Index t = 0; t < candidates.rows(); ++t) {
      Eigen::ArrayXd z = Eigen::ArrayXd::Zero(channels);
      for (Eigen::Index c = 0; c < channels; ++c)
        if (high(0, c) > low(0, c)) z(c) = (candidates(t, c) - low(0, c)) / (high(0, c) - low(0, c));
      s(t) = channels > 1 ? std::sqrt((z - z.mean()).square().sum() / static_cast<double>(channels - 1)) : 0.0;
      if (!candidates.row(t).isFinite().all()) s(t) = -infinity;
    }
    const double top = s.maxCoeff();
    Eigen::ArrayXd share = (s - top).exp();
    for (Eigen::Index t = 0; t < s.size(); ++t)
      if (s(t) == -infinity) share(t) = 0;
    if (top > -infinity) share /= share.sum();
    out.insert(out.end(), share.begin(), share.end());
  }
  return out;
}

std::vector<double> lagkv_scores(const cube& keys, const cube& values, std::size_t head, std::size_t begin,
                                 std::size_t partitions, const oracle_options& o) {
  std::vector<double> out = deviation_shares(keys, head, begin, partitions, o);
  if (o.value_weight == 0) return out;
  const std::vector<double> second = deviation_shares(values, head, begin, partitions, o);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += o.value_weight * second[i];
  return out;
}

}  // namespace support
