#!/usr/bin/env python3
"""Branch coverage of what lagkv/lagkv.cpp and lagkv/simd/kernels.cpp compile: all that is no template.

  python3 tests/coverage.py          needs gcovr 8.3 or later (pip); the report is build/mutants/coverage/index.html

The tests are those of tests/mutants.py, filters and all, and some more. They are linked anew with objects that have gcov's
counters. These objects come first: of an inline function the linker takes the first copy, so calls of the tests count, too.
Branches that only an exception takes are not counted; --decisions counts the outcomes of if, while, for and switch by themselves.
"""

import pathlib
import subprocess
import sys

from mutants import BUILD, OPTIONS, ROOT, TESTS, build, program, run

MORE = ["kernels", "faults", "layouts"]
SOURCES = {"lagkv": "include/lagkv/lagkv.cpp", "kernels": "include/lagkv/simd/kernels.cpp"}
OWN = {"kernels": ["tests/other_lanes.cpp", "-w"]}  # sources and flags of a test of its own


def main():
    build()
    folder = BUILD / "coverage"
    folder.mkdir(exist_ok=True)
    for name, source in SOURCES.items():
        print("builds", source, flush=True)
        run("g++", *OPTIONS, "-O0", "-w", "--coverage", "-fprofile-update=atomic", "-c", source, "-o", f"{folder}/{name}.o")
    for counters in folder.glob("*.gcda"):
        counters.unlink()
    for test in MORE:
        if test not in TESTS:
            program(test, *OWN.get(test, []))
    failed = []
    for test in dict.fromkeys([*TESTS, *MORE]):
        print("runs", test, flush=True)
        more = [pathlib.Path(word).stem for word in OWN.get(test, []) if word.endswith(".cpp")]
        units = [f"{BUILD}/{name}.o" for name in (f"{test}_test", *more, "oracle", "methods_oracle")]
        run("g++", "--coverage", *[f"{folder}/{name}.o" for name in SOURCES], *units, "-lgtest_main", "-lgtest", "-lpthread",
            "-o", f"{folder}/{test}")
        command = [f"{folder}/{test}", "--gtest_brief=1", f"--gtest_filter={'*' if test in MORE else TESTS[test]}"]
        done = subprocess.run(command, cwd=BUILD, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            failed.append(test)
    gcovr = pathlib.Path(sys.executable).with_name("gcovr")
    run(str(gcovr) if gcovr.exists() else "gcovr", "--root", str(ROOT), "--filter", "include/lagkv/", "--exclude-throw-branches",
        "--exclude-unreachable-branches", "--decisions", "--txt-metric", "branch", "--html-details", f"{folder}/index.html",
        "--gcov-suspicious-hits-threshold", "0",
        "--json", f"{folder}/all.json", "--txt", "-", "--print-summary", "--merge-mode-functions", "merge-use-line-min",
        "--object-directory", str(folder), str(folder))
    if failed:
        sys.exit("tests/coverage.py: failed: " + " ".join(failed))


if __name__ == "__main__":
    main()
