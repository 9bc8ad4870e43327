// lagkv-npy: compresses keys and values stored as .npy files, so that any program that writes NumPy arrays can check
// itself against lagkv. docs/numpy.md shows it at work.
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <lagkv/lagkv.hpp>

#include "npy.hpp"

namespace {

struct options {
  std::string policy, keys, values, steps, target, out;
  bool scores = false, list = false;
};

/// All that is read, checked and ready to be compressed.
struct job {
  lagkv::policy policy;
  npy::array keys, values;
  std::vector<std::size_t> steps;
  lagkv::simd::target target = lagkv::simd::best();
  std::size_t heads = 0, tokens = 0;
};

/// What is left: keys and values by head, without gaps, and where each row came from.
struct outcome {
  std::size_t rows = 0;
  std::vector<std::int32_t> kept, lengths;
  std::vector<std::byte> keys, values;
};

// ---- help ---------------------------------------------------------------------------------------

std::string initial_value(const lagkv::parameter& p) {
  if (p.type != lagkv::parameter::kind::word) {
    char number[32];
    std::snprintf(number, sizeof number, "%g", p.initial);
    return number;
  }
  std::string_view words = p.range;
  for (auto skip = static_cast<int>(p.initial); skip > 0; --skip) words.remove_prefix(words.find('|') + 1);
  return std::string(words.substr(0, words.find('|')));
}

void list_policies() {
  for (const lagkv::named_policy& n : lagkv::named_policies()) {
    const std::string source = n.source.empty() ? "" : " (" + std::string(n.source) + ")";
    std::printf("%s: %s%s\n", std::string(n.name).c_str(), std::string(n.meaning).c_str(), source.c_str());
    for (const lagkv::parameter& p : n.parameters) {
      std::string range(p.range);
      if (p.type == lagkv::parameter::kind::word) range = "one of " + range;
      std::printf("  %-22s %s; %s\n", (std::string(p.key) + "=" + initial_value(p)).c_str(), std::string(p.meaning).c_str(),
                  range.c_str());
    }
  }
}

// ---- input --------------------------------------------------------------------------------------

std::string text(const npy::array& a) {
  std::string s = "[";
  for (std::size_t n : a.shape) s.append(s.size() > 1 ? ", " : "").append(std::to_string(n));
  return s + "]";
}

lagkv::result<npy::array> load_cache(const std::string& path) {
  lagkv::result<npy::array> a = npy::load(path);
  if (!a) return a;
  if (a->type != "<f4" && a->type != "<f2") return lagkv::error{path + ": type " + a->type + ": must be float32 or float16"};
  if (a->shape.size() != 3 || a->size() == 0)
    return lagkv::error{path + ": shape " + text(*a) + ": must be [heads, tokens, dim], each 1 or more"};
  return a;
}

/// "300,1,1" or, for repeated steps, "300,1x400".
lagkv::result<std::vector<std::size_t>> parse_steps(std::string_view list, std::size_t tokens) {
  std::vector<std::size_t> steps;
  std::size_t sum = 0;
  const auto number = [](std::string_view s, std::size_t& n) {
    const auto [end, failure] = std::from_chars(s.data(), s.data() + s.size(), n);
    return failure == std::errc{} && end == s.data() + s.size() && n > 0;
  };
  for (bool more = true; more;) {
    const std::size_t comma = list.find(',');
    const std::string_view item = list.substr(0, comma);
    more = comma != std::string_view::npos;
    if (more) list.remove_prefix(comma + 1);
    std::size_t n = 0, times = 1;
    const std::size_t x = item.find('x');
    if (!number(item.substr(0, x), n) || (x != std::string_view::npos && !number(item.substr(x + 1), times)))
      return lagkv::error{"steps: '" + std::string(item) + "': must be a whole number, 1 or more, or NxTIMES"};
    if (n > tokens || times > tokens || n * times > tokens - sum)
      return lagkv::error{"steps: add up to more than the " + std::to_string(tokens) + " tokens of the arrays"};
    steps.insert(steps.end(), times, n);
    sum += n * times;
  }
  if (sum != tokens)
    return lagkv::error{"steps: add up to " + std::to_string(sum) + ": must be the " + std::to_string(tokens) +
                        " tokens of the arrays"};
  return steps;
}

lagkv::result<lagkv::simd::target> parse_target(const std::string& name) {
  using lagkv::simd::target;
  std::string here;
  for (target t : lagkv::simd::all_targets) {
    if (!lagkv::simd::supported(t)) continue;
    if (name == lagkv::simd::name(t)) return t;
    here += (here.empty() ? "" : ", ") + std::string(lagkv::simd::name(t));
  }
  return lagkv::error{"target=" + name + ": must be one of " + here + " on this machine"};
}

/// Copies rows [from, from + n) of each head of `source` to rows [to, to + n) of `target`.
void copy_rows(const lagkv::tensor& source, std::size_t from, const lagkv::tensor& target, std::size_t to, std::size_t n) {
  for (std::size_t h = 0; h < source.heads() && n > 0; ++h)
    std::memcpy(target.at(h, {to, to + n}).data, source.at(h, {from, from + n}).data, n * source.row_bytes());
}

// ---- work ---------------------------------------------------------------------------------------

lagkv::result<job> prepare(const options& o) {
  lagkv::result<lagkv::policy> policy = lagkv::parse(o.policy);
  if (!policy) return lagkv::error{policy.message()};
  job j;
  j.policy = *policy;
  if (!o.target.empty()) {
    lagkv::result<lagkv::simd::target> target = parse_target(o.target);
    if (!target) return lagkv::error{target.message()};
    j.target = *target;
  }
  for (auto [path, array] : {std::pair{&o.keys, &j.keys}, std::pair{&o.values, &j.values}}) {
    lagkv::result<npy::array> loaded = load_cache(*path);
    if (!loaded) return lagkv::error{loaded.message()};
    *array = std::move(*loaded);
  }
  j.heads = j.keys.shape[0], j.tokens = j.keys.shape[1];
  if (j.values.shape[0] != j.heads || j.values.shape[1] != j.tokens)
    return lagkv::error{"keys " + text(j.keys) + ", values " + text(j.values) + ": must have the same heads and tokens"};
  if (j.tokens > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    return lagkv::error{"tokens=" + std::to_string(j.tokens) + ": must be below 2147483648"};
  if (!o.steps.empty()) {
    lagkv::result<std::vector<std::size_t>> steps = parse_steps(o.steps, j.tokens);
    if (!steps) return lagkv::error{steps.message()};
    j.steps = std::move(*steps);
  }
  const lagkv::layer layer{npy::view(j.keys), npy::view(j.values), j.tokens};
  if (lagkv::status s = check(j.policy, layer); !s) return lagkv::error{s.message()};
  if (o.scores && !j.policy.score) return lagkv::error{"scores: " + o.policy.substr(0, o.policy.find(':')) + " has none"};
  return j;
}

/// Appends the tokens step by step, as prefill and decode would, and lets the policy drop some after each step.
outcome compress(job& j) {
  outcome result;
  std::vector<std::size_t> steps = j.steps;
  if (steps.empty()) steps.push_back(j.tokens);
  const lagkv::tensor all_keys = npy::view(j.keys), all_values = npy::view(j.values);
  std::vector<std::byte> key_memory(j.keys.data.size()), value_memory(j.values.data.size());
  lagkv::layer cache{npy::view(key_memory.data(), j.keys, j.tokens), npy::view(value_memory.data(), j.values, j.tokens), 0};
  std::vector<std::vector<std::int32_t>> positions(j.heads);  // of the rows in use, head by head

  lagkv::workspace workspace(j.target);
  lagkv::cursor cursor;
  std::size_t seen = 0;
  for (std::size_t n : steps) {
    copy_rows(all_keys, seen, cache.keys, cache.tokens, n);
    copy_rows(all_values, seen, cache.values, cache.tokens, n);
    cache.tokens += n;
    for (std::vector<std::int32_t>& p : positions) {
      p.resize(cache.tokens);
      std::iota(p.end() - static_cast<std::ptrdiff_t>(n), p.end(), static_cast<std::int32_t>(seen));
    }
    seen += n;
    cache.tokens = lagkv::step(j.policy, cache, cursor, workspace);
    for (std::size_t h = 0; h < j.heads; ++h) {
      lagkv::compact(positions[h].data(), h, workspace.decision);
      positions[h].resize(cache.tokens);
    }
    result.lengths.push_back(static_cast<std::int32_t>(cache.tokens));
  }

  result.rows = cache.tokens;
  for (const std::vector<std::int32_t>& p : positions) result.kept.insert(result.kept.end(), p.begin(), p.end());
  result.keys.resize(j.heads * result.rows * cache.keys.row_bytes());
  result.values.resize(j.heads * result.rows * cache.values.row_bytes());
  copy_rows(cache.keys, 0, npy::view(result.keys.data(), j.keys, result.rows), 0, result.rows);
  copy_rows(cache.values, 0, npy::view(result.values.data(), j.values, result.rows), 0, result.rows);
  return result;
}

struct score_array {
  std::vector<std::size_t> shape;
  std::vector<float> data;
};

/// The scores of all tokens offered at once, whatever the steps. Where partitions decide by themselves
/// [heads, partitions - 1, lag]; else [heads, tokens], and tokens that are not judged hold 1, as in kvpress.
score_array compute_scores(job& j) {
  const lagkv::policy& p = j.policy;
  const lagkv::layer layer{npy::view(j.keys), npy::view(j.values), j.tokens};
  // Scores do not depend on how many tokens stay: ask for one that never finds the budget met.
  lagkv::retention everything = p.retain;
  if (everything.kind == lagkv::budget::share_of_all) everything.amount = 0;
  const lagkv::due due = everything.due({}, j.tokens);
  const std::size_t n = due.judged.size();
  const bool by_partition = due.partition != 0 || p.retain.kind == lagkv::budget::share_of_partition;

  score_array scores;
  if (by_partition)
    scores.shape = {j.heads, n / p.retain.lag, p.retain.lag};
  else
    scores.shape = {j.heads, j.tokens};
  const std::size_t width = by_partition ? n : j.tokens, before = by_partition ? 0 : due.judged.begin;
  scores.data.assign(j.heads * width, 1.0F);
  lagkv::workspace workspace(j.target);
  for (std::size_t h = 0; h < j.heads && n > 0; ++h) {
    const std::span<float> of_head(scores.data.data() + h * width + before, n);
    p.score(layer, h, due.judged, of_head, workspace);
    if (p.adjust) p.adjust(of_head, due, workspace);
  }
  return scores;
}

lagkv::status write(const job& j, const outcome& result, const score_array& scores, const std::filesystem::path& out) {
  std::error_code failure;
  std::filesystem::create_directories(out, failure);
  if (!std::filesystem::is_directory(out)) return lagkv::error{out.string() + ": cannot be made a folder"};
  std::vector<std::size_t> rows{j.heads, result.rows};
  if (lagkv::status s = npy::save(out / "kept.npy", "<i4", rows, result.kept); !s) return s;
  rows.push_back(j.keys.shape[2]);
  if (lagkv::status s = npy::save(out / "keys.npy", j.keys.type, rows, result.keys); !s) return s;
  rows.back() = j.values.shape[2];
  if (lagkv::status s = npy::save(out / "values.npy", j.values.type, rows, result.values); !s) return s;
  if (!j.steps.empty())
    if (lagkv::status s = npy::save(out / "lengths.npy", "<i4", {result.lengths.size()}, result.lengths); !s) return s;
  if (!scores.shape.empty())
    if (lagkv::status s = npy::save(out / "scores.npy", "<f4", scores.shape, scores.data); !s) return s;
  return {};
}

constexpr int bad_input = 2;

int complain(const std::string& message) {
  std::fprintf(stderr, "lagkv-npy: %s\n", message.c_str());
  return bad_input;
}

int run(const options& o) {
  lagkv::result<job> j = prepare(o);
  if (!j) return complain(j.message());
  const score_array scores = o.scores ? compute_scores(*j) : score_array{};
  const outcome result = compress(*j);
  if (lagkv::status s = write(*j, result, scores, o.out); !s) return complain(s.message());
  std::printf("%s: %zu of %zu tokens stay in each of %zu heads (%s)\n", o.out.c_str(), result.rows, j->tokens, j->heads,
              lagkv::simd::name(j->target));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  CLI::App app(
      "Compresses keys and values in .npy files: [heads, tokens, dim], float32 or float16.\n"
      "Writes kept.npy (original positions, [heads, n]), keys.npy and values.npy to a folder.");
  app.name("lagkv-npy");
  app.add_option("--policy", o.policy, "a policy, such as lagkv:lag=128,ratio=0.25 (--list tells what there is)");
  app.add_option("--keys", o.keys, "keys");
  app.add_option("--values", o.values, "values; dim and type may differ from the keys'");
  app.add_option("--steps", o.steps, "append that many tokens a step: 300,1,1 or 300,1x400; writes lengths.npy");
  app.add_flag("--scores", o.scores, "write scores.npy: the scores of all tokens judged at once, whatever --steps says");
  app.add_option("--target", o.target, "force scalar, sse2, avx2, avx512 or neon (default: the widest here)");
  app.add_option("--out", o.out, "folder for the results, made where it is missing");
  app.add_flag("--list", o.list, "print the policies with their keys, defaults and ranges, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return complain(std::string(e.what()) + " (see lagkv-npy --help)");
  }
  if (o.list) {
    list_policies();
    return 0;
  }
  for (const auto& [name, value] : {std::pair{"--policy", &o.policy}, std::pair{"--keys", &o.keys},
                                    std::pair{"--values", &o.values}, std::pair{"--out", &o.out}})
    if (value->empty()) return complain(std::string(name) + ": is missing (see lagkv-npy --help)");
  try {
    return run(o);
  } catch (const std::exception& e) {  // out of memory
    return complain(e.what());
  }
}
