// Part of lagkv (MIT). The one type erasure behind scorers, transforms and selectors.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI {

/// A function, or a small struct of options with a call operator, held by value: no heap, no RTTI, trivially copyable.
template <class Signature>
class callable;

template <class Result, class... Args>
class callable<Result(Args...)> {
 public:
  static constexpr std::size_t max_size = 48;

  callable() = default;

  template <class F>
  requires(!std::is_same_v<std::decay_t<F>, callable> && requires(const std::decay_t<F>& f, Args... args) {
    static_cast<Result>(f(static_cast<Args>(args)...));
  }) callable(F&& f) {
    using stored = std::decay_t<F>;
    static_assert(std::is_trivially_copyable_v<stored>, "hold plain values: a policy is copied as bytes");
    static_assert(sizeof(stored) <= max_size, "too large to be held by value: point to long-lived data");
    static_assert(alignof(stored) <= alignof(std::max_align_t));
    const stored held(f);
    std::memcpy(state_, &held, sizeof held);  // of a placement new GCC 12 loses doubles at -O2, where the callable moves on
    call_ = [](const void* state, Args... args) -> Result {
      return (*std::launder(static_cast<const stored*>(state)))(static_cast<Args>(args)...);
    };
  }

  explicit operator bool() const { return call_ != nullptr; }

  /// Only where a function is held.
  Result operator()(Args... args) const { return call_(state_, static_cast<Args>(args)...); }

 private:
  alignas(std::max_align_t) unsigned char state_[max_size] = {};
  Result (*call_)(const void*, Args...) = nullptr;
};

}  // namespace lagkv::inline LAGKV_ABI
