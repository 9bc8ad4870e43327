// A quantised cache, as llama.cpp keeps it with -ctk q8_0 -ctv q4_0: rows are scored by the numbers they stand for, and move as
// the bytes they are.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <lagkv/lagkv.hpp>

constexpr std::size_t heads = 2, channels = 64, units = channels / 32, cells = 500;  // [cells, heads, units]: 32 channels a unit

int main() {
  std::vector<lagkv::q8_0> k(cells * heads * units);
  std::vector<lagkv::q4_0> v(k.size());
  for (std::size_t i = 0; i < k.size(); ++i) {  // as an engine's quantiser would leave them
    k[i].scale.bits = v[i].scale.bits = static_cast<std::uint16_t>(0x2000 + i * 37 % 0x400);  // f16 from 1/128 to 1/64
    for (std::size_t j = 0; j < 32; ++j) k[i].q[j] = static_cast<std::int8_t>((i * 31 + j * j * 7) % 127);
    for (std::size_t j = 0; j < 16; ++j) v[i].q[j] = static_cast<std::uint8_t>(i * 13 + j * 29);
  }
  const std::vector<lagkv::q8_0> k_before = k;
  const std::vector<lagkv::q4_0> v_before = v;

  const lagkv::strides strides{.head = units, .token = heads * units};  // in units
  const lagkv::layer layer{lagkv::strided<lagkv::q8_0>(k.data(), {heads, channels}, strides, cells),
                           lagkv::strided<lagkv::q4_0>(v.data(), {heads, channels}, strides, cells), cells};
  const lagkv::policy policy = *lagkv::make_lagkv({.sink = 4, .lag = 64, .ratio = 0.25});
  if (const lagkv::status ok = check(policy, layer); !ok) return std::printf("%s\n", ok.message().c_str()), 1;

  lagkv::cursor cursor;
  lagkv::workspace workspace;
  const std::size_t left = compress(policy, layer, cursor, workspace);
  const std::size_t bytes = heads * (layer.keys.row_bytes() + layer.values.row_bytes());  // a token, of this layer
  std::printf("%zu tokens of %zu bytes before, %zu after\n", cells, bytes, left);

  for (std::size_t h = 0; h < heads; ++h)  // every row is, to the byte, the one that the plan names
    for (std::size_t row = 0; row < left; ++row) {
      const std::size_t now = (row * heads + h) * units, then = (lagkv::last_plan(workspace).source(h, row) * heads + h) * units;
      if (std::memcmp(&k[now], &k_before[then], layer.keys.row_bytes()) != 0) return 1;
      if (std::memcmp(&v[now], &v_before[then], layer.values.row_bytes()) != 0) return 1;
    }
  return left == 4 + 6 * 16 + 64 + (cells - 4) % 64 ? 0 : 1;
}
