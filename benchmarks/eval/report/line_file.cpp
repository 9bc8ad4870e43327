#include "line_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace eval {

bool torn(std::string_view text, std::string_view line_begins) {
  const std::size_t both = std::min(text.size(), line_begins.size());
  return text.substr(0, both) == line_begins.substr(0, both) && !nlohmann::json::accept(text);
}

void check_regular(const std::string& path) {
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path))
    throw std::runtime_error(path + ": is no regular file");
}

line_file::line_file(const std::string& path, std::string_view line_begins) : path_(path) {
  check_regular(path);
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const auto fail = [&](const std::string& why) {
    if (file_ >= 0) ::close(file_);
    throw std::runtime_error(path_ + ": " + why);
  };
  if (file_ < 0) fail("cannot be written");
  if (::flock(file_, LOCK_EX | LOCK_NB) != 0)
    fail("another run writes to it: wait until it ends, or name another file with --out");
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) fail("cannot be read");
  bytes_found_ = text.size();
  const std::size_t begin = text.rfind('\n') + 1;  // 0 where there is no line end
  const std::string_view last = std::string_view(text).substr(begin);
  if (last.empty()) return;
  if (nlohmann::json::accept(last)) {
    if (::write(file_, "\n", 1) != 1) fail("cannot be written");
  } else if (!torn(last, line_begins)) {
    fail("ends with what is no line of results; left as it is");
  } else if (::ftruncate(file_, static_cast<off_t>(begin)) != 0) {
    fail("cannot be written");
  }
}

line_file::~line_file() { ::close(file_); }

void line_file::add(std::string_view line) {
  const std::string text = std::string(line) + '\n';
  const off_t before = ::lseek(file_, 0, SEEK_END);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(file_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const std::string why = std::strerror(n < 0 ? errno : ENOSPC);
      if (::ftruncate(file_, before) != 0) throw std::runtime_error(path_ + ": ends within a line: " + why);
      throw std::runtime_error(path_ + ": cannot be written: " + why);
    }
    done += static_cast<std::size_t>(n);
  }
}

}  // namespace eval
