// Part of lagkv (MIT). std::vector with an allocator of our own: the functions that a compiler makes of it bear our namespace, so
// those of a file with newer instructions never serve another file (config.hpp). Not API.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI::detail {

template <class T>
struct allocator {
  using value_type = T;

  allocator() = default;
  template <class U>
  allocator(const allocator<U>&) {}

  // Whole cache lines: a vector of 64 bytes that crosses from one to the next costs kernels a tenth of their time.
  static constexpr std::align_val_t line{64};

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, line); }

  friend bool operator==(const allocator&, const allocator&) { return true; }
};

template <class T>
using vector = std::vector<T, allocator<T>>;

}  // namespace lagkv::inline LAGKV_ABI::detail
