// What is in the prompts of each task.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "tasks/book.hpp"
#include "tasks/draws.hpp"
#include "tasks/fables.hpp"
#include "tasks/haystack.hpp"
#include "tasks/scoring.hpp"
#include "tasks/words.hpp"
#include "tasks_support.hpp"

namespace {

using namespace support;
using eval::prompt;

prompt made(std::string_view task, std::size_t length, std::size_t sample = 0) {
  return task_named(task).make(request_of(length, sample));
}

// Keys of the needles in a text, with their values.
std::multimap<std::string, std::string> needles_in(const std::string& text) {
  const std::string_view begin = "One of the special magic ";
  std::multimap<std::string, std::string> found;
  for (std::size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at + 1))
    found.emplace(between(text.substr(at), " for ", " is: "), between(text.substr(at, 200), " is: ", "."));
  return found;
}

// Where a text stands in the book, its paragraphs put in one: the number of its first word.
std::size_t place_in_book(std::string text) {
  static const eval::book& book = eval::shipped_book();
  const auto one_line = [](std::string s) {
    s.insert(s.begin(), ' ');  // so that it begins with a whole word
    std::ranges::replace(s, '\n', ' ');
    return s;
  };
  static const std::string ring = one_line(book.running_text(0, 2 * book.words.size()));
  const std::size_t at = ring.find(one_line(std::move(text)));
  EXPECT_NE(at, std::string::npos);
  return words_of(ring.substr(0, at)).size() % book.words.size();
}

const std::string noise = std::string(eval::noise_line);

TEST(niah, single_1_word_for_word) {
  const std::string key = "strong-tiger";
  const prompt p = made("niah_single_1", 128 + 135);
  EXPECT_EQ(p.context,
            "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
            "number afterwards.\n" +
                noise + "\nOne of the special magic numbers for strong-tiger is: 9911564.\n" + noise);
  EXPECT_EQ(p.question, "\nWhat is the special magic number for strong-tiger mentioned in the provided text?");
  EXPECT_EQ(p.answer_begins, "The special magic number for strong-tiger mentioned in the provided text is");
  EXPECT_EQ(p.references, std::vector<std::string>{"9911564"});
  EXPECT_EQ(p.needles, std::vector<std::string>{"One of the special magic numbers for strong-tiger is: 9911564."});
}

TEST(niah, plural_where_there_is_more_than_one_answer) {
  for (const char* name : {"niah_multivalue", "niah_multiquery"}) {
    const prompt p = made(name, 2000);
    EXPECT_TRUE(
        p.context.starts_with("Some special magic numbers are hidden within the following text. Make sure to memorize it. "
                              "I will quiz you about the numbers afterwards.\n"));
    EXPECT_TRUE(p.question.starts_with("\nWhat are all the special magic numbers for "));
    EXPECT_TRUE(p.question.ends_with(" mentioned in the provided text?"));
    EXPECT_TRUE(p.answer_begins.starts_with("The special magic numbers for "));
    EXPECT_TRUE(p.answer_begins.ends_with(" mentioned in the provided text are"));
  }
  for (const char* name : {"niah_single_3", "niah_multikey_3"}) {
    const prompt p = made(name, 2000);
    EXPECT_TRUE(
        p.context.starts_with("A special magic uuid is hidden within the following text. Make sure to memorize it. "
                              "I will quiz you about the uuid afterwards.\n"));
    EXPECT_TRUE(p.question.starts_with("\nWhat is the special magic uuid for "));
    EXPECT_TRUE(p.needles[0].starts_with("One of the special magic uuids for ")) << "the needle keeps its s";
  }
}

TEST(niah, keys_and_values_have_their_forms) {
  const auto is_word = [](const std::string& key) {
    const std::size_t hyphen = key.find('-');
    return hyphen > 0 && hyphen + 1 < key.size() &&
           has_form(key, std::string(hyphen, 'a') + "-" + std::string(key.size() - hyphen - 1, 'a'));
  };
  const auto is_number = [](const std::string& value) { return has_form(value, "0000000") && value[0] != '0'; };
  const auto is_uuid = [](const std::string& value) {
    return has_form(value, "xxxxxxxx-xxxx-4xxx-xxxx-xxxxxxxxxxxx") && times_in("89ab", value.substr(19, 1)) == 1;
  };
  for (const auto& t : eval::all_tasks().first(8)) {
    for (std::size_t sample = 0; sample < 10; ++sample) {
      for (const auto& [key, value] : needles_in(made(t.name, 3000, sample).context)) {
        EXPECT_TRUE(t.name == "niah_multikey_3" ? is_uuid(key) : is_word(key)) << key;
        EXPECT_TRUE(t.name.ends_with("_3") ? is_uuid(value) : is_number(value)) << value;
      }
    }
  }
}

TEST(niah, has_as_many_needles_keys_and_answers_as_the_table_says) {
  struct row {
    const char* name;
    std::size_t needles, keys, answers;
  };
  for (const row& r : {row{"niah_single_1", 1, 1, 1}, row{"niah_single_2", 1, 1, 1}, row{"niah_single_3", 1, 1, 1},
                       row{"niah_multikey_1", 4, 4, 1}, row{"needles_16", 16, 16, 1}, row{"niah_multivalue", 4, 1, 4},
                       row{"niah_multiquery", 4, 4, 4}}) {
    for (std::size_t sample = 0; sample < 10; ++sample) {
      const prompt p = made(r.name, 3000, sample);
      const auto found = needles_in(p.context);
      std::set<std::string> keys, values;
      for (const auto& [key, value] : found) keys.insert(key), values.insert(value);
      EXPECT_EQ(found.size(), r.needles) << r.name;
      EXPECT_EQ(p.needles.size(), r.needles) << r.name;
      EXPECT_EQ(keys.size(), r.keys) << r.name;
      EXPECT_EQ(values.size(), r.needles) << r.name;
      EXPECT_EQ(p.references.size(), r.answers) << r.name;
    }
  }
}

TEST(niah, asks_for_the_values_of_the_keys_it_names) {
  std::set<std::size_t> places;  // of the key asked for, among the four
  for (std::size_t sample = 0; sample < 30; ++sample) {
    for (const char* name : {"niah_multikey_1", "niah_multivalue", "niah_multiquery"}) {
      const prompt p = made(name, 3000, sample);
      std::vector<std::string> expected;
      std::string asked_for;
      for (const auto& [key, value] : needles_in(p.context))
        if (times_in(p.question, " " + key + " ") + times_in(p.question, " " + key + ",") == 1) expected.push_back(value);
      std::vector<std::string> references = p.references;
      std::ranges::sort(expected);
      std::ranges::sort(references);
      EXPECT_EQ(references, expected) << name;
      if (std::string_view(name) == "niah_multikey_1")
        for (std::size_t i = 0; i < 4; ++i)
          if (times_in(p.needles[i], p.references[0]) == 1) places.insert(i);
    }
  }
  EXPECT_EQ(places.size(), 4U);
}

TEST(needles_16, asks_for_one_of_sixteen_in_its_own_words) {
  std::set<std::size_t> places;  // of the key asked for, among the sixteen
  for (std::size_t sample = 0; sample < 100; ++sample) {
    const prompt p = made("needles_16", 3000, sample);
    const std::string key = between(p.question, "the special magic number for ", " mentioned in the provided text?");
    EXPECT_EQ(p.answer_begins, "One of the special magic numbers for " + key + " is:");
    const auto asked = std::ranges::find(p.needles, p.answer_begins + " " + p.references[0] + ".");
    ASSERT_NE(asked, p.needles.end()) << p.answer_begins;
    places.insert(static_cast<std::size_t>(asked - p.needles.begin()));
  }
  EXPECT_GT(places.size(), 12U);
}

TEST(niah, answers_in_the_order_of_the_query) {
  const prompt p = made("niah_multiquery", 3000);
  const auto found = needles_in(p.context);
  std::string list;
  std::map<std::string, std::string> key_of;
  for (const auto& [key, value] : found) key_of[value] = key;
  for (std::size_t i = 0; i < 4; ++i) list += (i == 0 ? "" : i < 3 ? ", " : ", and ") + key_of[p.references[i]];
  EXPECT_NE(p.question.find("numbers for " + list + " mentioned"), std::string::npos) << p.question;
}

TEST(niah, needles_among_needles_have_other_keys_and_values) {
  for (const char* name : {"niah_multikey_2", "niah_multikey_3"}) {
    const prompt p = made(name, 16000);
    const auto found = needles_in(p.context);
    EXPECT_EQ(found.size(), lines_of(p.context).size() - 1) << "all lines but the instruction";
    const std::string key = p.needles[0].substr(0, p.needles[0].find(" is: ")).substr(p.needles[0].find(" for ") + 5);
    EXPECT_EQ(found.count(key), 1U);
    EXPECT_EQ(times_in(p.context, p.references[0]), 1U);
    std::set<std::string> values;
    for (const auto& [k, value] : found) values.insert(value);
    EXPECT_GE(values.size(), found.size() - 2);
  }
}

// Same needles, but so many distractors that 14,400 words for keys would repeat the right one.
TEST(niah, no_distractor_has_the_key_asked_for) {
  std::size_t distractors = 0;
  for (std::size_t sample = 0; sample < 40; ++sample) {
    const prompt p = made("niah_multikey_2", 20000, sample);
    const std::string key = p.needles[0].substr(0, p.needles[0].find(" is: ")).substr(p.needles[0].find(" for ") + 5);
    EXPECT_EQ(times_in(p.context, " for " + key + " is: "), 1U);
    distractors += lines_of(p.context).size();
  }
  EXPECT_GT(distractors, 2 * 14400U);
}

TEST(niah, needles_stand_at_one_of_forty_depths) {
  const eval::book& book = eval::shipped_book();
  std::set<std::size_t> depths;
  for (std::size_t sample = 0; sample < 150; ++sample) {
    const prompt p = made("niah_single_2", 2000, sample);
    const std::string text = p.context.substr(p.context.find('\n') + 1);
    const std::size_t at = text.find(p.needles[0]);
    const std::string before = text.substr(0, at);
    std::string after = text.substr(at + p.needles[0].size());
    if (before.empty()) after.erase(0, 1);
    const std::size_t first = place_in_book(before.empty() ? after : before.substr(0, before.size() - 1) + after);
    const auto sentences = [&](std::size_t words) {
      std::size_t ends = 0;
      for (std::size_t i = 0; i < words; ++i) ends += book.ends_sentence[(first + i) % book.words.size()];
      return ends;
    };
    const std::size_t words_before = words_of(before).size();
    const std::size_t words = words_before + words_of(after).size();
    const std::size_t all = sentences(words - 1) + 1;  // the last may be a part
    const std::size_t sentences_before = words_before == words ? all : sentences(words_before);
    std::size_t depth = 40;
    for (std::size_t i = 0; i < 40; ++i)
      if (all * static_cast<std::size_t>(std::lround(static_cast<double>(i) * 100 / 39)) / 100 == sentences_before) depth = i;
    EXPECT_LT(depth, 40U) << sentences_before << " of " << all;
    depths.insert(depth);
  }
  EXPECT_GT(depths.size(), 30U) << "all over the text";
}

TEST(niah, essays_begin_at_different_sentences) {
  std::set<std::string> begins;
  for (std::size_t sample = 0; sample < 20; ++sample) {
    std::string text = made("niah_single_2", 1000, sample).context;
    text = text.substr(text.find('\n') + 1);
    for (const std::string& needle : made("niah_single_2", 1000, sample).needles)
      if (text.starts_with(needle)) text = text.substr(needle.size() + 1);
    begins.insert(text.substr(0, 20));
  }
  EXPECT_GT(begins.size(), 17U);
}

TEST(hide_in_lines, puts_needles_before_different_lines_in_order) {
  const std::vector<std::string> needles = {"A", "B", "C"};
  const auto line = [](std::size_t) { return std::string_view("-"); };
  const auto hide = [&](std::size_t lines, std::vector<double> places) {
    return eval::hide_in_lines(lines, line, needles, places);
  };
  EXPECT_EQ(hide(3, {0, 0.5, 0.99}), "A\n-\nB\n-\nC\n-");
  EXPECT_EQ(hide(5, {0, 0, 0}), "A\n-\nB\n-\nC\n-\n-\n-");
  EXPECT_EQ(hide(5, {0.99, 0.99, 0.99}), "-\n-\nA\n-\nB\n-\nC\n-");
  EXPECT_EQ(hide(6, {0.3, 0.6, 0.8}), "-\nA\n-\n-\nB\n-\n-\nC\n-");
}

TEST(hide_in_essay, puts_needles_between_sentences) {
  const std::vector<std::string> needles = {"A.", "B."};
  const eval::book& book = eval::shipped_book();
  const std::size_t first = book.sentences[40];
  const std::size_t words = book.sentences[44] + 3 - first;  // four sentences and a part of the fifth
  const auto sentence = [&](std::size_t i) {
    std::string text;
    for (std::size_t w = book.sentences[i]; w < std::min(book.sentences[i + 1], first + words); ++w)
      text.append(text.empty() ? "" : " ").append(book.words[w]);
    return text;
  };
  const auto hide = [&](std::vector<std::size_t> percents) { return eval::hide_in_essay(first, words, needles, percents); };
  std::vector<std::string> s;
  for (std::size_t i = 40; i < 45; ++i) s.push_back(sentence(i));
  EXPECT_EQ(hide({0, 100}), "A. " + s[0] + " " + s[1] + " " + s[2] + " " + s[3] + " " + s[4] + " B.");
  EXPECT_EQ(hide({19, 59}), "A. " + s[0] + " " + s[1] + " B. " + s[2] + " " + s[3] + " " + s[4]);
  EXPECT_EQ(hide({20, 79}), s[0] + " A. " + s[1] + " " + s[2] + " B. " + s[3] + " " + s[4]);
  EXPECT_EQ(hide({40, 40}), s[0] + " " + s[1] + " A. B. " + s[2] + " " + s[3] + " " + s[4]);
  EXPECT_TRUE(eval::hide_in_essay(book.sentences.back(), 500, {}, {}).find("Sir Walter Elliot, of Kellynch Hall,") !=
              std::string::npos)
      << "begins again";
}

TEST(vt, is_a_chain_in_order_after_a_worked_example) {
  for (std::size_t sample = 0; sample < 20; ++sample) {
    const prompt p = made("vt", 3000, sample);
    const std::string head = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";
    ASSERT_EQ(times_in(p.context, head), 2U);
    const std::size_t second = p.context.rfind(head);
    const std::string example = p.context.substr(0, second);
    const std::vector<std::string> lines = lines_of(p.context.substr(second + head.size()));

    std::vector<std::string> assigned;
    for (const std::string& line : lines) {
      if (line == noise) continue;
      assigned.push_back(line);
    }
    ASSERT_EQ(p.references.size(), 5U);
    for (const std::string& name : p.references) EXPECT_TRUE(has_form(name, "AAAAA")) << name;
    EXPECT_EQ(std::set<std::string>(p.references.begin(), p.references.end()).size(), 5U);
    const std::string value = between(p.question, "assigned the value ", " in the text");
    EXPECT_TRUE(has_form(value, "00000") && value[0] != '0') << value;
    EXPECT_EQ(p.question, "\nQuestion: Find all variables that are assigned the value " + value + " in the text above.");
    std::vector<std::string> expected = {"VAR " + p.references[0] + " = " + value};
    for (std::size_t i = 1; i < 5; ++i) expected.push_back("VAR " + p.references[i] + " = VAR " + p.references[i - 1] + " ");
    EXPECT_EQ(assigned, expected);
    EXPECT_EQ(p.needles, expected);
    EXPECT_EQ(p.answer_begins,
              "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value " +
                  value + ", they are: ");

    // The example: 3 letters, another value, its answer at its end.
    std::vector<std::string> names = {between(example, "VAR ", " = ")};
    const std::string shown = between(example, "VAR " + names[0] + " = ", "\n");
    EXPECT_TRUE(has_form(shown, "00000")) << shown;
    EXPECT_NE(shown, value);
    while (names.size() < 5) {
      const std::size_t end = example.find(" = VAR " + names.back() + " \n");
      ASSERT_NE(end, std::string::npos);
      names.push_back(example.substr(end - 3, 3));
      EXPECT_EQ(example.substr(end - 8, 8), "\nVAR " + names.back());
    }
    for (const std::string& name : names) EXPECT_TRUE(has_form(name, "AAA")) << name;
    std::string answer = "5 variables are assigned the value " + shown + ", they are:  ";
    for (std::size_t i = 0; i < 5; ++i) answer += names[i] + (i < 4 ? " " : "\n\n");
    EXPECT_TRUE(example.ends_with(answer)) << example;
    EXPECT_LE(bytes_counted(example), 500U);
    EXPECT_GT(bytes_counted(example), 500U - 24);
  }
}

// "1. w 2. w ..."
std::map<std::string, std::size_t> times_of_words(const std::string& list) {
  std::map<std::string, std::size_t> times;
  const std::vector<std::string> parts = words_of(list);
  for (std::size_t i = 0; i + 1 < parts.size(); i += 2) {
    EXPECT_EQ(parts[i], std::to_string(i / 2 + 1) + ".");
    ++times[parts[i + 1]];
  }
  EXPECT_EQ(parts.size() % 2, 0U);
  return times;
}

TEST(cwe, repeats_ten_words_more_than_the_others) {
  struct row {
    std::size_t length, common, others, example, example_common, example_others;
  };
  for (const row& r : {row{4095, 6, 1, 20, 3, 1}, row{4096, 30, 3, 40, 10, 3}, row{32768, 30, 3, 40, 10, 3}}) {
    const prompt p = made("cwe", r.length, 5);
    const std::string head =
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear "
        "most "
        "often.\n";
    const std::string question = "\nQuestion: What are the 10 most common words in the above list?";
    const std::string answer = "Answer: The top 10 words that appear most often in the list are:";
    EXPECT_EQ(p.question, question);
    EXPECT_EQ(p.answer_begins, answer);
    ASSERT_EQ(times_in(p.context, head), 2U);
    const std::size_t second = p.context.rfind(head);
    const auto own = times_of_words(p.context.substr(second + head.size()));
    ASSERT_EQ(p.references.size(), 10U);
    std::size_t common = 0;
    for (const auto& [word, times] : own) {
      EXPECT_TRUE(word.size() >= 4 && has_form(word, std::string(word.size(), 'a'))) << word;
      const bool asked = std::ranges::find(p.references, word) != p.references.end();
      common += asked;
      EXPECT_EQ(times, asked ? r.common : r.others) << word;
    }
    EXPECT_EQ(common, 10U);

    const std::string example = p.context.substr(0, second);
    ASSERT_TRUE(example.starts_with(head));
    const std::size_t end = example.find(question + " " + answer + " 1. ");
    ASSERT_NE(end, std::string::npos);
    const auto shown = times_of_words(example.substr(head.size(), end - head.size()));
    EXPECT_EQ(shown.size(), r.example);
    const auto top = times_of_words(example.substr(end + question.size() + 1 + answer.size()));
    EXPECT_EQ(top.size(), 10U);
    EXPECT_TRUE(example.ends_with("\n"));
    for (const auto& [word, times] : shown) {
      EXPECT_EQ(times, top.contains(word) ? r.example_common : r.example_others) << word;
      EXPECT_FALSE(own.contains(word)) << word;
    }
  }
}

TEST(cwe, is_shuffled) {
  const prompt p = made("cwe", 4095);
  const std::string list = p.context.substr(p.context.rfind("often.\n") + 7);
  const std::vector<std::string> parts = words_of(list);
  std::size_t repeats = 0;
  for (std::size_t i = 3; i < parts.size(); i += 2) repeats += parts[i] == parts[i - 2];
  EXPECT_LT(repeats, 5U);
}

TEST(fwe, has_the_frequencies_of_a_zeta_distribution) {
  for (const std::size_t length : {400U, 4096U, 32768U}) {
    const prompt p = made("fwe", length, 7);
    const std::string head =
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded "
        "words. ";
    ASSERT_TRUE(p.context.starts_with(head));
    std::map<std::string, std::size_t> times;
    for (const std::string& word : words_of(p.context.substr(head.size()))) ++times[word];
    std::vector<std::pair<std::size_t, std::string>> ranked;
    for (const auto& [word, n] : times) ranked.emplace_back(n, word);
    std::ranges::sort(ranked, std::greater());
    EXPECT_EQ(ranked[0].second, "...");
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(p.references[i], ranked[i + 1].second);
    EXPECT_EQ(p.references.size(), 3U);
    EXPECT_GT(ranked[3].first, ranked[4].first) << "no tie for the last place";

    // Some n gives all of the counts: int(n k^-2 / zeta(2)), as long as the vocabulary lasts.
    const double zeta2 = std::acos(-1) * std::acos(-1) / 6;
    const std::size_t vocabulary = std::max<std::size_t>(5, length / 50);
    bool rule = false;
    const auto least = static_cast<std::size_t>(static_cast<double>(ranked[0].first) * zeta2);
    for (std::size_t n = least; n < least + 4 && !rule; ++n) {
      std::vector<std::size_t> expected;
      for (std::size_t k = 1; k <= vocabulary; ++k)
        if (const auto c = static_cast<std::size_t>(static_cast<double>(n) / static_cast<double>(k * k) / zeta2); c > 0)
          expected.push_back(c);
      std::vector<std::size_t> counts;
      for (const auto& [c, word] : ranked) counts.push_back(c);
      rule = counts == expected;
    }
    EXPECT_TRUE(rule) << length;
    for (const auto& [c, word] : ranked)
      if (word != "...") {
        EXPECT_TRUE(has_form(word, "aaaaaa")) << word;
      }
  }
}

TEST(fwe, asks_as_ruler_does) {
  const prompt p = made("fwe", 1000);
  EXPECT_EQ(
      p.question,
      "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
      "words in the above coded text?");
  EXPECT_EQ(p.answer_begins, "Answer: According to the coded text above, the three most frequently appeared words are:");
}

TEST(fwe, has_no_tie_for_the_last_place_however_short) {
  std::size_t prompts = 0;
  for (std::size_t length = 100; length < 500; ++length) {
    prompt p;
    try {
      p = made("fwe", length);
    } catch (const std::invalid_argument&) {
      continue;
    }
    ++prompts;
    std::map<std::string, std::size_t> times;
    for (const std::string& word : words_of(p.context.substr(p.context.rfind("coded words. ") + 13))) ++times[word];
    for (const auto& [word, n] : times)
      if (word != "..." && std::ranges::find(p.references, word) == p.references.end()) {
        EXPECT_LT(n, times[p.references[2]]) << length;
      }
  }
  EXPECT_GT(prompts, 200U);
}

TEST(fwe, is_shuffled_for_every_size) {
  const std::string text = made("fwe", 4096).context;
  std::string longest = " ...";
  while (text.find(longest + " ...") != std::string::npos) longest += " ...";
  EXPECT_LT(longest.size(), 4 * 40U);
}

TEST(passkey64, word_for_word) {
  eval::request asked = request_of(80 + 113);
  asked.depth = 0.25;  // of 19 words: before word int(4.75)
  const prompt p = task_named("passkey64").make(asked);
  const std::string key = "5766997237141934849835836203157114925860972963142099705545866589";
  EXPECT_EQ(
      p.context,
      "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the "
      "important information there.\n"
      "The grass is green. The pass key is " +
          key + ". Remember it. " + key +
          " is the pass key. The sky is blue. The sun is yellow. Here we go. There and back again.");
  EXPECT_EQ(p.question, "\nWhat is the pass key?");
  EXPECT_EQ(p.answer_begins, "The pass key is ");
  EXPECT_EQ(p.references, std::vector<std::string>{key});
}

TEST(passkey64, stands_at_the_depth_asked_for) {
  std::set<std::string> keys;
  for (const std::size_t length : {300U, 1000U, 5000U}) {
    for (const double depth : {0.0, 0.1, 1.0 / 3, 0.5, 0.77, 0.9, 1.0}) {
      eval::request asked = request_of(length, 2);
      asked.depth = depth;
      const prompt p = task_named("passkey64").make(asked);
      keys.insert(p.references[0]);
      const std::string text = p.context.substr(p.context.find('\n') + 1);
      const std::size_t at = text.find(p.needles[0]);
      const std::size_t before = words_of(text.substr(0, at)).size();
      const std::size_t after = words_of(text.substr(at + p.needles[0].size())).size();
      EXPECT_EQ(before, static_cast<std::size_t>(static_cast<double>(before + after) * depth)) << length << ' ' << depth;
      EXPECT_EQ(text.find("  "), std::string::npos);
      std::string rest = text;
      rest.erase(at == 0 ? 0 : at - 1, p.needles[0].size() + 1);
      std::ranges::replace(rest, '\n', ' ');
      for (std::size_t i = 0; i < rest.size(); ++i) ASSERT_EQ(rest[i], (noise + " ")[i % (noise.size() + 1)]) << i;
    }
  }
  EXPECT_EQ(lines_of(made("passkey64", 1000).context)[1], noise) << "a line, repeated";
  EXPECT_EQ(keys.size(), 1U) << "one sample's key, at every length and depth";
  EXPECT_EQ(keys.begin()->size(), 64U);
  for (const double depth : {-0.1, 1.1, std::nan("")}) {
    eval::request asked = request_of(1000);
    asked.depth = depth;
    EXPECT_NE(complaint([&] { (void)task_named("passkey64").make(asked); }).find("depth"), std::string::npos);
  }
}

// A passage stands at its drawn place in running text of the book.
TEST(prose_recall, asks_for_what_follows_the_given_words) {
  const eval::book& book = eval::shipped_book();
  std::set<std::size_t> passages;
  std::set<std::size_t> tenths;
  for (std::size_t sample = 0; sample < 60; ++sample) {
    const prompt p = made("prose_recall", 2000, sample);
    const std::size_t first = place_in_book(p.needles[0]);
    passages.insert(first);
    EXPECT_TRUE(std::ranges::binary_search(book.sentences, first));
    EXPECT_EQ(p.needles[0], book.running_text(first, 36));
    EXPECT_EQ(p.answer_begins, book.running_text(first, 12));
    EXPECT_EQ(p.references, std::vector<std::string>{book.running_text(first + 12, 24)});
    EXPECT_EQ(p.needles[0].find('\n'), std::string::npos) << "one paragraph";
    EXPECT_EQ(times_in(eval::persuasion, p.answer_begins), 1U) << "no other passage begins so";

    const std::size_t words = words_of(p.context).size();
    EXPECT_EQ(p.context, book.running_text(place_in_book(p.context), words));
    const std::size_t before = words_of(p.context.substr(0, p.context.find(p.needles[0]))).size();
    ASSERT_LE(before, words - 36);
    tenths.insert(before * 10 / (words - 35));
  }
  EXPECT_GT(passages.size(), 55U);
  EXPECT_EQ(tenths.size(), 10U) << "anywhere";
}

TEST(prose_recall, stands_at_the_same_depth_for_all_lengths) {
  for (std::size_t sample = 0; sample < 10; ++sample) {
    const auto depth = [&](std::size_t length) {
      const prompt p = made("prose_recall", length, sample);
      const auto before = static_cast<double>(words_of(p.context.substr(0, p.context.find(p.needles[0]))).size());
      return before / static_cast<double>(words_of(p.context).size() - 35);
    };
    EXPECT_NEAR(depth(1500), depth(9000), 0.005);
  }
  EXPECT_EQ(made("prose_recall", 48 + 90).context.find(made("prose_recall", 48 + 90).needles[0]) == std::string::npos, false);
}

TEST(documents, are_fables_with_titles) {
  const std::vector<eval::fable>& fables = eval::shipped_fables();
  ASSERT_EQ(fables.size(), 298U);
  EXPECT_EQ(fables[0].title, "The Wolf and the Lamb");
  EXPECT_TRUE(fables[0].text.starts_with("A Wolf, meeting with a Lamb astray from the fold, resolved not to lay violent hands"));
  std::string all;
  std::set<std::string_view> texts;
  for (const eval::fable& each : fables) {
    EXPECT_FALSE(each.title.empty() || each.title.ends_with('.')) << each.title;
    EXPECT_GT(each.text.size(), 100U) << each.title;
    EXPECT_LE(each.title.size() + each.text.size(), 1200U) << each.title;
    EXPECT_TRUE(texts.insert(each.text).second) << each.title;
    all.append(all.empty() ? "" : "\n\n").append(each.title).append("\n").append(each.text);
  }
  EXPECT_EQ(all + "\n", eval::fables_text);
}

TEST(documents, asks_each_question_of_its_fable_once_a_round) {
  const std::vector<eval::fable>& fables = eval::shipped_fables();
  constexpr std::size_t questions = 43;
  std::set<std::string> asked, golden;
  std::set<std::size_t> places;
  std::vector<std::string> order;
  for (std::size_t sample = 0; sample < questions; ++sample) {
    const prompt p = made("documents", 4096, sample);
    const std::string question = p.question.substr(p.question.find("Question: ") + 10);
    order.push_back(question);
    EXPECT_TRUE(asked.insert(question).second) << question;
    ASSERT_EQ(p.references.size(), 1U);
    ASSERT_EQ(p.needles.size(), 1U);
    EXPECT_TRUE(golden.insert(p.needles[0]).second) << question;
    const std::string title = p.needles[0].substr(0, p.needles[0].find('\n'));
    EXPECT_EQ(std::ranges::count(fables, title, &eval::fable::title), 1) << title;
    EXPECT_GE(times_in(p.needles[0].substr(title.size()), p.references[0]), 1U) << question << ": not in the fable's text";
    EXPECT_FALSE(eval::contains(question + p.answer_begins, p.references[0])) << question << ": gives its answer away";
    EXPECT_TRUE(p.answer_begins.starts_with("Answer: ") && p.answer_begins.size() > 20) << p.answer_begins;

    // Fables and nothing else, numbered.
    std::size_t shown = 0;
    std::string rest = p.context;
    for (const eval::fable& each : fables) shown += times_in(p.context, std::string(each.title) + "\n" + std::string(each.text));
    const std::size_t documents = times_in(p.context, "Document ");
    EXPECT_EQ(shown, documents);
    EXPECT_GT(documents, 15U) << "more than a few, at 4,096 tokens";
    for (std::size_t i = 1; i <= documents; ++i) EXPECT_EQ(times_in(p.context, "Document " + std::to_string(i) + ":\n"), 1U);
    places.insert(times_in(p.context.substr(0, p.context.find(p.needles[0])), "Document "));
    EXPECT_LT(times_in(made("documents", 2048, sample).context, "Document "), documents);
  }
  EXPECT_EQ(made("documents", 4096, questions).needles.size(), 1U);
  EXPECT_TRUE(asked.contains([&] {
    const std::string again = made("documents", 4096, questions).question;
    return again.substr(again.find("Question: ") + 10);
  }()))
      << "then another round";
  EXPECT_GT(places.size(), 10U) << "anywhere among the documents";
  std::size_t moved = 0;
  for (std::size_t sample = 0; sample < questions; ++sample)
    moved += !task_named("documents").make(request_of(2048, sample, 43)).question.ends_with(order[sample]);
  EXPECT_GT(moved, questions / 2) << "another seed has another order";
}

TEST(perplexity, slices_do_not_overlap) {
  const std::size_t book = eval::shipped_book().words.size();
  std::vector<std::size_t> uses(book);
  const std::size_t length = 4096;
  std::size_t samples = 0;
  for (; samples < 18; ++samples) {
    const prompt p = made("perplexity", length, samples);
    const std::string all = p.context + p.continuation;
    const std::size_t first = place_in_book(all);
    const std::size_t words = words_of(all).size();
    for (std::size_t i = 0; i < words; ++i) ++uses[(first + i) % book];
    EXPECT_GE(bytes_counted(p.continuation), 256U);
    EXPECT_TRUE(p.continuation.starts_with(" ") || p.continuation.starts_with("\n"));
  }
  EXPECT_LE(*std::ranges::max_element(uses), 1U);
  EXPECT_GT(std::ranges::count(uses, 1U), static_cast<std::ptrdiff_t>(book / 2)) << "most of the book";
  // When the book is used up, other rounds cut it elsewhere.
  std::set<std::string> contexts;
  for (std::size_t sample = 0; sample < 100; ++sample) contexts.insert(made("perplexity", length, sample).context);
  EXPECT_EQ(contexts.size(), 100U);
}

TEST(perplexity, slices_are_there_for_any_length) {
  for (const std::size_t length : {300U, 150000U, 300000U}) {
    const prompt p = made("perplexity", length, 1);
    EXPECT_GE(tokens_taken(task_named("perplexity"), p) + 4, length);
    EXPECT_GE(bytes_counted(p.continuation), 256U);
  }
}

TEST(continuations, have_256_tokens_also_where_a_token_has_many_words) {
  eval::request asked = request_of(600);
  asked.count = [](std::string_view text) { return (text.size() + 31) / 32; };
  const prompt p = task_named("perplexity").make(asked);
  EXPECT_GE(asked.count(p.continuation), 256U);
  EXPECT_EQ(eval::shipped_book().running_text(place_in_book(p.context), words_of(p.context + p.continuation).size()),
            p.context + p.continuation);
}

TEST(continuations, slices_end_where_a_word_more_is_too_much) {
  const eval::book& book = eval::shipped_book();
  for (const char* name : {"perplexity", "generation"}) {
    for (std::size_t sample = 0; sample < 12; ++sample) {
      for (const std::size_t length : {400U, 1000U, 4096U}) {
        const prompt p = made(name, length, sample);
        const std::size_t words = words_of(p.context).size();
        const std::string more = book.running_text(place_in_book(p.context), words + 1);
        EXPECT_TRUE(more.starts_with(p.context));
        EXPECT_LE(bytes_counted(p.context) + 256, length);
        EXPECT_GT(bytes_counted(more) + 256, length);
        EXPECT_TRUE(p.question.empty() && p.answer_begins.empty() && p.references.empty());
        EXPECT_EQ(p.continuation.empty(), std::string_view(name) == "generation");
      }
    }
  }
}

// The code as it stands, spaces and empty lines too.
TEST(perplexity_code, is_read_on_line_by_line) {
  const eval::book& code = eval::shipped_code();
  const std::string ring = std::string(eval::headers) + std::string(eval::headers);
  std::vector<std::size_t> uses(eval::headers.size());
  for (const std::size_t length : {400U, 4096U}) {
    for (std::size_t sample = 0; sample < 10; ++sample) {
      const prompt p = made("perplexity_code", length, sample);
      const std::string all = p.context + p.continuation;
      std::size_t at = ring.find(all);
      ASSERT_NE(at, std::string::npos);
      EXPECT_TRUE(at == 0 || ring[at - 1] == '\n') << "from a line's beginning";
      EXPECT_TRUE(p.continuation.starts_with("\n"));
      EXPECT_GE(bytes_counted(p.continuation), 256U);
      EXPECT_LE(bytes_counted(p.continuation), 420U) << "not much more than is asked for";
      EXPECT_TRUE(p.question.empty() && p.answer_begins.empty() && p.references.empty());
      const std::string next = p.continuation.substr(1, p.continuation.find('\n', 1) - 1);
      EXPECT_GT(bytes_counted(p.context + "\n" + next) + 256, length) << "a line more is too much";
      if (length == 4096)
        for (std::size_t i = 0; i < all.size(); ++i) ++uses[(at + i) % uses.size()];
    }
  }
  EXPECT_EQ(*std::ranges::max_element(uses), 1U) << "ten slices lie side by side";
  EXPECT_EQ(code.running_text(0, code.words.size()) + "\n", eval::headers);
}

TEST(book, is_cut_in_lines) {
  const eval::book lines = eval::cut_in_lines("int f() {\n  return 1;\n\n}\n");
  EXPECT_EQ(lines.words, (std::vector<std::string_view>{"int f() {", "  return 1;", "", "}"}));
  EXPECT_EQ(lines.running_text(1, 2), "  return 1;\n");
  EXPECT_EQ(lines.running_text(2, 4), "\n}\nint f() {\n  return 1;") << "a ring";
  EXPECT_EQ(eval::cut_in_lines("a\nb").running_text(0, 2), "a\nb");
}

TEST(book, is_cut_in_words_and_sentences) {
  const eval::book book = eval::cut(
      "Mr. Fox ran. \"Did he?\" asked Mrs. Owl. (He did!) \n\nSo it goes on\nand on; couldn't well-known ask ran asked\n"
      "John Lamb, Esq. Lives here");
  EXPECT_EQ(book.words.size(), 26U);
  std::vector<std::string> sentences;
  for (std::size_t i = 0; i < book.sentences.size(); ++i) {
    const std::size_t end = i + 1 < book.sentences.size() ? book.sentences[i + 1] : book.words.size();
    sentences.push_back(book.running_text(book.sentences[i], end - book.sentences[i]));
    EXPECT_TRUE(book.ends_sentence[end - 1]);
  }
  EXPECT_EQ(sentences, (std::vector<std::string>{"Mr. Fox ran.", "\"Did he?\" asked Mrs. Owl.", "(He did!)", "So it goes on",
                                                 "and on; couldn't well-known ask ran asked", "John Lamb, Esq. Lives here"}));
  EXPECT_EQ(std::ranges::count(book.ends_sentence, true), 6);
  EXPECT_EQ(book.distinct, (std::vector<std::string_view>{"asked", "goes", "here"}));
  EXPECT_EQ(book.running_text(24, 4), "Lives here\nMr. Fox");
  EXPECT_EQ(book.running_text(9, 4), "did!)\nSo it goes") << "a paragraph's end";
}

TEST(book, is_the_shipped_one) {
  const eval::book& book = eval::shipped_book();
  EXPECT_EQ(book.words.size(), 83229U);
  EXPECT_EQ(book.running_text(0, book.words.size()) + "\n", eval::persuasion);
  EXPECT_GT(book.distinct.size(), 4000U) << "for cwe";
  EXPECT_GT(book.sentences.size(), 3000U);
}

TEST(words, are_plain_and_distinct) {
  std::set<std::string_view> seen;
  for (const auto& list : {eval::adjectives, eval::nouns})
    for (const std::string_view word : list) {
      EXPECT_TRUE(seen.insert(word).second) << word;
      EXPECT_TRUE(!word.empty() && std::ranges::all_of(word, [](char c) { return c >= 'a' && c <= 'z'; })) << word;
    }
  EXPECT_EQ(seen.size(), 240U);
}

TEST(draws, are_seeded_by_split_mix_64) {
  EXPECT_EQ(eval::split_mix(1234567), 6457827717110365317U);
  EXPECT_EQ(eval::draws(7, "niah", 3, "haystack").uuid(), "adb4f7d8-448b-4501-a5c0-e1235c6080b4");
}

TEST(draws, differ_by_everything_that_names_their_stream) {
  std::set<std::string> seen;
  for (const std::uint64_t seed : {0U, 1U, 42U})
    for (const char* task : {"a", "ab", "b"})
      for (const std::size_t sample : {0U, 1U, 2U})
        for (const char* purpose : {"", "a", "b"}) seen.insert(eval::draws(seed, task, sample, purpose).uuid());
  EXPECT_EQ(seen.size(), 81U);
}

TEST(draws, shuffle_to_every_order_alike) {
  std::map<std::vector<int>, int> times;
  eval::draws random(1, "shuffle", 0);
  for (int i = 0; i < 6000; ++i) {
    std::vector<int> values = {1, 2, 3};
    random.shuffle(values);
    ++times[values];
  }
  EXPECT_EQ(times.size(), 6U);
  for (const auto& [order, n] : times) EXPECT_NEAR(n, 1000, 150);
}

}  // namespace
