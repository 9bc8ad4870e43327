// An engine whose cache is f32, [layer][token][head][channel], and which compresses after every token: many layers, one call.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include <lagkv/lagkv.hpp>

namespace {

// The engine's own numbers, of the engine's own types.
constexpr int layers = 12, heads = 4, channels = 32, capacity = 512;

struct engine {
  std::vector<float> keys = std::vector<float>(std::size_t{layers} * capacity * heads * channels), values = keys;
  std::size_t tokens = 0;  // rows in use, the same in all layers
  std::mt19937 random{7};

  /// A forward pass of one token: its keys and values become row `tokens`. `position` is for RoPE.
  void forward(std::size_t /*position*/) {
    std::normal_distribution<float> normal;
    for (int l = 0; l < layers; ++l)
      for (int i = 0; i < heads * channels; ++i) {
        const std::size_t at = (std::size_t(l) * capacity + tokens) * heads * channels + std::size_t(i);
        keys[at] = normal(random), values[at] = normal(random);
      }
    ++tokens;
  }

  lagkv::layer layer(int l) {
    const lagkv::shape shape{heads, channels};
    const lagkv::strides strides{.head = channels, .token = heads * channels};
    const std::size_t first = std::size_t(l) * capacity * heads * channels;
    return {lagkv::strided<float>(keys.data() + first, shape, strides, capacity),
            lagkv::strided<float>(values.data() + first, shape, strides, capacity), tokens};
  }
};

int fail(const std::string& why) { return std::fprintf(stderr, "%s\n", why.c_str()), 1; }

}  // namespace

int main() {
  const auto policy = lagkv::parse("key_diff:capacity=256,every=32");
  if (!policy) return fail(policy.message());
  engine e;
  if (const auto usable = check(*policy, e.layer(0)); !usable) return fail(usable.message());
  if (const std::size_t most = lagkv::peak_rows(*policy, 1, 2000); most > capacity)
    return fail("the cache must have room for " + std::to_string(most) + " tokens");

  lagkv::workspace workspace;
  std::vector<lagkv::cursor> cursors(layers);
  std::vector<lagkv::layer> views(layers);
  std::size_t most = 0, calls_that_dropped = 0;
  for (std::size_t token = 0; token < 2000; ++token) {
    e.forward(cursors[0].seen());  // compress() is called after each token, so seen() is its position
    most = e.tokens > most ? e.tokens : most;
    for (int l = 0; l < layers; ++l) views[std::size_t(l)] = e.layer(l);
    // All layers or none: they share e.tokens.
    if (const auto done = lagkv::compress(*policy, views, cursors, workspace); !done) return fail(done.message());
    calls_that_dropped += cursors[0].tokens < e.tokens ? 1U : 0U;
    e.tokens = cursors[0].tokens;
  }
  std::printf("2000 tokens seen, %zu rows in use, at most %zu; %zu of 2000 calls dropped something\n", e.tokens, most,
              calls_that_dropped);
  return cursors[0].seen() == 2000 && most == 288 && calls_that_dropped == 54 ? 0 : 1;
}
