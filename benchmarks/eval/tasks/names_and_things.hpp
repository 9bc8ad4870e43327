// What the everyday tasks are made of: names, rooms, and things of four kinds.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace eval {

/// First names, none of which is part of another.
extern const std::array<std::string_view, 24> first_names;

/// Towns, none of which is part of another.
extern const std::array<std::string_view, 24> towns;

/// Things of one kind.
struct kind_of_thing {
  std::string_view name;
  std::array<std::string_view, 16> things;
};
extern const std::array<kind_of_thing, 4> kinds_of_things;

}  // namespace eval
