// What a chat template puts around a message.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>

namespace eval {

/// What `chat` puts before and after a message; nothing where it does not have the message as it is.
[[nodiscard]] inline std::pair<std::string, std::string> frame_of(const std::function<std::string(const std::string&)>& chat) {
  const std::string message = "5d0c6e92b7";  // no word: gpt-oss's template has "message" itself
  const std::string framed = chat(message);
  const std::size_t at = framed.find(message);
  if (at == std::string::npos) return {};
  return {framed.substr(0, at), framed.substr(at + message.size())};
}

}  // namespace eval
