#!/usr/bin/env python3
"""What a user may pick at the same MB: a table and a picture of accuracy against the size of the cache.

    equal_bytes.py f16.jsonl q8_0.jsonl q4_0.jsonl --svg equal_bytes.svg

Each file is one of lagkv-eval run (or .gz), of one --cache-type and alike in all else: model, seed, chunk. Only prompts that all
files have count. An accuracy is the mean of the tasks' means, of 100; a pass key counts by its longest right part (`partial`).
The interval is the percentile bootstrap's over prompts (2,000 resamples, 95 %); there is none where a task has one prompt.
"""
import argparse
import math
import random
from collections import defaultdict

import lines as results
import svg
from lines import refuse
from means import interval, mean


def read(path, alike):
    """The cache type, and {(policy, removed): {(task, length, sample): (score, MB)}}."""
    runs, samples = results.read(path)
    results.Conditions(only=("cache_type",)).check(path, runs)
    alike.check(path, runs)
    rows = defaultdict(dict)
    for entry in samples:
        scores = entry.get("scores", {})
        if scores.get("score") is not None:
            rows[entry["policy"], entry.get("removed", 0)][entry["task"], entry["length"], entry["sample"]] = (
                scores.get("partial", scores["score"]), entry.get("kept_mb", 0))
    if ("full", 0) not in rows:
        refuse(f"{path}: has no full cache")
    return runs[0].get("cache_type", "f16"), rows


def accuracy(scores):
    """Mean over tasks of the mean over prompts, of 100."""
    tasks = defaultdict(list)
    for (task, *_), (score, _) in scores.items():
        tasks[task].append(score)
    return 100 * mean([mean(v) for v in tasks.values()]), tasks


def within_reach(rows, common, least):
    """The prompts of those tasks in which the full cache of a file has so much, of 1."""
    tasks = defaultdict(list)
    for key in common:
        tasks[key[0]].append(rows["full", 0][key][0])
    return {key for key in common if mean(tasks[key[0]]) >= least}


def figures(files, policies, reach):
    alike = results.Conditions(without=("cache_type",))
    runs = [read(f, alike) for f in files]
    wanted = [key for _, rows in runs for key in rows if key[0] in policies]
    common = set.intersection(*(set(rows[key]) for _, rows in runs for key in rows if key in wanted))
    common = within_reach(runs[0][1], common, reach / 100)
    if not common:
        refuse("the files have no prompt in common that counts")
    draw, made = random.Random(42), []
    for cache, rows in runs:
        for (policy, removed), scores in rows.items():
            if policy not in policies:
                continue
            part = {k: v for k, v in scores.items() if k in common}
            value, tasks = accuracy(part)
            made.append({"cache": cache, "policy": policy, "removed": removed, "mb": mean([mb for _, mb in part.values()]),
                         "accuracy": value, "interval": interval(list(tasks.values()), draw)})
    return sorted(made, key=lambda r: (-r["mb"], r["policy"])), len(common)


def table(rows):
    lines = ["| MB | cache | policy | removed | accuracy |", "|---|---|---|---|---|"]
    for r in rows:
        removed = "" if r["policy"] == "full" else "own" if r["removed"] < 0 else f"{100 * r['removed']:g} %"
        accuracy_of = f"{r['accuracy']:.1f}"
        if r["interval"]:
            low, high = r["interval"]
            accuracy_of += f" ({100 * low:.0f} to {100 * high:.0f})"
        lines.append(f"| {r['mb']:.1f} | {r['cache']} | `{r['policy']}` | {removed} | {accuracy_of} |")
    return "\n".join(lines)


COLOURS = ["#0b57d0", "#8a5a00", "#006a3a", "#6b4fa0", "#a33"]
DASHES = {"novelty": "", "streaming_llm": "2 4", "random": "8 5"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 460, 60, 150, 40, 60


def line(path, colour="#222", **how):
    more = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in how.items())
    return f'<path d="{path}" fill="none" stroke="{colour}"{more}/>'


def ring(x, y, colour):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="#fff" stroke="{colour}" stroke-width="2.5"/>'


def dashed(path, colour, policy):
    return line(path, colour, stroke_width=2.5, stroke_dasharray=DASHES.get(policy, "1 3"))


def axes(most, x, y):
    out = [svg.text(LEFT, 24, "accuracy, of 100"),
           svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "size of keys and values, MB", text_anchor="middle")]
    for a in range(0, 101, 20):
        out += [line(f"M{LEFT} {y(a):.1f}H{WIDTH - RIGHT}", "#ddd"), svg.text(LEFT - 8, y(a) + 5, str(a), text_anchor="end")]
    for mb in range(0, int(most) + 1, 10 * math.ceil(most / 100)):
        out += [line(f"M{x(mb):.1f} {HEIGHT - BOTTOM}v6"), svg.text(x(mb), HEIGHT - BOTTOM + 24, str(mb), text_anchor="middle")]
    return out


def picture(rows):
    """SVG: a colour a cache type, a dash a policy; the whole cache of each type is a ring."""
    most = max(r["mb"] for r in rows) * 1.05 or 1  # a file may not say

    def x(mb):
        return LEFT + mb / most * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - value / 100 * (HEIGHT - BOTTOM - TOP)

    title = "Accuracy against the size of the cache, by element type and policy"
    out = axes(most, x, y)
    caches = list(dict.fromkeys(r["cache"] for r in rows))
    policies = list(dict.fromkeys(r["policy"] for r in rows if r["policy"] != "full"))
    for cache, colour in zip(caches, COLOURS * len(caches)):
        whole = [r for r in rows if r["cache"] == cache and r["policy"] == "full"]
        for policy in policies:
            of_policy = [r for r in rows if r["cache"] == cache and r["policy"] == policy]
            points = [f'{x(r["mb"]):.1f} {y(r["accuracy"]):.1f}' for r in sorted(whole + of_policy, key=lambda r: r["mb"])]
            out.append(dashed("M" + "L".join(points), colour, policy))
        out += [ring(x(r["mb"]), y(r["accuracy"]), colour) for r in whole]
        out.append(svg.text(WIDTH - 140, 60 + 24 * caches.index(cache), cache, fill=colour))
    at = 60 + 24 * (len(caches) + 1)
    for policy in policies:
        out += [dashed(f"M{WIDTH - 140} {at - 5}h30", "#222", policy), svg.text(WIDTH - 104, at, policy, font_size=13)]
        at += 24
    out += [ring(WIDTH - 125, at - 5, "#222"), svg.text(WIDTH - 104, at, "whole", font_size=13)]
    return svg.picture(WIDTH, HEIGHT, title, out, font_size=15)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--policies", default="novelty;streaming_llm;random", help="parted by ';'; full is always there")
    parser.add_argument("--reach", type=float, default=0,
                        help="leave out tasks in which the full cache of the first file has less than this, of 100")
    parser.add_argument("--svg", help="write the picture to this file")
    options = parser.parse_args()
    rows, prompts = figures(options.files, ["full"] + options.policies.split(";"), options.reach)
    print(f"{prompts} prompts\n\n{table(rows)}")
    if options.svg:
        with open(options.svg, "w") as file:
            file.write(picture(rows))


if __name__ == "__main__":
    main()
