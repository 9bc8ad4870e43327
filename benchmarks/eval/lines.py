"""Lines of results files, as lagkv-eval writes them, and under which conditions they were made."""
import gzip
import json
import pathlib
import sys
import zlib

LARGEST = 1e300  # so that sums are finite, too


def is_number(value):
    """a number"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_size(value):
    """a number, 0 or more"""
    return is_number(value) and value >= 0


def is_whole(value):
    """a whole number, 0 or more"""
    return is_size(value) and isinstance(value, int) and value < 2 ** 64


# By kind of line and field: a type, or what says whether a value is right, and in its doc what it must be.
NEEDED = {"run": {"model_sha256": str, "seed": is_whole},
          "sample": {"task": str, "length": is_whole, "sample": is_whole, "policy": str}}
OPTIONAL = {"run": {"depths": list, "data_sets": dict, "calibration": dict, "question_seen": bool, "chunk": is_whole,
                    "cache_type": str, "transposed": bool, "repack": bool},
            "sample": {"removed": is_number, "scores": dict, "kept_mb": is_size, "kept_tokens": is_whole,
                       "judged_tokens": is_whole, "failure": str}}
SHARES = ("score", "partial", "prefix", "edit", "first_token", "same_token")  # from 0 to 1
BEGINS = '{"type":"'  # a line; one that was cut off is known by it
ALWAYS = {"model_sha256": "", "seed": 0, "question_seen": False, "chunk": 0, "cache_type": "f16", "transposed": False}
IF_KNOWN = ("repack", "depths")  # a file that does not say may be of any


def refuse(why):
    """Ends the program as lagkv-eval does for bad input."""
    print(f"{pathlib.Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    sys.exit(2)


TYPES = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}


def fault_of_field(name, value, form):
    """What is wrong with a value; None where nothing is."""
    right = isinstance(value, form) if form in TYPES else form(value)
    return None if right else f"{name}: must be {TYPES.get(form) or form.__doc__}"


def fault_of(entry):
    """What is wrong with a line; None where nothing is."""
    kind = entry.get("type")
    if kind not in ("run", "sample"):
        return "type: must be run or sample"
    if missing := NEEDED[kind].keys() - entry.keys():
        return f"{sorted(missing)[0]}: is missing"
    for name, form in (NEEDED[kind] | OPTIONAL[kind]).items():
        if name in entry and (fault := fault_of_field(name, entry[name], form)):
            return fault
    for name, value in entry.get("scores", {}).items():
        if value is None:  # not a number, in what lagkv-eval writes
            continue
        if not is_number(value):
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
                    if "\\u" in line:  # half a character, which JSON may have, cannot be printed
                        json.dumps(entry, ensure_ascii=False).encode()
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
