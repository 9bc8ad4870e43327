#include "job.hpp"

#include <filesystem>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string_view>
#include <system_error>
#include <utility>

#include <lagkv/methods_with_eigen.hpp>

#include "arguments.hpp"

namespace tool {

namespace {

std::string text(const npy::array& a) {
  std::string s = "[";
  for (std::size_t n : a.shape) s.append(s.size() > 1 ? ", " : "").append(std::to_string(n));
  return s + "]";
}

constexpr std::size_t any = 0;

/// An array of that shape, where `any` is any number but 0; `shape_text` says it in words.
lagkv::result<npy::array> load(const std::string& path, std::initializer_list<std::size_t> shape, const std::string& shape_text) {
  lagkv::result<npy::array> a = npy::load(path);
  if (!a) return a;
  if (a->type != "<f4" && a->type != "<f2") return lagkv::error{path + ": type " + a->type + ": must be float32 or float16"};
  bool fits = a->shape.size() == shape.size() && a->size() != 0;
  std::size_t i = 0;
  for (std::size_t n : shape) fits = fits && (n == any || a->shape[i] == n), ++i;
  if (!fits) return lagkv::error{path + ": shape " + text(*a) + ": must be " + shape_text};
  return a;
}

lagkv::status load_cache(const options& o, job& j) {
  for (auto [path, array] : {std::pair{&o.keys, &j.keys}, std::pair{&o.values, &j.values}}) {
    lagkv::result<npy::array> loaded = load(*path, {any, any, any}, "[heads, tokens, dim], each 1 or more");
    if (!loaded) return lagkv::error{loaded.message()};
    *array = std::move(*loaded);
  }
  j.heads = j.keys.shape[0], j.tokens = j.keys.shape[1];
  if (j.values.shape[0] != j.heads || j.values.shape[1] != j.tokens)
    return lagkv::error{"keys " + text(j.keys) + ", values " + text(j.values) + ": must have the same heads and tokens"};
  if (j.tokens > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    return lagkv::error{"tokens=" + std::to_string(j.tokens) + ": must be below 2147483648"};
  j.positions.resize(j.tokens);
  std::iota(j.positions.begin(), j.positions.end(), 0U);
  return {};
}

lagkv::layer layer_of(job& j, const lagkv::extras& extras) { return {npy::view(j.keys), npy::view(j.values), j.tokens, &extras}; }

/// Refuses a folder in which a result would take the place of an input.
lagkv::status check_out(const options& o) {
  for (const char* name : {"kept.npy", "kept_mask.npy", "keys.npy", "values.npy", "lengths.npy", "scores.npy"})
    for (const auto& [option, input] :
         {std::pair{"--keys", &o.keys}, std::pair{"--values", &o.values}, std::pair{"--queries", &o.queries},
          std::pair{"--query-mean", &o.query_mean}, std::pair{"--query-covariance", &o.query_covariance},
          std::pair{"--rope-factors", &o.rope_factors}}) {
      std::error_code failure;  // of a file that is not there: nothing to lose
      const std::filesystem::path result = std::filesystem::path(o.out) / name;
      if (!input->empty() && std::filesystem::equivalent(result, *input, failure))
        return lagkv::error{"--out " + o.out + ": " + name + " there is the input " + option + ": name another folder"};
    }
  return {};
}

/// Queries and their statistics; each is checked as it comes, so that a message names its file.
lagkv::status load_queries(const options& o, job& j) {
  const std::size_t dim = j.keys.shape[2];
  const std::string tokens_text = std::to_string(j.tokens), dim_text = std::to_string(dim);
  const auto add = [&j](const std::string& path, npy::array& array, std::initializer_list<std::size_t> shape,
                        const std::string& shape_text) -> lagkv::status {
    if (path.empty()) return {};
    lagkv::result<npy::array> loaded = load(path, shape, shape_text);
    if (!loaded) return lagkv::error{loaded.message()};
    array = std::move(*loaded);
    if (array.shape.size() == 2) array.shape.insert(array.shape.begin() + 1, 1);
    const lagkv::extras extras = extras_of(j);
    if (lagkv::status s = lagkv::check(layer_of(j, extras)); !s) return lagkv::error{path + ": " + s.message()};
    return {};
  };
  if (lagkv::status s = add(o.queries, j.queries, {any, j.tokens, dim},
                            "[query_heads, " + tokens_text + ", " + dim_text + "], a query for each token");
      !s)
    return s;
  if (lagkv::status s = add(o.query_mean, j.query_mean, {any, dim}, "[query_heads, " + dim_text + "]"); !s) return s;
  return add(o.query_covariance, j.query_covariance, {any, dim, dim}, "[query_heads, " + dim_text + ", " + dim_text + "]");
}

lagkv::status load_rope(const options& o, job& j) {
  if (!o.rope_base) return {};
  const lagkv::result<lagkv::rope::pairing> pairs = parse_pairs(o.rope_pairs);
  if (!pairs) return lagkv::error{pairs.message()};
  const std::size_t dim = j.keys.shape[2];
  j.rope = lagkv::rope{.base = *o.rope_base, .pairs = *pairs, .dims = o.rope_dims, .position_scale = o.rope_scale};
  if (!o.rope_factors.empty()) {
    const std::size_t n = j.rope->rotated(dim) / 2;
    lagkv::result<npy::array> loaded = load(o.rope_factors, {n}, "[" + std::to_string(n) + "], one a pair");
    if (!loaded) return lagkv::error{loaded.message()};
    if (loaded->type != "<f4") return lagkv::error{o.rope_factors + ": type " + loaded->type + ": must be float32"};
    j.rope_factors = std::move(*loaded);
    j.rope->factors = j.rope_factors.as<float>();
  }
  if (lagkv::status s = lagkv::check(*j.rope, dim); !s) return lagkv::error{"rope: " + s.message()};
  return {};
}

/// Which options bring what the policy lacks.
std::string hint(const job& j) {
  const lagkv::needs& n = j.policy.needs;
  if (n.rope && !j.rope) return ": give --rope-base, or pre_rope=no for keys as they are";
  if (n.calibrated && j.query_mean.data.empty()) return ": give --query-mean and --query-covariance";
  if (!j.queries.data.empty()) return "";
  if (n.queries > 0 || n.accumulated_attention) return ": give --queries";
  return n.query_statistics && j.query_mean.data.empty() ? ": give --query-mean and --query-covariance, or --queries" : "";
}

lagkv::status check_policy(const options& o, job& j) {
  const auto fail = [&](const std::string& why) { return lagkv::error{j.method + ": " + why}; };
  layer_of_model which;
  if (!o.layer.empty()) {
    const lagkv::result<layer_of_model> parsed = parse_layer(o.layer);
    if (!parsed) return lagkv::error{parsed.message()};
    which = *parsed;
  }
  const lagkv::extras extras = extras_of(j);
  const lagkv::layer layer = layer_of(j, extras);
  const lagkv::result<lagkv::policy> fitted = lagkv::fit(j.policy, layer, which.count);
  if (!fitted) return fail(fitted.message());
  j.policy = lagkv::for_layer(*fitted, which.index, which.count);
  if (lagkv::status s = lagkv::check(j.policy, layer, true); !s) return fail(s.message() + hint(j));
  if (o.scores && !j.policy.score) return lagkv::error{"scores: " + j.method + " has none"};
  if (j.policy.ragged && !o.steps.empty())
    return lagkv::error{
        "steps: with select=adaptive heads have different lengths after the first compression, so no array can take the next "
        "step: leave --steps out"};
  return {};
}

}  // namespace

lagkv::extras extras_of(job& j) {
  lagkv::extras e;
  const auto offer = [](npy::array& a, lagkv::tensor& to) {
    if (!a.data.empty()) to = npy::view(a);
  };
  offer(j.queries, e.queries);
  offer(j.query_mean, e.query_mean);
  offer(j.query_covariance, e.query_covariance);
  e.positions = {j.positions.data(), 0};
  if (j.rope) e.rope = &*j.rope;
  e.protect = j.protect;
  return e;
}

lagkv::result<job> prepare(const options& o) {
  job j;
  const lagkv::result<lagkv::policy> policy = lagkv::parse(o.policy, lagkv::methods_with_eigen());
  if (!policy) return lagkv::error{policy.message()};
  j.policy = *policy;
  j.method = o.policy.substr(0, o.policy.find(':'));
  if (!o.target.empty()) {
    const lagkv::result<lagkv::simd::target> target = parse_target(o.target);
    if (!target) return lagkv::error{target.message()};
    j.target = *target;
  }
  if (lagkv::status s = check_out(o); !s) return lagkv::error{s.message()};
  if (lagkv::status s = load_cache(o, j); !s) return lagkv::error{s.message()};
  if (!o.steps.empty()) {
    lagkv::result<std::vector<std::size_t>> steps = parse_steps(o.steps, j.tokens);
    if (!steps) return lagkv::error{steps.message()};
    j.steps = std::move(*steps);
  }
  if (!o.protect.empty()) {
    lagkv::result<std::vector<std::uint32_t>> protect = parse_positions(o.protect, j.tokens);
    if (!protect) return lagkv::error{protect.message()};
    j.protect = std::move(*protect);
  }
  if (lagkv::status s = load_queries(o, j); !s) return lagkv::error{s.message()};
  if (lagkv::status s = load_rope(o, j); !s) return lagkv::error{s.message()};
  if (lagkv::status s = check_policy(o, j); !s) return lagkv::error{s.message()};
  return j;
}

}  // namespace tool
