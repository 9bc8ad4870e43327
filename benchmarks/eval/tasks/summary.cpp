// A fable among others, said in a sentence.
#include "tasks/data_set.hpp"
#include "tasks/draws.hpp"
#include "tasks/fables.hpp"
#include "tasks/list.hpp"
#include "tasks/question.hpp"
#include "tasks/scoring.hpp"

#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>

namespace eval {
namespace {

constexpr std::string_view name = "summary";
constexpr std::size_t new_tokens = 64;
constexpr std::size_t given = 3;  // words

struct row {
  std::string_view title;
  std::string_view gist;
};

// Written for this, from beginning to end, and in the fable's own words, so that words can be compared. A title stands once among
// the fables.
constexpr row rows[] = {
    {"The Thirsty Pigeon",
     "A thirsty Pigeon flew towards a goblet of water painted on a signboard, dashed against it, and was caught with broken "
     "wings."},
    {"The Goat and the Goatherd",
     "A Goatherd threw a stone at a stray goat, breaking its horn, and begged it not to tell his master, but the horn will "
     "speak."},
    {"The Cat and the Cock",
     "A Cat caught a Cock, accused him of crowing in the nighttime, and made a meal of him, although he defended himself."},
    {"The Boy and the Filberts",
     "A Boy grasped so many filberts that he was unable to withdraw his hand from the neck of the pitcher; he should be "
     "satisfied with half the quantity."},
    {"The Sick Stag",
     "A Stag lay sick, and his companions who came to inquire after his health helped themselves to his food, so that he died."},
    {"The Farmer and his Sons",
     "A father on the point of death said that a treasure is hid in his vineyards; the sons dug over the land, and the vines "
     "repaid them with a crop."},
    {"The Heifer and the Ox",
     "A Heifer tormented an Ox at the plow, but at the harvest festival the owner released the Ox and had the Heifer slain at "
     "the altar."},
    {"The Old Man and Death",
     "An Old Man, wearied with carrying wood, besought Death to come, but then had him place the load upon his shoulders again."},
    {"The Eagle and the Arrow",
     "An archer wounded an Eagle who was watching a Hare, and the Eagle saw that the feathers of the arrow were from his own "
     "wings."},
    {"The Shepherd and the Sea",
     "A Shepherd sold his flock for a cargo of dates and threw it overboard in a tempest, and so the calm Sea was again in want "
     "of dates."},
    {"The Playful Ass",
     "An Ass broke the tiling of a roof and the owner, who laughed when the Monkey did this, drove him down with a cudgel."},
    {"The Two Travelers and the Axe",
     "One of two men picked up an axe and would not say 'We' have found it; when the owner was pursuing them, it was they who "
     "were undone."},
    {"The Hunter and the Woodman",
     "A Hunter was searching for the tracks of a Lion, but was pale from fear when a man felling oaks would show him the Lion."},
    {"The Swollen Fox",
     "A hungry Fox crept into a hollow oak, made a meal of the bread and meat of the shepherds, and was so full that he could "
     "not get out."},
    {"The Doe and the Lion",
     "A Doe pressed by hunters sought refuge in a cave, where a Lion concealed himself, sprang upon her, and tore her to "
     "pieces."},
    {"The Lion and the Hare",
     "A Lion left a Hare who was asleep to chase a Hart; he did not catch the Hart, and the Hare had run off."},
    {"The Lamp",
     "A Lamp that boasted that it gave more light than the sun was extinguished by a puff of wind, and should be content to give "
     "its light in silence."},
    {"The Crab and the Fox",
     "A Crab chose a green meadow and not the seashore, and a hungry Fox ate him, since he had no business on the land."},
    {"The Camel",
     "Man was frightened at the vast size of the Camel and ran away, but summoned courage, put a bridle in his mouth and let a "
     "child drive him."},
    {"The Peacock and the Crane",
     "A Peacock with a gorgeous tail mocked the plumage of a Crane, but she could soar to heaven while he must walk below."},
    {"The Hart and the Vine",
     "A Hart hid from the huntsmen beneath the leaves of a Vine, but began to nibble it, and its rustling attracted an arrow "
     "that struck him."},
    {"The Crow and the Pitcher",
     "A Crow perishing with thirst dropped stones one by one into a pitcher and brought the water within his reach."},
    {"The Prophet",
     "A wizard was telling fortunes in the marketplace when his house was broken open; he could foretell those of others, but "
     "did not foresee his own."},
    {"The Seller of Images",
     "A man offered for sale an image of Mercury that bestowed wealth; he was in need of immediate help, and it was wont to give "
     "its good gifts slowly."},
    {"The Lion and the Three Bulls",
     "A Lion was afraid of three Bulls who pastured together; separating them by speeches, he feasted on them one by one."},
    {"The Crow and Mercury",
     "A Crow in a snare prayed to Apollo with a vow of frankincense and forgot his promise; again caught, he made the same "
     "promise to Mercury."},
    {"The Dog's House",
     "A Dog determined to make a house on account of the cold, but when summer returned he lay stretched, and it was not "
     "necessary."},
    {"The Trumpeter Taken Prisoner",
     "A Trumpeter captured by the enemy had not slain a man, but was put to death since his trumpet stirs the others to battle."},
    {"The Sparrow and the Hare",
     "A Sparrow upbraided a Hare pounced upon by an eagle for her slow feet, and was then himself killed by a hawk."},
    {"The Gnat and the Bull",
     "A Gnat settled on the horn of a Bull and inquired whether he should go, but the Bull did not know that he had come."},
    {"The Shepherd and the Sheep",
     "A Shepherd shook acorns from an oak on his cloak, and the Sheep that were eating them tore the cloak of him who feeds "
     "them."},
    {"The Manslayer",
     "A man who committed murder climbed from a Lion up a tree, and from a serpent there into the river, where a crocodile ate "
     "him."},
    {"The Dog and the Oyster",
     "A Dog who was used to eating eggs swallowed an Oyster, thinking that everything round must be an egg, and had pain in his "
     "stomach."},
    {"The Travelers and the Plane-Tree",
     "Two men resting from the heat under the branches of a tree would describe it as useless, with no fruit, and were "
     "ungrateful."},
    {"The Thrush and the Fowler",
     "A Thrush did not move from the delicious berries of a myrtle-tree and was caught by a Fowler with bird-limed reeds."},
};

std::string first_words(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t i = 0; i < given; ++i) end = text.find(' ', end + 1);
  return std::string(text.substr(0, end));
}

prompt make(const request& asked) {
  static const data_set data{.documents = fables_as_documents(), .questions = {}};
  const row& wanted = rows[draw_in_turn(asked.seed, name, asked.sample, "fables", std::size(rows))];
  const std::size_t at = fable_titled(wanted.title);
  const std::string title = std::string("\"").append(wanted.title).append("\"");
  // The reply begins as the fable does: small models then tell it, and by themselves say what fables are.
  return ask(asked, name, new_tokens, data,
             {"What happens in the fable " + title + "? Tell it in a sentence.", {std::string(wanted.gist)}, {at}, {}, {at}},
             "In a sentence: " + first_words(shipped_fables()[at].text), "Answer the question based on the given documents.");
}

}  // namespace

task summary() {
  return {.name = name,
          .meaning = "a fable among others, said in a sentence",
          .group = work,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = gist_recalled};
}

}  // namespace eval
