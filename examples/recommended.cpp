// The recommended policy in an engine of your own: several layers, keys that carry RoPE, a long prompt in chunks, then decoding
// in a cache of fixed size. What it needs beside keys and values: the rotary embedding, and positions, since survivors are
// candidates again. Key statistics tell it what is usual in the whole sequence, dropped tokens included.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include <lagkv/lagkv.hpp>

namespace {

constexpr std::size_t layers = 3, heads = 2, channels = 32, chunk = 512, prompt = 2000, answer = 200;
constexpr std::uint32_t needle = 700;  // four tokens like no others from here on
constexpr lagkv::rope rope{.base = 10000, .pairs = lagkv::rope::pairing::halves};

/// A layer of the engine: f32, [heads][capacity][channels], and what lagkv keeps beside it in the engine's memory.
struct memory {
  std::size_t capacity;
  std::vector<float> k = std::vector<float>(heads * capacity * channels), v = k;
  std::vector<double> statistics = std::vector<double>(heads * lagkv::key_statistics::size(channels));
  std::vector<std::uint32_t> positions = std::vector<std::uint32_t>(capacity);  // one for all heads: they keep the same tokens
  lagkv::extras beside{};

  explicit memory(std::size_t rows) : capacity(rows) {}

  lagkv::layer view(std::size_t tokens) {
    beside = {.key_statistics = {statistics.data()}, .positions = {positions.data(), 0}, .rope = &rope};
    const lagkv::strides rows{.head = static_cast<std::ptrdiff_t>(capacity * channels), .token = channels};
    return {lagkv::strided<float>(k.data(), {heads, channels}, rows, capacity),
            lagkv::strided<float>(v.data(), {heads, channels}, rows, capacity), tokens, &beside};
  }
};

/// What a forward pass leaves behind in a row: the key of one of a few words, turned by its position.
void write(memory& m, std::size_t row, std::uint32_t position, std::mt19937& random) {
  std::normal_distribution<float> noise(0, 0.2F);
  const bool unusual = position >= needle && position < needle + 4;
  std::mt19937 word(unusual ? position : position % 7);
  std::normal_distribution<float> of_word;
  for (std::size_t h = 0; h < heads; ++h) {
    float* key = m.k.data() + (h * m.capacity + row) * channels;
    float* value = m.v.data() + (h * m.capacity + row) * channels;
    for (std::size_t c = 0; c < channels; ++c) key[c] = of_word(word) + noise(random), value[c] = of_word(word) + noise(random);
    for (std::size_t j = 0; j < channels / 2; ++j) {
      const double angle = position * std::pow(rope.base, -2.0 * static_cast<double>(j) / channels);
      const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
      const float a = key[j], b = key[j + channels / 2];
      key[j] = a * cosine - b * sine, key[j + channels / 2] = a * sine + b * cosine;
    }
  }
  m.positions[row] = position;
}

}  // namespace

int main() {
  const auto policy = lagkv::parse("recommended:capacity=256,every=64");
  if (!policy) return std::fprintf(stderr, "%s\n", policy.message().c_str()), 1;
  const std::size_t capacity = lagkv::peak_rows(*policy, chunk, prompt + answer);
  std::vector<memory> model(layers, memory(capacity));
  const lagkv::status usable = check(*policy, model[0].view(capacity));
  if (!usable) return std::fprintf(stderr, "%s\n", usable.message().c_str()), 1;

  std::vector<lagkv::cursor> cursors(layers);
  lagkv::workspace workspace;
  std::mt19937 random{1};
  std::size_t tokens = 0;       // rows in use
  std::uint32_t positions = 0;  // tokens of the sequence
  const auto forward_and_compress = [&](std::size_t n) {
    std::vector<lagkv::layer> views;
    for (std::size_t l = 0; l < layers; ++l) {
      for (std::size_t i = 0; i < n; ++i) write(model[l], tokens + i, positions + static_cast<std::uint32_t>(i), random);
      views.push_back(model[l].view(tokens + n));
      lagkv::accumulate(*policy, views[l], cursors[l], n, workspace);  // the new keys, before any of them goes
    }
    positions += static_cast<std::uint32_t>(n);
    const lagkv::status done = lagkv::compress(*policy, views, cursors, workspace);
    if (!done) std::fprintf(stderr, "%s\n", done.message().c_str());
    tokens = cursors[0].tokens;
    return static_cast<bool>(done);
  };

  for (std::size_t read = 0; read < prompt; read += chunk)
    if (!forward_and_compress(std::min(chunk, prompt - read))) return 1;
  const std::size_t after_prompt = tokens;
  for (std::size_t i = 0; i < answer; ++i)
    if (!forward_and_compress(1)) return 1;

  std::size_t found = 0;
  for (const memory& m : model)
    found +=
        static_cast<std::size_t>(std::count_if(m.positions.begin(), m.positions.begin() + static_cast<std::ptrdiff_t>(tokens),
                                               [](std::uint32_t p) { return p >= needle && p < needle + 4; }));
  std::printf(
      "%zu tokens read in chunks of %zu: %zu rows stay of %zu; after %zu more: %zu; %zu of %zu unusual tokens are there\n",
      prompt, chunk, after_prompt, capacity, answer, tokens, found, 4 * layers);
  return found == 4 * layers && tokens < 256 + 64 ? 0 : 1;
}
