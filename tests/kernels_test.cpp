// Every kernel of every instruction set against a plain double computation, over sizes that end anywhere in a vector.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <span>

#include <lagkv/lagkv.hpp>

#include "support/host.hpp"
#include "support/kernels.hpp"

namespace {

using namespace support;
using lagkv::dtype;
using lagkv::simd::target;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// A build of the kernels.
struct build {
  const char* name;
  kernel_table table;
  bool reads_16_bits = true;

  friend std::ostream& operator<<(std::ostream& out, const build& b) { return out << b.name; }
};

std::vector<build> builds() {
  std::vector<build> all;
  for (target t : targets()) all.push_back({lagkv::simd::name(t), kernels_of(t), lagkv::simd::reads_16_bits(t)});
  all.push_back({"sixteen_lanes", sixteen_lanes()});
  all.push_back({"one_lane", one_lane()});
  return all;
}

/// Rows of one type in memory that ends with the last element.
struct packed {
  packed(dtype t, std::size_t n, std::size_t c, std::ptrdiff_t padding, std::mt19937& random)
      : type(t),
        tokens(n),
        channels(c),
        stride(static_cast<std::ptrdiff_t>(c) + padding),
        bytes((tokens - 1) * row_bytes() + c * size_of(t)) {
    std::normal_distribution<float> normal(0.5F, 2.0F);
    for (std::size_t i = 0; i < tokens; ++i)
      for (std::size_t j = 0; j < channels; ++j) set(i, j, encoded(type, normal(random)));
  }
  std::size_t row_bytes() const { return static_cast<std::size_t>(stride) * size_of(type); }
  std::size_t at(std::size_t token, std::size_t channel) const { return token * row_bytes() + channel * size_of(type); }
  void set(std::size_t token, std::size_t channel, std::uint32_t bits) {
    std::memcpy(&bytes[at(token, channel)], &bits, size_of(type));
  }
  float value(std::size_t token, std::size_t channel) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &bytes[at(token, channel)], size_of(type));
    return decoded(type, bits);
  }
  lagkv::simd::rows rows() const { return {bytes.data(), type, tokens, channels, stride}; }

  dtype type;
  std::size_t tokens, channels;
  std::ptrdiff_t stride;
  std::vector<std::byte> bytes;
};

struct kernels : testing::TestWithParam<build> {
  const kernel_table table = GetParam().table;

  /// Of rows that it reads; others come widened.
  static std::span<const dtype> types() {
    return std::span(all_types).first(GetParam().reads_16_bits ? std::size(all_types) : 1);
  }

  /// Calls f with rows of every type, 1..130 channels and 1..40 tokens (all channels with some tokens, some with all).
  template <class F>
  static void for_each_size(const F& f) {
    std::mt19937 random(3);
    for (dtype type : types())
      for (std::size_t channels = 1; channels <= 130; ++channels)
        for (std::size_t tokens = 1; tokens <= 40; ++tokens)
          if (tokens == 1 + channels % 40 || channels == 3 + tokens || channels == 90 + tokens) {
            SCOPED_TRACE(std::string(lagkv::name(type)) + " " + std::to_string(tokens) + " x " + std::to_string(channels));
            f(packed(type, tokens, channels, static_cast<std::ptrdiff_t>(random() % 3), random), random);
            if (HasFatalFailure()) return;
          }
  }
};

/// Bits of what is not finite: a quiet NaN, a signalling one, both infinities.
std::array<std::uint32_t, 4> not_finite(dtype type) {
  if (type == dtype::f16) return {0x7e00U, 0xfd00U, 0x7c00U, 0xfc00U};
  if (type == dtype::bf16) return {0x7fc0U, 0xffa0U, 0x7f80U, 0xff80U};
  return {0x7fc00000U, 0xffa00000U, 0x7f800000U, 0xff800000U};
}

TEST_P(kernels, range_extends_what_it_is_given) {
  for_each_size([&](packed x, std::mt19937& random) {
    std::vector<float> low(x.channels), high(x.channels), lo(x.channels), hi(x.channels);
    for (std::size_t c = 0; c < x.channels; ++c) {
      const bool fresh = c % 2 == 0;  // the others have seen rows before
      lo[c] = low[c] = fresh ? infinity : -1.0F;
      hi[c] = high[c] = fresh ? -infinity : 1.0F;
      for (std::size_t t = 0; t < x.tokens; ++t)
        low[c] = std::min(low[c], x.value(t, c)), high[c] = std::max(high[c], x.value(t, c));
    }
    // A NaN changes nothing, wherever it stands; signalling ones too.
    if (x.tokens > 1)
      for (std::size_t c = 0; c < x.channels; ++c) {
        const std::size_t t = random() % x.tokens;
        const std::uint32_t bits = not_finite(x.type)[random() % 2];
        const float gone = x.value(t, c);
        if (gone == low[c] || gone == high[c]) continue;
        x.set(t, c, bits);
      }
    table.range(x.rows(), lo.data(), hi.data());
    for (std::size_t c = 0; c < x.channels; ++c) {
      ASSERT_EQ(lo[c], low[c]) << "channel " << c;
      ASSERT_EQ(hi[c], high[c]) << "channel " << c;
    }
  });
}

TEST_P(kernels, range_counts_infinities) {
  std::mt19937 random(5);
  for (dtype type : types()) {
    packed x(type, 3, 33, 0, random);
    x.set(1, 32, not_finite(type)[2]), x.set(2, 0, not_finite(type)[3]);
    std::vector<float> lo(33, infinity), hi(33, -infinity);
    table.range(x.rows(), lo.data(), hi.data());
    EXPECT_EQ(hi[32], infinity);
    EXPECT_EQ(lo[0], -infinity);
    EXPECT_TRUE(std::isfinite(lo[32]) && std::isfinite(hi[0]));
  }
}

/// What a channel is normalised by, in double beside what normalise() makes of it.
struct ranges {
  std::vector<double> low, width;
  std::vector<float> shift, inverse;
  lagkv::simd::normal form;
  std::vector<float> own_lo, own_hi;  // for who does not look at them

  /// Least values at up to `far` times the widths from 0; the channels 3, 10, 17 ... are constant.
  ranges(const kernel_table& table, dtype type, std::size_t channels, float far, std::mt19937& random)
      : low(channels), width(channels), shift(channels), inverse(channels), own_lo(channels), own_hi(channels) {
    std::uniform_real_distribution<float> uniform(0.1F, 1.0F);
    for (std::size_t c = 0; c < channels; ++c) {
      const float w = 4 * uniform(random), lo = w * far * (c % 2 == 0 ? -uniform(random) : uniform(random));
      const float hi = c % 7 == 3 ? lo : lo + w;
      shift[c] = lo, inverse[c] = hi;
      low[c] = static_cast<double>(lo), width[c] = static_cast<double>(hi) - static_cast<double>(lo);
    }
    form = table.normalise(channels, type, shift.data(), inverse.data());
  }

  void deviation(const kernel_table& table, const lagkv::simd::rows& rows, float* out) {
    table.deviation(rows, shift.data(), inverse.data(), out, own_lo.data(), own_hi.data());
  }
  double z(std::size_t c, float x) const { return width[c] == 0 ? 0 : (static_cast<double>(x) - low[c]) / width[c]; }
};

TEST_P(kernels, deviation) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    for (float far : {0.5F, 15.0F, 200.0F}) {
      ranges by(table, x.type, x.channels, far, random);
      if (x.type != dtype::f32 && far > 16) {
        ASSERT_EQ(x.channels > 3 ? by.form : lagkv::simd::normal::plain, lagkv::simd::normal::plain);
        continue;
      }
      std::vector<float> out(x.tokens + 2, 77.0F);
      by.deviation(table, x.rows(), out.data());
      for (std::size_t t = 0; t < x.tokens; ++t) {
        std::vector<double> z(x.channels);
        double largest = 1;
        for (std::size_t c = 0; c < x.channels; ++c) z[c] = by.z(c, x.value(t, c)), largest = std::max(largest, std::fabs(z[c]));
        const double mean = std::accumulate(z.begin(), z.end(), 0.0) / static_cast<double>(z.size());
        double square = 0;
        for (double v : z) square += (v - mean) * (v - mean);
        const double exact = x.channels == 1 ? 0.0 : std::sqrt(square / static_cast<double>(x.channels - 1));
        ASSERT_NEAR(out[t], exact, 3e-6 * largest * (1 + exact)) << "token " << t << ", far " << far;
      }
      ASSERT_EQ(out[x.tokens], 77.0F) << "writes behind the last token";

      // The same with the range of these rows, which is what range() gives.
      std::vector<float> lo(x.channels + 1, 0.25F), hi(x.channels + 1, 0.5F), both(x.tokens);
      std::vector<float> low = lo, high = hi;
      lagkv::simd::rows rows = x.rows();
      rows.ahead = rows.data;
      table.deviation(rows, by.shift.data(), by.inverse.data(), both.data(), lo.data(), hi.data());
      table.range(x.rows(), low.data(), high.data());
      for (std::size_t t = 0; t < x.tokens; ++t) ASSERT_TRUE(same_bits(both[t], out[t]));
      ASSERT_EQ(lo, low);
      ASSERT_EQ(hi, high);
    }
  });
}

TEST_P(kernels, normalise_says_what_it_has_made) {
  using lagkv::simd::normal;
  std::mt19937 random(2);
  for (std::size_t channels = 1; channels <= 130; ++channels) {
    EXPECT_EQ(ranges(table, dtype::f16, channels, 10.0F, random).form, normal::fused);
    EXPECT_EQ(ranges(table, dtype::f32, channels, 10.0F, random).form, normal::plain);
    std::vector<float> lo(channels, -1.0F), hi(channels, 1.0F);
    const std::size_t one = random() % channels;
    lo[one] = 100.0F, hi[one] = 101.0F;  // rounding x * inverse + shift would cost it six bits more
    EXPECT_EQ(table.normalise(channels, dtype::bf16, lo.data(), hi.data()), normal::plain);
    for (float bad : {infinity, -infinity, nan})
      for (bool low : {true, false}) {
        std::vector<float> a(channels, -1.0F), b(channels, 1.0F);
        (low ? a : b)[one] = bad;
        const std::vector<float> a0 = a, b0 = b;
        EXPECT_EQ(table.normalise(channels, dtype::f16, a.data(), b.data()), normal::not_finite);
        EXPECT_EQ(std::memcmp(a.data(), a0.data(), channels * 4) + std::memcmp(b.data(), b0.data(), channels * 4), 0);
      }
  }
}

TEST_P(kernels, ranges_too_small_or_too_large_to_divide_by_count_for_nothing) {
  for (auto [low, high] : {std::pair{5.0F, 5.0F}, {0.0F, 1e-40F}, {-3e38F, 3e38F}, {-0.0F, 0.0F}}) {
    std::vector<float> lo(40, low), hi(40, high), out(1);
    lo[0] = 0, hi[0] = 1;
    ASSERT_EQ(table.normalise(40, dtype::f32, lo.data(), hi.data()), lagkv::simd::normal::plain);
    std::vector<float> own(80);
    std::vector<float> x(40, 1e30F);
    x[0] = 1;
    table.deviation({x.data(), dtype::f32, 1, 40, 40}, lo.data(), hi.data(), out.data(), own.data(), own.data() + own.size() / 2);
    EXPECT_NEAR(out[0], std::sqrt((1 - 1.0 / 40) / 39), 1e-6) << low << " .. " << high;
  }
}

TEST_P(kernels, a_row_counts_the_same_wherever_it_stands) {
  std::mt19937 random(9);
  for (dtype type : types())
    for (std::size_t channels : {1U, 7U, 16U, 64U, 77U, 128U})
      for (float far : {1.0F, 100.0F}) {
        const packed x(type, 23, channels, 1, random);
        ranges by(table, type, channels, far, random);
        if (type != dtype::f32 && by.form != lagkv::simd::normal::fused) continue;
        std::vector<float> together(23), alone(23);
        by.deviation(table, x.rows(), together.data());
        for (std::size_t t = 0; t < 23; ++t) {
          lagkv::simd::rows one = x.rows();
          one.data = x.bytes.data() + x.at(t, 0), one.tokens = 1;
          by.deviation(table, one, &alone[t]);
          ASSERT_TRUE(same_bits(alone[t], together[t])) << lagkv::name(type) << " " << channels << " token " << t;
        }
      }
}

TEST_P(kernels, deviation_of_a_row_that_is_not_finite_is_not) {
  std::mt19937 random(9);
  using lagkv::simd::normal;
  for (dtype type : types())
    for (std::uint32_t bad : not_finite(type))
      for (std::size_t channels : {2U, 16U, 37U, 64U})
        for (std::size_t c : {std::size_t{0}, channels / 2, channels - 1})
          for (float width : {0.0F, 3.0F, 0.1F}) {  // also where the channel itself counts for nothing
            packed x(type, 6, channels, 0, random);
            x.set(4, c, bad);
            std::vector<float> lo(channels, -1.0F), hi(channels, 2.0F), out(6);
            hi[c] = lo[c] + width;
            ASSERT_EQ(table.normalise(channels, type, lo.data(), hi.data()), type == dtype::f32 ? normal::plain : normal::fused);
            std::vector<float> own(2 * channels);
            table.deviation(x.rows(), lo.data(), hi.data(), out.data(), own.data(), own.data() + own.size() / 2);
            for (std::size_t t = 0; t < 6; ++t) ASSERT_EQ(std::isfinite(out[t]), t != 4);
          }
}

TEST_P(kernels, softmax_adds_a_weighted_share) {
  std::mt19937 random(1);
  std::exponential_distribution<float> spread(0.5F);
  for (std::size_t n = 1; n <= 300; ++n) {
    std::vector<float> x(n), out(n + 1, 0.25F);
    for (float& v : x) v = spread(random) * (n % 5 == 0 ? 30.0F : 1.0F);
    std::vector<bool> absent(n);
    if (n % 3 == 0)
      for (float odd : {nan, infinity, -infinity}) {
        const std::size_t i = random() % n;
        x[i] = odd, absent[i] = true;
      }
    double top = -1e300, sum = 0;
    for (std::size_t i = 0; i < n; ++i) top = absent[i] ? top : std::max(top, static_cast<double>(x[i]));
    for (std::size_t i = 0; i < n; ++i) sum += absent[i] ? 0 : std::exp(x[i] - top);
    const std::vector<float> input = x;
    table.add_softmax(x.data(), n, 0.75F, out.data());
    for (std::size_t i = 0; i < n; ++i) {
      const double exact = absent[i] ? 0.25 : 0.25 + 0.75 * std::exp(input[i] - top) / sum;
      ASSERT_LE(relative(out[i], exact), 2e-6) << n << " entry " << i << " = " << input[i];
    }
    ASSERT_EQ(out[n], 0.25F);
  }
}

TEST_P(kernels, softmax_alone_is_precise) {
  // Without a score to add to, small shares must be as precise as large ones.
  std::vector<float> x(40), out(40, 0.0F);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.5F * static_cast<float>(i);
  const std::vector<float> input = x;
  table.add_softmax(x.data(), x.size(), 1.0F, out.data());
  double sum = 0;
  for (float v : input) sum += std::exp(static_cast<double>(v) - input.back());
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_LE(relative(out[i], std::exp(static_cast<double>(input[i]) - input.back()) / sum), 5e-7) << i;
}

TEST_P(kernels, softmax_of_nothing_finite_adds_nothing) {
  for (std::size_t n : {1U, 5U, 16U, 33U}) {
    std::vector<float> x(n, nan), out(n, 0.5F);
    x[0] = infinity;
    table.add_softmax(x.data(), n, 1.0F, out.data());
    EXPECT_EQ(out, std::vector<float>(n, 0.5F));
  }
}

TEST_P(kernels, widen_every_pattern) {
  for (dtype type : {dtype::f16, dtype::bf16}) {
    std::vector<std::uint16_t> all(65536);
    std::iota(all.begin(), all.end(), std::uint16_t{0});
    std::vector<float> out(all.size());
    table.widen(all.data(), type, all.size(), out.data());
    for (std::size_t i = 0; i < all.size(); ++i) {
      const float exact = decoded(type, all[i]);
      ASSERT_TRUE(std::isnan(exact) ? std::isnan(out[i]) : same_bits(out[i], exact))
          << lagkv::name(type) << " " << i << ": " << out[i];
    }
  }
}

TEST_P(kernels, widen_every_length) {
  std::mt19937 random(2);
  for (dtype type : all_types)
    for (std::size_t n = 1; n <= 70; ++n) {
      const packed x(type, 1, n, 0, random);
      std::vector<float> out(n + 1, 77.0F);
      table.widen(x.bytes.data(), type, n, out.data());
      for (std::size_t i = 0; i < n; ++i) ASSERT_TRUE(same_bits(out[i], x.value(0, i)));
      ASSERT_EQ(out[n], 77.0F);
    }
}

TEST_P(kernels, narrow_rounds_to_the_nearest_even) {
  // All signs, exponents and leading bits, with what may lie at or beside a half of the last bit that stays.
  constexpr std::uint32_t tails[] = {0,      1,      0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff, 0x3000,
                                     0x3001, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xf001, 0xffff};
  std::vector<float> x;
  for (std::uint32_t head = 0; head < 65536; ++head)
    for (std::uint32_t tail : tails) x.push_back(std::bit_cast<float>(head << 16 | tail));
  std::vector<std::uint16_t> out(x.size());
  for (dtype type : {dtype::f16, dtype::bf16}) {
    table.narrow(x.data(), type, x.size(), out.data());
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(out[i], encoded(type, x[i])) << lagkv::name(type) << " " << x[i] << " " << std::bit_cast<std::uint32_t>(x[i]);
  }
}

TEST_P(kernels, narrow_copies_f32_and_undoes_widen) {
  std::vector<float> x, y;
  for (std::uint32_t head = 0; head < 65536; ++head) x.push_back(std::bit_cast<float>(head << 16 | (head * 40503U & 0xffff)));
  y.resize(x.size());
  table.narrow(x.data(), dtype::f32, x.size(), y.data());
  EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0);  // NaN payloads included

  std::vector<std::uint16_t> all(65536), back(65536);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  for (dtype type : {dtype::f16, dtype::bf16}) {
    table.widen(all.data(), type, all.size(), x.data());
    table.narrow(x.data(), type, all.size(), back.data());
    for (std::size_t i = 0; i < all.size(); ++i)
      ASSERT_TRUE(std::isnan(x[i]) || back[i] == all[i]) << lagkv::name(type) << " " << i << ": " << back[i];
  }
}

TEST_P(kernels, narrow_every_length) {
  std::mt19937 random(2);
  for (dtype type : all_types)
    for (std::size_t n = 1; n <= 70; ++n) {
      const packed x(dtype::f32, 1, n, 0, random);
      std::vector<float> wide(n);
      std::memcpy(wide.data(), x.bytes.data(), x.bytes.size());
      packed out(type, 1, n + 1, 0, random);
      const float behind = out.value(0, n);
      table.narrow(wide.data(), type, n, out.bytes.data());
      for (std::size_t i = 0; i < n; ++i) ASSERT_TRUE(same_bits(out.value(0, i), rounded(type, wide[i])));
      ASSERT_TRUE(same_bits(out.value(0, n), behind));
    }
}

std::vector<float> normal_values(std::size_t n, std::mt19937& random) {
  std::normal_distribution<float> normal(0.2F, 1.0F);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

/// Rows [from, from + n) of x.
lagkv::simd::rows part(const packed& x, std::size_t from, std::size_t n) {
  lagkv::simd::rows out = x.rows();
  out.data = x.bytes.data() + x.at(from, 0), out.tokens = n;
  return out;
}

TEST_P(kernels, squares_and_distances) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    const std::vector<float> centre = normal_values(x.channels, random);
    std::vector<float> square(x.tokens + 1, 77.0F), distance(x.tokens + 1, 77.0F);
    table.squares(x.rows(), square.data());
    table.distances(x.rows(), nullptr, centre.data(), nullptr, distance.data());
    for (std::size_t t = 0; t < x.tokens; ++t) {
      double from_origin = 0, from_centre = 0;
      for (std::size_t c = 0; c < x.channels; ++c) {
        from_origin += std::pow(static_cast<double>(x.value(t, c)), 2);
        from_centre += std::pow(static_cast<double>(x.value(t, c)) - centre[c], 2);
      }
      ASSERT_LE(relative(square[t], from_origin), 2e-6) << "token " << t;
      ASSERT_LE(relative(distance[t], from_centre), 2e-6) << "token " << t;
      float alone[2];
      table.squares(part(x, t, 1), &alone[0]);
      table.distances(part(x, t, 1), nullptr, centre.data(), nullptr, &alone[1]);
      ASSERT_TRUE(same_bits(alone[0], square[t]) && same_bits(alone[1], distance[t])) << "token " << t << " alone";
    }
    ASSERT_TRUE(square[x.tokens] == 77.0F && distance[x.tokens] == 77.0F) << "writes behind the last token";
  });
}

TEST_P(kernels, distances_of_scaled_rows_with_weights) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    const std::vector<float> centre = normal_values(x.channels, random), factors = normal_values(x.tokens, random);
    std::vector<float> weights = normal_values(x.channels, random);
    for (float& w : weights) w = std::fabs(w);
    std::vector<float> distance(x.tokens + 1, 77.0F);
    table.distances(x.rows(), factors.data(), centre.data(), weights.data(), distance.data());
    for (std::size_t t = 0; t < x.tokens; ++t) {
      double exact = 0, size = 0;
      for (std::size_t c = 0; c < x.channels; ++c) {
        const double scaled = static_cast<double>(x.value(t, c)) * factors[t];
        exact += weights[c] * std::pow(scaled - centre[c], 2);
        size += weights[c] * (scaled * scaled + static_cast<double>(centre[c]) * centre[c]);
      }
      ASSERT_NEAR(distance[t], exact, 2e-6 * size) << "token " << t;
      float alone = 0;
      table.distances(part(x, t, 1), &factors[t], centre.data(), weights.data(), &alone);
      ASSERT_TRUE(same_bits(alone, distance[t])) << "token " << t << " alone";
    }
    ASSERT_EQ(distance[x.tokens], 77.0F) << "writes behind the last token";
  });
}

TEST_P(kernels, inverse_rotate) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    if (x.channels < 2) return;
    const std::size_t dims = 2 + random() % (x.channels - 1) / 2 * 2, pairs = dims / 2;
    const bool neighbours = random() % 2 == 0;
    // Turns of one far table and of one near table a row, and their sums in double.
    const std::size_t width = neighbours ? dims : pairs;
    const auto fill_in = [&](std::vector<double>& angles, std::vector<float>& table_row) {
      angles.resize(pairs), table_row.resize(2 * width);
      for (std::size_t j = 0; j < pairs; ++j) {
        angles[j] = static_cast<double>(random() % 1000);
        const std::size_t first = neighbours ? 2 * j : j;
        const auto cosine = static_cast<float>(std::cos(angles[j])), sine = static_cast<float>(std::sin(angles[j]));
        table_row[first] = cosine, table_row[width + first] = sine;
        if (neighbours) table_row[first + 1] = cosine, table_row[width + first + 1] = -sine;
      }
    };
    std::vector<double> far_angles;
    std::vector<float> far;
    fill_in(far_angles, far);
    std::vector<std::vector<double>> angles(x.tokens);
    std::vector<std::vector<float>> tables(x.tokens);
    std::vector<const float*> near(x.tokens);
    for (std::size_t t = 0; t < x.tokens; ++t) fill_in(angles[t], tables[t]), near[t] = tables[t].data();

    std::vector<float> all(x.tokens * x.channels + 1, 77.0F), squares(x.tokens + 1, 77.0F);
    table.inverse_rotate(x.rows(), {dims, neighbours, far.data(), near.data()}, all.data(), squares.data());
    for (std::size_t t = 0; t < x.tokens; ++t) {
      const float* out = all.data() + t * x.channels;
      double sum = 0;
      for (std::size_t j = 0; j < pairs; ++j) {
        const std::size_t a = neighbours ? 2 * j : j, b = neighbours ? 2 * j + 1 : j + pairs;
        const double p = x.value(t, a), q = x.value(t, b), size = std::hypot(p, q), angle = far_angles[j] + angles[t][j];
        ASSERT_NEAR(out[a], p * std::cos(angle) + q * std::sin(angle), 5e-7 * size) << "token " << t << " pair " << j;
        ASSERT_NEAR(out[b], q * std::cos(angle) - p * std::sin(angle), 5e-7 * size) << "token " << t << " pair " << j;
        sum += p * p + q * q;
      }
      for (std::size_t c = dims; c < x.channels; ++c) {
        ASSERT_EQ(out[c], x.value(t, c));
        sum += std::pow(static_cast<double>(x.value(t, c)), 2);
      }
      ASSERT_NEAR(squares[t], sum, 2e-6 * sum) << "token " << t;

      std::vector<float> alone(x.channels);
      float square = 0;
      table.inverse_rotate(part(x, t, 1), {dims, neighbours, far.data(), &near[t]}, alone.data(), &square);
      ASSERT_TRUE(same_bits(square, squares[t])) << "token " << t << " alone";
      for (std::size_t c = 0; c < x.channels; ++c) ASSERT_TRUE(same_bits(alone[c], out[c])) << "token " << t << " alone";
    }
    ASSERT_EQ(all.back(), 77.0F) << "writes behind the last row";
    ASSERT_EQ(squares.back(), 77.0F) << "writes behind the last token";
  });
}

TEST_P(kernels, dots) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    constexpr std::size_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 33};
    const std::size_t count = counts[random() % std::size(counts)], pitch = x.tokens + random() % 3;
    const std::vector<float> vectors = normal_values(count * x.channels, random);
    std::vector<float> out(count * pitch + 1, 77.0F);
    table.dots(x.rows(), vectors.data(), count, out.data(), pitch);
    for (std::size_t v = 0; v < count; ++v)
      for (std::size_t t = 0; t < x.tokens; ++t) {
        double exact = 0, size = 0;
        for (std::size_t c = 0; c < x.channels; ++c) {
          const double product = static_cast<double>(x.value(t, c)) * vectors[v * x.channels + c];
          exact += product, size += std::fabs(product);
        }
        ASSERT_NEAR(out[v * pitch + t], exact, 1e-6 * size) << "vector " << v << " of " << count << " token " << t;
      }
    for (std::size_t i = 0; i < out.size(); ++i)
      ASSERT_TRUE((i % pitch < x.tokens && i / pitch < count) || out[i] == 77.0F) << "writes beside the products";

    // The same to the bit, a row at a time, a vector at a time, and cut anywhere.
    std::vector<float> cut(out.size(), 77.0F);
    for (std::size_t t = 0; t < x.tokens; ++t) table.dots(part(x, t, 1), vectors.data(), count, &cut[t], pitch);
    ASSERT_EQ(cut, out);
    for (std::size_t v = 0; v < count; ++v) table.dots(x.rows(), &vectors[v * x.channels], 1, &cut[v * pitch], pitch);
    ASSERT_EQ(cut, out);
    const std::size_t t = random() % x.tokens, v = random() % count;
    const auto product = [&](std::size_t at, std::size_t n, std::size_t first, std::size_t some) {
      table.dots(part(x, at, n), &vectors[first * x.channels], some, &cut[first * pitch + at], pitch);
    };
    std::fill(cut.begin(), cut.end(), 77.0F);
    if (t > 0) product(0, t, 0, count);
    product(t, x.tokens - t, v, count - v);
    if (v > 0) product(t, x.tokens - t, 0, v);
    ASSERT_EQ(cut, out);
  });
}

TEST_P(kernels, add_rows_goes_row_by_row) {
  bool fused = true, unfused = true;  // which of the two the target does, always
  for_each_size([&](const packed& x, std::mt19937& random) {
    const std::vector<float> weights = normal_values(x.tokens, random), start = normal_values(x.channels, random);
    std::vector<float> sum = start;
    sum.push_back(77.0F);
    table.add_rows(x.rows(), weights.data(), sum.data());
    for (std::size_t c = 0; c < x.channels; ++c) {
      double exact = start[c], size = std::fabs(start[c]);
      float chain = start[c], plain = start[c];
      for (std::size_t t = 0; t < x.tokens; ++t) {
        const double product = static_cast<double>(x.value(t, c)) * weights[t];  // exact
        exact += product, size += std::fabs(product);
        chain = std::fma(weights[t], x.value(t, c), chain);
        plain += static_cast<float>(product);
      }
      ASSERT_NEAR(sum[c], exact, 1e-6 * size) << "channel " << c;
      fused = fused && same_bits(sum[c], chain), unfused = unfused && same_bits(sum[c], plain);
    }
    ASSERT_TRUE(fused || unfused);
    ASSERT_EQ(sum[x.channels], 77.0F) << "writes behind the last channel";

    std::vector<float> cut = start;
    for (std::size_t t = 0, n = 0; t < x.tokens; t += n) {
      n = 1 + random() % (x.tokens - t);
      table.add_rows(part(x, t, n), &weights[t], cut.data());
    }
    cut.push_back(77.0F);
    ASSERT_EQ(cut, sum);
  });
}

TEST_P(kernels, add_statistics) {
  for_each_size([&](const packed& x, std::mt19937& random) {
    const std::vector<float> factors = normal_values(x.tokens, random), start = normal_values(2 * x.channels, random);
    std::vector<float> found = start;
    found.push_back(77.0F);
    table.add_statistics(x.rows(), factors.data(), found.data(), found.data() + x.channels);
    for (std::size_t c = 0; c < x.channels; ++c) {
      double sum = start[c], square = start[x.channels + c], size = std::fabs(sum), squares = std::fabs(square);
      for (std::size_t t = 0; t < x.tokens; ++t) {
        const double y = static_cast<double>(factors[t]) * x.value(t, c);
        sum += y, size += std::fabs(y), square += y * y, squares += y * y;
      }
      ASSERT_NEAR(found[c], sum, 1e-6 * size) << "channel " << c;
      ASSERT_NEAR(found[x.channels + c], square, 1e-6 * squares) << "channel " << c;
    }
    ASSERT_EQ(found.back(), 77.0F) << "writes behind the last channel";
    std::vector<float> cut = start;
    for (std::size_t t = 0, n = 0; t < x.tokens; t += n) {
      n = 1 + random() % (x.tokens - t);
      table.add_statistics(part(x, t, n), &factors[t], cut.data(), cut.data() + x.channels);
    }
    cut.push_back(77.0F);
    ASSERT_EQ(cut, found);
  });
}

// Against double, at each place of a vector, with what is special at each of them.
TEST_P(kernels, norms_of_squares) {
  constexpr float most = std::numeric_limits<float>::max();
  constexpr float special[] = {0.0F, infinity, std::numeric_limits<float>::quiet_NaN(), most, 1e-37F, 1.0F};
  std::mt19937 random(12);
  for (std::size_t n = 0; n < 40; ++n)
    for (std::size_t at = 0; at < n + 1; ++at)
      for (const float value : special) {
        std::vector<float> squares = normal_values(n + 1, random), sum = normal_values(n + 1, random);
        for (float& s : squares) s *= s;
        squares[at] = value;
        const std::vector<float> before = squares, start = sum;
        table.add_roots(squares.data(), n, 3.0F, -0.5F, sum.data());
        for (std::size_t i = 0; i <= n; ++i) ASSERT_TRUE(same_bits(squares[i], before[i]));
        table.inverse_roots(squares.data(), n);
        for (std::size_t i = 0; i < n; ++i) {
          const double root = std::sqrt(static_cast<double>(before[i])), added = std::sqrt(3.0 * before[i]);
          if (!std::isfinite(before[i]))
            ASSERT_TRUE(std::isnan(squares[i]));
          else
            ASSERT_NEAR(squares[i], root > 0 ? 1 / root : 0, 2e-7 * (root > 0 ? 1 / root : 0)) << before[i];
          if (!std::isfinite(3.0F * before[i]))
            ASSERT_TRUE(std::isnan(sum[i]));
          else
            ASSERT_NEAR(sum[i], start[i] - 0.5 * added, 3e-7 * (std::fabs(start[i]) + added)) << before[i];
        }
        ASSERT_TRUE(same_bits(squares[n], before[n]) && same_bits(sum[n], start[n])) << "writes behind the last";
      }
}

TEST_P(kernels, sums_pass_on_what_is_not_finite) {
  std::mt19937 random(9);
  for (dtype type : types())
    for (std::uint32_t bad : not_finite(type))
      for (std::size_t channels : {1U, 16U, 37U})
        for (std::size_t c : {std::size_t{0}, channels - 1}) {
          packed x(type, 6, channels, 0, random);
          x.set(4, c, bad);
          const float value = decoded(type, bad);
          std::vector<float> ones(5 * channels + 6, 1.0F), zeros(channels, 0.0F), out(6), products(30);
          const auto check = [&](const float* sums, float expected) {
            for (std::size_t t = 0; t < 6; ++t)
              if (t != 4)
                ASSERT_TRUE(std::isfinite(sums[t]));
              else
                ASSERT_TRUE(std::isnan(expected) ? std::isnan(sums[t]) : sums[t] == expected) << sums[t];
          };
          table.squares(x.rows(), out.data()), check(out.data(), value * value);
          table.distances(x.rows(), nullptr, ones.data(), nullptr, out.data()), check(out.data(), value * value);
          table.dots(x.rows(), ones.data(), 5, products.data(), 6);
          for (std::size_t v = 0; v < 5; ++v) check(&products[6 * v], value);
          table.dots(x.rows(), zeros.data(), 1, out.data(), 6), check(out.data(), nan);  // infinity times 0
          table.add_rows(x.rows(), ones.data(), zeros.data());
          for (std::size_t i = 0; i < channels; ++i) ASSERT_EQ(std::isfinite(zeros[i]), i != c);
        }
}

/// What top_k promises, the plain way.
std::vector<std::uint32_t> best(const std::vector<float>& scores, std::size_t k, std::uint32_t base) {
  std::vector<std::uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    if (std::isnan(scores[a]) || std::isnan(scores[b])) return !std::isnan(scores[a]) && std::isnan(scores[b]);
    return scores[a] > scores[b];
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  for (auto& i : order) i += base;
  return order;
}

TEST_P(kernels, top_k_of_all_sizes_and_counts) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const std::vector<std::function<float()>> scores{[&] { return normal(random); },
                                                   [&] { return static_cast<float>(random() % 4); },  // mostly ties
                                                   [&] { return 1.0F; },
                                                   [&] {
                                                     constexpr float odd[] = {nan,
                                                                              infinity,
                                                                              -infinity,
                                                                              0.0F,
                                                                              -0.0F,
                                                                              1e-45F,
                                                                              -1e-45F,
                                                                              std::numeric_limits<float>::max(),
                                                                              std::numeric_limits<float>::lowest()};
                                                     return odd[random() % std::size(odd)];
                                                   },
                                                   [&] { return random() % 2 == 0 ? -nan : nan; }};
  std::vector<float> x;
  std::vector<std::int32_t> keys(300);
  for (const auto& next : scores)
    for (std::size_t n = 1; n <= 300; n += n < 70 ? 1 : 23) {
      x.resize(n);
      std::generate(x.begin(), x.end(), next);
      for (std::size_t k = 0; k <= n; ++k) {
        std::vector<std::uint32_t> out(k + 1, 7U);
        table.top_k(x.data(), n, k, 1000, keys.data(), out.data());
        ASSERT_EQ(out[k], 7U) << "writes behind the last one";
        out.pop_back();
        ASSERT_EQ(out, best(x, k, 1000)) << k << " of " << n;
      }
    }
}

INSTANTIATE_TEST_SUITE_P(simd, kernels, testing::ValuesIn(builds()), [](const auto& i) { return std::string(i.param.name); });

}  // namespace
