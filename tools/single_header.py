#!/usr/bin/env python3
"""Writes the library as one header: python3 tools/single_header.py --output lagkv-single.hpp

Headers of lagkv are put in place of their first #include; those that are included once a target (.inl), at every one. What the
umbrella lagkv.hpp holds is in it: no adapters, no methods that need Eigen. Include it in place of <lagkv/lagkv.hpp>.
"""
import argparse
import pathlib
import re

INCLUDE = re.compile(r"\s*#\s*include\s+(?:<(lagkv/[^>]+)>|(LAGKV_PER_TARGET))\s*$")
PER_TARGET = re.compile(r"\s*#\s*define\s+LAGKV_PER_TARGET\s+<(.+)>\s*$")


class Header:
    def __init__(self, root):
        self.root = root
        self.seen = set()
        self.per_target = None
        self.lines = []

    def add(self, name):
        if name.endswith(".hpp"):
            if name in self.seen:
                return
            self.seen.add(name)
        self.lines.append(f"// ---- {name}")
        for line in (self.root / name).read_text().splitlines():
            if line.startswith("#pragma once"):
                continue
            if found := PER_TARGET.match(line):
                self.per_target = found[1]
            elif line.strip() == "#undef LAGKV_PER_TARGET":
                self.per_target = None
            elif found := INCLUDE.match(line):
                self.add(found[1] or self.per_target)
            else:
                self.lines.append(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the file to write")
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    header = Header(root / "include")
    header.add("lagkv/lagkv.hpp")
    licence = "".join(f"// {line}".rstrip() + "\n" for line in (root / "LICENSE").read_text().splitlines())
    text = licence + "//\n// Made by tools/single_header.py.\n#pragma once\n\n" + "\n".join(header.lines) + "\n"
    arguments.output.write_text(text)


if __name__ == "__main__":
    main()
