// RULER's eight needles in a haystack: values under keys, among distractors; and one of its kind that RULER does not have.
#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"
#include "tasks/list.hpp"
#include "tasks/scoring.hpp"
#include "tasks/words.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace eval {
namespace {

enum class haystack : std::uint8_t { noise, essay, needles };
enum class form : std::uint8_t { word, number, uuid };

struct recipe {
  std::string_view name;
  std::string_view meaning;
  haystack hay = haystack::essay;
  form key = form::word;
  form value = form::number;
  std::size_t keys = 1;
  std::size_t values = 1;  // of each key
  std::size_t queries = 1;
  // The reply begins word for word as the needle does. A small model that finds a value under a paraphrase takes that of any
  // key: SmolLM2-135M-Instruct has a third of niah_multikey_1 right.
  bool as_said = false;
  std::size_t new_tokens = 128;
};

constexpr std::size_t ruler_recipes = 8;

constexpr std::array<recipe, ruler_recipes + 1> recipes = {{
    {"niah_single_1", "a number under a key, in noise", haystack::noise},
    {"niah_single_2", "a number under a key, in a book"},
    {"niah_single_3", "a UUID under a key, in a book", haystack::essay, form::word, form::uuid},
    {"niah_multikey_1", "a number under a key, three other keys, in a book", haystack::essay, form::word, form::number, 4},
    {"niah_multikey_2", "a number under a key, all lines have keys", haystack::needles},
    {"niah_multikey_3", "a UUID under a UUID, all lines have such keys", haystack::needles, form::uuid, form::uuid},
    {"niah_multivalue", "four numbers under a key, in a book", haystack::essay, form::word, form::number, 1, 4},
    {"niah_multiquery", "four keys, a number under each, in a book", haystack::essay, form::word, form::number, 4, 1, 4},
    {"needles_16", "a number under a key, 15 other keys, in a book", haystack::essay, form::word, form::number, 16, 1, 1, true,
     10},  // room for one number: a model that says one after another finds any
}};

std::string draw(form of, draws& random) {
  if (of == form::number) return random.number(7);
  if (of == form::uuid) return random.uuid();
  std::string word(adjectives[random.below(adjectives.size())]);
  return word.append("-").append(nouns[random.below(nouns.size())]);
}

std::string draw_other_than(const std::vector<std::string>& taken, form of, draws& random) {
  for (;;)
    if (std::string drawn = draw(of, random); std::ranges::find(taken, drawn) == taken.end()) return drawn;
}

std::string_view plural(form of) { return of == form::uuid ? "uuids" : "numbers"; }

std::string needle_begins(const recipe& how, const std::string& key) {
  return "One of the special magic " + std::string(plural(how.value)) + " for " + key + " is:";
}

std::string needle(const recipe& how, const std::string& key, const std::string& value) {
  return needle_begins(how, key) + " " + value + ".";
}

// "a", or "a, b, and c".
std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 < names.size() ? ", " : ", and ";
    text += names[i];
  }
  return text;
}

struct secret {
  std::vector<std::string> keys;
  std::vector<std::string> values;
  std::vector<std::string> needles;  // as they follow in the text
  std::vector<std::string> queries;
  std::vector<std::string> answers;
};

secret draw_secret(const recipe& how, draws& random) {
  secret drawn;
  for (std::size_t k = 0; k < how.keys; ++k) {
    drawn.keys.push_back(draw_other_than(drawn.keys, how.key, random));
    for (std::size_t v = 0; v < how.values; ++v) {
      drawn.values.push_back(draw_other_than(drawn.values, how.value, random));
      drawn.needles.push_back(needle(how, drawn.keys[k], drawn.values.back()));
    }
  }
  random.shuffle(drawn.needles);
  // The first keys are asked for: the needles' order is drawn, so they stand anywhere.
  drawn.queries.assign(drawn.keys.begin(), drawn.keys.begin() + static_cast<std::ptrdiff_t>(how.queries));
  drawn.answers.assign(drawn.values.begin(), drawn.values.begin() + static_cast<std::ptrdiff_t>(how.queries * how.values));
  return drawn;
}

// So many of 40 evenly spaced percents, 0 to 100, rounded; ascending.
std::vector<std::size_t> draw_percents(std::size_t count, draws& random) {
  constexpr std::size_t choices = 40;
  std::vector<std::size_t> percents;
  for (std::size_t i = 0; i < choices; ++i) percents.push_back((200 * i + choices - 1) / (2 * (choices - 1)));
  random.shuffle(percents);
  percents.resize(count);
  std::ranges::sort(percents);
  return percents;
}

// The text of so many units.
std::function<std::string(std::size_t)> draw_haystack(const recipe& how, const secret& hidden, draws random) {
  const std::size_t count = hidden.needles.size();
  if (how.hay == haystack::essay) {
    const std::vector<std::size_t>& sentences = shipped_book().sentences;
    const std::size_t first = sentences[random.below(sentences.size())];
    return [&hidden, first, percents = draw_percents(count, random)](std::size_t words) {
      return hide_in_essay(first, words, hidden.needles, percents);
    };
  }
  const std::vector<double> places = random.fractions(count);
  if (how.hay == haystack::noise)
    return [&hidden, places](std::size_t lines) {
      return hide_in_lines(
          lines, [](std::size_t) { return noise_line; }, hidden.needles, places);
    };
  // Other needles, drawn as far as a try needs them, so that every try sees the same ones.
  return [&how, &hidden, places, random, others = std::vector<std::string>()](std::size_t lines) mutable {
    while (others.size() < lines) {
      const std::string key = draw_other_than(hidden.keys, how.key, random);
      others.push_back(needle(how, key, draw_other_than(hidden.values, how.value, random)));
    }
    return hide_in_lines(
        lines, [&](std::size_t i) -> std::string_view { return others[i]; }, hidden.needles, places);
  };
}

prompt make_prompt(const recipe& how, const request& asked) {
  draws random(asked.seed, how.name, asked.sample);
  const secret hidden = draw_secret(how, random);
  const auto text = draw_haystack(how, hidden, draws(asked.seed, how.name, asked.sample, "haystack"));

  const bool one = how.queries * how.values == 1;
  std::string type(plural(how.value));
  if (one) type.pop_back();
  const std::string to_be = one ? " is " : " are ";
  const std::string asked_for = "special magic " + type + " for " + joined(hidden.queries) + " mentioned in the provided text";

  prompt frame;
  frame.question = "\nWhat" + std::string(one ? " is" : " are all") + " the " + asked_for + "?";
  frame.answer_begins = "The " + asked_for + (one ? " is" : " are");
  if (how.as_said) frame.answer_begins = needle_begins(how, hidden.queries.front());
  frame.references = hidden.answers;
  frame.needles = hidden.needles;
  const std::string intro = (one ? "A special magic " : "Some special magic ") + type + to_be +
                            "hidden within the following text. Make sure to memorize it. I will quiz you about the " + type +
                            " afterwards.\n";
  return fit(asked, how.name, how.new_tokens, {}, [&](std::size_t units) {
    prompt made = frame;
    made.context = intro + text(units);
    return made;
  });
}

template <std::size_t i>
prompt make(const request& asked) {
  return make_prompt(recipes[i], asked);
}

template <std::size_t i>
task task_of_recipe() {
  return {.name = recipes[i].name,
          .meaning = recipes[i].meaning,
          .group = i < ruler_recipes ? ruler : beyond,
          .how = kind::answer,
          .new_tokens = recipes[i].new_tokens,
          .make = make<i>,
          .score = share_contained};
}

template <std::size_t... i>
std::vector<task> tasks_of_recipes(std::index_sequence<i...>) {
  return {task_of_recipe<i>()...};
}

}  // namespace

std::vector<task> needle_tasks() { return tasks_of_recipes(std::make_index_sequence<ruler_recipes>()); }

task needle_among_needles() { return task_of_recipe<ruler_recipes>(); }

}  // namespace eval
