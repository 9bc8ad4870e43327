#include "work.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <system_error>

namespace tool {

namespace {

/// Copies rows [from, from + n) of each head of `source` to rows [to, to + n) of `target`.
void copy_rows(const lagkv::tensor& source, std::size_t from, const lagkv::tensor& target, std::size_t to, std::size_t n) {
  for (std::size_t h = 0; h < source.heads() && n > 0; ++h)
    std::memcpy(target.at(h, {to, to + n}).data, source.at(h, {from, from + n}).data, n * source.row_bytes());
}

/// How many of the last rows are the last of the `seen` tokens, in all heads. `positions` are [heads][stride].
std::size_t unbroken_rows(const std::vector<std::uint32_t>& positions, std::size_t stride, std::size_t rows, std::size_t seen) {
  std::size_t least = rows;
  for (std::size_t end = rows; end <= positions.size(); end += stride) {
    std::size_t n = 0;
    while (n < least && positions[end - 1 - n] == seen - 1 - n) ++n;
    least = n;
  }
  return least;
}

/// Queries that the policy looks at in one call, where as many as `rows` could be offered.
std::size_t wanted_queries(const job& j, std::size_t rows) {
  const lagkv::needs& n = j.policy.needs;
  if (j.queries.data.empty()) return 0;
  return n.query_statistics && j.query_mean.data.empty() ? rows : std::min(n.queries, rows);
}

/// A plan for tokens that are all there, no memory moved: heads may keep different numbers of them.
outcome plan_at_once(job& j) {
  const lagkv::extras extras = extras_of(j);
  lagkv::workspace workspace(j.target);
  const lagkv::plan& plan =
      lagkv::plan_eviction(j.policy, {npy::view(j.keys), npy::view(j.values), j.tokens, &extras}, {}, workspace);
  outcome result;
  result.fewest = j.tokens;
  result.mask.assign(j.heads * j.tokens, 0);
  for (std::size_t h = 0; h < j.heads; ++h) {
    const std::size_t rows = plan.tokens_after(h);
    for (std::size_t i = 0; i < rows; ++i) result.mask[h * j.tokens + plan.source(h, i)] = 1;
    result.fewest = std::min(result.fewest, rows), result.most = std::max(result.most, rows);
  }
  return result;
}

}  // namespace

outcome compress(job& j) {
  if (j.policy.ragged) return plan_at_once(j);
  const std::vector<std::size_t> steps = j.steps.empty() ? std::vector<std::size_t>{j.tokens} : j.steps;
  const lagkv::tensor all_keys = npy::view(j.keys), all_values = npy::view(j.values);
  std::vector<std::byte> key_memory(j.keys.data.size()), value_memory(j.values.data.size());
  std::vector<std::uint32_t> positions(j.heads * j.tokens);  // of the rows
  std::vector<float> attention(j.policy.needs.accumulated_attention ? positions.size() : 0);
  const bool again = j.policy.needs.key_statistics && j.policy.budget.again();
  std::vector<double> statistics(again ? j.heads * lagkv::key_statistics::size(j.keys.shape[2]) : 0);
  const auto stride = static_cast<std::ptrdiff_t>(j.tokens);

  lagkv::extras extras = extras_of(j);
  extras.positions = {positions.data(), stride};
  if (!attention.empty()) extras.accumulated_attention = {attention.data(), stride};
  if (again) extras.key_statistics = {statistics.data()};
  lagkv::layer cache{npy::view(key_memory.data(), j.keys, j.tokens), npy::view(value_memory.data(), j.values, j.tokens), 0,
                     &extras};
  lagkv::workspace workspace(j.target);
  lagkv::cursor cursor;
  std::size_t seen = 0, unbroken = 0;
  outcome result;
  for (std::size_t n : steps) {
    copy_rows(all_keys, seen, cache.keys, cache.tokens, n);
    copy_rows(all_values, seen, cache.values, cache.tokens, n);
    for (std::size_t at = cache.tokens; at < positions.size(); at += j.tokens) {
      std::iota(positions.data() + at, positions.data() + at + n, static_cast<std::uint32_t>(seen));
      if (!attention.empty()) std::fill_n(attention.data() + at, n, 0.0F);
    }
    cache.tokens += n, seen += n, unbroken += n;
    if (!attention.empty()) extras.queries = npy::view(j.queries, seen - n, n);
    lagkv::accumulate(j.policy, cache, cursor, n, workspace);
    const std::size_t offered = wanted_queries(j, unbroken);
    extras.queries = offered == 0 ? lagkv::tensor() : npy::view(j.queries, seen - offered, offered);
    cache.tokens = lagkv::compress(j.policy, cache, cursor, workspace);
    if (!lagkv::last_plan(workspace).empty()) unbroken = unbroken_rows(positions, j.tokens, cache.tokens, seen);
    result.lengths.push_back(static_cast<std::int32_t>(cache.tokens));
  }

  const std::size_t rows = result.fewest = result.most = cache.tokens;
  result.mask.assign(j.heads * j.tokens, 0);
  for (std::size_t h = 0; h < j.heads; ++h)
    for (std::size_t i = 0; i < rows; ++i) {
      const std::uint32_t position = positions[h * j.tokens + i];
      result.kept.push_back(static_cast<std::int32_t>(position));
      result.mask[h * j.tokens + position] = 1;
    }
  result.keys.resize(j.heads * rows * cache.keys.row_bytes());
  result.values.resize(j.heads * rows * cache.values.row_bytes());
  copy_rows(cache.keys, 0, npy::view(result.keys.data(), j.keys, rows), 0, rows);
  copy_rows(cache.values, 0, npy::view(result.values.data(), j.values, rows), 0, rows);
  return result;
}

score_array compute_scores(job& j) {
  const lagkv::policy& p = j.policy;
  const bool by_partition = p.budget.as<lagkv::keep::partitions>() != nullptr;
  lagkv::candidates due = p.budget.due({}, j.tokens);
  if (due.empty() && !by_partition) {  // the budget is met: as if there were none
    lagkv::budget least = p.budget;
    least.slope = {};
    if (p.budget.as<lagkv::keep::share>() != nullptr) least.keeps = lagkv::keep::share{.of_all = 0, .lag = p.budget.lag()};
    if (p.budget.again()) least.keeps = lagkv::keep::capacity{.rows = 0};
    due = least.due({}, j.tokens);
  }
  const std::size_t n = due.rows.size();

  score_array scores;
  if (by_partition)
    scores.shape = {j.heads, n / p.budget.lag(), p.budget.lag()};
  else
    scores.shape = {j.heads, j.tokens};
  const std::size_t width = by_partition ? n : j.tokens, before = by_partition ? 0 : due.rows.begin;
  scores.data.assign(j.heads * width, j.method == "lagkv" ? 1.0F : std::numeric_limits<float>::quiet_NaN());
  if (n == 0) return scores;
  const lagkv::extras extras = extras_of(j);
  lagkv::workspace workspace(j.target);
  const std::span<const float> candidates =
      lagkv::score(p, {npy::view(j.keys), npy::view(j.values), j.tokens, &extras}, due, workspace);
  for (std::size_t h = 0; h < j.heads; ++h) std::copy_n(candidates.data() + h * n, n, scores.data.data() + h * width + before);
  return scores;
}

lagkv::status write(const job& j, const outcome& result, const score_array& scores, const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (!std::filesystem::is_directory(folder)) return lagkv::error{folder.string() + ": cannot be made a folder"};
  if (!j.policy.ragged) {
    std::vector<std::size_t> rows{j.heads, result.most};
    if (lagkv::status s = npy::save(folder / "kept.npy", "<i4", rows, result.kept); !s) return s;
    rows.push_back(j.keys.shape[2]);
    if (lagkv::status s = npy::save(folder / "keys.npy", j.keys.type, rows, result.keys); !s) return s;
    rows.back() = j.values.shape[2];
    if (lagkv::status s = npy::save(folder / "values.npy", j.values.type, rows, result.values); !s) return s;
  }
  if (lagkv::status s = npy::save(folder / "kept_mask.npy", "|u1", {j.heads, j.tokens}, result.mask); !s) return s;
  if (!j.steps.empty())
    if (lagkv::status s = npy::save(folder / "lengths.npy", "<i4", {result.lengths.size()}, result.lengths); !s) return s;
  if (!scores.shape.empty())
    if (lagkv::status s = npy::save(folder / "scores.npy", "<f4", scores.shape, scores.data); !s) return s;
  return {};
}

}  // namespace tool
