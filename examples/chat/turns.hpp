// The text that a model wants around what is said, one turn at a time.
#pragma once

#include <llama.h>

#include <string>

namespace chat {

/// Up to where the assistant begins to answer the first message. Without a template: the messages, a line each.
[[nodiscard]] std::string first_turn(const llama_model* model, const std::string& system, const std::string& message);

/// The system prompt alone, as it begins that text; empty where the template has no place for it.
[[nodiscard]] std::string system_part(const llama_model* model, const std::string& system);

/// What follows the assistant's answer, up to where it begins to answer the next message. `ended_by`: the text of the token that
/// ended the answer, which is in the cache; empty if it was cut off.
[[nodiscard]] std::string next_turn(const llama_model* model, const std::string& message, const std::string& ended_by);

}  // namespace chat
