#!/usr/bin/env python3
"""Times lagkv.compress() beside LagKV in PyTorch, on the same arrays, and checks that it keeps the tokens that
the formula in double keeps.

  python3 -m venv venv && venv/bin/pip install . torch==2.13.0      (kvpress is used where it is installed)
  venv/bin/python benchmarks/compare_torch.py [--official lag_kv.py]

Rows:
  official  the published code's whole compression: score, top-k, gather, move the window. With --official the real class
            of the LagKV repository (lag_kv.py), else the same formula written here.
  kvpress   LagKVPress.compress of the installed kvpress, else its formula written here.
  compiled  torch.compile of the scoring alone, the best case for PyTorch.
ours runs on as many threads as the row beside it, and cold (256 MiB are read between the copy of its arrays and the run);
PyTorch's arrays are as the copy that restores them leaves them. With --warm ours are, too: where they fit the last cache, that is
like beside like. On a machine that others use too, --clock cpu counts only
the time that each side had the processor (sensible for one thread); else wall time.
"""
import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import types

import numpy as np
import torch

import lagkv

SINK = 16
OF_A_SCORE = 1e-6  # two scores that differ by less may change places: f32 gives them to 2e-7


# ---- LagKV in PyTorch -----------------------------------------------------------------------------------------------

def part_scores(x, lag):
    """softmax over each partition of the deviation of its rows, normalised by the range of the next one; x: [H, T, D],
    whole partitions -> [H, partitions - 1, lag]"""
    parts = x.unflatten(1, (-1, lag))
    low, high = parts[:, 1:].amin(2, keepdim=True), parts[:, 1:].amax(2, keepdim=True)
    return ((parts[:, :-1] - low) / (high - low)).std(-1).softmax(-1)


def whole_partitions(x, lag):
    return x[:, SINK:SINK + (x.shape[1] - SINK) // lag * lag]


def sum_of_scores(keys, values, lag):
    return part_scores(keys, lag) + part_scores(values, lag)


def official_step(keys, values, lag, keep):
    """What lag_kv.py does when a compression is due, in place; -> keys, values, kept positions [H, partitions - 1, keep]"""
    k, v = whole_partitions(keys, lag), whole_partitions(values, lag)
    best = sum_of_scores(k, v, lag).topk(keep, -1).indices
    best = best + (torch.arange(best.shape[1]) * lag)[None, :, None]
    rows = best.flatten(1)[..., None].expand(-1, -1, keys.shape[-1])
    window = keys.shape[1] - SINK - best.shape[1] * lag
    out = []
    for whole, candidates in ((keys, k), (values, v)):
        end = SINK + rows.shape[1]
        whole[:, SINK:end] = candidates.gather(1, rows)
        whole[:, end:end + window] = whole[:, -window:].clone()
        out.append(whole[:, :end + window])
    return *out, best + SINK


def beyond_the_border(scores, kept, keep):
    """How far kept rows [heads, n] are from the `keep` best of each partition by scores [heads, partitions, lag]: the number of
    rows that score less than the best, and the greatest gap between a row left out and a kept one that scores less, as a share of
    the former's score. Equal scores may go either way: 0, 0. Another number of rows in a partition is an endless gap."""
    stays = torch.zeros(scores.shape, dtype=torch.bool)
    stays.view(len(scores), -1).scatter_(1, torch.as_tensor(np.asarray(kept, np.int64)) - SINK, True)
    border = scores.topk(keep, -1).values[..., -1:]
    n = int((stays & (scores < border)).sum())
    if (stays.sum(-1) != keep).any():
        return n, float("inf")
    least = scores.masked_fill(~stays, float("inf")).amin(-1)
    best_left = scores.masked_fill(stays, float("-inf")).amax(-1)
    return n, max(0.0, float(((best_left - least) / best_left).max()))


def load_official(path):
    """The class LagKV of lag_kv.py; its base class has gone from recent transformers, and it needs only three fields."""
    class DynamicCache:
        def __init__(self, *_):
            self.key_cache, self.value_cache, self._seen_tokens = [], [], 0
    module = types.ModuleType("transformers.cache_utils")
    module.DynamicCache = DynamicCache
    before = sys.modules.get("transformers.cache_utils")
    sys.modules["transformers.cache_utils"] = module
    spec = importlib.util.spec_from_file_location("lag_kv", path)
    lag_kv = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lag_kv)
    del sys.modules["transformers.cache_utils"]
    if before is not None:
        sys.modules["transformers.cache_utils"] = before
    return lag_kv.LagKV


def kvpress_step(keys, values, lag, share):
    """LagKVPress.compress: mean of both scores, ranks within partitions, one top-k over all tokens; the rest holds 1."""
    score = sum_of_scores(whole_partitions(keys, lag), whole_partitions(values, lag), lag) / 2
    ranks = (score.argsort(-1).argsort(-1) / lag).to(keys.dtype).flatten(1)
    ones = torch.ones(keys.shape[:2], dtype=keys.dtype)
    ones[:, SINK:SINK + ranks.shape[1]] = ranks
    rows = ones.topk(int(keys.shape[1] * share), -1).indices[..., None].expand(-1, -1, keys.shape[-1])
    return keys.gather(1, rows).contiguous(), values.gather(1, rows).contiguous()


def load_kvpress():
    try:
        from kvpress import LagKVPress
        return LagKVPress
    except Exception:  # not installed, or not for these versions of its dependencies
        return None


# ---- timing ---------------------------------------------------------------------------------------------------------

def timed(work, keys, values, repeats, clock):
    """Seconds of work(keys, values) on fresh copies, after one round to warm up."""
    times = []
    with torch.inference_mode():
        for i in range(repeats + 1):
            k, v = keys.clone(), values.clone()
            start = clock()
            work(k, v)
            if i:
                times.append(clock() - start)
    return times


OTHER_MEMORY = np.ones(1 << 25)  # 256 MiB: more than the caches of a CPU


class Ours:
    """lagkv.compress() on copies of the arrays."""

    def __init__(self, policy, keys, values, threads, warm):
        self.policy, self.arrays, self.warm = lagkv.parse(policy), (keys, values), warm
        self.copies = keys.copy(), values.copy()
        self.workspace = lagkv.Workspace(threads)

    def run(self, clock=time.perf_counter):
        """Seconds of a call."""
        for copy, array in zip(self.copies, self.arrays):
            copy[...] = array
        layer = lagkv.Layer(*self.copies)
        if not self.warm:
            OTHER_MEMORY.sum()
        start = clock()
        lagkv.compress(self.policy, layer, cursor=lagkv.Cursor(), workspace=self.workspace)
        return clock() - start

    def times(self, repeats, clock):
        return [self.run(clock) for _ in range(repeats + 1)][1:]  # the first one grows the workspace

    def kept(self):
        self.run()
        plan = self.workspace.last_plan()
        return [plan.of(h) for h in range(plan.heads)]


def spread(times):
    return f"{statistics.median(times) * 1e3:8.2f} ms ({min(times) * 1e3:.2f} .. {max(times) * 1e3:.2f})"


def make_cache(heads, tokens, dim):
    """Channels differ in scale and offset as those of real keys do."""
    g = np.random.default_rng(1)
    shape = (heads, 1, dim)
    return [(g.normal(0, 2, shape) + np.exp(g.normal(0, 1, shape)) * g.standard_normal((heads, tokens, dim))).astype(np.float32)
            for _ in "kv"]


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--official", help="lag_kv.py of the LagKV repository")
    a.add_argument("--heads", type=int, default=8)
    a.add_argument("--tokens", type=int, default=16384)
    a.add_argument("--dim", type=int, default=128)
    a.add_argument("--lag", type=int, default=128)
    a.add_argument("--ratio", type=float, default=0.25)
    a.add_argument("--repeats", type=int, default=15)
    a.add_argument("--types", default="f16,f32")
    a.add_argument("--threads", default="1,2")
    a.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    a.add_argument("--warm", action="store_true", help="ours, too, finds its arrays as their copy leaves them")
    a.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    a.add_argument("--json", help="write the times, in seconds, to this file")
    o = a.parse_args()

    clock = time.process_time if o.clock == "cpu" else time.perf_counter
    lag, keep = o.lag, int(o.ratio * o.lag)
    LagKV = load_official(o.official) if o.official else None
    LagKVPress = load_kvpress()
    policy = f"lagkv:sink={SINK},lag={lag},ratio={o.ratio}"
    print(f"{cpu_name()}, {os.cpu_count()} cores; PyTorch {torch.__version__}; {o.heads} heads x {o.tokens} tokens x {o.dim} "
          f"channels, lag {lag}, ratio {o.ratio}; {o.repeats} repeats, {o.clock} time, ours {'warm' if o.warm else 'cold'}: "
          "median (least .. greatest)")
    print("official: " + (o.official or "the same formula, written in this file") + "; kvpress: " +
          ("the installed package" if LagKVPress else "the same formula, written in this file"))
    arrays = make_cache(o.heads, o.tokens, o.dim)
    report, agreed = {}, True

    for dtype in o.types.split(","):
        k, v = (x.astype(np.float16 if dtype == "f16" else np.float32) for x in arrays)
        keys, values = torch.from_numpy(k), torch.from_numpy(v)
        mine = Ours(policy, k, v, 1, o.warm)

        # The same tokens? The formula in double says so: in f32, scores at the border may be equal though they are not in double.
        with torch.inference_mode():
            exact = sum_of_scores(*(whole_partitions(x.double(), lag) for x in (keys, values)), lag)
            kept = {"ours": mine.kept()}
            for words, kind in (("PyTorch in f32", torch.float32), ("PyTorch in f16", torch.float16)):
                if kind is torch.float32 or dtype == "f16":
                    kept[words] = official_step(keys.clone().to(kind), values.clone().to(kind), lag, keep)[2].flatten(1)
        print(f"\n{dtype}: of {exact.shape[0] * exact.shape[1] * keep} tokens kept, other than by the formula in double")
        for words, rows in kept.items():
            n, gap = beyond_the_border(exact, rows, keep)
            print(f"  {words:34} {n:5}" + (f"; scores differ by up to {gap:.1e} of their size" if n else ""))
            agreed = agreed and (words != "ours" or gap <= OF_A_SCORE)
        rows = report[dtype] = {}

        def official(k, v):
            if LagKV is None:
                return official_step(k, v, lag, keep)
            cache = LagKV(ratio=o.ratio, sink_size=SINK, lag_size=lag, use_then_compress=False)
            return cache.update(k[None], v[None], 0)

        def kvpress(k, v):
            if LagKVPress is None:
                return kvpress_step(k, v, lag, o.ratio)
            press = LagKVPress(compression_ratio=1 - o.ratio, n_sink=SINK, lag_size=lag)
            return press.compress(types.SimpleNamespace(head_dim=o.dim), None, k[None], v[None], None, {})

        scoring = None if o.no_compile else torch.compile(lambda k, v: sum_of_scores(k, v, lag))

        def compiled(k, v):
            return scoring(whole_partitions(k, lag), whole_partitions(v, lag))

        for threads in map(int, o.threads.split(",")):
            torch.set_num_threads(threads)
            words = f"{threads} thread{'s' if threads > 1 else ''}"
            mine = Ours(policy, k, v, threads, o.warm)
            name = f"ours, {mine.workspace.target}, {words}"
            rows[name] = mine.times(o.repeats, clock)
            print(f"  {name:34} {spread(rows[name])}")
            torch._dynamo.reset()  # compiled code is made for a number of threads
            for label, work in (("official", official), ("kvpress", kvpress), ("scoring alone, compiled", compiled)):
                if work is compiled and scoring is None:
                    continue
                label = f"{label}, {words}"
                # Ours again before and after each row: on a shared machine speed changes within a minute.
                beside = mine.times(o.repeats, clock)
                rows[label] = timed(work, keys, values, o.repeats, clock)
                beside += mine.times(o.repeats, clock)
                times = statistics.median(rows[label]) / statistics.median(beside)
                print(f"  {label:34} {spread(rows[label])}  {times:6.1f} x ours", flush=True)
    if o.json:
        with open(o.json, "w") as f:
            json.dump(report, f, indent=1)
    if not agreed:
        sys.exit("the kept tokens differ")


if __name__ == "__main__":
    main()
