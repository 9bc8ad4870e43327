// Numbers of samples: means with bootstrap intervals, and medians.
#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <vector>

namespace eval {

/// A mean and its 95 % interval. Not a number where there is no sample.
struct estimate {
  double mean = std::numeric_limits<double>::quiet_NaN();
  double low = std::numeric_limits<double>::quiet_NaN();
  double high = std::numeric_limits<double>::quiet_NaN();
  std::size_t samples = 0;  ///< of a macro mean: those of the task that has fewest; from 2 on the interval says something
};

/// The mean of the values, and the percentile bootstrap's interval: of the means of 2,000 resamples, what lies between the 50
/// lowest and the 50 highest. Its generator is std::mt19937_64 with a fixed seed, taken modulo the count: the same values in
/// the same order give the same interval everywhere.
[[nodiscard]] estimate estimate_mean(std::span<const double> values);

/// The mean of the tasks' means, each task counted once however many samples it has; resampled within each task. Not a number
/// where there is no task, or one without samples.
[[nodiscard]] estimate estimate_macro_mean(std::span<const std::vector<double>> tasks);

/// Not a number where there is no value; of an even count, the middle of the two in the middle.
[[nodiscard]] double median(std::vector<double> values);

}  // namespace eval
