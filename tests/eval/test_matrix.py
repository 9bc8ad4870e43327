#!/usr/bin/env python3
"""matrix.py on results made up here: which tasks count, means, ranks, what a model cannot do, what it and equal_bytes.py refuse;
equal_bytes.py's policies, what speed.py says of memory that is not known, fetch_models.py's lists."""
import importlib.util
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest
from unittest import mock

EVAL = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "eval"


def write(path, model, rows, seed=7, kept=None, **conditions):
    """rows: {(policy, task): scores, None for a failure}; kept: {policy: tokens of 1,000 in each sample}."""
    lines = [{"type": "run", "model_sha256": model, "seed": seed, **conditions}]
    for (policy, task), scores in rows.items():
        for sample, score in enumerate(scores):
            line = {"type": "sample", "task": task, "length": 2048, "sample": sample, "policy": policy}
            if policy != "full":
                line["removed"] = 0.75
            if score is None:
                line["failure"] = "no queries"
            else:
                line["scores"] = {"kl": score} if task == "perplexity" else {"score": score}
                if kept and policy in kept:
                    line |= {"judged_tokens": 1000, "kept_tokens": kept[policy][sample]}
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

    def run_it(self, *arguments, program="matrix.py"):
        return subprocess.run([sys.executable, EVAL / program, *arguments], capture_output=True, text=True)

    def assert_refused(self, arguments, *said, program="matrix.py"):
        done = self.run_it(*arguments, program=program)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
        for part in (f"{program}: ", *said):
            self.assertIn(part, done.stderr)

    def prose(self, *arguments):
        """What it prints, with its lines joined."""
        return " ".join(self.run_it(*arguments).stdout.split())

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
        self.assertEqual(matrix["`good`"][4], "1.0")
        self.assertEqual(matrix["`poor`"][4], "2.0")
        self.assertEqual(matrix["`shy`"][2:], ["-", "-", "-"])  # model b cannot: no rank
        self.assertIn("The full cache cannot do: ledger (25).", done.stdout)
        good = self.rows(done.stdout, "### a\n")["`good`"]
        self.assertRegex(good[1], r"^25 \[")  # 75 - 50
        self.assertEqual(good[2:], ["67", "33", "0.200"])  # needles, copying, KL

    def test_behind_is_the_difference_on_the_same_prompts(self):
        # Scores that go up and down together: the means' intervals are wide, that of the difference is not.
        write(self.a, "A", {("full", "vt"): [1, 1, 1, 1], ("first", "vt"): [0.25, 1, 0.25, 1],
                            ("next", "vt"): [0, 0.75, 0, 0.75]})
        matrix = self.rows(self.run_it(self.a).stdout, "")
        self.assertEqual(matrix["policy"], ["a", "behind", "mean rank"])
        self.assertEqual(matrix["`next`"][1], "25.0 [25.0, 25.0]")
        self.assertEqual((matrix["full cache"][1], matrix["`first`"][1]), ("", ""))
        self.assertEqual(matrix["`next`"][0], "38 [0, 75]")

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

    def test_a_policy_that_fails_is_left_out_and_the_prompts_stay(self):
        write(self.a, "A", {("full", "vt"): [1, 1, 1], ("good", "vt"): [1, 0, 1], ("shy", "vt"): [1, None, None],
                            ("full", "ledger"): [1, 1], ("good", "perplexity"): [0.1]},
              kept={"good": [250, 260, 240], "shy": [250, 250, 250]})
        done = self.run_it(self.a, "--brief")
        self.assertEqual(self.rows(done.stdout, "").keys(), {"policy", "---", "full cache", "`good`"})
        self.assertRegex(self.rows(done.stdout, "")["`good`"][0], r"^67 ")
        self.assertTrue(all(len(line) <= 130 for line in done.stdout.splitlines()), done.stdout)
        prose = self.prose(self.a, "--brief")
        self.assertIn("a: 3 prompts a task. Kept: 25.0 % of the tokens (24.0 to 26.0 in single prompts). Tasks", prose)
        self.assertIn("No prompt that all policies have: ledger.", prose)
        self.assertIn("Left out: `shy`, which failed on 2 of 3 prompts (no queries).", prose)
        self.assertNotIn("differ", prose)
        self.assert_refused([self.a, "--policies", "shy"], "a: no prompt has the full cache and all of shy")

    def test_the_later_result_of_a_prompt_counts(self):
        write(self.a, "A", {("full", "vt"): [1, 1], ("good", "vt"): [None, 1], ("shy", "vt"): [1, 1]})
        write(self.b, "A", {("good", "vt"): [0, 0], ("shy", "vt"): [None, 1]})
        prose = self.prose(f"a={self.a},{self.b}")
        self.assertIn("| `good` | 0 [0, 0] |", prose)
        self.assertIn("Left out: `shy`, which failed on 1 of 2 prompts (no queries).", prose)
        prose = self.prose(f"a={self.b},{self.a}")
        self.assertIn("| `shy` | 100 [100, 100] |", prose)
        self.assertIn("Left out: `good`, which failed on 1 of 2 prompts (no queries).", prose)

    def test_prompts_in_which_policies_kept_different_numbers_are_counted(self):
        write(self.a, "A", {("full", "vt"): [1, 1, 1], ("good", "vt"): [1, 0, 1], ("poor", "vt"): [0, 0, 0]},
              kept={"good": [200, 250, 250], "poor": [202, 252, 270]})
        self.assertIn(" In 1 of 3 prompts the policies kept numbers that differ by more than 1 %, at most 250 against 270 tokens",
                      self.prose(self.a))

    def test_all_prompts_of_the_full_cache_say_which_task_counts(self):
        write(self.a, "A", {("full", "vt"): [1, 1, 0, 0, 0, 0, 0, 0], ("full", "fwe"): [0, 0, 1, 1], ("full", "cwe"): [1, 1],
                            ("good", "vt"): [1, 1], ("good", "fwe"): [0, 1], ("good", "cwe"): [1, 1]})
        done = self.run_it(self.a)
        self.assertIn("Tasks that count: fwe, cwe. The full cache cannot do: vt (25).", done.stdout)
        self.assertRegex(self.rows(done.stdout, "")["full cache"][0], r"^50 ")  # of the prompts that all have

    def test_tables_are_written_between_two_lines(self):
        page = self.a.with_suffix(".md")
        page.write_text("before\n<!-- matrix: begin -->\nold\n<!-- matrix: end -->\nafter\n")
        self.assertEqual(self.run_it(self.a, "--table", page).stdout, "")
        self.assertRegex(page.read_text(), r"(?s)^before\n<!-- matrix: begin -->\n\| policy .*\n<!-- matrix: end -->\nafter\n$")
        self.assertNotIn("old", page.read_text())
        page.write_text("no such lines")
        self.assertIn("has no lines", self.run_it(self.a, "--table", page).stderr)
        self.assertEqual(page.read_text(), "no such lines")

    def test_a_document_may_have_several_of_them(self):
        page = pathlib.Path(self.folder.name) / "page.md"
        page.write_text("<!-- matrix: begin -->\n<!-- matrix: end -->\n<!-- brief: begin -->\nold\n<!-- brief: end -->\n")
        self.assertEqual(self.run_it(self.a, self.b, "--table", page, "--name", "brief", "--brief").stderr, "")
        before, written = page.read_text().split("<!-- brief: begin -->")
        self.assertEqual(before, "<!-- matrix: begin -->\n<!-- matrix: end -->\n")
        self.assertIn("| `good` |", written)
        self.assertIn("a: 3 prompts a task. Tasks that count: niah_single_1, prose_recall.", written)
        self.assertNotIn("less than the full cache", written)
        self.assertNotIn("old", written)

    def test_picture_and_page_stand_alone(self):
        svg, page = self.a.with_suffix(".svg"), self.a.with_suffix(".html")
        self.run_it(f"a<b={self.a}", f"b={self.b}", "--svg", svg, "--html", page)
        self.assertIn("a&lt;b", svg.read_text())
        self.assertIn("not possible here", svg.read_text())
        self.assertEqual(re.findall(r'(?:src|href)="', page.read_text()), [])
        self.assertIn(svg.read_text(), page.read_text() + "\n")

    def test_refuses_what_cannot_be_compared(self):
        rows = {("full", "niah_single_1"): [1], ("good", "niah_single_1"): [1]}
        known = {"calibration": {"queries": "c"}, "repack": True, "depths": [0.5], "data_sets": {"qa_1": "d"}}
        write(self.a, "A", rows, **known)
        for field, value, was in (("seed", 8, 7), ("cache_type", "q8_0", "f16"), ("chunk", 512, 0),
                                  ("question_seen", True, False), ("transposed", True, False), ("calibration.queries", "e", "c"),
                                  ("repack", False, True), ("depths", [0.1], [0.5]), ("data_sets.qa_1", "f", "d")):
            files, _, name = field.partition(".")
            other = {files: {name: value} if name else value}
            write(self.b, "A", rows, **other)
            self.assert_refused([f"a={self.a},{self.b}"], f"{self.b}: {field} is {value}, but {was} in {self.a}")
        write(self.b, "B", rows)
        self.assert_refused([f"a={self.a},{self.b}"], f"{self.b}: model_sha256 is B, but A in {self.a}")
        self.assert_refused([f"a={self.a}", "--length", "4096"], "a: has no full cache at 4096 tokens; there are: 2048")
        self.assert_refused([f"a={self.a}", "--removed", "0.7"],
                            "a: has nothing with 0.7 removed at 2048 tokens; there are: 0.75")
        self.assert_refused([f"a={self.a}", "--policies", "good;goood", "--prompts", "1"],
                            "--policies: goood: no model has it with 0.75 removed; there are: good")
        # Other models have other seeds and calibrations, and are compressed as these are.
        write(self.b, "B", rows, seed=8, calibration={"queries": "e"})
        self.assertEqual(self.run_it(self.a, self.b, "--prompts", "1").returncode, 0)
        write(self.b, "B", rows, chunk=512)
        self.assert_refused([self.a, self.b, "--prompts", "1"], f"{self.b}: chunk is 512, but 0 in {self.a}")
        # A file that does not say how it was made may be of any.
        write(self.b, "A", {("full", "vt"): [1], ("good", "vt"): [1]})
        self.assertEqual(self.run_it(f"a={self.a},{self.b}", "--prompts", "1").returncode, 0)

    def test_a_file_that_is_none_of_ours_is_named_in_one_line(self):
        good = self.a.read_text()
        run, sample = good.splitlines()[:2]
        for text, said in ((good + "\n", f"line {len(good.splitlines()) + 1}: is not a JSON object"),
                           ("<!doctype html>\n<p>no</p>\n", "line 1: is not a JSON object"),
                           ("\ufeff" + good, "line 1: is not a JSON object"),
                           ('{"a": 1}\n', "line 1: type: must be run or sample"), ("[1]\n", "line 1: is not a JSON object"),
                           (run.replace('"seed"', '"s"') + "\n", "line 1: seed: is missing"),
                           (run + "\n" + sample.replace('"task"', '"t"') + "\n", "line 2: task: is missing"),
                           (run + "\n" + sample.replace('"score": 1', '"score": "1"') + "\n", "line 2: scores: must be numbers"),
                           (run + "\n" + sample.replace('"score": 1', '"score": NaN') + "\n",
                            "line 2: NaN: is no number of JSON"),
                           (run + "\n" + sample.replace('"score": 1', '"score": 1e999') + "\n",
                            "line 2: scores: must be numbers"),
                           (run + "\n" + sample.replace('"score": 1', '"score": 5') + "\n",
                            "line 2: scores: score 5: must be from 0 to 1"),
                           (run + "\n" + sample.replace('"score": 1', '"first_token": -1') + "\n",
                            "line 2: scores: first_token -1: must be from 0 to 1"),
                           (run.replace("{", '{"data_sets": [], ', 1) + "\n", "line 1: data_sets: must be an object"),
                           (run.replace("{", '{"cache_type": [], ', 1) + "\n", "line 1: cache_type: must be a text"),
                           (run.replace('"seed": 7', '"seed": true') + "\n", "line 1: seed: must be a whole number, 0 or more"),
                           *((f"{run}\n{sample[:-1]}, {more}}}\n", f"line 2: {name}: must be {what}") for more, name, what in (
                               ('"kept_mb": 1e999', "kept_mb", "a number, 0 or more"),
                               ('"kept_mb": -1', "kept_mb", "a number, 0 or more"),
                               ('"kept_mb": 1' + "0" * 400, "kept_mb", "a number, 0 or more"),
                               ('"removed": 1e999', "removed", "a number"), ('"failure": [1]', "failure", "a text"),
                               ('"judged_tokens": -4', "judged_tokens", "a whole number, 0 or more"))),
                           (run + "\n" + sample.replace('"policy": "', '"policy": "\\ud800') + "\n",
                            "line 2: is not a JSON object"),
                           ("[" * 100000 + "\n", "line 1: is not a JSON object"), ("", "holds no run of lagkv-eval")):
            self.b.write_text(text)
            for program in ("matrix.py", "equal_bytes.py"):
                self.assert_refused([self.b], str(self.b), said, program=program)
        self.assert_refused([self.a], f"{self.a}, line 1: key: is missing", program="speed.py")
        self.b.write_bytes(b"\xff\xfe\n")
        self.assert_refused([self.b], f"{self.b}: cannot be read")
        packed = self.b.with_suffix(".gz")
        packed.write_text("not packed")
        for path in (packed, self.b.with_suffix(".none"), self.b.parent):
            self.assert_refused([path], f"{path}: cannot be read")

    def test_a_line_that_was_cut_off_is_left_out(self):
        whole = self.run_it(self.a).stdout
        self.a.write_text(self.a.read_text() + '{"type":"sample","task":"vt","len')
        self.assertEqual(self.run_it(self.a).stdout, whole)


class EqualBytes(unittest.TestCase):
    def test_policies_of_two_options_can_be_named(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "f16.jsonl"
            write(path, "A", {("full", "vt"): [1, 1], ("novelty:ridge=1,smooth=4", "vt"): [1, 0], ("random", "vt"): [0, 0]})
            command = [sys.executable, EVAL / "equal_bytes.py", path, "--policies", "novelty:ridge=1,smooth=4;random"]
            done = subprocess.run(command, capture_output=True, text=True)
        self.assertIn("| f16 | `novelty:ridge=1,smooth=4` | 75 % | 50.0", done.stdout, done.stderr)
        self.assertIn("| f16 | `random` | 75 % | 0.0", done.stdout)


    def table_and_picture(self, rows, removed=0.75, mb=None):
        with tempfile.TemporaryDirectory() as folder:
            path, svg = pathlib.Path(folder) / "f16.jsonl", pathlib.Path(folder) / "f16.svg"
            write(path, "A", rows)
            text = path.read_text().replace('"removed": 0.75', f'"removed": {removed}')
            path.write_text(text.replace('"scores"', f'"kept_mb": {mb}, "scores"') if mb else text)
            command = [sys.executable, EVAL / "equal_bytes.py", path, "--policies", "good", "--svg", svg]
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout, svg.read_text()

    def test_there_is_no_interval_where_a_task_has_one_prompt(self):
        two = {("full", "vt"): [1, 1], ("good", "vt"): [1, 0]}
        one = {("full", "fwe"): [1], ("good", "fwe"): [0]}
        self.assertIn("| `good` | 75 % | 50.0 (0 to 100) |", self.table_and_picture(two)[0])
        self.assertIn("| `good` | 75 % | 25.0 |", self.table_and_picture(two | one)[0])

    def test_the_share_that_was_removed_is_said_as_it_is(self):
        rows = {("full", "vt"): [1, 1], ("good", "vt"): [1, 0]}
        for removed, said in ((0.875, "87.5 %"), (0.9375, "93.75 %"), (0.55, "55 %"), (-1, "own")):
            self.assertIn(f"| `good` | {said} |", self.table_and_picture(rows, removed)[0])

    def test_the_picture_has_few_marks_at_any_size(self):
        rows = {("full", "vt"): [1, 1], ("good", "vt"): [1, 0]}
        for mb in (None, 3, 43, 16000, 1e30):
            self.assertLess(self.table_and_picture(rows, mb=mb)[1].count("v6"), 13, mb)


class Speed(unittest.TestCase):
    def test_a_peak_of_memory_that_is_not_known_is_a_dash(self):
        known = EVAL / "results" / "speed-smollm2-135m.jsonl"
        whole = subprocess.run([sys.executable, EVAL / "speed.py", known], capture_output=True, text=True)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "speed.jsonl"
            path.write_text(re.sub(r'"peak_rss_mb":[0-9.]+', '"peak_rss_mb":null', known.read_text()))
            done = subprocess.run([sys.executable, EVAL / "speed.py", path], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual([re.sub(r"[^|]*\|$", "", line) for line in done.stdout.splitlines()],
                             [re.sub(r"[^|]*\|$", "", line) for line in whole.stdout.splitlines()])
            self.assertTrue(all(line.endswith("| - |") for line in done.stdout.splitlines()[4:]), done.stdout)
            path.write_text(re.sub(r'"cache_mb":[0-9.]+', '"cache_mb":null', known.read_text(), count=1))
            done = subprocess.run([sys.executable, EVAL / "speed.py", path], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr),
                             (2, f"speed.py: {path}, line 1: speed: cache_mb: must be a number, 0 or more\n"))

    def test_a_number_or_a_text_that_cannot_be_is_named(self):
        line = json.loads((EVAL / "results" / "speed-smollm2-135m.jsonl").read_text().splitlines()[0])
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "speed.jsonl"
            for part, field, value, what in (("key", "length", 0, "a whole number, 1 or more and below 1e9"),
                                             ("key", "round", [], "a whole number, 0 or more"),
                                             ("key", "policy", ["full"], "a text"), ("run", "date", 5, "a text"),
                                             ("run", "removed", "x", "a number"),
                                             ("speed", "token_ms", 0, "a number above 0 and below 1e6"),
                                             ("speed", "prompt_seconds", 1e9, "a number above 0 and below 1e6")):
                path.write_text(json.dumps(line | {part: line[part] | {field: value}}) + "\n")
                done = subprocess.run([sys.executable, EVAL / "speed.py", path], capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stderr),
                                 (2, f"speed.py: {path}, line 1: {part}: {field}: must be {what}\n"))


def fetch_models():
    spec = importlib.util.spec_from_file_location("fetch_models", EVAL / "fetch_models.py")
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    return fetch


class Models(unittest.TestCase):
    @unittest.skipUnless(importlib.util.find_spec("pip"), "no pip")
    def test_runs_nothing_that_a_package_brings(self):
        with tempfile.TemporaryDirectory() as folder:
            here = pathlib.Path(folder)
            ran = here / "ran"
            parts = {"PKG-INFO": "Metadata-Version: 2.1\nName: stranger\nVersion: 1\n",
                     "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
                     "own.py": f"open({str(ran)!r}, 'w').close()\n"}
            with tarfile.open(here / "stranger-1.tar.gz", "w:gz") as archive:
                for name, text in parts.items():
                    member = tarfile.TarInfo(f"stranger-1/{name}")
                    member.size = len(text)
                    archive.addfile(member, io.BytesIO(text.encode()))
            with mock.patch.dict(os.environ, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder}):
                with self.assertRaisesRegex(SystemExit, "stranger==1: could not be fetched"):
                    fetch_models().downloaded("stranger==1", here)
            self.assertFalse(ran.exists())

    def test_lists_whole_models(self):
        fetch = fetch_models()
        self.assertEqual(fetch.expanded("a{9..11}==2"), ["a9==2", "a10==2", "a11==2"])
        self.assertEqual(fetch.expanded("a==2"), ["a==2"])
        for name, model in fetch.LISTED.items():
            self.assertRegex(model["sha256"], r"^[0-9a-f]{64}$", name)
            self.assertTrue(model["licence"] and model["family"] and model["file"].endswith(".gguf"), name)
            self.assertTrue(all("==" in p for p in model["packages"]), name)


if __name__ == "__main__":
    unittest.main()
