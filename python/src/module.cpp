// lagkv._core: what lagkv/__init__.py is made of.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <lagkv/attention/head_budgets.hpp>
#include <lagkv/lagkv.hpp>

#include "array.hpp"
#include "layer.hpp"
#include "methods.hpp"

using namespace nb::literals;

namespace python {

namespace {

using nb_scores = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

/// Numbers that numpy takes over.
template <class T, std::size_t Rank>
nb::object numpy(std::vector<T> numbers, const std::size_t (&shape)[Rank]) {
  auto* kept = new std::vector<T>(std::move(numbers));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), Rank, shape, owner));
}

// ---- threads ----------------------------------------------------------------------------------------------------------

/// A parallel_for that starts threads for each call, so that none is there to be lost in a fork. Where no more can be started,
/// those that there are do the work.
struct started_threads {
  std::size_t workers;

  template <class Work>
  void operator()(std::size_t n, const Work& work) const {
    std::atomic<std::size_t> next = 0;
    std::exception_ptr failed;
    std::mutex mutex;
    const auto take = [&](std::size_t worker) {
      try {
        for (std::size_t i = next++; i < n; i = next++) work(i, worker);
      } catch (...) {
        const std::lock_guard lock(mutex);
        failed = std::current_exception();
      }
    };
    struct all {
      std::vector<std::thread> threads;
      ~all() {
        for (std::thread& t : threads) t.join();
      }
    };
    {
      all started;
      try {
        started.threads.reserve(std::min(workers, n));
        for (std::size_t w = 1; w < std::min(workers, n); ++w) started.threads.emplace_back(take, w);
      } catch (const std::exception&) {  // neither memory nor threads left: rows may have moved, so that giving up is too late
      }
      take(0);
    }
    if (failed) std::rethrow_exception(failed);
  }
};

struct workspace_object {
  std::vector<lagkv::workspace> workers;
  std::optional<std::string> target;  ///< that was asked for
  std::atomic<bool> busy = false;

  workspace_object(std::size_t threads, std::optional<std::string> wanted) : target(std::move(wanted)) {
    if (threads == 0 || threads > 1024) refuse({"threads=", threads, ": must be from 1 to 1024"});
    const lagkv::simd::target t = target ? named(*target) : lagkv::simd::best();
    for (std::size_t i = 0; i < threads; ++i) workers.emplace_back(t);
  }
  workspace_object(const workspace_object&) = delete;
  workspace_object& operator=(const workspace_object&) = delete;

  /// The plan that last_plan() shows.
  lagkv::plan& plan() { return workers[0].kept<lagkv::plan>(); }

  static lagkv::simd::target named(const std::string& name) {
    std::string runs;
    for (const lagkv::simd::target t : lagkv::simd::all_targets) {
      if (!lagkv::simd::supported(t)) continue;
      if (name == lagkv::simd::name(t)) return t;
      runs.append(runs.empty() ? "" : ", ").append(lagkv::simd::name(t));
    }
    refuse({"target=", name, ": must be one of ", runs, " on this machine"});
  }
};

// ---- policies ---------------------------------------------------------------------------------------------------------

struct policy_object {
  std::string text;
  lagkv::policy policy;
  std::size_t rows = 0;             ///< of a budget in bytes, once it has been made one of rows
  std::vector<double> multiples{};  ///< that for_head() was called with

  explicit policy_object(std::string t) : text(std::move(t)), policy(expect(parsed(text))) {}

  /// A message ends at the first NUL.
  static lagkv::result<lagkv::policy> parsed(const std::string& text) {
    if (const std::size_t at = text.find('\0'); at != std::string::npos)
      return lagkv::detail::refuse({"policy: character ", at, " is NUL: must be text"});
    return lagkv::parse(text, all_methods());
  }

  policy_object for_layer(whole at, whole of) const {
    const std::size_t layer = at.get("layer"), layers = of.get("layers");
    if (layer >= layers) refuse({"layer=", layer, ": must be below the ", layers, " layers"});
    policy_object out = *this;
    out.policy = lagkv::for_layer(policy, layer, layers);
    return out;
  }

  policy_object for_head(given<double> of) const {
    const double multiple = of.get("multiple", "a number, 0 or more");
    if (!lagkv::detail::finite(multiple) || !(multiple >= 0)) refuse({"multiple=", multiple, ": must be 0 or more, and finite"});
    if (policy.budget.as<lagkv::keep::bytes>() != nullptr) refuse({lagkv::detail::is_in_bytes().message});
    policy_object out = *this;
    out.policy = lagkv::for_head(policy, multiple);
    out.multiples.push_back(multiple);
    return out;
  }

  policy_object fit(layer_object& l, whole of) const {
    const std::size_t layers = of.get("layers");
    if (layers == 0) refuse({"layers=0: must be 1 or more"});
    policy_object out = *this;
    out.policy = expect(lagkv::fit(policy, l.at(0), layers));
    const auto* c = out.policy.budget.as<lagkv::keep::capacity>();
    if (c != nullptr && policy.budget.as<lagkv::keep::bytes>() != nullptr) out.rows = c->rows;
    return out;
  }

  using state = std::tuple<std::string, std::size_t, std::size_t, std::size_t, std::vector<double>>;

  state get() const { return {text, policy.budget.slope.layer, policy.budget.slope.layers, rows, multiples}; }

  static policy_object from(const state& s) {
    policy_object out(std::get<0>(s));
    out.policy = lagkv::for_layer(out.policy, std::get<1>(s), std::get<2>(s));
    out.rows = std::get<3>(s);
    if (const auto* b = out.policy.budget.as<lagkv::keep::bytes>(); b != nullptr && out.rows != 0)
      out.policy.budget.keeps = lagkv::keep::capacity{out.rows, b->every};
    out.multiples = std::get<4>(s);
    for (const double multiple : out.multiples) out.policy = lagkv::for_head(out.policy, multiple);
    return out;
  }
};

nb::dict needs_of(const policy_object& p) {
  const lagkv::needs& n = p.policy.needs;
  nb::dict d;
  d["values"] = n.values, d["all_rows"] = n.all_rows, d["queries"] = n.queries;
  d["accumulated_attention"] = n.accumulated_attention, d["query_statistics"] = n.query_statistics;
  d["calibrated"] = n.calibrated, d["importance"] = n.importance, d["rope"] = n.rope, d["positions"] = n.positions;
  d["key_statistics"] = n.key_statistics, d["head_budgets"] = n.head_budgets;
  return d;
}

nb::object initial(const lagkv::parameter& p, const void* defaults) {
  if (!p.given(defaults)) return nb::none();
  const double x = p.get(defaults);
  using kind = lagkv::accepted::kind;
  if (p.accepts.type == kind::word) {
    std::string_view words = p.accepts.words;
    for (auto skip = static_cast<int>(x); skip > 0; --skip) words.remove_prefix(words.find('|') + 1);
    return nb::cast(std::string(words.substr(0, words.find('|'))));
  }
  if (p.accepts.type == kind::whole || p.accepts.type == kind::odd) return nb::cast(static_cast<std::size_t>(x));
  return nb::cast(x);
}

/// (key, default, accepted, meaning) of each; a default of None: there is none.
nb::list options_of(const lagkv::option_table& table) {
  const lagkv::option_values defaults(table);
  nb::list out;
  for (const lagkv::parameter& p : table.parameters)
    out.append(nb::make_tuple(p.key, initial(p, defaults.get()), lagkv::text(p.accepts), p.meaning));
  return out;
}

nb::list methods_of() {
  nb::list out;
  for (const lagkv::method_entry* m : all_methods()) {
    nb::dict d, instead;
    const bool whole = m->make_whole != nullptr;
    d["name"] = m->name, d["meaning"] = m->meaning, d["source"] = m->source, d["reads"] = m->reads;
    d["options"] = options_of(whole ? m->whole : m->own);
    d["has_budget"] = whole, d["fusable"] = m->make != nullptr;
    if (!whole) {  // where the method's default of a shared key is another
      const lagkv::option_values defaults(m->own);
      const lagkv::result<lagkv::method> made = m->make(defaults.get(), 0);
      const lagkv::method plain;
      if (made) {
        if (made->recent != plain.recent) instead["recent"] = made->recent;
        if (made->recent_share != plain.recent_share) instead["recent_share"] = made->recent_share;
        if (made->smooth != plain.smooth) instead["smooth"] = made->smooth;
        if (made->shared_heads) instead["heads"] = "shared";
        if (made->pre_rope != nullptr) instead["pre_rope"] = "yes";
        d["reads_queries"] = made->needs.queries > 0 || made->needs.accumulated_attention;
        d["reads_query_statistics"] = made->needs.query_statistics;
      }
    }
    d["instead"] = instead;
    out.append(d);
  }
  return out;
}

// ---- plans ------------------------------------------------------------------------------------------------------------

void expect_head(const lagkv::plan& p, std::size_t head) {
  if (head >= p.heads()) refuse({"head=", head, ": the plan has ", p.heads()});
}

nb::object rows_of(const lagkv::plan& p, whole of) {
  const std::size_t head = of.get("head");
  if (!p.empty()) expect_head(p, head);
  std::vector<std::int64_t> rows(p.tokens_after(p.empty() ? 0 : head));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(p.source(head, i));
  const std::size_t shape[] = {rows.size()};
  return numpy(std::move(rows), shape);
}

void compact_array(nb::handle x, const lagkv::plan& p, lagkv::toward direction) {
  const array a("array", x, 3, 3, halves_and_floats);
  a.expect_writable();
  if (p.empty()) return;
  const lagkv::tensor t = a.view();
  expect(t.check(p.tokens_before));
  if (t.heads() != p.heads()) refuse({"array: heads=", t.heads(), ": must be the ", p.heads(), " of the plan"});
  const nb::gil_scoped_release free;
  lagkv::compact(t, p, direction);
}

void rerotate_keys(nb::handle keys, const lagkv::plan& p, rope_object& r, workspace_object& ws) {
  const array a("keys", keys, 3, 3, halves_and_floats);
  a.expect_writable();
  const lagkv::tensor t = a.view();
  expect(lagkv::check(*r.get(), t));
  if (p.empty()) return;
  if (t.heads() != p.heads()) refuse({"keys: heads=", t.heads(), ": must be the ", p.heads(), " of the plan"});
  for (std::size_t h = 0; h < p.heads(); ++h) expect(t.check(p.tokens_after(h)));
  const use mine(ws.busy, "workspace");
  const nb::gil_scoped_release free;
  lagkv::rerotate(t, p, *r.get(), ws.workers[0]);
}

// ---- calls ------------------------------------------------------------------------------------------------------------

void check_layer(const policy_object& p, layer_object& l, bool any_length) {
  l.expect_rows();
  for (std::size_t i = 0; i < l.batch(); ++i) {
    if (const lagkv::status s = lagkv::check(p.policy, l.at(i), any_length); !s) {
      if (l.batched()) refuse({"batch ", i, ": ", s.message()});
      refuse({s.message()});
    }
  }
}

/// Refuses values that lie in the rows of the keys: rows are about to move, those would move twice.
void expect_rows_apart(layer_object& l) {
  for (std::size_t i = 0; i < l.batch(); ++i) expect(lagkv::detail::check_rows_apart(l.at(i)));
}

void check_cursor(const lagkv::cursor& at, const layer_object& l) {
  if (at.tokens > l.tokens())
    refuse({"tokens=", l.tokens(), ": the cursor counts ", at.tokens,
            " rows: call take_back() or take_out(), or begin a sequence with a new cursor"});
}

/// One sequence of one layer.
struct entry {
  lagkv::layer layer;
  lagkv::cursor at;
  lagkv::policy policy;
  std::size_t of = 0;  ///< its layer's number
};

bool equal_heads(const lagkv::plan& p) {
  for (std::size_t h = 1; h < p.heads(); ++h)
    if (p.tokens_after(h) != p.tokens_after(0)) return false;
  return true;
}

/// What all entries drop is decided before the first row moves.
void compress_together(std::vector<entry>& entries, std::span<lagkv::workspace> workers, lagkv::toward direction,
                       bool equal_counts) {
  const bool due =
      std::ranges::any_of(entries, [](const entry& e) { return !e.policy.budget.due(e.at, e.layer.tokens).empty(); });
  if (due) {
    std::vector<lagkv::layer> layers;
    std::vector<std::size_t> numbers;
    for (const entry& e : entries) layers.push_back(e.layer), numbers.push_back(e.of);
    expect(lagkv::detail::check_rows_apart(layers, workers[0], numbers));
  }
  const started_threads run{due ? workers.size() : 1};
  std::vector<lagkv::plan> plans(entries.size());
  run(entries.size(), [&](std::size_t i, std::size_t w) {
    plans[i] = lagkv::plan_eviction(entries[i].policy, entries[i].layer, entries[i].at, workers[w]);
  });
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::size_t like = equal_counts || i == 0 || entries[i - 1].of != entries[i].of ? (equal_counts ? 0 : i) : i - 1;
    if (!equal_heads(plans[i]) || plans[i].tokens_after() != plans[like].tokens_after())
      refuse({"layer ", entries[i].of, ": would keep ", plans[i].tokens_after(), " tokens, layer ", entries[like].of, " keeps ",
              plans[like].tokens_after(), ": nothing moved"});
  }
  run(entries.size(), [&](std::size_t i, std::size_t) {
    lagkv::compact(entries[i].layer, plans[i], direction);
    if (entries[i].layer.extra != nullptr) lagkv::compact(*entries[i].layer.extra, plans[i], direction);
    lagkv::advance(entries[i].at, plans[i]);
  });
  workers[0].kept<lagkv::plan>() = std::move(plans.back());
}

/// Refuses None, and what stands twice in a list.
template <class T>
void expect_different(const char* list, const char* type, const std::vector<T*>& of) {
  for (std::size_t i = 0; i < of.size(); ++i) {
    if (of[i] == nullptr)
      throw nb::type_error(lagkv::detail::joined({list, "[", i, "]: is None: must be a lagkv.", type}).c_str());
    for (std::size_t j = 0; j < i; ++j)
      if (of[j] == of[i]) refuse({list, "[", i, "]: is ", list, "[", j, "] too: each needs its own"});
  }
}

std::vector<std::size_t> compress_layers(const policy_object& p, const std::vector<layer_object*>& layers,
                                         const std::vector<lagkv::cursor*>& cursors, workspace_object& ws,
                                         lagkv::toward direction, bool equal_counts) {
  const use mine(ws.busy, "workspace");
  lagkv::detail::unfinished_plan call{ws.plan(), 0};
  if (layers.size() != cursors.size()) refuse({"cursors=", cursors.size(), ": must be ", layers.size(), ", one a layer"});
  if (layers.empty()) return {};
  expect_different("layers", "Layer", layers);
  expect_different("cursors", "Cursor", cursors);
  std::vector<std::unique_ptr<use>> theirs;
  std::vector<entry> entries;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layer_object& l = *layers[i];
    theirs.push_back(std::make_unique<use>(l.busy, "layer"));
    l.expect_writable();
    check_layer(p, l, false);
    expect_rows_apart(l);
    check_cursor(*cursors[i], l);
    for (std::size_t b = 0; b < l.batch(); ++b) {
      entries.push_back({l.at(b), *cursors[i], layers.size() > 1 ? lagkv::for_layer(p.policy, i, layers.size()) : p.policy, i});
      entries.back().layer.index = i;
    }
  }
  {
    const nb::gil_scoped_release free;
    if (entry& e = entries[0]; entries.size() == 1)  // heads are shared among the threads
      lagkv::compress(e.policy, e.layer, e.at, ws.workers, started_threads{ws.workers.size()}, direction);
    else
      compress_together(entries, ws.workers, direction, equal_counts);
  }
  std::vector<std::size_t> rows;
  for (std::size_t e = 0; e < entries.size(); ++e) {
    const std::size_t i = entries[e].of;
    if (e > 0 && entries[e - 1].of == i) continue;
    *cursors[i] = entries[e].at;
    layers[i]->set_tokens(entries[e].at.tokens);
    rows.push_back(entries[e].at.tokens);
  }
  call.finished = true;
  return rows;
}

std::vector<lagkv::plan> plans_of(const policy_object& p, layer_object& l, const lagkv::cursor& at, workspace_object& ws) {
  const use mine(ws.busy, "workspace"), its(l.busy, "layer");
  lagkv::detail::unfinished_plan call{ws.plan(), 0};
  check_layer(p, l, true);
  check_cursor(at, l);
  std::vector<lagkv::plan> plans(l.batch());
  const nb::gil_scoped_release free;
  const started_threads run{ws.workers.size()};
  if (l.batch() == 1) {
    plans[0] = lagkv::plan_eviction(p.policy, l.at(0), at, std::span(ws.workers), run);
  } else {
    run(l.batch(), [&](std::size_t i, std::size_t w) { plans[i] = lagkv::plan_eviction(p.policy, l.at(i), at, ws.workers[w]); });
    ws.plan() = plans.back();
  }
  call.finished = true;
  return plans;
}

/// What a policy would drop of so many tokens were its budget nearly nothing; what is due where that is more.
lagkv::candidates all_candidates(const lagkv::policy& p, std::size_t tokens) {
  const lagkv::candidates due = p.budget.due({}, tokens);
  if (!due.empty() || p.budget.as<lagkv::keep::partitions>() != nullptr) return due;
  lagkv::budget least = p.budget;
  least.slope = {};
  if (p.budget.as<lagkv::keep::share>() != nullptr) least.keeps = lagkv::keep::share{.of_all = 0, .lag = p.budget.lag()};
  if (p.budget.again()) least.keeps = lagkv::keep::capacity{.rows = 0};
  return least.due({}, tokens);
}

nb::object scores_of(const policy_object& p, layer_object& l, const std::optional<lagkv::candidates>& given,
                     workspace_object& ws) {
  const use mine(ws.busy, "workspace"), its(l.busy, "layer");
  if (!p.policy.score) refuse({"policy ", p.text, ": has no scores"});
  check_layer(p, l, true);
  const lagkv::candidates c = given ? *given : all_candidates(p.policy, l.tokens());
  if (c.rows.end > l.tokens() || c.rows.begin > c.rows.end)
    refuse({"candidates=", c.rows.begin, " to ", c.rows.end, ": must lie within the ", l.tokens(), " rows in use"});
  if (const std::size_t lag = p.policy.budget.lag();
      lag != 0 && (c.rows.size() % lag != 0 || (!c.empty() && c.rows.end + lag > l.tokens())))  // the next partition is read too
    refuse({"candidates=", c.rows.begin, " to ", c.rows.end, ": must be whole partitions of lag=", lag,
            " tokens, with one more behind them within the ", l.tokens(), " rows in use"});
  const std::size_t each = l.heads() * c.rows.size();
  std::vector<float> out(l.batch() * each);
  {
    const nb::gil_scoped_release free;
    started_threads{ws.workers.size()}(l.batch(), [&](std::size_t i, std::size_t w) {
      if (each != 0) std::ranges::copy(lagkv::score(p.policy, l.at(i), c, ws.workers[w]), out.data() + i * each);
    });
  }
  if (l.batched()) {
    const std::size_t shape[] = {l.batch(), l.heads(), c.rows.size()};
    return numpy(std::move(out), shape);
  }
  const std::size_t shape[] = {l.heads(), c.rows.size()};
  return numpy(std::move(out), shape);
}

void accumulate(const policy_object& p, layer_object& l, const lagkv::cursor& at, whole newest, workspace_object& ws) {
  const std::size_t n = newest.get("n");
  const use mine(ws.busy, "workspace"), its(l.busy, "layer");
  l.expect_rows();
  l.expect_sums_writable();
  if (n > l.tokens()) refuse({"n=", n, ": must be at most the ", l.tokens(), " rows in use"});
  for (std::size_t i = 0; i < l.batch(); ++i) expect(lagkv::check(l.at(i)));
  if (p.policy.needs.key_statistics && l.offers(0).key_statistics && p.policy.needs.rope) check_layer(p, l, true);
  const nb::gil_scoped_release free;
  started_threads{ws.workers.size()}(
      l.batch(), [&](std::size_t i, std::size_t w) { lagkv::accumulate(p.policy, l.at(i), at, n, ws.workers[w]); });
}

/// Mean and covariance (or factors) of queries before RoPE, moved to the positions [first, first + future).
nb::tuple moved(nb::handle mean, nb::handle covariance, nb::handle factors, rope_object& r, whole from, whole positions) {
  const std::size_t first = from.get("first"), future = positions.get("future");
  if (future == 0) refuse({"future=0: must be 1 or more"});
  const auto numbers = [](const array& a) {  // in C order
    std::vector<float> out;
    const std::size_t n1 = a.size(1), n2 = a.rank() == 3 ? a.size(2) : 1;
    for (std::size_t i = 0; i < a.size(0); ++i)
      for (std::size_t j = 0; j < n1; ++j)
        for (std::size_t k = 0; k < n2; ++k)
          out.push_back(reinterpret_cast<const float*>(
              a.data())[static_cast<std::ptrdiff_t>(i) * a.stride(0) + static_cast<std::ptrdiff_t>(j) * a.stride(1) +
                        (a.rank() == 3 ? static_cast<std::ptrdiff_t>(k) * a.stride(2) : 0)]);
    return out;
  };
  const array m("mean", mean, 2, 2, float32);
  lagkv::query_statistics s{m.size(0), m.size(1), numbers(m), {}, {}};
  const auto take = [&](const char* name, nb::handle x, bool square) -> std::vector<float> {
    if (x.is_none()) return {};
    const array a(name, x, 3, 3, float32);
    if (a.size(0) != s.heads || a.size(2) != s.channels || (square && a.size(1) != s.channels))
      refuse({name, ": [", a.size(0), ", ", a.size(1), ", ", a.size(2), "]: must be [", s.heads, ", ", square ? "dim" : "n", ", ",
              s.channels, "], as the mean"});
    return numbers(a);
  };
  s.covariance = take("covariance", covariance, true);
  s.factors = take("factors", factors, false);
  expect(lagkv::check(*r.get(), s.channels));
  const lagkv::query_statistics out = lagkv::moved(s, *r.get(), first, future);
  const std::size_t two[] = {out.heads, out.channels}, three[] = {out.heads, out.channels, out.channels},
                    some[] = {out.heads, out.rank(), out.channels};
  return nb::make_tuple(numpy(out.mean, two), out.covariance.empty() ? nb::object(nb::none()) : numpy(out.covariance, three),
                        out.factors.empty() ? nb::object(nb::none()) : numpy(out.factors, some));
}

/// [layer][head]: see lagkv::head_budgets().
std::vector<std::vector<float>> head_budgets(given<std::vector<std::vector<std::vector<float>>>> importance, given<double> share,
                                             given<double> least) {
  const auto of = importance.get("importance", "for each layer, for each head, a list of numbers");
  return expect(lagkv::head_budgets(of, share.get("share", "a number"), least.get("least", "a number")));
}

lagkv::cursor load(nb::bytes bytes) { return expect(lagkv::load_cursor(std::as_bytes(std::span(bytes.c_str(), bytes.size())))); }

nb::bytes save(const lagkv::cursor& c) {
  const lagkv::saved_cursor bytes = lagkv::save(c);
  return nb::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

lagkv::cursor cursor_of(whole in_use, whole gone, whole before) {
  const std::size_t tokens = in_use.get("tokens"), dropped = gone.get("dropped"), compressed = before.get("compressed");
  constexpr std::size_t most = lagkv::detail::most_counted;
  for (const auto& [name, n] : {std::pair("tokens", tokens), std::pair("dropped", dropped)})
    if (n > most) refuse({name, "=", n, ": must be at most ", most});
  if (compressed > tokens) refuse({"compressed=", compressed, ": must be at most tokens=", tokens});
  return {tokens, dropped, compressed};
}

rope_object rope_of(double base, std::string_view pairs, std::size_t dims, std::vector<float> factors, float scale) {
  using pairing = lagkv::rope::pairing;
  if (pairs != "halves" && pairs != "neighbours") refuse({"pairs=", pairs, ": must be halves or neighbours"});
  rope_object r;
  r.rope.base = base, r.rope.pairs = pairs == "halves" ? pairing::halves : pairing::neighbours;
  r.rope.dims = dims, r.rope.position_scale = scale;
  r.factors = std::move(factors);
  // What depends on the keys' channels is checked where they meet.
  const std::size_t channels = dims != 0 ? dims : r.factors.empty() ? 2 : 2 * r.factors.size();
  expect(lagkv::check(*r.get(), channels));
  return r;
}

std::string pairs_of(const rope_object& r) { return r.rope.pairs == lagkv::rope::pairing::halves ? "halves" : "neighbours"; }

using rope_state = std::tuple<double, std::string, std::size_t, std::vector<float>, float>;
using workspace_state = std::pair<std::size_t, std::optional<std::string>>;

}  // namespace

}  // namespace python

NB_MODULE(_core, m) {
  using namespace python;
  nb::set_leak_warnings(false);  // of objects that a program still holds when it ends
  nb::exception<refused>(m, "Error", PyExc_ValueError);
  m.attr("version") =
      std::to_string(LAGKV_VERSION_MAJOR) + "." + std::to_string(LAGKV_VERSION_MINOR) + "." + std::to_string(LAGKV_VERSION_PATCH);
  m.attr("expected_queries") = lagkv::expected_queries;

  nb::enum_<lagkv::gap>(m, "gap").value("kept", lagkv::gap::kept).value("closed", lagkv::gap::closed);
  nb::enum_<lagkv::toward>(m, "toward").value("front", lagkv::toward::front).value("window", lagkv::toward::window);

  nb::class_<lagkv::cursor>(
      m, "Cursor",
      "How far a layer of one sequence has been compressed. A new sequence has a new cursor; copy.copy() it with a forked "
      "sequence,\n"
      "pickle it with a saved one. The entries of a batch share one. docs/cursor.md has the life of a cursor.\n\n"
      "tokens: rows in use after the last compress(). dropped: rows dropped so far. compressed: rows before this one are sinks "
      "or\n"
      "survivors.")
      .def(
          "__init__",
          [](lagkv::cursor* c, whole tokens, whole dropped, whole compressed) {
            new (c) lagkv::cursor(cursor_of(tokens, dropped, compressed));
          },
          "tokens"_a = 0, "dropped"_a = 0, "compressed"_a = 0)
      .def_ro("tokens", &lagkv::cursor::tokens)
      .def_ro("dropped", &lagkv::cursor::dropped)
      .def_ro("compressed", &lagkv::cursor::compressed)
      .def("seen", &lagkv::cursor::seen,
           "Tokens of the sequence up to the last compress(): the position of the next one for RoPE.")
      .def(
          "take_back", [](lagkv::cursor& c, whole rows) { lagkv::take_back(c, rows.get("rows")); }, "rows"_a,
          "The caller has removed rows from the end, so that `rows` of them are left: no further back than `compressed`.")
      .def(
          "take_out",
          [](lagkv::cursor& c, whole begin, whole end, lagkv::gap positions) {
            expect(lagkv::detail::check_take_out(c, begin.get("begin"), end.get("end")));
            lagkv::take_out(c, begin.get("begin"), end.get("end"), positions);
          },
          "begin"_a, "end"_a, "positions"_a, "The caller has removed rows [begin, end) and moved the later ones up.")
      .def("save", &save, "28 bytes, the same on every machine and in C++.")
      .def_static(
          "load", [](given<nb::bytes> b) { return load(b.get("bytes", "the bytes of save()")); }, "bytes"_a,
          "The cursor that was saved. Raises Error if the bytes are none.")
      .def("__getstate__", &save)
      .def("__setstate__", [](lagkv::cursor& c, nb::bytes b) { new (&c) lagkv::cursor(load(b)); })
      .def("__copy__", [](const lagkv::cursor& c) { return c; })
      .def(
          "__deepcopy__", [](const lagkv::cursor& c, nb::handle) { return c; }, "memo"_a)
      .def(
          "__eq__",
          [](const lagkv::cursor& a, nb::handle b) {
            const lagkv::cursor* other = nullptr;
            return nb::try_cast(b, other) && other != nullptr && a == *other;
          },
          nb::arg().none())
      .def("__repr__", [](const lagkv::cursor& c) {
        return lagkv::detail::joined(
            {"lagkv.Cursor(tokens=", c.tokens, ", dropped=", c.dropped, ", compressed=", c.compressed, ")"});
      });
  m.attr("Cursor").attr("__hash__") = nb::none();

  nb::class_<lagkv::candidates>(m, "Candidates",
                                "The rows [begin, end) that may be dropped now; each head keeps `keep` of them, or with a "
                                "`partition` (tokens) `keep_each` of\n"
                                "each. len() 0: nothing is due.")
      .def_prop_ro("begin", [](const lagkv::candidates& c) { return c.rows.begin; })
      .def_prop_ro("end", [](const lagkv::candidates& c) { return c.rows.end; })
      .def_ro("keep", &lagkv::candidates::keep)
      .def_ro("partition", &lagkv::candidates::partition)
      .def_ro("keep_each", &lagkv::candidates::keep_each)
      .def("__len__", [](const lagkv::candidates& c) { return c.rows.size(); })
      .def("__repr__", [](const lagkv::candidates& c) {
        return lagkv::detail::joined({"lagkv.Candidates(begin=", c.rows.begin, ", end=", c.rows.end, ", keep=", c.keep,
                                      ", partition=", c.partition, ", keep_each=", c.keep_each, ")"});
      });

  nb::class_<policy_object>(
      m, "Policy",
      "Which tokens stay; parse() and make_policy() make one. It can be pickled and shared among threads.\n\n"
      "text: as given. needs: what it reads beside keys. ragged: heads may keep different numbers of rows. sloped: layers may.\n"
      "again: survivors are candidates again. sink, lag: tokens. by_partition: each partition keeps a share.")
      .def(
          "__init__", [](policy_object* p, given<std::string> text) { new (p) policy_object(text.get("policy", "a string")); },
          "text"_a)
      .def_ro("text", &policy_object::text)
      .def_prop_ro("needs", &needs_of)
      .def_prop_ro("ragged", [](const policy_object& p) { return p.policy.ragged; })
      .def_prop_ro("sloped", [](const policy_object& p) { return p.policy.budget.slope.sloped(); })
      .def_prop_ro("again", [](const policy_object& p) { return p.policy.budget.again(); })
      .def_prop_ro("sink", [](const policy_object& p) { return p.policy.budget.sink; })
      .def_prop_ro("lag", [](const policy_object& p) { return p.policy.budget.lag(); })
      .def_prop_ro("by_partition",
                   [](const policy_object& p) { return p.policy.budget.as<lagkv::keep::partitions>() != nullptr; })
      .def_prop_ro("has_scores", [](const policy_object& p) { return static_cast<bool>(p.policy.score); })
      .def("for_layer", &policy_object::for_layer, "layer"_a, "layers"_a,
           "The policy for one layer (from 0) of so many: if its budgets fall from layer to layer (pyramid), this one's.")
      .def("for_head", &policy_object::for_head, "multiple"_a,
           "The policy for one head whose rows lie by themselves, with this multiple of its budget (an entry of head_budgets), "
           "and\n"
           "without select=by_head. multiple: 0 or more; another raises lagkv.Error.")
      .def(
          "fit", &policy_object::fit, "layer"_a, "layers"_a,
          "The policy with a budget in bytes (budget_mb) made one of rows, for `layers` layers like `layer`; others as they are.")
      .def(
          "peak_rows",
          [](const policy_object& p, whole chunk, whole tokens) {
            return lagkv::peak_rows(p.policy, chunk.get("chunk"), tokens.get("tokens"));
          },
          "chunk"_a, "tokens"_a, "The most rows that a layer has in use at once: see peak_rows().")
      .def(
          "due",
          [](const policy_object& p, const lagkv::cursor& at, whole tokens) {
            return p.policy.budget.due(at, tokens.get("tokens"));
          },
          "cursor"_a, "tokens"_a, "What may be dropped now, of so many rows in use; nothing most of the time.")
      .def(
          "all_candidates", [](const policy_object& p, whole tokens) { return all_candidates(p.policy, tokens.get("tokens")); },
          "tokens"_a,
          "What may be dropped of a new sequence of so many tokens; were nothing due, what would be if the budget were nearly 0.")
      .def("__getstate__", &policy_object::get)
      .def("__setstate__",
           [](policy_object& p, const policy_object::state& s) { new (&p) policy_object(policy_object::from(s)); })
      .def("__repr__", [](const policy_object& p) { return "lagkv.parse('" + p.text + "')"; });

  nb::class_<rope_object>(
      m, "Rope",
      "The rotary embedding that keys carry: pair j turns by base^(-2j / dims) / factors[j] * position_scale radians a "
      "position.\n\n"
      "base: theta, above 0. pairs: 'halves' (channels j and j + dims / 2: Hugging Face, NeoX) or 'neighbours' (2j, 2j + 1); no\n"
      "default, for nothing notices a wrong one. dims: rotated channels, the first ones, even; 0: all. factors: divisors of the\n"
      "frequencies, one a pair (Llama 3, YaRN). position_scale: 0.25 stretches the context to 4 times its length.")
      .def(
          "__init__",
          [](rope_object* self, given<double> base, given<std::string> pairs, whole dims, given<std::vector<float>> factors,
             given<float> scale) {
            new (self)
                rope_object(rope_of(base.get("base", "a number"), pairs.get("pairs", "halves or neighbours"), dims.get("dims"),
                                    factors.get("factors", "numbers, one a pair"), scale.get("position_scale", "a number")));
          },
          "base"_a = 10000.0, nb::kw_only(), "pairs"_a, "dims"_a = 0, "factors"_a = std::vector<float>{},
          "position_scale"_a = 1.0F)
      .def_prop_ro("base", [](const rope_object& r) { return r.rope.base; })
      .def_prop_ro("pairs", &pairs_of)
      .def_prop_ro("dims", [](const rope_object& r) { return r.rope.dims; })
      .def_ro("factors", &rope_object::factors)
      .def_prop_ro("position_scale", [](const rope_object& r) { return r.rope.position_scale; })
      .def("__getstate__",
           [](const rope_object& r) -> rope_state {
             return {r.rope.base, pairs_of(r), r.rope.dims, r.factors, r.rope.position_scale};
           })
      .def("__setstate__", [](rope_object& r, const rope_state& s) {
        const auto& [base, pairs, dims, factors, scale] = s;
        new (&r) rope_object(rope_of(base, pairs, dims, factors, scale));
      });

  nb::class_<workspace_object>(
      m, "Workspace",
      "Scratch that only grows, for one call at a time; share it among layers and sequences. A copy, or one from a pickle, has "
      "the\n"
      "same threads and target, and scratch of its own.\n\n"
      "threads: 1 to 1024; started for each call that has work for them. target: an instruction set (sse2, avx2, avx512, neon);\n"
      "default: the widest of this machine.")
      .def(
          "__init__",
          [](workspace_object* w, whole threads, std::optional<given<std::string>> target) {
            std::optional<std::string> name;
            if (target) name = target->get("target", "the name of an instruction set");
            new (w) workspace_object(threads.get("threads"), std::move(name));
          },
          "threads"_a = 1, "target"_a = nb::none())
      .def("__getstate__",
           [](const workspace_object& w) -> workspace_state {
             return {w.workers.size(), w.target};
           })
      .def("__setstate__", [](workspace_object& w, const workspace_state& s) { new (&w) workspace_object(s.first, s.second); })
      .def_prop_ro("threads", [](const workspace_object& w) { return w.workers.size(); })
      .def_prop_ro("target", [](const workspace_object& w) { return lagkv::simd::name(w.workers[0].target()); })
      .def(
          "last_plan",
          [](workspace_object& w) {
            const use mine(w.busy, "workspace");
            return lagkv::last_plan(w.workers[0]);
          },
          "The plan of the last compress() or plan_eviction() with this workspace; of several layers, or of a batch, that of the "
          "last.\n"
          "False if nothing was due.");

  nb::class_<lagkv::plan>(m, "Plan",
                          "Which rows of a layer stay; false if none is a candidate.\n\n"
                          "candidates: (begin, end), the rows it speaks of, before compaction. tokens_before: rows in use then.")
      .def_prop_ro("candidates", [](const lagkv::plan& p) { return std::pair(p.candidates.begin, p.candidates.end); })
      .def_ro("tokens_before", &lagkv::plan::tokens_before)
      .def_prop_ro("heads", &lagkv::plan::heads)
      .def(
          "of",
          [](const lagkv::plan& p, whole of) {
            const std::size_t head = of.get("head");
            expect_head(p, head);
            std::vector<std::int64_t> rows(p.of(head).begin(), p.of(head).end());
            const std::size_t shape[] = {rows.size()};
            return numpy(std::move(rows), shape);
          },
          "head"_a, "The candidates that a head keeps, ascending, int64.")
      .def(
          "tokens_after",
          [](const lagkv::plan& p, whole of) {
            const std::size_t head = of.get("head");
            if (!p.empty()) expect_head(p, head);
            return p.tokens_after(head);
          },
          "head"_a = 0, "Rows of a head after compaction.")
      .def(
          "source",
          [](const lagkv::plan& p, whole of, whole at) {
            const std::size_t head = of.get("head"), row = at.get("row");
            if (!p.empty()) expect_head(p, head);
            if (row >= p.tokens_after(head))
              refuse({"row=", row, ": must be below the ", p.tokens_after(head), " rows after the plan"});
            return p.source(head, row);
          },
          "head"_a, "row"_a, "The row that lies at `row` after compaction to the front.")
      .def("rows", &rows_of, "head"_a = 0,
           "All rows of a head that stay, sinks and window too, ascending, int64: an index for gather.")
      .def("__bool__", [](const lagkv::plan& p) { return !p.empty(); })
      .def("__repr__", [](const lagkv::plan& p) {
        return lagkv::detail::joined(
            {"<lagkv.Plan of ", p.heads(), " heads: ", p.tokens_before, " rows, then ", p.tokens_after(), ">"});
      });

  nb::class_<layer_object>(
      m, "Layer",
      "One layer of a cache: views of arrays, which it keeps alive, and what is offered beside them. Make it once and set "
      "`tokens`,\n"
      "or give compress() the arrays each time.\n\n"
      "keys, values: [heads, tokens, dim] or [batch, heads, tokens, dim], float32, float16 or bfloat16, any strides; they may\n"
      "differ in dim and type. values may be None. tokens: rows in use, the first ones; default: all.\n\n"
      "Offers, all optional; with a batch each array has the batch as its first dimension. docs/offers.md says more.\n"
      "  queries                [query heads, n, dim]: of the last n tokens, oldest first, after RoPE\n"
      "  weights                [query heads, n, at least tokens]: attention weights in their place\n"
      "  query_count            n, if fewer rows are in use than the array has\n"
      "  accumulated_attention  float32 [heads, at least tokens]: attention each row has received, 0 for a new row\n"
      "  key_statistics         float64 [heads, 2 dim + 1]: of all keys of the sequence, 0 at its start\n"
      "  query_mean             float32 [query heads, dim]; query_covariance [query heads, dim, dim], or query_factors\n"
      "                         [query heads, n, dim]: statistics of queries to come, made by moved()\n"
      "  importance             float32 [heads, dim of keys + dim of values + 1]: the map that kvzap reads\n"
      "  head_budgets           of each head a multiple of the policy's budget, 0 or more, for select=by_head\n"
      "  positions              int32 or uint32 [heads, at least tokens], or [1, ...] if all heads keep the same tokens\n"
      "  rope                   Rope: that the keys carry\n"
      "  protect                positions that are never dropped, ascending, each once\n"
      "  scale                  of q.k before the softmax; 0: 1 / sqrt(dim)\n\n"
      "Raises Error for shapes, types, devices and strides that cannot be, TypeError for what is no array.")
      .def(
          "__init__",
          [](layer_object* self, nb::handle keys, nb::handle values, std::optional<whole> tokens, nb::kwargs offers) {
            auto* l = new (self) layer_object(keys, values, tokens ? tokens->get("tokens") : 0, !tokens);
            try {
              l->offer(nb::borrow<nb::dict>(offers));
            } catch (...) {
              l->~layer_object();
              throw;
            }
          },
          "keys"_a, "values"_a.none() = nb::none(), "tokens"_a = nb::none(), "offers"_a)
      .def(
          "offer", [](layer_object& l, nb::kwargs offers) { l.offer(nb::borrow<nb::dict>(offers)); },
          "Takes the offers named, in place of those before; None takes one back.")
      .def_prop_rw("tokens", &layer_object::tokens,
                   [](layer_object& l, whole n) {
                     const use mine(l.busy, "layer");
                     l.set_tokens(n.get("tokens"));
                   })
      .def_prop_ro("heads", &layer_object::heads)
      .def_prop_ro("channels", &layer_object::channels)
      .def_prop_ro("capacity", &layer_object::capacity)
      .def_prop_ro("batch", [](const layer_object& l) { return l.batched() ? std::optional(l.batch()) : std::nullopt; });

  m.def("check", &check_layer, "policy"_a, "layer"_a, "any_length"_a);
  m.def("compress", &compress_layers, "policy"_a, "layers"_a, "cursors"_a, "workspace"_a, "direction"_a, "equal_counts"_a);
  m.def("plan_eviction", &plans_of, "policy"_a, "layer"_a, "cursor"_a, "workspace"_a);
  m.def("score", &scores_of, "policy"_a, "layer"_a, "candidates"_a.none(), "workspace"_a);
  m.def("accumulate", &accumulate, "policy"_a, "layer"_a, "cursor"_a, "n"_a, "workspace"_a);
  m.def(
      "advance",
      [](lagkv::cursor& at, const lagkv::plan& p, std::optional<whole> of) {
        const std::optional<std::size_t> head = of ? std::optional(of->get("head")) : std::nullopt;
        if (head && !p.empty()) expect_head(p, *head);
        if (p.tokens_before < at.tokens)
          refuse({"plan: is of ", p.tokens_before, " rows: must be at least the ", at.tokens, " that the cursor counts"});
        if (head)
          lagkv::advance(at, p, *head);
        else
          lagkv::advance(at, p);
      },
      "cursor"_a, "plan"_a, "head"_a = nb::none());
  m.def("compact", &compact_array, "array"_a, "plan"_a, "direction"_a);
  m.def("rerotate", &rerotate_keys, "keys"_a, "plan"_a, "rope"_a, "workspace"_a);
  m.def("moved", &moved, "mean"_a, "covariance"_a.none(), "factors"_a.none(), "rope"_a, "first"_a, "future"_a);
  m.def("head_budgets", &head_budgets, "importance"_a, "share"_a, "least"_a);
  m.def("methods", &methods_of);
  m.def("shared_options", [] { return options_of(lagkv::shared_options); });
  m.def("fusion_options", [] {
    nb::list out;
    for (const lagkv::fusion_parameter& f : lagkv::fusion_parameters)
      out.append(nb::make_tuple(f.key, f.initial == "..." ? nb::object(nb::none()) : nb::cast(std::string(f.initial)),
                                lagkv::text(f.accepts), f.meaning));
    return out;
  });
}
