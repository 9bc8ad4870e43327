#!/usr/bin/env python3
"""build.py [--wheels DIR] [--serve]: makes the site, build/site/index.html, and checks its links.

It needs doxygen and a package index; the Python reference needs the package lagkv: a wheel of it in DIR, or else the compiler
that builds it. LAGKV_REPOSITORY: where links to sources lead; without it the site shows the sources itself. --serve: serves the
site on this machine, and makes it again when a page changes.

Exits with 77, and says why, where something it needs is not to be had.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=pathlib.Path)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("doxygen") is None:
        skip("no doxygen (apt: doxygen)")
    venv = ROOT / "build" / "site-python"
    if subprocess.run([sys.executable, "-m", "venv", venv]).returncode != 0:
        skip("no virtual environment (is python3-venv installed?)")
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    if subprocess.run([*pip, "-r", ROOT / "site" / "requirements.txt"]).returncode != 0:
        skip("no package index")
    wheels = sorted(arguments.wheels.glob("lagkv-*.whl")) if arguments.wheels else []
    if arguments.wheels and not wheels:
        skip(f"no wheel in {arguments.wheels}")
    subprocess.run([*pip, "--force-reinstall", "--no-deps", wheels[-1] if wheels else ROOT], check=True)
    subprocess.run([*pip, "numpy"], check=True)
    mkdocs = [venv / "bin" / "mkdocs", "serve" if arguments.serve else "build", "-f", ROOT / "site" / "mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if arguments.serve:
        sys.exit(subprocess.run([*mkdocs, "--watch", ROOT / "README.md"], env=environment).returncode)
    made = subprocess.run([*mkdocs, "--strict"], env=environment)
    if made.returncode == 0:
        made = subprocess.run([sys.executable, ROOT / "site" / "check.py", ROOT / "build" / "site"])
    sys.exit(made.returncode)


if __name__ == "__main__":
    main()
