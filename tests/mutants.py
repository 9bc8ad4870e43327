#!/usr/bin/env python3
"""Mutation testing: changes one operator, comparison or constant of the core at a time and asks whether a test notices.

  python3 tests/mutants.py                  goes on where it stopped, in an order that a seed draws, until all are done
  python3 tests/mutants.py --minutes 30     for so long
  python3 tests/mutants.py --survivors      only those that survived, again: after tests have been added
  python3 tests/mutants.py --list           what has survived so far

Only bodies that lagkv/lagkv.cpp compiles are changed: that file is a shared library of its own, so that a mutant costs
its compilation (3 s) and the core tests (up to 20 s), which end at the first failure. All is kept in build/mutants; a
mutant whose line has changed is new. A mutant that does not compile is not counted, one that does not end in 30 s
is killed.
"""

import argparse
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

# ---- what is mutated and what must notice it: change it here ----------------------------------------------------------

HEADERS = ["compress.hpp", "policy/budget.hpp", "select/*.hpp", "transform/*.hpp", "plan/*.hpp", "score/*.hpp",
           "attention/attention.hpp"]
LEFT_OUT = ["score/leverage.hpp"]  # needs Eigen: it is not compiled in lagkv.cpp
TESTS = {  # the quick ones first; a filter where the rest shows nothing more of these headers
    "transforms": "*", "selectors": "*", "layers": "*", "budgets": "*", "layouts": "*",
    "golden": "*real*heads_first*:*kvpress*heads_first*:stream*heads_first*", "parallel": "*", "rope": "*", "pre_rope": "*",
    "nonfinite": "*sse2", "properties": "*", "methods": "*",
    "nonfinite_rows": "*one_bad_value*:*bad_quer*:*weight*:*snapkv_:*key_diff_:*manifold_window*"}
OPTIONS = "-std=c++20 -fPIC -DLAGKV_COMPILED -Iinclude -I. -Itests -Ibuild/mutants".split()
EIGEN = ["-isystem", "/usr/include/eigen3"]
DEFINES = [f'-DLAGKV_GOLDEN="{ROOT}/tests/golden"', f'-DLAGKV_METHODS_PAGE="{ROOT}/docs/methods.md"']
SECONDS, GIB = 30, 4

# ---- mutations --------------------------------------------------------------------------------------------------------

SWAPS = [(r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "),
         (r" && ", " || "), (r" \|\| ", " && "), (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "),
         (r" \+= ", " -= "), (r" -= ", " += "), (r" % ", " / "), (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
         (r"(?<=[( ])!(?=[a-z(])", ""), (r"\+\+(?=[a-z])", "--"), (r"(?<![\w.])0(?=[;,) ])", "1"),
         (r"(?<![\w.])1(?=[;,) ])", "2"), (r"(?<![\w.])2(?=[;,) ])", "3"), (r"\b0\.0F", "1.0F"),
         (r"\b1\.0F", "2.0F"), (r"\bcontinue;", ";")]


def bodies(path):
    """Numbers and texts of the lines between #if LAGKV_BODIES and its #endif, without comments and messages."""
    inside = False
    for number, line in enumerate(path.read_text().splitlines()):
        if line.startswith("#if LAGKV_BODIES"):
            inside = True
        elif inside and line.startswith("#endif"):
            inside = False
        elif inside and line.strip() and "refuse(" not in line:
            if not line.lstrip().startswith(("//", "#", "template", "assert")):
                yield number, line


def mutants():
    for pattern in HEADERS:
        for path in sorted((ROOT / "include/lagkv").glob(pattern)):
            name = str(path.relative_to(ROOT / "include/lagkv"))
            if name in LEFT_OUT:
                continue
            for number, line in bodies(path):
                code = line.split("  // ")[0]
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

def run(*words):
    subprocess.run(words, cwd=ROOT, check=True)


def program(test, *more):
    """A test program that loads libmutant.so."""
    print("builds", test, flush=True)
    run("g++", *OPTIONS, *EIGEN, *DEFINES, "-O1", f"tests/{test}_test.cpp", *more, f"{BUILD}/oracle.o",
        f"{BUILD}/methods_oracle.o", f"-L{BUILD}", "-lmutant", "-lgtest_main", "-lgtest", "-lpthread", "-o", f"{BUILD}/{test}")


def build():
    """The tests, against a shared library of lagkv.cpp; again when a source has changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    stamp = hashlib.sha1()
    for path in sorted([*ROOT.glob("include/**/*"), *ROOT.glob("tests/*.cpp"), *ROOT.glob("tests/support/*")]):
        if path.is_file():
            stamp.update(path.read_bytes())
    done = BUILD / "stamp"
    if done.exists() and done.read_text() == stamp.hexdigest():
        return
    (BUILD / "golden_cases.inc").write_text(golden_table())
    run("g++", *OPTIONS, "-O2", "-c", "include/lagkv/simd/kernels.cpp", "-o", f"{BUILD}/kernels.o")
    library(BUILD, ROOT / "include")
    for support in ("oracle", "methods_oracle"):
        run("g++", *OPTIONS, *EIGEN, "-O1", "-c", f"tests/support/{support}.cpp", "-o", f"{BUILD}/{support}.o")
    for test in TESTS:
        program(test)
    for test in TESTS:
        if not passes(test, BUILD):
            sys.exit(f"tests/mutants.py: {test}_test fails without a mutant")
    done.write_text(stamp.hexdigest())


def library(folder, include):
    """libmutant.so in `folder`, of the headers below `include`; whether it compiles."""
    command = ["g++", f"-I{include}", *OPTIONS, "-O0", "-w", "-shared", "include/lagkv/lagkv.cpp", f"{BUILD}/kernels.o", "-o",
               str(folder / "libmutant.so")]
    command[command.index("include/lagkv/lagkv.cpp")] = str(include / "lagkv/lagkv.cpp")
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def passes(test, folder):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [str(BUILD / test), f"--gtest_filter={TESTS[test]}", "--gtest_fail_fast", "--gtest_brief=1"]
    try:
        return subprocess.run(command, cwd=BUILD, env=environment, preexec_fn=limit, timeout=10 * SECONDS,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def judge(mutant):
    """Which test notices; "" if none does, None if it does not compile."""
    folder = BUILD / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "include", folder / "include")
    path = folder / "include/lagkv" / mutant["file"]
    lines = path.read_text().splitlines()
    lines[mutant["line"] - 1] = mutant["text"]
    path.write_text("\n".join(lines) + "\n")
    if not library(folder, folder / "include"):
        return None
    return next((test for test in TESTS if not passes(test, folder)), "")


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


def say(known):
    done = [m for m in known.values() if "by" in m]
    counted = [m for m in done if m["by"] is not None]
    killed = [m for m in counted if m["by"]]
    share = 100 * len(killed) / max(1, len(counted))
    print(f"{len(known)} mutants, {len(done)} tried, {len(done) - len(counted)} do not compile: "
          f"{len(killed)} of {len(counted)} killed ({share:.1f} %)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    known = results()
    if options.list:
        for m in sorted(known.values(), key=lambda m: (m["file"], m["line"])):
            if m.get("by") == "":
                print(f"{m['file']}:{m['line']}\n  was {m['was']}\n  is  {m['is']}")
        return say(known)
    build()
    todo = [m for m in known.values() if (m.get("by") == "" if options.survivors else "by" not in m)]
    random.Random(1).shuffle(todo)
    end = time.monotonic() + 60 * options.minutes
    for m in todo:
        if time.monotonic() > end:
            break
        m["by"] = judge(m)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"key": m["key"], "by": m["by"]}) + "\n")
        word = {None: "does not compile", "": "SURVIVES"}.get(m["by"], f"killed by {m['by']}")
        print(f"{m['file']}:{m['line']}: {m['is']}: {word}", flush=True)
    say(known)


if __name__ == "__main__":
    main()
