// All methods of this build: those that need Eigen too where it was found.
#pragma once

#include <span>

#include <lagkv/policy/registry.hpp>

namespace python {

std::span<const lagkv::method_entry* const> all_methods();

}  // namespace python
