// What a chat template puts around a message, in the forms that llama.cpp's templates have.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "frame.hpp"

namespace {

using parts = std::pair<std::string, std::string>;

parts frame_of(const std::string& before, const std::string& after) {
  return eval::frame_of([&](const std::string& message) { return before + message + after; });
}

TEST(Frame, IsWhatTheTemplateHasAroundTheMessage) {
  for (const parts& each : {parts{"", ""},
                            {"<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"},
                            {"<|start|>user<|message|>", "<|end|><|start|>assistant"},  // gpt-oss
                            {"system\nYou answer a user's message.\nuser\n", "\nassistant\nThe message of the assistant:"}})
    EXPECT_EQ(frame_of(each.first, each.second), each);
}

TEST(Frame, IsNothingWhereTheMessageDoesNotComeBack) {
  EXPECT_EQ(eval::frame_of([](const std::string&) { return std::string("no message"); }), (parts{"", ""}));
}

}  // namespace
