// How a question about documents is asked, whatever they come from.
#pragma once

#include "tasks/data_set.hpp"
#include "tasks/task.hpp"

#include <cstddef>
#include <string>
#include <string_view>

namespace eval {

/// RULER's instruction.
inline constexpr std::string_view answer_alone =
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.";

/// RULER's prompt: the question's golden documents and as many others as request.length has room for, near ones first, all
/// numbered in a drawn order; then the question, and the beginning of the reply. The instruction stands before both. The answers
/// are the references, the needle documents the needles. Throws as fit() does.
[[nodiscard]] prompt ask(const request& asked, std::string_view task, std::size_t new_tokens, const data_set& data,
                         const data_set::question& question,
                         std::string answer_begins = "Answer:", std::string_view instruction = answer_alone);

}  // namespace eval
