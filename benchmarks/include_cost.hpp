// What including lagkv costs the compiler.
#pragma once

namespace bench {

/// Registers include/nothing, include/lagkv and include/parse: what the compiler of this build takes, at -O2, for a file that
/// only includes lagkv.hpp, one that makes LagKV's policy in C++, and one that parses any policy. Each again as
/// include/..._compiled, with LAGKV_COMPILED. cpu_ms is CPU time, std_ms that of the standard headers that lagkv takes in; kB is
/// code and constants.
void register_include_cost();

}  // namespace bench
