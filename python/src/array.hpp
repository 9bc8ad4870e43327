// Python arrays as views: what crosses is checked here, shape, strides, element type, device and whether it may be written.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#include <lagkv/lagkv.hpp>

namespace nb = nanobind;

namespace python {

/// Becomes lagkv.Error, with this message.
struct refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(std::initializer_list<lagkv::detail::piece> pieces);

inline void expect(const lagkv::status& s) {
  if (!s) throw refused(s.message());
}

template <class T>
T expect(lagkv::result<T> r) {
  if (!r) throw refused(r.message());
  return std::move(*r);
}

/// TypeError: NAME=VALUE: must be SUCH. A long value is cut.
[[noreturn]] void refuse_type(const char* name, nb::handle x, const char* must);

inline const std::string a_whole_number = "a whole number from 0 to " + std::to_string((std::numeric_limits<std::size_t>::max)());

/// An argument that is converted by get(), where its name is known: what Python has in place of a T is refused by name and value.
template <class T>
struct given {
  nb::handle x{};

  T get(const char* name, const char* must) const {
    T out{};
    if (x.is_none() || !nb::try_cast(x, out)) refuse_type(name, x, must);
    return out;
  }
};

/// A count, or an index.
struct whole : given<std::size_t> {
  std::size_t get(const char* name) const { return given::get(name, a_whole_number.c_str()); }
};

/// Element types that arrays may have, as a set.
enum kinds : unsigned { halves_and_floats = 1, float32 = 2, float64 = 4, int32 = 8 };

/// An array of Python's, held while a view of it is in use. Empty by default.
class array {
 public:
  array() = default;

  /// Refuses what is no array in CPU memory of `least` to `most` dimensions and of these types. TypeError if it is no array at
  /// all.
  array(const char* name, nb::handle x, int least, int most, unsigned types);

  explicit operator bool() const { return rank_ != 0; }
  int rank() const { return rank_; }
  std::size_t size(int i) const { return size_[i]; }
  std::ptrdiff_t stride(int i) const { return stride_[i]; }
  lagkv::dtype type() const { return type_; }
  std::byte* data() const { return data_; }

  /// The array of one index of the first dimension.
  array entry(std::size_t i) const;

  /// Refuses read-only memory; and entries of the first dimension, where that is one of a batch, that share memory.
  void expect_writable(bool batched = false) const;

  /// Of three dimensions [heads, tokens, channels], as a view.
  lagkv::tensor view() const;

  /// Of two dimensions [heads, tokens] whose tokens lie side by side; null where the array is empty.
  template <class T>
  lagkv::side_array<T> side() const {
    return {reinterpret_cast<T*>(data_), rank_ == 2 && size_[0] > 1 ? stride_[0] : 0};
  }

  /// Refuses elements that do not lie side by side along the last dimension.
  void expect_dense_rows() const;

  const char* name() const { return name_; }

 private:
  static constexpr int most_rank = 4;

  nb::ndarray<> writable_{};
  nb::ndarray<nb::ro> read_only_{};
  const char* name_ = "";
  std::byte* data_ = nullptr;
  int rank_ = 0;
  bool can_write_ = false;
  std::size_t size_[most_rank] = {};
  std::ptrdiff_t stride_[most_rank] = {};
  lagkv::dtype type_ = lagkv::dtype::f32;
};

}  // namespace python

namespace nanobind::detail {

template <class T>
struct type_caster<python::given<T>> {
  NB_TYPE_CASTER(python::given<T>, make_caster<T>::Name)
  bool from_python(handle src, std::uint8_t, cleanup_list*) noexcept {
    value.x = src;
    return true;
  }
};

template <>
struct type_caster<python::whole> {
  NB_TYPE_CASTER(python::whole, make_caster<std::size_t>::Name)
  bool from_python(handle src, std::uint8_t, cleanup_list*) noexcept {
    value.x = src;
    return true;
  }
};

}  // namespace nanobind::detail
