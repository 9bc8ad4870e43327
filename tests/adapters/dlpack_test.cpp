// adapters/dlpack.hpp: DLPack tensors are views of their own elements; those that cannot be are refused, and why.
#include <lagkv/adapters/dlpack.hpp>
// First, so that it is seen to stand alone.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "compare.hpp"

namespace {

using namespace adapters;
using lagkv::view_of;

DLDataType dlpack_type(lagkv::dtype type) {
  const bool bfloat = type == lagkv::dtype::bf16;
  return {static_cast<std::uint8_t>(bfloat ? 4 : 2), static_cast<std::uint8_t>(8 * lagkv::size_of(type)), 1};
}

/// A tensor with the arrays that it points to.
template <std::size_t Rank>
struct tensor_of {
  std::array<std::int64_t, Rank> shape{}, strides{};
  bool dense = false;  ///< the tensor has no strides of its own
  DLTensor x{};

  const DLTensor& get() {
    x.ndim = static_cast<int>(Rank);
    x.shape = shape.data();
    x.strides = dense ? nullptr : strides.data();
    return x;
  }
};

/// Strides of a dense array, last index fastest.
template <std::size_t Rank>
std::array<std::int64_t, Rank> dense_strides(const std::array<std::int64_t, Rank>& shape) {
  std::array<std::int64_t, Rank> out{};
  std::int64_t stride = 1;
  for (std::size_t i = Rank; i-- > 0; stride *= shape[i]) out[i] = stride;
  return out;
}

template <class L>
struct dlpack_types : testing::Test {};
using element_types = testing::Types<float, lagkv::f16, lagkv::bf16>;
TYPED_TEST_SUITE(dlpack_types, element_types);

/// What a producer does with its memory.
enum class how : std::uint8_t { dense, dense_with_strides, offset, pinned, odd };

/// In `odd` tensors channels are 2 apart, tokens and heads run backwards, and there are gaps everywhere.
constexpr std::size_t room = 2400;
constexpr std::int64_t odd_first = 2 * 260 + 22 * 11;

template <class T, std::size_t Rank>
tensor_of<Rank> make(T* memory, const lagkv::dims<Rank>& order, how h) {
  tensor_of<Rank> out;
  out.shape = sizes<std::int64_t>(order);
  out.strides = dense_strides(out.shape);
  out.dense = h == how::dense;
  out.x.data = memory;
  out.x.dtype = dlpack_type(lagkv::dtype_of<T>::value);
  out.x.device.device_type = h == how::pinned ? kDLCUDAHost : kDLCPU;
  if (h == how::offset) out.x.byte_offset = 6 * sizeof(T);
  if (h == how::odd) {
    out.x.byte_offset = odd_first * sizeof(T);
    for (std::size_t i = 0; i < Rank; ++i) {
      const char letter = order.text()[i];
      out.strides[i] = letter == 'b' ? 1000 : letter == 'h' ? -260 : letter == 't' ? -11 : 2;
    }
  }
  return out;
}

/// Where DLPack says that an element lies.
template <class T, std::size_t Rank>
auto element_of_dlpack(const tensor_of<Rank>& x, const lagkv::dims<Rank>& order, std::size_t batch) {
  return [=](std::size_t h, std::size_t t, std::size_t c) {
    const auto index = in_order<std::int64_t>(order, batch, h, t, c);
    T* at = reinterpret_cast<T*>(static_cast<std::byte*>(x.x.data) + x.x.byte_offset);
    for (std::size_t i = 0; i < Rank; ++i) at += index[i] * x.strides[i];
    return at;
  };
}

TYPED_TEST(dlpack_types, tensors_in_every_order_of_dimensions) {
  using T = TypeParam;
  const lagkv::dtype type = lagkv::dtype_of<T>::value;
  for (const how h : {how::dense, how::dense_with_strides, how::offset, how::pinned, how::odd}) {
    for (const auto& order : orders)
      expect_like_plain<T, T>(
          type,
          [&](T* memory) -> subject<T> {
            tensor_of<3> x = make(memory, order, h);
            return {*view_of(x.get(), order), element_of_dlpack<T>(x, order, 0)};
          },
          room);
    for (const auto& order : batch_orders)
      for (std::size_t batch = 0; batch < batches; ++batch)
        expect_like_plain<T, T>(
            type,
            [&](T* memory) -> subject<T> {
              tensor_of<4> x = make(memory, order, h);
              return {*view_of(x.get(), batch, order), element_of_dlpack<T>(x, order, batch)};
            },
            room);
  }
}

TYPED_TEST(dlpack_types, tensors_of_rank_2_are_one_head) {
  using T = TypeParam;
  for (const lagkv::dims<2>& order : {lagkv::dims<2>("tc"), lagkv::dims<2>("ct")})
    expect_like_plain<T, T>(lagkv::dtype_of<T>::value, [&](T* memory) -> subject<T> {
      tensor_of<2> x = make(memory, order, how::dense);
      return {*view_of(x.get(), order), element_of_dlpack<T>(x, order, 0), 1};
    });
}

/// f32, [2][3][4][5], dense.
struct dlpack : testing::Test {
  float memory[2 * 3 * 4 * 5] = {};
  tensor_of<4> four{{2, 3, 4, 5}, {}, true, {}};
  tensor_of<3> three{{3, 4, 5}, {}, true, {}};

  dlpack() {
    for (DLTensor* x : {&four.x, &three.x}) {
      x->data = memory;
      x->dtype = dlpack_type(lagkv::dtype::f32);
      x->device.device_type = kDLCPU;
    }
  }

  std::string refusal() { return view_of(three.get()).message(); }
};

TEST_F(dlpack, is_taken_as_it_is) {
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(view_of(four.get(), 1).message(), "");
}

TEST_F(dlpack, refuses_memory_that_is_not_the_cpus) {
  three.x.device.device_type = kDLCUDA;
  EXPECT_EQ(refusal(), "device_type=2: must be 1 (kDLCPU) or 3 (kDLCUDAHost)");
  three.x.device.device_type = kDLCUDAManaged;
  EXPECT_EQ(refusal(), "device_type=13: must be 1 (kDLCPU) or 3 (kDLCUDAHost)");
}

TEST_F(dlpack, refuses_other_elements) {
  const std::string limit = ": must be float32, float16 or bfloat16 (code 2, 2 or 4) with one lane";
  const std::tuple<int, int, int, const char*> table[] = {
      {2, 64, 1, "dtype code=2, bits=64, lanes=1"}, {0, 32, 1, "dtype code=0, bits=32, lanes=1"},
      {1, 16, 1, "dtype code=1, bits=16, lanes=1"}, {4, 32, 1, "dtype code=4, bits=32, lanes=1"},
      {2, 8, 1, "dtype code=2, bits=8, lanes=1"},   {2, 32, 4, "dtype code=2, bits=32, lanes=4"},
      {2, 16, 2, "dtype code=2, bits=16, lanes=2"}, {4, 16, 0, "dtype code=4, bits=16, lanes=0"}};
  for (const auto& [code, bits, lanes, words] : table) {
    three.x.dtype = {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), static_cast<std::uint16_t>(lanes)};
    EXPECT_EQ(refusal(), words + limit);
  }
}

TEST_F(dlpack, refuses_another_rank) {
  EXPECT_EQ(view_of(four.get()).message(), "ndim=4: must be 3 for the order htc");
  EXPECT_EQ(view_of(three.get(), 0, "bthc").message(), "ndim=3: must be 4 for the order bthc");
  EXPECT_EQ(view_of(three.get(), "ct").message(), "ndim=3: must be 2 for the order ct");
  three.get();
  three.x.ndim = 0, three.x.shape = nullptr;
  EXPECT_EQ(view_of(three.x).message(), "ndim=0: must be 3 for the order htc");
}

TEST_F(dlpack, refuses_a_batch_index_that_there_is_not) {
  EXPECT_EQ(view_of(four.get(), 2).message(), "batch=2: must be below 2");
  EXPECT_EQ(view_of(four.get(), 4, "hcbt").message(), "batch=4: must be below 4");
}

TEST_F(dlpack, refuses_shapes_and_pointers_that_are_none) {
  three.shape[1] = -1;
  EXPECT_EQ(refusal(), "shape[1]=-1: must be 0 or more");
  three.shape = {3, std::int64_t{1} << 59, 5};  // fewer than 2^63 elements, more bytes
  EXPECT_EQ(refusal(), "shape[1]=576460752303423488: the elements exceed what memory can address");
  three.shape = {std::int64_t{1} << 61, 4, 0};  // no elements, so nothing to address
  EXPECT_EQ(refusal(), "");
  three.shape = {3, 4, 5};
  three.x.data = nullptr;
  three.x.byte_offset = 64;
  EXPECT_EQ(refusal(), "data: is null");
  three.x.data = memory;
  three.x.byte_offset = 6;
  EXPECT_EQ(refusal(), "data + byte_offset: is 2 bytes past a multiple of 4: must be aligned to its elements");
  three.x.dtype = dlpack_type(lagkv::dtype::f16);
  EXPECT_EQ(refusal(), "");
  for (const std::uint64_t offset : {~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    three.x.byte_offset = offset;
    EXPECT_EQ(refusal(), "byte_offset=" + std::to_string(offset) + ": exceeds what memory can address");
  }
  three.get();
  three.x.shape = nullptr;
  EXPECT_EQ(view_of(three.x).message(), "shape: is null");
}

TEST_F(dlpack, refuses_a_batch_that_no_memory_has) {
  std::int64_t shape[] = {100, 2, 4, 5}, strides[] = {std::int64_t{1} << 61, 20, 5, 1};
  DLTensor x = three.get();
  x.ndim = 4, x.shape = shape, x.strides = strides;
  EXPECT_EQ(view_of(x, 32).message(), "stride of the batch=2305843009213693952: batch 32 exceeds what memory can address");
  strides[0] = 40;
  EXPECT_EQ(view_of(x, 1).message(), "");
}

TEST_F(dlpack, leaves_the_rest_to_check) {
  three.dense = false;
  three.strides = {0, 5, 1};  // an expanded tensor: heads share their elements
  EXPECT_EQ(check(lagkv::layer{*view_of(three.get()), {}, 4}).message(),
            "keys: strides head=0, token=5, channel=1: overlap for 3 heads, 4 tokens, 5 channels");
  three.dense = true;
  three.shape[0] = 0;
  EXPECT_EQ(check(lagkv::layer{*view_of(three.get()), {}, 4}).message(), "keys: heads=0, channels=5: must be 1 or more");
}

TEST_F(dlpack, managed_tensors_stay_the_callers) {
  DLManagedTensor managed{};
  managed.deleter = [](DLManagedTensor*) { FAIL() << "the deleter is the caller's to call"; };
  managed.dl_tensor = three.get();
  const lagkv::result<lagkv::tensor> view = view_of(managed, "cht");
  ASSERT_TRUE(view) << view.message();
  EXPECT_EQ(view->heads(), 4U);
  EXPECT_EQ(reinterpret_cast<float*>(view->at(0, {0, 1}).data), memory);
  EXPECT_EQ(view_of(managed, "tc").message(), "ndim=3: must be 2 for the order tc");
  managed.dl_tensor = four.get();
  EXPECT_EQ(reinterpret_cast<float*>(view_of(managed, 1)->at(0, {0, 1}).data), memory + 60);
  EXPECT_EQ(view_of(managed, 1, "tbhc").message(), "");
  EXPECT_EQ(view_of(managed, 3, "tbhc").message(), "batch=3: must be below 3");
}

#if defined(DLPACK_MAJOR_VERSION) && DLPACK_MAJOR_VERSION >= 1

TEST_F(dlpack, versioned_tensors_say_whether_they_may_be_written) {
  DLManagedTensorVersioned managed{};
  managed.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  managed.deleter = [](DLManagedTensorVersioned*) { FAIL() << "the deleter is the caller's to call"; };
  managed.dl_tensor = three.get();
  EXPECT_EQ(reinterpret_cast<float*>(view_of(managed)->at(1, {0, 1}).data), memory + 20);
  managed.flags = DLPACK_FLAG_BITMASK_IS_COPIED;
  EXPECT_EQ(view_of(managed).message(), "");

  const auto expect_refused = [&](const std::string& words) {
    EXPECT_EQ(view_of(managed).message(), words);
    EXPECT_EQ(view_of(managed, "tc").message(), words);
    EXPECT_EQ(view_of(managed, 0).message(), words);
  };
  managed.flags = DLPACK_FLAG_BITMASK_IS_COPIED | DLPACK_FLAG_BITMASK_READ_ONLY;
  expect_refused("flags=3: the tensor is read-only, and compaction writes");
  managed.flags = 0;
  managed.version.major = DLPACK_MAJOR_VERSION + 1;
  expect_refused("version.major=2: must be 1");

  managed.version.major = DLPACK_MAJOR_VERSION;
  EXPECT_EQ(view_of(managed, "tc").message(), "ndim=3: must be 2 for the order tc");
  managed.dl_tensor = four.get();
  EXPECT_EQ(reinterpret_cast<float*>(view_of(managed, 1)->at(0, {0, 1}).data), memory + 60);
}

#else

TEST_F(dlpack, versioned_tensors_say_whether_they_may_be_written) {
  GTEST_SKIP() << "needs <dlpack/dlpack.h> 1.0 or later; this one has no DLManagedTensorVersioned";
}

#endif

}  // namespace
