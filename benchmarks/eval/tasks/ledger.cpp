// Arithmetic with carried state, written out: who gets or pays how much, and has how much then.
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/names_and_things.hpp"
#include "tasks/scoring.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace eval {
namespace {

constexpr std::string_view name = "ledger";
constexpr std::size_t new_tokens = 6;
constexpr std::size_t persons = 6;
constexpr std::size_t least_coins = 10;  // of one step
constexpr std::size_t coin_range = 90;

// What a person has lies between these.
constexpr std::size_t least_has = 100;
constexpr std::size_t most_has = 999;

std::string done_by(std::string_view who, bool gets, std::size_t coins, std::size_t has) {
  return std::string(who) + (gets ? " gets " : " pays ") + std::to_string(coins) + " coins and has " + std::to_string(has) + ".";
}

// Drawn from the last step to the first: what is asked for is the same for every length.
prompt make(const request& asked) {
  draws random(asked.seed, name, asked.sample);
  std::vector<std::string_view> who(first_names.begin(), first_names.end());
  random.shuffle(who);                                  // the first of them is asked about
  const double place = 0.25 + 0.5 * random.fraction();  // of that person's last step
  const std::size_t has_at_last = 2 * least_has + random.below(most_has - 3 * least_has);
  const std::size_t last_coins = least_coins + random.below(coin_range);
  const bool last_gets = random.below(2) == 1;

  prompt frame;
  frame.question = "\nHow many coins does " + std::string(who.front()) + " have at the end?";
  frame.answer_begins = "At the end " + std::string(who.front()) + " has";
  frame.references = {std::to_string(has_at_last)};
  frame.needles = {done_by(who.front(), last_gets, last_coins, has_at_last)};
  return fit(asked, name, new_tokens, {.least = 4}, [&](std::size_t steps) {
    draws drawn(asked.seed, name, asked.sample, "steps");
    std::array<std::size_t, persons> has{};
    for (std::size_t& h : has) h = least_has + drawn.below(most_has - least_has);
    has.front() = has_at_last;
    const auto last = static_cast<std::size_t>(place * static_cast<double>(steps));
    std::vector<std::string> lines(steps);
    for (std::size_t i = steps; i-- > 0;) {
      const std::size_t person = i > last ? 1 + drawn.below(persons - 1) : i == last ? 0 : drawn.below(persons);
      const std::size_t coins = i == last ? last_coins : least_coins + drawn.below(coin_range);
      bool gets = i == last ? last_gets : drawn.below(2) == 1;
      if (has[person] < coins + least_has) gets = false;  // it had more before
      if (has[person] + coins > most_has) gets = true;
      lines[i] = done_by(who[person], gets, coins, has[person]);
      has[person] = gets ? has[person] - coins : has[person] + coins;
    }
    prompt made = frame;
    made.context = "Six persons get and pay coins.\n\n";
    for (std::size_t i = 0; i < steps; ++i) made.context += "Step " + std::to_string(i + 1) + ": " + lines[i] + "\n";
    return made;
  });
}

}  // namespace

task ledger() {
  return {.name = name,
          .meaning = "what one of six persons has at the end of a list of payments",
          .group = everyday,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = any_contained};
}

}  // namespace eval
