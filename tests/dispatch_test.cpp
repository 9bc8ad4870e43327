// A program built for plain x86-64 finds out what its CPU can do, and runs that.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"

namespace {

using lagkv::simd::target;

#if defined(__x86_64__)
/// The flags of the first CPU as the kernel reports them; empty where it does not.
std::set<std::string> cpu_flags() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("flags", 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      return {std::istream_iterator<std::string>(words), {}};
    }
  return {};
}
#endif

TEST(dispatch, finds_what_the_kernel_reports) {
#if defined(__x86_64__)
  const auto flags = cpu_flags();
  if (flags.empty()) GTEST_SKIP() << "no /proc/cpuinfo";
  const auto has = [&](std::initializer_list<const char*> names) {
    for (const char* n : names)
      if (flags.count(n) == 0) return false;
    return true;
  };
  const target expected = !has({"avx2", "fma", "f16c"})                          ? target::sse2
                          : has({"avx512f", "avx512bw", "avx512dq", "avx512vl"}) ? target::avx512
                                                                                 : target::avx2;
  EXPECT_EQ(lagkv::simd::name(lagkv::simd::best()), std::string(lagkv::simd::name(expected)));
#elif defined(__aarch64__)
  EXPECT_EQ(lagkv::simd::best(), target::neon);
#endif
}

TEST(dispatch, a_workspace_runs_what_it_is_told) {
  EXPECT_EQ(lagkv::workspace().target(), lagkv::simd::best());
  for (target t : support::targets()) {
    EXPECT_EQ(lagkv::workspace(t).target(), t);
    const auto& kernels = lagkv::workspace(t).kernels<lagkv::simd::row_kernels>();
    for (target other : support::targets())
      EXPECT_EQ(kernels.squares == lagkv::simd::kernels<lagkv::simd::row_kernels>(other).squares, other == t);
  }
}

TEST(dispatch, what_cannot_run_here_is_replaced_by_the_best) {
  for (target t : {target::scalar, target::sse2, target::avx2, target::avx512, target::neon})
    if (!lagkv::simd::supported(t)) {
      EXPECT_EQ(lagkv::workspace(t).target(), lagkv::simd::best());
    }
  EXPECT_TRUE(lagkv::simd::supported(lagkv::simd::baseline));
}

TEST(dispatch, names) {
  EXPECT_STREQ(lagkv::simd::name(target::scalar), "scalar");
  EXPECT_STREQ(lagkv::simd::name(target::sse2), "sse2");
  EXPECT_STREQ(lagkv::simd::name(target::avx2), "avx2");
  EXPECT_STREQ(lagkv::simd::name(target::avx512), "avx512");
  EXPECT_STREQ(lagkv::simd::name(target::neon), "neon");
}

}  // namespace
