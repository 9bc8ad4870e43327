// Threads change nothing: the same plan, the same bytes, for every kind of policy.
#include <gtest/gtest.h>
#if defined(__linux__)
#include <sys/resource.h>
#endif

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <system_error>
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
        offered planned(l);
        EXPECT_EQ(lagkv::plan_eviction(*parsed, planned.layer(), {}, workers, pool).kept, lagkv::last_plan(ws).kept) << text;
        EXPECT_TRUE(planned.same_bytes(offered(l))) << text;
        EXPECT_TRUE(shared.same_bytes(alone)) << text << " " << l;
        EXPECT_TRUE(shared.kv.intact());
        ++tried;
      }
  }
  EXPECT_EQ(tried, std::size(policies) * 6);
}

TEST(parallel, layers_by_themselves_give_the_same_bytes) {
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
  lagkv::compress_each(p, layers, cursors, workers, pool);
  for (std::size_t i = 0; i < 7; ++i) {
    offered alone(layout::tokens_first);
    lagkv::cursor at;
    lagkv::workspace ws;
    lagkv::compress(p, alone.layer(tokens - 20 * i), at, ws);
    EXPECT_EQ(at, cursors[i]);
    EXPECT_TRUE(shared[i]->same_bytes(alone));
  }
}

/// Layers of a sequence, by as many workers; 0: by one workspace.
struct together {
  std::vector<std::unique_ptr<offered>> memory{};
  std::vector<lagkv::cursor> cursors{};
  std::vector<std::size_t> planned{}, moved{};
  std::string refused{};
  std::size_t last = 0;  // rows that the last plan leaves

  together(const lagkv::policy& p, std::size_t workers, const std::vector<std::size_t>& rows, bool equal,
           lagkv::toward direction) {
    const thread_pool pool(workers == 0 ? 1 : workers);
    std::vector<lagkv::workspace> scratch(workers == 0 ? 1 : workers);
    std::vector<lagkv::layer> layers;
    for (const std::size_t n : rows) {
      memory.push_back(std::make_unique<offered>(layout::tokens_first));
      layers.push_back(memory.back()->layer(n));
    }
    cursors.resize(rows.size());
    const auto note_plan = [&](std::size_t i, const lagkv::plan& plan) {
      EXPECT_TRUE(moved.empty()) << "before the first row moves";
      planned.push_back(i * 1000 + plan.tokens_after());
    };
    const auto note_move = [&](std::size_t i, const lagkv::plan& plan) { moved.push_back(i * 1000 + plan.tokens_after()); };
    const lagkv::compress_options o{.direction = direction, .equal_counts = equal, .planned = note_plan, .moved = note_move};
    const lagkv::status done =
        workers == 0 ? lagkv::compress(p, layers, cursors, scratch[0], o) : lagkv::compress(p, layers, cursors, scratch, pool, o);
    refused = done.message();
    last = lagkv::last_plan(scratch[0]).tokens_after();
    EXPECT_TRUE(done || lagkv::last_plan(scratch[0]).empty());
  }
};

TEST(parallel, all_layers_at_once_are_what_one_worker_makes_of_them) {
  std::vector<std::string> texts(std::begin(policies), std::end(policies));
  texts.push_back("key_diff:sink=4,keep=0.4,pyramid=5");
  const std::vector<std::size_t> alike(5, tokens), apart = {tokens, tokens, tokens - 60};
  std::size_t refused = 0, dropped = 0;
  for (const std::string& text : texts)
    for (const auto& rows : {alike, apart})
      for (const bool equal : {true, false})
        for (const auto direction : {lagkv::toward::front, lagkv::toward::window}) {
          const lagkv::policy p = named(text);
          const together one(p, 0, rows, equal, direction);
          for (const std::size_t workers : {1U, 3U}) {
            const together many(p, workers, rows, equal, direction);
            EXPECT_EQ(many.refused, one.refused) << text;
            EXPECT_EQ(many.cursors, one.cursors) << text;
            EXPECT_EQ(many.planned, one.planned) << text;
            EXPECT_EQ(many.moved, one.moved) << text;
            EXPECT_EQ(many.last, one.last) << text;
            for (std::size_t i = 0; i < rows.size(); ++i) {
              EXPECT_TRUE(many.memory[i]->same_bytes(*one.memory[i])) << text << ", layer " << i;
              EXPECT_TRUE(many.memory[i]->kv.intact());
            }
          }
          if (!one.refused.empty()) {
            ++refused;
            EXPECT_TRUE(one.planned.empty() && one.moved.empty()) << text;
            for (const lagkv::cursor& at : one.cursors) EXPECT_EQ(at, lagkv::cursor{}) << text;
          } else {
            EXPECT_EQ(one.moved, one.planned) << text;
            EXPECT_EQ(one.moved.size(), rows.size());
            dropped += one.cursors[0].dropped > 0;
          }
        }
  EXPECT_GE(refused, 2 * texts.size());  // at least those of other lengths, in both directions
  EXPECT_GE(dropped, 4 * texts.size());
}

TEST(parallel, nobody_is_called_for_layers_in_which_nothing_is_due) {
  std::vector<lagkv::workspace> workers(threads);
  offered x(layout::tokens_first), y(layout::tokens_first);
  const std::vector<lagkv::layer> layers = {x.layer(20), y.layer(20)};
  std::vector<lagkv::cursor> cursors(2);
  const auto run = [](std::size_t, const auto&) { FAIL() << "called"; };
  EXPECT_TRUE(lagkv::compress(named(policies[0]), layers, cursors, workers, run));
  EXPECT_EQ(cursors[1].tokens, 20U);
}

TEST(parallel, what_the_hosts_threads_throw_while_plans_are_made_leaves_all_as_it_was) {
  std::vector<lagkv::workspace> workers(threads);
  offered x(layout::tokens_first), y(layout::tokens_first), before(layout::tokens_first);
  const std::vector<lagkv::layer> layers = {x.layer(), y.layer()};
  std::vector<lagkv::cursor> cursors(2);
  const auto run = [](std::size_t, const auto& work) {
    work(0, std::size_t{1});
    throw std::bad_alloc();
  };
  for (const char* text : policies) {
    EXPECT_THROW((void)lagkv::compress(named(text), layers, cursors, workers, run), std::bad_alloc) << text;
    EXPECT_TRUE(x.same_bytes(before) && y.same_bytes(before)) << text;
    EXPECT_EQ(cursors[0], lagkv::cursor{});
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

// Whichever worker runs out of memory: the caller learns it when nobody is at work any more, and the pool can be used again.
TEST(parallel, a_pool_throws_what_a_task_has_thrown) {
  const thread_pool pool(threads);
  for (std::size_t round = 0; round < 20; ++round) {
    std::atomic<int> running = 0;
    EXPECT_THROW(pool(100,
                      [&](std::size_t task, std::size_t) {
                        ++running;
                        if (task == round) {
                          --running;
                          throw std::bad_alloc();
                        }
                        std::this_thread::yield();
                        --running;
                      }),
                 std::bad_alloc);
    EXPECT_EQ(running, 0);
    std::atomic<int> done = 0;
    pool(10, [&](std::size_t, std::size_t) { ++done; });
    EXPECT_EQ(done, 10);
  }
}

#if defined(__linux__)
[[noreturn]] void start_too_many_threads() {
  const rlimit a_gigabyte{1U << 30, 1U << 30};
  setrlimit(RLIMIT_AS, &a_gigabyte);  // each thread asks for a stack of some megabytes
  try {
    const thread_pool pool(100000);
  } catch (const std::system_error&) {
    std::exit(0);
  }
  std::exit(1);
}

TEST(parallel, a_pool_that_cannot_start_its_threads_throws_when_those_that_run_have_ended) {
  EXPECT_EXIT(start_too_many_threads(), testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
