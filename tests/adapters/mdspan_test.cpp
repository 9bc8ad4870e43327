// adapters/mdspan.hpp: mdspans, and a host's own types with their members, are views of their own elements.
#include <lagkv/adapters/mdspan.hpp>
// First, so that it is seen to stand alone.
#include <gtest/gtest.h>

#include <cstdint>
#include <tuple>

#include "compare.hpp"

// A real one, where cmake/adapters.cmake has found one.
#if defined(LAGKV_MDSPAN)
#include LAGKV_MDSPAN_HEADER
namespace md = LAGKV_MDSPAN;
#endif

namespace {

using namespace adapters;
using lagkv::dtype;
using lagkv::view_of;

template <class L>
struct mdspan_types : testing::Test {};
using element_types = testing::Types<float, lagkv::f16, lagkv::bf16>;
TYPED_TEST_SUITE(mdspan_types, element_types);

/// A host's own: the members that are asked for, and strides of any sign.
template <class T, std::size_t Rank>
struct own_span {
  using element_type = T;

  T* first = nullptr;
  std::array<int, Rank> size{}, distance{};

  static constexpr std::size_t rank() { return Rank; }
  int extent(std::size_t i) const { return size[i]; }
  int stride(std::size_t i) const { return distance[i]; }
  T* data_handle() const { return first; }
};

/// The same with a mapping that has its first element away from the handle, as layouts with negative strides do.
template <class T, std::size_t Rank>
struct offset_span : own_span<T, Rank> {
  std::ptrdiff_t offset = 0;

  auto mapping() const {
    return [self = *this](auto... index) {
      std::ptrdiff_t at = self.offset;
      std::size_t i = 0;
      for (int n : self.size) EXPECT_GT(n, 0) << "asked for an element of an empty array";
      ((at += static_cast<std::ptrdiff_t>(index) * self.distance[i++]), ...);
      return at;
    };
  }
};

/// Channels 2 apart, tokens and heads backwards, gaps everywhere.
constexpr std::ptrdiff_t channel_stride = 2, token_stride = -(2 * 5 + 1), head_stride = -(11 * 23 + 7),
                         batch_stride = 260 * 3 + 1;
constexpr std::ptrdiff_t own_first = -head_stride * 2 - token_stride * 22;
constexpr std::size_t own_elements = 2 * batch_stride;

template <std::size_t Rank>
std::array<int, Rank> own_strides(const lagkv::dims<Rank>& order) {
  std::array<int, Rank> out{};
  for (std::size_t i = 0; i < Rank; ++i) {
    const char letter = order.text()[i];
    out[i] = static_cast<int>(letter == 'b'   ? batch_stride
                              : letter == 'h' ? head_stride
                              : letter == 't' ? token_stride
                                              : channel_stride);
  }
  return out;
}

template <class T>
auto own_element(T* memory, std::size_t batch) {
  return [=](std::size_t h, std::size_t t, std::size_t c) {
    const auto i = [](std::size_t n) { return static_cast<std::ptrdiff_t>(n); };
    return memory + own_first + i(batch) * batch_stride + i(h) * head_stride + i(t) * token_stride + i(c) * channel_stride;
  };
}

TYPED_TEST(mdspan_types, types_of_the_host_with_odd_strides) {
  using T = TypeParam;
  const dtype type = lagkv::dtype_of<T>::value;
  for (const auto& order : orders) {
    expect_like_plain<T, T>(
        type,
        [&](T* memory) -> subject<T> {
          const own_span<T, 3> own{memory + own_first, sizes<int>(order), own_strides(order)};
          return {view_of(own, order), own_element(memory, 0)};
        },
        own_elements);
    expect_like_plain<T, T>(
        type,
        [&](T* memory) -> subject<T> {
          const offset_span<T, 3> own{{memory, sizes<int>(order), own_strides(order)}, own_first};
          return {view_of(own, order), own_element(memory, 0)};
        },
        own_elements);
  }
  for (const auto& order : batch_orders)
    for (std::size_t batch = 0; batch < batches; ++batch)
      expect_like_plain<T, T>(
          type,
          [&](T* memory) -> subject<T> {
            const own_span<T, 4> own{memory + own_first, sizes<int>(order), own_strides(order)};
            return {*view_of(own, batch, order), own_element(memory, batch)};
          },
          own_elements);
}

TEST(mdspan, of_rank_2_is_one_head) {
  float memory[12] = {};
  const lagkv::tensor tc = view_of(own_span<float, 2>{memory, {3, 4}, {4, 1}});
  EXPECT_EQ(tc.heads(), 1U);
  EXPECT_EQ(tc.capacity(), 3U);
  EXPECT_EQ(reinterpret_cast<float*>(tc.at(0, {2, 3}).data), memory + 8);
  const lagkv::tensor ct = view_of(own_span<float, 2>{memory, {3, 4}, {4, 1}}, "ct");
  EXPECT_EQ(ct.channels(), 3U);
  EXPECT_EQ(reinterpret_cast<float*>(ct.at(0, {2, 3}).data), memory + 2);
}

TEST(mdspan, refuses_a_batch_index_that_there_is_not) {
  float memory[16] = {};
  const own_span<float, 4> own{memory, {2, 1, 2, 4}, {8, 8, 4, 1}};
  EXPECT_TRUE(view_of(own, 1));
  EXPECT_EQ(view_of(own, 2).message(), "batch=2: must be below 2");
  EXPECT_EQ(view_of(own, 1, "tbhc").message(), "batch=1: must be below 1");
}

TEST(mdspan, leaves_the_rest_to_check) {
  float memory[12] = {};
  const lagkv::layer nowhere{*view_of(own_span<float, 4>{nullptr, {2, 1, 3, 4}, {12, 12, 4, 1}}, 1), {}, 3};
  EXPECT_EQ(check(nowhere).message(), "keys: data: is null");
  const lagkv::layer empty{view_of(offset_span<float, 3>{{memory, {1, 0, 4}, {12, -4, 1}}, 8}), {}, 1};
  EXPECT_EQ(check(empty).message(), "keys: tokens=1: the view addresses at most 0");
  const lagkv::layer broadcast{view_of(own_span<float, 3>{memory, {2, 3, 4}, {0, 4, 1}}), {}, 3};
  EXPECT_EQ(check(broadcast).message(), "keys: strides head=0, token=4, channel=1: overlap for 2 heads, 3 tokens, 4 channels");
}

/// Has strides now and then only.
struct sometimes_strided : own_span<float, 3> {
  static constexpr bool is_always_strided() { return false; }
};
struct always_strided : own_span<float, 3> {
  static constexpr bool is_always_strided() { return true; }
};

template <class M, class... Rest>
concept viewed = requires(M& x, const Rest&... rest) {
  view_of(x, rest...);
};
template <class T, class M>
concept viewed_as = requires(M& x) {
  view_of<T>(x);
};
using htc = lagkv::dims<3>;

static_assert(viewed<own_span<float, 3>> && viewed<const own_span<float, 3>, htc> && viewed<always_strided>);
static_assert(!viewed<sometimes_strided>);
// Elements that must not be written; elements that are not a cache's, unless the host says what they hold.
static_assert(!viewed<own_span<const float, 3>> && !viewed<own_span<const lagkv::f16, 3>>);
static_assert(!viewed<own_span<double, 3>> && !viewed<own_span<std::uint16_t, 3>>);
static_assert(viewed_as<lagkv::f16, own_span<std::uint16_t, 3>> && !viewed_as<lagkv::f16, own_span<const std::uint16_t, 3>>);
static_assert(!viewed_as<float, own_span<std::uint16_t, 3>> && !viewed_as<float, own_span<std::uint32_t, 3>>);
// Orders of another rank; a batch index where there is none, none where there is one.
static_assert(!viewed<own_span<float, 2>, htc> && !viewed<own_span<float, 4>, std::size_t, htc>);
static_assert(!viewed<own_span<float, 3>, std::size_t> && !viewed<own_span<float, 4>>);
static_assert(!viewed<own_span<float, 1>> && !viewed<own_span<float, 5>>);

TEST(mdspan, elements_are_what_the_host_says_where_their_type_does_not) {
  std::uint16_t bits[12] = {};
  EXPECT_EQ(view_of<lagkv::bf16>(own_span<std::uint16_t, 3>{bits, {1, 3, 4}, {12, 4, 1}}).type(), dtype::bf16);
  EXPECT_EQ(view_of<lagkv::f16>(own_span<std::uint16_t, 2>{bits, {3, 4}, {4, 1}}).type(), dtype::f16);
  EXPECT_EQ(view_of<lagkv::f16>(own_span<std::uint16_t, 4>{bits, {1, 1, 3, 4}, {12, 12, 4, 1}}, 0)->type(), dtype::f16);
}

#if defined(LAGKV_MDSPAN)

/// Where the mdspan's own mapping says that an element lies.
template <class M, std::size_t Rank>
auto element_of_mdspan(const M& m, const lagkv::dims<Rank>& order, std::size_t batch) {
  return [=](std::size_t h, std::size_t t, std::size_t c) {
    return std::apply(
        [&](auto... i) { return &m.accessor().access(m.data_handle(), static_cast<std::size_t>(m.mapping()(i...))); },
        in_order<typename M::index_type>(order, batch, h, t, c));
  };
}

template <class Index, std::size_t Rank>
md::dextents<Index, Rank> dynamic(const lagkv::dims<Rank>& order) {
  return std::apply([](auto... n) { return md::dextents<Index, Rank>(n...); }, sizes<Index>(order));
}

template <class T, class Layout, class Index>
void expect_mdspans() {
  const dtype type = lagkv::dtype_of<T>::value;
  for (const auto& order : orders)
    expect_like_plain<T, T>(type, [&](T* memory) -> subject<T> {
      const md::mdspan<T, md::dextents<Index, 3>, Layout> m(memory, dynamic<Index>(order));
      return {view_of(m, order), element_of_mdspan(m, order, 0)};
    });
  for (const auto& order : batch_orders)
    for (std::size_t batch = 0; batch < batches; ++batch)
      expect_like_plain<T, T>(type, [&](T* memory) -> subject<T> {
        const md::mdspan<T, md::dextents<Index, 4>, Layout> m(memory, dynamic<Index>(order));
        return {*view_of(m, batch, order), element_of_mdspan(m, order, batch)};
      });
}

TYPED_TEST(mdspan_types, real_ones_of_layout_right_and_left) {
  expect_mdspans<TypeParam, md::layout_right, int>();
  expect_mdspans<TypeParam, md::layout_left, std::size_t>();
}

TYPED_TEST(mdspan_types, real_ones_of_layout_stride) {
  using T = TypeParam;
  for (const auto& order : orders)
    expect_like_plain<T, T>(
        lagkv::dtype_of<T>::value,
        [&](T* memory) -> subject<T> {
          using extents = md::dextents<std::int64_t, 3>;
          using mapping = md::layout_stride::mapping<extents>;
          auto distance = mapping{}.strides();                              // the array type in which this mdspan wants them
          const auto strides = in_order<std::int64_t>(order, 0, 6, 19, 1);  // tokens of 3 x (5 + 1), and one more
          for (std::size_t i = 0; i < 3; ++i) distance[i] = strides[i];
          const md::mdspan<T, extents, md::layout_stride> m(memory, mapping(dynamic<std::int64_t>(order), distance));
          return {view_of(m, order), element_of_mdspan(m, order, 0)};
        },
        19 * tokens);
}

TYPED_TEST(mdspan_types, real_ones_of_static_extents) {
  using T = TypeParam;
  const lagkv::dims<3> order = "thc";
  expect_like_plain<T, T>(lagkv::dtype_of<T>::value, [&](T* memory) -> subject<T> {
    const md::mdspan<T, md::extents<unsigned, md::dynamic_extent, heads, channels>> m(memory, unsigned{tokens});
    return {view_of(m, order), element_of_mdspan(m, order, 0)};
  });
}

static_assert(viewed<md::mdspan<float, md::dextents<int, 3>>> && !viewed<md::mdspan<const float, md::dextents<int, 3>>>);

#else

TEST(mdspan, real_ones) { GTEST_SKIP() << "no mdspan was found: see cmake/adapters.cmake"; }

#endif

}  // namespace
