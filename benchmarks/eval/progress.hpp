// A progress bar with the time left, on standard error: one line that is drawn again on a terminal, a line now and then
// elsewhere. Its own few lines, because neither Debian 12 nor Ubuntu 24.04 has a C++ progress bar that knows the time left.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace eval {

class progress {
 public:
  /// `total` steps are ahead.
  explicit progress(std::size_t total);
  ~progress();
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  /// One step is done; `what` is being done.
  void step(const std::string& what);

  /// So many of the steps ahead will not be done.
  void leave_out(std::size_t steps) { total_ -= steps; }

 private:
  void draw(const std::string& what);

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), drawn_{};
  std::size_t total_, done_ = 0;
  bool terminal_;
};

/// "1 h 02 min", "3 min 20 s", "12 s".
[[nodiscard]] std::string duration(double seconds);

}  // namespace eval
