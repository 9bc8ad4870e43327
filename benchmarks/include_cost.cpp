#include "include_cost.hpp"

#include <cstdio>
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

/// CPU seconds to compile a file to `object`; negative where that fails.
double compile(const std::string& source, const std::string& flags, const std::string& object) {
  const std::string command = LAGKV_COMPILER " -std=c++20 -O2 -I " LAGKV_INCLUDE " " + flags + " -c " + source + " -o " + object;
  const double start = children_seconds();
  if (std::system(command.c_str()) != 0) return -1;
  return children_seconds() - start;
}

/// Bytes of code and constants in an object file, as `size` has them; 0 where it cannot be asked.
double code_bytes(const std::string& object) {
  std::FILE* out = popen(("size -A -d " + object).c_str(), "r");
  if (out == nullptr) return 0;
  double total = 0;
  char line[512], section[256];
  long bytes = 0;
  while (std::fgets(line, sizeof line, out) != nullptr)
    if (std::sscanf(line, "%255s %ld", section, &bytes) == 2) {
      const std::string name(section);
      if (name.starts_with(".text") || name.starts_with(".rodata") || name.starts_with(".data"))
        total += static_cast<double>(bytes);
    }
  pclose(out);
  return total;
}

struct file {
  const char* name;
  std::string source, flags;
};

void include(benchmark::State& state, const file& f) {
  const std::string object = LAGKV_INCLUDE_COST "/object.o";
  std::vector<double> own, standard;
  double bytes = 0;
  for (auto _ : state) {
    own.push_back(compile(f.source, f.flags, object));
    bytes = code_bytes(object);
    standard.push_back(compile(LAGKV_INCLUDE_COST "/standard.cpp", "", object));
    if (own.back() < 0 || standard.back() < 0) {
      state.SkipWithError("the compiler failed");
      return;
    }
  }
  state.counters["cpu_ms"] = median(own) * 1e3;
  state.counters["std_ms"] = median(standard) * 1e3;
  state.counters["kB"] = bytes / 1e3;
}

}  // namespace

void register_include_cost() {
  const std::string here = LAGKV_INCLUDE_COST_SOURCES "/", compiled = "-DLAGKV_COMPILED";
  for (const file& f :
       {file{"nothing", here + "nothing.cpp", ""}, file{"lagkv", here + "lagkv.cpp", ""}, file{"parse", here + "parse.cpp", ""},
        file{"nothing_compiled", here + "nothing.cpp", compiled}, file{"lagkv_compiled", here + "lagkv.cpp", compiled},
        file{"parse_compiled", here + "parse.cpp", compiled}})
    benchmark::RegisterBenchmark((std::string("include/") + f.name).c_str(), include, f)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime()
        ->Iterations(5);
}

}  // namespace bench
