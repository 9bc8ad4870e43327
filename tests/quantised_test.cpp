// Quantised caches: elements against their definition in double, scores against the same numbers in f32, moves as whole rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/blocks.hpp"
#include "support/npy.hpp"
#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;

std::vector<dtype> quantised_types() {
  std::vector<dtype> all(std::begin(byte_types), std::end(byte_types));
  all.insert(all.end(), std::begin(block_types), std::end(block_types));
  return all;
}

double unit_value(dtype type, const std::byte* unit, std::size_t i) {
  return lagkv::elements_of(type) == 1 ? byte_value(type, std::to_integer<std::uint8_t>(*unit)) : block_value(type, unit, i);
}

// ---- elements -------------------------------------------------------------------------------------------------------

class elements : public testing::TestWithParam<lagkv::simd::target> {
 protected:
  const lagkv::simd::widen_kernels& table = lagkv::simd::kernels<lagkv::simd::widen_kernels>(GetParam());
};

TEST_P(elements, every_byte_of_any_length) {
  for (dtype type : byte_types) {
    std::vector<std::uint8_t> bytes(256);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    for (std::size_t n = 0; n <= 256; n = n < 70 ? n + 1 : n + 93) {
      const std::vector<std::uint8_t> x(bytes.end() - static_cast<std::ptrdiff_t>(n), bytes.end());
      std::vector<float> out(n + 1, 77.0F);
      table.widen(x.data(), type, n, out.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double right = byte_value(type, x[i]);
        if (std::isnan(right))
          ASSERT_TRUE(std::isnan(out[i])) << lagkv::name(type) << " " << int{x[i]};
        else
          ASSERT_TRUE(same_bits(out[i], static_cast<float>(right))) << lagkv::name(type) << " " << int{x[i]} << ": " << out[i];
      }
      ASSERT_EQ(out[n], 77.0F);
    }
  }
}

TEST_P(elements, blocks) {
  std::mt19937 random(5);
  for (dtype type : block_types)
    for (std::size_t blocks = 1; blocks <= 40; ++blocks) {
      std::vector<std::byte> x(blocks * lagkv::size_of(type));
      for (std::size_t b = 0; b < blocks; ++b) random_unit(type, random, &x[b * lagkv::size_of(type)]);
      std::vector<float> out(32 * blocks + 1, 77.0F);
      table.widen(x.data(), type, 32 * blocks, out.data());
      for (std::size_t i = 0; i < 32 * blocks; ++i) {
        const std::byte* block = &x[i / 32 * lagkv::size_of(type)];
        const double right = block_value(type, block, i % 32);
        // One product is exact to the last bit; a sum rounds once or twice, relative to its larger term.
        const double terms =
            type == dtype::q4_1 || type == dtype::q5_1 ? std::fabs(right) + 2 * std::fabs(block_value(type, block, 0)) : 0;
        ASSERT_NEAR(out[i], right, std::fabs(right) * 0x1p-24 + terms * 0x1p-22) << lagkv::name(type) << " element " << i;
      }
      ASSERT_EQ(out.back(), 77.0F);
    }
}

TEST_P(elements, block_scales_that_are_no_numbers_or_tiny) {
  for (dtype type : block_types)
    for (const std::uint16_t scale :
         std::initializer_list<std::uint16_t>{0x7c00, 0xfc00, 0x7e00, 0x0001, 0x03ff, 0x8000, 0x7bff}) {
      std::byte block[40] = {};
      std::memset(block, 0x35, sizeof block);
      std::memcpy(block, &scale, sizeof scale);
      float out[32];
      table.widen(block, type, 32, out);
      for (std::size_t i = 0; i < 32; ++i) {
        const double right = block_value(type, block, i);
        if (std::isfinite(right))
          ASSERT_NEAR(out[i], right, std::fabs(right) * 0x1p-22) << lagkv::name(type);
        else
          ASSERT_FALSE(std::isfinite(out[i])) << lagkv::name(type);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(all, elements, testing::ValuesIn(targets()), target_name());

TEST(elements, float8_is_that_of_pytorch) {
  for (auto [type, file] : {std::pair{dtype::fp8_e4m3, "e4m3"}, {dtype::fp8_e5m2, "e5m2"}}) {
    const auto a = npy::load(std::string(LAGKV_GOLDEN) + "/float8/" + file + ".npy");
    ASSERT_TRUE(a) << a.message();
    const auto right = a->as<float>();
    ASSERT_EQ(right.size(), 256U);
    std::vector<std::uint8_t> bytes(256);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    std::vector<float> out(256);
    lagkv::workspace().kernels<lagkv::simd::widen_kernels>().widen(bytes.data(), type, 256, out.data());
    for (std::size_t i = 0; i < 256; ++i)
      EXPECT_TRUE(same_bits(out[i], right[i]) || (std::isnan(out[i]) && std::isnan(right[i]))) << file << " " << i;
  }
}

TEST(elements, sizes_are_those_of_ggml) {
  EXPECT_EQ(lagkv::size_of(dtype::q8_0), sizeof(lagkv::q8_0));
  EXPECT_EQ(lagkv::size_of(dtype::q4_0), sizeof(lagkv::q4_0));
  EXPECT_EQ(lagkv::size_of(dtype::q4_1), sizeof(lagkv::q4_1));
  EXPECT_EQ(lagkv::size_of(dtype::q5_0), sizeof(lagkv::q5_0));
  EXPECT_EQ(lagkv::size_of(dtype::q5_1), sizeof(lagkv::q5_1));
}

// ---- caches ---------------------------------------------------------------------------------------------------------

/// Where units lie.
enum class place : std::uint8_t { heads_first, tokens_first, units_apart, paged, in_front };
constexpr place all_places[] = {place::heads_first, place::tokens_first, place::units_apart, place::paged, place::in_front};
const char* name(place p) {
  constexpr const char* names[] = {"heads_first", "tokens_first", "units_apart", "paged", "in_front"};
  return names[static_cast<std::size_t>(p)];
}

/// Whose scale it is.
enum class owner : std::uint8_t { none, tensor, head, token, token_with_zero };
const char* name(owner o) {
  constexpr const char* names[] = {"none", "tensor", "head", "token", "token_with_zero"};
  return names[static_cast<std::size_t>(o)];
}

constexpr std::size_t heads = 2, channels = 64, capacity = 230;

/// Keys or values of one layer, of random units, in a place; bytes that are not the cache's are canaries.
class quantised {
 public:
  quantised(dtype type, place where, owner scale, unsigned seed)
      : type_(type), where_(where), owner_(scale), units_(channels / lagkv::elements_of(type)) {
    const auto u = static_cast<std::ptrdiff_t>(units_), h = static_cast<std::ptrdiff_t>(heads),
               n = static_cast<std::ptrdiff_t>(capacity);
    const std::ptrdiff_t prefix = scale_floats() * 4;  // in_front: bytes before each row, as OpenVINO has them
    switch (where) {
      case place::heads_first:
        within_ = {n * u, u, 1};
        break;
      case place::tokens_first:
        within_ = {u, h * u, 1};
        break;
      case place::units_apart:
        within_ = {n * u, 1, n};
        break;
      case place::paged:
        within_ = {u, h * u, 1};
        break;
      case place::in_front:
        within_ = {n * (u + prefix), u + prefix, 1};
        break;
    }
    std::mt19937 random(seed);
    table_.resize((capacity + block - 1) / block);
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random);
    bytes_.assign((table_.size() * block * heads * (units_ + 8) + 16) * lagkv::size_of(type), canary);
    factors_.assign(heads * (capacity + block) * 2 + 2, 0.0F);
    for (std::size_t head = 0; head < heads; ++head) {
      const float of_head = 0.01F * static_cast<float>(1 + head);
      if (owner_ == owner::tensor || owner_ == owner::head) factors_[head] = owner_ == owner::tensor ? 0.02F : of_head;
      for (std::size_t t = 0; t < capacity; ++t) {
        for (std::size_t i = 0; i < units_; ++i) random_unit(type, random, unit(head, t, i));
        if (each_token()) *factor(head, t) = 0.001F * static_cast<float>(1 + random() % 100);
        if (owner_ == owner::token_with_zero) factor(head, t)[1] = static_cast<float>(random() % 200);
      }
    }
  }

  lagkv::tensor view() {
    switch (type_) {
      case dtype::fp8_e4m3:
        return bytes_view<lagkv::fp8_e4m3>();
      case dtype::fp8_e5m2:
        return bytes_view<lagkv::fp8_e5m2>();
      case dtype::int8:
        return bytes_view<std::int8_t>();
      case dtype::uint8:
        return bytes_view<std::uint8_t>();
      case dtype::q8_0:
        return plain_view<lagkv::q8_0>();
      case dtype::q4_0:
        return plain_view<lagkv::q4_0>();
      case dtype::q4_1:
        return plain_view<lagkv::q4_1>();
      case dtype::q5_0:
        return plain_view<lagkv::q5_0>();
      default:
        return plain_view<lagkv::q5_1>();
    }
  }

  /// Bytes and scale of a row: what must arrive whole.
  std::vector<std::byte> row(std::size_t head, std::size_t token) {
    std::vector<std::byte> out;
    for (std::size_t i = 0; i < units_; ++i)
      out.insert(out.end(), unit(head, token, i), unit(head, token, i) + lagkv::size_of(type_));
    if (each_token()) {
      const auto* f = reinterpret_cast<const std::byte*>(factor(head, token));
      out.insert(out.end(), f, f + scale_floats() * 4);
    }
    return out;
  }

  /// The numbers, in f32: a product with the scale is rounded once, as the library does.
  cube values() {
    cube out(heads, capacity, channels);
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t t = 0; t < capacity; ++t) {
        std::vector<float> row(channels);
        for (std::size_t c = 0; c < channels; ++c) {
          const std::size_t n = lagkv::elements_of(type_);
          row[c] = static_cast<float>(unit_value(type_, unit(head, t, c / n), c % n));
        }
        for (std::size_t c = 0; c < channels; ++c) {
          if (owner_ == owner::tensor || owner_ == owner::head) row[c] *= factors_[head];
          if (owner_ == owner::token) row[c] *= *factor(head, t);
          if (owner_ == owner::token_with_zero) row[c] = (row[c] - factor(head, t)[1]) * *factor(head, t);
          out.row(head, t)[c] = row[c];
        }
      }
    return out;
  }

  bool intact() {
    std::vector<std::byte> seen = bytes_;
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t t = 0; t < capacity; ++t) {
        for (std::size_t i = 0; i < units_; ++i)
          std::fill_n(seen.begin() + (unit(head, t, i) - bytes_.data()), lagkv::size_of(type_), canary);
        if (each_token() && where_ == place::in_front)
          std::fill_n(seen.begin() + (reinterpret_cast<std::byte*>(factor(head, t)) - bytes_.data()), scale_floats() * 4, canary);
      }
    return std::all_of(seen.begin(), seen.end(), [](std::byte b) { return b == canary; });
  }

 private:
  static constexpr std::byte canary{0xc5};
  static constexpr std::size_t block = 16;
  static constexpr std::ptrdiff_t first = 8;  // units in front of the cache

  bool each_token() const { return owner_ >= owner::token; }
  std::ptrdiff_t scale_floats() const { return owner_ == owner::token_with_zero ? 2 : owner_ == owner::token ? 1 : 0; }

  /// The slot of a token, and where it is in units.
  std::ptrdiff_t slot(std::size_t token) const {
    if (where_ != place::paged) return static_cast<std::ptrdiff_t>(token);
    return table_[token / block] * static_cast<std::ptrdiff_t>(block) + static_cast<std::ptrdiff_t>(token % block);
  }
  std::byte* unit(std::size_t head, std::size_t token, std::size_t i) {
    const std::ptrdiff_t at = first + static_cast<std::ptrdiff_t>(head) * within_.head + slot(token) * within_.token +
                              static_cast<std::ptrdiff_t>(i) * within_.channel;
    return bytes_.data() + at * static_cast<std::ptrdiff_t>(lagkv::size_of(type_));
  }

  /// In f32 from one token to the next, and from head to head, of scales that each token has.
  lagkv::strides scale_strides() const {
    const std::ptrdiff_t n = scale_floats(), h = static_cast<std::ptrdiff_t>(heads);
    if (where_ == place::in_front) return {within_.head / 4, within_.token / 4, 1};
    return {n, n * h, 1};
  }
  float* scale_data() {
    return where_ == place::in_front ? reinterpret_cast<float*>(bytes_.data() + first) - scale_floats() : factors_.data();
  }
  float* factor(std::size_t head, std::size_t token) {
    const lagkv::strides s = scale_strides();
    return scale_data() + static_cast<std::ptrdiff_t>(head) * s.head + slot(token) * s.token;
  }

  template <class T>
  auto elements_view() {
    return lagkv::strided<T>(reinterpret_cast<T*>(bytes_.data()) + first, {heads, channels}, within_, capacity);
  }
  template <class T>
  auto paged_view(T* data, std::size_t n, lagkv::strides s) {
    return lagkv::paged<T>(data, {heads, n}, {block, static_cast<std::ptrdiff_t>(block) * s.token, s, 0}, table_);
  }

  template <class T>
  lagkv::tensor plain_view() {
    if (where_ == place::paged) return paged_view(reinterpret_cast<T*>(bytes_.data()) + first, channels, within_);
    return elements_view<T>();
  }
  template <class T>
  lagkv::tensor bytes_view() {
    const lagkv::shared_scales shared{factors_.data(), owner_ == owner::head ? 1 : 0, nullptr};
    const auto n = static_cast<std::size_t>(scale_floats());
    if (where_ == place::paged) {
      const auto x = paged_view(reinterpret_cast<T*>(bytes_.data()) + first, channels, within_);
      if (owner_ == owner::none) return x;
      if (!each_token()) return lagkv::scaled(x, shared);
      return lagkv::scaled(x, paged_view(scale_data(), n, scale_strides()));
    }
    const auto x = elements_view<T>();
    if (owner_ == owner::none) return x;
    if (!each_token()) return lagkv::scaled(x, shared);
    return lagkv::scaled(x, lagkv::strided<float>(scale_data(), {heads, n}, scale_strides(), capacity));
  }

  dtype type_;
  place where_;
  owner owner_;
  std::size_t units_;
  lagkv::strides within_{};
  std::vector<std::int32_t> table_;
  std::vector<std::byte> bytes_;
  std::vector<float> factors_;
};

struct quantised_case {
  dtype type;
  place where;
  owner scale;

  friend std::ostream& operator<<(std::ostream& out, const quantised_case& c) {
    return out << lagkv::name(c.type) << "_" << name(c.where) << "_" << name(c.scale);
  }
};

std::vector<quantised_case> all_cases() {
  std::vector<quantised_case> out;
  for (dtype type : quantised_types())
    for (place where : all_places) {
      if (!lagkv::is_byte(type)) {
        if (where != place::in_front) out.push_back({type, where, owner::none});
        continue;
      }
      for (owner scale : {owner::none, owner::tensor, owner::head, owner::token, owner::token_with_zero})
        if (where != place::in_front || scale >= owner::token) out.push_back({type, where, scale});
    }
  return out;
}

class quantised_caches : public testing::TestWithParam<quantised_case> {};

/// Whether a sum of two terms stands in the type, whose rounding depends on the target.
bool sums(dtype type) { return type == dtype::q4_1 || type == dtype::q5_1; }

TEST_P(quantised_caches, scores_are_those_of_the_same_numbers_in_f32) {
  const auto [type, where, scale] = GetParam();
  quantised k(type, where, scale, 1), v(type, where, scale, 2);
  host plain_k(layout::heads_first, dtype::f32, k.values()), plain_v(layout::heads_first, dtype::f32, v.values());
  const host queries_of(layout::heads_first, dtype::f32, make_cube(7, 2 * heads, 20, channels));
  host queries = queries_of;
  lagkv::extras e;
  e.queries = queries.view();
  for (auto target : targets())
    for (const char* text :
         {"lagkv:sink=3,lag=32,ratio=0.4", "key_diff:sink=3,keep=0.4", "cur:sink=3,keep=0.4", "value_norm:sink=3,keep=0.4",
          "manifold:sink=3,keep=0.4,lag=32", "snapkv:sink=3,keep=0.4,window=9"}) {
      const lagkv::policy p = named(text);
      const lagkv::layer l{k.view(), v.view(), capacity, &e}, plain{plain_k.view(), plain_v.view(), capacity, &e};
      ASSERT_EQ(check(p, l).message(), "");
      lagkv::workspace ws(target), other(target);
      const lagkv::candidates due = p.budget.due({}, capacity);
      const auto scores = lagkv::score(p, l, due, ws), right = lagkv::score(p, plain, due, other);
      for (std::size_t i = 0; i < right.size(); ++i) {
        if (sums(type))
          ASSERT_NEAR(scores[i], right[i], 1e-4F * std::fabs(right[i])) << text << " " << lagkv::simd::name(target);
        else
          ASSERT_TRUE(same_bits(scores[i], right[i])) << text << " " << lagkv::simd::name(target) << " " << i;
      }
    }
}

TEST_P(quantised_caches, rows_move_whole_in_both_directions) {
  const auto [type, where, scale] = GetParam();
  for (auto direction : {lagkv::toward::front, lagkv::toward::window}) {
    quantised k(type, where, scale, 3), v(type, where, scale, 4), k0 = k, v0 = v;
    const lagkv::policy p = named("lagkv:sink=3,lag=32,ratio=0.4");
    lagkv::workspace ws;
    lagkv::cursor at;
    const std::size_t left = lagkv::compress(p, {k.view(), v.view(), capacity}, at, ws, direction);
    const lagkv::plan& plan = lagkv::last_plan(ws);
    ASSERT_LT(left, capacity);
    const std::size_t gone = capacity - left, begin = plan.candidates.begin;
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t i = 0; i < left; ++i) {
        const std::size_t now = direction == lagkv::toward::front || i < begin ? i : i + gone;
        ASSERT_EQ(k.row(h, now), k0.row(h, plan.source(h, i)));
        ASSERT_EQ(v.row(h, now), v0.row(h, plan.source(h, i)));
      }
    EXPECT_TRUE(k.intact() && v.intact());
  }
}

TEST_P(quantised_caches, plan_keeps_what_f32_would_keep) {
  const auto [type, where, scale] = GetParam();
  if (sums(type)) return;  // a rounding may decide between two tokens; the scores are compared above
  quantised k(type, where, scale, 5), v(type, where, scale, 6);
  host plain_k(layout::heads_first, dtype::f32, k.values()), plain_v(layout::heads_first, dtype::f32, v.values());
  const lagkv::policy p = named("lagkv:sink=3,lag=32,ratio=0.4");
  lagkv::workspace ws, other;
  EXPECT_EQ(plan_eviction(p, {k.view(), v.view(), capacity}, {}, ws).kept,
            plan_eviction(p, {plain_k.view(), plain_v.view(), capacity}, {}, other).kept);
}

INSTANTIATE_TEST_SUITE_P(all, quantised_caches, testing::ValuesIn(all_cases()),
                         [](const auto& i) { return testing::PrintToString(i.param); });

// ---- under a Hadamard matrix ----------------------------------------------------------------------------------------

TEST(hadamard, scores_are_those_of_the_rows_before_the_transform) {
  for (std::size_t block : {1U, 2U, 16U, 64U}) {
    const cube plain = make_cube(11, heads, capacity, channels);
    cube stored = plain;
    for (std::size_t row = 0; row < heads * capacity; ++row)
      for (std::size_t c = 0; c < channels; ++c) {
        const std::size_t first = c / block * block;
        double sum = 0;
        for (std::size_t j = 0; j < block; ++j)
          sum +=
              (std::popcount((c - first) & j) % 2 == 0 ? 1.0 : -1.0) * static_cast<double>(plain.x[row * channels + first + j]);
        stored.x[row * channels + c] = static_cast<float>(sum / std::sqrt(static_cast<double>(block)));
      }
    const lagkv::strides packed{static_cast<std::ptrdiff_t>(capacity * channels), static_cast<std::ptrdiff_t>(channels)};
    cube right = plain;
    const lagkv::strided<float> under(stored.x.data(), {heads, channels}, packed, capacity),
        open(right.x.data(), {heads, channels}, packed, capacity);
    const lagkv::tensor turned = lagkv::hadamard(under, block);
    for (const char* text : {"lagkv:sink=3,lag=32,ratio=0.4", "key_diff:sink=3,keep=0.4"}) {
      const lagkv::policy p = named(text);
      const lagkv::layer l{turned, turned, capacity}, r{open, open, capacity};
      ASSERT_EQ(check(p, l).message(), "");
      lagkv::workspace ws, other;
      const auto scores = lagkv::score(p, l, p.budget.due({}, capacity), ws);
      const auto expected = lagkv::score(p, r, p.budget.due({}, capacity), other);
      for (std::size_t i = 0; i < expected.size(); ++i)
        ASSERT_NEAR(scores[i], expected[i], 2e-5F * std::fabs(expected[i])) << text << " " << block;
    }
    const cube before = stored;
    lagkv::workspace ws;
    lagkv::cursor at;
    const std::size_t left =
        lagkv::compress(named("lagkv:sink=3,lag=32,ratio=0.4,value_weight=0"), {turned, {}, capacity}, at, ws);
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t i = 0; i < left; ++i)
        ASSERT_EQ(std::memcmp(stored.row(h, i), before.row(h, lagkv::last_plan(ws).source(h, i)), channels * sizeof(float)), 0)
            << "rows move as they are stored";
  }
}

TEST(hadamard, blocks_that_are_none_are_refused) {
  std::vector<float> x(96 * 10);
  const lagkv::strided<float> rows(x.data(), {1, 96}, {960, 96}, 10);
  for (std::size_t block : {0U, 3U, 12U, 64U})
    EXPECT_EQ(lagkv::tensor(lagkv::hadamard(rows, block)).check(10).message(),
              "hadamard: block=" + std::to_string(block) + ": must be a power of two that divides the 96 channels");
  EXPECT_TRUE(lagkv::tensor(lagkv::hadamard(rows, 32)).check(10));
}

// ---- refusals -------------------------------------------------------------------------------------------------------

TEST(quantised, blocks_that_do_not_fit_a_row_are_refused) {
  std::vector<lagkv::q8_0> x(100);
  const lagkv::tensor t = lagkv::strided<lagkv::q8_0>(x.data(), {1, 80}, {100, 3}, 10);
  EXPECT_EQ(t.check(10).message(),
            "channels=80: must be a multiple of the 32 elements of a block of q8_0 (a block that spans tokens or heads cannot "
            "move alone)");
}

TEST(quantised, strides_that_overlap_are_refused_in_units) {
  std::vector<lagkv::q4_0> x(100);
  const lagkv::tensor good = lagkv::strided<lagkv::q4_0>(x.data(), {2, 64}, {2, 4}, 10);
  EXPECT_TRUE(good.check(10));
  const lagkv::tensor bad = lagkv::strided<lagkv::q4_0>(x.data(), {2, 64}, {1, 4}, 10);
  EXPECT_NE(bad.check(10).message().find("overlap"), std::string::npos);
}

TEST(quantised, scales_are_checked) {
  std::vector<std::uint8_t> x(4 * 10 * 8);
  std::vector<float> f(100);
  const lagkv::strided<lagkv::fp8_e4m3> e(x.data(), {4, 8}, {80, 8}, 10);
  const auto message = [](const lagkv::tensor& t) { return t.check(10).message(); };
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::shared_scales{f.data()})), "");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::shared_scales{})), "scales: factors are null");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::strided<float>(f.data(), {3, 1}, {10, 1}, 10))), "scales: heads=3: must be 4");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::strided<float>(f.data(), {4, 3}, {30, 3}, 10))),
            "scales: channels=3: must be 1 (factor) or 2 (factor, zero point)");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::strided<float>(f.data(), {4, 1}, {10, 1}, 9))),
            "scales: capacity=9: must be 10 or more");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::strided<float>(f.data(), {4, 1}, {0, 1}, 10))),
            "scales: strides head=0, token=1, channel=1: overlap for 4 heads, 10 tokens, 1 channels");
  EXPECT_EQ(message(lagkv::scaled(e, lagkv::strided<lagkv::f16>(reinterpret_cast<lagkv::f16*>(f.data()), {4, 1}, {10, 1}, 10))),
            "scales: type f16: must be f32");
  const lagkv::strided<float> numbers(f.data(), {1, 8}, {0, 8}, 10);
  EXPECT_EQ(message(lagkv::scaled(numbers, lagkv::shared_scales{f.data()})),
            "type f32: a scale goes with fp8_e4m3, fp8_e5m2, int8 or uint8");
}

TEST(quantised, keys_are_not_rotated_anew) {
  std::vector<std::int8_t> x(80);
  const lagkv::tensor keys = lagkv::strided<std::int8_t>(x.data(), {1, 8}, {80, 8}, 10);
  EXPECT_EQ(check(lagkv::rope{.pairs = lagkv::rope::pairing::halves}, keys).message(),
            "keys: type int8: must be f32, f16 or bf16 (others would lose digits)");
}

}  // namespace
