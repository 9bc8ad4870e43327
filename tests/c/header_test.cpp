// lagkv.h from C++: it compiles and links, beside the C++ library in the same program.
#include <lagkv.h>

#include <cstdio>

#include <lagkv/lagkv.hpp>

int main() {
  lagkv_policy* policy = nullptr;
  lagkv_error error;
  if (lagkv_policy_parse("full", &policy, &error) != LAGKV_OK) return std::puts(error.message), 1;
  lagkv_policy_free(policy);
  return lagkv::parse("full") && lagkv_version() == LAGKV_VERSION ? 0 : 1;
}
