// Memory between two pages that nobody may touch: a byte too many, read or written, ends the program.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <stdexcept>

namespace support {

class guarded {
 public:
  enum class flush { front, back };

  /// `size` bytes that touch the forbidden page before them or the one behind them.
  guarded(std::size_t size, flush side) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inner = (size + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    base_ = static_cast<std::byte*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) != 0) throw std::runtime_error("mmap");
    data_ = side == flush::front ? base_ + page : base_ + page + inner - size;
  }
  guarded(const guarded&) = delete;
  guarded& operator=(const guarded&) = delete;
  ~guarded() { munmap(base_, mapped_); }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  /// From now on not even reads are allowed.
  void forbid() { mprotect(base_, mapped_, PROT_NONE); }

 private:
  std::size_t size_, mapped_ = 0;
  std::byte* base_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace support
