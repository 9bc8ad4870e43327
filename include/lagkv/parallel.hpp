// Part of lagkv (MIT). The hook for hosts that have threads: step() over the heads of a layer, or over layers.
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/core.hpp>
#include <lagkv/policy.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

// A parallel_for is any callable run(n, work) of the host's: it calls work(task, worker) once for each task below n, with
// a worker below the number of workspaces given, never the same worker twice at one time, and returns when all are done. A
// loop over tasks on one thread is one: [](std::size_t n, const auto& work) { for (std::size_t i = 0; i < n; ++i) work(i, 0U); }

namespace detail {

template <class ParallelFor>
struct in_parallel {
  const ParallelFor& run;
  std::span<workspace> workers;

  void operator()(std::size_t heads, head_work work) const {
    run(heads, [&](std::size_t head, std::size_t worker) { work(head, workers[worker]); });
  }
};

}  // namespace detail

/// step() with the heads of the layer shared among workers; the same plan and the same bytes as with one. Where nothing is due
/// `run` is not called. The plan is workers[0].decision; all workspaces must be of one target, and scorers, transforms and
/// selectors of the host's own must take being called for different heads at once. What looks across heads (selection where
/// all partitions compete, fusion) is done by the caller.
template <class ParallelFor>
std::size_t step(const policy& p, const layer& l, cursor& at, std::span<workspace> workers, const ParallelFor& run,
                 toward direction = toward::front) {
  return detail::step(p, l, at, workers[0], direction, detail::in_parallel<ParallelFor>{run, workers});
}

/// step() for each layer, layers shared among workers: layers[i] with cursors[i]. Plans are not kept. The rows now in use are
/// cursors[i].tokens.
template <class ParallelFor>
void step(const policy& p, std::span<const layer> layers, std::span<cursor> cursors, std::span<workspace> workers,
          const ParallelFor& run, toward direction = toward::front) {
  run(layers.size(), [&](std::size_t i, std::size_t worker) { step(p, layers[i], cursors[i], workers[worker], direction); });
}

}  // namespace lagkv::inline LAGKV_ABI
