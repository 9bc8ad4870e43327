// What including lagkv costs the compiler.
#pragma once

namespace bench {

/// Registers include/umbrella: the time to compile a program that includes the umbrella, with the compiler and flags of
/// this build; x_std is that over a program that includes the standard headers that the umbrella takes in, and
/// x_std_intrinsics over one that takes in the compiler's SIMD intrinsics as well.
void register_include_cost();

}  // namespace bench
