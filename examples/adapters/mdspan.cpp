// A cache that an engine describes by mdspans: f32, [batch, tokens, heads, channels] with padded rows. Each sequence of the
// batch is compressed by itself, in place. Any mdspan will do: std's, the reference implementation's, cuda::std's.
#include <cstdio>
#include <vector>

#include <lagkv/adapters/mdspan.hpp>
#include <lagkv/lagkv.hpp>
#include LAGKV_MDSPAN_HEADER  // <mdspan>, where the standard library has it

namespace md = LAGKV_MDSPAN;  // std

int main() {
  constexpr int batch = 2, tokens = 300, heads = 2, channels = 6, padded = 8;
  using extents = md::dextents<int, 4>;
  using mapping = md::layout_stride::mapping<extents>;
  auto strides = mapping{}.strides();
  strides[0] = tokens * heads * padded, strides[1] = heads * padded, strides[2] = padded, strides[3] = 1;
  const mapping layout(extents(batch, tokens, heads, channels), strides);

  std::vector<float> key_memory(batch * tokens * heads * padded), value_memory(key_memory.size());
  const md::mdspan<float, extents, md::layout_stride> keys(key_memory.data(), layout), values(value_memory.data(), layout);
  const auto at = [&](auto& memory, int b, int t, int h, int c) -> float& {
    return memory[static_cast<std::size_t>(layout(b, t, h, c))];
  };
  for (int b = 0; b < batch; ++b)
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < heads; ++h)
        for (int c = 0; c < channels; ++c) {
          at(key_memory, b, t, h, c) = static_cast<float>((t * 29 + c * 13 + h * 5 + b) * (t + 3) % 97);
          at(value_memory, b, t, h, c) = c == 0 ? static_cast<float>(t) : 1.0F;  // channel 0 tells where a row came from
        }

  const lagkv::policy policy = *lagkv::parse("lagkv:sink=4,lag=64,ratio=0.25");
  lagkv::workspace workspace;
  const int in_use[batch] = {300, 200};  // sequences need not be of one length
  bool as_expected = true;
  for (int b = 0; b < batch; ++b) {
    // The letters say which index is which: keys[b, t, h, c]. A result, since b may be one that there is not.
    const auto sequence = static_cast<std::size_t>(b);
    const auto k = lagkv::view_of(keys, sequence, "bthc"), v = lagkv::view_of(values, sequence, "bthc");
    if (!k || !v) return std::printf("%s%s\n", k.message().c_str(), v.message().c_str()), 1;
    const lagkv::layer layer{*k, *v, static_cast<std::size_t>(in_use[b])};
    if (const lagkv::status s = check(policy, layer); !s) return std::printf("%s\n", s.message().c_str()), 1;
    lagkv::cursor cursor;
    const auto rows = static_cast<int>(lagkv::compress(policy, layer, cursor, workspace));
    std::printf("sequence %d: %d tokens before, %d after\n", b, in_use[b], rows);
    as_expected = as_expected && at(value_memory, b, rows - 1, 1, 0) == static_cast<float>(in_use[b] - 1);
    for (int t = 1; t < rows; ++t)  // survivors lie at the front, in their order
      as_expected = as_expected && at(value_memory, b, t - 1, 0, 0) < at(value_memory, b, t, 0, 0);
  }
  return as_expected && lagkv::view_of(keys, batch, "bthc").message() == "batch=2: must be below 2" ? 0 : 1;
}
