#!/usr/bin/env python3
"""lagkv-bench, an iteration a row: it has the rows that docs/benchmarks.md shows, they run, and their rates, which are of the
numbers that their names say, are of the same time as their medians. What compiles files (include/) is left out.

  test_bench.py lagkv-bench
"""
import json
import pathlib
import re
import subprocess
import sys
import unittest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
PROGRAM = sys.argv.pop(1)
HEADS = 8
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1, "fp8_e4m3": 1, "q8_0": 34 / 32, "q4_0": 18 / 32}


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=True).stdout


class Bench(unittest.TestCase):
    def test_the_rows_of_the_page(self):
        rows = run("--benchmark_list_tests").splitlines()
        page = PAGE.read_text()
        shown = re.findall(r"^\| `(\w+/\w+/d\d+/[\w/]+)`", page, re.M)
        shown += ["method/f16/d128/16384/" + policy for policy in re.findall(r"^\| `(\w+:[^`]+)`", page, re.M)]
        self.assertGreater(len(shown), 100)
        # Plain C++ beside SIMD, which version 0.1 had.
        self.assertEqual([row for row in shown if row not in rows and not row.endswith(("/scalar", "/POLICY"))], [])

    def test_rows_run_and_their_rates_are_of_their_times(self):
        # All that is timed, in the smallest size that there is of each.
        rows = json.loads(run("--benchmark_filter=d64/4096|step_threads|_paged|_transposed|_window|d128/16384/[a-z]|accumulate|"
                              "(int8|fp8_e4m3|q8_0|q4_0)/d128|due|decode", "--benchmark_min_time=0.000001",
                              "--benchmark_format=json"))["benchmarks"]
        self.assertGreater(len(rows), 60)
        for row in rows:
            name = row["name"]
            self.assertFalse(row.get("error_occurred"), f"{name}: {row.get('error_message')}")
            if "median_ms" not in row:
                continue
            with self.subTest(name):
                kind, dtype, dim, tokens = re.match(r"(\w+)/(\w+)/d(\d+)/(\d+)", name).groups()
                seconds, per_second = row["median_ms"] / 1e3, row["elements/s"]
                if kind not in ("select", "compact"):  # of scores, and of what moves
                    elements = (1 if kind == "accumulate" else 2) * HEADS * int(dim) * int(tokens)
                    times = per_second * seconds / elements
                    if kind == "step_threads":  # both are of the wall time of the one iteration
                        self.assertAlmostEqual(times, 1, delta=0.01)
                    else:  # the rate is of CPU time, which on a busy machine is any part of the wall time
                        self.assertGreater(times, 0.75)
                self.assertAlmostEqual(row["bytes/s"] / per_second, 4 if kind == "select" else BYTES[dtype], delta=0.001)


if __name__ == "__main__":
    unittest.main()
