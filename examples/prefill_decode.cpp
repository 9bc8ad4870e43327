// An engine's own cache: prefill in chunks, then decode. Positions go on, rows do not: 8,192 tokens pass through 2,304.
#include <cstdint>
#include <cstdio>
#include <vector>

#include <lagkv/lagkv.hpp>

// The engine's own types; lagkv owns none of this memory.
struct cache {
  std::uint16_t *k, *v;  // f16 [heads, capacity, channels]
  std::size_t heads, channels, capacity, tokens;
};

lagkv::layer view(const cache& c) {  // a view is a small value: build it where it is used
  using half = lagkv::strided<lagkv::f16>;
  const lagkv::shape shape{c.heads, c.channels};
  const lagkv::strides strides{.head = static_cast<std::ptrdiff_t>(c.capacity * c.channels),
                               .token = static_cast<std::ptrdiff_t>(c.channels)};
  return {half{c.k, shape, strides, c.capacity}, half{c.v, shape, strides, c.capacity}, c.tokens};
}

// Stands for the model: writes the rows of `n` tokens behind those in use. RoPE would turn them by `position`.
bool run_model(cache& c, std::size_t position, std::size_t n) {
  if (c.tokens + n > c.capacity) return false;
  for (std::size_t h = 0; h < c.heads; ++h)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < c.channels; ++i) {
        const std::size_t at = (h * c.capacity + c.tokens + t) * c.channels + i;
        const std::size_t x = (position + t + 1) * (2 * i + 3) * 2654435761U + h;
        c.k[at] = static_cast<std::uint16_t>(0x3400 + x % 0x0800), c.v[at] = static_cast<std::uint16_t>(0x3400 + x / 8 % 0x0800);
      }
  c.tokens += n;
  return true;
}

int main() {
  constexpr std::size_t heads = 4, channels = 64, capacity = 2304, prompt = 2048, total = 8192, chunk = 256;
  std::vector<std::uint16_t> k(heads * capacity * channels), v(k.size());
  cache c{k.data(), v.data(), heads, channels, capacity, 0};

  const auto policy = lagkv::parse("lagkv:sink=16,lag=128,ratio=0.25");
  if (!policy) return std::printf("%s\n", policy.message().c_str()), 1;
  if (const lagkv::status s = check(*policy, view(c)); !s) return std::printf("%s\n", s.message().c_str()), 1;

  lagkv::cursor cursor;
  lagkv::workspace workspace;
  std::size_t peak = 0, compressions = 0;
  while (cursor.seen() < total) {
    const std::size_t n = cursor.seen() < prompt ? chunk : 1;
    if (!run_model(c, cursor.seen(), n)) return std::printf("the cache is full\n"), 1;
    peak = peak < c.tokens ? c.tokens : peak;
    c.tokens = lagkv::compress(*policy, view(c), cursor, workspace);  // after attention: use, then compress
    if (!lagkv::last_plan(workspace).empty()) ++compressions;
    if (cursor.seen() % 1024 == 0)
      std::printf("%s: next position %4zu, rows in use %4zu, dropped %4zu\n", n == 1 ? "decode " : "prefill", cursor.seen(),
                  cursor.tokens, cursor.dropped);
  }
  std::printf("%zu compressions; at most %zu rows were in use at once\n", compressions, peak);

  // However the tokens came: what one compression of all of them would leave.
  const std::size_t candidates = (total - 16) / 128 - 1;
  const std::size_t expected = 16 + candidates * 32 + 128 + (total - 16) % 128;
  return c.tokens == expected && cursor.dropped == candidates * 96 && peak <= capacity ? 0 : 1;
}
