#include "layer.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>

namespace python {

layer_object::layer_object(nb::handle keys, nb::handle values, std::size_t tokens, bool all_tokens)
    : keys_("keys", keys, 3, 4, halves_and_floats) {
  const int rank = keys_.rank();
  if (!values.is_none()) {
    values_ = array("values", values, 3, 4, halves_and_floats);
    if (values_.rank() != rank) refuse({"values: ndim=", values_.rank(), ": must be the ", rank, " of the keys"});
    if (rank == 4 && values_.size(0) != keys_.size(0))
      refuse({"values: batch=", values_.size(0), ": must be the ", keys_.size(0), " of the keys"});
  }
  const std::size_t n = rank == 4 ? keys_.size(0) : 1;
  if (n == 0) refuse({"keys: batch=0: must be 1 or more"});
  offers_.of.resize(n);
  layers_.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    layers_[i].keys = (rank == 4 ? keys_.entry(i) : keys_).view();
    if (values_) layers_[i].values = (rank == 4 ? values_.entry(i) : values_).view();
    layers_[i].extra = &offers_.of[i];
  }
  set_tokens(all_tokens ? capacity() : tokens);
}

std::size_t layer_object::capacity() const {
  const std::size_t k = layers_[0].keys.capacity(), v = values_ ? layers_[0].values.capacity() : k;
  return k < v ? k : v;
}

void layer_object::set_tokens(std::size_t n) {
  if (n > capacity()) refuse({"tokens=", n, ": must be at most the ", capacity(), " of the arrays"});
  tokens_ = n;
  for (lagkv::layer& l : layers_) l.tokens = n;
}

array layer_object::offered(const char* name, nb::handle x, int rank, unsigned types) const {
  if (x.is_none()) return {};
  const int with_batch = rank + (batched() ? 1 : 0);
  array a(name, x, with_batch, with_batch, types);
  if (batched() && a.size(0) != batch()) refuse({name, ": batch=", a.size(0), ": must be the ", batch(), " of the keys"});
  return a;
}

namespace {

/// [heads, channels] as [heads, 1, channels].
lagkv::tensor one_row(const array& x) {
  return lagkv::strided<float>(reinterpret_cast<float*>(x.data()), {x.size(0), x.size(1)}, {x.stride(0), 0, x.stride(1)}, 1);
}

/// [heads, n], or with a batch before.
void expect_heads(const array& x, const lagkv::layer& l, bool one_is_enough = false) {
  if (!x) return;
  const std::size_t heads = x.size(x.rank() - 2);
  if (heads == l.keys.heads() || (one_is_enough && heads == 1)) return;
  refuse({x.name(), ": heads=", heads, ": must be the ", l.keys.heads(), " of the keys", one_is_enough ? ", or 1" : ""});
}

void expect_statistics(const array& x, const lagkv::layer& l) {
  if (!x) return;
  const std::size_t width = lagkv::key_statistics::size(l.keys.channels()), n = x.size(x.rank() - 1);
  if (n != width) refuse({x.name(), ": ", n, " numbers a head: must be ", width, " (2 dim + 1)"});
  const std::ptrdiff_t stride = x.stride(x.rank() - 2);
  if (x.size(x.rank() - 2) > 1 && stride != static_cast<std::ptrdiff_t>(width))
    refuse({x.name(), ": stride ", stride, " from head to head: must be ", width});
}

void expect_tokens(const array& x, std::size_t tokens) {
  if (x && x.size(x.rank() - 1) < tokens)
    refuse({x.name(), ": tokens=", x.size(x.rank() - 1), ": must be at least the ", tokens, " rows in use"});
}

/// A number, or numbers, of Python's; None is zero, or none.
template <class T>
T number(const char* name, nb::handle x, const char* must) {
  return x.is_none() ? T{} : given<T>{x}.get(name, must);
}

}  // namespace

void layer_object::offer(nb::dict offers) {
  const use mine(busy, "layer");
  offered_set all = offers_;
  for (auto [key, x] : offers) add(all, nb::cast<std::string>(key), x);
  for (std::size_t i = 0; i < batch(); ++i) {
    all.of[i].protect = all.protect;
    all.of[i].head_budgets = all.head_budgets;
    all.of[i].rope = all.rope ? all.rope->get() : nullptr;
  }
  offers_ = std::move(all);  // its elements stay where they are
  for (std::size_t i = 0; i < batch(); ++i) layers_[i].extra = &offers_.of[i];
}

void layer_object::add(offered_set& to, const std::string& name, nb::handle x) const {
  const auto for_each_entry = [&](const array& a, const auto& set) {
    for (std::size_t i = 0; i < batch(); ++i) set(to.of[i], batched() && a ? a.entry(i) : a);
  };
  const auto view = [](const array& a) { return a ? a.view() : lagkv::tensor{}; };
  const auto take_rows = [&](array& slot, lagkv::tensor lagkv::extras::*at, const char* what, int rank, unsigned types) {
    slot = offered(what, x, rank, types);
    for_each_entry(slot, [&](lagkv::extras& e, const array& a) {
      e.*at = rank == 3 ? view(a) : a ? one_row(a) : lagkv::tensor{};
    });
  };
  const auto take_numbers = [&](array& slot, const char* what, unsigned types, bool one_for_all_heads, const auto& set) {
    slot = offered(what, x, 2, types);
    slot.expect_dense_rows();
    expect_heads(slot, layers_[0], one_for_all_heads);
    for_each_entry(slot, set);
  };
  if (name == "queries") {
    take_rows(to.queries, &lagkv::extras::queries, "queries", 3, halves_and_floats);
  } else if (name == "weights") {
    take_rows(to.weights, &lagkv::extras::weights, "weights", 3, halves_and_floats);
  } else if (name == "query_mean") {
    take_rows(to.query_mean, &lagkv::extras::query_mean, "query_mean", 2, float32);
  } else if (name == "query_covariance") {
    take_rows(to.query_covariance, &lagkv::extras::query_covariance, "query_covariance", 3, float32);
  } else if (name == "query_factors") {
    take_rows(to.query_factors, &lagkv::extras::query_factors, "query_factors", 3, float32);
  } else if (name == "importance") {
    take_rows(to.importance, &lagkv::extras::importance, "importance", 2, float32);
  } else if (name == "query_count") {
    const auto n = number<std::size_t>("query_count", x, a_whole_number.c_str());
    for (lagkv::extras& e : to.of) e.query_count = n;
  } else if (name == "accumulated_attention") {
    take_numbers(to.accumulated_attention, "accumulated_attention", float32, false,
                 [](lagkv::extras& e, const array& a) { e.accumulated_attention = a.side<float>(); });
  } else if (name == "positions") {
    take_numbers(to.positions, "positions", int32, true,
                 [](lagkv::extras& e, const array& a) { e.positions = a.side<std::uint32_t>(); });
  } else if (name == "key_statistics") {
    take_numbers(to.key_statistics, "key_statistics", float64, false,
                 [](lagkv::extras& e, const array& a) { e.key_statistics = {reinterpret_cast<double*>(a.data())}; });
    expect_statistics(to.key_statistics, layers_[0]);
  } else if (name == "rope") {
    if (!x.is_none() && !nb::isinstance<rope_object>(x)) refuse_type("rope", x, "a lagkv.Rope");
    to.rope = x.is_none() ? nullptr : std::make_shared<rope_object>(nb::cast<const rope_object&>(x));
  } else if (name == "protect") {
    to.protect = number<std::vector<std::uint32_t>>("protect", x, "positions, whole numbers from 0 to 4294967295");
  } else if (name == "head_budgets") {
    to.head_budgets = number<std::vector<float>>("head_budgets", x, "a number of each head, 0 or more");
  } else if (name == "scale") {
    const auto scale = number<float>("scale", x, "a number");
    for (lagkv::extras& e : to.of) e.scale = scale;
  } else {
    throw nb::type_error(
        lagkv::detail::joined({"unknown offer '", name,
                               "': must be one of queries, weights, query_count, accumulated_attention, key_statistics, "
                               "query_mean, query_covariance, query_factors, importance, positions, rope, protect, "
                               "head_budgets, scale"})
            .c_str());
  }
}

void layer_object::expect_rows() const {
  for (const array* x : {&offers_.accumulated_attention, &offers_.positions}) expect_tokens(*x, tokens_);
}

void layer_object::expect_writable() const {
  for (const array* x : {&keys_, &values_, &offers_.accumulated_attention, &offers_.positions}) x->expect_writable(batched());
}

void layer_object::expect_sums_writable() const {
  for (const array* x : {&offers_.accumulated_attention, &offers_.key_statistics}) x->expect_writable(batched());
}

}  // namespace python
