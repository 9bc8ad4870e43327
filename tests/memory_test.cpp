// No byte outside the view is read or written: the caches stand against forbidden pages.
#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include <lagkv/lagkv.hpp>

#include "support/guarded.hpp"
#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::dtype;

enum class shape : std::uint8_t { dense, padded, transposed, paged };

/// One head in forbidden surroundings, ending (or starting) with its last (first) element.
class guarded_head {
 public:
  guarded_head(shape s, dtype type, const cube& x, guarded::flush side)
      : shape_(s), type_(type), tokens_(x.tokens), channels_(x.channels), memory_(elements() * size_of(type), side) {
    std::memset(memory_.data(), 0, memory_.size());
    for (std::size_t t = 0; t < tokens_; ++t)
      for (std::size_t c = 0; c < channels_; ++c) {
        const std::uint32_t bits = encoded(type, x.row(0, t)[c]);
        std::memcpy(memory_.data() + offset(t, c) * size_of(type), &bits, size_of(type));
      }
  }

  lagkv::tensor view() {
    switch (type_) {
      case dtype::f32:
        return view_as<float>();
      case dtype::f16:
        return view_as<lagkv::f16>();
      default:
        return view_as<lagkv::bf16>();
    }
  }
  void forbid() { memory_.forbid(); }

 private:
  static constexpr std::size_t block = 4;

  std::size_t stride() const { return shape_ == shape::transposed ? 1 : channels_ + (shape_ == shape::padded ? 5 : 0); }
  std::size_t elements() const {
    if (shape_ == shape::paged) return (tokens_ + block - 1) / block * block * channels_;
    return shape_ == shape::transposed ? tokens_ * channels_ : (tokens_ - 1) * stride() + channels_;
  }
  std::size_t offset(std::size_t t, std::size_t c) const {
    if (shape_ == shape::paged) t = static_cast<std::size_t>(table(t / block)) * block + t % block;
    return shape_ == shape::transposed ? c * tokens_ + t : t * stride() + c;
  }
  std::int32_t table(std::size_t i) const { return static_cast<std::int32_t>((tokens_ + block - 1) / block - 1 - i); }

  template <class T>
  lagkv::tensor view_as() {
    T* data = reinterpret_cast<T*>(memory_.data());
    const auto step = static_cast<std::ptrdiff_t>(stride());
    const lagkv::strides s{0, step, shape_ == shape::transposed ? static_cast<std::ptrdiff_t>(tokens_) : 1};
    if (shape_ != shape::paged) return lagkv::strided<T>(data, {1, channels_}, s, tokens_);
    table_.clear();
    for (std::size_t i = 0; i * block < tokens_; ++i) table_.push_back(table(i));
    return lagkv::paged<T>(data, {1, channels_}, {block, static_cast<std::ptrdiff_t>(block) * step, s, 0}, table_);
  }

  shape shape_;
  dtype type_;
  std::size_t tokens_, channels_;
  guarded memory_;
  std::vector<std::int32_t> table_;
};

struct memory : testing::TestWithParam<lagkv::simd::target> {};

TEST_P(memory, is_neither_read_nor_written_outside_the_view) {
  const lagkv::policy policies[] = {named("lagkv:sink=2,lag=5,ratio=0.4"), named("random:sink=2,recent=5,keep=0.5"),
                                    named("streaming_llm:sink=1,capacity=9")};
  lagkv::workspace ws(GetParam());
  for (std::size_t channels = 1; channels <= 67; channels += channels < 36 ? 1 : 10) {
    const cube k = make_cube(1, 1, 19, channels), v = make_cube(2, 1, 19, channels);
    for (shape s : {shape::dense, shape::padded, shape::transposed, shape::paged})
      for (dtype type : all_types)
        for (auto side : {guarded::flush::front, guarded::flush::back})
          for (auto direction : {lagkv::toward::front, lagkv::toward::window})
            for (const lagkv::policy& p : policies) {
              guarded_head keys(s, type, k, side), values(s, type, v, side);
              lagkv::cursor at;
              lagkv::compress(p, {keys.view(), values.view(), 19}, at, ws, direction);
              ASSERT_LT(at.tokens, 19U);
            }
  }
}

TEST_P(memory, of_the_values_is_left_alone_at_weight_0) {
  const cube x = make_cube(3, 1, 19, 8);
  guarded_head keys(shape::dense, dtype::f16, x, guarded::flush::back), values(shape::dense, dtype::f16, x, guarded::flush::back);
  const lagkv::layer l{keys.view(), values.view(), 19};
  values.forbid();
  lagkv::workspace ws(GetParam());
  EXPECT_EQ(lagkv::plan_eviction(named("lagkv:sink=2,lag=5,ratio=0.4,value_weight=0"), l, {}, ws).tokens_after(),
            2U + 2 * 2 + 5 + 2);
}

TEST_P(memory, of_the_cache_is_left_alone_where_nothing_is_due) {
  const cube x = make_cube(3, 1, 19, 8);
  guarded_head keys(shape::dense, dtype::f16, x, guarded::flush::back);
  const lagkv::layer l{keys.view(), keys.view(), 19};
  keys.forbid();
  lagkv::workspace ws(GetParam());
  lagkv::cursor at;
  EXPECT_EQ(lagkv::compress(named("lagkv:sink=2,lag=9,ratio=0.4"), l, at, ws), 19U);
}

INSTANTIATE_TEST_SUITE_P(guarded, memory, testing::ValuesIn(targets()), target_name{});

}  // namespace
