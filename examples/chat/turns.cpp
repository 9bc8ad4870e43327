#include "turns.hpp"

#include <initializer_list>
#include <vector>

namespace chat {

namespace {

/// Empty where the model has no template, or none that llama.cpp knows.
std::string render(const llama_model* model, std::initializer_list<llama_chat_message> messages, bool answers) {
  const char* chat_template = llama_model_chat_template(model, nullptr);
  if (chat_template == nullptr) return {};
  const std::vector<llama_chat_message> all(messages);
  std::string text(1024, '\0');
  for (int tries = 0; tries < 2; ++tries) {
    const std::int32_t n = llama_chat_apply_template(chat_template, all.data(), all.size(), answers, text.data(),
                                                     static_cast<std::int32_t>(text.size()));
    if (n < 0) return {};
    const bool fits = static_cast<std::size_t>(n) <= text.size();
    text.resize(static_cast<std::size_t>(n));
    if (fits) return text;
  }
  return {};
}

}  // namespace

std::string first_turn(const llama_model* model, const std::string& system, const std::string& message) {
  const llama_chat_message user{"user", message.c_str()}, first{"system", system.c_str()};
  const std::string text = system.empty() ? render(model, {user}, true) : render(model, {first, user}, true);
  return text.empty() ? system + "\n" + message + "\n" : text;
}

std::string system_part(const llama_model* model, const std::string& system) {
  if (system.empty()) return {};
  const std::string a = first_turn(model, system, "a"), b = first_turn(model, system, "b");
  std::size_t same = 0;
  while (same < a.size() && same < b.size() && a[same] == b[same]) ++same;
  return a.substr(0, same);
}

std::string next_turn(const llama_model* model, const std::string& message, const std::string& ended_by) {
  const llama_chat_message asked{"user", "x"}, answered{"assistant", "y"}, user{"user", message.c_str()};
  const std::string before = render(model, {asked, answered}, false), after = render(model, {asked, answered, user}, true);
  const std::size_t answer = before.rfind('y');
  if (before.empty() || answer == std::string::npos || after.compare(0, before.size(), before) != 0) return "\n" + message + "\n";
  std::string text = after.substr(answer + 1);
  if (!ended_by.empty() && text.compare(0, ended_by.size(), ended_by) == 0) text.erase(0, ended_by.size());
  return text;
}

}  // namespace chat
