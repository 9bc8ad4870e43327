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
  extras_.resize(n);
  layers_.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    layers_[i].keys = (rank == 4 ? keys_.entry(i) : keys_).view();
    if (values_) layers_[i].values = (rank == 4 ? values_.entry(i) : values_).view();
    layers_[i].extra = &extras_[i];
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

template <class Set>
void layer_object::for_each_entry(const array& x, const Set& set) {
  for (std::size_t i = 0; i < batch(); ++i) set(extras_[i], batched() && x ? x.entry(i) : x);
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

}  // namespace

void layer_object::offer(nb::dict offers) {
  const use mine(busy, "layer");
  const auto view = [](const array& x) { return x ? x.view() : lagkv::tensor{}; };
  for (auto [key, x] : offers) {
    const std::string name = nb::cast<std::string>(key);
    // What is refused leaves the offer before it in place: a slot changes after all checks.
    if (name == "queries") {
      queries_ = offered("queries", x, 3, halves_and_floats);
      for_each_entry(queries_, [&](lagkv::extras& e, const array& a) { e.queries = view(a); });
    } else if (name == "weights") {
      weights_ = offered("weights", x, 3, halves_and_floats);
      for_each_entry(weights_, [&](lagkv::extras& e, const array& a) { e.weights = view(a); });
    } else if (name == "query_count") {
      const auto n = x.is_none() ? 0 : nb::cast<std::size_t>(x);
      for (lagkv::extras& e : extras_) e.query_count = n;
    } else if (name == "accumulated_attention") {
      const array a = offered("accumulated_attention", x, 2, float32);
      a.expect_dense_rows();
      expect_heads(a, layers_[0]);
      accumulated_attention_ = a;
      for_each_entry(a, [](lagkv::extras& e, const array& one) { e.accumulated_attention = one.side<float>(); });
    } else if (name == "positions") {
      const array a = offered("positions", x, 2, int32);
      a.expect_dense_rows();
      expect_heads(a, layers_[0], true);
      positions_ = a;
      for_each_entry(a, [](lagkv::extras& e, const array& one) { e.positions = one.side<std::uint32_t>(); });
    } else if (name == "key_statistics") {
      const array a = offered("key_statistics", x, 2, float64);
      a.expect_dense_rows();
      expect_heads(a, layers_[0]);
      expect_statistics(a, layers_[0]);
      key_statistics_ = a;
      for_each_entry(a, [](lagkv::extras& e, const array& one) { e.key_statistics = {reinterpret_cast<double*>(one.data())}; });
    } else if (name == "query_mean") {
      query_mean_ = offered("query_mean", x, 2, float32);
      for_each_entry(query_mean_, [&](lagkv::extras& e, const array& a) { e.query_mean = a ? one_row(a) : lagkv::tensor{}; });
    } else if (name == "query_covariance") {
      query_covariance_ = offered("query_covariance", x, 3, float32);
      for_each_entry(query_covariance_, [&](lagkv::extras& e, const array& a) { e.query_covariance = view(a); });
    } else if (name == "query_factors") {
      query_factors_ = offered("query_factors", x, 3, float32);
      for_each_entry(query_factors_, [&](lagkv::extras& e, const array& a) { e.query_factors = view(a); });
    } else if (name == "importance") {
      importance_ = offered("importance", x, 2, float32);
      for_each_entry(importance_, [&](lagkv::extras& e, const array& a) { e.importance = a ? one_row(a) : lagkv::tensor{}; });
    } else if (name == "rope") {
      if (x.is_none())
        rope_.reset();
      else
        rope_ = std::make_unique<rope_object>(nb::cast<const rope_object&>(x));
      for (lagkv::extras& e : extras_) e.rope = rope_ ? rope_->get() : nullptr;
    } else if (name == "protect") {
      protect_ = x.is_none() ? std::vector<std::uint32_t>{} : nb::cast<std::vector<std::uint32_t>>(x);
      for (lagkv::extras& e : extras_) e.protect = protect_;
    } else if (name == "scale") {
      const auto scale = x.is_none() ? 0.0F : nb::cast<float>(x);
      for (lagkv::extras& e : extras_) e.scale = scale;
    } else {
      throw nb::type_error(
          lagkv::detail::joined({"unknown offer '", name,
                                 "': must be one of queries, weights, query_count, accumulated_attention, "
                                 "key_statistics, query_mean, query_covariance, query_factors, importance, positions, "
                                 "rope, protect, scale"})
              .c_str());
    }
  }
}

void layer_object::expect_rows() const {
  for (const array* x : {&accumulated_attention_, &positions_}) expect_tokens(*x, tokens_);
}

void layer_object::expect_writable() const {
  for (const array* x : {&keys_, &values_, &accumulated_attention_, &positions_}) x->expect_writable();
}

void layer_object::expect_sums_writable() const {
  for (const array* x : {&accumulated_attention_, &key_statistics_}) x->expect_writable();
}

}  // namespace python
