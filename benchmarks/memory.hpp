// Memory whose state a benchmark controls: aligned, restorable, out of the CPU's caches; and how fast it is at best.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace bench {

inline constexpr std::size_t line = 64;

/// Bytes that start at a cache line, as engines allocate them.
class memory {
 public:
  explicit memory(std::size_t size = 0) : data_(new (std::align_val_t{line}) std::byte[size]), size_(size) {}
  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct release {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{line}); }
  };
  std::unique_ptr<std::byte[], release> data_;
  std::size_t size_;
};

#if defined(__x86_64__)
/// Flushes whose order does not matter, several under way at a time.
[[gnu::target("clflushopt")]] inline void flush_unordered(const memory& m) {
  for (std::size_t i = 0; i < m.size(); i += line) _mm_clflushopt(m.data() + i);
}

inline bool has_clflushopt() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_CLFLUSHOPT) != 0;
}
#endif

/// Puts `m` out of every cache of the CPU: by the time a layer is compressed, the layers after it have been through them.
inline void evict(const memory& m) {
#if defined(__x86_64__)
  static const bool unordered = has_clflushopt();
  if (unordered)
    flush_unordered(m);
  else
    for (std::size_t i = 0; i < m.size(); i += line) _mm_clflush(m.data() + i);
  _mm_mfence();
#elif defined(__aarch64__)
  for (std::size_t i = 0; i < m.size(); i += line) __asm__ volatile("dc civac, %0" : : "r"(m.data() + i) : "memory");
  __asm__ volatile("dsb ish" : : : "memory");
#endif
}

/// Reads every byte of one of `parts` equal pieces with wide loads and does next to nothing with them.
[[gnu::noinline]] inline std::uint64_t plain_read(const memory& m, std::size_t part = 0, std::size_t parts = 1) {
  typedef std::uint64_t wide __attribute__((vector_size(16)));
  const std::size_t piece = m.size() / parts / line * line;
  const auto* p = reinterpret_cast<const wide*>(m.data() + part * piece);
  wide a{}, b{}, c{}, d{};
  const std::size_t n = (part + 1 == parts ? m.size() - part * piece : piece) / sizeof(wide);
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) a |= p[i], b |= p[i + 1], c |= p[i + 2], d |= p[i + 3];
  for (; i < n; ++i) a |= p[i];
  a |= b | c | d;
  return a[0] | a[1];
}

/// CPU seconds of this thread so far: unlike a clock on the wall, it stands still while other programs have the core.
inline double cpu_seconds() {
  std::timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// CPU seconds that `work` takes.
template <class Work>
double seconds(const Work& work) {
  const double start = cpu_seconds();
  work();
  return cpu_seconds() - start;
}

/// Seconds on the wall, for work of several threads.
template <class Work>
double wall_seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> x) {
  if (x.empty()) return 0;
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

}  // namespace bench
