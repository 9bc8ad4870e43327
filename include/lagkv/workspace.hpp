// Part of lagkv (MIT). Scratch memory that only grows, and the choice of the SIMD target.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include <lagkv/detail/vector.hpp>
#include <lagkv/simd/rows.hpp>

// LAGKV_GUARD_SCRATCH, with the address sanitizer and for all files of a program: scratch that is not taken is forbidden, so that
// a step beyond an array is seen. For tests.
#if defined(LAGKV_GUARD_SCRATCH)
#include <sanitizer/asan_interface.h>
#endif

namespace lagkv::inline LAGKV_ABI {

namespace detail {

#if defined(LAGKV_GUARD_SCRATCH)
inline void forbid(const void* data, std::size_t n) noexcept { __asan_poison_memory_region(data, n); }
inline void allow(const void* data, std::size_t n) noexcept { __asan_unpoison_memory_region(data, n); }
#else
inline void forbid(const void*, std::size_t) noexcept {}
inline void allow(const void*, std::size_t) noexcept {}
#endif

}  // namespace detail

/// Scratch for one thread at a time; share it among layers and sequences. It allocates only while a call needs more than all
/// calls before it.
class workspace {
 public:
  /// With the kernels of `t`, or those of simd::best() if this CPU cannot run `t`; target() tells which.
  explicit workspace(simd::target t = simd::best()) : target_(simd::supported(t) ? t : simd::best()) {}
  /// A copy has scratch of its own.
  workspace(const workspace& other) : workspace(other.target_) {}
  workspace(workspace&& other) noexcept { swap(other); }
  workspace& operator=(const workspace&) = delete;
  workspace& operator=(workspace&& other) noexcept {
    swap(other);
    return *this;
  }
  ~workspace() {
    for (const kept_object& k : kept_) k.destroy(k.object);
    for (const block& b : blocks_) release(b);
  }

  simd::target target() const noexcept { return target_; }

  /// The kernels of one family, such as simd::row_kernels.
  template <class Family>
  const Family& kernels() const {
    return simd::kernels<Family>(target_);
  }

  /// What is taken while a frame lives is given back at its end. Frames nest.
  class frame {
   public:
    explicit frame(workspace& ws) : ws_(ws), block_(ws.block_), used_(ws.used_), before_(ws.before_) {
      if (ws.depth_++ == 0) ws.peak_ = 0;
    }
    ~frame() {
#if defined(LAGKV_GUARD_SCRATCH)
      for (std::size_t b = block_; b < ws_.blocks_.size(); ++b)
        detail::forbid(ws_.blocks_[b].data + (b == block_ ? used_ : 0), ws_.blocks_[b].size - (b == block_ ? used_ : 0));
#endif
      ws_.block_ = block_, ws_.used_ = used_, ws_.before_ = before_;
      if (--ws_.depth_ == 0 && ws_.blocks_.size() > 1) ws_.merge();
    }
    frame(const frame&) = delete;
    frame& operator=(const frame&) = delete;

   private:
    workspace& ws_;
    std::size_t block_, used_, before_;
  };

  /// n numbers of undefined content, aligned to 64 bytes, until the end of the innermost frame. compress() and all that
  /// calls scorers, transforms and selectors has opened one for them.
  template <class T>
  T* take(std::size_t n) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= line);
    return reinterpret_cast<T*>(bytes(n * sizeof(T)));
  }

  /// Makes sure that so many more bytes can be taken without an allocation; each number taken counts rounded up to 64.
  void reserve(std::size_t n);

  /// Bytes that were in use at once, at most, since the outermost frame was opened.
  std::size_t peak() const noexcept { return peak_; }

  /// An object that stays from call to call, one of each type: made when it is first asked for.
  template <class T>
  T& kept() {
    for (const kept_object& k : kept_)
      if (k.type == &type_of<T>) return *static_cast<T*>(k.object);
    kept_.reserve(kept_.size() + 1);  // so that the object is not lost if there is no memory for its entry
    T* made = new T;
    kept_.push_back({&type_of<T>, made, [](void* object) { delete static_cast<T*>(object); }});
    return *made;
  }

 private:
  static constexpr std::size_t line = 64, least_block = 16384;  // bytes

  struct block {
    std::byte* data;
    std::size_t size;
  };
  struct kept_object {
    const char* type;
    void* object;
    void (*destroy)(void*);
  };
  template <class T>
  static constexpr char type_of = 0;

  void swap(workspace& other) noexcept {
    std::swap(target_, other.target_);
    blocks_.swap(other.blocks_), kept_.swap(other.kept_);
    std::swap(block_, other.block_), std::swap(used_, other.used_), std::swap(depth_, other.depth_);
    std::swap(before_, other.before_), std::swap(peak_, other.peak_);
  }

  static void release(const block& b) noexcept {
    detail::allow(b.data, b.size);
    ::operator delete (b.data, std::align_val_t{line});
  }

  std::byte* bytes(std::size_t asked) {
    const std::size_t n = (asked + line - 1) / line * line;
    if (blocks_.empty() || used_ + n > blocks_[block_].size) next_block(n);
    std::byte* out = blocks_[block_].data + used_;
    used_ += n;
    detail::allow(out, asked);
    if (before_ + used_ > peak_) peak_ = before_ + used_;
    return out;
  }

  /// What is in use never moves: more memory is a further block.
  void next_block(std::size_t n);
  void add_block(std::size_t n);

  /// Makes one block of all, so that what was needed once is there in one piece. Without memory for it they stay.
  void merge() noexcept;

  simd::target target_ = simd::baseline;
  detail::vector<block> blocks_{};
  std::size_t block_ = 0, used_ = 0;   // where the next bytes are taken
  std::size_t before_ = 0, peak_ = 0;  // bytes of the blocks before that one; used_ of them and it, at most
  std::size_t depth_ = 0;              // of frames
  detail::vector<kept_object> kept_{};
};

#if LAGKV_BODIES

LAGKV_FN void workspace::next_block(std::size_t n) {
  std::size_t next = blocks_.empty() ? 0 : block_ + 1;
  while (next < blocks_.size() && blocks_[next].size < n) ++next;
  if (next == blocks_.size()) add_block(n);
  for (std::size_t b = block_; b < next; ++b) before_ += blocks_[b].size;
  block_ = next, used_ = 0;
}

LAGKV_FN void workspace::add_block(std::size_t n) {
  blocks_.reserve(blocks_.size() + 1);
  const std::size_t size = n > least_block ? n : least_block;
  blocks_.push_back({static_cast<std::byte*>(::operator new (size, std::align_val_t{line})), size});
  detail::forbid(blocks_[blocks_.size() - 1].data, size);
}

LAGKV_FN void workspace::reserve(std::size_t n) {
  if (!blocks_.empty() && blocks_[block_].size - used_ >= n) return;
  for (std::size_t b = block_ + 1; b < blocks_.size(); ++b)
    if (blocks_[b].size >= n) return;
  add_block(n);
}

LAGKV_FN void workspace::merge() noexcept {
  std::size_t all = 0;
  for (const block& b : blocks_) all += b.size;
  void* data = ::operator new (all, std::align_val_t{line}, std::nothrow);
  if (data == nullptr) return;
  for (const block& b : blocks_) release(b);
  blocks_.resize(1);
  blocks_[0] = {static_cast<std::byte*>(data), all};
  detail::forbid(data, all);
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
