#include "no_exceptions.hpp"

#include <lagkv/lagkv.hpp>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "build this file with -fno-exceptions -fno-rtti"
#endif

namespace plain {

std::size_t compress(const lagkv::layer& l) {
  const auto policy = lagkv::parse(policy_text);
  if (!policy || !lagkv::check(*policy, l)) return 0;
  lagkv::workspace ws;
  lagkv::cursor at;
  return lagkv::compress(*policy, l, at, ws);
}

std::string refusal() { return lagkv::parse("lagkv:lag=0").message(); }

}  // namespace plain
