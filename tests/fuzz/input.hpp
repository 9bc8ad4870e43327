// Bytes as choices: what a fuzzer makes of its input. Beyond the end all choices are 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fuzz {

class input {
 public:
  input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }

  /// A T of the next bytes.
  template <class T>
  T take() {
    T x{};
    const std::size_t n = sizeof x < size_ ? sizeof x : size_;
    std::memcpy(&x, data_, n);
    data_ += n, size_ -= n;
    return x;
  }

  /// A number below n.
  std::size_t below(std::size_t n) { return take<std::uint8_t>() % n; }

  /// The text up to the end of the line.
  std::string line() {
    std::string text;
    while (size_ > 0 && *data_ != '\n') text.push_back(static_cast<char>(take<std::uint8_t>()));
    if (size_ > 0) take<std::uint8_t>();
    return text;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

/// What must hold. A fuzzer keeps the input of a program that aborts.
inline void expect(bool holds) {
  if (!holds) std::abort();
}

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
