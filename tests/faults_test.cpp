// An allocation that fails, at each place where a public call allocates, leaves cache, cursors and side arrays as they were; the
// same call with the same workspace then does what it should.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/offer.hpp"

namespace {
long left = -1;  // allocations until one fails; below 0: none does

void* granted(std::size_t align, std::size_t n) {
  if (left >= 0 && left-- == 0) throw std::bad_alloc();
  if (void* p = std::aligned_alloc(align, (n / align + 1) * align)) return p;
  throw std::bad_alloc();
}
}  // namespace

// Not inlined: a compiler that sees through them warns of what belongs together.
[[gnu::noinline]] void* operator new(std::size_t n) { return granted(alignof(std::max_align_t), n); }
[[gnu::noinline]] void* operator new[](std::size_t n) { return granted(alignof(std::max_align_t), n); }
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t align) {
  return granted(static_cast<std::size_t>(align), n);
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t align, const std::nothrow_t&) noexcept {
  try {
    return granted(static_cast<std::size_t>(align), n);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace {

using namespace support;
using lagkv::toward;

enum class outcome : std::uint8_t { failed, swallowed, not_reached };

/// What becomes of a call whose n-th allocation fails. Scratch need not be joined to one piece: such a failure is swallowed.
template <class Call>
outcome with_fault(long n, const Call& call) {
  left = n;
  try {
    call();
  } catch (const std::bad_alloc&) {
    left = -1;
    return outcome::failed;
  }
  const bool reached = left < 0;
  left = -1;
  return reached ? outcome::swallowed : outcome::not_reached;
}

/// A sequence of a host: layers of keys and values, with all that may lie beside them.
struct sequence_of_layers {
  struct one {
    std::size_t channels;
    std::vector<float> keys, values, attention;
    std::vector<std::uint32_t> positions;
    std::vector<double> statistics;

    friend bool operator==(const one&, const one&) = default;
  };

  static constexpr std::size_t heads = 2;
  std::size_t tokens, used;
  std::vector<one> layers;
  std::vector<lagkv::cursor> at;
  std::shared_ptr<std::vector<float>> queries, importance;  // only read: the copies of a sequence share them

  sequence_of_layers(std::size_t n, std::initializer_list<std::size_t> widths) : tokens(n), used(n), at(widths.size()) {
    for (const std::size_t channels : widths) {
      const cube k = make_cube(static_cast<unsigned>(channels), heads, n, channels), v = make_cube(9, heads, n, channels);
      one l{channels,
            k.x,
            v.x,
            std::vector<float>(heads * n, 0.5F),
            std::vector<std::uint32_t>(heads * n),
            std::vector<double>(heads * lagkv::key_statistics::size(channels))};
      for (std::size_t i = 0; i < heads * n; ++i) l.positions[i] = static_cast<std::uint32_t>(i % n);
      layers.push_back(std::move(l));
    }
    const std::size_t widest = *std::max_element(widths.begin(), widths.end());
    queries = std::make_shared<std::vector<float>>(make_cube(5, 2 * heads, n, widest).x);
    importance = std::make_shared<std::vector<float>>(make_cube(6, heads, 1, 2 * widest + 1).x);
  }

  lagkv::extras extras(std::size_t i) {
    one& l = layers[i];
    lagkv::extras e;
    const auto c = static_cast<std::ptrdiff_t>(l.channels), n = static_cast<std::ptrdiff_t>(tokens);
    e.queries = lagkv::strided<float>(queries->data(), {2 * heads, l.channels}, {n * c, c, 1}, used);
    e.accumulated_attention = {l.attention.data(), tokens}, e.positions = {l.positions.data(), tokens};
    e.key_statistics = {l.statistics.data()};
    e.importance = lagkv::strided<float>(importance->data(), {heads, 2 * l.channels + 1}, {2 * c + 1, 2 * c + 1, 1}, 1);
    static const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
    e.rope = &rope;
    return e;
  }

  lagkv::layer layer(std::size_t i, const lagkv::extras& e) {
    one& l = layers[i];
    const auto c = static_cast<std::ptrdiff_t>(l.channels), n = static_cast<std::ptrdiff_t>(tokens);
    const auto view = [&](std::vector<float>& x) {
      return lagkv::strided<float>(x.data(), {heads, l.channels}, {n * c, c, 1}, tokens);
    };
    return {view(l.keys), view(l.values), used, &e};
  }

  bool as(const sequence_of_layers& other) const { return layers == other.layers && at == other.at; }
};

/// Repeats a call with a fault at each of its allocations. `call(sequence, workspaces)` must leave the sequence as it was if it
/// fails; the same call is then made once more with the same workspaces, and must do what it does without any fault.
template <class Call>
void expect_all_or_nothing(const sequence_of_layers& before, std::size_t workers, const Call& call, const std::string& what) {
  sequence_of_layers done = before;
  {
    std::vector<lagkv::workspace> ws(workers);
    call(done, std::span(ws));
  }
  ASSERT_FALSE(done.as(before)) << what << ": or nothing was tested";
  long failures = 0;
  for (long n = 0;; ++n) {
    ASSERT_LT(n, 2000) << what;
    sequence_of_layers now = before;
    std::vector<lagkv::workspace> ws(workers);
    const outcome o = with_fault(n, [&] { call(now, std::span(ws)); });
    if (o == outcome::failed) {
      ++failures;
      ASSERT_TRUE(now.as(before)) << what << ": allocation " << n;
      ASSERT_TRUE(lagkv::last_plan(ws[0]).empty()) << what << ": allocation " << n;
      call(now, std::span(ws));
    }
    ASSERT_TRUE(now.as(done)) << what << ": again after allocation " << n;
    if (o == outcome::not_reached) break;
  }
  EXPECT_GT(failures, 0) << what;
}

const auto one_thread = [](std::size_t n, const auto& work) {
  for (std::size_t i = 0; i < n; ++i) work(i, i % 2);  // as if by two threads
};

// A pool that gives all heads of the first pass to one worker: the others get theirs first when rows move.
struct late_workers {
  mutable int pass = 0;

  template <class Work>
  void operator()(std::size_t n, const Work& work) const {
    ++pass;
    for (std::size_t i = 0; i < n; ++i) work(i, pass == 1 ? 0U : (i + 1) % 2);
  }
};

constexpr const char* policies[] = {"lagkv:sink=2,lag=32,ratio=0.3",
                                    "lagkv:sink=2,lag=32,ratio=0.3,form=local,pre_rope=yes",
                                    "lagkv:sink=2,lag=32,ratio=0.4,form=kvpress",
                                    "key_diff:lag=32,keep=0.3",
                                    "key_diff:keep=0.3,smooth=4",
                                    "cur:capacity=90,pool=3",
                                    "novelty:capacity=90",
                                    "distinct:lag=32,keep=0.3",
                                    "redundancy:lag=32,keep=0.3",
                                    "kvzap:lag=32,keep=0.3,pre_rope=no",
                                    "nested:keep=0.3",
                                    "snapkv:window=16,keep=0.3",
                                    "h2o:capacity=90",
                                    "tova:capacity=90",
                                    "expected_attention:keep=0.3",
                                    "key_norm:keep=0.3,select=chunks",
                                    "fuse:key_norm+cur,by=best,keep=0.3",
                                    "streaming_llm:capacity=90"};

/// In both directions, by one worker, by two, and by two of which one comes late.
void expect_one_layer_all_or_nothing(const sequence_of_layers& before, const char* text) {
  const lagkv::policy p = named_any(text);
  for (toward direction : {toward::front, toward::window})
    for (std::size_t how : {1U, 2U, 3U})
      expect_all_or_nothing(
          before, how == 1 ? 1U : 2U,
          [&](sequence_of_layers& s, std::span<lagkv::workspace> ws) {
            const lagkv::extras e = s.extras(0);
            const lagkv::layer l = s.layer(0, e);
            if (how == 1)
              lagkv::compress(p, l, s.at[0], ws[0], direction);
            else if (how == 2)
              lagkv::compress(p, l, s.at[0], ws, one_thread, direction);
            else
              lagkv::compress(p, l, s.at[0], ws, late_workers{}, direction);
          },
          std::string(text) + (direction == toward::front ? ", front, " : ", window, ") + std::to_string(how));
}

TEST(faults, compress_of_one_layer_is_all_or_nothing) {
  const sequence_of_layers before(400, {24});
  for (const char* text : policies) expect_one_layer_all_or_nothing(before, text);
}

// Blocks of partitions are 2 MiB: the last one is smaller, and its scratch too.
TEST(faults, compress_in_blocks_of_partitions_is_all_or_nothing) {
  const sequence_of_layers before(21 * 64, {512});
  for (const char* text : {"lagkv:sink=0,lag=64,ratio=0.3", "lagkv:sink=0,lag=64,ratio=0.3,pre_rope=yes",
                           "key_diff:lag=64,keep=0.3,sink=0", "novelty:lag=64,keep=0.3,sink=0,heads=own"})
    expect_one_layer_all_or_nothing(before, text);
}

TEST(faults, compress_of_all_layers_is_all_or_nothing) {
  for (const bool alike : {true, false}) {  // a later layer may need more scratch than the first
    const sequence_of_layers before = alike ? sequence_of_layers(400, {24, 24, 24}) : sequence_of_layers(400, {8, 24, 200});
    for (const char* text : policies)
      for (const std::size_t workers : {1U, 2U}) {
        const lagkv::policy p = named_any(text);
        const bool equal = (workers == 1) == alike;
        expect_all_or_nothing(
            before, workers,
            [&](sequence_of_layers& s, std::span<lagkv::workspace> ws) {
              std::vector<lagkv::extras> extras;
              std::vector<lagkv::layer> layers;
              for (std::size_t i = 0; i < s.layers.size(); ++i) extras.push_back(s.extras(i));
              for (std::size_t i = 0; i < s.layers.size(); ++i) layers.push_back(s.layer(i, extras[i]));
              const lagkv::compress_options o{.equal_counts = equal};
              const lagkv::status done =
                  workers == 1 ? lagkv::compress(p, layers, s.at, ws[0], o) : lagkv::compress(p, layers, s.at, ws, one_thread, o);
              const long armed = std::exchange(left, -1);
              ASSERT_TRUE(done) << text << ": " << done.message();
              left = armed;
            },
            std::string(text) + (alike ? ", alike" : ", wider and wider"));
      }
  }
}

// `planned` may change values: whatever can fail has been done by then, whichever worker has planned the last layer.
TEST(faults, compress_of_all_layers_calls_planned_when_nothing_can_fail) {
  const sequence_of_layers before(400, {24, 24});
  const lagkv::policy p = named("key_diff:keep=0.3");
  for (const std::size_t worker : {0U, 1U})
    expect_all_or_nothing(
        before, 2,
        [&](sequence_of_layers& s, std::span<lagkv::workspace> ws) {
          const lagkv::extras extras[] = {s.extras(0), s.extras(1)};
          const lagkv::layer layers[] = {s.layer(0, extras[0]), s.layer(1, extras[1])};
          const auto negate = [&](std::size_t i, const lagkv::plan&) {
            for (float& x : s.layers[i].values) x = -x;
          };
          const auto by_one = [worker](std::size_t n, const auto& work) {
            for (std::size_t i = 0; i < n; ++i) work(i, worker);
          };
          static_cast<void>(lagkv::compress(p, layers, s.at, ws, by_one, {.planned = negate}));
        },
        "planned, worker " + std::to_string(worker));
}

TEST(faults, accumulate_adds_to_all_heads_or_to_none) {
  const sequence_of_layers before(3000, {64});
  for (const char* text : {"h2o:capacity=90", "novelty:capacity=90", "fuse:h2o+distinct,capacity=90"}) {
    const lagkv::policy p = named_any(text);
    expect_all_or_nothing(
        before, 1,
        [&](sequence_of_layers& s, std::span<lagkv::workspace> ws) {
          const lagkv::extras e = s.extras(0);
          lagkv::accumulate(p, s.layer(0, e), s.at[0], 2000, ws[0]);
        },
        text);
  }
}

TEST(faults, rerotate_turns_all_keys_or_none) {
  sequence_of_layers before(400, {24});
  lagkv::workspace planned;
  const lagkv::extras e = before.extras(0);
  const lagkv::plan plan = lagkv::plan_eviction(named("lagkv:sink=2,lag=32,ratio=0.3"), before.layer(0, e), {}, planned);
  expect_all_or_nothing(
      before, 1,
      [&](sequence_of_layers& s, std::span<lagkv::workspace> ws) {
        const lagkv::extras own = s.extras(0);
        lagkv::rerotate(s.layer(0, own).keys, plan, *own.rope, ws[0]);
      },
      "rerotate");
}

// Nothing is left behind either: the address sanitizer sees memory that is lost.
TEST(faults, parse_check_and_load_fail_by_exceptions_alone) {
  sequence_of_layers s(400, {24});
  const lagkv::extras e = s.extras(0);
  const lagkv::layer l = s.layer(0, e);
  const lagkv::saved_cursor saved = lagkv::save({300, 20, 100});
  std::vector<std::byte> damaged(saved.begin(), saved.end());
  damaged[0] = std::byte{7};
  std::string said;
  const auto all = [&] {
    said.clear();
    for (const char* text : {"lagkv:lag=128,ratio=0.25", "fuse:novelty+cur,by=best,weights=3+1", "lagkv:lag=x", "none",
                             "key_norm:capacity=3", "fuse:cur+none"}) {
      const lagkv::result<lagkv::policy> p = lagkv::parse(text);
      said += p ? lagkv::check(*p, l).message() : p.message();
      lagkv::layer wrong = l;
      wrong.tokens = 401;
      if (p) said += lagkv::check(*p, wrong).message();
    }
    said += lagkv::load_cursor(saved).message() + lagkv::load_cursor(damaged).message();
  };
  all();
  const std::string expected = said;
  long failures = 0;
  for (long n = 0;; ++n) {
    const outcome o = with_fault(n, all);
    failures += o == outcome::failed ? 1 : 0;
    all();
    ASSERT_EQ(said, expected) << "allocation " << n;
    if (o == outcome::not_reached) break;
  }
  EXPECT_GT(failures, 10);
}

TEST(faults, a_workspace_goes_on_after_a_fault) {
  struct large {
    std::vector<int> data = std::vector<int>(100);
  };
  for (long n = 0; n < 4; ++n) {
    lagkv::workspace ws;
    const outcome o = with_fault(n, [&] { ws.kept<large>(); });
    EXPECT_EQ(ws.kept<large>().data.size(), 100U);
    if (o == outcome::not_reached) break;
    EXPECT_EQ(o, outcome::failed);
  }
}

}  // namespace
