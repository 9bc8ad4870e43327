// A .npy file of anyone's making.
#include "memory_file.hpp"
#include "tests/support/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file file(data, size);
  const lagkv::result<npy::array> a = npy::load(file.path());
  fuzz::expect(static_cast<bool>(a) == a.message().empty());
  if (a) fuzz::expect(a->data.size() == a->size() * npy::detail::item_size(a->type) && a->data.size() <= size);
  return 0;
}
