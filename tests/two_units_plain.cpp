#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <lagkv/lagkv.hpp>

std::vector<std::uint32_t> kept_by_plain_unit(std::vector<float> keys, std::size_t tokens);

std::vector<std::uint32_t> kept_by_plain_unit(std::vector<float> keys, std::size_t tokens) {
  const auto channels = static_cast<std::ptrdiff_t>(keys.size() / tokens);
  const lagkv::strided<float> view(keys.data(), {1, keys.size() / tokens}, {0, channels, 1}, tokens);
  lagkv::workspace ws;
  return lagkv::judge(*lagkv::parse("lagkv:sink=4,lag=16,ratio=0.25"), {view, view, tokens}, {}, ws).kept;
}
