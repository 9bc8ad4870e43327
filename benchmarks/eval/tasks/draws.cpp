// Seeds, and the random things that texts are made of.
#include "tasks/draws.hpp"

#include <algorithm>
#include <numeric>

namespace eval {
namespace {

// Neighbouring samples get unlike seeds.
std::uint64_t mix(std::uint64_t hash, std::string_view text) {
  for (const char c : text) hash = split_mix(hash ^ static_cast<unsigned char>(c));
  return split_mix(hash ^ 0x100U);  // the end: no byte, so that ("ab", "c") and ("a", "bc") part
}

}  // namespace

std::uint64_t split_mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27U)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31U);
}

draws::draws(std::uint64_t seed, std::string_view task, std::size_t sample, std::string_view purpose)
    : generator_(mix(split_mix(mix(split_mix(seed), task) ^ sample), purpose)) {}

std::vector<double> draws::fractions(std::size_t count) {
  std::vector<double> drawn(count);
  for (double& x : drawn) x = fraction();
  std::ranges::sort(drawn);
  return drawn;
}

std::string draws::letters(std::size_t count, char first) {
  std::string drawn;
  while (drawn.size() < count) drawn.push_back(static_cast<char>(first + static_cast<char>(below(26))));
  return drawn;
}

std::string draws::number(std::size_t digits) {
  std::string drawn(1, static_cast<char>('1' + static_cast<char>(below(9))));
  while (drawn.size() < digits) drawn.push_back(static_cast<char>('0' + static_cast<char>(below(10))));
  return drawn;
}

std::string draws::uuid() {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string drawn = "xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx";
  for (char& c : drawn) {
    if (c == 'x') c = digits[below(16)];
    if (c == 'y') c = digits[8 + below(4)];  // RFC 9562: variant 10
  }
  return drawn;
}

std::size_t draw_in_turn(std::uint64_t seed, std::string_view task, std::size_t sample, std::string_view purpose,
                         std::size_t count) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  draws(seed, task, sample / count, purpose).shuffle(order);
  return order[sample % count];
}

}  // namespace eval
