// A file that lies in memory, with a name that any function that opens files takes. Linux.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "input.hpp"

namespace fuzz {

class memory_file {
 public:
  memory_file(const std::uint8_t* data, std::size_t size) : file_(memfd_create("fuzz", 0)) {
    expect(file_ >= 0);
    for (std::size_t done = 0; done < size;) {
      const ssize_t n = write(file_, data + done, size - done);
      expect(n > 0);
      done += static_cast<std::size_t>(n);
    }
  }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  ~memory_file() { close(file_); }

  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

}  // namespace fuzz
