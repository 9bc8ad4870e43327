// Part of lagkv (MIT). A function that the caller keeps alive, by reference: what std::function_ref (C++26) is. Not API.
#pragma once

#include <type_traits>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI::detail {

template <class Signature>
class function_ref;

template <class Result, class... Args>
class function_ref<Result(Args...)> {
 public:
  function_ref() = default;  // of nothing: not to be called

  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, function_ref>) function_ref(const F& f LAGKV_OUTLIVES)
      : object_(__builtin_addressof(f)), call_([](const void* object, Args... args) -> Result {
          return (*static_cast<const F*>(object))(static_cast<Args>(args)...);
        }) {}

  explicit operator bool() const noexcept { return call_ != nullptr; }

  Result operator()(Args... args) const { return call_(object_, static_cast<Args>(args)...); }

 private:
  const void* object_ = nullptr;
  Result (*call_)(const void*, Args...) = nullptr;
};

}  // namespace lagkv::inline LAGKV_ABI::detail
