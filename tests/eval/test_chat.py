#!/usr/bin/env python3
"""chat.py beside a chat that is made up here: which runs are run, and which of them a row of its table counts together."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "chat.py"

# Answers a line with what it has been told, as long as it fits into the cells that it was given.
CHAT = """#!/usr/bin/env python3
import sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(sys.argv[0] + ".log", "a") as log:
    log.write(given["--model"] + " " + given["--policy"] + " " + given["--cells"] + "\\n")
told, seen = [], 0
for line in sys.stdin:
    seen += 1
    if line.startswith("/stats"):
        print(f"{seen} tokens seen, {len(told)} kept in {given['--cells']} cells, 1.5 MB, 9 tokens/s", flush=True)
    else:
        told = [*told, line.strip()][-int(given["--cells"]):]
        print(" ".join(told) if "?" in line else "Fine.")
"""


class Chat(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = pathlib.Path(self.folder.name) / "chat.jsonl"
        self.chat = pathlib.Path(self.folder.name) / "chat"
        self.chat.write_text(CHAT)
        self.chat.chmod(0o755)

    def run_it(self, *arguments, model="a.gguf"):
        """The rows of the tables, as cells of text."""
        done = subprocess.run([sys.executable, SCRIPT, "--chat", self.chat, "--model", model, "--turns", "60", "--seeds", "1",
                               "--out", self.out, *arguments], capture_output=True, text=True, check=True)
        return [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| `")]

    def started(self):
        log = pathlib.Path(str(self.chat) + ".log")
        return log.read_text().split("\n")[:-1] if log.exists() else []

    def test_facts_are_told_and_asked_for(self):
        rows = self.run_it("--policy", "full", "--policy", "few", "--cells", "24")
        self.assertEqual([row[:2] for row in rows], [["| `full`", "12 of 12"], ["| `few`", "0 of 12"]])
        self.assertEqual(self.started(), ["a.gguf streaming_llm:capacity=16384 16384", "a.gguf few 24"])
        run = json.loads(self.out.read_text().splitlines()[0])
        self.assertEqual((sum(part["turns"] for part in run["parts"]), len(run["answers"])), (60 - 24, 12))

    def test_what_is_there_is_not_run_again_and_what_is_not_is(self):
        self.run_it("--policy", "p", "--cells", "24")
        self.run_it("--policy", "p", "--cells", "24")
        self.assertEqual(len(self.started()), 1)
        rows = self.run_it("--policy", "p", "--cells", "500")
        self.assertEqual(len(self.started()), 2, "in other cells it is another run")
        self.assertEqual([row[:2] for row in rows], [["| `p` in 24 cells", "0 of 12"], ["| `p` in 500 cells", "12 of 12"]])
        for other in (["--answer", "3"], ["--turns", "70"]):
            before = len(self.started())
            rows = self.run_it("--policy", "p", "--cells", "500", *other)
            self.assertEqual(len(self.started()), before + 1)
            self.assertEqual(rows[-1][:2], ["| `p`", "12 of 12"], "of that run alone")
        rows = self.run_it("--policy", "p", "--cells", "24", model="b.gguf")
        self.assertEqual(rows[-1][:2], ["| `p`", "0 of 12"])
        self.assertEqual(len(self.started()), 5)


if __name__ == "__main__":
    unittest.main()
