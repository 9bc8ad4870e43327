// A file of JSON lines that grows by one line at a time, under a lock.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace eval {

/// Throws std::runtime_error where the path exists and is no regular file (a device, a pipe): it cannot be gone on with.
void check_regular(const std::string& path);

/// Appends lines, each written before the next: what was measured survives an interruption. While it lives no other one can be
/// opened for the same file, by this process or another. POSIX.
class line_file {
 public:
  /// Every line begins with `line_begins`: by that a torn last line of an earlier run is known as ours, and removed. Throws
  /// std::runtime_error where the file cannot be written, another writes to it, or it ends with what is no such line.
  line_file(const std::string& path, std::string_view line_begins);
  line_file(const line_file&) = delete;
  line_file& operator=(const line_file&) = delete;
  ~line_file();

  /// Appends the line and an end of line. Throws std::runtime_error where it cannot be written (a full disk): then the file ends
  /// with the line before it.
  void add(std::string_view line);

  /// Bytes that the file had when it was opened, a torn line counted.
  [[nodiscard]] std::size_t bytes_found() const { return bytes_found_; }

 private:
  std::string path_;
  int file_ = -1;
  std::size_t bytes_found_ = 0;
};

/// Whether a text without an end of line is the beginning of a JSON line that begins with `line_begins`, and no more.
[[nodiscard]] bool torn(std::string_view text, std::string_view line_begins);

}  // namespace eval
