// lagkv-time POLICY KEYS.npy VALUES.npy REPEATS [THREADS [cold|warm]]: times compress() on the arrays, which lie out of the CPU's
// caches (cold) or as the copy that restores them leaves them (warm), and prints JSON. For compare_torch.py, which puts the same
// arrays through PyTorch.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <examples/thread_pool.hpp>
#include <lagkv/lagkv.hpp>

#include "memory.hpp"
#include "tools/npy.hpp"

namespace {

int complain(const std::string& message) {
  std::fprintf(stderr, "lagkv-time: %s\n", message.c_str());
  return 2;
}

void print(const char* name, const std::vector<double>& times) {
  std::printf(",\n \"%s\": [", name);
  for (std::size_t i = 0; i < times.size(); ++i) std::printf("%s%.9f", i == 0 ? "" : ", ", times[i]);
  std::printf("]");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return complain("usage: lagkv-time POLICY KEYS.npy VALUES.npy REPEATS [THREADS [cold|warm]]");
  const lagkv::result<lagkv::policy> policy = lagkv::parse(argv[1]);
  if (!policy) return complain(policy.message());
  const lagkv::result<npy::array> keys = npy::load(argv[2]), values = npy::load(argv[3]);
  for (const auto* a : {&keys, &values}) {
    if (!*a) return complain(a->message());
    if ((*a)->shape.size() != 3 || ((*a)->type != "<f4" && (*a)->type != "<f2"))
      return complain("keys, values: must be [heads, tokens, dim], float32 or float16");
  }
  const int threads = argc > 5 ? std::atoi(argv[5]) : 1;
  if (threads < 1) return complain(std::string("threads=") + argv[5] + ": must be 1 or more");
  const std::string state = argc > 6 ? argv[6] : "cold";
  if (state != "cold" && state != "warm") return complain(state + ": must be cold or warm");

  const bench::memory k(keys->data.size()), v(values->data.size());
  const lagkv::layer layer{npy::view(k.data(), *keys, keys->shape[1]), npy::view(v.data(), *values, values->shape[1]),
                           keys->shape[1]};
  if (const lagkv::status s = check(*policy, layer); !s) return complain(s.message());
  const thread_pool pool(static_cast<std::size_t>(threads));
  std::vector<lagkv::workspace> workers(pool.workers(), lagkv::workspace{});
  std::vector<double> wall_times, cpu_times;
  std::size_t rows = 0;
  for (int i = 0; i <= std::atoi(argv[4]); ++i) {
    std::memcpy(k.data(), keys->data.data(), k.size());
    std::memcpy(v.data(), values->data.data(), v.size());
    if (state == "cold") bench::evict(k), bench::evict(v);
    lagkv::cursor cursor;
    const double cpu = bench::cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    rows = threads == 1 ? lagkv::compress(*policy, layer, cursor, workers[0])
                        : lagkv::compress(*policy, layer, cursor, std::span(workers), pool);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    if (i == 0) continue;  // it grows the workspace
    wall_times.push_back(time.count());
    cpu_times.push_back(bench::cpu_seconds() - cpu);
  }

  const lagkv::plan& plan = lagkv::last_plan(workers[0]);
  std::printf("{\"target\": \"%s\", \"rows\": %zu", lagkv::simd::name(lagkv::simd::best()), rows);
  print("seconds", wall_times);
  print("cpu_seconds", cpu_times);
  std::printf(",\n \"kept\": [");
  for (std::size_t h = 0; h < plan.heads(); ++h) {
    std::printf("%s[", h == 0 ? "" : ",\n  ");
    for (std::size_t i = 0; i < plan.of(h).size(); ++i) std::printf("%s%u", i == 0 ? "" : ", ", plan.of(h)[i]);
    std::printf("]");
  }
  std::printf("]}\n");
}
