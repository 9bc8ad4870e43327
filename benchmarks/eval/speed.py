#!/usr/bin/env python3
"""How fast a prompt is read and a token decoded by the length of the prompt: a table and a picture.

    speed.py speed.jsonl --attention plain --threads 1 --svg speed.svg

The file is that of lagkv-eval speed --out. Each figure is the median over the rounds that the file has; what it has not is left
out. "x full", "x short" and "x same cells" are medians of the ratios in each round.
"""
import argparse
import pathlib
from collections import defaultdict
from statistics import median

import marked
import svg
from lines import entries, fault_of_field, is_number, is_size, is_whole, refuse

PANELS = (("prompt_seconds", "seconds to read the prompt"), ("token_ms", "milliseconds to decode a token"))
COLOURS = ("#222", "#0b57d0", "#8a5a00", "#006a3a", "#6b4fa0", "#a33")
SAME_CELLS = "short, same cells"
WIDTH, HEIGHT, LEFT, GAP, RIGHT, TOP, BOTTOM = 860, 380, 50, 70, 150, 40, 60


def is_time(value):
    """a number above 0 and below 1e6"""
    return is_number(value) and 0 < value < 1e6


def is_length(value):
    """a whole number, 1 or more and below 1e9"""
    return is_whole(value) and 0 < value < 1e9


def is_peak(value):
    """a number, 0 or more, or null"""
    return value is None or is_size(value)  # null: the system does not say


NEEDED = {"key": {"attention": str, "threads": is_whole, "length": is_length, "policy": str, "round": is_whole},
          "speed": {"prompt_seconds": is_time, "token_ms": is_time, "cache_mb": is_size, "peak_rss_mb": is_peak},
          "run": {"model": str, "machine": str, "llama": str, "chunk": is_whole, "removed": is_number, "cache_type": str,
                  "date": str}}


def fault_of(entry):
    for name, fields in NEEDED.items():
        if not isinstance(entry.get(name), dict) or not fields.keys() <= entry[name].keys():
            return f"{name}: is missing, or has not all of {', '.join(fields)}"
        for field, form in fields.items():
            if fault := fault_of_field(field, entry[name][field], form):
                return f"{name}: {fault}"
    return None


def read(path, attention, threads):
    """{(length, policy): {round: speed}}, in the file's order, and the runs' facts."""
    rows, run = defaultdict(dict), None
    for entry in entries(path, '{"key":', fault_of):
        key = entry["key"]
        if key["attention"] == attention and key["threads"] == threads:
            rows[key["length"], key["policy"]][key["round"]] = entry["speed"]
            run = entry["run"]
    if run is None:
        refuse(f"{path}: has no run with {attention} attention and {threads} threads")
    return rows, run


def middle(rounds, what):
    return median(s[what] for s in rounds.values())


def memory(rounds):
    """Of the rounds in which the system says it."""
    said = [s["peak_rss_mb"] for s in rounds.values() if s["peak_rss_mb"] is not None]
    return f"{median(said):,.0f}" if said else "-"


def ratio(rows, length, policy, what, to="full"):
    """To another row, in the rounds that have both; "" where there is none."""
    other = rows.get((length, to), {})
    both = [s[what] / other[n][what] for n, s in rows[length, policy].items() if n in other]
    return f"{median(both):.2f}" if both else ""


def table(rows):
    lines = ["| tokens | policy | to read them | x full | a token | x full | x short | x same cells | cache, MB | RSS, MB |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    named = None
    ends = ["full", None, "short", SAME_CELLS]  # the policies stand between
    for length, policy in sorted(rows, key=lambda k: (k[0], ends.index(k[1]) if k[1] in ends else 1)):
        of = rows[length, policy]
        tokens = [ratio(rows, length, policy, "token_ms", to) for to in ("full", "short", SAME_CELLS)]
        cells = [f"{length:,}" if length != named else "", f"`{policy}`",
                 f"{middle(of, 'prompt_seconds'):,.0f} s", ratio(rows, length, policy, "prompt_seconds"),
                 f"{middle(of, 'token_ms'):.1f} ms", *tokens,
                 f"{middle(of, 'cache_mb'):,.0f}", memory(of)]
        lines.append("| " + " | ".join(cells) + " |")
        named = length
    return lines


def panel(rows, policies, what, heading, left, width):
    """One number against the length, a line a policy."""
    lengths = sorted({length for length, _ in rows})
    most = max(middle(rows[k], what) for k in rows if k[1] in policies) * 1.05

    def x(length):
        return left + length / lengths[-1] * width

    def y(value):
        return HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP)

    step = next(s * 10 ** e for e in range(-1, 6) for s in (1, 2, 5) if most / (s * 10 ** e) <= 6)
    out = [svg.text(left, 24, heading)]
    for i in range(int(most / step) + 1):
        out += [f'<path d="M{left} {y(i * step):.1f}h{width}" stroke="#ddd"/>',
                svg.text(left - 6, y(i * step) + 5, f"{i * step:g}", text_anchor="end")]
    for length in lengths:
        out += [f'<path d="M{x(length):.1f} {HEIGHT - BOTTOM}v6" stroke="#222"/>',
                svg.text(x(length), HEIGHT - BOTTOM + 24, f"{length / 1024:g}k", text_anchor="middle")]
    out.append(svg.text(left + width / 2, HEIGHT - 12, "tokens of prompt and answer", text_anchor="middle"))
    for policy, colour in zip(policies, COLOURS):
        points = [(x(n), y(middle(rows[n, policy], what))) for n in lengths if (n, policy) in rows]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in points]
    return out


def picture(rows):
    policies = [p for p in dict.fromkeys(policy for _, policy in rows) if not p.startswith("short")]
    width = (WIDTH - LEFT - GAP - RIGHT) // 2
    out = []
    for i, (what, heading) in enumerate(PANELS):
        out += panel(rows, policies, what, heading, LEFT + i * (width + GAP), width)
    for i, (policy, colour) in enumerate(zip(policies, COLOURS)):
        out.append(svg.text(WIDTH - RIGHT + 12, 60 + 24 * i, policy, fill=colour))
    return svg.picture(WIDTH, HEIGHT, "Time by the length of the prompt, full cache and policies", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--attention", default="plain", choices=["plain", "flash"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=pathlib.Path, help="document whose table is written anew; else it is printed")
    parser.add_argument("--svg", help="write the picture to this file")
    options = parser.parse_args()
    rows, run = read(options.file, options.attention, options.threads)
    facts = (f"{run['model']}, {run['machine']}, {run['llama']}, {options.attention} attention, {options.threads} threads, "
             f"chunks of {run['chunk']}, {100 * run['removed']:.0f} % removed, {run['cache_type']}, {run['date'][:10]}")
    if options.table:
        marked.write(options.table, f"speed {options.attention} {options.threads}", table(rows))
    else:
        print("\n".join([facts, "", *table(rows)]))
    if options.svg:
        with open(options.svg, "w") as file:
            file.write(picture(rows))


if __name__ == "__main__":
    main()
