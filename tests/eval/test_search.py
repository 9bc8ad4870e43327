#!/usr/bin/env python3
"""search.py on results made up here: torn lines, what it refuses, and that results of another seed are not taken for those asked
for. lagkv-eval itself is not run."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SEARCH = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "eval" / "search" / "search.py"


def lines_of(seed, scores, task="vt", **more):
    """scores: {policy: a score a sample}."""
    yield {"type": "run", "model_sha256": "m", "seed": seed}
    for policy, values in scores.items():
        for sample, score in enumerate(values):
            removed = {} if policy == "full" else {"removed": 0.75}
            yield {"type": "sample", "task": task, "length": 99, "sample": sample, "policy": policy, **removed,
                   "scores": {"score": score}, **more}


class Search(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = pathlib.Path(self.folder.name)
        self.candidates = self.out / "candidates.json"
        self.candidates.write_text(json.dumps({"tasks": {"tracing": ["vt"]}, "baselines": ["base"], "candidates": [
            {"policy": "good", "why": "it is"}, {"policy": "poor", "why": "it is not"}]}))

    def write(self, half, lines, end=""):
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        (self.out / f"{half}-vt.jsonl").write_text(text + end, encoding="utf-8")

    def run_it(self, *arguments, length="99"):
        return subprocess.run([sys.executable, SEARCH, "--candidates", self.candidates, "--length", length, "--run", "",
                               "--out", self.out, *arguments], capture_output=True, text=True)

    def assert_refused(self, done, said):
        self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
        self.assertIn(said, done.stderr)

    def test_chooses_the_best(self):
        scores = {"full": [1, 1], "base": [0, 1], "good": [1, 1], "poor": [0, 0], "random": [0, 0]}
        self.write("choosing", lines_of(1000, scores, answer="a\u2028b\x85c"), end='{"type":"sample","task":"v')
        self.write("reporting", lines_of(2000, scores))
        done = self.run_it("--finalists", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        choosing, reporting = done.stdout.split("Reporting half (seed 2000), 75 % removed: 2 prompts a task")
        self.assertIn("Choosing half (seed 1000), 75 % removed: 2 prompts a task", choosing)
        self.assertIn("| `good` | it is | 100.0 |", choosing)
        self.assertIn("| `poor` | it is not | 0.0 |", choosing)
        self.assertIn("| `good` | 100.0 |", reporting)
        self.assertNotIn("poor", reporting)

    def test_a_line_without_a_figure_does_not_count(self):
        scores = {"full": [1, 1], "base": [0, 1], "good": [1, 1], "random": [0, 0]}
        whole = [json.dumps(line) for line in lines_of(1000, scores)]
        self.write("choosing", lines_of(1000, scores))
        self.write("reporting", lines_of(2000, scores))
        said = self.run_it().stdout
        self.assertIn("2 prompts a task", said)
        more = json.loads(whole[-1]) | {"sample": 2}
        for figure in ({"scores": {"score": None}}, {"scores": {"agreed": 1}}, {"scores": {}}, {"failure": "no"}):
            self.write("choosing", [*map(json.loads, whole), {**{k: v for k, v in more.items() if k != "scores"}, **figure}])
            done = self.run_it()
            self.assertEqual((done.returncode, done.stdout), (0, said), done.stderr)

    def test_a_baseline_that_lacks_prompts_is_named(self):
        scores = {"full": [1] * 4, "base": [1] * 3, "good": [1] * 4, "random": [0] * 4}
        self.write("choosing", lines_of(1000, scores))
        self.assert_refused(self.run_it(), "no baseline has all prompts at 0.75 removed: must be one or more of base")

    def test_results_of_another_seed_are_not_these(self):
        scores = {"full": [1], "base": [1], "good": [1], "random": [0]}
        self.write("choosing", lines_of(1000, scores))
        self.write("reporting", lines_of(2000, scores))
        self.assert_refused(self.run_it("--seeds", "5", "6"),
                            f"{self.out / 'choosing-vt.jsonl'}: seed is 1000, not 5: name another")

    def test_the_repositorys_results_are_of_their_seeds(self):
        self.candidates.write_text(json.dumps({"tasks": {"prose": ["prose_recall"]}, "baselines": ["lagkv:lag=128"],
                                               "candidates": [{"policy": "novelty", "why": "it is"}]}))
        done = self.run_it("--seeds", "1000", "6", length="2048")
        self.assertIn("Choosing half (seed 1000), 75 % removed: 20 prompts a task", done.stdout, done.stderr)
        self.assertNotIn("Reporting half", done.stdout)

    def test_without_results_to_choose_by_the_policies_must_be_named(self):
        scores = {"full": [1], "base": [1], "good": [1], "random": [0]}
        self.write("reporting", lines_of(2000, scores))
        self.assert_refused(self.run_it(), "--report: name the policies to report")
        self.assertIn("| `good` | 100.0 |", self.run_it("--report", "good").stdout)


if __name__ == "__main__":
    unittest.main()
