#!/usr/bin/env python3
"""Builds and runs the core tests with the compilers, processors and systems that users have.

  tests/compilers/run.py --install      all rows, after installing by package name what they need (apt as root, or by sudo)
  tests/compilers/run.py gcc-12 wasm    these rows: the beginning of a name, or of a part of it, does (`zig`: all rows of zig)
  tests/compilers/run.py --parse        each header alone, by the oldest and newest Clang and by GCC: 90 s of two cores
  tests/compilers/run.py --habits       what programs do around the #include: macros, flags, modes

All is kept in build/compilers, and a second run compiles what has changed. Exits with 1 if anything failed; what this machine
cannot build or run is said in the table, and is no failure. $ZIG: the command of a Zig of your own ("python3 -m ziglang").
"""

import argparse
import concurrent.futures
import glob
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

# ---- what is compiled: change it here ---------------------------------------------------------------------------------

TESTS = ["dispatch", "golden", "kernels", "nonfinite", "properties", "quantised", "pre_rope"]  # tests/NAME_test.cpp
SUPPORT = [*[f"tests/support/{n}.cpp" for n in ("every_method", "oracle", "methods_oracle")], "tests/other_lanes.cpp"]
FLAGS = "-std=c++20 -O1 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror".split()
FLAGS_OF = {"tests/other_lanes.cpp": ["-Wno-psabi"]}  # vectors as arguments, which are inlined
DEFINES = {"LAGKV_GOLDEN": '"tests/golden"'}  # from the repository's root, where the tests run
COMPILED = ["include/lagkv/lagkv.cpp", "include/lagkv/simd/kernels.cpp"]  # with --compiled
COMPILED_DEFINES = {"LAGKV_COMPILED": None}

# An emulator takes some twenty times as long: of the larger goldens, one view. Each entry is a run.
ALL = ["*"]
SOME = ["*-golden/official*:golden/stream*:*nonfinite*",
        "golden/*_heads_first:golden/*_blocks_of_7:nonfinite*-*real_smollm2*:*d128*"]

MINGW = ["*-*add_rows_goes_row_by_row/avx*"]  # which asks std::fma, and mingw-w64's rounds twice

# ---- what compiles and runs it ----------------------------------------------------------------------------------------

ZIG, WASMTIME = "ziglang==0.17.1", "wasmtime==50.0.1"  # PyPI; raise them: the newest Clang is what ziglang has
WASM = ("-fno-exceptions -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS "
        "-DGTEST_HAS_STREAM_REDIRECTION=0 -DGTEST_HAS_DEATH_TEST=0 -DGTEST_HAS_PTHREAD=0").split()
WASM_LIBRARIES = "-lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks".split()


class Row:
    def __init__(self, name, what, compiler, apt=(), flags=(), link=(), target=None, runner=None, filters=ALL, leave_out=()):
        self.name, self.what, self.compiler, self.apt = name, what, compiler, list(apt)
        self.flags, self.link, self.target = list(flags), list(link), target
        self.runner = runner  # None: natively; a list of words, the first one a program or "wine" or "wasi"; or why not
        self.filters, self.leave_out = filters, leave_out


def zig(target, what, runner=None, flags=(), **more):
    return Row(f"zig-{target}", what, "zig", flags=["-target", target, *flags], target=target, runner=runner, **more)


def rows():
    gcc, clang = newest("g++-", 12), newest("clang++-", 14)
    return [
        Row("gcc-12", "the oldest GCC", "g++-12", ["g++-12"]),
        Row("gcc-newest", "the newest that this Debian has", gcc, [gcc]),
        Row("clang-14", "the oldest Clang, libstdc++", "clang++-14", ["clang-14"]),
        Row("clang-14-libc++", "the same, its own library", "clang++-14", ["clang-14", "libc++-14-dev", "libc++abi-14-dev"],
            flags=["-stdlib=libc++"], link=["-stdlib=libc++"]),
        Row("clang-newest", "the newest that this Debian has", clang, [clang.replace("++", "")],
            flags=["-Wno-deprecated-declarations"]),  # GCC 12's library calls its own get_temporary_buffer
        Row("gcc-aarch64", "NEON, GCC", "aarch64-linux-gnu-g++", ["g++-aarch64-linux-gnu", "qemu-user"], link=["-static"],
            runner=["qemu-aarch64"], filters=SOME),
        zig("x86_64-linux-gnu", "the newest Clang, libc++, glibc"),
        zig("x86_64-linux-musl", "musl, static"),
        zig("aarch64-linux-musl", "NEON", ["qemu-aarch64"], apt=["qemu-user"], filters=SOME),
        zig("riscv64-linux-musl", "no kernels of its own", ["qemu-riscv64"], apt=["qemu-user"], filters=SOME),
        zig("x86-linux-musl", "32 bits"),
        zig("arm-linux-musleabihf", "32 bits, ARM", ["qemu-arm"], apt=["qemu-user"], filters=SOME),
        zig("x86_64-windows-gnu", "Windows, libc++", ["wine"], apt=["wine", "wine64"]),
        Row("mingw", "Windows, GCC", "x86_64-w64-mingw32-g++-posix", ["g++-mingw-w64-x86-64-posix", "wine", "wine64"],
            link=["-static"], target="x86_64-windows-gnu", runner=["wine"], filters=MINGW),
        zig("aarch64-macos", "Apple's processors", "no macOS here",
            flags=["-include", "float.h", "-U__STRICT_ANSI__"]),  # or zig's <float.h> gives FLT_MAX or INFINITY, not both
        zig("wasm32-wasi", "WebAssembly, no exceptions", ["wasi"]),
    ]


# ---- finding and installing -------------------------------------------------------------------------------------------

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join("build", "compilers")  # all paths are from ROOT
VENV = os.path.join(BUILD, "venv")
GTEST = ["/usr/src/googletest/googletest", "/usr/src/gtest"]  # libgtest-dev
INCLUDE = [p for p in os.environ.get("CMAKE_INCLUDE_PATH", "").split(":") if p] + ["/usr/include", "/usr/local/include"]
COMMON_APT = ["ninja-build", "libgtest-dev", "libeigen3-dev"]


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def newest(prefix, oldest):
    """PREFIXn of the highest n that is installed or that apt has: a compiler's name; Debian's package lacks Clang's "++"."""
    package = prefix.replace("clang++", "clang")
    names = output("apt-cache", "pkgnames", package).split()
    found = [int(n[len(package):]) for n in names if re.fullmatch(re.escape(package) + r"\d+", n)]
    offered = output("apt-cache", "policy", *[f"{package}{n}" for n in found]) if found else ""
    found = [int(n) for n in re.findall(rf"^{re.escape(package)}(\d+):\n.*\n  Candidate: \d", offered, re.M)]
    found += [n for n in range(oldest, 60) if shutil.which(f"{prefix}{n}")]
    return f"{prefix}{max(found + [oldest])}"


def first(paths):
    return next((p for p in paths if p and os.path.exists(p)), None)


def zig_command():
    """The zig program as a list of words, without the Python that ships it: it starts faster. None: not here."""
    words = shlex.split(os.environ.get("ZIG", ""))
    python = words[0] if words[1:] == ["-m", "ziglang"] else None if words else os.path.join(VENV, "bin", "python")
    if python:
        place = output(python, "-c", "import ziglang; print(ziglang.__file__)").strip()
        return [os.path.join(os.path.dirname(place), "zig")] if place else None
    return words or ([shutil.which("zig")] if shutil.which("zig") else None)


def compiler_of(row):
    """The command that compiles, or None."""
    if row.compiler == "zig":
        command = zig_command()
        return command and [*command, "c++"]
    return [row.compiler] if shutil.which(row.compiler) else None


def version_of(command):
    text = output(*command, "--version")
    number = re.search(r"clang version (\d+\.\d+\.\d+)", text) or re.search(r"\) (\d+\.\d+\.\d+)|(\d+)-(?:posix|win32)", text)
    if not number:
        return text.split("\n")[0][:24]
    return ("Clang " if "clang" in text else "GCC ") + next(g for g in number.groups() if g)


def python_of_wasmtime():
    for python in (os.path.join(VENV, "bin", "python"), sys.executable):
        if output(python, "-c", "import wasmtime; print(1)").strip() == "1":
            return python
    return None


def runner_of(row):
    """(words before the program's path, None), or (None, why it cannot run here)."""
    if row.runner is None:
        return [], None
    if isinstance(row.runner, str):
        return None, row.runner
    if row.runner == ["wasi"]:
        python = python_of_wasmtime()
        return ([python, "tests/compilers/wasi.py"], None) if python else (None, "no wasmtime (PyPI)")
    program = shutil.which(row.runner[0])
    return ([program, *row.runner[1:]], None) if program else (None, f"no {row.runner[0]} ({' '.join(row.apt)})")


def install(some_rows):
    packages = sorted({p for r in some_rows for p in r.apt + COMMON_APT})
    admin = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*admin, "apt-get", "update", "-qq"], check=False)
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    command = [*admin, *environment, "apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    if subprocess.run([*command, *packages], check=False, stdout=subprocess.DEVNULL).returncode != 0:
        for package in packages:  # the others all the same
            subprocess.run([*command, package], check=False, stdout=subprocess.DEVNULL)
    wanted = [WASMTIME] if any(r.runner == ["wasi"] for r in some_rows) else []
    if any(r.compiler == "zig" for r in some_rows) and "ZIG" not in os.environ:
        wanted.append(ZIG)
    if wanted:
        if not os.path.exists(os.path.join(VENV, "bin", "pip")):
            subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=False)
        pip = [os.path.join(VENV, "bin", "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", *wanted], check=False)


# ---- running commands -------------------------------------------------------------------------------------------------


def run(command, limit, **more):
    """(exit code, output); all that the command started has ended by then."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", start_new_session=True, **more) as process:
        try:
            text, _ = process.communicate(timeout=limit)
            return process.returncode, text
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 124, process.communicate()[0] + f"\nstopped after {limit} s\n"


def wine_environment():
    prefix = os.path.abspath(os.path.join(BUILD, "wine"))
    os.makedirs(prefix, exist_ok=True)
    return {**os.environ, "WINEPREFIX": prefix, "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml=", "DISPLAY": ""}


def errors_of(text):
    return re.findall(r"^\S+?:\d+(?::\d+)?: (?:fatal )?error: .*", text, re.M)


def same_once(lines):
    return list(dict.fromkeys(lines))


# ---- the rows ---------------------------------------------------------------------------------------------------------


def write(path, text):
    """Only where it differs, so that nothing is compiled again without need."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            if f.read() == text:
                return
    own = f"{path}.{threading.get_ident()}"  # nobody compiles half of it
    with open(own, "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(own, path)


def golden_table():
    """manifest.json as tests/golden-table.cmake writes it."""
    with open("tests/golden/manifest.json", encoding="utf-8") as f:
        cases = json.load(f)
    lines = []
    for case in cases:
        fields = [f'.name = "{case["name"]}"', f'.kind = "{case["kind"]}"']
        for field in ("tokens", "heads", "query_heads", "dim", "sink", "lag", "ratio", "value_weight", "middle_step", "future",
                      "covariance", "value_norm"):
            value = case.get(field)
            if value is None and field in ("sink", "lag"):
                value = case.get("lagkv", {}).get(field)
            if value is not None:
                fields.append(f".{'channels' if field == 'dim' else field} = {json.dumps(value)}")
        lines.append("{" + ", ".join(fields) + "},\n")
    return "".join(lines)


def build_file(row, folder, compiler, compiled, more_flags):
    gtest = first(GTEST)
    windows = "windows" in (row.target or "")
    wasm = (row.target or "").startswith("wasm")
    quoted = " ".join
    defines = {**DEFINES, **(COMPILED_DEFINES if compiled else {})}
    flags = [*row.flags, *(WASM if wasm else [])]
    system = ["-isystem", f"{gtest}/include", "-isystem", eigen()]
    tests = [*FLAGS, *[shlex.quote(f"-D{k}" + ("" if v is None else f"={v}")) for k, v in defines.items()],
             "-Iinclude", "-I.", "-Itests", f"-I{BUILD}/generated", *system]
    if wasm:
        tests += ["-include", "tests/compilers/wasi.hpp"]
    sources = [(f"{gtest}/src/{n}.cc", ["-std=c++20", "-O1", "-w", *system, f"-I{gtest}"]) for n in ("gtest-all", "gtest_main")]
    names = [f"tests/{t}_test.cpp" for t in TESTS if t not in row.leave_out] + SUPPORT + (COMPILED if compiled else [])
    names += ["tests/compilers/wasi.cpp"] if wasm else []
    sources += [(s, [*tests, *FLAGS_OF.get(s, []), *more_flags]) for s in names]
    lines = [f"builddir = {folder}",
             f"rule compile\n  command = {quoted(map(shlex.quote, compiler))} {quoted(flags)} $more "
             "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n  description = $in",
             f"rule link\n  command = {quoted(map(shlex.quote, compiler))} {quoted(row.flags)} $in -o $out "
             f"{quoted(row.link + (WASM_LIBRARIES if wasm else []))}\n  description = $out"]
    objects = []
    for source, more in sources:
        objects.append(f"{folder}/{re.sub(r'[^a-z0-9_]', '_', os.path.basename(source).lower())}.o")
        lines.append(f"build {objects[-1]}: compile {source}\n  more = {quoted(more)}")
    program = f"{folder}/tests" + (".exe" if windows else ".wasm" if wasm else "")
    lines.append(f"build {program}: link {quoted(objects)}\ndefault {program}\n")
    write(f"{folder}/build.ninja", "\n".join(lines))
    return program, len(objects)


def eigen():
    return first(f"{p}/eigen3" for p in INCLUDE if os.path.exists(f"{p}/eigen3/Eigen/Core"))


class Outcome:
    def __init__(self, row, version="", failed=False, said=""):
        self.name, self.version, self.failed, self.said, self.seconds = row.name, version, failed, said, 0


def run_row(row, options, seen):
    compiler = compiler_of(row)
    if not compiler:
        return Outcome(row, "", False, f"not available: needs {' '.join(row.apt) or ZIG + ' (PyPI)'}")
    for missing, package in ((not shutil.which("ninja"), "ninja-build"), (not first(GTEST), "libgtest-dev"),
                             (not eigen(), "libeigen3-dev")):
        if missing:
            return Outcome(row, "", False, f"not available: needs {package}")
    version = version_of(compiler)
    same = (tuple(map(shutil.which, compiler[:1])), tuple(row.flags))
    if same in seen:
        return Outcome(row, version, False, f"is {seen[same]}")
    seen[same] = row.name

    folder = f"{BUILD}/{row.name}" + ("-compiled" if options.compiled else "")
    program, count = build_file(row, folder, compiler, options.compiled, shlex.split(options.flags))
    start = time.monotonic()
    code, text = run(["ninja", "-f", f"{folder}/build.ninja", f"-j{options.jobs}", "-k0"], 3600)
    write(f"{folder}/build.log", text)
    if code != 0:
        bad = re.findall(r"^FAILED: (.*)", text, re.M)
        show(errors_of(text) or text.strip().split("\n"), options)
        return Outcome(row, version, True, f"does not build: {len(bad)} of {count + 1} steps, {folder}/build.log")

    built = time.monotonic()
    before, why = runner_of(row)
    if before is None:
        return Outcome(row, version, False, f"built only: {why}")
    passed = skipped = 0
    log = ""
    filters = [options.filter] if options.filter else row.filters
    shards = 1 if row.runner == ["wasi"] else options.jobs  # which has no environment
    environment = {**(wine_environment() if "wine" in (row.runner or []) else os.environ), "GTEST_TOTAL_SHARDS": str(shards)}

    def run_part(part):
        f, shard = part
        return run([*before, program, "--gtest_brief=1", f"--gtest_filter={f}"], options.limit,
                   env={**environment, "GTEST_SHARD_INDEX": str(shard)})

    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        ran = list(pool.map(run_part, [(f, shard) for f in filters for shard in range(shards)]))
    for code, text in ran:
        log += text
        write(f"{folder}/test.log", log)
        passed += sum(map(int, re.findall(r"^\[  PASSED  \] (\d+) test", text, re.M)))
        skipped += len(re.findall(r"^\[  SKIPPED \] .*\(", text, re.M))
        if code != 0:
            failures = same_once(re.findall(r"^\[  FAILED  \] ([^ ,\n]+/?[^ ,\n]*)(?:,| \()", text, re.M))
            show([f"failed: {n}" for n in failures] or text.strip().split("\n")[-5:], options)
            reason = "stopped for time" if code == 124 else f"{len(failures)} failed" if failures else f"ended with {code}"
            return Outcome(row, version, True, f"{reason}, {passed} passed, {folder}/test.log")
        if "[  PASSED  ]" not in text:
            return Outcome(row, version, True, f"ran no test, {folder}/test.log")
    print(f"  built in {built - start:.0f} s, ran in {time.monotonic() - built:.0f} s")
    how = "" if not before else ", by " + (row.runner[0] if row.runner != ["wasi"] else "wasmtime")
    part = "" if filters == ALL else " (of the larger goldens a part)" if filters == SOME else f" ({' and '.join(filters)})"
    return Outcome(row, version, False, f"{passed} passed{f', {skipped} skipped' if skipped else ''}{how}{part}")


def show(lines, options):
    for line in same_once(lines)[: options.errors]:
        print("    " + line[:240])


def table(outcomes, heads=("row", "compiler", "what ran", "seconds")):
    cells = [heads] + [(o.name, o.version, ("FAILED: " if o.failed else "") + o.said, f"{o.seconds:.0f}") for o in outcomes]
    widths = [max(len(c[i]) for c in cells) for i in range(3)]
    for c in cells:
        print("  ".join(x.ljust(w) for x, w in zip(c, widths)) + "  " + c[3].rjust(len(heads[3])))
    failed = sum(o.failed for o in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} without failure")
    return 1 if failed else 0


def timed(work, *arguments):
    print(f"{arguments[0].name} ...", flush=True)
    start = time.monotonic()
    outcome = work(*arguments)
    outcome.seconds = time.monotonic() - start
    print(f"{outcome.name}: {'FAILED: ' if outcome.failed else ''}{outcome.said}", flush=True)
    return outcome


# ---- --parse and --habits ---------------------------------------------------------------------------------------------


def syntax_only(row, unit):
    """As flags. zig looks for an object file in any case, and nearly all in a header is inline: none of it is compiled."""
    return ["-c", "-O0", "-o", f"{unit}.o"] if row.name == "zig" else ["-fsyntax-only"]


def front_ends(options):
    """GCC, the oldest and the newest Clang, or those of them that were named."""
    for name, word in (("gcc", "g++-12"), ("clang-14", "clang++-14"), ("zig", "zig")):
        if options.rows and not any(name.startswith(n) for n in options.rows):
            continue
        row = Row(name, "", word)
        command = compiler_of(row)
        if command and name == "zig" and sys.platform == "linux":  # it makes a C++ library for each target: that of a row does
            command = [*command, "-target", f"{platform.machine()}-linux-gnu"]
        command = command or ([shutil.which("g++")] if name == "gcc" and shutil.which("g++") else None)
        yield row, command


def headers():
    return sorted(os.path.relpath(p, "include") for p in glob.glob("include/lagkv/**/*.hpp", recursive=True))


def includes_of(header, known):
    """All that a header of lagkv includes, itself or through others of lagkv."""
    if header not in known:
        known[header] = set()
        with open(os.path.join("include", header), encoding="utf-8") as f:
            own = re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", f.read(), re.M)
        for name in own:
            known[header].add(name)
            if os.path.exists(os.path.join("include", name)):
                known[header] |= includes_of(name, known)
    return known[header]


def third_parties():
    """({what an include begins with: package}, flags that find those that are here). DLPack is reached through a link: a folder
    with the C library of this machine is no business of a compiler for another one."""
    found, flags = {}, []
    dlpack = first(f"{p}/dlpack" for p in INCLUDE if os.path.exists(f"{p}/dlpack/dlpack.h"))
    if dlpack:
        os.makedirs(f"{BUILD}/third", exist_ok=True)
        if not os.path.lexists(f"{BUILD}/third/dlpack") or os.readlink(f"{BUILD}/third/dlpack") != dlpack:
            if os.path.lexists(f"{BUILD}/third/dlpack"):
                os.remove(f"{BUILD}/third/dlpack")
            os.symlink(dlpack, f"{BUILD}/third/dlpack")
        flags += ["-isystem", f"{BUILD}/third"]
    if eigen():
        flags += ["-isystem", eigen()]
    llama = first(sorted(glob.glob("build/downloads/llama.cpp-*"), reverse=True))
    installed = first(p for p in INCLUDE if os.path.exists(f"{p}/llama.h"))
    if llama:
        flags += ["-isystem", f"{llama}/include", "-isystem", f"{llama}/ggml/include"]
    elif installed:
        flags += ["-isystem", installed]
    found["Eigen/"] = None if eigen() else "Eigen (libeigen3-dev)"
    found["dlpack/"] = None if dlpack else "DLPack (libdlpack-dev)"
    found["llama.h"] = found["ggml"] = None if llama or installed else "llama.cpp (the preset llama-test fetches it)"
    return found, flags


def parsable():
    """(headers, flags that their third parties need, {header: the party that is missing})."""
    parties, flags = third_parties()
    known, absent = {}, {}
    for h in headers():
        for name in includes_of(h, known):
            for start, package in parties.items():
                if name.startswith(start) and package:
                    absent[h] = package
    return [h for h in headers() if h not in absent], flags, absent


def parse(options):
    good, flags, absent = parsable()
    for h, package in absent.items():
        print(f"left out: {h}: no {package}")
    outcomes = []
    for row, command in front_ends(options):
        if not command:
            outcomes.append(Outcome(row, "", False, "not available"))
            continue
        for h in good:
            write(f"{BUILD}/parse/{h}.cpp", f"#include <{h}>\n")

        def one(h):
            unit = f"{BUILD}/parse/{h}.cpp"
            return h, *run([*command, *FLAGS, *syntax_only(row, unit), "-Iinclude", *flags, unit], 300)

        def all_of_them(row):
            with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
                bad = [(h, text) for h, code, text in pool.map(one, good) if code != 0]
            show([f"{h}: {(errors_of(text) or text.strip().split(chr(10)))[0]}" for h, text in bad], options)
            said = f"{len(good) - len(bad)} of {len(good)} headers" + (f", {len(absent)} left out" if absent else "")
            return Outcome(row, version_of(command), bool(bad), said)

        outcomes.append(timed(all_of_them, row))
    return table(outcomes, ("compiler", "version", "parsed", "seconds"))


MACROS = {"min(a, b)": "((a) < (b) ? (a) : (b))", "max(a, b)": "((a) > (b) ? (a) : (b))", "small": "char", "near": "", "far": "",
          "interface": "struct", "ERROR": "0", "IN": "", "OUT": ""}
WARNINGS = ("-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Werror").split()
REPORTED = ["-Wfloat-equal", "-Wswitch-enum"]  # warn of what is meant: told, and no failure
USE = """
int main() {
  constexpr std::size_t heads = 2, channels = 16, tokens = 96;
  std::vector<std::uint16_t> keys(heads * channels * tokens), values(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    keys[i] = static_cast<std::uint16_t>(0x3c00U + i * 37 % 512);
    values[i] = static_cast<std::uint16_t>(0x3c00U + i * 53 % 512);
  }
  using half = lagkv::strided<lagkv::f16>;
  const lagkv::shape shape{heads, channels};
  const lagkv::strides strides{.head = static_cast<std::ptrdiff_t>(channels * tokens),
                               .token = static_cast<std::ptrdiff_t>(channels)};
  const auto policy = lagkv::make_lagkv({.sink = 4, .lag = 16, .ratio = 0.25});
  const auto other = lagkv::parse("key_diff:sink=4,recent=4,keep=0.5");
  if (!policy || !other) return 1;
  lagkv::workspace workspace;
  lagkv::cursor cursor, next;
  const lagkv::layer layer{half{keys.data(), shape, strides, tokens}, half{values.data(), shape, strides, tokens}, tokens};
  if (!lagkv::check(*policy, layer)) return 2;
  const std::size_t kept = lagkv::compress(*policy, layer, cursor, workspace);
  const lagkv::layer rest{layer.keys, layer.values, kept};
  return kept == 4 + 4 * 4 + 28 && lagkv::compress(*other, rest, next, workspace) < kept ? 0 : 3;
}
"""


def habits(options):
    good, flags, absent = parsable()
    std = sorted({n for h in good for n in includes_of(h, {}) if re.fullmatch(r"[a-z_0-9]+", n)} - {"mdspan"})
    include = "#include <lagkv/lagkv.hpp>\n"
    standard = "".join(f"#include <{n}>\n" for n in std)
    known = {}
    others = sorted({n for h in good for n in includes_of(h, known) if n.startswith(tuple(third_parties()[0]))})
    others = "".join(f"#include <{n}>\n" for n in others)  # theirs may not stand macros, and are not ours
    all_headers = "".join(f"#include <{h}>\n" for h in good)
    as_macros = lambda names: standard + others + "".join(f"#define {n} {MACROS[n]}\n" for n in names) + all_headers
    twice = all_headers * 2

    def checks_of(row, command):
        """[(row's and check's name, what does it)]."""
        if not command:
            return [(row, lambda shown: Outcome(shown, "", False, "not available"))]
        version = version_of(command)
        useless = ["-Wuseless-cast"] if row.name == "gcc" else []

        def compiled(name, text, more, std20=True, link=True):
            unit = f"{BUILD}/habits/{name}.cpp"
            write(unit, text)
            result = [*(["-std=c++20"] if std20 else []), *more, "-Iinclude", *flags, unit]
            if not link:
                return run([*command, *result, *syntax_only(row, unit)], 300)
            program = f"{BUILD}/habits/{name}.{row.name}"
            code, text = run([*command, *result, "-o", program], 600)
            if code == 0:
                code, text = run([program], 60)
                text = f"the program ended with {code}\n" if code else ""
            return code, text

        def plain(name, *arguments, **more):
            def work(shown):
                code, text = compiled(name, *arguments, **more)
                show(errors_of(text) or text.strip().split("\n") if code else [], options)
                return Outcome(shown, version, code != 0, f"{len(errors_of(text))} errors" if code else "compiled, ran")
            return name, work

        def macros(shown):
            code, text = compiled("macros", as_macros(MACROS) + USE, [])
            if code == 0:
                return Outcome(shown, version, False, "compiled, ran")
            show(errors_of(text) or [text], options)
            one = {m: compiled("macros_one", as_macros([m]) + USE, [], link=False)[0] for m in MACROS}
            return Outcome(shown, version, True, "broken by " + (", ".join(m for m in MACROS if one[m]) or "all together"))

        def reported(shown):
            text = compiled("reported", include + USE, REPORTED, link=False)[1]
            found = {w: set(re.findall(rf"^(include/\S+): warning: .*\[{w}\]", text, re.M)) for w in REPORTED}
            return Outcome(shown, version, False, "report only: " + ", ".join(f"{len(at)} places {w}" for w, at in found.items()))

        def older(shown):
            code, text = compiled("cxx17", include + "int main() {}\n",
                                  ["-std=c++17"], std20=False, link=False)
            found = errors_of(text)
            show(found if len(found) != 1 else [], options)
            return Outcome(shown, version, code == 0 or len(found) != 1, f"{len(found)} error lines, 1 wanted")

        checks = [("macros", macros),
                  plain("warnings", include + USE, ["-O1", *WARNINGS, *useless]),
                  ("reported", reported),
                  plain("fast_math", include + USE, ["-O2", "-ffast-math", "-Wall", "-Wextra", "-Werror"]),
                  plain("no_exceptions", include + USE, ["-O1", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Werror"]),
                  plain("twice", twice + USE, ["-Wall", "-Wextra", "-Werror"]),
                  ("cxx17", older)]
        return [(Row(f"{row.name} {name}", "", ""), work) for name, work in checks]

    *others_checks, last = [checks_of(row, command) for row, command in front_ends(options)] or [[]]
    # One of the newest first: zig makes its C++ library, 93 s of one core, while the others use the rest.
    jobs = [*last[:1], *sum(others_checks, []), *last[1:]]
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        outcomes = list(pool.map(lambda job: timed(job[1], job[0]), jobs))
    for h, package in absent.items():
        print(f"not in the file of all headers: {h}: no {package}")
    return table(outcomes, ("habit", "compiler", "what came of it", "seconds"))


# ---- the command ------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows, or how their names or parts of them begin (default: all)")
    parser.add_argument("--list", action="store_true", help="the rows, and what each needs here")
    parser.add_argument("--install", action="store_true",
                        help="install what the rows need: apt and, in build/compilers/venv, pip")
    parser.add_argument("--parse", action="store_true", help="only parse each header alone")
    parser.add_argument("--habits", action="store_true", help="only compile what programs do around the #include")
    parser.add_argument("--compiled", action="store_true", help="with LAGKV_COMPILED instead of headers only")
    parser.add_argument("--filter", help="a GoogleTest filter instead of the rows' own")
    parser.add_argument("--flags", default="", help="more flags for the tests, such as --flags=-Wno-error to see how they run")
    parser.add_argument("--jobs", type=int, default=1, help="compilations, and parts of the tests, at once (default 1)")
    parser.add_argument("--parallel", type=int, default=2, help="files compiled at once, with --parse and --habits (default 2)")
    parser.add_argument("--limit", type=int, default=900, help="seconds that a run of the tests may take (default 900)")
    parser.add_argument("--errors", type=int, default=8, help="lines shown of what failed (default 8)")
    options = parser.parse_args()
    os.chdir(ROOT)

    every = rows()
    exact = {r.name for r in every}
    named = lambda row, begin: row.name == begin if begin in exact else f"-{begin}" in f"-{row.name}"
    unknown = [n for n in options.rows if not any(named(r, n) for r in every)]
    if unknown:
        parser.error(f"no row is named {', '.join(unknown)}; --list shows all")
    chosen = [r for r in every if not options.rows or any(named(r, n) for n in options.rows)]

    if options.install:
        if options.parse or options.habits:
            chosen = [Row("", "", "zig"), Row("", "", "", ["g++-12", "clang-14", "libdlpack-dev"])]
        install(chosen)
    if options.list:
        for r in chosen:
            compiler = compiler_of(r)
            state = version_of(compiler) if compiler else f"needs {' '.join(r.apt) or ZIG + ' (PyPI)'}"
            why = runner_of(r)[1]
            print(f"{r.name:26} {r.what:34} {state}" + (f"; built only: {why}" if why else ""))
        return 0
    if options.parse:
        return parse(options)
    if options.habits:
        return habits(options)

    write(f"{BUILD}/generated/golden_cases.inc", golden_table())
    seen = {}
    return table([timed(run_row, r, options, seen) for r in chosen])


if __name__ == "__main__":
    sys.exit(main())
