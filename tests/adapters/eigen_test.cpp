// adapters/eigen.hpp: maps of matrices and tensors are views of their own elements.
#include <lagkv/adapters/eigen.hpp>
// First, so that it is seen to stand alone.
#include <gtest/gtest.h>

#include <cstdint>
#include <unsupported/Eigen/CXX11/Tensor>

#include "compare.hpp"

namespace {

using namespace adapters;
using Eigen::ColMajor;
using Eigen::Dynamic;
using Eigen::Index;
using Eigen::RowMajor;
using lagkv::dtype;
using lagkv::view_of;

/// A host's element type, and what lagkv takes it for.
template <class Stored, class L>
struct host_type {
  using stored = Stored;
  using own = L;
  static constexpr dtype type = lagkv::dtype_of<L>::value;
};

template <class E>
struct eigen_types : testing::Test {};
using element_types =
    testing::Types<host_type<float, float>, host_type<Eigen::half, lagkv::f16>, host_type<Eigen::bfloat16, lagkv::bf16>,
                   host_type<lagkv::f16, lagkv::f16>, host_type<lagkv::bf16, lagkv::bf16>>;
TYPED_TEST_SUITE(eigen_types, element_types);

template <class T, int Rank, int Layout>
using tensor_map = Eigen::TensorMap<Eigen::Tensor<T, Rank, Layout>>;

template <class E, int Layout>
void expect_tensors() {
  using T = typename E::stored;
  for (const auto& order : orders)
    expect_like_plain<T, typename E::own>(E::type, [&](T* memory) -> subject<T> {
      tensor_map<T, 3, Layout> map(memory, sizes<Index>(order));
      return {view_of(map, order), [=](auto... htc) mutable { return &map(in_order<Index>(order, 0, htc...)); }};
    });
  for (const auto& order : batch_orders)
    for (std::size_t batch = 0; batch < batches; ++batch)
      expect_like_plain<T, typename E::own>(E::type, [&](T* memory) -> subject<T> {
        tensor_map<T, 4, Layout> map(memory, sizes<Index>(order));
        return {*view_of(map, batch, order), [=](auto... htc) mutable { return &map(in_order<Index>(order, batch, htc...)); }};
      });
}

TYPED_TEST(eigen_types, tensor_maps_in_every_order_of_dimensions) {
  expect_tensors<TypeParam, ColMajor>();
  expect_tensors<TypeParam, RowMajor>();
}

/// One head of rows x columns that are tokens x channels, or the other way round.
template <class E, class Make>
void expect_matrix(const lagkv::dims<2>& order, const Make& make) {
  using T = typename E::stored;
  const bool rows_are_tokens = order.text()[0] == 't';
  expect_like_plain<T, typename E::own>(E::type, [&](T* memory) -> subject<T> {
    auto map = rows_are_tokens ? make(memory, Index{tokens}, Index{channels}) : make(memory, Index{channels}, Index{tokens});
    return {view_of(map, order),
            [=](std::size_t, std::size_t t, std::size_t c) mutable {
              const auto row = static_cast<Index>(rows_are_tokens ? t : c), column = static_cast<Index>(rows_are_tokens ? c : t);
              return &map(row, column);
            },
            1};
  });
}

template <class E, int Layout>
void expect_matrices() {
  using T = typename E::stored;
  using matrix = Eigen::Matrix<T, Dynamic, Dynamic, Layout>;
  for (const lagkv::dims<2>& order : {lagkv::dims<2>("tc"), lagkv::dims<2>("ct")}) {
    const auto inner = [](Index rows, Index columns) { return Layout == RowMajor ? columns : rows; };
    expect_matrix<E>(order, [](T* m, Index rows, Index columns) { return Eigen::Map<matrix>(m, rows, columns); });
    expect_matrix<E>(order, [&](T* m, Index rows, Index columns) {
      return Eigen::Map<matrix, 0, Eigen::OuterStride<>>(m, rows, columns, Eigen::OuterStride<>(inner(rows, columns) + 3));
    });
    expect_matrix<E>(order, [&](T* m, Index rows, Index columns) {
      using stride = Eigen::Stride<Dynamic, Dynamic>;
      return Eigen::Map<matrix, 0, stride>(m + 1, rows, columns, stride(2 * inner(rows, columns) + 3, 2));
    });
    expect_matrix<E>(order, [&](T* m, Index rows, Index columns) {
      return Eigen::Map<matrix>(m, rows + 2, columns + 1).block(2, 1, rows, columns);
    });
  }
  expect_matrix<E>("tc",
                   [](T* m, Index, Index) { return Eigen::Map<Eigen::Matrix<T, Index{tokens}, Index{channels}, Layout>>(m); });
  expect_matrix<E>("tc", [](T* m, Index rows, Index columns) {
    return Eigen::Map<Eigen::Array<T, Dynamic, Dynamic, Layout>>(m, rows, columns);
  });
}

TYPED_TEST(eigen_types, maps_of_matrices_with_any_strides) {
  expect_matrices<TypeParam, ColMajor>();
  expect_matrices<TypeParam, RowMajor>();
}

TEST(eigen, ref_of_an_owner_is_a_view_of_it) {
  Eigen::MatrixXf owner = Eigen::MatrixXf::Zero(tokens, channels);
  const lagkv::tensor view = view_of(Eigen::Ref<Eigen::MatrixXf>(owner));
  EXPECT_EQ(reinterpret_cast<float*>(view.at(0, {7, 8}).data), &owner(7, 0));
  EXPECT_EQ(view.capacity(), tokens);
}

TEST(eigen, tensor_maps_of_rank_2_and_of_fixed_sizes) {
  float memory[heads * tokens * channels] = {};
  const Eigen::TensorMap<Eigen::Tensor<float, 2, RowMajor>> flat(memory, Index{channels}, Index{tokens});
  const lagkv::tensor one = view_of(flat, "ct");
  EXPECT_EQ(one.heads(), 1U);
  EXPECT_EQ(one.channels(), channels);
  EXPECT_EQ(one.at(0, {3, 4}).channel_stride, std::ptrdiff_t{tokens});
  const Eigen::TensorMap<Eigen::TensorFixedSize<float, Eigen::Sizes<heads, tokens, channels>, RowMajor>> fixed(
      memory, Index{heads}, Index{tokens}, Index{channels});
  const lagkv::tensor three = view_of(fixed);
  EXPECT_EQ(reinterpret_cast<float*>(three.at(2, {4, 5}).data), &memory[(2 * tokens + 4) * channels]);
  EXPECT_EQ(three.capacity(), tokens);
}

TEST(eigen, refuses_a_batch_index_that_there_is_not) {
  std::vector<float> memory(elements);
  const tensor_map<float, 4, RowMajor> map(memory.data(), sizes<Index>(lagkv::dims<4>{}));
  EXPECT_TRUE(view_of(map, 1));
  EXPECT_EQ(view_of(map, 2).message(), "batch=2: must be below 2");
  EXPECT_EQ(view_of(map, 23, "tbhc").message(), "batch=23: must be below 3");
}

TEST(eigen, leaves_the_rest_to_check) {
  const lagkv::layer nowhere{view_of(tensor_map<float, 3, RowMajor>(nullptr, 2, 3, 4)), {}, 3};
  EXPECT_EQ(check(nowhere).message(), "keys: data: is null");
  const lagkv::layer nowhere_either{*view_of(tensor_map<float, 4, RowMajor>(nullptr, 2, 2, 3, 4), 1), {}, 3};
  EXPECT_EQ(check(nowhere_either).message(), "keys: data: is null");
  float memory[12] = {};
  using overlapping = Eigen::Map<Eigen::MatrixXf, 0, Eigen::OuterStride<>>;
  const lagkv::layer overlaps{view_of(overlapping(memory, 3, 4, Eigen::OuterStride<>(2))), {}, 3};
  EXPECT_EQ(check(overlaps).message(), "keys: strides head=0, token=1, channel=2: overlap for 1 heads, 3 tokens, 4 channels");
  const lagkv::layer nothing{view_of(tensor_map<float, 3, RowMajor>(memory, 0, 3, 4)), {}, 3};
  EXPECT_EQ(check(nothing).message(), "keys: heads=0, channels=4: must be 1 or more");
  const lagkv::layer too_long{view_of(tensor_map<float, 3, RowMajor>(memory, 1, 3, 4)), {}, 4};
  EXPECT_EQ(check(too_long).message(), "keys: tokens=4: the view addresses at most 3");
}

template <class M, class... Rest>
concept viewed = requires(M& x, const Rest&... rest) {
  view_of(x, rest...);
};
using tensor3 = Eigen::Tensor<float, 3>;
using tc = lagkv::dims<2>;
using htc = lagkv::dims<3>;

static_assert(viewed<Eigen::Map<Eigen::MatrixXf>> && viewed<const Eigen::Map<Eigen::MatrixXf>, tc>);
static_assert(viewed<Eigen::TensorMap<tensor3>> && viewed<const Eigen::TensorMap<tensor3>, htc>);
// Elements that must not be written.
static_assert(!viewed<Eigen::Map<const Eigen::MatrixXf>> && !viewed<Eigen::Ref<const Eigen::MatrixXf>>);
static_assert(!viewed<Eigen::TensorMap<const tensor3>>);
// Owners: a view of a copy would dangle.
static_assert(!viewed<Eigen::MatrixXf> && !viewed<const Eigen::MatrixXf> && !viewed<tensor3> && !viewed<const tensor3>);
// Orders of another rank; a batch index where there is none, none where there is one.
static_assert(!viewed<Eigen::Map<Eigen::MatrixXf>, htc> && !viewed<Eigen::TensorMap<tensor3>, tc>);
static_assert(!viewed<Eigen::Map<Eigen::MatrixXf>, std::size_t> && !viewed<Eigen::TensorMap<tensor3>, std::size_t>);
static_assert(!viewed<Eigen::TensorMap<Eigen::Tensor<float, 4>>> && !viewed<Eigen::TensorMap<Eigen::Tensor<float, 5>>>);
static_assert(!viewed<Eigen::TensorMap<Eigen::Tensor<float, 1>>>);
// Elements that are not a cache's, unless the host says what they hold.
static_assert(!viewed<Eigen::Map<Eigen::MatrixXd>> && !viewed<Eigen::TensorMap<Eigen::Tensor<std::uint16_t, 3>>>);

TEST(eigen, elements_are_what_the_host_says_where_their_type_does_not) {
  std::uint16_t bits[12] = {};
  EXPECT_EQ(view_of<lagkv::bf16>(Eigen::TensorMap<Eigen::Tensor<std::uint16_t, 3>>(bits, 1, 3, 4)).type(), dtype::bf16);
  EXPECT_EQ(view_of<lagkv::f16>(Eigen::Map<Eigen::Matrix<std::uint16_t, 3, 4>>(bits)).type(), dtype::f16);
}

}  // namespace
