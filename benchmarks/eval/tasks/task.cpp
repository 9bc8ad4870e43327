// The list of tasks, and what a user may call them.
#include "tasks/task.hpp"

#include "tasks/list.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace eval {
namespace {

std::vector<task> list_tasks() {
  std::vector<task> list = needle_tasks();
  list.insert(list.end(), {variable_tracking(), common_words(), coded_words()});
  for (const task& each : question_answering()) list.push_back(each);
  list.insert(list.end(), {passkey64(), needle_among_needles(), prose_recall(), documents(), chat_facts(), table_row(),
                           few_shot(), ledger(), two_documents(), summary(), code_completion(), state_machine()});
  for (const task& each : continuation_tasks()) list.push_back(each);
  return list;
}

constexpr std::string_view niah = "niah";
constexpr std::string_view everything = "all";
constexpr std::array groups = {niah, ruler, beyond, everyday, work, everything};

bool in_group(const task& each, std::string_view group) {
  if (group == niah) return each.name.starts_with("niah_");
  return group == everything || each.group == group;
}

std::string names() {
  std::string text;
  for (const task& each : all_tasks()) text.append(each.name).append(", ");
  text.append("and the groups");
  for (const std::string_view group : groups) text.append(group == niah ? " " : ", ").append(group);
  return text;
}

std::string_view trimmed(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

}  // namespace

too_short::too_short(std::string_view task, std::size_t length, std::size_t works)
    : std::invalid_argument(std::string(task) + ": length " + std::to_string(length) + " is too short; the least that works is " +
                            std::to_string(works) + " tokens"),
      least(works) {}

std::span<const task> all_tasks() {
  static const std::vector<task> tasks = list_tasks();
  return tasks;
}

std::vector<const task*> tasks_of(std::string_view list, const std::map<std::string, std::string>& files) {
  std::vector<const task*> chosen;
  const auto choose = [&](const task& each) {
    if (std::ranges::find(chosen, &each) == chosen.end()) chosen.push_back(&each);
  };
  const auto has_its_file = [&](const task& each) { return each.file.empty() || files.contains(std::string(each.name)); };

  for (;;) {
    const std::size_t comma = std::min(list.find(','), list.size());
    const std::string_view name = trimmed(list.substr(0, comma));
    if (std::ranges::find(groups, name) != groups.end()) {
      for (const task& each : all_tasks())
        if (in_group(each, name) && has_its_file(each)) choose(each);
    } else {
      const auto found = std::ranges::find(all_tasks(), name, &task::name);
      if (found == all_tasks().end()) throw std::invalid_argument("no task '" + std::string(name) + "'; there are " + names());
      if (!has_its_file(*found))
        throw std::invalid_argument(std::string(name) + " needs a data set: name its file with --" + std::string(found->file));
      choose(*found);
    }
    if (comma == list.size()) return chosen;
    list.remove_prefix(comma + 1);
  }
}

}  // namespace eval
