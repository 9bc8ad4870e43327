"""python -m lagkv: what it writes, and what it refuses. What it decides is compared with a few lines of NumPy in double; the
reference vectors of tests/golden are checked by the tests of the library."""

import os
import pathlib
import re
import struct

import numpy as np
import pytest
from conftest import random_cache, reference_lagkv

import lagkv
from lagkv.__main__ import main

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture
def files(tmp_path):
    keys, values = random_cache((2, 300, 8), seed=2)
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


def expect_gathered(files):
    """The rows of the results are those of the inputs at the positions of kept.npy, byte for byte, and kept_mask.npy agrees."""
    kept, mask = result(files, "kept"), result(files, "kept_mask")
    assert kept.dtype == np.int32 and mask.dtype == np.uint8 and (np.diff(kept) > 0).all()
    assert mask.sum() == kept.size and np.take_along_axis(mask, kept, 1).all()
    for name in ("keys", "values"):
        all_rows = np.load(files / f"{name}.npy")
        np.testing.assert_array_equal(result(files, name), np.take_along_axis(all_rows, kept[..., None], 1))
        assert result(files, name).dtype == all_rows.dtype


@pytest.mark.parametrize("target", ["scalar", "sse2", "avx2", "avx512", "neon"])
def test_targets_and_types(files, capsys, target):
    keys, values = (x.astype(t) for x, t in zip(random_cache((2, 300, 12)), (np.float16, np.float32)))
    np.save(files / "keys.npy", keys), np.save(files / "values.npy", values[..., :5])
    code = run(files, "lagkv:sink=4,lag=32,ratio=0.25", "--target", target)
    said = capsys.readouterr()
    if code:
        assert "on this machine" in said.err
        return
    assert f"({target})" in said.out
    np.testing.assert_array_equal(result(files, "kept"), reference_lagkv(keys, values[..., :5], 4, 32, 0.25))
    expect_gathered(files)


def test_leaves_short_arrays_alone(files):
    for form, shape in (("paper", (2, 0, 64)), ("kvpress", (2, 300))):
        assert run(files, f"lagkv:sink=200,lag=64,form={form}", "--scores") == 0
        np.testing.assert_array_equal(result(files, "keys"), np.load(files / "keys.npy"))
        assert result(files, "scores").shape == shape and not (files / "out" / "lengths.npy").exists()


def test_scores(files):
    queries = ["--queries", f"{files}/queries.npy"]
    for policy, more, shape, first, last in (
            ("key_diff:lag=32,keep=0.25", [], (2, 8, 32), None, None), ("lagkv:sink=4,lag=32", [], (2, 8, 32), None, None),
            ("fuse:lagkv+key_diff,lag=32,keep=0.25,weights=1+0.5", [], (2, 8, 32), None, None),
            ("key_norm:capacity=1000,every=5", [], (2, 300), 4, 268), ("h2o:capacity=100", queries, (2, 300), 4, 250),
            ("h2o:capacity=1000", queries, (2, 300), 4, 299), ("snapkv:window=20,sink=2", queries, (2, 300), 2, 280)):
        assert run(files, policy, "--scores", *more) == 0
        scores = result(files, "scores")
        assert scores.shape == shape and scores.dtype == np.float32
        if first is None:
            assert np.isfinite(scores).all()
        else:  # NaN: no candidates
            numbers = np.arange(300)
            assert (np.isnan(scores) == ((numbers < first) | (numbers >= last))).all(), policy
    assert run(files, "lagkv:sink=4,lag=32,form=kvpress_cross", "--scores") == 0
    cross = result(files, "scores")
    assert run(files, "lagkv:sink=4,lag=32", "--scores") == 0
    paper = result(files, "scores").reshape(2, -1)
    np.testing.assert_allclose(cross[:, 4:4 + paper.shape[1]], paper / 2, rtol=1e-5)
    assert (cross[:, :4] == 1).all() and (cross[:, 4 + paper.shape[1]:] == 1).all()


def test_adaptive_writes_the_mask_alone(files, capsys):
    assert run(files, "key_diff:select=adaptive,capacity=100", "--protect", "40-49") == 0
    mask = result(files, "kept_mask")
    assert mask.sum() == 200 and mask[0].sum() != mask[1].sum() and mask[:, 40:50].all()
    assert [f.name for f in (files / "out").iterdir()] == ["kept_mask.npy"]
    counts = sorted(mask.sum(1))
    assert f"from {counts[0]} to {counts[1]} of 300 tokens" in capsys.readouterr().out


# ---- step by step: an oracle in double ----------------------------------------------------------------------------------


STEPS = [80, 40] + 180 * [1]
OPTION = ["--steps", "80,40,1x180"]


def attention(files, head, position, rows):
    """Weights of the queries of a position over those rows that are not behind it: [group, rows]."""
    keys, queries = np.load(files / "keys.npy").astype(float), np.load(files / "queries.npy").astype(float)
    group = len(queries) // len(keys)
    logits = queries[head * group:(head + 1) * group, position] @ keys[head, rows].T / np.sqrt(keys.shape[2])
    logits[:, rows > position] = -np.inf
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def decode(score, capacity, recent, every=1, sink=4, appended=lambda head, rows, n: None):
    """The rows left after STEPS, [heads, rows]. appended(head, rows, n) comes before the scores of each step; score(head, rows,
    queries) scores all rows from the last `queries` tokens, which all heads still hold."""
    heads, seen = [np.arange(0), np.arange(0)], 0
    for n in STEPS:
        seen += n
        heads = [np.append(rows, np.arange(seen - n, seen)) for rows in heads]
        for head, rows in enumerate(heads):
            appended(head, rows, n)
        back = [rows[::-1] == seen - 1 - np.arange(len(rows)) for rows in heads]
        queries = min(len(same) if same.all() else int(same.argmin()) for same in back)
        if len(heads[0]) < capacity + every:
            continue
        for head, rows in enumerate(heads):
            goes = len(rows) - capacity
            s = score(head, rows, queries)[sink:len(rows) - recent]
            order = np.argsort(-s, kind="stable")
            last, first = s[order[-goes - 1]], s[order[-goes]]
            assert last - first > 1e-5 * abs(last), "f32 might decide otherwise: take another seed"
            heads[head] = np.delete(rows, sink + order[-goes:])
    return np.stack(heads)


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_h2o_keeps_its_sums(files, form):
    sums = np.zeros((2, 300))

    def appended(head, rows, n):
        for row in rows[-n:]:
            sums[head, rows] += attention(files, head, row, rows).mean(0)

    def score(head, rows, queries):
        return sums[head, rows] / (rows[-1] - rows + 1 if form == "mean" else 1)

    expected = decode(score, capacity=64, recent=32, appended=appended)
    assert run(files, f"h2o:capacity=64,form={form}", "--queries", f"{files}/queries.npy", *OPTION) == 0
    np.testing.assert_array_equal(result(files, "kept"), expected)
    expect_gathered(files)
    assert result(files, "lengths").tolist() == 182 * [64]


@pytest.mark.parametrize("recent", [3, 16])
def test_snapkv_sees_the_last_queries(files, recent):
    fewest = [16]  # with recent=3 fewer than 16 tokens at the end are whole in both heads now and then: then fewer queries vote

    def score(head, rows, queries):
        fewest[0] = min(fewest[0], queries)
        return sum(attention(files, head, row, rows).sum(0) for row in rows[-min(queries, 16):])

    expected = decode(score, capacity=64, recent=recent, every=4)
    assert (fewest[0] < 16) == (recent < 16)
    assert run(files, f"snapkv:window=16,kernel=1,capacity=64,every=4,recent={recent}", "--queries", f"{files}/queries.npy",
               *OPTION) == 0
    np.testing.assert_array_equal(result(files, "kept"), expected)


def test_novelty_is_told_from_all_keys_dropped_ones_too(files):
    keys = np.load(files / "keys.npy").astype(float)
    units = keys / np.linalg.norm(keys, axis=-1, keepdims=True)

    def score(head, rows, queries):
        seen = units[head, 4:rows[-1] + 1]
        return np.sqrt(((units[head, rows] - seen.mean(0)) ** 2 / seen.var(0)).mean(1))

    expected = decode(score, capacity=64, recent=16, every=4)
    assert run(files, "novelty:pre_rope=no,heads=own,smooth=0,sink=4,recent=16,capacity=64,every=4", *OPTION) == 0
    np.testing.assert_array_equal(result(files, "kept"), expected)


@pytest.mark.parametrize("policy", ["snapkv:window=8,recent=0,capacity=60", "tova:capacity=60", "expected_attention:capacity=60",
                                    "expected_attention:capacity=60,recent=0", "fuse:snapkv+h2o,window=8,capacity=60",
                                    "random:capacity=60"])
def test_methods_go_step_by_step(files, policy):
    assert run(files, policy, "--queries", f"{files}/queries.npy", *OPTION) == 0
    assert result(files, "kept").shape == (2, 60)
    expect_gathered(files)


def test_streaming_llm(files):
    assert run(files, "streaming_llm:capacity=12", "--steps", "1x300") == 0
    assert result(files, "kept").tolist() == 2 * [[0, 1, 2, 3, *range(292, 300)]]


def test_steps_keep_what_the_library_keeps(files):
    assert run(files, "lagkv:sink=4,lag=32,ratio=0.25", "--steps", "100,1x200") == 0
    np.testing.assert_array_equal(
        result(files, "kept"), reference_lagkv(np.load(files / "keys.npy"), np.load(files / "values.npy"), 4, 32, 0.25))


# ---- what is offered beside keys and values -----------------------------------------------------------------------------


def test_query_statistics(files):
    queries = np.load(files / "queries.npy")
    np.save(files / "mean.npy", queries.mean(1))
    centred = queries - queries.mean(1, keepdims=True)
    np.save(files / "covariance.npy", centred.transpose(0, 2, 1) @ centred / 300)
    for policy, more in (("expected_attention:covariance=no", []),
                         ("expected_attention", ["--query-covariance", f"{files}/covariance.npy"])):
        assert run(files, policy, "--scores", "--queries", f"{files}/queries.npy") == 0
        from_queries, kept = result(files, "scores"), result(files, "kept")
        assert run(files, policy, "--scores", "--query-mean", f"{files}/mean.npy", *more) == 0
        np.testing.assert_allclose(result(files, "scores"), from_queries, rtol=2e-4)
        np.testing.assert_array_equal(result(files, "kept"), kept)


def test_queries_of_f16_count_as_they_are(files):
    half = np.load(files / "queries.npy").astype(np.float16)
    np.save(files / "half.npy", half), np.save(files / "rounded.npy", half.astype(np.float32))
    kept = []
    for name in ("half", "rounded"):
        assert run(files, "snapkv:window=32", "--queries", f"{files}/{name}.npy", "--scores") == 0
        kept.append((result(files, "kept"), result(files, "scores")))
    np.testing.assert_array_equal(kept[0][0], kept[1][0])
    np.testing.assert_array_equal(kept[0][1], kept[1][1])


def turned(keys, base, pairs, scale=1.0, dims=None, factors=1.0):
    """The keys of positions 0, 1, 2, ... with RoPE added, by complex numbers in double."""
    out = keys.astype(float)
    dims = dims or keys.shape[2]
    half = dims // 2
    angles = np.arange(keys.shape[1])[:, None] * scale / (base ** (2 * np.arange(half) / dims) * factors)
    a, b = (slice(0, half), slice(half, dims)) if pairs == "halves" else (slice(0, dims, 2), slice(1, dims, 2))
    z = (out[..., a] + 1j * out[..., b]) * np.exp(1j * angles)
    out[..., a], out[..., b] = z.real, z.imag
    return out.astype(np.float32)


@pytest.mark.parametrize("policy", ["novelty:keep=0.25", "key_diff:pre_rope=yes,keep=0.25",
                                    "lagkv:pre_rope=yes,sink=4,lag=32,ratio=0.25", "novelty:capacity=70,every=9"])
def test_rotated_keys_are_scored_as_they_were_before(files, policy):
    keys, factors = np.load(files / "keys.npy"), 1 + 0.25 * np.arange(3, dtype=np.float32)
    np.save(files / "factors.npy", factors)
    more = ["--steps", "100,1x200"] if "capacity" in policy else ["--scores"]
    plain = policy.replace("pre_rope=yes", "pre_rope=no") if "pre_rope" in policy else policy + ",pre_rope=no"
    assert run(files, plain, *more) == 0
    expected, scores = result(files, "kept"), result(files, "scores") if more == ["--scores"] else None
    for rotation, options in (
            (dict(base=1e4, pairs="halves"), ["--rope-base", "1e4"]),
            (dict(base=5e3, pairs="neighbours", scale=0.25),
             ["--rope-base", "5000", "--rope-pairs", "neighbours", "--rope-scale", "0.25"]),
            (dict(base=1e5, pairs="halves", dims=6, factors=factors),
             ["--rope-base", "1e5", "--rope-dims", "6", "--rope-factors", f"{files}/factors.npy"])):
        np.save(files / "keys.npy", turned(keys, **rotation))
        assert run(files, policy, *more, *options) == 0
        np.testing.assert_array_equal(result(files, "kept"), expected)
        if scores is not None:
            np.testing.assert_allclose(result(files, "scores"), scores, rtol=1e-4)
        if policy == "novelty:keep=0.25":
            assert run(files, plain) == 0
            assert (result(files, "kept") != expected).any(), "or this shows nothing"


@pytest.mark.parametrize("policy", ["key_norm:keep=0.25", "random:capacity=75", "streaming_llm:capacity=75",
                                    "key_diff:select=chunks,keep=0.25", "lagkv:sink=4,lag=32,form=kvpress_cross,ratio=0.25"])
@pytest.mark.parametrize("steps", ["300", "100,1x200"])
def test_protects_positions(files, policy, steps):
    assert run(files, policy, "--steps", steps) == 0
    rows, positions = result(files, "kept").shape[1], [129, *range(40, 50), *range(120, 129)]
    assert not result(files, "kept_mask")[:, positions].all()
    assert run(files, policy, "--steps", steps, "--protect", "129,40-49,120-128") == 0
    assert result(files, "kept").shape[1] == rows, "others go in their place"
    assert result(files, "kept_mask")[:, positions].all()
    expect_gathered(files)


def test_budgets_of_a_model(files):
    # 2 heads x 2 x 8 channels x 4 bytes: 128 a token.
    for more, rows in (([], 97), (["--layer", "1/2"], 48)):
        assert run(files, "key_norm:budget_mb=0.0125", *more) == 0
        assert result(files, "kept").shape[1] == rows
    rows = []
    for layer in range(4):
        assert run(files, "key_norm:capacity=100,pyramid=20", "--layer", f"{layer}/4") == 0
        rows.append(result(files, "kept").shape[1])
    assert rows == sorted(rows, reverse=True) and len(set(rows)) == 4 and abs(sum(rows) - 400) <= 2


# ---- what it prints and refuses -----------------------------------------------------------------------------------------


def test_leaves_its_inputs_alone(files, capsys):
    before = {f.name: f.read_bytes() for f in files.glob("*.npy")}
    (files / "link").symlink_to(files)
    os.link(files / "keys.npy", files / "scores.npy")
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


def test_lists_every_policy_and_key(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for method in lagkv.methods():
        entry = re.search(rf"^{method['name']} .*?(?=\n\n)", out, re.M | re.S)
        assert entry, method["name"]
        for key, value in [(option[0], "") for option in method["options"]] + list(method["instead"].items()):
            assert f"\n  {key}={value}" in entry[0], (method["name"], key)
    for key, *_ in lagkv.shared_options() + lagkv.fusion_options():
        assert f"\n  {key}=" in out
    assert "=-1" not in out and "fuse:A+B" in out and max(map(len, out.splitlines())) <= 100


@pytest.mark.skipif(not DOCS.exists(), reason="the tests run outside a checkout")
def test_the_table_of_keys_in_the_docs_is_the_registry(capsys):
    assert main(["--list-markdown"]) == 0
    assert "\n" + capsys.readouterr().out in (DOCS / "methods.md").read_text(), (
        "docs/methods.md: put the output of python -m lagkv --list-markdown in place of its table of keys")


def test_refuses_arrays_that_do_not_fit(files, capsys):
    bad = files / "bad.npy"
    for array, policy, option, words in (
            (np.zeros((2, 301, 2), np.float32), "lagkv", "--values", "keys [2, 300, 8], values [2, 301, 2]"),
            (np.zeros((80, 2), np.float32), "lagkv", "--values", "shape [80, 2]"),
            (np.zeros((2, 300, 2), np.int32), "lagkv", "--values", "type <i4"),
            (np.zeros((6, 299, 8), np.float32), "snapkv", "--queries", "shape [6, 299, 8]: must be [query_heads, 300, 8]"),
            (np.zeros((5, 300, 8), np.float32), "snapkv", "--queries", "queries: heads=5: must be a multiple of the 2 KV heads"),
            (np.zeros((3, 8), np.float32), "expected_attention", "--query-mean", "query_mean: heads=3: must be a multiple"),
            (np.zeros((3, 8), np.float32), "expected_attention", "--query-covariance", "must be [query_heads, 8, 8]"),
            (np.zeros((4, 8, 8), np.float32), "expected_attention", "--query-covariance", "must be those of query_mean"),
            (np.ones(3, np.float32), "novelty", "--rope-factors", "shape [3]: must be [4], one a pair"),
            (np.zeros(4, np.float32), "novelty", "--rope-factors", "rope: factors[0]=0: must be above 0")):
        np.save(bad, array)
        rope = ["--rope-base", "1e4"] if "rope" in option else []
        assert run(files, policy, *rope, option, str(bad)) == 2, words
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    bad.write_text("not numpy")
    assert run(files, "lagkv", "--values", str(bad)) == 2 and "is not a .npy file" in capsys.readouterr().err
    assert run(files, "lagkv", "--out", str(bad / "below")) == 2 and "cannot be made a folder" in capsys.readouterr().err
    (files / "out" / "kept.npy").mkdir(parents=True)
    assert run(files, "lagkv") == 2 and "cannot be written" in capsys.readouterr().err
    assert main(["--policy", "lagkv"]) == 2 and "--keys" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    (["lagkv:lag=0"], "lag=0: must be a whole number from 1 to 2147483647"), (["lagcv"], "unknown policy 'lagcv'"),
    (["lagkv:ratio=1.5"], "ratio=1.5: must be above 0 and at most 1"), (["lagkv", "--steps", "10,x"], "'x'"),
    (["lagkv", "--steps", "300,"], "''"), (["lagkv", "--steps", "18446744073709551615,301"], "more than"),
    (["lagkv", "--steps", "10,10"], "add up to 20: must be the 300"), (["lagkv", "--target", "mmx"], "target=mmx"),
    (["lagkv", "--steps", "0,300"], "'0': must be a whole number"), (["lagkv", "--protect", "9-300"], "must be below the 300"),
    (["lagkv", "--layer", "2/2"], "layer=2/2: must be I/N"), (["snapkv"], "snapkv: queries: .*: give --queries"),
    (["novelty"], "give --rope-base"), (["novelty", "--rope-dims", "4"], "requires --rope-base"),
    (["streaming_llm:keep=0.5", "--scores"], "streaming_llm has none"), (["lagkv", "--frobnicate"], "--frobnicate"),
    (["lagkv", "--queries", "absent.npy"], "absent.npy: cannot be opened"), (["tova"], ": give --queries"),
    (["h2o"], ": give --queries"), (["fuse:key_norm+tova"], ": give --queries"),
    (["expected_attention"], ": give --query-mean and --query-covariance, or --queries"),
    (["expected_attention:calibrated=yes", "--queries", "queries.npy"], "give --query-mean and --query-covariance$"),
    (["key_norm:select=adaptive", "--steps", "300"], "steps: with select=adaptive heads have different lengths"),
    *((["key_norm", f"--protect={p}"], "must be positions such as") for p in ("3,x", "3-", "-3", "9-7", "3,,4", "1.5")),
    *((["key_norm", "--layer", layer], "must be I/N") for layer in ("4/4", "1", "1/", "/2", "a/b")),
    (["key_norm:budget_mb=0.001"], "key_norm: budget: holds 7 tokens"),
    (["key_norm:keep=2"], "key_norm: keep=2: must be above 0"),
    *((["novelty", "--rope-base", base, *more], words) for base, more, words in (
        ("0", [], "rope: base=0: must be above 0 and finite"),
        ("1e4", ["--rope-dims", "9"], "rope: dims=9: must be at most the 8"),
        ("1e4", ["--rope-dims", "7"], "rope: dims=7: must be even"), ("1e4", ["--rope-scale=-1"], "rope: position_scale="),
        ("1e4", ["--rope-pairs", "thirds"], "rope-pairs=thirds: must be halves or"))),
])
def test_refuses_in_one_line(files, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(files)
    assert run(files, *arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(words, said), said


@pytest.mark.parametrize("digits", [19, 30, 5000])
@pytest.mark.parametrize("option, value", [("--layer", "{}/1"), ("--layer", "0/{}"), ("--protect", "{}"), ("--protect", "0-{}"),
                                           ("--steps", "{}"), ("--steps", "300x{}")])
def test_numbers_that_no_array_has_are_refused(files, capsys, option, value, digits):
    assert run(files, "lagkv:sink=4,lag=32", option, value.format("9" * digits)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lagkv: {option[2:]}") and said.count("\n") == 1
    assert "must be" in said or "more than the 300" in said


@pytest.mark.parametrize("option", ["--steps", "--protect", "--layer", "--target", "--queries", "--query-mean", "--rope-base"])
def test_an_empty_value_is_not_taken_for_none(files, capsys, option):
    assert run(files, "lagkv:sink=4,lag=32", option, "") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
