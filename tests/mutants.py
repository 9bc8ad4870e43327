#!/usr/bin/env python3
"""Mutation testing: changes one operator, comparison or constant of the core at a time and asks whether a test notices.

  python3 tests/mutants.py                  goes on where it stopped, in an order that a seed draws, until all are done
  python3 tests/mutants.py --minutes 30     for so long
  python3 tests/mutants.py --survivors      only those that survived, again: after tests have been added
  python3 tests/mutants.py --list           what has survived so far, without those that equal_mutants.txt explains

Only bodies that lagkv/lagkv.cpp compiles are changed. Those of each header are compiled by themselves, into a shared
library: a mutant costs its compilation (0.5 s) and the core tests, those first that have killed the most mutants of this
header in the least time. They end at the first failure. All is kept in build/mutants; a mutant whose line has changed is
new. A mutant that does not compile is not counted, one that takes four times as long as the code is killed.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from compilers.run import golden_table  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutants"
RESULTS = BUILD / "results.jsonl"
EQUAL = ROOT / "tests" / "equal_mutants.txt"

# ---- what is mutated and what must notice it: change it here ----------------------------------------------------------

HEADERS = ["compress.hpp", "policy/budget.hpp", "select/*.hpp", "transform/*.hpp", "plan/*.hpp", "score/*.hpp",
           "attention/attention.hpp"]
LEFT_OUT = ["score/leverage.hpp"]  # needs Eigen: it is not compiled in lagkv.cpp
TESTS = {  # the quick ones first; a filter where the rest shows nothing more of these headers
    "transforms": "*", "selectors": "*", "layers": "*", "budgets": "*", "layouts": "*",
    "golden": "*real*heads_first*:*kvpress*heads_first*:stream*heads_first*", "parallel": "*", "rope": "*", "pre_rope": "*",
    "nonfinite": "*sse2", "properties": "*", "methods": "*",
    "nonfinite_rows": "*one_bad_value*:*bad_quer*:*weight*:*snapkv_:*key_diff_:*manifold_window*:*of_cur*",
    "edges": "*", "faults": "*compress*", "stacked": "*", "baselines": "*", "methods_oracle": "*", "quantised": "*", "large": "*",
    "memory": "*"}
OPTIONS = "-std=c++20 -fPIC -DLAGKV_COMPILED -DNDEBUG -Iinclude -I. -Itests -Ibuild/mutants/include".split()
EIGEN = ["-isystem", "/usr/include/eigen3"]
DEFINES = [f'-DLAGKV_GOLDEN="{ROOT}/tests/golden"', f'-DLAGKV_METHODS_PAGE="{ROOT}/docs/methods.md"']
GIB = 4  # of address space

# ---- mutations --------------------------------------------------------------------------------------------------------

SWAPS = [(r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "),
         (r" && ", " || "), (r" \|\| ", " && "), (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "),
         (r" \+= ", " -= "), (r" -= ", " += "), (r" % ", " / "), (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
         (r"(?<=[( ])!(?=[a-z(])", ""), (r"\+\+(?=[a-z])", "--"), (r"(?<![\w.])0(?=[;,) ])", "1"),
         (r"(?<![\w.])1(?=[;,) ])", "2"), (r"(?<![\w.])2(?=[;,) ])", "3"), (r"\b0\.0F", "1.0F"),
         (r"\b1\.0F", "2.0F"), (r"\bcontinue;", ";")]


def section(lines):
    """Indices of the first line after #if LAGKV_BODIES and of its #endif."""
    begin = next(i for i, line in enumerate(lines) if line.startswith("#if LAGKV_BODIES")) + 1
    depth, end = 1, begin
    while True:
        depth += lines[end].startswith("#if") - lines[end].startswith("#endif")
        if depth == 0:
            return begin, end
        end += 1


def bodies(path):
    """Indices and texts of the lines of that section, without comments and messages, and without what debug builds check."""
    lines = path.read_text().splitlines()
    depth = 0
    for i in range(*section(lines)):
        depth += lines[i].startswith("#if") - lines[i].startswith("#endif")
        if depth == 0 and lines[i].strip() and "refuse(" not in lines[i]:
            if not lines[i].lstrip().startswith(("//", "#", "template", "assert")):
                yield i, lines[i]


def mutants():
    for pattern in HEADERS:
        for path in sorted((ROOT / "include/lagkv").glob(pattern)):
            name = str(path.relative_to(ROOT / "include/lagkv"))
            if name in LEFT_OUT or "\n#if LAGKV_BODIES" not in path.read_text():
                continue
            for number, line in bodies(path):
                code = re.split("  ///?", line)[0]
                strings = [m.span() for m in re.finditer(r'"[^"]*"', code)]
                for old, new in SWAPS:
                    for m in re.finditer(old, code):
                        if any(a <= m.start() < b for a, b in strings) or m.group() == new:
                            continue
                        changed = code[:m.start()] + new + code[m.end():]
                        key = hashlib.sha1(f"{name}|{number}|{line}|{changed}".encode()).hexdigest()[:16]
                        yield {"key": key, "file": name, "line": number + 1, "was": code.strip(), "is": changed.strip(),
                               "text": changed}


# ---- building and running ---------------------------------------------------------------------------------------------

CACHE = ["ccache"] if shutil.which("ccache") else []
INCLUDE = ROOT / "include/lagkv"


def run(*words):
    subprocess.run(words, cwd=ROOT, check=True)


def program(test, *more):
    """A test program that loads libmutant.so."""
    print("builds", test, flush=True)
    units = [f"tests/{test}_test.cpp", *[m for m in more if m.endswith(".cpp")]]
    for unit in units:
        run(*CACHE, "g++", *OPTIONS, *EIGEN, *DEFINES, *[m for m in more if m not in units], "-O1", "-c", unit, "-o",
            f"{BUILD}/{pathlib.Path(unit).stem}.o")
    run("g++", *[f"{BUILD}/{pathlib.Path(unit).stem}.o" for unit in units], f"{BUILD}/oracle.o", f"{BUILD}/methods_oracle.o",
        f"-L{BUILD}", "-lmutant", "-lgtest_main", "-lgtest", "-lpthread", "-o", f"{BUILD}/{test}")


def unit(lines):
    """The bodies of a header as a file of their own: all declarations come from the precompiled header."""
    begin, end = section(lines)
    spaces = []
    for line in lines[:begin]:
        if line.startswith("namespace ") and line.endswith("{"):
            spaces.append(line)
        elif line.startswith("}  // namespace"):
            spaces.pop()
    return "\n".join([*spaces, *lines[begin:end], *["}" for _ in spaces]])


def compiles(name, lines, folder, *flags):
    """Compiles the bodies of header `name` to an object in `folder`; whether that works."""
    source = folder / (name.replace("/", "-") + ".cpp")
    source.write_text(unit(lines))
    return subprocess.run(["g++", *OPTIONS, "-w", "-O1", *flags, "-include", str(BUILD / "declared.hpp"), "-c", str(source), "-o",
                           str(source.with_suffix(".o"))], cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


def link(folder, objects):
    """libmutant.so in `folder`."""
    command = ["g++", "-shared", *map(str, objects), f"{BUILD}/kernels.o", "-o", str(folder / "libmutant.so")]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


def build():
    """The tests, against a shared library of all bodies; again when a source has changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    stamp = hashlib.sha1(repr(TESTS).encode())
    for path in sorted([*ROOT.glob("include/**/*"), *ROOT.glob("tests/*.cpp"), *ROOT.glob("tests/support/*")]):
        if path.is_file():
            stamp.update(path.read_bytes())
    done = BUILD / "stamp"
    if done.exists() and done.read_text() == stamp.hexdigest():
        return
    (BUILD / "include").mkdir(exist_ok=True)
    (BUILD / "include/golden_cases.inc").write_text(golden_table())
    (BUILD / "declared.hpp").write_text("#include <lagkv/lagkv.hpp>\n")
    run("g++", *OPTIONS, "-w", "-O1", "-x", "c++-header", f"{BUILD}/declared.hpp")
    run(*CACHE, "g++", *OPTIONS, "-O2", "-c", "include/lagkv/simd/kernels.cpp", "-o", f"{BUILD}/kernels.o")
    parts = BUILD / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    print("builds the bodies of each header", flush=True)
    for path in sorted(INCLUDE.glob("**/*.hpp")):
        name = str(path.relative_to(INCLUDE))
        if "\n#if LAGKV_BODIES" in path.read_text() and name not in LEFT_OUT and not name.startswith("adapters/"):
            if not compiles(name, path.read_text().splitlines(), parts):
                sys.exit(f"tests/mutants.py: the bodies of {name} cannot be compiled by themselves")
    if not link(BUILD, parts.glob("*.o")):
        sys.exit("tests/mutants.py: the bodies cannot be linked")
    for support in ("oracle", "methods_oracle"):
        run(*CACHE, "g++", *OPTIONS, *EIGEN, "-O1", "-c", f"tests/support/{support}.cpp", "-o", f"{BUILD}/{support}.o")
    times = {}
    for test in TESTS:
        program(test)
        start = time.monotonic()
        if not passes(test, BUILD, 300):
            sys.exit(f"tests/mutants.py: {test}_test fails without a mutant")
        times[test] = round(time.monotonic() - start, 2)
    print(times)
    (BUILD / "times.json").write_text(json.dumps(times))
    done.write_text(stamp.hexdigest())


def passes(test, folder, seconds):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [str(BUILD / test), f"--gtest_filter={TESTS[test]}", "--gtest_fail_fast", "--gtest_brief=1"]
    try:
        return subprocess.run(command, cwd=BUILD, env=environment, preexec_fn=limit, timeout=10 * seconds,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def judge(mutant, order, times):
    """Which test notices; "" if none does, None if it does not compile."""
    folder = BUILD / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = (INCLUDE / mutant["file"]).read_text().splitlines()
    lines[mutant["line"] - 1] = mutant["text"]
    if not compiles(mutant["file"], lines, folder):
        return None
    own = mutant["file"].replace("/", "-") + ".o"
    if not link(folder, [folder / own, *[o for o in sorted((BUILD / "parts").glob("*.o")) if o.name != own]]):
        return None
    return next((test for test in order if not passes(test, folder, 3 + int(3 * times[test]))), "")


def quickest(known, file, times):
    """The tests in the order of what they cost for each mutant of a header that they have killed."""
    killed = collections.Counter(m["by"] for m in known.values() if m["file"] == file and m.get("by"))
    return sorted(TESTS, key=lambda test: (times[test] + 0.2) / (killed[test] + 0.5))


# ---- what has been found ----------------------------------------------------------------------------------------------

def results():
    """Of each mutant that there is now the last result."""
    known = {m["key"]: m for m in mutants()}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            found = json.loads(line)
            if found["key"] in known:
                known[found["key"]]["by"] = found["by"]
    return known


def explained():
    """Of each mutant that equal_mutants.txt has, as (file, changed line), why no test can notice it."""
    blocks = [block.splitlines() for block in EQUAL.read_text().split("\n\n")[1:]]
    return {(file.strip(), line.strip()): why for file, line, why in blocks}


def interval(k, n):
    """Wilson's 95 % interval of a share k / n, in percent."""
    z, p = 1.96, k / max(1, n)
    middle, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return tuple(100 * (middle + side * half) / (1 + z * z / n) for side in (-1, 1))


def say(known):
    done = [m for m in known.values() if "by" in m]
    counted = [m for m in done if m["by"] is not None]
    killed = sum(1 for m in counted if m["by"])
    equal = sum(1 for m in counted if not m["by"] and (m["file"], m["is"]) in explained())
    print(f"{len(known)} mutants, {len(done)} tried, {len(done) - len(counted)} do not compile; {killed} of {len(counted)} "
          f"killed, {equal} explained, {len(counted) - killed - equal} not")
    for words, n in (("all that compile", len(counted)), ("those that a test can notice", len(counted) - equal)):
        if n > 0:
            low, high = interval(killed, n)
            print(f"killed of {words}: {100 * killed / n:.1f} % (95 % interval {low:.1f} to {high:.1f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1, help="of the order; another one draws a sample of its own (default 1)")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    known = results()
    if options.list:
        for m in sorted(known.values(), key=lambda m: (m["file"], m["line"])):
            if m.get("by") == "" and (m["file"], m["is"]) not in explained():
                print(f"{m['file']}:{m['line']}\n  was {m['was']}\n  is  {m['is']}")
        return say(known)
    build()
    times = json.loads((BUILD / "times.json").read_text())
    again = [m for m in known.values() if m.get("by") == "" and (m["file"], m["is"]) not in explained()]
    todo = again if options.survivors else [m for m in known.values() if "by" not in m]
    random.Random(options.seed).shuffle(todo)
    end = time.monotonic() + 60 * options.minutes
    for m in todo:
        if time.monotonic() > end:
            break
        m["by"] = judge(m, quickest(known, m["file"], times), times)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"key": m["key"], "by": m["by"]}) + "\n")
        word = {None: "does not compile", "": "SURVIVES"}.get(m["by"], f"killed by {m['by']}")
        print(f"{m['file']}:{m['line']}: {m['is']}: {word}", flush=True)
    say(known)


if __name__ == "__main__":
    main()
