#include "include_cost.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include <sys/resource.h>

#include <benchmark/benchmark.h>

#include "memory.hpp"

namespace bench {

namespace {

/// CPU seconds of the programs that this one has started and seen end.
double children_seconds() {
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);
  return static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/// CPU seconds to compile one of the programs that CMake wrote; negative where that fails.
double compile(const std::string& name) {
  const std::string command =
      LAGKV_COMPILER " -std=c++20 -O2 -c -o /dev/null -I " LAGKV_INCLUDE " " LAGKV_INCLUDE_COST "/" + name + ".cpp";
  const double start = children_seconds();
  if (std::system(command.c_str()) != 0) return -1;
  return children_seconds() - start;
}

void include_umbrella(benchmark::State& state) {
  constexpr int rounds = 5;
  std::vector<double> umbrella, standard, intrinsics;
  for (auto _ : state) umbrella.push_back(compile("umbrella"));
  for (int i = 0; i < rounds; ++i) {
    umbrella.push_back(compile("umbrella"));
    standard.push_back(compile("standard"));
    intrinsics.push_back(compile("intrinsics"));
    if (umbrella.back() < 0 || standard.back() < 0 || intrinsics.back() < 0) {
      state.SkipWithError("the compiler failed");
      return;
    }
  }
  state.counters["umbrella_ms"] = median(umbrella) * 1e3;
  state.counters["std_ms"] = median(standard) * 1e3;
  state.counters["x_std"] = median(umbrella) / median(standard);
  state.counters["x_std_intrinsics"] = median(umbrella) / median(intrinsics);
}

}  // namespace

void register_include_cost() {
  benchmark::RegisterBenchmark("include/umbrella", include_umbrella)->Unit(benchmark::kMillisecond)->UseRealTime();
}

}  // namespace bench
