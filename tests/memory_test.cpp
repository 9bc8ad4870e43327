// No byte outside the view is read or written: the caches stand against forbidden pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/guarded.hpp"
#include "support/kernels.hpp"
#include "support/offer.hpp"

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

// ---- what is offered beside keys and values ---------------------------------------------------------------------------

/// An array in forbidden surroundings.
template <class T>
class guarded_array {
 public:
  guarded_array(std::size_t n, guarded::flush side) : n_(n), memory_(n * sizeof(T), side) {
    std::memset(memory_.data(), 0, memory_.size());
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::size_t size() const { return n_; }
  T& operator[](std::size_t i) const { return data()[i]; }

 private:
  std::size_t n_;
  guarded memory_;
};

/// All that a layer of one head can offer, each in forbidden surroundings: of `tokens` rows no element more than that.
struct guarded_offers {
  static constexpr std::size_t query_heads = 2;
  std::size_t tokens, channels;
  guarded_array<float> queries, weights, mean, covariance, attention, importance;
  guarded_array<std::uint32_t> positions, protect;
  guarded_array<double> statistics;
  lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  lagkv::extras extras{};

  guarded_offers(std::size_t n, std::size_t d, guarded::flush side)
      : tokens(n),
        channels(d),
        queries(query_heads * n * d, side),
        weights(query_heads * n * n, side),
        mean(query_heads * d, side),
        covariance(query_heads * d * d, side),
        attention(n, side),
        importance(2 * d + 1, side),
        positions(n, side),
        protect(2, side),
        statistics(lagkv::key_statistics::size(d), side) {
    const cube q = make_cube(5, query_heads, n, d);
    std::copy(q.x.begin(), q.x.end(), queries.data());
    std::fill_n(weights.data(), weights.size(), 1.0F / static_cast<float>(n));
    std::copy_n(q.x.begin(), mean.size(), mean.data());
    for (std::size_t h = 0; h < query_heads; ++h)
      for (std::size_t c = 0; c < d; ++c) covariance[(h * d + c) * d + c] = 0.5F;
    std::copy_n(any_importance(1, d, d).weights.begin(), importance.size(), importance.data());
    for (std::size_t i = 0; i < n; ++i) positions[i] = static_cast<std::uint32_t>(i);
    protect[0] = 6, protect[1] = 9;
  }

  static lagkv::tensor rows(const guarded_array<float>& x, std::size_t n, std::size_t width) {
    const auto step = static_cast<std::ptrdiff_t>(width);
    return lagkv::strided<float>(x.data(), {query_heads, width}, {static_cast<std::ptrdiff_t>(n) * step, step, 1}, n);
  }

  const lagkv::extras* offer(bool given_weights, bool query_statistics) {
    extras = {};
    extras.accumulated_attention = {attention.data(), tokens};
    extras.positions = {positions.data(), tokens};
    extras.protect = {protect.data(), protect.size()};
    extras.key_statistics = {statistics.data()};
    extras.rope = &rope;
    extras.importance = lagkv::strided<float>(importance.data(), {1, importance.size()}, {0, 0, 1}, 1);
    if (given_weights)
      extras.weights = rows(weights, tokens, tokens);
    else
      extras.queries = rows(queries, tokens, channels);
    if (query_statistics)
      extras.query_mean = rows(mean, 1, channels), extras.query_covariance = rows(covariance, channels, channels);
    return &extras;
  }
};

// Every method with all that can be offered, over sizes on both sides of every number of lanes.
TEST_P(memory, of_what_is_offered_is_neither_read_nor_written_beyond_its_end) {
  std::vector<lagkv::policy> policies;
  for (const lagkv::method_entry* m : every_method())
    if (m->make != nullptr && m->name != "lagkv")
      for (const char* keys : {":sink=2,recent=4,keep=0.6", ":sink=2,recent=4,capacity=12,pool=5,smooth=2"}) {
        const auto p = lagkv::parse(std::string(m->name) + keys, every_method());
        ASSERT_TRUE(p) << p.message();
        policies.push_back(*p);
      }
  policies.push_back(named_any("h2o:form=mean,sink=2,recent=4,capacity=12"));
  policies.push_back(named_any("fuse:key_diff+snapkv,sink=2,recent=4,keep=0.6"));
  policies.push_back(named_any("key_diff:sink=2,recent=4,capacity=12,pre_rope=yes"));
  policies.push_back(named_any("cur:sink=2,recent=4,keep=0.6,select=chunks,chunk=5"));
  lagkv::workspace ws(GetParam());
  std::size_t dropped = 0;
  for (std::size_t channels : {2U, 6U, 8U, 14U, 16U, 18U, 34U})
    for (std::size_t tokens : {15U, 16U, 17U, 31U, 32U, 33U})
      for (auto side : {guarded::flush::front, guarded::flush::back}) {
        const cube k = make_cube(1, 1, tokens, channels), v = make_cube(2, 1, tokens, channels);
        for (std::size_t i = 0; i < policies.size(); ++i) {
          guarded_head keys(shape::dense, i % 2 == 0 ? dtype::f16 : dtype::f32, k, side),
              values(shape::dense, dtype::f16, v, side);
          guarded_offers offers(tokens, channels, side);
          const bool statistics = i % 2 == 0, weights = i % 3 == 0 && (statistics || !policies[i].needs.query_statistics);
          lagkv::layer l{keys.view(), values.view(), tokens, offers.offer(weights, statistics)};
          ASSERT_EQ(check(policies[i], l).message(), "");
          lagkv::cursor at;
          lagkv::accumulate(policies[i], l, at, tokens, ws);
          lagkv::compress(policies[i], l, at, ws, i % 2 == 0 ? lagkv::toward::front : lagkv::toward::window);
          dropped += tokens - at.tokens;
        }
      }
  EXPECT_GT(dropped, 0U);
}

// ---- kernels ----------------------------------------------------------------------------------------------------------

// Each array of each kernel has as many elements as its header says and stands against forbidden pages, before and behind.
TEST_P(memory, of_kernels_is_what_their_headers_say) {
  const kernel_table table = kernels_of(GetParam());
  const auto each = [&](std::size_t channels, std::size_t tokens, dtype type, std::size_t gap, guarded::flush side) {
    const std::size_t stride = channels + gap, unit = size_of(type);
    guarded rows(((tokens - 1) * stride + channels) * unit, side);
    std::memset(rows.data(), 0x21, rows.size());
    const lagkv::simd::rows x{rows.data(), type, tokens, channels, static_cast<std::ptrdiff_t>(stride)};
    const auto floats = [&](std::size_t n) { return guarded_array<float>(n, side); };
    const auto low = floats(channels), high = floats(channels), own_low = floats(channels), own_high = floats(channels);
    std::fill_n(high.data(), channels, 1.0F);
    const auto per_row = floats(tokens), factors = floats(tokens), sums = floats(channels), squares = floats(channels);
    table.range(x, own_low.data(), own_high.data());
    table.normalise(channels, type, low.data(), high.data());
    table.deviation(x, low.data(), high.data(), per_row.data(), own_low.data(), own_high.data());
    table.squares(x, per_row.data());
    table.distances(x, factors.data(), low.data(), high.data(), per_row.data());
    table.distances(x, nullptr, low.data(), nullptr, per_row.data());
    table.add_rows(x, factors.data(), sums.data());
    table.add_statistics(x, factors.data(), sums.data(), squares.data());
    table.add_roots(factors.data(), tokens, 1, 1, per_row.data());
    table.inverse_roots(per_row.data(), tokens);
    for (std::size_t count : {1U, 2U, 3U, 4U, 5U, 8U, 9U}) {
      const auto vectors = floats(count * channels), products = floats((count - 1) * (tokens + gap) + tokens);
      table.dots(x, vectors.data(), count, products.data(), tokens + gap);
    }
    for (bool neighbours : {false, true}) {
      const std::size_t dims = channels / 2 * 2, width = neighbours ? dims : dims / 2;
      if (dims == 0) continue;
      const auto coarse = floats(2 * width), fine = floats(2 * width), out = floats(tokens * channels);
      guarded_array<const float*> fines(tokens, side);
      std::fill_n(fines.data(), tokens, fine.data());
      table.inverse_rotate(x, {dims, neighbours, coarse.data(), fines.data()}, out.data(), per_row.data());
    }
  };
  for (std::size_t n = 1; n <= 67; ++n)
    for (auto side : {guarded::flush::front, guarded::flush::back}) {
      for (dtype type : all_types) each(n, 1 + n % 9, type, n % 3, side), each(1 + n % 35, n, type, 0, side);
      guarded_array<float> scores(n, side), out(n, side);
      table.add_softmax(scores.data(), n, 1, out.data());
      for (std::size_t k : {std::size_t{1}, n / 2, n}) {
        const guarded_array<std::int32_t> keys(n, side);
        const guarded_array<std::uint32_t> best(k, side);
        table.top_k(scores.data(), n, k, 0, keys.data(), best.data());
      }
      for (std::size_t t = 0; t < std::size(lagkv::detail::facts); ++t) {
        const auto type = static_cast<dtype>(t);
        const std::size_t elements = n * elements_of(type);
        const guarded_array<std::byte> stored(n * size_of(type), side);
        const guarded_array<float> wide(elements, side);
        table.widen(stored.data(), type, elements, wide.data());
        if (is_float(type)) table.narrow(wide.data(), type, elements, stored.data());
      }
    }
}

INSTANTIATE_TEST_SUITE_P(guarded, memory, testing::ValuesIn(targets()), target_name{});

}  // namespace
