// All methods, those that need Eigen too: compiled in one file, since Eigen's decompositions take seconds in each that has them.
#pragma once

#include <span>
#include <string>

#include <lagkv/lagkv.hpp>

namespace support {

/// lagkv::methods_with_eigen().
std::span<const lagkv::method_entry* const> every_method();

/// Any policy of these methods; an empty one, which fails whatever uses it, where the string names none.
lagkv::policy named_any(const std::string& text);

}  // namespace support
