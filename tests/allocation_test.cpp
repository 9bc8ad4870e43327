// Once warm, compress() does not allocate; and it runs in code built without exceptions and RTTI.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "no_exceptions.hpp"
#include "support/host.hpp"

namespace {
std::size_t allocations = 0;

void* counted(std::size_t n) {
  ++allocations;
  if (void* p = std::malloc(n != 0 ? n : 1)) return p;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t n) { return counted(n); }
void* operator new[](std::size_t n) { return counted(n); }
void* operator new(std::size_t n, std::align_val_t align) {  // scratch begins at a cache line
  ++allocations;
  const auto a = static_cast<std::size_t>(align);
  if (void* p = std::aligned_alloc(a, (n + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace {

using namespace support;
using lagkv::dtype;

TEST(allocation, is_counted) {
  const std::size_t before = allocations;
  ::operator delete(::operator new(1));  // calls, which a compiler may not elide as it may a new expression
  EXPECT_EQ(allocations, before + 1);
}

struct counts {
  std::size_t prefill, decode;
};

/// Allocations of a prefill of 1500 tokens, and of 1000 calls after it that add a token each.
counts allocations_of(const lagkv::policy& p, lagkv::layer view, lagkv::workspace& ws) {
  lagkv::cursor at;
  view.tokens = 1500;
  const std::size_t before = allocations;
  view.tokens = lagkv::compress(p, view, at, ws);
  const std::size_t between = allocations;
  for (int i = 0; i < 1000; ++i) {
    ++view.tokens;
    view.tokens = lagkv::compress(p, view, at, ws);
  }
  return {between - before, allocations - between};
}

TEST(allocation, none_once_warm) {
  const cube x = make_cube(1, 2, 2500, 8);
  host queries(layout::heads_first, dtype::f32, make_cube(2, 4, 64, 8));
  std::vector<float> attention(std::size_t{2} * 2500, 1.0F);
  lagkv::extras extras;
  extras.queries = queries.view(), extras.accumulated_attention = {attention.data(), 2500};
  for (layout l : {layout::heads_first, layout::transposed, layout::both_strided, layout::blocks_of_16})
    for (dtype type : all_types) {
      cache c(l, type, x, x);
      for (const char* text :
           {"lagkv:sink=4,lag=64,ratio=0.25", "lagkv:sink=4,lag=64,ratio=0.5,form=local",
            "lagkv:sink=4,lag=64,ratio=0.5,form=kvpress", "lagkv:sink=4,lag=64,ratio=0.5,form=kvpress_cross",
            "streaming_llm:sink=4,capacity=500", "random:sink=4,recent=64,keep=0.5", "key_diff:recent=64,keep=0.5",
            "key_diff:lag=64,keep=0.25", "cur:lag=64,keep=0.25,pool=3", "manifold:capacity=500,every=40",
            "key_norm:recent=64,keep=0.5,select=chunks", "value_norm:capacity=500,every=40,select=chunks", "snapkv:keep=0.5",
            "h2o:capacity=500,every=40,recent_share=0.5", "tova:capacity=500,every=40", "distinct:pre_rope=no,keep=0.5",
            "distinct:pre_rope=no,lag=64,keep=0.25", "fuse:lagkv+key_diff+snapkv,lag=64,keep=0.25"}) {
        SCOPED_TRACE(std::string(text) + " " + name(l) + " " + lagkv::name(type));
        lagkv::workspace ws;
        lagkv::layer view = c.layer(0);
        view.extra = &extras;
        EXPECT_GT(allocations_of(named(text), view, ws).prefill, 0U) << "or nothing was measured";
        const counts again = allocations_of(named(text), view, ws);
        EXPECT_EQ(again.prefill, 0U);
        EXPECT_EQ(again.decode, 0U);
      }
    }
}

TEST(allocation, the_prefill_warms_what_decoding_needs) {
  const cube x = make_cube(1, 2, 2500, 8);
  cache c(layout::heads_first, dtype::f16, x, x);
  lagkv::workspace ws;
  EXPECT_EQ(allocations_of(named("lagkv:sink=4,lag=64,ratio=0.25"), c.layer(0), ws).decode, 0U);
}

TEST(allocation, none_for_all_layers_at_once_if_nothing_is_due) {
  const cube x = make_cube(1, 2, 100, 8);
  cache a(layout::heads_first, dtype::f16, x, x), b = a;
  std::vector<lagkv::layer> layers{a.layer(100), b.layer(100)};
  std::vector<lagkv::cursor> at(2);
  lagkv::workspace ws;
  const lagkv::policy p = named("key_norm:recent=8,capacity=60,every=20,select=chunks");
  ASSERT_TRUE(lagkv::compress(p, layers, at, ws));
  for (lagkv::layer& l : layers) l.tokens = at[0].tokens + 10;  // half of what makes it due
  const std::size_t before = allocations, tokens = at[0].tokens;
  ASSERT_TRUE(lagkv::compress(p, layers, at, ws));
  EXPECT_EQ(allocations, before);
  EXPECT_EQ(at[1].tokens, tokens + 10);
  EXPECT_TRUE(lagkv::last_plan(ws).empty());
  layers[1].tokens += 1;
  EXPECT_FALSE(lagkv::compress(p, layers, at, ws)) << "the layers have different numbers of rows";
}

TEST(allocation, none_for_rotating_keys_again) {
  const cube x = make_cube(1, 2, 400, 8);
  cache c(layout::transposed, dtype::f16, x, x);
  lagkv::workspace ws;
  lagkv::cursor at;
  lagkv::compress(named("lagkv:sink=4,lag=64,ratio=0.25"), c.layer(400), at, ws);
  lagkv::rerotate(c.keys.view(), lagkv::last_plan(ws), {}, ws);
  const std::size_t before = allocations;
  lagkv::rerotate(c.keys.view(), lagkv::last_plan(ws), {}, ws);
  EXPECT_EQ(allocations, before);
}

TEST(without_exceptions, step_runs) {
  const cube x = make_cube(1, 2, 100, 8);
  cache one(layout::heads_first, dtype::f32, x, x), other = one;
  const lagkv::policy p = named(plain::policy_text);
  lagkv::workspace ws;
  lagkv::cursor at;
  ASSERT_EQ(plain::compress(one.layer(100)), lagkv::compress(p, other.layer(100), at, ws));
  for (std::size_t i = 0; i < at.tokens; ++i) EXPECT_EQ(one.keys.row(1, i), other.keys.row(1, i));
  EXPECT_EQ(plain::refusal(), "lagkv: lag=0: must be a whole number from 1 to 2147483647");
}

}  // namespace
