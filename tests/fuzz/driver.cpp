// In place of libFuzzer, for compilers without it: `TARGET [-runs=N] [-max_total_time=SECONDS] [-seed=N] FOLDER...` runs every
// file of the folders, then mutations of them. It knows nothing of coverage; an input that ends the program lies in ./last-input.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "input.hpp"

namespace {

using bytes = std::vector<std::uint8_t>;

void run(const bytes& input) {
  std::ofstream("last-input", std::ios::binary)
      .write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

bytes mutated(const std::vector<bytes>& corpus, std::mt19937_64& random) {
  bytes x = corpus[random() % corpus.size()];
  for (std::size_t n = 1 + random() % 8; n > 0; --n) {
    const std::size_t at = x.empty() ? 0 : random() % x.size();
    const auto value = static_cast<std::uint8_t>(random());
    switch (random() % 5) {
      case 0:
        x.insert(x.begin() + static_cast<std::ptrdiff_t>(at), value);
        break;
      case 1:
        if (!x.empty()) x.erase(x.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 2:
        if (!x.empty()) x[at] = value;
        break;
      case 3:
        if (!x.empty()) x[at] = static_cast<std::uint8_t>(x[at] ^ 1U << random() % 8);
        break;
      default: {  // the rest of another
        const bytes& other = corpus[random() % corpus.size()];
        x.resize(at);
        if (!other.empty()) x.insert(x.end(), other.begin() + static_cast<std::ptrdiff_t>(random() % other.size()), other.end());
      }
    }
  }
  return x;
}

long option(std::string_view argument, std::string_view name, long other) {
  return argument.substr(0, name.size()) == name ? std::atol(std::string(argument.substr(name.size())).c_str()) : other;
}

}  // namespace

int main(int argc, char** argv) {
  long runs = -1, seconds = 0, seed = 1;
  std::vector<bytes> corpus{{}};
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    runs = option(argument, "-runs=", runs);
    seconds = option(argument, "-max_total_time=", seconds);
    seed = option(argument, "-seed=", seed);
    if (!std::filesystem::is_directory(argument)) continue;
    for (const auto& file : std::filesystem::directory_iterator(argument)) {
      std::ifstream in(file.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
  }
  for (const bytes& input : corpus) run(input);
  std::mt19937_64 random(static_cast<std::uint64_t>(seed));
  const auto start = std::chrono::steady_clock::now();
  long done = 0;
  for (; runs < 0 ? std::chrono::steady_clock::now() - start < std::chrono::seconds(seconds) : done < runs; ++done)
    run(mutated(corpus, random));
  std::printf("Done %zu of the corpus and %ld mutations\n", corpus.size(), done);
  std::remove("last-input");
}
