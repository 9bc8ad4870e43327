// Says what is being done, so that nobody waits before an empty screen.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <string>

namespace passkey {

/// On a terminal one line, written anew for every step and wiped in the end; elsewhere (a file, a pipe) a line for everything
/// that begins, and none for its steps.
class progress {
 public:
  progress(std::ostream& out, bool terminal) : out_(out), terminal_(terminal) {}
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() { wipe(); }

  void begin(std::string what);

  /// So many tokens, of all that what began last has to do.
  void step(std::size_t done, std::size_t all);

  /// Before anything else is written to that terminal.
  void wipe();

 private:
  void show(const std::string& line);

  std::ostream& out_;
  bool terminal_;
  std::string what_;
  std::size_t shown_ = 0;  // bytes of the line
};

}  // namespace passkey
