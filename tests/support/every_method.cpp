#include "every_method.hpp"

#include <lagkv/methods_with_eigen.hpp>

namespace support {

std::span<const lagkv::method_entry* const> every_method() { return lagkv::methods_with_eigen(); }

lagkv::policy named_any(const std::string& text) {
  const auto p = lagkv::parse(text, every_method());
  return p ? *p : lagkv::policy{};
}

}  // namespace support
