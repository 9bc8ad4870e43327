// The heads of a layer, and the layers of a model, shared among the host's own threads.
#include <cstdio>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "thread_pool.hpp"

namespace {

constexpr std::size_t layers = 4, heads = 8, tokens = 2000, channels = 64;

/// Keys and values of one layer, [heads, tokens, channels].
struct cache {
  std::vector<float> keys = std::vector<float>(heads * tokens * channels), values = keys;

  explicit cache(std::size_t seed) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = static_cast<float>((i + seed) * 2654435761U % 1000) / 1000.0F;
      values[i] = static_cast<float>((i + seed) * 40503U % 1000) / 1000.0F;
    }
  }
  lagkv::layer view() {
    const lagkv::strides s{tokens * channels, channels};
    return {lagkv::strided<float>(keys.data(), {heads, channels}, s, tokens),
            lagkv::strided<float>(values.data(), {heads, channels}, s, tokens), tokens};
  }
};

}  // namespace

int main() {
  const lagkv::policy policy = *lagkv::parse("lagkv:sink=16,lag=128,ratio=0.25");
  const thread_pool pool(2);                              // any parallel_for: your engine has one
  std::vector<lagkv::workspace> workers(pool.workers());  // scratch, one a thread

  // After a prefill: all layers at once, a layer a task. All or nothing.
  std::vector<cache> model;
  std::vector<lagkv::layer> views;
  for (std::size_t l = 0; l < layers; ++l) model.emplace_back(l);
  for (cache& c : model) views.push_back(c.view());
  if (const lagkv::status ok = check(policy, views[0]); !ok) return std::fprintf(stderr, "%s\n", ok.message().c_str()), 1;
  std::vector<lagkv::cursor> cursors(layers);
  if (const lagkv::status done = lagkv::compress(policy, views, cursors, workers, pool); !done)
    return std::fprintf(stderr, "%s\n", done.message().c_str()), 1;

  // Or layer by layer, a head a task: what one thread gives, to the byte.
  bool same = true;
  for (std::size_t l = 0; l < layers; ++l) {
    cache shared(l), alone(l);
    lagkv::cursor a, b;
    lagkv::compress(policy, shared.view(), a, workers, pool);
    lagkv::compress(policy, alone.view(), b, workers[0]);
    same = same && a == b && a == cursors[l] && shared.keys == alone.keys && shared.values == alone.values &&
           model[l].keys == alone.keys && model[l].values == alone.values;
  }
  std::printf("%zu layers of %zu tokens, %zu left; %s\n", layers, tokens, cursors[0].tokens,
              same ? "threads give what one gives" : "threads differ");
  return same ? 0 : 1;
}
