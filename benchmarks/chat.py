#!/usr/bin/env python3
"""What a chat of many turns keeps: facts that the user tells early are asked for at the end, under each policy.

    chat.py --chat build/llama-test/examples/chat/chat --model model.gguf --policy recommended:capacity=768,every=32 \\
        --policy full --out chat.jsonl
    chat.py --table --out chat.jsonl

Each run is one process of examples/chat, one thread, the same turns for all policies of a seed. It tells twelve facts in the
first turns, asks for other things, and at the end for each fact. An answer counts if it has the value. CPU seconds a turn and
resident memory are taken over the middle turns in six parts. Runs that --out has already, in as many cells, are not run again.
Where it has several models, numbers of turns or lengths of answers, each has a table of its own.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict

# What is told, what is asked, and the values of which one is drawn.
FACTS = [
    ("my sister's name is {}", "What is my sister's name?", "Elena Marta Ingrid Sofia Judith Paula Vera Nora".split()),
    ("I was born in {}", "In which town was I born?", "Turku Lisbon Graz Bergen Leeds Porto Ghent Basel".split()),
    ("the number of my locker is {}", "What is the number of my locker?", None),
    ("my favourite colour is {}", "What is my favourite colour?", "purple green orange yellow brown grey pink blue".split()),
    ("my dog is called {}", "What is my dog called?", "Pixel Biscuit Bruno Comet Domino Figaro Hazel Rocket".split()),
    ("I work as a {}", "What do I work as?", "baker plumber dentist teacher gardener tailor butcher pilot".split()),
    ("the password of the shed is {}", "What is the password of the shed?",
     "walnut lantern copper saddle thimble marble anchor velvet".split()),
    ("my train leaves on {}", "On which day does my train leave?", "Monday Tuesday Wednesday Thursday Friday Saturday".split()),
    ("I play the {}", "Which instrument do I play?", "cello flute harp trumpet oboe violin banjo organ".split()),
    ("my car is a {}", "What car do I have?", "Saab Volvo Fiat Skoda Honda Mazda Toyota Renault".split()),
    ("my neighbour's name is {}", "What is my neighbour's name?", "Oskar Hugo Felix Anton Emil Ruben Victor Simon".split()),
    ("I am allergic to {}", "What am I allergic to?", "almonds shrimps peaches celery mustard sesame lupins kiwis".split()),
]
SUBJECTS = ("bread rain trains music rivers paper birds glass gardens salt snow clocks bridges honey wool maps tea iron sand "
            "lamps stairs ropes pears whales moss bells coins doors ink kites mills nets oats parks quilts roofs soap "
            "tents").split()
KINDS = ("Tell me one thing about {}.", "What are {} good for?", "Who first wrote about {}?", "What do people say of {}?",
         "Are {} old?", "Where do {} come from?", "What colour are {}?", "Why do we need {}?")
PARTS = 6


def turns_of(seed, count):
    """The turns before the questions, and the questions with their answers."""
    draw = random.Random(seed)
    facts = [(told, question, str(draw.randrange(1000, 10000)) if values is None else draw.choice(values))
             for told, question, values in FACTS]
    draw.shuffle(facts)
    turns = ["By the way, " + told.format(value) + "." for told, _, value in facts]
    while len(turns) + len(facts) < count:
        turns.append(draw.choice(KINDS).format(draw.choice(SUBJECTS)))
    questions = [(question, value) for _, question, value in facts]
    draw.shuffle(questions)
    return turns, questions


class Chat:
    """A process of examples/chat."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace")

    def say(self, lines):
        """Returns what is answered, and what /stats says then."""
        for line in [*lines, "/stats"]:
            self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = ""
        for line in self.process.stdout:
            found = re.match(r"(\d+) tokens seen, (\d+) kept in (\d+) cells, ([\d.]+) MB", line)
            if found:
                return said, {"seen": int(found[1]), "kept": int(found[2]), "cells": int(found[3]), "mb": float(found[4])}
            said += line
        sys.exit("chat.py: the chat ended: " + said[-200:])

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cells_of(options, policy):
    """What keeps everything has a cache that is never full."""
    return options.full_cells if policy == "full" else options.cells


def run(options, policy, seed):
    turns, questions = turns_of(seed, options.turns)
    cells = cells_of(options, policy)
    given = f"streaming_llm:capacity={cells}" if policy == "full" else policy
    chat = Chat([options.chat, "--model", options.model, "--cells", str(cells), "--answer", str(options.answer), "--threads", "1",
                 "--policy", given])
    chat.say(turns[:len(FACTS)])
    rest, parts = turns[len(FACTS):], []
    for i in range(PARTS):
        part = rest[len(rest) * i // PARTS:len(rest) * (i + 1) // PARTS]
        before = chat.cpu_seconds()
        _, stats = chat.say(part)
        parts.append({"turns": len(part), "cpu_s": round(chat.cpu_seconds() - before, 2), "rss_mb": round(chat.resident_mb(), 1),
                      **stats})
    answers = []
    for question, value in questions:
        said, stats = chat.say([question])
        answers.append({"question": question, "value": value, "said": said.strip(), "right": value.lower() in said.lower()})
    chat.process.stdin.close()
    chat.process.wait()
    return {"model": os.path.basename(options.model), "policy": policy, "seed": seed, "turns": options.turns,
            "answer": options.answer, "parts": parts, "answers": answers, **stats}


def read(path):
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file]


def interval(right, n):
    """Of a share, in percent: Wilson's, 95 %."""
    z, p = 1.96, right / n
    middle, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return [100 * x / (1 + z * z / n) for x in (middle - half, middle + half)]


def tables(runs):
    settings = defaultdict(list)
    for r in runs:
        settings[r["model"], r["turns"], r["answer"]].append(r)
    for (model, turns, answer), same in settings.items():
        if len(settings) > 1:
            print(f"\n{model}, {turns} turns, answers of at most {answer} tokens:\n")
        table(same)


def table(runs):
    rows = defaultdict(list)
    for r in runs:
        rows[r["policy"], r["cells"]].append(r)
    print("| policy | facts | | tokens seen | kept | MB | s a turn, first and last part | resident MB, first and last part |")
    print("|---|---|---|---|---|---|---|---|")
    for (policy, cells), same in rows.items():
        name = f"`{policy}`" + (f" in {cells} cells" if sum(p == policy for p, _ in rows) > 1 else "")
        asked = [a["right"] for r in same for a in r["answers"]]
        low, high = interval(sum(asked), len(asked))

        def each(part, key):
            return sum(r["parts"][part][key] for r in same) / len(same)

        print(f"| {name} | {sum(asked)} of {len(asked)} | {low:.0f} to {high:.0f} % | "
              f"{sum(r['seen'] for r in same) / len(same):.0f} | {max(r['kept'] for r in same)} | "
              f"{max(r['mb'] for r in same):.1f} | {each(0, 'cpu_s') / each(0, 'turns'):.2f}, "
              f"{each(-1, 'cpu_s') / each(-1, 'turns'):.2f} | {each(0, 'rss_mb'):.0f}, {each(-1, 'rss_mb'):.0f} |")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--chat", help="the program examples/chat")
    a.add_argument("--model")
    a.add_argument("--policy", action="append", default=[], help="as chat takes it; full: all tokens stay")
    a.add_argument("--turns", type=int, default=300)
    a.add_argument("--answer", type=int, default=12, help="tokens of an answer at most")
    a.add_argument("--cells", type=int, default=1024)
    a.add_argument("--full-cells", type=int, default=16384)
    a.add_argument("--seeds", type=int, default=2)
    a.add_argument("--out", required=True)
    a.add_argument("--table", action="store_true", help="only print the table of --out")
    options = a.parse_args()
    runs = read(options.out)
    if not options.table:
        if options.turns < 3 * len(FACTS):
            sys.exit(f"chat.py: --turns {options.turns}: must be at least {3 * len(FACTS)}")
        key = ("model", "policy", "seed", "turns", "answer", "cells")
        done = {tuple(r[k] for k in key) for r in runs}
        for seed in range(options.seeds):
            for policy in options.policy:
                cells = cells_of(options, policy)
                if (os.path.basename(options.model), policy, seed, options.turns, options.answer, cells) in done:
                    continue
                runs.append(run(options, policy, seed))
                with open(options.out, "a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    tables(runs)


if __name__ == "__main__":
    main()
