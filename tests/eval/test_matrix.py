#!/usr/bin/env python3
"""matrix.py on results made up here: which tasks count, means, ranks, what a model cannot do; fetch_models.py's lists."""
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

EVAL = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "eval"


def write(path, model, rows, seed=7):
    """rows: {(policy, task): scores, None for a failure}."""
    lines = [{"type": "run", "model_sha256": model, "seed": seed}]
    for (policy, task), scores in rows.items():
        for sample, score in enumerate(scores):
            line = {"type": "sample", "task": task, "length": 2048, "sample": sample, "policy": policy}
            if policy != "full":
                line["removed"] = 0.75
            if score is None:
                line["failure"] = "no queries"
            else:
                line["scores"] = {"kl": score} if task == "perplexity" else {"score": score}
            lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Matrix(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        here = pathlib.Path(self.folder.name)
        self.a, self.b = here / "a.jsonl", here / "b.jsonl"
        full = {("full", "niah_single_1"): [1, 1, 1], ("full", "ledger"): [0.25, 0.25, 0.25],
                ("full", "prose_recall"): [1, 0.5, 0], ("full", "perplexity"): [0, 0]}
        good = {("good", "niah_single_1"): [1, 0, 1], ("good", "ledger"): [1, 1, 1], ("good", "prose_recall"): [1, 0, 0],
                ("good", "perplexity"): [0.1, 0.3]}
        poor = {("poor", "niah_single_1"): [0, 0, 0], ("poor", "ledger"): [0, 0, 0], ("poor", "prose_recall"): [0, 0, 0],
                ("poor", "perplexity"): [1, 1]}
        shy = {("shy", t): s for (_, t), s in good.items()}
        write(self.a, "A", full | good | poor | shy)
        write(self.b, "B", full | good | poor | {key: [None] * len(scores) for key, scores in shy.items()})

    def run_it(self, *arguments):
        return subprocess.run([sys.executable, EVAL / "matrix.py", *arguments], capture_output=True, text=True)

    def rows(self, output, heading):
        part = output.split(heading)[1] if heading else output
        return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
                for line in part.split("\n###")[0].splitlines() if line.startswith("|")}

    def test_means_and_ranks(self):
        done = self.run_it(f"a={self.a}", f"b={self.b}")
        self.assertEqual(done.returncode, 0, done.stderr)
        matrix = self.rows(done.stdout, "")
        # The mean of niah (2/3) and prose (1/3); ledger does not count: the full cache has 25 of 100.
        self.assertRegex(matrix["`good`"][0], r"^50 \[\d+, \d+\]$")
        self.assertRegex(matrix["full cache"][0], r"^75 \[\d+, \d+\]$")
        self.assertEqual(matrix["`good`"][2], "1.0")
        self.assertEqual(matrix["`poor`"][2], "2.0")
        self.assertEqual(matrix["`shy`"][1:], ["-", "-"])  # model b cannot: no rank
        self.assertIn("The full cache cannot do: ledger (25).", done.stdout)
        good = self.rows(done.stdout, "### a\n")["`good`"]
        self.assertRegex(good[1], r"^25 \[")  # 75 - 50
        self.assertEqual(good[2:], ["67", "33", "0.200"])  # needles, copying, KL

    def test_interval_is_that_of_prompts(self):
        done = self.run_it(self.a, "--policies", "poor")
        self.assertIn("### a\n", done.stdout)  # the file's name
        self.assertEqual(self.rows(done.stdout, "")["`poor`"][0], "0 [0, 0]")

    def test_a_task_of_too_few_prompts_does_not_count(self):
        write(self.b, "A", {("full", "vt"): [1], ("good", "vt"): [0], ("poor", "vt"): [0], ("shy", "vt"): [0]})
        done = self.run_it(f"a={self.a},{self.b}")
        self.assertIn("Too few prompts: vt.", done.stdout)
        self.assertRegex(self.rows(done.stdout, "")["`good`"][0], r"^50 ")
        self.assertRegex(self.rows(self.run_it(f"a={self.a},{self.b}", "--prompts", "1").stdout, "")["`good`"][0], "^33$")
        self.assertIn("no task with 30 of 100 in 4 prompts", self.run_it(self.a, "--prompts", "4").stderr)

    def test_tables_are_written_between_two_lines(self):
        page = self.a.with_suffix(".md")
        page.write_text("before\n<!-- matrix: begin -->\nold\n<!-- matrix: end -->\nafter\n")
        self.assertEqual(self.run_it(self.a, "--table", page).stdout, "")
        self.assertRegex(page.read_text(), r"(?s)^before\n<!-- matrix: begin -->\n\| policy .*\n<!-- matrix: end -->\nafter\n$")
        self.assertNotIn("old", page.read_text())
        page.write_text("no such lines")
        self.assertIn("has no lines", self.run_it(self.a, "--table", page).stderr)
        self.assertEqual(page.read_text(), "no such lines")

    def test_picture_and_page_stand_alone(self):
        svg, page = self.a.with_suffix(".svg"), self.a.with_suffix(".html")
        self.run_it(f"a<b={self.a}", f"b={self.b}", "--svg", svg, "--html", page)
        self.assertIn("a&lt;b", svg.read_text())
        self.assertIn("not possible here", svg.read_text())
        self.assertEqual(re.findall(r'(?:src|href)="', page.read_text()), [])
        self.assertIn(svg.read_text(), page.read_text() + "\n")

    def test_refuses_what_cannot_be_compared(self):
        write(self.b, "A", {("full", "niah_single_1"): [1]}, seed=8)
        done = self.run_it(f"a={self.a},{self.b}")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("2 models or seeds", done.stderr)
        self.assertIn("no full cache at 4096", self.run_it(f"a={self.a}", "--length", "4096").stderr)


class Models(unittest.TestCase):
    def test_lists_whole_models(self):
        spec = importlib.util.spec_from_file_location("fetch_models", EVAL / "fetch_models.py")
        fetch = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fetch)
        self.assertEqual(fetch.expanded("a{9..11}==2"), ["a9==2", "a10==2", "a11==2"])
        self.assertEqual(fetch.expanded("a==2"), ["a==2"])
        for name, model in fetch.LISTED.items():
            self.assertRegex(model["sha256"], r"^[0-9a-f]{64}$", name)
            self.assertTrue(model["licence"] and model["family"] and model["file"].endswith(".gguf"), name)
            self.assertTrue(all("==" in p for p in model["packages"]), name)


if __name__ == "__main__":
    unittest.main()
