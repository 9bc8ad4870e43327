"""python -m lagkv: runs a policy on keys and values in .npy files. docs/numpy.md shows it at work."""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import textwrap
from typing import Any, Dict, List, NoReturn, Optional, Set, Tuple

import numpy as np

import lagkv

BAD_INPUT = 2
MOST_LAYERS = 2**32 - 1  # of a budget in bytes


class Refused(Exception):
    """One line that names the culprit."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message} (see python -m lagkv --help)")


def parser() -> Parser:
    p = Parser(prog="python -m lagkv", formatter_class=argparse.RawDescriptionHelpFormatter, description=(
        "Compresses keys and values of one layer in .npy files: [heads, tokens, dim], float32 or float16.\n"
        "Writes kept.npy (original positions, [heads, n]), kept_mask.npy ([heads, tokens]), keys.npy and values.npy to a\n"
        "folder; with select=adaptive, where heads keep different numbers of tokens, only kept_mask.npy."))
    a = p.add_argument
    a("--policy", help="a policy, such as lagkv:lag=128,ratio=0.25 (--list tells what there is)")
    a("--keys", help="keys")
    a("--values", help="values; dim and type may differ from the keys'")
    a("--queries", help="[query_heads, tokens, dim]: queries as they meet the keys (after RoPE), one a token")
    a("--query-mean", help="[query_heads, dim]: mean of the queries to come, for expected_attention")
    a("--query-covariance", help="[query_heads, dim, dim]: their covariance")
    a("--rope-base", type=float, help="the keys carry RoPE of this base (theta), positions 0, 1, 2, ...")
    a("--rope-pairs", help="its pairs: halves (Hugging Face, NeoX) or neighbours; default: halves")
    a("--rope-dims", type=int, help="the first so many channels are rotated (default: all)")
    a("--rope-scale", type=float, help="multiplies positions: 0.25 for linear scaling by 4 (default: 1)")
    a("--rope-factors", help="[pairs]: frequency divisors (Llama 3, YaRN)")
    a("--protect", help="positions that are never dropped: 3,17,40-63")
    a("--layer", help="the arrays are layer I of N, counted from 0: 2/30; for pyramid and budget_mb (default: 0/1)")
    a("--steps", help="append that many tokens a step: 300,1,1 or 300,1x400; writes lengths.npy")
    a("--scores", action="store_true", help="write scores.npy: the scores of all tokens at once, whatever --steps says")
    a("--target", help="force sse2, avx2, avx512 or neon (default: the widest here)")
    a("--out", help="folder for the results, made where it is missing")
    a("--list-markdown", action="store_true", help="print all keys as the table of docs/methods.md, and end")
    a("--list", action="store_true", help="print the policies with their keys, defaults and ranges, and end")
    return p


# ---- what is asked for ------------------------------------------------------------------------------------------------------


def whole(text: str) -> Optional[int]:
    return int(text) if re.fullmatch("[0-9]{1,4000}", text) else None  # int() takes 4,300 digits


def parse_steps(text: str, tokens: int) -> List[int]:
    steps: List[int] = []
    for item in text.split(","):
        first, x, second = item.partition("x")
        n, times = whole(first), whole(second) if x else 1
        if not n or not times:
            raise Refused(f"steps: '{item}': must be a whole number, 1 or more, or NxTIMES")
        if n * times > tokens - sum(steps):
            raise Refused(f"steps: add up to more than the {tokens} tokens of the arrays")
        steps += [n] * times
    if sum(steps) != tokens:
        raise Refused(f"steps: add up to {sum(steps)}: must be the {tokens} tokens of the arrays")
    return steps


def parse_positions(text: str, tokens: int) -> List[int]:
    positions: Set[int] = set()
    for item in text.split(","):
        first, dash, second = item.partition("-")
        begin, end = whole(first), whole(second if dash else first)
        if begin is None or end is None or end < begin:
            raise Refused(f"protect: '{item}': must be positions such as 3,17,40-63")
        if end >= tokens:
            raise Refused(f"protect: '{item}': must be below the {tokens} tokens of the arrays")
        positions.update(range(begin, end + 1))
    return sorted(positions)


def parse_layer(text: Optional[str]) -> Tuple[int, int]:
    if text is None:
        return 0, 1
    first, _, second = text.partition("/")
    index, count = whole(first), whole(second)
    if index is None or count is None or index >= count or count > MOST_LAYERS:
        raise Refused(f"layer={text}: must be I/N, I from 0 to N - 1, N at most {MOST_LAYERS}, such as 2/30")
    return index, count


def load(path: str, shape: Tuple[Optional[int], ...], words: str) -> Any:
    """The array of a file; None in a shape: any number but 0."""
    try:
        if pathlib.Path(path).exists() and not pathlib.Path(path).is_file():
            raise Refused(f"{path}: is no regular file")  # one may wait for ever for a pipe
        with open(path, "rb") as f:
            if f.read(6) != b"\x93NUMPY":
                raise Refused(f"{path}: is not a .npy file")
            f.seek(0)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            version = np.lib.format.read_magic(f)
            if version in read and min(read[version](f)[0], default=0) < 0:  # NumPy 1 takes it for what the file has
                raise Refused(f"{path}: the header has a negative size")
        x = np.load(path, allow_pickle=False)
    except OSError as e:
        raise Refused(f"{path}: cannot be opened: {e.strerror}") from None
    except Refused:
        raise
    except Exception as e:  # numpy's reader lets through what its parser of a damaged header throws: TokenError, TypeError, ...
        raise Refused(f"{path}: {(str(e) or type(e).__name__).splitlines()[0]}") from None
    if x.dtype not in (np.float32, np.float16):
        raise Refused(f"{path}: type {x.dtype.str}: must be float32 or float16")
    if x.ndim != len(shape) or x.size == 0 or any(n is not None and n != m for n, m in zip(shape, x.shape)):
        raise Refused(f"{path}: shape {list(x.shape)}: must be {words}")
    return np.ascontiguousarray(x)


def check_out(o: argparse.Namespace) -> None:
    """Refuses a folder in which a result would take the place of an input."""
    for name in ("kept", "kept_mask", "keys", "values", "lengths", "scores"):
        result = pathlib.Path(o.out) / f"{name}.npy"
        for option in ("keys", "values", "queries", "query_mean", "query_covariance", "rope_factors"):
            path = getattr(o, option)
            if path and result.exists() and pathlib.Path(path).exists() and result.samefile(path):
                raise Refused(f"--out {o.out}: {name}.npy there is the input --{option.replace('_', '-')}: name another folder")


class Job:
    """All that is read and checked."""

    def __init__(self, o: argparse.Namespace) -> None:
        for name in ("policy", "keys", "values", "out"):
            if not getattr(o, name):
                raise Refused(f"--{name}: is missing (see python -m lagkv --help)")
        check_out(o)
        self.text, self.method = o.policy, o.policy.partition(":")[0]
        policy = lagkv.parse(o.policy)
        self.workspace = lagkv.Workspace(target=o.target)
        self.keys = load(o.keys, (None, None, None), "[heads, tokens, dim], each 1 or more")
        self.values = load(o.values, (None, None, None), "[heads, tokens, dim], each 1 or more")
        self.heads, self.tokens, dim = self.keys.shape
        if self.values.shape[:2] != (self.heads, self.tokens):
            raise Refused(f"keys {list(self.keys.shape)}, values {list(self.values.shape)}: must have the same heads and tokens")
        self.steps = parse_steps(o.steps, self.tokens) if o.steps is not None else []
        self.offers: Dict[str, Any] = {"positions": np.tile(np.arange(self.tokens, dtype=np.int32), (self.heads, 1))}
        if o.protect is not None:
            self.offers["protect"] = parse_positions(o.protect, self.tokens)
        every = f"[query_heads, {self.tokens}, {dim}], a query for each token"
        for name, shape, words in (("queries", (None, self.tokens, dim), every),
                                   ("query_mean", (None, dim), f"[query_heads, {dim}]"),
                                   ("query_covariance", (None, dim, dim), f"[query_heads, {dim}, {dim}]")):
            path = getattr(o, name)
            if path is not None:
                x = load(path, shape, words)
                self.offers[name] = x if name == "queries" else x.astype(np.float32)
                self._check("full", path)
        self._load_rope(o, dim)
        index, count = parse_layer(o.layer)
        try:
            self.policy = policy.fit(self.layer(), count).for_layer(index, count)
            lagkv.check(self.policy, self.layer(), any_length=True)
        except lagkv.Error as e:
            raise Refused(f"{self.method}: {e}{self._hint()}") from None
        if o.scores and not self.policy.has_scores:
            raise Refused(f"scores: {self.method} has none")
        if self.policy.ragged and self.steps:
            raise Refused("steps: with select=adaptive heads have different lengths after the first compression, so no array can "
                          "take the next step: leave --steps out")

    def layer(self) -> lagkv.Layer:
        return lagkv.Layer(self.keys, self.values, **self.offers)

    def _check(self, policy: str, culprit: str) -> None:
        try:
            lagkv.check(policy, self.layer())
        except lagkv.Error as e:
            raise Refused(f"{culprit}: {e}") from None

    def _load_rope(self, o: argparse.Namespace, dim: int) -> None:
        given = [n for n in ("rope_pairs", "rope_dims", "rope_scale", "rope_factors") if getattr(o, n) is not None]
        if o.rope_base is None:
            if given:
                raise Refused(f"--{given[0].replace('_', '-')}: requires --rope-base (see python -m lagkv --help)")
            return
        dims = o.rope_dims or 0
        if not 0 <= dims <= dim:
            raise Refused(f"rope: dims={dims}: must be at most the {dim} channels of the keys")
        factors: List[float] = []
        if o.rope_factors is not None:
            n = (dims or dim) // 2
            x = load(o.rope_factors, (n,), f"[{n}], one a pair")
            if x.dtype != np.float32:
                raise Refused(f"{o.rope_factors}: type {x.dtype}: must be float32")
            factors = [float(f) for f in x]
        pairs = o.rope_pairs or "halves"
        if pairs not in ("halves", "neighbours"):
            raise Refused(f"rope-pairs={pairs}: must be halves or neighbours")
        try:
            self.offers["rope"] = lagkv.Rope(o.rope_base, pairs=pairs, dims=dims, factors=factors,
                                             position_scale=1.0 if o.rope_scale is None else o.rope_scale)
            lagkv.check("random:pre_rope=yes", self.layer())
        except lagkv.Error as e:
            raise Refused("rope: " + str(e).replace("rope: ", "")) from None

    def _hint(self) -> str:
        """Which options bring what the policy lacks."""
        needs = lagkv.parse(self.text).needs
        if needs["rope"] and "rope" not in self.offers:
            return ": give --rope-base, or pre_rope=no for keys as they are"
        if needs["calibrated"] and "query_mean" not in self.offers:
            return ": give --query-mean and --query-covariance"
        if "queries" in self.offers:
            return ""
        if needs["queries"] or needs["accumulated_attention"]:
            return ": give --queries"
        lacks = needs["query_statistics"] and "query_mean" not in self.offers
        return ": give --query-mean and --query-covariance, or --queries" if lacks else ""


# ---- the work ---------------------------------------------------------------------------------------------------------------


def at_once(job: Job) -> Dict[str, Any]:
    """A plan for all tokens, no memory moved: heads may keep different numbers of them."""
    plan = lagkv.plan_eviction(job.policy, job.layer(), workspace=job.workspace)
    mask = np.zeros((job.heads, job.tokens), np.uint8)
    for h in range(job.heads):
        mask[h, plan.rows(h)] = 1
    return {"kept_mask": mask}


def unbroken(positions: Any, seen: int) -> int:
    """How many of the last rows are the last of the `seen` tokens, in all heads."""
    rows = positions.shape[1]
    same = (positions[:, ::-1] == np.arange(seen - 1, seen - 1 - rows, -1)).all(0)
    return rows if same.all() else int(same.argmin())


def step_by_step(job: Job) -> Dict[str, Any]:
    """Appends, and lets the policy act after each step, as prefill and decode do."""
    needs = job.policy.needs
    keys, values = np.empty_like(job.keys), np.empty_like(job.values)
    positions = np.zeros((job.heads, job.tokens), np.int32)
    offers = {n: x for n, x in job.offers.items() if n not in ("positions", "queries")}
    attention = np.zeros((job.heads, job.tokens), np.float32)
    if needs["accumulated_attention"]:
        offers["accumulated_attention"] = attention
    if needs["key_statistics"] and job.policy.again:
        offers["key_statistics"] = np.zeros((job.heads, 2 * job.keys.shape[2] + 1))
    queries = job.offers.get("queries")
    layer = lagkv.Layer(keys, values, 0, positions=positions, **offers)
    cursor, seen, whole_rows, lengths = lagkv.Cursor(), 0, 0, []
    for n in job.steps or [job.tokens]:
        at = layer.tokens
        keys[:, at:at + n], values[:, at:at + n] = job.keys[:, seen:seen + n], job.values[:, seen:seen + n]
        positions[:, at:at + n] = np.arange(seen, seen + n)
        attention[:, at:at + n] = 0
        layer.tokens += n
        seen, whole_rows = seen + n, whole_rows + n
        if needs["accumulated_attention"] and queries is not None:
            layer.offer(queries=queries[:, seen - n:seen])
        lagkv.accumulate(job.policy, layer, cursor=cursor, n=n, workspace=job.workspace)
        all_of_them = needs["query_statistics"] and "query_mean" not in job.offers
        offered = whole_rows if all_of_them else min(needs["queries"], whole_rows)
        layer.offer(queries=queries[:, seen - offered:seen] if offered and queries is not None else None)
        if len(job.policy.due(cursor, layer.tokens)):
            rows = layer.tokens
            lagkv.compress(job.policy, layer, cursor=cursor, workspace=job.workspace)
            if layer.tokens < rows:
                whole_rows = unbroken(positions[:, :layer.tokens], seen)
        else:
            lagkv.compress("full", layer, cursor=cursor)
        lengths.append(layer.tokens)
    kept = positions[:, :layer.tokens]
    mask = np.zeros((job.heads, job.tokens), np.uint8)
    np.put_along_axis(mask, kept, 1, 1)
    out = {"kept": kept, "kept_mask": mask, "keys": keys[:, :layer.tokens], "values": values[:, :layer.tokens]}
    if job.steps:
        out["lengths"] = np.array(lengths, np.int32)
    return out


def scores_of(job: Job) -> Any:
    """Of all tokens at once; docs/numpy.md has the shapes."""
    due = job.policy.all_candidates(job.tokens)
    lag = job.policy.lag
    if not len(due) and job.policy.by_partition:
        return np.zeros((job.heads, 0, lag), np.float32)
    scores = lagkv.score(job.policy, job.layer(), candidates=due, workspace=job.workspace) if len(due) else None
    if scores is not None and job.policy.by_partition:
        return scores.reshape(job.heads, -1, lag)
    out = np.full((job.heads, job.tokens), 1 if job.method == "lagkv" else np.nan, np.float32)
    if scores is not None:
        out[:, due.begin:due.end] = scores
    return out


def run(o: argparse.Namespace) -> None:
    job = Job(o)
    arrays: Dict[str, Any] = {"scores": scores_of(job)} if o.scores else {}
    arrays.update(at_once(job) if job.policy.ragged else step_by_step(job))
    folder = pathlib.Path(o.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise Refused(f"{folder}: cannot be made a folder") from None
    for name, x in arrays.items():
        try:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(x))
        except OSError as e:
            raise Refused(f"{folder / name}.npy: cannot be written: {e.strerror}") from None
    counts = arrays["kept_mask"].sum(1)
    rows = str(counts.max()) if counts.min() == counts.max() else f"from {counts.min()} to {counts.max()}"
    print(f"{o.out}: {rows} of {job.tokens} tokens stay in each of {job.heads} heads ({job.workspace.target})")


# ---- the list ---------------------------------------------------------------------------------------------------------------


def listed() -> str:
    """All policies with their keys."""
    def entry(head: str, text: str) -> List[str]:
        lines = textwrap.wrap(text, 80) or [""]
        if len(head) >= 20:
            return [head] + [" " * 20 + line for line in lines]
        return [head.ljust(20) + lines[0]] + [" " * 20 + line for line in lines[1:]]

    def keys(options: List[Tuple[str, Any, str, str]]) -> List[str]:
        return [line for key, default, accepted, meaning in options
                for line in entry(f"  {key}={'...' if default is None else default}", f"{meaning} [{accepted[8:]}]")]

    out = ["A policy is NAME or NAME:KEY=VALUE,KEY=VALUE,... with keys in any order. Those not given have the", "values below; "
           "KEY=... has none.", "", "Policies", "--------"]
    for m in lagkv.methods():
        out += entry(m["name"], m["meaning"] + (f", {m['source']}" if m["source"] else ""))
        out += entry("", f"reads {m['reads']}") + keys(m["options"])
        out += [line for key, value in m["instead"].items() for line in entry(f"  {key}={value}", "default of the shared key")]
        out.append("")
    own = [m["name"] for m in lagkv.methods() if m["has_budget"]]
    title = f"Keys of every policy but {', '.join(own)}, and of every fusion"
    out += [title, "-" * len(title)] + keys(lagkv.shared_options()) + ["", "Fusions", "-------"]
    fusable = ", ".join(m["name"] for m in lagkv.methods() if m["fusable"])
    out += entry("fuse:A+B", f"the sum of the ranks that two to four of these give: {fusable}")
    return "\n".join(out + keys(lagkv.fusion_options())) + "\n"


def markdown() -> str:
    """All keys, as the table of docs/methods.md."""
    def range_of(accepted: str) -> str:
        words = accepted[len("must be "):].replace("a whole number", "whole,").replace("one of ", "", 1)
        return re.sub(r"^whole, from (\d+) to 2147483647$", r"whole, \1 or more", words)

    def number(x: Any) -> str:
        return "-" if x is None else f"{x:g}" if isinstance(x, (int, float)) else str(x)

    tables = [(m["name"], m["options"]) for m in lagkv.methods()]
    tables += [("shared", lagkv.shared_options()), ("fuse", lagkv.fusion_options())]
    out = "| policy | key | default | accepted | meaning |\n|---|---|---|---|---|\n"
    for name, options in tables:
        for i, (key, default, accepted, meaning) in enumerate(options):
            out += f"| {f'`{name}` ' if i == 0 else ''}| `{key}` | {number(default)} | {range_of(accepted)} | {meaning} |\n"
    return out


def main(arguments: Optional[List[str]] = None) -> int:
    try:
        o = parser().parse_args(arguments)
        if o.list_markdown:
            sys.stdout.write(markdown())
        elif o.list:
            sys.stdout.write(listed())
        else:
            run(o)
        return 0
    except (Refused, lagkv.Error, MemoryError, UnicodeEncodeError) as e:
        print(f"lagkv: {e or 'out of memory'}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
