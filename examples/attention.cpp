// Policies that look at attention, in an engine whose attention kernel keeps its weights to itself: the engine hands over
// queries, and an array of its own where lagkv keeps the attention that each row has received (H2O). Decoding in a bounded
// cache, with tokens that must never go.
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

namespace {

constexpr std::size_t heads = 2, query_heads = 4, channels = 16, capacity = 160;

/// A layer of the engine: f32, [heads][capacity][channels], with the queries of its last tokens.
struct engine {
  std::vector<float> k = std::vector<float>(heads * capacity * channels), v = k;
  std::vector<float> queries;                                           // [tokens of the last batch][query heads][channels]
  std::vector<float> attention = std::vector<float>(heads * capacity);  // lagkv's, in the engine's memory
  std::vector<std::uint32_t> positions = std::vector<std::uint32_t>(heads * capacity);
  std::size_t tokens = 0, seen = 0, batch = 0;
  std::mt19937 random{1};

  /// What a forward pass leaves behind: new keys and values in the cache, and its queries.
  void forward(std::size_t n) {
    std::normal_distribution<float> normal;
    batch = n;
    queries.resize(n * query_heads * channels);
    for (float& x : queries) x = normal(random);
    for (std::size_t t = 0; t < n; ++t, ++tokens, ++seen)
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t row = h * capacity + tokens;
        for (std::size_t c = 0; c < channels; ++c) k[row * channels + c] = normal(random), v[row * channels + c] = normal(random);
        attention[row] = 0;
        positions[row] = static_cast<std::uint32_t>(seen);
      }
  }
};

/// What lagkv is shown of it, beside keys and values.
lagkv::extras beside(engine& e, std::span<const std::uint32_t> protect) {
  lagkv::extras x;
  x.queries = lagkv::strided<float>(e.queries.data(), {query_heads, channels},
                                    {.head = channels, .token = query_heads * channels}, e.batch);
  x.accumulated_attention = {e.attention.data(), capacity};
  x.positions = {e.positions.data(), capacity};
  x.protect = protect;
  return x;
}

lagkv::layer view(engine& e, const lagkv::extras& x) {
  const lagkv::strides rows{.head = capacity * channels, .token = channels};
  return {lagkv::strided<float>(e.k.data(), {heads, channels}, rows, capacity),
          lagkv::strided<float>(e.v.data(), {heads, channels}, rows, capacity), e.tokens, &x};
}

bool run(const std::string& text) {
  const auto policy = lagkv::parse(text);
  if (!policy) return std::printf("%s\n", policy.message().c_str()), false;
  const std::vector<std::uint32_t> protect{30, 31, 32};  // the system prompt's last words, say
  engine e;
  lagkv::cursor cursor;
  lagkv::workspace workspace;
  // A policy says what it needs as data: ask before the run, not in it.
  lagkv::layer bare = view(e, {});
  bare.extra = nullptr;
  std::printf("%s\n  without queries: %s\n", text.c_str(), check(*policy, bare).message().c_str());

  const auto forward_and_compress = [&](std::size_t n) {
    e.forward(n);
    const lagkv::extras x = beside(e, protect);
    const lagkv::layer l = view(e, x);
    if (const lagkv::status ok = check(*policy, l); !ok) return std::printf("  %s\n", ok.message().c_str()), false;
    lagkv::accumulate(*policy, l, cursor, n, workspace);  // before compress(), with the queries of the new tokens
    e.tokens = lagkv::compress(*policy, l, cursor, workspace);
    return true;
  };
  if (!forward_and_compress(120)) return false;
  const std::size_t after_prompt = e.tokens;
  for (int i = 0; i < 300; ++i)
    if (!forward_and_compress(1)) return false;

  bool protected_stay = true;
  for (std::size_t h = 0; h < heads; ++h)
    for (std::uint32_t p : protect) {
      const std::uint32_t* first = e.positions.data() + h * capacity;
      protected_stay = protected_stay && std::binary_search(first, first + e.tokens, p);
    }
  std::printf("  prompt of 120: %zu tokens stay; after 300 more: %zu; the protected ones are %s\n", after_prompt, e.tokens,
              protected_stay ? "there" : "gone");
  return protected_stay && e.tokens <= 64;
}

}  // namespace

int main() {
  const bool snapkv = run("snapkv:window=8,kernel=3,capacity=64"), h2o = run("h2o:capacity=64"), tova = run("tova:capacity=64");
  return snapkv && h2o && tova ? 0 : 1;
}
