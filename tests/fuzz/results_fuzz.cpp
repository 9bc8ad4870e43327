// A results file of lagkv-eval, of anyone's making: read, then appended to.
#include <algorithm>
#include <stdexcept>

#include "memory_file.hpp"
#include "results.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file file(data, size);
  try {
    const eval::results before = eval::read_results(file.path());
    eval::sample_result s;
    s.key = {"of the fuzzer", 1, 2, "full", 0};
    eval::results_file(file.path()).add(s);
    const eval::results now = eval::read_results(file.path());
    const bool there = std::any_of(before.samples.begin(), before.samples.end(), [&](const auto& b) { return b.key == s.key; });
    fuzz::expect(now.samples.size() == before.samples.size() + (there ? 0 : 1));
  } catch (const std::invalid_argument& refused) {
    fuzz::expect(*refused.what() != '\0');
  } catch (const std::runtime_error& refused) {
    fuzz::expect(*refused.what() != '\0');
  }
  return 0;
}
