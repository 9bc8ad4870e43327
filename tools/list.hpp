// What lagkv-npy --list prints.
#pragma once

#include <string>

namespace tool {

/// Every policy with its keys, then the keys that they share, then fusions; lines of at most 100 columns.
std::string list_policies();

}  // namespace tool
