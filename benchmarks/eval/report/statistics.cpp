// The bootstrap: one loop for a task and for several.
#include "statistics.hpp"

#include <algorithm>
#include <cstdint>
#include <random>

namespace eval {
namespace {

constexpr std::size_t resamples = 2000;
constexpr std::size_t outside = resamples / 40;  // 2.5 % on each side
constexpr std::uint64_t seed = 42;

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double resampled_mean(std::span<const double> values, std::mt19937_64& random) {
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[random() % values.size()];
  return sum / static_cast<double>(values.size());
}

estimate bootstrap(std::span<const std::span<const double>> tasks) {
  estimate result;
  if (tasks.empty() || std::ranges::any_of(tasks, [](const auto& values) { return values.empty(); })) return result;
  result.samples = std::ranges::min(tasks, {}, [](const auto& values) { return values.size(); }).size();

  const auto count = static_cast<double>(tasks.size());
  double sum = 0;
  for (const auto& values : tasks) sum += mean_of(values);
  result.mean = sum / count;

  std::mt19937_64 random(seed);
  std::vector<double> means(resamples);
  for (double& mean : means) {
    sum = 0;
    for (const auto& values : tasks) sum += resampled_mean(values, random);
    mean = sum / count;
  }
  std::ranges::sort(means);
  result.low = means[outside];
  result.high = means[resamples - 1 - outside];
  return result;
}

}  // namespace

estimate estimate_mean(std::span<const double> values) { return bootstrap({&values, 1}); }

estimate estimate_macro_mean(std::span<const std::vector<double>> tasks) {
  const std::vector<std::span<const double>> views(tasks.begin(), tasks.end());
  return bootstrap(views);
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace eval
