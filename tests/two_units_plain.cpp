#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <lagkv/lagkv.hpp>

#include "two_units.hpp"

std::size_t kept_by_plain_unit(float* keys, std::size_t tokens, std::size_t channels, std::uint32_t* kept) {
  const lagkv::strided<float> view(keys, {1, channels}, {0, static_cast<std::ptrdiff_t>(channels), 1}, tokens);
  lagkv::workspace ws;
  const lagkv::plan& plan =
      lagkv::plan_eviction(*lagkv::make_lagkv({.sink = 4, .lag = 16, .ratio = 0.25}), {view, view, tokens}, {}, ws);
  for (const std::uint32_t row : plan.kept) *kept++ = row;
  return plan.kept.size();
}
