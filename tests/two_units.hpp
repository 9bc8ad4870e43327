// Two files of one program, each with the headers; neither hands the other a type of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>

/// The rows that a policy keeps of [tokens][channels]; how many.
using judge_keys = std::size_t(float* keys, std::size_t tokens, std::size_t channels, std::uint32_t* kept);

judge_keys kept_by_plain_unit;
judge_keys kept_by_wide_unit;
