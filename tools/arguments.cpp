#include "arguments.hpp"

#include <algorithm>
#include <charconv>
#include <string>
#include <system_error>

namespace tool {

namespace {

bool number(std::string_view text, std::size_t& n) {
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), n);
  return failure == std::errc{} && end == text.data() + text.size();
}

std::string_view take(std::string_view& list, bool& more) {
  const std::size_t comma = list.find(',');
  const std::string_view item = list.substr(0, comma);
  more = comma != std::string_view::npos;
  if (more) list.remove_prefix(comma + 1);
  return item;
}

}  // namespace

lagkv::result<std::vector<std::size_t>> parse_steps(std::string_view text, std::size_t tokens) {
  std::vector<std::size_t> steps;
  std::size_t sum = 0;
  for (bool more = true; more;) {
    const std::string_view item = take(text, more);
    std::size_t n = 0, times = 1;
    const std::size_t x = item.find('x');
    const bool fine = number(item.substr(0, x), n) && (x == std::string_view::npos || number(item.substr(x + 1), times));
    if (!fine || n == 0 || times == 0)
      return lagkv::error{"steps: '" + std::string(item) + "': must be a whole number, 1 or more, or NxTIMES"};
    if (n > tokens || times > tokens || n * times > tokens - sum)
      return lagkv::error{"steps: add up to more than the " + std::to_string(tokens) + " tokens of the arrays"};
    steps.insert(steps.end(), times, n);
    sum += n * times;
  }
  if (sum != tokens)
    return lagkv::error{"steps: add up to " + std::to_string(sum) + ": must be the " + std::to_string(tokens) +
                        " tokens of the arrays"};
  return steps;
}

lagkv::result<std::vector<std::uint32_t>> parse_positions(std::string_view text, std::size_t tokens) {
  std::vector<std::uint32_t> positions;
  for (bool more = true; more;) {
    const std::string_view item = take(text, more);
    const std::size_t dash = item.find('-');
    std::size_t first = 0, last = 0;
    const bool fine =
        number(item.substr(0, dash), first) && number(item.substr(dash == std::string_view::npos ? 0 : dash + 1), last);
    if (!fine || last < first) return lagkv::error{"protect: '" + std::string(item) + "': must be positions such as 3,17,40-63"};
    if (last >= tokens)
      return lagkv::error{"protect: '" + std::string(item) + "': must be below the " + std::to_string(tokens) +
                          " tokens of the arrays"};
    for (std::size_t p = first; p <= last; ++p) positions.push_back(static_cast<std::uint32_t>(p));
  }
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

lagkv::result<layer_of_model> parse_layer(std::string_view text) {
  layer_of_model l;
  const std::size_t slash = text.find('/');
  const bool fine =
      slash != std::string_view::npos && number(text.substr(0, slash), l.index) && number(text.substr(slash + 1), l.count);
  if (!fine || l.index >= l.count)
    return lagkv::error{"layer=" + std::string(text) + ": must be I/N, I from 0 to N - 1, such as 2/30"};
  return l;
}

lagkv::result<lagkv::rope::pairing> parse_pairs(std::string_view text) {
  if (text == "halves") return lagkv::rope::pairing::halves;
  if (text == "neighbours") return lagkv::rope::pairing::neighbours;
  return lagkv::error{"rope-pairs=" + std::string(text) + ": must be halves or neighbours"};
}

lagkv::result<lagkv::simd::target> parse_target(std::string_view text) {
  using lagkv::simd::target;
  std::string here;
  for (target t : lagkv::simd::all_targets) {
    if (!lagkv::simd::supported(t)) continue;
    if (text == lagkv::simd::name(t)) return t;
    here += (here.empty() ? "" : ", ") + std::string(lagkv::simd::name(t));
  }
  return lagkv::error{"target=" + std::string(text) + ": must be one of " + here + " on this machine"};
}

}  // namespace tool
