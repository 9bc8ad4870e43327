// The kernels for 16 lanes without the instructions of AVX-512: what they calculate can be tested on any machine.
#pragma once

#include <lagkv/lagkv.hpp>

namespace support {
const lagkv::simd::kernel_table& sixteen_lanes();
}
