// The face that the C++17 part of an engine sees.
#pragma once

#include <cstddef>
#include <cstdint>

/// Compresses [heads, capacity, channels] of f16 in place; the tokens left, 0 where something was refused.
std::size_t compress(std::uint16_t* keys, std::uint16_t* values, std::size_t heads, std::size_t channels, std::size_t capacity,
                     std::size_t tokens);

/// The instruction set in use.
const char* instructions();
