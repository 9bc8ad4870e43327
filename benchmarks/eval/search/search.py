#!/usr/bin/env python3
"""Which attention-free policy loses least: runs lagkv-eval over candidates.json and writes the tables of docs/research.md.

    cmake --workflow --preset eval
    python3 benchmarks/eval/search/search.py --samples 20 --out build/search --table docs/research.md

(The tables there have policies that were named with --report, as the page says.)

All candidates meet on the prompts of one seed (choosing). The best of them, and the baselines, meet again on those of another
(reporting): a figure that chose its policy says too much for it. Goes on where it was interrupted, and from the results that the
repository has. Needs Python 3.9 and nothing else; a prompt of each task at 2,048 tokens takes 8 minutes of one core in the
choosing half, 6 in the reporting half (a Sapphire Rapids; without AMX perhaps twice that).
"""
import argparse
import concurrent.futures
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import lines as results  # noqa: E402
import marked  # noqa: E402
from lines import refuse  # noqa: E402
HALVES = ("choosing", "reporting")
DRAWS = 2000  # of the bootstrap
LOWER_IS_BETTER = ("KL",)  # groups whose names begin so
LEAST = 4  # prompts of a task, for the bootstrap to say anything
TOGETHER = 2  # prompts of a task in one run of the program
FASTER = ("--transposed", "--repack")  # on a CPU: without flash attention, weights laid out for its widest instructions
RESULTS = HERE.parent / "results"


def packed_results(o, half):
    return RESULTS / f"search-{half}-{o.length}.jsonl.gz"


def seed_of(o, half):
    return o.seeds[HALVES.index(half)]


def entries(path):
    return results.entries(str(path), results.BEGINS, results.fault_of)


def part(o, half, task):
    """The results of one task; at first those that the repository has of this seed."""
    path = o.out / f"{half}-{task}.jsonl"
    if not path.exists():
        known = packed_results(o, half)
        there = entries(known) if known.exists() and not o.model else []
        if any(entry.get("seed", seed_of(o, half)) != seed_of(o, half) for entry in there):
            there = []
        path.write_text("".join(packed(entry) for entry in there if entry.get("task", task) == task), encoding="utf-8")
    return path


def packed(entry):
    """A line, without the pictures, which are most of it."""
    kept = {name: value for name, value in entry.items() if name != "survivors"}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def run(o, half, policies, removed):
    """Tasks in parallel, a few prompts of each in turn, so that an interrupted search has prompts of all."""
    def one(task, samples):
        path = part(o, half, task)
        command = [o.eval, "run", "--tasks", task, "--policies", ";".join(policies), "--removed", removed,
                   "--length", str(o.length), "--samples", str(samples), "--seed", str(seed_of(o, half)), "--threads", "1",
                   "--calibration", str(o.out / "calibration.safetensors"), "--out", str(path), *FASTER, *o.named_model]
        with open(path.with_suffix(".log"), "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_WAIT_POLICY": "passive"})

    for samples in [*range(TOGETHER, o.samples, TOGETHER), o.samples]:
        with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
            for done in [pool.submit(one, task, samples) for task in o.tasks]:
                done.result()
        print(f"{half}: {samples} prompts of each task", file=sys.stderr, flush=True)


def read(o, half):
    """{(policy, removed): {task: {sample: figure}}}; a KL is that of perplexity tasks, else the score."""
    found = {}
    for path, line in ((path, line) for path in (part(o, half, task) for task in o.tasks) for line in entries(path)):
        if line.get("seed", seed_of(o, half)) != seed_of(o, half):
            refuse(f"{path}: seed is {line['seed']}, not {seed_of(o, half)}: name another folder with --out, or other --seeds")
        scores = line.get("scores", {})
        figure = scores.get("score", scores.get("kl"))
        if line["type"] != "sample" or line.get("failure") or figure is None:
            continue
        if "score" in scores:
            figure *= 100
        row = found.setdefault((line["policy"], line.get("removed", 0)), {})
        row.setdefault(line["task"], {})[line.get("sample", 0)] = figure
    return found


def complete(o, rows):
    """The first prompts of each task that `random`, which comes last, has at all shares; and how many. Rows with fewer are left
    out: they would be compared on other prompts."""
    last = [r for (policy, _), r in rows.items() if policy == "random"]
    samples = min([o.samples, *(len(r.get(t, {})) for r in last for t in o.tasks)]) if last else 0
    return {k: {t: {s: r[t][s] for s in range(samples)} for t in o.tasks}
            for k, r in rows.items() if samples and all(s in r.get(t, {}) for t in o.tasks for s in range(samples))}, samples


def shares_of(rows):
    return sorted({removed for _, removed in rows if removed > 0})


def mean(row, tasks):
    return sum(sum(row[t].values()) / len(row[t]) for t in tasks) / len(tasks)


def difference(a, b, tasks):
    """95 % bootstrap interval of mean(a) - mean(b), over samples of each task, the same prompts for both."""
    draw = random.Random(0)
    apart = [[a[t][s] - b[t][s] for s in sorted(a[t].keys() & b[t].keys())] for t in tasks]
    means = sorted(sum(sum(draw.choices(d, k=len(d))) / len(d) for d in apart) / len(apart) for _ in range(DRAWS))
    return means[DRAWS // 40], means[-DRAWS // 40 - 1]


def better_baseline(o, rows, share, group):
    sign = -1 if group.startswith(LOWER_IS_BETTER) else 1
    known = [rows[b, share] for b in o.baselines if (b, share) in rows]
    if not known:
        refuse(f"no baseline has all prompts at {share:g} removed: must be one or more of {'; '.join(o.baselines)}")
    return max(known, key=lambda row: sign * mean(row, o.groups[group]))


def mark(o, rows, key, group):
    """'+' where a row is better than the better baseline on the same prompts, '-' where it is worse, else nothing."""
    tasks = o.groups[group]
    if key[0] in o.baselines or min(len(rows[key][t]) for t in tasks) < LEAST:
        return ""
    sign = -1 if group.startswith(LOWER_IS_BETTER) else 1
    low, high = sorted(sign * x for x in difference(rows[key], better_baseline(o, rows, key[1], group), tasks))
    return "+" if low > 0 else "-" if high < 0 else ""


def shown(figure, group):
    return f"{figure:.3f}" if group.startswith(LOWER_IS_BETTER) else f"{figure:.1f}"


def row_of(cells):
    return "| " + " | ".join(cells) + " |"


def table(o, rows, share, policies, why):
    """Means, with a mark where a difference is one; the verdict counts them."""
    head = ["policy", *(["why it might work"] if why else []), *o.groups, "verdict"]
    lines = [row_of(head), "|" + "---|" * len(head)]
    for policy in ["full", *policies]:
        key = (policy, 0 if policy == "full" else share)
        if key not in rows:
            continue
        cells, marks = [], []
        for group, tasks in o.groups.items():
            if policy == "full":
                cells.append("" if group.startswith(LOWER_IS_BETTER) else shown(mean(rows[key], tasks), group))
            else:
                marks.append(mark(o, rows, key, group))
                cells.append(f"{shown(mean(rows[key], tasks), group)} {marks[-1]}".strip())
        judged = policy not in ("full", *o.baselines) and all(len(prompts) >= LEAST for prompts in rows[key].values())
        verdict = f"{marks.count('+')} better, {marks.count('-')} worse" if judged else ""
        lines.append(row_of([f"`{policy}`", *([why.get(policy, "")] if why else []), *cells, verdict]))
    return lines


def differences(o, rows, share, policies):
    """From the better baseline on the same prompts, with intervals."""
    lines = [row_of(["policy", *o.groups]), "|" + "---|" * (1 + len(o.groups))]
    for policy in policies:
        cells = []
        for group, tasks in o.groups.items():
            row, other = rows[policy, share], better_baseline(o, rows, share, group)
            low, high = difference(row, other, tasks)
            cells.append(f"{shown(mean(row, tasks) - mean(other, tasks), group)} [{shown(low, group)}, {shown(high, group)}]")
        lines.append(row_of([f"`{policy}`", *cells]))
    return lines


def finalists(o, rows, policies):
    """By turns the best by the mean of what is scored from 0 to 100, and by the mean KL; each group once, over all shares."""
    shares = shares_of(rows)
    policies = [p for p in policies if all((p, s) in rows for s in shares)]
    scored = [g for g in o.groups if not g.startswith(LOWER_IS_BETTER)]
    apart = [g for g in o.groups if g.startswith(LOWER_IS_BETTER)]
    orders = [sorted(policies, key=lambda p: sign * sum(mean(rows[p, s], o.groups[g]) for g in groups for s in shares))
              for groups, sign in ((scored, -1), (apart, 1))]
    best = dict.fromkeys(p for pair in zip(*orders) for p in pair)
    return list(best)[:o.finalists]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--eval", default="build/eval/benchmarks/eval/lagkv-eval", help="the program")
    p.add_argument("--model", default="", help="GGUF model; default the one that the build fetches")
    p.add_argument("--candidates", type=pathlib.Path, default=HERE / "candidates.json")
    p.add_argument("--choose-removed", default="0.75", help="shares of the tokens that go, in the choosing half")
    p.add_argument("--removed", default="0.5,0.75,0.875", help="the same in the reporting half")
    p.add_argument("--length", type=int, default=2048, help="tokens of a prompt and its answer")
    p.add_argument("--tasks", default="", help="tasks, parted by commas; default all that --candidates names")
    p.add_argument("--samples", type=int, default=20, help="prompts a task, in each half")
    p.add_argument("--seeds", type=int, nargs=2, default=(1000, 2000), help="of the choosing and the reporting half")
    p.add_argument("--finalists", type=int, default=6, help="candidates that are reported")
    p.add_argument("--report", default="", help="policies to report, parted by ';'; default the finalists")
    p.add_argument("--jobs", type=int, default=2, help="programs of one thread beside each other")
    p.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    p.add_argument("--table", type=pathlib.Path, help="document whose tables are written anew; else they are printed")
    p.add_argument("--run", default="choosing,reporting", help="halves that are run; of the others only what is in --out already")
    p.add_argument("--keep", action="store_true", help="packs the results into the repository")
    o = p.parse_args()

    listed = json.loads(o.candidates.read_text())
    o.groups, o.baselines = listed["tasks"], listed["baselines"]
    if o.tasks:
        wanted = o.tasks.split(",")
        if unknown := set(wanted) - {t for tasks in o.groups.values() for t in tasks}:
            p.error(f"--tasks: {', '.join(sorted(unknown))}: not in {o.candidates}")
        o.groups = {g: kept for g, tasks in o.groups.items() if (kept := [t for t in tasks if t in wanted])}
    o.tasks = [t for group in o.groups.values() for t in group]
    candidates = [c["policy"] for c in listed["candidates"]]
    why = {c["policy"]: c["why"] for c in listed["candidates"]}
    o.out.mkdir(parents=True, exist_ok=True)
    o.named_model = ["--model", o.model] if o.model else []
    calibration = o.out / "calibration.safetensors"
    halves = [half for half in o.run.split(",") if half]
    if unknown := set(halves) - set(HALVES):
        p.error(f"--run: {', '.join(sorted(unknown))}: not choosing or reporting")
    if halves and not calibration.exists():
        subprocess.run([o.eval, "calibrate", "--threads", "1", "--count", "queries", "--out", str(calibration),
                        *o.named_model], check=True)

    def about(samples):
        return (f"{samples} prompts a task, {o.length} tokens, question not seen; + better and - worse than the better of "
                f"{' and '.join(f'`{b}`' for b in o.baselines)} on the same prompts (95 % of paired bootstrap draws; no mark "
                f"where there are fewer than {LEAST} prompts).")

    if "choosing" in halves:
        run(o, "choosing", [*o.baselines, *candidates], o.choose_removed)
    rows, samples = complete(o, read(o, "choosing"))
    if not o.report and not rows:
        refuse("--report: name the policies to report: the choosing half has no results to choose them by")
    best = o.report.split(";") if o.report else finalists(o, rows, candidates)
    lines = []
    for share in shares_of(rows):
        lines += ["", f"Choosing half (seed {o.seeds[0]}), {100 * share:g} % removed: {about(samples)}", "",
                  *table(o, rows, share, [*o.baselines, *candidates, "random"], why)]

    if "reporting" in halves:
        run(o, "reporting", [*o.baselines, *best], o.removed)
    rows, samples = complete(o, read(o, "reporting"))
    for share in shares_of(rows):
        lines += ["", f"Reporting half (seed {o.seeds[1]}), {100 * share:g} % removed: {about(samples)}", "",
                  *table(o, rows, share, [*o.baselines, *best, "random"], {})]
        if samples >= LEAST:
            lines += ["", f"Differences from the better of the two at {100 * share:g} % removed, on the same prompts [95 %]:", "",
                      *differences(o, rows, share, [p for p in best if (p, share) in rows])]
    if o.keep:
        for half in HALVES:
            text = "".join(packed(entry) for task in o.tasks for entry in entries(part(o, half, task)))
            if text:
                packed_results(o, half).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    lines = lines[1:]
    if o.table:
        marked.write(o.table, f"search {o.length}", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
