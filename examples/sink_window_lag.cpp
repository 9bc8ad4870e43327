// Sinks, window and lag on a cache small enough to print: what stays after each step.
//   S sink   K survivor, no candidate again   . dropped   w window, no candidate yet
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

constexpr std::size_t heads = 2, channels = 8, total = 40, sink = 2, lag = 8;

int main() {
  // Partitions of 8 tokens keep their 3 best, scored by the range of the next partition.
  const auto policy = lagkv::parse("lagkv:sink=2,lag=8,ratio=0.4");
  if (!policy) return std::printf("%s\n", policy.message().c_str()), 1;

  std::vector<float> keys(heads * total * channels), values(keys.size());
  const lagkv::strides strides{.head = total * channels, .token = channels};
  lagkv::layer layer{lagkv::strided<float>(keys.data(), {heads, channels}, strides, total),
                     lagkv::strided<float>(values.data(), {heads, channels}, strides, total), 0};
  std::vector<std::uint32_t> positions(heads * total);  // of each row, carried along by the plan

  lagkv::cursor cursor;
  lagkv::workspace workspace;
  for (std::size_t n : {10U, 7U, 1U, 1U, 9U, 12U}) {
    const std::size_t before = layer.tokens;
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t row = before; row < before + n; ++row) {
        const std::size_t position = cursor.seen() + row - before;
        positions[h * total + row] = static_cast<std::uint32_t>(position);
        for (std::size_t c = 0; c < channels; ++c) {  // something that varies; a few tokens stand out
          const auto x = static_cast<float>(position * 31 + c * 17 + h * 7);
          const float loud = position % 11 == 5 + h ? 4.0F : 1.0F;
          keys[(h * total + row) * channels + c] = loud * std::sin(x * x);
          values[(h * total + row) * channels + c] = loud * std::cos(x * x);
        }
      }
    layer.tokens = before + n;
    layer.tokens = lagkv::compress(*policy, layer, cursor, workspace);
    std::printf("%2zu tokens appended, %2zu seen: %2zu rows stay\n", n, cursor.seen(), layer.tokens);
    for (std::size_t h = 0; h < heads; ++h) {
      std::uint32_t* p = positions.data() + h * total;
      lagkv::compact(p, h, lagkv::last_plan(workspace));
      std::string picture(cursor.seen(), '.');
      for (std::size_t row = 0; row < layer.tokens; ++row) {
        if (row > 0 && p[row] <= p[row - 1]) return std::printf("positions do not ascend\n"), 1;
        picture[p[row]] = row < sink ? 'S' : row < cursor.compressed ? 'K' : 'w';
      }
      std::printf("   head %zu  %s\n", h, picture.c_str());
    }
  }
  // Of 40 tokens: 2 sinks, 38 = 4 partitions and 6 more; 3 partitions are candidates and keep 3 each.
  return layer.tokens == sink + 3 * 3 + lag + 6 ? 0 : 1;
}
