#!/usr/bin/env python3
"""Models x policies, from results of lagkv-eval run: tables, a picture and a page.

    matrix.py smollm2-135m=a.jsonl.gz,b.jsonl gemma3-270m.jsonl.gz --removed 0.75 --svg models.svg --html models.html

Each model is NAME=FILE[,FILE...], or FILE alone for the file's own name; its files share model, seed, and all else that
lagkv-eval run asks of a file that it goes on with. All models share cache type, chunk, and whether the question was seen.

A policy that fails on a prompt of a model (it cannot keep that few tokens, say) is left out there, and named with the first
reason. A prompt counts where the full cache and all other policies have it. A task counts where the full cache has 30 of 100 or
more on all its prompts in the files, whatever the share removed; the others are named, and so are those with too few prompts or
none. The share of the tokens that was kept is printed, and in how many prompts the policies kept different numbers.

The mean is that of the tasks' means; its 95 % interval is the percentile bootstrap's over prompts, within each task (2,000
resamples). "Behind" is what the model's best policy has more on the same prompts, with the interval of that difference. Ranks
are by the mean, 1 is best, ties share; the mean rank is over the models, of policies that all models can do.
"""
import argparse
import pathlib
import random
import textwrap
from collections import defaultdict
from html import escape

import lines as results
import marked
import means
import svg
from lines import refuse
from means import mean

GROUPS = {
    "needles": ("niah_", "passkey64", "needles_16", "vt"),
    "documents": ("documents", "qa_", "two_documents", "summary"),
    "copying": ("prose_recall", "table_row", "code_completion"),
    "chat": ("chat_facts",),
    "other": ("few_shot", "ledger", "state_machine", "cwe", "fwe"),
}
TEXTS = {"KL, prose": "perplexity", "KL, code": "perplexity_code"}
LEAST = 0.3  # of the full cache, for a task to count
UNEQUAL = 0.01  # of the tokens kept: policies that differ by more are named


class Results:
    """What files hold at one length and share removed: {policy: {task: {sample: ...}}}."""

    def __init__(self):
        self.scores = defaultdict(lambda: defaultdict(dict))  # or KL
        self.kept = defaultdict(lambda: defaultdict(dict))    # (tokens kept, tokens in the cache before)
        self.failures = defaultdict(list)                     # why, by policy

    def add(self, entry):
        task, sample, policy = entry["task"], entry["sample"], entry["policy"]
        scores = entry.get("scores", {})
        value = scores.get("score", scores.get("kl"))
        if entry.get("failure"):
            self.failures[policy].append(entry["failure"])
        elif value is not None:
            self.scores[policy][task][sample] = value
            if entry.get("judged_tokens"):
                self.kept[policy][task][sample] = entry.get("kept_tokens", 0), entry["judged_tokens"]

    def policies(self):
        return sorted((self.scores.keys() | self.failures.keys()) - {"full"})


def read(name, paths, everywhere, length, removed):
    found, here, there, last = Results(), results.Conditions(), set(), {}
    for path in paths:
        runs, samples = results.read(path)
        here.check(path, runs)
        everywhere.check(path, runs)
        for entry in samples:
            share = 0 if entry["policy"] == "full" else entry.get("removed", 0)
            there.add((entry["length"], share))
            if entry["length"] == length and (entry["policy"] == "full" or share == removed):
                last[entry["task"], entry["sample"], entry["policy"]] = entry  # as lagkv-eval report, where one is there twice
    for entry in last.values():
        found.add(entry)
    if "full" not in found.scores:
        refuse(f"{name}: has no full cache at {length} tokens; there are: {listed(n for n, share in there if share == 0)}")
    if not found.policies():
        shares = listed(share for n, share in there if n == length and share != 0)
        refuse(f"{name}: has nothing with {removed:g} removed at {length} tokens; there are: {shares}")
    return found


def interval(tasks):
    return means.interval(tasks, random.Random(42))


class Model:
    """What a model's files say of the policies asked for."""

    def __init__(self, name, paths, everywhere, o):
        found = read(name, paths, everywhere, o.length, o.removed)
        rows = found.scores
        self.name, self.there = name, found.policies()
        asked = [p for p in o.policies or found.policies() if p in rows or p in found.failures]
        self.left_out = {p: (found.failures[p], sum(map(len, rows[p].values()))) for p in asked if found.failures[p]}
        self.policies = [p for p in asked if p not in self.left_out]
        taking_part = [rows[p] for p in ("full", *self.policies)]
        self.prompts = {}
        for task in rows["full"]:
            common = set.intersection(*(set(r[task]) for r in taking_part))
            if common:
                self.prompts[task] = sorted(common)
        self.without = [t for t in rows["full"] if t not in self.prompts]
        if not self.prompts or not self.policies:
            refuse(f"{name}: no prompt has the full cache and all of {'; '.join(asked or o.policies)}")
        self.values = {p: {t: [rows[p][t][s] for s in common] for t, common in self.prompts.items()}
                       for p in ("full", *self.policies)}
        # A row a prompt: what each policy kept, where the file says so.
        self.kept = [[found.kept[p][t][s] for p in self.policies if s in found.kept[p][t]]
                     for t, common in self.prompts.items() if t != "generation" for s in common]
        scored = [t for t in self.prompts if t not in TEXTS.values() and t != "generation"]
        self.too_few = [t for t in scored if len(self.prompts[t]) < o.prompts]
        scored = [t for t in scored if t not in self.too_few]
        in_full = {t: mean(rows["full"][t].values()) for t in scored}  # on all its prompts: the same tasks in every table
        self.tasks = [t for t in scored if in_full[t] >= LEAST]
        self.beyond = {t: in_full[t] for t in scored if t not in self.tasks}
        if not self.tasks:
            refuse(f"{name}: the full cache has no task with {100 * LEAST:g} of 100 in {o.prompts} prompts or more")

    def mean(self, policy, tasks=None):
        return mean(mean(self.values[policy][t]) for t in tasks or self.tasks)

    def interval(self, policy):
        return interval([self.values[policy][t] for t in self.tasks])

    def best(self):
        return max(self.policies, key=self.mean)

    def behind(self, policy, other):
        """What the other has more, with its interval on the same prompts."""
        apart = [[o - v for o, v in zip(self.values[other][t], self.values[policy][t])] for t in self.tasks]
        return mean(mean(t) for t in apart), interval(apart)

    def group(self, name):
        return [t for t in self.tasks if t.startswith(GROUPS[name])]


def listed(values):
    return "; ".join(str(v) for v in sorted(set(values))) or "none"


def percent(value, bounds=None, digits=0):
    text = f"{100 * value:.{digits}f}"
    return text if bounds is None else f"{text} [{100 * bounds[0]:.{digits}f}, {100 * bounds[1]:.{digits}f}]"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def mean_ranks(models):
    """By policy, of those that all models can do."""
    everywhere = [p for p in models[0].policies if all(p in m.policies for m in models)]
    ranks = defaultdict(list)
    for m in models:
        means = {p: m.mean(p) for p in everywhere}
        for p in everywhere:
            better = sum(v > means[p] + 1e-12 for v in means.values())
            equal = sum(abs(v - means[p]) <= 1e-12 for v in means.values())
            ranks[p].append(better + (equal + 1) / 2)
    return {p: mean(r) for p, r in ranks.items()}


def policies_of(models):
    return list(dict.fromkeys(p for m in models for p in m.policies))


def cells_of(m, policy):
    """In the matrix: the mean, and how far behind the model's best."""
    if policy not in ("full", *m.policies):
        return ["-", "-"]
    behind = "" if policy in ("full", m.best()) else percent(*m.behind(policy, m.best()), digits=1)
    return [percent(m.mean(policy), m.interval(policy)), behind]


def matrix(models):
    ranks = mean_ranks(models)
    order = sorted(policies_of(models), key=lambda p: ranks.get(p, float("inf")))
    heads = [head for m in models for head in (m.name, "behind")]
    lines = [row(["policy", *heads, "mean rank"]), row(["---"] * (len(heads) + 2))]
    lines.append(row(["full cache", *(cell for m in models for cell in cells_of(m, "full")), ""]))
    for p in order:
        cells = [cell for m in models for cell in cells_of(m, p)]
        lines.append(row([f"`{p}`", *cells, f"{ranks[p]:.1f}" if p in ranks else "-"]))
    return lines


def kept_by(m):
    """What was kept, in words: the share, and whether it was the same for all policies."""
    prompts = [kept for kept in m.kept if kept]
    if not prompts:
        return ""
    shares = [100 * kept / cached for prompt in prompts for kept, cached in prompt]
    text = f" Kept: {mean(shares):.1f} % of the tokens ({min(shares):.1f} to {max(shares):.1f} in single prompts)."
    counts = [[kept for kept, _ in prompt] for prompt in prompts]
    apart = [(max(c) - min(c), min(c), max(c)) for c in counts if max(c) - min(c) > UNEQUAL * max(c)]
    if apart:
        _, low, high = max(apart)
        text += (f" In {len(apart)} of {len(prompts)} prompts the policies kept numbers that differ by more than "
                 f"{percent(UNEQUAL)} %, at most {low} against {high} tokens.")
    return text


def about(m):
    counts = {len(m.prompts[t]) for t in m.tasks}
    prompts = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    text = f"{prompts} prompts a task.{kept_by(m)} Tasks that count: {', '.join(m.tasks)}."
    if m.beyond:
        text += " The full cache cannot do: " + ", ".join(f"{t} ({percent(v)})" for t, v in m.beyond.items()) + "."
    if m.too_few:
        text += f" Too few prompts: {', '.join(m.too_few)}."
    if m.without:
        text += f" No prompt that all policies have: {', '.join(m.without)}."
    for policy, (reasons, others) in m.left_out.items():
        text += f" Left out: `{policy}`, which failed on {len(reasons)} of {len(reasons) + others} prompts ({reasons[0]})."
    return text


def wrapped(text):
    return textwrap.wrap(text, 130, break_long_words=False, break_on_hyphens=False)


def table_of(m):
    """A row a policy: the mean, what is lost, each group of tasks, KL."""
    groups = [g for g in GROUPS if m.group(g)]
    texts = {name: task for name, task in TEXTS.items() if task in m.prompts}
    lines = [row(["policy", "mean", "less than the full cache", *groups, *texts]), row(["---"] * (3 + len(groups) + len(texts)))]
    for p in ("full", *sorted(m.policies, key=lambda p: -m.mean(p))):
        cells = [percent(m.mean(p), m.interval(p)), "" if p == "full" else percent(*m.behind(p, "full"))]
        cells += [percent(m.mean(p, m.group(g))) for g in groups]
        cells += ["" if p == "full" else f"{mean(m.values[p][task]):.3f}" for task in texts.values()]
        lines.append(row(["full cache" if p == "full" else f"`{p}`", *cells]))
    return lines


# The picture: a panel a model, a row a policy.
COLOURS = ("#b3261e", "#0b57d0", "#146c2e", "#8a5a00", "#6b4fa0", "#00687a", "#a03070", "#777777")
LABELS, PANEL, GAP, STEP, TOP, BOTTOM = 232, 170, 34, 26, 76, 52


def stroke(path, colour, width=1.0):
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width}" fill="none"/>'


def panel(m, left, order, height):
    def x(value):
        return left + value * PANEL

    out = [svg.text(left, TOP - 28, m.name, font_weight="bold")]
    for tick in (0, 0.5, 1):
        out += [stroke(f"M{x(tick):.1f} {TOP - 8}V{height - BOTTOM + 4}", "#ddd"),
                svg.text(x(tick), height - BOTTOM + 20, percent(tick), text_anchor="middle", font_size=12)]
    full = m.mean("full")
    out += [stroke(f"M{x(full):.1f} {TOP - 8}V{height - BOTTOM + 4}", "#222", 1.5),
            svg.text(x(full), TOP - 10, f"full {percent(full)}", text_anchor="end" if full > 0.6 else "start", font_size=12)]
    for i, p in enumerate(order):
        y = TOP + STEP * (i + 0.5)
        colour = COLOURS[i % len(COLOURS)]
        if p not in m.policies:
            out.append(svg.text(left, y + 4, "not possible here", font_size=12, fill="#777"))
            continue
        if bounds := m.interval(p):
            out.append(stroke(f"M{x(bounds[0]):.1f} {y:.1f}H{x(bounds[1]):.1f}", colour, 2))
        out.append(f'<circle cx="{x(m.mean(p)):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
    return out


def picture(models, removed):
    ranks = mean_ranks(models)
    order = sorted(policies_of(models), key=lambda p: ranks.get(p, float("inf")))
    width = LABELS + len(models) * (PANEL + GAP)
    height = TOP + STEP * len(order) + BOTTOM
    title = f"Accuracy with {percent(removed)} % of the cache removed, by model and policy"
    out = [svg.text(10, 22, title)]
    for i, p in enumerate(order):
        colour = COLOURS[i % len(COLOURS)]
        out.append(svg.text(LABELS - 14, TOP + STEP * (i + 0.5) + 5, p, text_anchor="end", font_size=12, fill=colour))
    for i, m in enumerate(models):
        out += panel(m, LABELS + i * (PANEL + GAP), order, height)
    axis = "mean of the tasks that the full cache can do, of 100 (95 % interval)"
    out.append(svg.text((LABELS + width - GAP) / 2, height - 12, axis, text_anchor="middle", font_size=12))
    return svg.picture(width, height, title, out)


def html_table(lines):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    head = "".join(f"<th>{escape(c)}</th>" for c in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(c.strip('`'))}</td>" for c in r) + "</tr>\n" for r in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def page(models, o):
    """One page without outside parts: the picture, the matrix, a table a model."""
    parts = [f"<h1>{percent(o.removed)} % of the cache removed, {o.length} tokens</h1>", picture(models, o.removed),
             "<h2>Models and policies</h2>", html_table(matrix(models))]
    for m in models:
        parts += [f"<h2>{escape(m.name)}</h2>", f"<p>{escape(about(m))}</p>", html_table(table_of(m))]
    style = ("body{font:15px sans-serif;margin:2em auto;max-width:70em;padding:0 1em}svg{width:100%;height:auto}"
             "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.3em .6em;"
             "text-align:left}")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>Models and policies</title><style>{style}</style><body>" + "\n".join(parts) + "</body></html>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="[NAME=]FILE[,FILE...]")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--removed", type=float, default=0.75)
    parser.add_argument("--prompts", type=int, default=2, help="a task with fewer prompts does not count")
    parser.add_argument("--policies", help="parted by ';'; default all that a model has")
    parser.add_argument("--table", type=pathlib.Path, help="document whose tables are written anew; else they are printed")
    parser.add_argument("--name", default="matrix", help="what that document calls the place of these tables")
    parser.add_argument("--brief", action="store_true", help="the matrix alone, without a table a model")
    parser.add_argument("--svg", type=pathlib.Path, help="write the picture to this file")
    parser.add_argument("--html", type=pathlib.Path, help="write the page to this file")
    o = parser.parse_args()
    o.policies = o.policies.split(";") if o.policies else None
    models, everywhere = [], results.Conditions(only=("cache_type", "chunk", "question_seen"))
    for asked in o.models:
        name, equals, files = asked.partition("=")
        own_name = name if equals else pathlib.Path(name).name.split(".jsonl")[0]
        models.append(Model(own_name, (files or name).split(","), everywhere, o))
    there = {p for m in models for p in m.there}
    for policy in o.policies or ():
        if policy not in there:
            refuse(f"--policies: {policy}: no model has it with {o.removed:g} removed; there are: {listed(there)}")
    lines = matrix(models)
    for m in models:
        if o.brief:
            lines += ["", *wrapped(f"{m.name}: {about(m)}")]
        else:
            lines += ["", f"### {m.name}", "", *wrapped(about(m)), "", *table_of(m)]
    if o.table:
        marked.write(o.table, o.name, lines)
    else:
        print("\n".join(lines))
    if o.svg:
        o.svg.write_text(picture(models, o.removed))
    if o.html:
        o.html.write_text(page(models, o))


if __name__ == "__main__":
    main()
