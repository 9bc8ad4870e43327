"""python -m lagkv: what it writes, and what it refuses. The tests of lagkv-npy (tools/) pass with it too, but for the words on a
file that is cut short: LAGKV_NPY="python -m lagkv" LAGKV_GOLDEN=tests/golden test_lagkv_npy."""

import os
import re
import struct

import numpy as np
import pytest
from conftest import random_cache, reference_lagkv

from lagkv.__main__ import main


@pytest.fixture
def files(tmp_path):
    keys, values = random_cache((2, 300, 8))
    queries = np.random.default_rng(1).normal(size=(4, 300, 8)).astype(np.float32)
    for name, x in (("keys", keys), ("values", values), ("queries", queries)):
        np.save(tmp_path / f"{name}.npy", x)
    return tmp_path


def run(files, policy, *more):
    return main(["--policy", policy, "--keys", f"{files}/keys.npy", "--values", f"{files}/values.npy", "--out", f"{files}/out",
                 *more])


def result(files, name):
    return np.load(files / "out" / f"{name}.npy")


def test_keeps_what_the_formula_keeps(files, capsys):
    keys, values = np.load(files / "keys.npy"), np.load(files / "values.npy")
    rows = reference_lagkv(keys, values, 4, 32, 0.25)
    assert run(files, "lagkv:sink=4,lag=32,ratio=0.25", "--scores") == 0
    np.testing.assert_array_equal(result(files, "kept"), rows)
    np.testing.assert_array_equal(result(files, "keys"), np.take_along_axis(keys, rows[..., None], 1))
    assert result(files, "kept_mask").sum() == rows.size and result(files, "scores").shape == (2, 8, 32)
    assert f"{rows.shape[1]} of 300 tokens stay in each of 2 heads" in capsys.readouterr().out


def test_steps(files):
    assert run(files, "h2o:capacity=60", "--queries", f"{files}/queries.npy", "--steps", "200,1x100") == 0
    assert result(files, "lengths").tolist() == 101 * [60] and result(files, "kept").shape == (2, 60)
    assert run(files, "key_norm:keep=0.25,select=adaptive") == 0


def test_leaves_its_inputs_alone(files, capsys):
    before = {f.name: f.read_bytes() for f in files.glob("*.npy")}
    (files / "link").symlink_to(files)
    (files / "scores.npy").hardlink_to(files / "keys.npy")
    (files / "other").mkdir()
    (files / "other" / "kept.npy").symlink_to(files / "queries.npy")
    for out, words in ((files, "keys.npy there is the input --keys: name another folder"), (files / ".", "the input --keys"),
                       (files / "link", "the input --keys"), (files / "other", "kept.npy there is the input --queries")):
        assert run(files, "lagkv:lag=32", "--queries", f"{files}/queries.npy", "--out", str(out)) == 2
        assert words in capsys.readouterr().err
    assert main(["--policy", "lagkv:lag=32", "--keys", f"{files}/scores.npy", "--values", f"{files}/values.npy", "--out",
                 str(files)]) == 2
    assert {name: (files / name).read_bytes() for name in before} == before


def test_refuses_a_pipe(files, capsys):
    os.mkfifo(files / "pipe.npy")
    for path in ("pipe.npy", "."):
        assert run(files, "lagkv", "--queries", f"{files}/{path}") == 2
        assert "is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["(-1, 300, 8)", "(2, 300, -8)", "(1 << 40, 1 << 40, 8)", "(99999999999999999999, 300, 8)",
                                   "(2, 300, 1 << 50)", "(2, 300, 8", "2", "(2.0, 300, 8)", "(True, 300, 8)", "None"])
@pytest.mark.parametrize("version", [1, 2, 9])
def test_refuses_headers_that_lie(files, capsys, shape, version):
    shape = re.sub(r"1 << (\d+)", lambda m: str(1 << int(m[1])), shape)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    (files / "keys.npy").write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(4 * 2 * 300 * 8))
    assert run(files, "lagkv:lag=32") == 2
    assert "keys.npy" in capsys.readouterr().err
    assert not (files / "out").exists()


def test_lists(capsys):
    assert main(["--list"]) == 0 and main(["--list-markdown"]) == 0
    out = capsys.readouterr().out
    assert "lag=1024" in out and "| `lagkv` | `sink` | 16 | whole, 0 or more |" in out


@pytest.mark.parametrize("arguments, words", [
    (["lagkv:lag=0"], "lag=0: must be a whole number"), (["lagkv", "--steps", "10,10"], "add up to 20: must be the 300"),
    (["lagkv", "--steps", "0,300"], "'0': must be a whole number"), (["lagkv", "--protect", "9-300"], "must be below the 300"),
    (["lagkv", "--layer", "2/2"], "layer=2/2: must be I/N"), (["snapkv"], "snapkv: queries: .*: give --queries"),
    (["novelty"], "give --rope-base"), (["novelty", "--rope-dims", "4"], "requires --rope-base"),
    (["streaming_llm:keep=0.5", "--scores"], "streaming_llm has none"), (["lagkv", "--frobnicate"], "--frobnicate"),
    (["lagkv", "--queries", "absent.npy"], "absent.npy: cannot be opened"),
])
def test_refuses_in_one_line(files, capsys, arguments, words):
    assert run(files, *arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(words, said), said
