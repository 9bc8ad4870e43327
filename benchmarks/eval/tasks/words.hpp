// Everyday words that keys are made of.
#pragma once

#include <array>
#include <string_view>

namespace eval {

extern const std::array<std::string_view, 120> adjectives;
extern const std::array<std::string_view, 120> nouns;

}  // namespace eval
