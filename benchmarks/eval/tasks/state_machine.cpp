// A machine whose states are the rooms of a house. Its rules, the doors, are said first. Then a long list of steps, and a step by
// a rule that none of them took.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {
namespace {

constexpr std::string_view name = "state_machine";
constexpr std::size_t new_tokens = 4;

constexpr std::array<std::string_view, 8> rooms = {"kitchen", "garden", "cellar", "library",
                                                   "attic",   "stable", "tower",  "chapel"};
constexpr std::size_t doors_out = 2;  // of each room
constexpr std::array<std::string_view, rooms.size()* doors_out> doors = {"red",  "blue",  "green", "white",  "black",  "yellow",
                                                                         "grey", "oak",   "iron",  "copper", "silver", "golden",
                                                                         "pine", "brass", "glass", "stone"};

struct door {
  std::string_view name;
  std::size_t from = 0, to = 0;
  [[nodiscard]] std::string leads() const {
    return "The " + std::string(name) + " door leads from the " + std::string(rooms[from]) + " to the";
  }
  [[nodiscard]] std::string rule() const { return leads() + " " + std::string(rooms[to]) + "."; }
};

// As many doors into each room as out of it, so that a list of steps can be drawn from its end.
std::vector<door> draw_doors(draws& random) {
  std::vector<std::string_view> names(doors.begin(), doors.end());
  random.shuffle(names);
  std::vector<door> made;
  for (std::size_t i = 0; i < doors_out; ++i) {
    std::vector<std::size_t> round;  // through all rooms: no door leads to the room that it is in
    for (std::size_t room = 0; room < rooms.size(); ++room) round.push_back(room);
    random.shuffle(round);
    for (std::size_t k = 0; k < round.size(); ++k) made.push_back({names[made.size()], round[k], round[(k + 1) % round.size()]});
  }
  random.shuffle(made);
  return made;
}

// A drawn door into the room, but not the one that no step takes.
const door& draw_door_into(std::size_t room, const std::vector<door>& all, const door& never, draws& random) {
  for (;;)
    if (const door& drawn = all[random.below(all.size())]; drawn.to == room && &drawn != &never) return drawn;
}

prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  const std::vector<door> all = draw_doors(random);
  const door& wanted = all[random.below(all.size())];

  prompt frame;
  frame.question = "\nNow you go through the " + std::string(wanted.name) + " door. Where does it lead?";
  frame.answer_begins = wanted.leads();
  frame.references = {std::string(rooms[wanted.to])};
  frame.needles = {wanted.rule()};
  return fit(asked, name, new_tokens, {.least = 1}, [&](std::size_t steps) {
    draws drawn(asked.seed, name, asked.sample, "steps");
    std::vector<std::string> lines(steps);
    for (std::size_t i = steps, room = wanted.from; i-- > 0;) {
      const door& taken = draw_door_into(room, all, wanted, drawn);
      lines[i] = "through the " + std::string(taken.name) + " door to the " + std::string(rooms[room]) + ".\n";
      room = taken.from;
    }
    prompt made = frame;
    made.context = "You walk through a house.\n\n";
    for (const door& each : all) made.context += each.rule() + "\n";
    made.context += "\n";
    for (std::size_t i = 0; i < steps; ++i) made.context += "Step " + std::to_string(i + 1) + ": " + lines[i];
    return made;
  });
}

}  // namespace

task state_machine() {
  return {.name = name,
          .meaning = "the state that a rule leads to, said before a long list of steps by other rules",
          .group = work,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = any_contained};
}

}  // namespace eval
