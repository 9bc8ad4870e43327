#include "methods.hpp"

#if defined(LAGKV_PYTHON_EIGEN)
#include <lagkv/methods_with_eigen.hpp>
#else
#include <lagkv/methods.hpp>
#endif

namespace python {

std::span<const lagkv::method_entry* const> all_methods() {
#if defined(LAGKV_PYTHON_EIGEN)
  return lagkv::methods_with_eigen();
#else
  return lagkv::methods();
#endif
}

}  // namespace python
