#include "array.hpp"

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace python {

void refuse(std::initializer_list<lagkv::detail::piece> pieces) { throw refused(lagkv::detail::joined(pieces)); }

void refuse_type(const char* name, nb::handle x, const char* must) {
  constexpr std::size_t most = 80;  // characters of the value
  nb::object text = nb::repr(x);
  const char* rest = "";
  if (nb::len(text) > most) text = text[nb::slice(nb::int_(0), nb::int_(most), nb::int_(1))], rest = "...";
  throw nb::type_error(lagkv::detail::joined({name, "=", nb::str(text).c_str(), rest, ": must be ", must}).c_str());
}

namespace {

std::string name_of(const nb::dlpack::dtype& t) {
  using code = nb::dlpack::dtype_code;
  const auto bits = std::to_string(t.bits);
  switch (static_cast<code>(t.code)) {
    case code::Int:
      return "int" + bits;
    case code::UInt:
      return "uint" + bits;
    case code::Float:
      return "float" + bits;
    case code::Bfloat:
      return "bfloat" + bits;
    case code::Complex:
      return "complex" + bits;
    case code::Bool:
      return "bool";
    default:
      return "of DLPack's code " + std::to_string(t.code) + " and " + bits + " bits";
  }
}

/// The element type, if it is one of those; their names else.
std::string take_type(const nb::dlpack::dtype& t, unsigned types, lagkv::dtype& out) {
  using code = nb::dlpack::dtype_code;
  const auto is = [&](code c, int bits) { return t.code == static_cast<std::uint8_t>(c) && t.bits == bits && t.lanes == 1; };
  if ((types & (halves_and_floats | float32)) != 0 && is(code::Float, 32)) return out = lagkv::dtype::f32, "";
  if ((types & halves_and_floats) != 0 && is(code::Float, 16)) return out = lagkv::dtype::f16, "";
  if ((types & halves_and_floats) != 0 && is(code::Bfloat, 16)) return out = lagkv::dtype::bf16, "";
  if ((types & float64) != 0 && is(code::Float, 64)) return "";
  if ((types & int32) != 0 && (is(code::Int, 32) || is(code::UInt, 32))) return "";
  return (types & halves_and_floats) != 0 ? "float32, float16 or bfloat16"
         : (types & float32) != 0         ? "float32"
         : (types & float64) != 0         ? "float64"
                                          : "int32 or uint32";
}

template <class T>
lagkv::tensor view_of(std::byte* data, const std::size_t* size, const std::ptrdiff_t* stride) {
  return lagkv::strided<T>(reinterpret_cast<T*>(data), {size[0], size[2]}, {stride[0], stride[1], stride[2]}, size[1]);
}

}  // namespace

array::array(const char* name, nb::handle x, int least, int most, unsigned types) : name_(name) {
  can_write_ = nb::try_cast(x, writable_, false);
  if (!can_write_ && !nb::try_cast(x, read_only_, false)) {
    const std::string message = lagkv::detail::joined(
        {name, ": must be an array that speaks DLPack or the buffer protocol and has a type that DLPack knows, not ",
         nb::inst_name(x).c_str()});
    try {
      if (nb::hasattr(x, "__dlpack__")) x.attr("__dlpack__")();
    } catch (nb::python_error& e) {  // its own reason: it requires gradients, say
      nb::raise_from(e, PyExc_TypeError, "%s", message.c_str());
    }
    throw nb::type_error(message.c_str());
  }
  const auto read = [&](const auto& a) {
    const auto rank = static_cast<int>(a.ndim());
    if (rank < least || rank > most) {
      if (least == most) refuse({name, ": ndim=", rank, ": must be ", most});
      refuse({name, ": ndim=", rank, ": must be ", least, " or ", most});
    }
    if (a.device_type() != nb::device::cpu::value && a.device_type() != nb::device::cuda_host::value)
      refuse({name, ": device_type=", a.device_type(), ": must be 1 (CPU) or 3 (pinned by CUDA): send the plan to a device"});
    if (const std::string must = take_type(a.dtype(), types, type_); !must.empty())
      refuse({name, ": dtype ", name_of(a.dtype()), ": must be ", must});
    rank_ = rank;
    for (int i = 0; i < rank; ++i) {
      size_[i] = a.shape(static_cast<std::size_t>(i));
      stride_[i] = static_cast<std::ptrdiff_t>(a.stride(static_cast<std::size_t>(i)));
    }
    data_ = reinterpret_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(a.data())));
    const std::size_t bytes = a.dtype().bits / 8U;
    if (const auto rest = reinterpret_cast<std::uintptr_t>(data_) % bytes; rest != 0)
      refuse({name, ": address: is ", rest, " bytes past a multiple of ", bytes, ": must be aligned to its elements"});
  };
  if (can_write_)
    read(writable_);
  else
    read(read_only_);
}

array array::entry(std::size_t i) const {
  array out = *this;
  const auto bytes = static_cast<std::ptrdiff_t>(can_write_ ? writable_.itemsize() : read_only_.itemsize());
  out.data_ += static_cast<std::ptrdiff_t>(i) * stride_[0] * bytes;
  for (int d = 1; d < rank_; ++d) out.size_[d - 1] = size_[d], out.stride_[d - 1] = stride_[d];
  --out.rank_;
  return out;
}

void array::expect_writable(bool batched) const {
  if (rank_ == 0) return;
  if (!can_write_) refuse({name_, ": the array is read-only, and its rows would be moved"});
  if (!batched) return;
  std::vector<lagkv::detail::dimension> dims;
  std::string strides;
  for (int d = 0; d < rank_; ++d) {
    const bool shared = d > 0 && stride_[d] == 0;  // positions of all heads: what may be shared within an entry is checked there
    dims.push_back({shared ? 1 : size_[d], stride_[d]});
    strides += (d == 0 ? "(" : ", ") + std::to_string(stride_[d]);
  }
  const std::size_t bytes = writable_.itemsize();
  if (const lagkv::status s = lagkv::detail::lie_apart(dims, data_, bytes, strides + ")", " in the entries of the batch"); !s)
    refuse({name_, ": ", s.message()});
}

void array::expect_dense_rows() const {
  if (rank_ != 0 && size_[rank_ - 1] > 1 && stride_[rank_ - 1] != 1)
    refuse({name_, ": stride ", stride_[rank_ - 1], " of the last dimension: must be 1"});
}

lagkv::tensor array::view() const {
  switch (type_) {
    case lagkv::dtype::f16:
      return view_of<lagkv::f16>(data_, size_, stride_);
    case lagkv::dtype::bf16:
      return view_of<lagkv::bf16>(data_, size_, stride_);
    default:
      return view_of<float>(data_, size_, stride_);
  }
}

}  // namespace python
