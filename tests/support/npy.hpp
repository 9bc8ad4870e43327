// Reads NumPy's .npy files (format 1.0 to 3.0, little endian, C order). For tests and examples of this tree: it is not installed.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <lagkv/result.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>

namespace npy {

/// An array as it lies in the file. `type` is NumPy's: "<f4", "<f2", "<i4", "|u1".
struct array {
  std::string type;
  std::vector<std::size_t> shape;
  std::vector<std::byte> data;

  std::size_t size() const {
    std::size_t n = 1;
    for (std::size_t s : shape) n *= s;
    return n;
  }
  /// The elements; T must have the size that `type` says.
  template <class T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
  template <class T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
};

namespace detail {

inline std::size_t item_size(const std::string& type) { return type.size() == 3 ? static_cast<std::size_t>(type[2] - '0') : 0; }

/// The text after `key` in the header's Python literal.
inline std::string after(const std::string& header, const std::string& key) {
  const std::size_t at = header.find("'" + key + "'");
  const std::size_t colon = at == std::string::npos ? at : header.find(':', at);
  if (colon == std::string::npos) return {};
  const std::size_t start = header.find_first_not_of(' ', colon + 1);
  return start == std::string::npos ? std::string{} : header.substr(start);
}

/// The numbers of a Python tuple, "(2, 300, 64)"; nothing if it is none, or holds more than 8 numbers or a larger one than
/// `most`.
inline std::optional<std::vector<std::size_t>> tuple(std::string_view text, std::size_t most) {
  std::vector<std::size_t> numbers;
  const auto skip = [&] { text.remove_prefix(std::min(text.find_first_not_of(' '), text.size())); };
  if (text.empty() || text[0] != '(') return std::nullopt;
  text.remove_prefix(1);
  for (skip(); !text.empty() && text[0] != ')'; skip()) {
    std::size_t n = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), n);
    if (failure != std::errc{} || n > most || numbers.size() == 8) return std::nullopt;
    numbers.push_back(n);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    skip();
    if (!text.empty() && text[0] == ',')
      text.remove_prefix(1);
    else if (text.empty() || text[0] != ')' || numbers.size() == 1)  // of one number: "(300,)"
      return std::nullopt;
  }
  if (text.empty()) return std::nullopt;
  return numbers;
}

}  // namespace detail

/// The array in `path`, or why it cannot be read.
inline lagkv::result<array> load(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& why) { return lagkv::error{path.string() + ": " + why}; };
  std::error_code failure;
  if (std::filesystem::exists(path, failure) && !std::filesystem::is_regular_file(path, failure))
    return fail("is no regular file");  // a pipe would be waited for
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail("cannot be opened");
  unsigned char start[12] = {};
  in.read(reinterpret_cast<char*>(start), 10);
  if (!in || std::string(reinterpret_cast<char*>(start), 6) != "\x93NUMPY") return fail("is not a .npy file");
  if (start[6] < 1 || start[6] > 3 || start[7] != 0)
    return fail("has version " + std::to_string(start[6]) + "." + std::to_string(start[7]) + ": must be 1.0, 2.0 or 3.0");
  std::size_t length = start[8] + 256U * start[9];
  if (start[6] > 1) {
    in.read(reinterpret_cast<char*>(start + 10), 2);
    length += 65536U * start[10] + 16777216U * start[11];
  }
  if (!in || length > 65536) return fail("has a damaged header");
  std::string header(length, ' ');
  in.read(header.data(), static_cast<std::streamsize>(length));
  if (!in) return fail("ends within its header");

  array a;
  a.type = detail::after(header, "descr").substr(0, 5);
  if (a.type.size() != 5 || a.type.front() != '\'' || a.type.back() != '\'') return fail("has a type that is not supported");
  a.type = a.type.substr(1, 3);
  if (a.type != "<f4" && a.type != "<f2" && a.type != "<i4" && a.type != "|u1")
    return fail("type " + a.type + ": must be float32, float16, int32 or uint8, little endian");
  if (detail::after(header, "fortran_order").rfind("False", 0) != 0) return fail("is in Fortran order: must be in C order");
  constexpr auto most =
      static_cast<std::size_t>(std::uint64_t{SIZE_MAX} < std::uint64_t{1} << 46 ? SIZE_MAX / 2 : std::uint64_t{1} << 46);
  const std::string shape = detail::after(header, "shape");
  const std::optional<std::vector<std::size_t>> sizes = detail::tuple(shape, most);
  if (!sizes)
    return fail("shape " + shape.substr(0, std::min(shape.find(')'), std::size_t{60}) + 1) +
                ": must be at most 8 whole numbers in brackets, such as (2, 300, 64), each 0 or more");
  a.shape = *sizes;
  std::size_t bytes = detail::item_size(a.type);
  for (const std::size_t n : a.shape) {
    if (n != 0 && bytes > most / n) return fail("has a shape too large to be true");
    bytes *= n;
  }
  const auto here = in.tellg();
  in.seekg(0, std::ios::end);
  const auto end = in.tellg();
  if (!in || here < 0 || end < here) return fail("cannot be read");
  const auto available = static_cast<std::size_t>(end - here);
  if (available < bytes) return fail("has " + std::to_string(available) + " bytes of data: must be " + std::to_string(bytes));
  in.seekg(here);
  a.data.resize(bytes);
  in.read(reinterpret_cast<char*>(a.data.data()), static_cast<std::streamsize>(bytes));
  if (!in) return fail("cannot be read");
  return a;
}

/// The array [heads, tokens, dim], of float32 or float16, as a view of itself.
inline lagkv::tensor view(array& a) {
  const lagkv::shape shape{a.shape[0], a.shape[2]};
  const std::size_t tokens = a.shape[1];
  const lagkv::strides strides{.head = static_cast<std::ptrdiff_t>(tokens * a.shape[2]),
                               .token = static_cast<std::ptrdiff_t>(a.shape[2])};
  if (a.type == "<f4") return lagkv::strided<float>(a.as<float>().data(), shape, strides, tokens);
  return lagkv::strided<lagkv::f16>(reinterpret_cast<lagkv::f16*>(a.data.data()), shape, strides, tokens);
}

}  // namespace npy
