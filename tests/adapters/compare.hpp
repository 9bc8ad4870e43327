// What the tests of all adapters ask: an adapter's view is the plain strided view of the same elements, of nothing else, and
// policies do the same to it. Where an element lies is asked of the host's array, by its own operator or definition.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include <lagkv/adapters/dims.hpp>
#include <lagkv/lagkv.hpp>

#include "support/host.hpp"

namespace adapters {

inline constexpr std::size_t heads = 3, tokens = 23, channels = 5, batches = 2;

inline constexpr lagkv::dims<3> orders[] = {"htc", "hct", "thc", "tch", "cht", "cth"};
inline constexpr lagkv::dims<4> batch_orders[] = {"bhtc", "bhct", "bthc", "btch", "bcht", "bcth", "hbtc", "hbct",
                                                  "tbhc", "tbch", "cbht", "cbth", "htbc", "hcbt", "thbc", "tcbh",
                                                  "chbt", "ctbh", "htcb", "hctb", "thcb", "tchb", "chtb", "cthb"};

static_assert(lagkv::dims<2>{}.text() == std::string_view("tc") && lagkv::dims<3>{}.text() == std::string_view("htc") &&
              lagkv::dims<4>{}.text() == std::string_view("bhtc"));
static_assert(lagkv::dims<3>("thc").of('t') == 0 && lagkv::dims<3>("thc").of('h') == 1 && lagkv::dims<3>("thc").of('c') == 2);

/// A number for each index of the host's array, given those of the letters: an index into it, its extents, its strides.
template <class Index, std::size_t Rank>
std::array<Index, Rank> in_order(const lagkv::dims<Rank>& order, std::size_t b, std::size_t h, std::size_t t, std::size_t c) {
  std::array<Index, Rank> out{};
  for (std::size_t i = 0; i < Rank; ++i) {
    const char letter = order.text()[i];
    out[i] = static_cast<Index>(letter == 'b' ? b : letter == 'h' ? h : letter == 't' ? t : c);
  }
  return out;
}
template <class Index, std::size_t Rank>
std::array<Index, Rank> sizes(const lagkv::dims<Rank>& order) {
  return in_order<Index>(order, batches, heads, tokens, channels);
}

inline constexpr std::size_t elements = batches * heads * tokens * channels;

/// An array of the host over some memory: its view by the adapter, and where it says that element (head, token, channel) lies.
template <class T>
struct subject {
  lagkv::tensor view;
  std::function<T*(std::size_t, std::size_t, std::size_t)> element;
  std::size_t heads = adapters::heads;
};

/// Memory full of elements that are finite in any type.
template <class T>
std::vector<T> random_elements(unsigned seed, lagkv::dtype type, std::size_t n) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> out(n);
  for (T& x : out) {
    const std::uint32_t bits = support::encoded(type, normal(random));
    std::memcpy(static_cast<void*>(&x), &bits, sizeof(T));
  }
  return out;
}

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// `make` puts the host's array over `n` elements of memory.
template <class T, class L>
void expect_like_plain(lagkv::dtype type, const std::function<subject<T>(T*)>& make, std::size_t n = elements) {
  const std::vector<T> first_keys = random_elements<T>(1, type, n), first_values = random_elements<T>(2, type, n);
  std::vector<T> keys[] = {first_keys, first_keys}, values[] = {first_values, first_values};
  const subject<T> k = make(keys[0].data()), v = make(values[0].data());

  ASSERT_EQ(k.view.type(), type);
  ASSERT_EQ(k.view.heads(), k.heads);
  ASSERT_EQ(k.view.channels(), channels);
  ASSERT_EQ(k.view.capacity(), tokens);
  for (std::size_t h = 0; h < k.heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t) {
      const lagkv::tile tile = k.view.at(h, {t, tokens});
      ASSERT_EQ(tile.tokens, tokens - t);
      for (std::size_t c = 0; c < channels; ++c)
        ASSERT_EQ(reinterpret_cast<T*>(tile.data) + static_cast<std::ptrdiff_t>(c) * tile.channel_stride, k.element(h, t, c))
            << h << ", " << t << ", " << c;
      const std::size_t last = tokens - 1 - t;
      ASSERT_EQ(reinterpret_cast<T*>(tile.data) + static_cast<std::ptrdiff_t>(last) * tile.token_stride,
                k.element(h, tokens - 1, 0));
    }

  const auto plain = [&](T* memory) -> lagkv::tensor {
    const subject<T> s = make(memory);
    T* const first = s.element(0, 0, 0);
    const lagkv::strides distance{s.heads > 1 ? s.element(1, 0, 0) - first : 0, s.element(0, 1, 0) - first,
                                  s.element(0, 0, 1) - first};
    return lagkv::strided<L>(first, {s.heads, channels}, distance, tokens);
  };
  const lagkv::layer adapted{k.view, v.view, tokens}, expected{plain(keys[1].data()), plain(values[1].data()), tokens};

  for (const char* text : {"lagkv:sink=1,lag=6,ratio=0.4", "key_norm:sink=1,recent=3,keep=0.5"})
    for (const auto direction : {lagkv::toward::front, lagkv::toward::window}) {
      const lagkv::policy policy = support::named(text);
      ASSERT_TRUE(check(policy, adapted)) << check(policy, adapted).message();
      lagkv::workspace a, b;
      const lagkv::plan &mine = plan_eviction(policy, adapted, {}, a), &theirs = plan_eviction(policy, expected, {}, b);
      ASSERT_FALSE(theirs.empty());
      ASSERT_EQ(mine.heads(), theirs.heads());
      for (std::size_t h = 0; h < k.heads; ++h)
        ASSERT_EQ(std::vector(mine.of(h).begin(), mine.of(h).end()), std::vector(theirs.of(h).begin(), theirs.of(h).end()));
      lagkv::cursor at, other;
      ASSERT_EQ(compress(policy, adapted, at, a, direction), compress(policy, expected, other, b, direction));
      ASSERT_TRUE(same_bytes(keys[0], keys[1]) && same_bytes(values[0], values[1])) << text;
      ASSERT_FALSE(same_bytes(keys[0], first_keys) || same_bytes(values[0], first_values)) << text;
    }
}

}  // namespace adapters
