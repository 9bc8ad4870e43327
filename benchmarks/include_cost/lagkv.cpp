// A host that makes LagKV's policy in C++.
#include "glue.hpp"

bool compress(cache& c, lagkv::cursor& at, lagkv::workspace& ws) {
  const auto policy = lagkv::make_lagkv({.lag = 128, .ratio = 0.25});
  return policy && compress(*policy, c, at, ws);
}
