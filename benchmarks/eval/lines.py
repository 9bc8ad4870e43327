"""Lines of results files, as lagkv-eval writes them, and under which conditions they were made."""
import gzip
import json
import math
import pathlib
import sys
import zlib

NUMBER = (int, float)
NEEDED = {"run": {"model_sha256": str, "seed": int}, "sample": {"task": str, "length": int, "sample": int, "policy": str}}
OPTIONAL = {"run": {"depths": list, "data_sets": dict, "calibration": dict},
            "sample": {"removed": NUMBER, "scores": dict, "kept_mb": NUMBER, "kept_tokens": int, "judged_tokens": int}}
SHARES = ("score", "partial", "prefix", "edit", "first_token", "same_token")  # from 0 to 1
BEGINS = '{"type":"'  # a line; one that was cut off is known by it
ALWAYS = {"model_sha256": "", "seed": 0, "question_seen": False, "chunk": 0, "cache_type": "f16", "transposed": False}
IF_KNOWN = ("repack", "depths")  # a file that does not say may be of any


def refuse(why):
    """Ends the program as lagkv-eval does for bad input."""
    print(f"{pathlib.Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    sys.exit(2)


def fault_of(entry):
    """What is wrong with a line; None where nothing is."""
    kind = entry.get("type")
    if kind not in ("run", "sample"):
        return "type: must be run or sample"
    for name, form in NEEDED[kind].items():
        if not isinstance(entry.get(name), form):
            return f"{name}: is missing or of another type"
    for name, form in OPTIONAL[kind].items():
        if name in entry and not isinstance(entry[name], form):
            return f"{name}: is of another type"
    for name, value in entry.get("scores", {}).items():
        if value is None:  # not a number, in what lagkv-eval writes
            continue
        if not isinstance(value, NUMBER) or not math.isfinite(value):
            return "scores: must be numbers"
        if name in SHARES and not 0 <= value <= 1:
            return f"scores: {name} {value}: must be from 0 to 1"
    return None


def torn(line, begins):
    return not line.endswith("\n") and (line.startswith(begins) or begins.startswith(line))


def entries(path, begins, faults):
    """The lines of a file, .gz or not, each a dict in which `faults` finds none. A last line that was cut off is left out."""
    def refuse_constant(name):
        refuse(f"{path}, line {number}: {name}: is no number of JSON")

    made = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line, parse_constant=refuse_constant)
                except (ValueError, RecursionError):
                    if torn(line, begins):
                        break
                    entry = None
                if fault := "is not a JSON object" if not isinstance(entry, dict) else faults(entry):
                    refuse(f"{path}, line {number}: {fault}")
                made.append(entry)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        refuse(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
    return made


def read(path):
    """The runs and the samples of a file of lagkv-eval run."""
    made = {"run": [], "sample": []}
    for entry in entries(path, BEGINS, fault_of):
        made[entry["type"]].append(entry)
    if not made["run"]:
        refuse(f"{path}: holds no run of lagkv-eval")
    return made["run"], made["sample"]


def conditions_of(run):
    """(field, value) of what a run is known to have been made with."""
    yield from ((field, run.get(field, absent)) for field, absent in ALWAYS.items())
    yield from ((field, run[field]) for field in IF_KNOWN if field in run)
    for files in ("data_sets", "calibration"):  # SHA-256 by task or tensor
        yield from ((f"{files}.{name}", sha256) for name, sha256 in run.get(files, {}).items())


class Conditions:
    """What all runs must have in common: the fields `only`, or all of them but `without`."""

    def __init__(self, only=None, without=()):
        self.only, self.without, self.known = only, without, {}

    def check(self, path, runs):
        for run in runs:
            for field, value in conditions_of(run):
                if field in self.without or (self.only and field not in self.only):
                    continue
                was, where = self.known.setdefault(field, (value, path))
                if was != value:
                    refuse(f"{path}: {field} is {value}, but {was} in {where}")
