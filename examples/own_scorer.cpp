// Scorers of one's own: a function, and a struct of options. The budget says which tokens are candidates and how many stay;
// sinks and recent tokens never reach the scorer.
#include <cstdio>
#include <span>
#include <vector>

#include <lagkv/lagkv.hpp>

// A function: tokens with long value vectors matter.
void value_norm(const lagkv::layer& l, std::size_t head, lagkv::token_range candidates, std::span<float> out,
                lagkv::workspace& ws) {
  lagkv::for_each_row(l.values, head, candidates, ws, [&](std::size_t i, std::span<const float> row) {
    out[i] = 0;
    for (float x : row) out[i] += x * x;
  });
}

// A struct: the same, divided by the length of the key to the given power.
struct value_over_key {
  int power = 1;

  void operator()(const lagkv::layer& l, std::size_t head, lagkv::token_range candidates, std::span<float> out,
                  lagkv::workspace& ws) const {
    value_norm(l, head, candidates, out, ws);
    lagkv::for_each_row(l.keys, head, candidates, ws, [&](std::size_t i, std::span<const float> row) {
      float square = 1e-6F;
      for (float x : row) square += x * x;
      for (int p = 0; p < power; ++p) out[i] /= square;
    });
  }
};

int main() {
  constexpr std::size_t tokens = 64, channels = 8;
  const auto run = [](const char* name, lagkv::scorer score) {
    std::vector<float> k(tokens * channels), v(k.size());
    for (std::size_t i = 0; i < k.size(); ++i) {
      const std::size_t t = i / channels;
      v[i] = t % 10 == 7 ? 3.0F : 1.0F;  // long values at 7, 17, 27, ...
      k[i] = t % 4 == 3 ? 2.0F : 1.0F;   // long keys at 3, 7, 11, ...
    }
    const lagkv::strides strides{.head = tokens * channels, .token = channels};
    const lagkv::layer layer{lagkv::strided<float>(k.data(), {1, channels}, strides),
                             lagkv::strided<float>(v.data(), {1, channels}, strides), tokens};
    // 2 sinks and the last 16 tokens are safe; of those between, as many stay as fill 22 rows.
    lagkv::policy policy;
    policy.budget = {.sink = 2, .recent = 16, .keeps = lagkv::keep::capacity{.rows = 22}};
    policy.score = score;
    policy.needs.values = true;
    lagkv::workspace workspace;
    const lagkv::plan& plan = plan_eviction(policy, layer, {}, workspace);
    std::printf("%-16s keeps of tokens %zu..%zu:", name, plan.candidates.begin, plan.candidates.end - 1);
    for (std::uint32_t t : plan.of(0)) std::printf(" %u", t);
    std::printf("\n");
    return std::vector<std::uint32_t>(plan.of(0).begin(), plan.of(0).end());
  };
  const bool function = run("value_norm", value_norm) == std::vector<std::uint32_t>{7, 17, 27, 37};
  const bool options = run("value_over_key", value_over_key{.power = 2}) == std::vector<std::uint32_t>{2, 4, 17, 37};
  return function && options ? 0 : 1;
}
