// What each file of tasks offers to the list in task.cpp.
#pragma once

#include "tasks/task.hpp"

#include <string_view>
#include <vector>

namespace eval {

// Groups, which each task names itself.
inline constexpr std::string_view ruler = "ruler";
inline constexpr std::string_view beyond = "beyond";
inline constexpr std::string_view everyday = "everyday";
inline constexpr std::string_view work = "work";

[[nodiscard]] std::vector<task> needle_tasks();  // niah.cpp
[[nodiscard]] task needle_among_needles();       // niah.cpp
[[nodiscard]] task variable_tracking();
[[nodiscard]] task common_words();
[[nodiscard]] task coded_words();
[[nodiscard]] std::vector<task> question_answering();
[[nodiscard]] task passkey64();
[[nodiscard]] task prose_recall();
[[nodiscard]] task documents();
[[nodiscard]] std::vector<task> continuation_tasks();
[[nodiscard]] task chat_facts();
[[nodiscard]] task table_row();
[[nodiscard]] task few_shot();
[[nodiscard]] task ledger();
[[nodiscard]] task two_documents();
[[nodiscard]] task summary();
[[nodiscard]] task code_completion();
[[nodiscard]] task state_machine();

}  // namespace eval
