// Documents in their order, and the words around them.
#include "tasks/question.hpp"

#include "tasks/draws.hpp"
#include "tasks/haystack.hpp"

#include <algorithm>
#include <utility>

namespace eval {
namespace {

// All documents in the order in which a prompt takes them up: golden, near, others.
std::vector<std::size_t> draw_order(const data_set& data, const data_set::question& question, draws random) {
  std::vector<std::size_t> near = question.near;
  random.shuffle(near);
  std::vector<std::size_t> order = question.golden;
  order.insert(order.end(), near.begin(), near.end());

  std::vector<bool> taken(data.documents.size());
  for (const std::size_t i : order) taken[i] = true;
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < taken.size(); ++i)
    if (!taken[i]) others.push_back(i);
  random.shuffle(others);
  order.insert(order.end(), others.begin(), others.end());
  return order;
}

// The first `count` of the order, shuffled: each has a drawn rank, so that one more leaves the others where they stand.
std::string numbered(const data_set& data, const std::vector<std::size_t>& order, std::size_t count, draws random) {
  std::vector<std::pair<double, std::size_t>> ranked;
  for (std::size_t i = 0; i < count; ++i) ranked.emplace_back(random.fraction(), order[i]);
  std::ranges::sort(ranked);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) text += "\n\n";
    text.append("Document ").append(std::to_string(i + 1)).append(":\n").append(data.documents[ranked[i].second]);
  }
  return text;
}

}  // namespace

prompt ask(const request& asked, std::string_view task, std::size_t new_tokens, const data_set& data,
           const data_set::question& question, std::string answer_begins, std::string_view instruction) {
  const std::vector<std::size_t> order = draw_order(data, question, draws(asked.seed, task, asked.sample));
  const draws ranks(asked.seed, task, asked.sample, "ranks");

  prompt frame;
  frame.question = "\n\n" + std::string(instruction) + "\n\nQuestion: " + question.text;
  frame.answer_begins = std::move(answer_begins);
  frame.references = question.answers;
  for (const std::size_t i : question.needles) frame.needles.push_back(data.documents[i]);
  return fit(asked, task, new_tokens, {question.golden.size(), order.size()}, [&](std::size_t count) {
    prompt made = frame;
    made.context = std::string(instruction) + "\n\nThe following are given documents.\n\n" + numbered(data, order, count, ranks);
    return made;
  });
}

}  // namespace eval
