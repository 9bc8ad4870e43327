// What the programs do with an error: one line that names the program, and an exit code.
#pragma once

#include <exception>
#include <iostream>
#include <stdexcept>

namespace host {

constexpr int bad_input = 2;  ///< for std::invalid_argument; a run that fails ends with 1

/// Calls work(), and gives main()'s exit code.
template <class Work>
int run(const char* program, const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::invalid_argument& wrong) {
    std::cerr << program << ": " << wrong.what() << '\n';
    return bad_input;
  } catch (const std::exception& failure) {
    std::cerr << program << ": " << failure.what() << '\n';
    return 1;
  }
}

}  // namespace host
