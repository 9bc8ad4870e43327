// Threads change nothing: the same plan, the same bytes, for every kind of policy.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <examples/thread_pool.hpp>

#include "support/offer.hpp"

namespace {

using namespace support;
using lagkv::dtype;

constexpr std::size_t heads = 5, tokens = 300, channels = 16, threads = 3;

const char* policies[] = {"lagkv:sink=4,lag=32,ratio=0.25",
                          "lagkv:sink=4,lag=32,ratio=0.5,form=kvpress",
                          "key_diff:sink=4,keep=0.4",
                          "streaming_llm:sink=4,capacity=99",
                          "snapkv:sink=4,keep=0.4,window=8",
                          "fuse:lagkv+key_diff,lag=32,sink=4,keep=0.4",
                          "key_diff:sink=4,keep=0.4,select=chunks,chunk=8"};

struct offered {
  cache kv;
  host queries;
  lagkv::extras extras;

  explicit offered(layout l)
      : kv(l, dtype::f16, make_cube(1, heads, tokens, channels), make_cube(2, heads, tokens, channels)),
        queries(layout::heads_first, dtype::f32, make_cube(3, 2 * heads, 12, channels)) {
    extras.queries = queries.view();
  }
  lagkv::layer layer(std::size_t n = tokens) {
    lagkv::layer l = kv.layer(n);
    l.extra = &extras;
    return l;
  }
  bool same_bytes(const offered& other) const {
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t t = 0; t < tokens; ++t)
        if (kv.keys.row(h, t) != other.kv.keys.row(h, t) || kv.values.row(h, t) != other.kv.values.row(h, t)) return false;
    return true;
  }
};

TEST(parallel, heads_give_the_same_plan_and_bytes) {
  const thread_pool pool(threads);
  std::vector<lagkv::workspace> workers(threads);
  std::size_t tried = 0;
  for (const char* text : policies) {
    const auto parsed = lagkv::parse(text);
    ASSERT_TRUE(parsed) << parsed.message();
    for (layout l : {layout::heads_first, layout::blocks_of_16, layout::transposed})
      for (auto direction : {lagkv::toward::front, lagkv::toward::window}) {
        offered shared(l), alone(l);
        lagkv::cursor a, b;
        ASSERT_EQ(check(*parsed, shared.layer()).message(), "") << text;
        const std::size_t n = lagkv::compress(*parsed, shared.layer(), a, workers, pool, direction);
        lagkv::workspace ws;
        ASSERT_EQ(n, lagkv::compress(*parsed, alone.layer(), b, ws, direction)) << text;
        EXPECT_EQ(a, b) << text;
        EXPECT_EQ(lagkv::last_plan(workers[0]).kept, lagkv::last_plan(ws).kept) << text;
        EXPECT_LT(n, tokens) << text;
        EXPECT_TRUE(shared.same_bytes(alone)) << text << " " << l;
        EXPECT_TRUE(shared.kv.intact());
        ++tried;
      }
  }
  EXPECT_EQ(tried, std::size(policies) * 6);
}

TEST(parallel, layers_give_the_same_bytes) {
  const thread_pool pool(threads);
  std::vector<lagkv::workspace> workers(threads);
  const lagkv::policy p = named(policies[0]);
  std::vector<std::unique_ptr<offered>> shared;
  std::vector<lagkv::layer> layers;
  std::vector<lagkv::cursor> cursors(7);
  for (std::size_t i = 0; i < 7; ++i) {
    shared.push_back(std::make_unique<offered>(layout::tokens_first));
    layers.push_back(shared.back()->layer(tokens - 20 * i));
  }
  lagkv::compress(p, layers, cursors, workers, pool);
  for (std::size_t i = 0; i < 7; ++i) {
    offered alone(layout::tokens_first);
    lagkv::cursor at;
    lagkv::workspace ws;
    lagkv::compress(p, alone.layer(tokens - 20 * i), at, ws);
    EXPECT_EQ(at, cursors[i]);
    EXPECT_TRUE(shared[i]->same_bytes(alone));
  }
}

// Each sequence on a thread of its own, all with the same policy, which none changes; prefill, then decode.
TEST(parallel, sequences_share_a_policy) {
  constexpr std::size_t sequences = 4, prompt = 200;
  for (const char* text : policies) {
    const lagkv::policy p = named(text);
    const auto live = [&](offered& x) {
      lagkv::workspace ws;
      lagkv::cursor at;
      for (std::size_t seen = prompt; seen <= tokens; seen += 5) {
        const std::size_t n = seen - at.dropped;
        lagkv::compress(p, x.layer(n), at, ws);
      }
      return at;
    };
    std::vector<std::unique_ptr<offered>> shared;
    std::vector<lagkv::cursor> cursors(sequences);
    std::vector<std::thread> threads_of;
    for (std::size_t i = 0; i < sequences; ++i) shared.push_back(std::make_unique<offered>(layout::tokens_first));
    for (std::size_t i = 0; i < sequences; ++i) threads_of.emplace_back([&, i] { cursors[i] = live(*shared[i]); });
    for (std::thread& t : threads_of) t.join();
    offered alone(layout::tokens_first);
    const lagkv::cursor at = live(alone);
    EXPECT_GT(at.dropped, 0U) << text;
    for (std::size_t i = 0; i < sequences; ++i) {
      EXPECT_EQ(cursors[i], at) << text;
      EXPECT_TRUE(shared[i]->same_bytes(alone)) << text;
    }
  }
}

TEST(parallel, nobody_is_called_where_nothing_is_due) {
  offered x(layout::heads_first);
  lagkv::workspace ws;
  lagkv::cursor at;
  std::size_t calls = 0;
  const auto run = [&](std::size_t n, const auto& work) {
    ++calls;
    for (std::size_t i = 0; i < n; ++i) work(i, std::size_t{0});
  };
  EXPECT_EQ(lagkv::compress(named(policies[0]), x.layer(60), at, {&ws, 1}, run), 60U);
  EXPECT_EQ(calls, 0U);
  EXPECT_LT(lagkv::compress(named(policies[0]), x.layer(), at, {&ws, 1}, run), tokens);
  EXPECT_EQ(calls, 1U);
}

TEST(parallel, a_pool_does_each_task_once_with_each_worker_alone) {
  const thread_pool pool(threads);
  for (std::size_t n : {0U, 1U, 2U, 100U}) {
    std::vector<std::atomic<int>> done(n), busy(threads);
    std::atomic<bool> clash = false;
    pool(n, [&](std::size_t task, std::size_t worker) {
      if (busy[worker]++ != 0) clash = true;
      ++done[task];
      --busy[worker];
    });
    EXPECT_FALSE(clash);
    for (const auto& d : done) EXPECT_EQ(d, 1);
  }
}

}  // namespace
