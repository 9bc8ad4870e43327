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

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T))); }
  void deallocate(T* p, std::size_t) { ::operator delete(p); }

  friend bool operator==(const allocator&, const allocator&) { return true; }
};

template <class T>
using vector = std::vector<T, allocator<T>>;

}  // namespace lagkv::inline LAGKV_ABI::detail
