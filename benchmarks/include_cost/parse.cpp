// A host that takes any policy by its string.
#include "glue.hpp"

bool compress(const char* text, cache& c, lagkv::cursor& at, lagkv::workspace& ws) {
  const auto policy = lagkv::parse(text);
  return policy && compress(*policy, c, at, ws);
}
