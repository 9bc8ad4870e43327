// A DLPack tensor of anyone's making: shapes, strides, types, devices. Its memory is the host's word; none is read here.
#include <lagkv/adapters/dlpack.hpp>
#include <lagkv/lagkv.hpp>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::input in(data, size);
  DLTensor x{};
  std::int64_t shape[8], strides[8];
  for (std::int64_t& n : shape)
    n = in.below(2) == 0 ? static_cast<std::int64_t>(in.take<std::uint8_t>()) : in.take<std::int64_t>();
  for (std::int64_t& n : strides)
    n = in.below(2) == 0 ? static_cast<std::int64_t>(in.take<std::int8_t>()) : in.take<std::int64_t>();
  x.data = in.below(8) == 0 ? nullptr : reinterpret_cast<void*>(std::uintptr_t{1} << 40);
  x.device.device_type = static_cast<DLDeviceType>(1 + in.below(4));
  x.ndim = in.below(8) == 0 ? in.take<std::int8_t>() : static_cast<int>(2 + in.below(3));
  x.dtype = {static_cast<std::uint8_t>(in.below(5)), static_cast<std::uint8_t>(in.below(2) == 0 ? 16 : 32),
             static_cast<std::uint16_t>(in.below(4) == 0 ? 2 : 1)};
  x.shape = in.below(8) == 0 ? nullptr : shape, x.strides = in.below(2) == 0 ? nullptr : strides;
  x.byte_offset = in.below(2) == 0 ? 0 : in.take<std::uint64_t>();
  const std::size_t batch = in.take<std::uint8_t>();
  for (const lagkv::result<lagkv::tensor>& view :
       {lagkv::view_of(x), lagkv::view_of(x, lagkv::dims<2>()), lagkv::view_of(x, batch)}) {
    fuzz::expect(static_cast<bool>(view) == view.message().empty());
    if (!view) continue;
    const std::size_t tokens = view->capacity();
    if (!lagkv::check(lagkv::layer{*view, {}, tokens}) || tokens == 0) continue;
    // What is accepted has addresses that do not wrap, for the first and the last row of the first and the last head.
    for (const std::size_t head : {std::size_t{0}, view->heads() - 1})
      for (const std::size_t row : {std::size_t{0}, tokens - 1}) static_cast<void>(view->at(head, {row, row + 1}));
  }
  return 0;
}
