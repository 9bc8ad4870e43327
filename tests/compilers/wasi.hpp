// Included before all else in a test for WebAssembly. Zig's C++ library for it has no exceptions, so that what a test would throw
// ends the program; and it leaves out <fstream>, which works all the same: wasi.cpp has its code.
#pragma once

#include <__config>
#undef _LIBCPP_HAS_FILESYSTEM
#define _LIBCPP_HAS_FILESYSTEM 1
#include <fstream>

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace support {
struct thrown {
  template <class E>
  [[noreturn]] void operator=(const E& e) const {
    std::fprintf(stderr, "thrown: %s\n", e.what());
    std::abort();
  }
};
}  // namespace support

#pragma clang diagnostic ignored "-Wkeyword-macro"
#define throw support::thrown{} =
