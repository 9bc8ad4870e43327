// What no_exceptions.cpp, built with -fno-exceptions -fno-rtti, offers.
#pragma once

#include <cstddef>
#include <string>

#include <lagkv/cache/layer.hpp>

namespace plain {

inline constexpr const char* policy_text = "lagkv:sink=4,lag=16,ratio=0.25";

/// Parses policy_text, checks and compresses; the rows left, 0 where something was refused.
std::size_t compress(const lagkv::layer& l);

/// The message for a bad string.
std::string refusal();

}  // namespace plain
