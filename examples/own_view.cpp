// A view of one's own: a ring buffer. Anything that answers the six questions of lagkv::kv_tensor will do.
#include <cstdio>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

// f32 [heads, slots, channels]; token t lies in slot (first + t) % slots.
struct ring {
  float* data = nullptr;
  std::size_t head_count = 0, slots = 0, channel_count = 0, first = 0;

  lagkv::dtype type() const { return lagkv::dtype::f32; }
  std::size_t heads() const { return head_count; }
  std::size_t channels() const { return channel_count; }
  std::size_t capacity() const { return slots; }

  lagkv::tile at(std::size_t head, lagkv::token_range tokens) const {  // a run ends where the ring does
    const std::size_t slot = (first + tokens.begin) % slots;
    const std::size_t run = tokens.size() < slots - slot ? tokens.size() : slots - slot;
    return {reinterpret_cast<std::byte*>(data + (head * slots + slot) * channel_count), run,
            static_cast<std::ptrdiff_t>(channel_count), 1};
  }

  lagkv::status check(std::size_t) const {
    if (first < slots) return {};
    return lagkv::error{"first=" + std::to_string(first) + ": must be below slots=" + std::to_string(slots)};
  }
};
static_assert(lagkv::kv_tensor<ring>);

int main() {
  constexpr std::size_t heads = 2, slots = 100, channels = 4, tokens = 90;
  const lagkv::policy policy = *lagkv::make_lagkv({.sink = 4, .lag = 16, .ratio = 0.25});
  lagkv::workspace workspace;

  // The same tokens at two places of the ring: at 0 they lie in one piece, at 60 they go round.
  std::vector<float> left[2];
  for (std::size_t first : {0U, 60U}) {
    std::vector<float> k(heads * slots * channels), v(k.size());
    const ring keys{k.data(), heads, slots, channels, first}, values{v.data(), heads, slots, channels, first};
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t t = 0; t < tokens; ++t)
        for (std::size_t c = 0; c < channels; ++c) {
          const std::size_t i = (h * slots + (first + t) % slots) * channels + c;
          k[i] = static_cast<float>((t * 29 + c * 13 + h * 5) * (t + 3) % 97);
          v[i] = static_cast<float>((t + 1) * (c + 2) * (h + 7) % 89);
        }
    const lagkv::layer layer{keys, values, tokens};
    if (const lagkv::status s = check(policy, layer); !s) return std::printf("%s\n", s.message().c_str()), 1;
    lagkv::cursor cursor;
    const std::size_t rows = lagkv::step(policy, layer, cursor, workspace);
    const std::size_t last = (first + rows - 1) % slots;
    std::printf("first slot %2zu: %zu tokens before, %zu after, the last in slot %zu\n", first, tokens, rows, last);
    std::vector<float>& out = left[first == 0 ? 0 : 1];
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t t = 0; t < rows; ++t) {
        const auto* row = reinterpret_cast<const float*>(keys.at(h, {t, t + 1}).data);
        out.insert(out.end(), row, row + channels);
      }
  }
  return left[0] == left[1] && left[0].size() == heads * (4 + 4 * 4 + 16 + 6) * channels ? 0 : 1;
}
