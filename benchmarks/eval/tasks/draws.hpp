// Random draws that are the same with every standard library: std::mt19937_64 and the remainder, no distributions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace eval {

/// The number that SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) draws in state x.
std::uint64_t split_mix(std::uint64_t x);

/// One stream of draws. A copy goes on from where the original stands.
class draws {
 public:
  /// The stream of that sample of that task. `purpose` parts several streams of one prompt: how much is drawn from one of them
  /// (the haystack, say) does not move the others.
  draws(std::uint64_t seed, std::string_view task, std::size_t sample, std::string_view purpose = {});

  /// 0 to n - 1; n > 0.
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(generator_() % n); }
  /// 0 <= x < 1.
  double fraction() { return static_cast<double>(generator_() >> 11) * 0x1p-53; }
  /// So many ascending fractions.
  std::vector<double> fractions(std::size_t count);
  /// So many of the 26 letters from `first` on ('a' or 'A').
  std::string letters(std::size_t count, char first);
  /// A decimal number of so many digits, the first of them not 0.
  std::string number(std::size_t digits);
  /// A version 4 UUID in lower case.
  std::string uuid();

  /// Fisher and Yates: every order is as likely as any other.
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t rest = values.size(); rest > 1; --rest) std::swap(values[rest - 1], values[below(rest)]);
  }

 private:
  std::mt19937_64 generator_;
};

/// Which of `count` things a sample is about: all come in a drawn order before one comes again, then in another order.
[[nodiscard]] std::size_t draw_in_turn(std::uint64_t seed, std::string_view task, std::size_t sample, std::string_view purpose,
                                       std::size_t count);

}  // namespace eval
