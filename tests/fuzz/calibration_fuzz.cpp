// A calibration file of anyone's making: it is refused, or holds what it says.
#include <cmath>
#include <stdexcept>

#include "examples/host/calibration_file.hpp"
#include "memory_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file file(data, size);
  try {
    const host::calibration c = host::read_calibration(file.path(), "m");
    fuzz::expect(!c.queries.empty() || !c.importance.empty());
    for (const lagkv::query_statistics& s : c.queries) {
      fuzz::expect(s.mean.size() == s.heads * s.channels && s.factors.size() == s.rank() * s.mean.size());
      for (const float x : s.mean) fuzz::expect(std::isfinite(x));
      for (const float x : s.factors) fuzz::expect(std::isfinite(x));
    }
    for (const lagkv::importance_map& m : c.importance) {
      fuzz::expect(m.key_channels > 0 && m.weights.size() == m.heads * m.width());
      for (const float x : m.weights) fuzz::expect(std::isfinite(x));
    }
  } catch (const std::invalid_argument& refused) {
    fuzz::expect(*refused.what() != '\0');
  }
  return 0;
}
