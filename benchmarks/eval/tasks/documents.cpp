// A question about one of many short documents: fables, with titles.
#include "tasks/data_set.hpp"
#include "tasks/draws.hpp"
#include "tasks/fables.hpp"
#include "tasks/list.hpp"
#include "tasks/question.hpp"
#include "tasks/scoring.hpp"

#include <cstddef>
#include <string>
#include <string_view>

namespace eval {
namespace {

constexpr std::string_view name = "documents";
constexpr std::size_t new_tokens = 32;  // as RULER's qa

struct row {
  std::string_view title;
  std::string_view question;
  std::string_view begins;  // the reply
  std::string_view answer;  // as the fable says it
};

// Written for this. A title stands once among the fables, and no other fable answers its question. The reply begins for the
// model, near the fable's own words: by itself a small model says the question once more until its tokens are used up.
constexpr row rows[] = {
    {"The Ass and the Grasshopper", "What food did the Grasshoppers say that they lived on?",
     "The Grasshoppers replied that they lived on the", "dew"},
    {"The Charcoal-Burner and the Fuller", "Whom did the Charcoal-burner ask to come and live with him?",
     "The Charcoal-burner met a friend, a", "Fuller"},
    {"The Boy Hunting Locusts", "What did the Boy who was hunting for locusts mistake for a locust?",
     "The Boy was hunting for locusts when he saw a", "Scorpion"},
    {"The Cock and the Jewel", "What did the Cock find when he was scratching for food?",
     "The Cock, scratching for food for himself and his hens, found a", "precious stone"},
    {"The Wolf and the Crane", "What was stuck in the throat of the Wolf who hired a Crane?",
     "The Wolf who hired a Crane had in his throat a", "bone"},
    {"The Fisherman Piping", "What instrument did the Fisherman play on the rock?", "The Fisherman skilled in music took his",
     "flute"},
    {"Hercules and the Wagoner", "To whom did the carter cry for help when the wheels of his wagon sank in a rut?",
     "The carter uttered loud cries to", "Hercules"},
    {"The Ants and the Grasshopper", "What were the Ants drying on a fine winter's day?",
     "The Ants were spending a fine winter's day drying", "grain"},
    {"The Traveler and his Dog", "Where did the Traveler see his Dog stand and stretch himself?",
     "The Traveler saw his Dog stand", "at the door"},
    {"The Dog and the Shadow", "What was the Dog crossing when he saw his shadow in the water?", "The Dog was crossing a",
     "bridge"},
    {"The Mole and his Mother", "What did the Mother of the Mole place before him?",
     "His Mother placed before the Mole a few grains of", "frankincense"},
    {"The Pomegranate, Apple-Tree, and Bramble", "Who told the Pomegranate and the Apple-Tree to cease from their disputing?",
     "The Pomegranate and the Apple-Tree were told to cease by a", "Bramble"},
    {"The Farmer and the Snake", "Where did the Farmer place the frozen Snake?",
     "The Farmer took up the frozen Snake and placed it in his", "bosom"},
    {"The Mountain in Labor", "What came out of the Mountain that was greatly agitated?", "Out of the Mountain came a", "Mouse"},
    {"The Ass, the Fox, and the Lion", "Into what did the Fox lead the Ass, so that the Lion could take him?",
     "The Fox led the Ass to a deep", "pit"},
    {"The Flies and the Honey-Pot", "What was in the jar that attracted a number of Flies?",
     "A number of Flies were attracted to a jar of", "honey"},
    {"The Man and the Lion", "What did the Man and the Lion pass as they were disputing?",
     "As the Man and the Lion were disputing, they passed a", "statue"},
    {"The Dog in the Manger", "Which animals did the Dog in the manger keep from eating the hay?",
     "The Dog in the manger prevented from eating the hay the", "oxen"},
    {"The Oxen and the Axle-Trees", "What groaned and creaked while the Oxen dragged the wagon?",
     "What groaned and creaked terribly were the", "Axle-trees"},
    {"The Thirsty Pigeon", "What did the thirsty Pigeon see painted on a signboard?",
     "The Pigeon, oppressed by thirst, saw on a signboard a", "goblet of water"},
    {"The Raven and the Swan", "What color was the plumage of the Swan that the Raven desired?",
     "The Raven saw the Swan's splendid color, which was", "white"},
    {"The Goat and the Goatherd", "What did the Goatherd break when he threw a stone at the Goat?",
     "The Goatherd threw a stone and broke the Goat's", "horn"},
    {"The Horse and Groom", "What did the Groom steal from his Horse and sell?", "The Groom stole and sold the Horse's", "oats"},
    {"The Boasting Traveler", "In which place did the boasting man say that he had leaped so far?",
     "The man who boasted said that he had leaped such a distance when he was at", "Rhodes"},
    {"The Boy and the Filberts", "What was in the pitcher that the Boy put his hand into?",
     "The Boy put his hand into a pitcher full of", "filberts"},
    {"The Wolf in Sheep's Clothing", "In the skin of which animal did the Wolf disguise himself?",
     "The Wolf was encased in the skin of a", "sheep"},
    {"The Boys and the Frogs", "What did the Boys throw at the Frogs in the pond?", "The Boys pelted the Frogs with", "stones"},
    {"The Lion, the Mouse, and the Fox", "Who ran over the mane and ears of the sleeping Lion and woke him?",
     "The Lion was woken from his slumbers by a", "Mouse"},
    {"The Boy and the Nettles", "By what was the Boy stung who ran home and told his Mother?",
     "The Boy who ran home to his Mother was stung by a", "Nettle"},
    {"The Astronomer", "Into what did the Astronomer fall?", "The Astronomer fell accidentally into a deep", "well"},
    {"The Fighting Cocks and the Eagle", "Who carried off the Cock that had won the fight?",
     "The Cock that had won was carried off by an", "Eagle"},
    {"The Belly and the Members", "Against what did the Members of the Body rebel?",
     "The Members of the Body rebelled against the", "Belly"},
    {"The Widow and her Little Maidens", "Which animal did the two little maidens of the Widow kill?",
     "The two little maidens of the Widow resolved to kill the", "cock"},
    {"The Cat and the Birds", "As what did the Cat dress himself up to call on the Birds?", "The Cat dressed himself up as a",
     "physician"},
    {"The Shepherd and the Wolf", "What did the Shepherd teach the young Wolf to steal?",
     "The Shepherd taught the young Wolf to steal", "lambs"},
    {"The Farmer and his Sons", "Where did the dying father say that a treasure was hid?",
     "The dying father said that there was a treasure hid in one of his", "vineyard"},
    {"The Swallow, the Serpent, and the Court of Justice", "Who ate up the young of the Swallow in the Court of Justice?",
     "The young of the Swallow were eaten up by a", "Serpent"},
    {"The Old Man and Death", "Whom did the Old Man ask to come when he threw down his load?",
     "The Old Man threw down his load and besought", "Death"},
    {"The Man Bitten by a Dog", "What was the Man who had been bitten told to dip in the blood of his wound?",
     "The Man was told to dip in the blood from his wound a piece of", "bread"},
    {"The Two Pots", "Of what was the Pot made that floated beside the earthen one?",
     "One of the two Pots was made of earthenware and the other of", "brass"},
    {"The Old Woman and the Wine-Jar", "What had the empty jar been full of that the Old Woman found?",
     "The empty jar that the Old Woman found had lately been full of prime old", "wine"},
    {"The Hawk, the Kite, and the Pigeons", "Whom did the Pigeons call upon to defend them from the Kite?",
     "To defend them from the Kite, the Pigeons called upon the", "Hawk"},
    {"The Eagle and the Arrow", "Whose movements did the Eagle on the lofty rock watch?",
     "The Eagle on the lofty rock was watching the movements of a", "Hare"},
};

data_set read_fables() {
  data_set made;
  made.documents = fables_as_documents();
  for (const row& r : rows) {
    const std::size_t at = fable_titled(r.title);
    made.questions.push_back({std::string(r.question), {std::string(r.answer)}, {at}, {}, {at}});
  }
  return made;
}

prompt make(const request& asked) {
  static const data_set data = read_fables();
  const std::size_t question = draw_in_turn(asked.seed, name, asked.sample, "questions", data.questions.size());
  return ask(asked, name, new_tokens, data, data.questions[question], "Answer: " + std::string(rows[question].begins));
}

}  // namespace

task documents() {
  return {.name = name,
          .meaning = "a question about a fable, among other fables",
          .group = beyond,
          .how = kind::answer,
          .new_tokens = new_tokens,
          .make = make,
          .score = any_contained};
}

}  // namespace eval
