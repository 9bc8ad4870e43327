// lagkv-bench: what each part of lagkv costs. docs/benchmarks.md explains the rows and the counters.
//
// Every row works on one layer of 8 heads, cold: before each iteration keys and values are restored and put out of the
// CPU's caches, outside the timed part. x_read and x_memcpy are medians over the same iterations.
#include <cstddef>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <lagkv/lagkv.hpp>
#include <lagkv/methods_with_eigen.hpp>

#include <examples/thread_pool.hpp>

#include "cache.hpp"
#include "include_cost.hpp"

namespace {

using bench::cache;
using bench::layout;
using lagkv::dtype;
using lagkv::simd::target;

/// What a row works on.
struct setup {
  dtype type;
  std::size_t dim, tokens;
  std::size_t lag = 128;
  layout how = layout::plain;
  lagkv::toward direction = lagkv::toward::front;
  target kernels = lagkv::simd::best();

  lagkv::policy policy() const { return *lagkv::make_lagkv({.sink = 16, .lag = lag, .ratio = 0.25}); }
};

/// The cache of the row that runs; rows of the same size share it.
cache& cache_of(const setup& s) {
  static std::unique_ptr<cache> current;
  if (!current || current->type() != s.type || current->dim() != s.dim || current->tokens() != s.tokens) {
    current.reset();
    current = std::make_unique<cache>(s.type, s.dim, s.tokens, s.tokens);
  }
  return *current;
}

/// Times work() on a cold cache; beside() answers the seconds of what it is compared with in the counter `ratio_name`.
template <class Work, class Beside>
void run_cold(benchmark::State& state, cache& c, const Work& work, const char* ratio_name, const Beside& beside) {
  constexpr std::size_t enough = 25;
  std::vector<double> read, other, own;
  for (auto _ : state) {
    state.PauseTiming();
    if (own.size() < enough) {
      c.evict();
      read.push_back(bench::seconds([&] { benchmark::DoNotOptimize(c.read()); }));
      if (ratio_name != nullptr) {
        c.evict();
        other.push_back(beside());
      }
    }
    c.restore();
    c.evict();
    state.ResumeTiming();
    own.push_back(bench::seconds(work));
  }
  const auto times = [&](const std::vector<double>& read_or_other) {  // of the iterations that both were measured in
    const auto last = own.begin() + static_cast<std::ptrdiff_t>(read_or_other.size());
    return bench::median({own.begin(), last}) / bench::median(read_or_other);
  };
  state.counters["x_read"] = times(read);
  if (ratio_name != nullptr) state.counters[ratio_name] = times(other);
  state.counters["median_ms"] = bench::median(own) * 1e3;
}

template <class Work>
void run_cold(benchmark::State& state, cache& c, const Work& work) {
  run_cold(state, c, work, nullptr, [] { return 0.0; });
}

void count(benchmark::State& state, std::size_t elements, std::size_t bytes) {
  const auto rounds = static_cast<double>(state.iterations());
  state.counters["elements/s"] = benchmark::Counter(rounds * static_cast<double>(elements), benchmark::Counter::kIsRate);
  state.counters["bytes/s"] = benchmark::Counter(rounds * static_cast<double>(bytes), benchmark::Counter::kIsRate);
}

/// compress(): scores, choice and moves, all that a host calls.
void step(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  const lagkv::layer layer = c.view(s.how);
  lagkv::workspace workspace(s.kernels);
  run_cold(state, c, [&] {
    lagkv::cursor cursor;
    benchmark::DoNotOptimize(lagkv::compress(policy, layer, cursor, workspace, s.direction));
  });
  count(state, c.elements(), c.bytes());
}

/// The same by two threads, a head a task; x_read is over a read of as many bytes by the same two. All of it is wall time: the
/// rates of count() would be of the CPU time of one of the two threads.
void step_threads(benchmark::State& state, const setup& s) {
  constexpr std::size_t threads = 2;
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  const lagkv::layer layer = c.view(s.how);
  const thread_pool pool(threads);
  std::vector<lagkv::workspace> workers(threads, lagkv::workspace(s.kernels));
  std::vector<double> read, own;
  for (auto _ : state) {
    state.PauseTiming();
    c.evict();
    read.push_back(bench::wall_seconds([&] {
      pool(2 * cache::heads, [&](std::size_t part, std::size_t) { benchmark::DoNotOptimize(c.read(part, 2 * cache::heads)); });
    }));
    c.restore();
    c.evict();
    state.ResumeTiming();
    own.push_back(bench::wall_seconds([&] {
      lagkv::cursor cursor;
      benchmark::DoNotOptimize(lagkv::compress(policy, layer, cursor, workers, pool, s.direction));
    }));
  }
  state.counters["x_read"] = bench::median(own) / bench::median(read);
  state.counters["median_ms"] = bench::median(own) * 1e3;
  const double a_second = static_cast<double>(own.size()) / std::accumulate(own.begin(), own.end(), 0.0);
  state.counters["elements/s"] = a_second * static_cast<double>(c.elements());
  state.counters["bytes/s"] = a_second * static_cast<double>(c.bytes());
}

/// Scores of four partitions that lie in cache with their reference, keys and values: arithmetic alone.
void score_cached(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  const lagkv::layer layer = c.view(s.how);
  lagkv::workspace workspace(s.kernels);
  std::vector<float> scores(4 * s.lag);
  for (auto _ : state) {
    policy.score(layer, 0, {16, 16 + scores.size()}, scores, workspace);
    benchmark::DoNotOptimize(scores.data());
  }
  count(state, 2 * scores.size() * s.dim, 2 * scores.size() * layer.keys.row_bytes());
}

/// The scorer alone.
void score(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  const lagkv::layer layer = c.view(s.how);
  const lagkv::candidates due = policy.budget.due({}, c.tokens());
  lagkv::workspace workspace(s.kernels);
  std::vector<float> scores(due.rows.size());
  run_cold(state, c, [&] {
    for (std::size_t head = 0; head < cache::heads; ++head) policy.score(layer, head, due.rows, scores, workspace);
    benchmark::DoNotOptimize(scores.data());
  });
  count(state, c.elements(), c.bytes());
}

/// The selector alone: elements and bytes are those of the scores.
void select(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  const lagkv::candidates due = policy.budget.due({}, c.tokens());
  const std::size_t n = due.rows.size();
  lagkv::workspace workspace(s.kernels);
  c.restore();
  std::vector<float> scores(cache::heads * n);
  for (std::size_t head = 0; head < cache::heads; ++head)
    policy.score(c.view(), head, due.rows, std::span(scores).subspan(head * n, n), workspace);
  lagkv::plan plan;
  plan.reset(due.rows, c.tokens(), cache::heads, due.keep);
  run_cold(state, c, [&] {
    lagkv::top_k{}(scores, cache::heads, due, plan, workspace);
    benchmark::DoNotOptimize(plan.kept.data());
  });
  count(state, scores.size(), scores.size() * sizeof(float));
}

/// The moves alone: elements and bytes are those that move.
void compact(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::layer layer = c.view(s.how);
  lagkv::workspace workspace(s.kernels);
  c.restore();
  const lagkv::plan plan = lagkv::plan_eviction(s.policy(), layer, {}, workspace);
  const std::size_t rows = plan.tokens_after() - plan.candidates.begin;
  const std::size_t bytes = 2 * cache::heads * rows * layer.keys.row_bytes();
  const bench::memory copy(bytes);
  const auto memcpy_both = [&] {  // half of it from the keys, half from the values
    bench::evict(copy);
    return bench::seconds([&] {
      std::memcpy(copy.data(), c.keys().data(), bytes / 2);
      std::memcpy(copy.data() + bytes / 2, c.values().data(), bytes / 2);
      benchmark::ClobberMemory();
    });
  };
  run_cold(
      state, c, [&] { lagkv::compact(layer, plan, s.direction); }, "x_memcpy", memcpy_both);
  count(state, bytes / size_of(s.type), bytes);
}

/// What attention methods read beside the cache: 4 query heads a KV head, as in many models of today.
class asked {
 public:
  static constexpr std::size_t group = 4, queries = 64, factors = 16;

  /// `factored`: a few vectors stand for the covariance of the queries.
  asked(std::size_t dim, std::size_t tokens, bool factored)
      : queries_(cache::heads * group * queries * dim),
        attention_(cache::heads * tokens),
        mean_(cache::heads * group * dim),
        covariance_(cache::heads * group * dim * dim),
        factors_(cache::heads * group * factors * dim),
        importance_{cache::heads, dim, dim, {}} {
    std::mt19937_64 random(3);
    const auto fill = [&](std::vector<float>& x, float scale) {
      for (float& f : x) f = scale * (static_cast<float>(random() % 2048) / 1024.0F - 1.0F);
    };
    fill(queries_, 1.0F), fill(mean_, 1.0F), fill(factors_, 0.3F);
    for (float& m : attention_) m = static_cast<float>(random() % 1024);
    for (std::size_t h = 0; h < cache::heads * group; ++h)
      for (std::size_t c = 0; c < dim; ++c) covariance_[(h * dim + c) * dim + c] = 0.1F;
    extras_.queries = view(queries_, dim, queries);
    extras_.query_mean = view(mean_, dim, 1), extras_.query_covariance = view(covariance_, dim, dim);
    if (factored) extras_.query_factors = view(factors_, dim, factors);
    extras_.rope = &rope_;
    importance_.weights.resize(cache::heads * importance_.width());
    fill(importance_.weights, 0.1F);
    extras_.importance = importance_.view();
    extras_.accumulated_attention = {attention_.data(), static_cast<std::ptrdiff_t>(tokens)};
  }

  const lagkv::extras& extras() const { return extras_; }

 private:
  static lagkv::tensor view(std::vector<float>& x, std::size_t dim, std::size_t rows) {
    const auto d = static_cast<std::ptrdiff_t>(dim);
    return lagkv::strided<float>(x.data(), {cache::heads * group, dim}, {static_cast<std::ptrdiff_t>(rows) * d, d}, rows);
  }

  std::vector<float> queries_, attention_, mean_, covariance_, factors_;
  lagkv::importance_map importance_;
  lagkv::rope rope_{.pairs = lagkv::rope::pairing::halves};
  lagkv::extras extras_;
};

/// compress() by any policy; x_lagkv is its time over that of LagKV at the same share kept.
void method(benchmark::State& state, const setup& s, const std::string& policy) {
  cache& c = cache_of(s);
  const auto parsed = lagkv::parse(policy, lagkv::methods_with_eigen());
  if (!parsed) return state.SkipWithError(parsed.message().c_str());
  const asked beside(s.dim, s.tokens, parsed->needs.calibrated);
  lagkv::layer layer = c.view(s.how);
  layer.extra = &beside.extras();
  if (const lagkv::status ok = check(*parsed, layer); !ok) return state.SkipWithError(ok.message().c_str());
  lagkv::workspace workspace(s.kernels);
  const auto step_of = [&](const lagkv::policy& p) {
    lagkv::cursor cursor;
    benchmark::DoNotOptimize(lagkv::compress(p, layer, cursor, workspace));
  };
  const lagkv::policy reference = s.policy();
  run_cold(
      state, c, [&] { step_of(*parsed); }, "x_lagkv",
      [&] {
        c.restore();
        c.evict();
        return bench::seconds([&] { step_of(reference); });
      });
  count(state, c.elements(), c.bytes());
}

/// What a decoded token costs where accumulated attention is kept: its attention to all rows.
void accumulate(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const asked beside(s.dim, s.tokens, false);
  lagkv::layer layer = c.view(s.how);
  layer.extra = &beside.extras();
  lagkv::workspace workspace(s.kernels);
  run_cold(state, c, [&] { lagkv::accumulate_attention(layer, 1, workspace); });
  count(state, c.elements() / 2, c.bytes() / 2);  // keys only
}

/// What most calls cost: nothing is due.
void due_nothing(benchmark::State& state) {
  cache& c = cache_of({dtype::f16, 128, 1024});
  const lagkv::policy policy = setup{dtype::f16, 128, 1024}.policy();
  lagkv::layer layer = c.view();
  layer.tokens = 200;
  lagkv::workspace workspace;
  lagkv::cursor cursor;
  for (auto _ : state) benchmark::DoNotOptimize(lagkv::compress(policy, layer, cursor, workspace));
}

/// A token of decoding, over many: the tokens of one partition are appended outside the timed part.
void decode(benchmark::State& state, const setup& s) {
  cache& c = cache_of(s);
  const lagkv::policy policy = s.policy();
  lagkv::workspace workspace(s.kernels);
  lagkv::layer layer = c.view();
  lagkv::cursor cursor;
  std::size_t tokens = 0;
  const auto restart = [&] {
    c.restore();
    cursor = {};
    layer.tokens = 16 + 2 * s.lag - 1;
    tokens = lagkv::compress(policy, layer, cursor, workspace);
  };
  restart();
  while (state.KeepRunningBatch(static_cast<benchmark::IterationCount>(s.lag))) {
    if (tokens + s.lag > c.capacity()) {
      state.PauseTiming();
      restart();
      state.ResumeTiming();
    }
    for (std::size_t i = 0; i < s.lag; ++i) {
      layer.tokens = tokens + 1;
      tokens = lagkv::compress(policy, layer, cursor, workspace);
    }
  }
}

std::string name_of(const std::string& what, const setup& s) {
  return what + "/" + lagkv::name(s.type) + "/d" + std::to_string(s.dim) + "/" + std::to_string(s.tokens);
}

void add(const std::string& name, const std::function<void(benchmark::State&, const setup&)>& run, const setup& s) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, s); })->Unit(benchmark::kMillisecond);
}

void add_method(const setup& s, const std::string& policy) {
  add(
      name_of("method", s) + "/" + policy, [policy](benchmark::State& state, const setup& on) { method(state, on, policy); }, s);
}

void register_all() {
  constexpr std::size_t sizes[] = {1024, 4096, 16384, 65536};
  const auto grid = [&](const std::string& what, void (*run)(benchmark::State&, const setup&), std::size_t lag) {
    for (dtype type : {dtype::f32, dtype::f16, dtype::bf16})
      for (std::size_t dim : {64U, 128U})
        for (std::size_t tokens : sizes) {
          const setup s{.type = type, .dim = dim, .tokens = tokens, .lag = lag};
          if (tokens >= 16 + 2 * lag) add(name_of(what, s), run, s);
        }
  };
  grid("step", step, 128);
  grid("step_lag1024", step, 1024);
  grid("score", score, 128);
  grid("select", select, 128);
  grid("compact", compact, 128);

  for (dtype type : {dtype::f32, dtype::f16, dtype::bf16})
    for (std::size_t lag : {128U, 1024U}) {
      const setup s{.type = type, .dim = 128, .tokens = 16384, .lag = lag};
      add(name_of(lag == 128 ? "step_threads" : "step_threads_lag1024", s) + "/2", step_threads, s);
      if (lag == 128) add(name_of("score_cached", {.type = type, .dim = 128, .tokens = 1024}), score_cached, {type, 128, 1024});
    }
  for (std::size_t tokens : {262144U, 1048576U})  // how it grows: the smaller sizes are above
    add(name_of("step", {.type = dtype::f16, .dim = 64, .tokens = tokens}), step, {dtype::f16, 64, tokens});

  for (dtype type : {dtype::int8, dtype::fp8_e4m3, dtype::q8_0, dtype::q4_0}) {
    const setup s{.type = type, .dim = 128, .tokens = 16384};
    add(name_of("step", s), step, s);
    add(name_of("score", s), score, s);
  }

  const setup usual{.type = dtype::f16, .dim = 128, .tokens = 16384};
  for (target t : lagkv::simd::all_targets) {
    if (!lagkv::simd::supported(t)) continue;
    setup s = usual;
    s.kernels = t;
    add(name_of("step", s) + "/" + lagkv::simd::name(t), step, s);
    add(name_of("score", s) + "/" + lagkv::simd::name(t), score, s);
  }
  setup s = usual;
  s.direction = lagkv::toward::window;
  add(name_of("step_window", s), step, s);
  s = usual;
  s.how = layout::paged;
  add(name_of("step_paged", s), step, s);
  s.how = layout::transposed;
  add(name_of("step_transposed", s), step, s);

  for (const char* policy : {"random:sink=16,keep=0.25",
                             "key_norm:sink=16,keep=0.25",
                             "value_norm:sink=16,keep=0.25",
                             "key_diff:sink=16,keep=0.25",
                             "key_diff:sink=16,keep=0.25,lag=128",
                             "cur:sink=16,keep=0.25",
                             "manifold:sink=16,keep=0.25",
                             "recommended:sink=16,keep=0.25",
                             "novelty:sink=16,keep=0.25",
                             "novelty:sink=16,keep=0.25,ridge=1,value_weight=1",
                             "kvzap:sink=16,keep=0.25",
                             "nested:sink=16,keep=0.25",
                             "redundancy:sink=16,keep=0.25",
                             "paged_eviction:sink=16,keep=0.25",
                             "distinct:sink=16,keep=0.25",
                             "novelty:sink=16,keep=0.25,pre_rope=no",
                             "manifold:sink=16,keep=0.25,lag=128",
                             "leverage:sink=16,keep=0.25",
                             "leverage:sink=16,keep=0.25,sketch=48",
                             "expected_attention:sink=16,keep=0.25",
                             "expected_attention:sink=16,keep=0.25,calibrated=yes",
                             "fuse:novelty+expected_attention,by=best,sink=16,keep=0.25,calibrated=yes",
                             "expected_attention:sink=16,keep=0.25,covariance=no",
                             "fuse:key_diff+expected_attention,by=best,sink=16,keep=0.25,covariance=no,calibrated=yes",
                             "snapkv:sink=16,keep=0.25",
                             "h2o:sink=16,keep=0.25",
                             "tova:sink=16,keep=0.25",
                             "stripes:sink=16,keep=0.25",
                             "fuse:novelty+stripes,by=best,sink=16,keep=0.25",
                             "fuse:lagkv+key_diff,sink=16,lag=128,keep=0.25",
                             "key_norm:sink=16,keep=0.25,select=chunks",
                             "streaming_llm:sink=16,keep=0.25"})
    add_method(usual, policy);
  for (const std::size_t tokens : {1024U, 2048U, 4096U, 8192U, 65536U})  // what a call costs whatever the rows
    for (const char* policy : {"recommended:sink=16,keep=0.25", "novelty:sink=16,keep=0.25"})
      add_method({.type = dtype::f16, .dim = 128, .tokens = tokens}, policy);
  add(name_of("accumulate", usual), accumulate, usual);

  benchmark::RegisterBenchmark("due/nothing", due_nothing);
  for (std::size_t lag : {128U, 1024U})
    benchmark::RegisterBenchmark(("decode/f16/d128/lag" + std::to_string(lag)).c_str(), [=](benchmark::State& state) {
      decode(state, {.type = dtype::f16, .dim = 128, .tokens = 16384, .lag = lag});
    });
  bench::register_include_cost();
}

}  // namespace

int main(int argc, char** argv) {
  // Iterations restore and evict far more than they time: less is enough, unless the user says otherwise.
  std::vector<char*> arguments(argv, argv + argc);
  std::string less = "--benchmark_min_time=0.2";
  arguments.insert(arguments.begin() + 1, less.data());
  int count_of = static_cast<int>(arguments.size());
  benchmark::Initialize(&count_of, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count_of, arguments.data())) return 2;
  benchmark::AddCustomContext("lagkv_target", lagkv::simd::name(lagkv::simd::best()));
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
