// What lagkv-npy --list prints.
#pragma once

#include <string>

namespace tool {

/// Every policy with its keys, then the keys that they share, then fusions; lines of at most 100 columns.
std::string list_policies();

/// All keys as a table in Markdown, as docs/methods.md has it: that page is checked against it.
std::string markdown_keys();

}  // namespace tool
