// A cache in Eigen's tensors, compressed where it lies: f16, [tokens, heads, channels], row-major.
#include <cstdio>
#include <vector>

#include <lagkv/adapters/eigen.hpp>
#include <lagkv/lagkv.hpp>
#include <unsupported/Eigen/CXX11/Tensor>

int main() {
  constexpr Eigen::Index tokens = 300, heads = 2, channels = 8;
  using cache = Eigen::TensorMap<Eigen::Tensor<Eigen::half, 3, Eigen::RowMajor>>;
  std::vector<Eigen::half> key_memory(tokens * heads * channels), value_memory(key_memory.size());
  cache keys(key_memory.data(), tokens, heads, channels), values(value_memory.data(), tokens, heads, channels);
  for (Eigen::Index t = 0; t < tokens; ++t)
    for (Eigen::Index h = 0; h < heads; ++h)
      for (Eigen::Index c = 0; c < channels; ++c) {
        keys(t, h, c) = Eigen::half(static_cast<float>((t * 29 + c * 13 + h * 5) * (t + 3) % 97));
        values(t, h, c) = Eigen::half(c == 0 ? static_cast<float>(t) : 1.0F);  // channel 0 tells where a row came from
      }

  // The letters say which index is which: keys(t, h, c). A Map of a matrix is one head: view_of(map), or view_of(map, "ct").
  const lagkv::layer layer{lagkv::view_of(keys, "thc"), lagkv::view_of(values, "thc"), tokens};
  const lagkv::policy policy = *lagkv::parse("lagkv:sink=4,lag=64,ratio=0.25");
  if (const lagkv::status s = check(policy, layer); !s) return std::printf("%s\n", s.message().c_str()), 1;
  lagkv::workspace workspace;
  lagkv::cursor cursor;
  const auto rows = static_cast<Eigen::Index>(lagkv::compress(policy, layer, cursor, workspace));

  std::printf("%d tokens before, %d after; tokens of head 0 around the first partition's end:", int(tokens), int(rows));
  for (Eigen::Index t = 16; t < 24; ++t) std::printf(" %g", static_cast<double>(values(t, 0, 0)));
  std::printf("\n");
  bool ascending = true;  // survivors lie at the front, in their order
  for (Eigen::Index t = 1; t < rows; ++t)
    for (Eigen::Index h = 0; h < heads; ++h) ascending = ascending && values(t - 1, h, 0) < values(t, h, 0);
  const bool window = values(rows - 1, 1, 0) == Eigen::half(static_cast<float>(tokens - 1));
  return ascending && window && rows == 4 + 3 * 16 + 64 + 40 ? 0 : 1;
}
