#!/usr/bin/env python3
"""Which attention-free policy loses least: runs lagkv-eval over candidates.json and writes the table of docs/research.md.

    cmake --workflow --preset eval
    python3 benchmarks/eval/search/search.py --samples 20 --out build/search --table docs/research.md

All candidates meet on the prompts of one seed (choosing). The best of them, and the baselines, meet again on those of another
(reporting): a figure that chose its policy says too much for it. Goes on where it was interrupted. Needs Python 3.9 and nothing
else; a sample of all tasks at 2,048 tokens takes about an hour on one core.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- search: begin -->", "<!-- search: end -->"
DRAWS = 2000  # of the bootstrap
LOWER_IS_BETTER = ("KL",)  # groups whose names begin so


def run(o, seed, policies, path):
    command = [o.eval, "run", "--tasks", ",".join(t for tasks in o.groups.values() for t in tasks), "--policies",
               ";".join(policies), "--removed", o.removed, "--length", str(o.length), "--samples", str(o.samples), "--seed",
               str(seed), "--threads", str(o.threads), "--out", str(path)]
    if o.model:
        command += ["--model", o.model]
    subprocess.run(command, check=True)


def read(path):
    """{(policy, removed): {task: {sample: figure}}}; a KL is that of perplexity tasks, else the score."""
    found = {}
    for line in path.read_text().splitlines():
        line = json.loads(line)
        if line["type"] != "sample" or "failure" in line:
            continue
        scores = line["scores"]
        figure = scores["score"] * 100 if "score" in scores else scores["kl"]
        row = found.setdefault((line["policy"], line.get("removed", 0)), {})
        row.setdefault(line["task"], {})[line.get("sample", 0)] = figure
    return found


def complete(rows, tasks, samples):
    """The first so many samples of the rows that have them all; others would be compared on other prompts."""
    return {k: {t: {s: r[t][s] for s in range(samples)} for t in tasks}
            for k, r in rows.items() if all(s in r.get(t, {}) for t in tasks for s in range(samples))}


def mean(row, tasks):
    return sum(sum(row[t].values()) / len(row[t]) for t in tasks) / len(tasks)


def difference(a, b, tasks):
    """95 % bootstrap interval of mean(a) - mean(b), over samples of each task, the same prompts for both."""
    draw = random.Random(0)
    apart = [[a[t][s] - b[t][s] for s in sorted(a[t].keys() & b[t].keys())] for t in tasks]
    means = sorted(sum(sum(draw.choices(d, k=len(d))) / len(d) for d in apart) / len(apart) for _ in range(DRAWS))
    return means[DRAWS // 40], means[-DRAWS // 40 - 1]


def mark(rows, key, group, tasks, baselines):
    """'+' where a row is better than the better baseline on the same prompts, '-' where it is worse, else nothing."""
    sign = -1 if group.startswith(LOWER_IS_BETTER) else 1
    others = [rows[b, key[1]] for b in baselines if (b, key[1]) in rows]
    if not others or key[0] in baselines:
        return ""
    best = max(others, key=lambda row: sign * mean(row, tasks))
    low, high = sorted(sign * x for x in difference(rows[key], best, tasks))
    return " +" if low > 0 else " -" if high < 0 else ""


def table(o, rows, policies, why):
    shares = sorted({removed for _, removed in rows if removed > 0})
    columns = [(group, share) for share in shares for group in o.groups]
    head = ["policy"] + (["why it might work"] if why else [])
    lines = ["| " + " | ".join(head + [f"{g}, {100 * s:g} %" for g, s in columns]) + " |", "|" + "---|" * (len(head) + len(columns))]
    for policy in ["full", *policies]:
        cells = [f"`{policy}`"] + ([why.get(policy, "")] if why else [])
        for group, share in columns:
            key = (policy, 0 if policy == "full" else share)
            if key not in rows:
                cells.append("")
                continue
            figure = mean(rows[key], o.groups[group])
            text = f"{figure:.3f}" if group.startswith(LOWER_IS_BETTER) else f"{figure:.1f}"
            cells.append("" if key[1] == 0 and group.startswith(LOWER_IS_BETTER)
                         else text + (mark(rows, key, group, o.groups[group], o.baselines) if key[1] else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def finalists(o, rows, policies):
    """Best first by the mean of what is scored from 0 to 100, each group once, over all shares."""
    scored = [g for g in o.groups if not g.startswith(LOWER_IS_BETTER)]
    shares = sorted({removed for _, removed in rows if removed > 0})

    def worth(policy):
        return sum(mean(rows[policy, s], o.groups[g]) for g in scored for s in shares if (policy, s) in rows)
    return sorted((p for p in policies if (p, shares[0]) in rows), key=worth, reverse=True)[:o.finalists]


def write(path, lines):
    text = path.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"{path}: has no lines '{BEGIN}' and '{END}' to write between")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(before + "\n".join([BEGIN, *lines, END]) + after)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--eval", default="build/eval/benchmarks/eval/lagkv-eval", help="the program")
    p.add_argument("--model", default="", help="GGUF model; default the one that the build fetches")
    p.add_argument("--candidates", type=pathlib.Path, default=HERE / "candidates.json")
    p.add_argument("--removed", default="0.5,0.75", help="shares of the tokens that go")
    p.add_argument("--length", type=int, default=2048, help="tokens of a prompt and its answer")
    p.add_argument("--samples", type=int, default=20, help="prompts a task, in each half")
    p.add_argument("--seeds", type=int, nargs=2, default=(1000, 2000), help="of the choosing and the reporting half")
    p.add_argument("--finalists", type=int, default=5, help="candidates that are reported")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    p.add_argument("--table", type=pathlib.Path, help="document whose table is written anew; else it is printed")
    p.add_argument("--no-run", action="store_true", help="only what is in --out already")
    o = p.parse_args()

    listed = json.loads(o.candidates.read_text())
    o.groups, o.baselines = listed["tasks"], listed["baselines"]
    tasks = [t for group in o.groups.values() for t in group]
    candidates = [c["policy"] for c in listed["candidates"]]
    why = {c["policy"]: c["why"] for c in listed["candidates"]}
    o.out.mkdir(parents=True, exist_ok=True)
    halves = [o.out / "choosing.jsonl", o.out / "reporting.jsonl"]

    if not o.no_run:
        run(o, o.seeds[0], [*o.baselines, *candidates], halves[0])
    rows = complete(read(halves[0]), tasks, o.samples)
    best = finalists(o, rows, candidates)
    if not o.no_run:
        run(o, o.seeds[1], [*o.baselines, *best], halves[1])

    about = (f"{o.samples} prompts a task, {o.length} tokens, question not seen; + better and - worse than the better of "
             f"{' and '.join(f'`{b}`' for b in o.baselines)} on the same prompts (95 % of paired bootstrap draws).")
    lines = [f"Choosing half (seed {o.seeds[0]}): {about}", "", *table(o, rows, [*o.baselines, *candidates, "random"], why)]
    rows = complete(read(halves[1]), tasks, o.samples) if halves[1].exists() else {}
    if rows:
        lines += ["", f"Reporting half (seed {o.seeds[1]}), the best {o.finalists}:", "",
                  *table(o, rows, [*o.baselines, *best, "random"], {})]
    if o.table:
        write(o.table, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
