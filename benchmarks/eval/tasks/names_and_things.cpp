// Lists, written for this.
#include "tasks/names_and_things.hpp"

namespace eval {

const std::array<std::string_view, 24> first_names = {
    "Anna",  "Boris", "Clara", "David",  "Edith",  "Frank",  "Greta", "Henry",  "Irene",  "Jacob",  "Laura",  "Oscar",
    "Paula", "Ralph", "Sarah", "Tobias", "Ursula", "Victor", "Wanda", "Xavier", "Yvonne", "Conrad", "Judith", "Philip"};

const std::array<std::string_view, 24> towns = {"Lisbon", "Oslo",   "Vienna", "Prague", "Dublin", "Athens", "Warsaw", "Madrid",
                                                "Geneva", "Berlin", "London", "Venice", "Zagreb", "Lyon",   "Bergen", "Cairo",
                                                "Boston", "Sydney", "Tokyo",  "Delhi",  "Havana", "Lima",   "Denver", "Kyoto"};

const std::array<kind_of_thing, 4> kinds_of_things = {{
    {"animal",
     {"horse", "tiger", "rabbit", "goat", "wolf", "camel", "mouse", "sheep", "bear", "monkey", "donkey", "fox", "elephant",
      "lion", "cow", "deer"}},
    {"food",
     {"bread", "cheese", "soup", "rice", "butter", "cake", "sausage", "honey", "salad", "noodles", "pancake", "ham", "porridge",
      "biscuit", "omelette", "pie"}},
    {"clothing",
     {"jacket", "shirt", "glove", "trousers", "scarf", "hat", "coat", "sock", "skirt", "boot", "belt", "sweater", "apron", "cap",
      "shoe", "dress"}},
    {"vehicle",
     {"car", "train", "bicycle", "truck", "ship", "tram", "bus", "wagon", "ferry", "tractor", "motorbike", "airplane", "taxi",
      "canoe", "carriage", "van"}},
}};

}  // namespace eval
