// A .npy file, and a file of query statistics, of anyone's making.
#include <cmath>
#include <stdexcept>

#include "examples/host/query_file.hpp"
#include "memory_file.hpp"
#include "tools/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file file(data, size);
  const lagkv::result<npy::array> a = npy::load(file.path());
  fuzz::expect(static_cast<bool>(a) == a.message().empty());
  if (a) fuzz::expect(a->data.size() == a->size() * npy::detail::item_size(a->type) && a->data.size() <= size);
  try {
    for (const lagkv::query_statistics& s : host::read_queries(file.path())) {
      fuzz::expect(s.mean.size() == s.heads * s.channels && s.factors.size() == s.rank() * s.mean.size());
      for (const float x : s.mean) fuzz::expect(std::isfinite(x));
      for (const float x : s.factors) fuzz::expect(std::isfinite(x));
    }
  } catch (const std::invalid_argument& refused) {
    fuzz::expect(*refused.what() != '\0');
  }
  return 0;
}
