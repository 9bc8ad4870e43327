// Two lists, written for this.
#include "tasks/words.hpp"

namespace eval {

const std::array<std::string_view, 120> adjectives = {
    "able",    "amber",   "ancient", "angry",  "annual",   "autumn", "bitter", "blank",   "bold",   "brave",  "bright", "broad",
    "bronze",  "busy",    "careful", "cheap",  "cheerful", "clean",  "clever", "coastal", "cold",   "common", "cool",   "copper",
    "cubic",   "curious", "daily",   "damp",   "dear",     "deep",   "dense",  "distant", "double", "dusty",  "eager",  "early",
    "eastern", "elastic", "empty",   "equal",  "fair",     "faint",  "fast",   "final",   "firm",   "flat",   "foggy",  "formal",
    "free",    "fresh",   "frozen",  "gentle", "giant",    "glad",   "golden", "grand",   "great",  "green",  "handy",  "happy",
    "heavy",   "hidden",  "hollow",  "honest", "humble",   "icy",    "idle",   "inner",   "jolly",  "keen",   "large",  "late",
    "lazy",    "light",   "local",   "lonely", "loud",     "lucky",  "marble", "mild",    "modern", "narrow", "neat",   "noble",
    "odd",     "open",    "orange",  "outer",  "patient",  "plain",  "polite", "proud",   "purple", "quiet",  "rapid",  "rare",
    "ready",   "round",   "royal",   "rusty",  "salty",    "secret", "shiny",  "silent",  "silver", "simple", "smooth", "solid",
    "spare",   "steady",  "steep",   "strong", "sunny",    "sweet",  "tall",   "tame",    "tiny",   "vivid",  "warm",   "wise"};

const std::array<std::string_view, 120> nouns = {
    "anchor",   "apple",  "arrow",    "badge",    "balcony", "banner",   "barrel", "beach",    "bell",    "bench",  "blanket",
    "boat",     "bottle", "brush",    "bucket",   "button",  "cabin",    "candle", "canyon",   "carpet",  "cellar", "chair",
    "cherry",   "circle", "clock",    "cloud",    "corner",  "cottage",  "cousin", "cradle",   "curtain", "desk",   "diamond",
    "donkey",   "door",   "drawer",   "eagle",    "engine",  "farmer",   "fence",  "ferry",    "field",   "flag",   "forest",
    "fountain", "garden", "glove",    "guitar",   "hammer",  "hat",      "hill",   "honey",    "island",  "jacket", "jar",
    "journey",  "kettle", "kitchen",  "ladder",   "lamp",    "lantern",  "leaf",   "letter",   "library", "lion",   "market",
    "meadow",   "mirror", "mountain", "neighbor", "nest",    "notebook", "ocean",  "office",   "onion",   "owl",    "paddle",
    "painter",  "paper",  "parrot",   "pebble",   "pencil",  "picture",  "pillow", "pipe",     "plate",   "pocket", "pond",
    "puzzle",   "rabbit", "river",    "rocket",   "roof",    "rope",     "saddle", "sandwich", "school",  "shelf",  "shoe",
    "singer",   "spoon",  "stable",   "station",  "stone",   "street",   "table",  "tailor",   "teacher", "ticket", "tiger",
    "tower",    "tunnel", "umbrella", "valley",   "violin",  "wagon",    "wallet", "wheel",    "window",  "winter"};

}  // namespace eval
