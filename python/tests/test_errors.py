"""Bad input: the exception, its words, and a cache that stays as it was."""

import ast
import copy
import pathlib
import pickle

import numpy as np
import pytest
from conftest import random_cache

import lagkv

K, V = random_cache((2, 100, 8))
READ_ONLY = K.copy()
READ_ONLY.flags.writeable = False
UNALIGNED = np.frombuffer(bytearray(K.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(K.shape)
POLICY = "key_diff:keep=0.25"

REFUSED = {
    "dtype float64: must be float32, float16 or bfloat16": dict(keys=K.astype(np.float64)),
    "dtype int32: must be float32, float16 or bfloat16": dict(values=V.astype(np.int32)),
    "keys: ndim=2: must be 3 or 4": dict(keys=K[0]),
    "values: ndim=4: must be the 3 of the keys": dict(values=V[None]),
    "values: heads=1: must be the 2 of the keys": dict(values=V[:1]),
    "keys: the array is read-only, and its rows would be moved": dict(keys=READ_ONLY),
    "values: the array is read-only": dict(values=READ_ONLY),
    "keys: strides head=0, token=8, channel=1: overlap":
        dict(keys=np.lib.stride_tricks.as_strided(K, K.shape, (0, *K.strides[1:]), writeable=True)),
    "must be aligned to its elements": dict(keys=UNALIGNED),
    "tokens=101: must be at most the 100 of the arrays": dict(tokens=101),
    "tokens=90: must be at most the 80 of the arrays": dict(values=V[:, :80], tokens=90),
    "heads=0, channels=8: must be 1 or more": dict(keys=K[:0], values=V[:0]),
    "direction=up: must be front or window": dict(direction="up"),
    "threads=0: must be from 1 to 1024": dict(threads=0),
    "queries: heads=3: must be a multiple of the 2 KV heads": dict(queries=np.zeros((3, 4, 8), np.float32)),
    "queries: channels=7: must be 8": dict(queries=np.zeros((2, 4, 7), np.float32)),
    "queries: ndim=4: must be 3": dict(queries=np.zeros((1, 2, 4, 8), np.float32)),
    "weights: channels=99: must be at least 100": dict(weights=np.zeros((2, 4, 99), np.float32)),
    "positions: dtype int64: must be int32 or uint32": dict(positions=np.zeros((2, 100), np.int64)),
    "positions: tokens=99: must be at least the 100 rows in use": dict(positions=np.zeros((2, 99), np.int32)),
    "positions: heads=3: must be the 2 of the keys, or 1": dict(positions=np.zeros((3, 100), np.int32)),
    "positions: stride 2 of the last dimension: must be 1": dict(positions=np.zeros((2, 200), np.int32)[:, ::2]),
    "accumulated_attention: heads=1: must be the 2 of the keys": dict(accumulated_attention=np.zeros((1, 100), np.float32)),
    "accumulated_attention: dtype float16: must be float32": dict(accumulated_attention=np.zeros((2, 100), np.float16)),
    "key_statistics: 16 numbers a head: must be 17": dict(key_statistics=np.zeros((2, 16))),
    "query_covariance: rows=7: must be 8":
        dict(query_mean=np.zeros((2, 8), np.float32), query_covariance=np.zeros((2, 7, 8), np.float32)),
    "scale=-1: must be 0 or more": dict(scale=-1.0),
    "keys: strides (0, 800, 8, 1): overlap in the entries of the batch":
        dict(keys=np.lib.stride_tricks.as_strided(K, (2, *K.shape), (0, *K.strides), writeable=True), values=np.stack([V, V])),
    "values: strides (800, 800, 8, 1): overlap in the entries of the batch":  # each half another's
        dict(keys=np.stack([K, K]), values=np.lib.stride_tricks.as_strided(np.concatenate([V, V]), (2, *V.shape),
                                                                           (V.strides[0], *V.strides), writeable=True)),
    "positions: strides (0, 0, 1): overlap in the entries of the batch":
        dict(keys=np.stack([K, K]), values=np.stack([V, V]),
             positions=np.lib.stride_tricks.as_strided(np.arange(100, dtype=np.int32), (2, 1, 100), (0, 0, 4), writeable=True)),
    "policy: character 12 is NUL": dict(policy="lagkv:lag=64\0x"),
    "unknown policy 'lag'": dict(policy="lag"),
    "keep=2: must be above 0 and at most 1": dict(policy="key_diff:keep=2"),
    "queries: the policy reads those of the last 64 tokens": dict(policy="snapkv"),
    "rope: the policy reads keys as they were before RoPE": dict(policy="novelty"),
    "values: the policy reads them, the layer has none": dict(policy="value_norm", values=None),
    "rope: dims=16: must be at most the 8 channels": dict(policy="novelty", rope=lagkv.Rope(pairs="halves", dims=16)),
}


@pytest.mark.parametrize("words", REFUSED, ids=lambda w: w.split(":")[0])
def test_refused_with_the_reason(words):
    call = dict(policy=POLICY, keys=K.copy(), values=V.copy())
    call.update(REFUSED[words])
    arrays = {n: x.copy() for n, x in call.items() if isinstance(x, np.ndarray)}
    cursor = lagkv.Cursor()
    with pytest.raises(lagkv.Error) as refusal:
        lagkv.compress(cursor=cursor, **call)
    assert words in str(refusal.value)
    assert cursor == lagkv.Cursor()
    for name, x in arrays.items():
        np.testing.assert_array_equal(call[name], x)


def test_of_no_known_kind():
    for call, words in (
        (dict(keys=[[1.0]]), "keys: must be an array that speaks DLPack"),
        (dict(keys="abc"), "not str"),
        (dict(values=3), "values: must be an array"),
        (dict(query=K), "unknown offer 'query': must be one of queries"),
        (dict(policy=3), "policy: must be a lagkv.Policy or a string, not int"),
        (dict(cursor=None), "cursor: is missing"),
        (dict(workspace=lagkv.Workspace(), threads=2), "threads: must not be given beside a workspace"),
        (dict(keys=lagkv.Layer(K, V)), "must not be given beside a lagkv.Layer"),
        (dict(query_count=-1), "query_count=-1: must be a whole number from 0 to 18446744073709551615"),
        (dict(rope=10000), "rope=10000: must be a lagkv.Rope"),
        (dict(protect=[-1]), "protect=[-1]: must be positions, whole numbers from 0 to 4294967295"),
        (dict(protect=[2**40]), "protect=[1099511627776]: must be positions"),
        (dict(protect="12"), "protect='12': must be positions"),
        (dict(scale="a"), "scale='a': must be a number"),
    ):
        with pytest.raises(TypeError) as refusal:
            lagkv.compress(**{"policy": POLICY, "keys": K, "values": V, "cursor": lagkv.Cursor(), **call})
        assert words in str(refusal.value)
    assert issubclass(lagkv.Error, ValueError)


PLAN, CURSOR, ANY = lagkv.plan_eviction(POLICY, K, V), lagkv.Cursor(), lagkv.parse(POLICY)
COUNTS = {
    "tokens": [lambda n: lagkv.compress(POLICY, K, V, lagkv.Cursor(), tokens=n), lagkv.Cursor, ANY.all_candidates,
               lambda n: ANY.due(CURSOR, n), lambda n: lagkv.peak_rows(POLICY, 1, n),
               lambda n: setattr(lagkv.Layer(K, V), "tokens", n)],
    "dropped": [lambda n: lagkv.Cursor(dropped=n)], "compressed": [lambda n: lagkv.Cursor(compressed=n)],
    "rows": [lambda n: lagkv.take_back(lagkv.Cursor(), n)], "chunk": [lambda n: lagkv.peak_rows(POLICY, n, 1)],
    "n": [lambda n: lagkv.accumulate(POLICY, K, V, n=n)], "threads": [lagkv.Workspace],
    "layer": [lambda n: ANY.for_layer(n, 3)],
    "layers": [lambda n: ANY.for_layer(0, n), lambda n: ANY.fit(lagkv.Layer(K, V), n)],
    "head": [PLAN.rows, PLAN.of, PLAN.tokens_after, lambda n: PLAN.source(n, 0),
             lambda n: lagkv.advance(lagkv.Cursor(), PLAN, n)],
    "begin": [lambda n: lagkv.take_out(lagkv.Cursor(), n, 3)], "end": [lambda n: lagkv.take_out(lagkv.Cursor(), 0, n)],
    "row": [lambda n: PLAN.source(0, n)], "dims": [lambda n: lagkv.Rope(pairs="halves", dims=n)],
    "first": [lambda n: lagkv.moved(K[0], None, lagkv.Rope(pairs="halves"), n)],
    "future": [lambda n: lagkv.moved(K[0], None, lagkv.Rope(pairs="halves"), 0, n)],
    "query_count": [lambda n: lagkv.check(POLICY, K, V, query_count=n)],
}
NUMBERS = {
    "base": lambda x: lagkv.Rope(x, pairs="halves"), "position_scale": lambda x: lagkv.Rope(pairs="halves", position_scale=x),
    "factors": lambda x: lagkv.Rope(pairs="halves", factors=x), "multiple": ANY.for_head,
    "scale": lambda x: lagkv.check(POLICY, K, V, scale=x), "head_budgets": lambda x: lagkv.check(POLICY, K, V, head_budgets=x),
}
WORDS = {"pairs": lambda x: lagkv.Rope(pairs=x), "target": lambda x: lagkv.Workspace(target=x), "policy": lagkv.parse,
         "bytes": lagkv.Cursor.load}


@pytest.mark.parametrize("name", [*COUNTS, *NUMBERS, *WORDS])
def test_values_of_a_wrong_kind_are_named(name):
    """By the name of the argument, the value, and what it must be."""
    calls = COUNTS.get(name) or [NUMBERS.get(name) or WORDS[name]]
    wrong = (-1, 1.5, np.float32(2.7), 2**64, "x", [2j]) if name in COUNTS else ("x", [2j], {}) if name in NUMBERS else (7, [1])
    for call in calls:
        for bad in wrong:
            with pytest.raises(TypeError) as refusal:
                call(bad)
            assert str(refusal.value).startswith(f"{name}={bad!r}: must be "), str(refusal.value)
        if name in COUNTS:  # NumPy's integers are integers
            try:
                call(np.int64(1))
            except lagkv.Error:
                pass


def test_a_long_value_is_cut():
    with pytest.raises(TypeError) as refusal:
        lagkv.check(POLICY, K, V, protect=[*range(10000), -1])
    assert len(str(refusal.value)) < 200 and str(refusal.value).startswith("protect=[0, 1, 2, ")


def test_objects_of_a_wrong_kind_are_named():
    for call, words in (
        (lambda: lagkv.compress(POLICY, K, V, 3), "cursor: must be a lagkv.Cursor, not int"),
        (lambda: lagkv.plan_eviction(POLICY, K, V, "c"), "cursor: must be a lagkv.Cursor, not str"),
        (lambda: lagkv.accumulate(POLICY, K, V, 3, n=1), "cursor: must be a lagkv.Cursor, not int"),
        (lambda: lagkv.score(POLICY, K, V, candidates=range(4)), "candidates: must be a lagkv.Candidates, not range"),
        (lambda: lagkv.score(POLICY, K, V, workspace=2), "workspace: must be a lagkv.Workspace, not int"),
        (lambda: lagkv.compact(K, None), "plan: must be a lagkv.Plan, not NoneType"),
        (lambda: lagkv.advance(PLAN, CURSOR), "cursor: must be a lagkv.Cursor, not Plan"),
        (lambda: lagkv.take_back(PLAN, 3), "cursor: must be a lagkv.Cursor, not Plan"),
        (lambda: lagkv.take_out(PLAN, 3, 4), "cursor: must be a lagkv.Cursor, not Plan"),
        (lambda: lagkv.rerotate(K, PLAN, 10000), "rope: must be a lagkv.Rope, not int"),
        (lambda: lagkv.moved(K[0], None, None, 0), "rope: must be a lagkv.Rope, not NoneType"),
    ):
        with pytest.raises(TypeError) as refusal:
            call()
        assert str(refusal.value) == words
    with pytest.raises(lagkv.Error, match=f"^dropped={2**63}: must be at most {2**62 - 1}$"):
        lagkv.Cursor(dropped=2**63)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(again):
    rope = again(lagkv.Rope(5e5, pairs="neighbours", dims=4, factors=[1, 2], position_scale=0.25))
    assert (rope.base, rope.pairs, rope.dims, rope.factors, rope.position_scale) == (5e5, "neighbours", 4, [1, 2], 0.25)
    workspace = again(lagkv.Workspace(3, target="sse2" if "sse2" in lagkv.Workspace().target else None))
    assert workspace.threads == 3 and lagkv.score(POLICY, K, V, workspace=workspace).shape[0] == 2
    assert again(lagkv.Workspace()).target == lagkv.Workspace().target
    cursor = lagkv.Cursor(9, 3, 4)
    assert again(cursor) == cursor and again(lagkv.parse(POLICY)).text == POLICY


def test_read_only_arrays_can_be_read():
    lagkv.check(POLICY, READ_ONLY, V)
    assert lagkv.plan_eviction(POLICY, READ_ONLY, V)
    assert lagkv.score(POLICY, READ_ONLY, V).shape[0] == 2


def test_a_refused_offer_leaves_the_one_before():
    layer = lagkv.Layer(K.copy(), V.copy(), positions=np.tile(np.arange(100, dtype=np.int32), (2, 1)))
    with pytest.raises(lagkv.Error):
        layer.offer(positions=np.zeros((5, 100), np.int32))
    plan = lagkv.plan_eviction("novelty:capacity=50", lagkv.Layer(
        K, V, positions=np.tile(np.arange(100, dtype=np.int32), (2, 1)), rope=lagkv.Rope(pairs="halves")))
    layer.offer(rope=lagkv.Rope(pairs="halves"))
    again = lagkv.plan_eviction("novelty:capacity=50", layer)
    assert (plan.of(1) == again.of(1)).all()


def test_offers_are_taken_together_or_not_at_all():
    layer = lagkv.Layer(K.copy(), V.copy(), protect=[7])
    with pytest.raises(lagkv.Error, match="queries: heads=3|queries: ndim"):
        layer.offer(protect=[1, 2], scale=0.5, queries=np.zeros((1, 1, 3, 8), np.float32))
    assert 7 in lagkv.plan_eviction("key_diff:sink=0,recent=0,keep=0.02", layer).rows(0)


def test_lists_of_layers():
    layer, cursor = lagkv.Layer(K.copy(), V.copy()), lagkv.Cursor()
    for layers, cursors, error, words in (
        ([None], [cursor], TypeError, "layers[0]: is None: must be a lagkv.Layer"),
        ([layer], [None], TypeError, "cursors[0]: is None: must be a lagkv.Cursor"),
        ([layer, layer], [cursor, lagkv.Cursor()], lagkv.Error, "layers[1]: is layers[0] too"),
        ([layer, lagkv.Layer(K.copy(), V.copy())], [cursor, cursor], lagkv.Error, "cursors[1]: is cursors[0] too"),
    ):
        with pytest.raises(error) as refusal:
            lagkv.compress_layers(POLICY, layers, cursors)
        assert words in str(refusal.value)
    with pytest.raises(lagkv.Error, match="compressed=2: must be at most tokens=1"):
        lagkv.Cursor(tokens=1, compressed=2)


def test_arrays_without_a_row_are_no_arrays_that_overlap():
    empty = np.zeros((2, 0, 8), np.float32)
    assert lagkv.compress(POLICY, empty, empty.copy(), lagkv.Cursor()) == 0


def test_what_dlpack_itself_says_is_the_cause():
    class Stubborn:
        def __dlpack__(self, **_):
            raise RuntimeError("requires grad")

    with pytest.raises(TypeError, match="keys: must be an array") as refusal:
        lagkv.check(POLICY, Stubborn(), V)
    assert "requires grad" in str(refusal.value.__cause__)


def test_a_refused_call_leaves_no_plan_of_the_one_before():
    workspace, keys = lagkv.Workspace(), K.copy()
    cursor = lagkv.Cursor()
    lagkv.compress(POLICY, keys, V.copy(), cursor, workspace=workspace)
    assert workspace.last_plan()
    with pytest.raises(lagkv.Error):
        lagkv.compress("snapkv", keys, V.copy(), lagkv.Cursor(), workspace=workspace)
    assert not workspace.last_plan()
    with pytest.raises(lagkv.Error, match="plan: is of 0 rows: must be at least the 36"):
        lagkv.advance(cursor, workspace.last_plan())

    def layer(tokens=None):
        return lagkv.Layer(K.copy(), V.copy(), tokens=tokens)

    layers, cursors = [layer(), layer(50)], [lagkv.Cursor(), lagkv.Cursor()]
    far = lagkv.Cursor(tokens=1000)
    for refused in (lambda **with_it: lagkv.compress_layers(POLICY, layers, cursors, **with_it),
                    lambda **with_it: lagkv.compress_layers(POLICY, layers, cursors[:1], **with_it),
                    lambda **with_it: lagkv.compress_layers(POLICY, layers, [cursors[0]] * 2, **with_it),
                    lambda **with_it: lagkv.compress_layers(POLICY, [layers[0], None], cursors, **with_it),
                    lambda **with_it: lagkv.plan_eviction("snapkv", layer(), None, lagkv.Cursor(), **with_it),
                    lambda **with_it: lagkv.plan_eviction(POLICY, layer(), None, far, **with_it)):
        assert lagkv.plan_eviction(POLICY, layer(), None, lagkv.Cursor(), workspace=workspace) and workspace.last_plan()
        with pytest.raises((lagkv.Error, TypeError)):
            refused(workspace=workspace)
        assert not workspace.last_plan()
    assert lagkv.plan_eviction(POLICY, layer(), None, lagkv.Cursor(), workspace=workspace) and workspace.last_plan()
    assert lagkv.compress_layers(POLICY, [], [], workspace=workspace) == [] and not workspace.last_plan()


def test_policies_by_keyword():
    assert lagkv.make_policy("novelty", pre_rope=np.bool_(False)).text == "novelty:pre_rope=no"
    assert lagkv.make_policy("lagkv", lag=128, ratio=0.25).text == "lagkv:lag=128,ratio=0.25"
    assert lagkv.make_policy("key_diff", pre_rope=True, keep=None).text == "key_diff:pre_rope=yes"
    fused = lagkv.make_policy("fuse", of=["novelty", "cur"], weights=[1, 0.5], keep=0.25)
    assert fused.text == "fuse:of=novelty+cur,weights=1+0.5,keep=0.25" and fused.needs["rope"]
    assert pickle.loads(pickle.dumps(fused)).text == copy.copy(fused).text == fused.text
    with pytest.raises(lagkv.Error, match="ratio=2: must be"):
        lagkv.make_policy("lagkv", ratio=2)
    assert lagkv.make_policy("lagkv", lag=np.array(64), ratio=np.float32(0.1)).text == "lagkv:lag=64,ratio=0.1"
    for options in (dict(form="paper,lag=5"), {"lag=3,sink": 2}, dict(lag=["1", "2,sink=3"])):
        with pytest.raises(lagkv.Error, match="^lagkv: .*: must have no comma$"):
            lagkv.make_policy("lagkv", **options)
    with pytest.raises(TypeError, match="^name: must be a string, not int$"):
        lagkv.make_policy(3)
    for m in lagkv.methods():
        for key, default, accepted, meaning in m["options"]:
            assert accepted.startswith("must be") and meaning
            if default is not None and not m["has_budget"]:
                lagkv.make_policy(m["name"], **{key: default})
    assert any(key == "keep" for key, *_ in lagkv.shared_options()) and len(lagkv.fusion_options()) == 3


def test_workspaces():
    assert lagkv.Workspace().target == lagkv.Workspace(threads=2).target and lagkv.Workspace(3).threads == 3
    with pytest.raises(lagkv.Error, match="target=mmx: must be one of"):
        lagkv.Workspace(target="mmx")
    with pytest.raises(lagkv.Error, match="pairs=both: must be halves or neighbours"):
        lagkv.Rope(pairs="both")
    with pytest.raises(lagkv.Error, match="base=0: must be above 0"):
        lagkv.Rope(0, pairs="halves")


def test_the_stub_tells_what_there_is():
    """Every name of _core.pyi is there when it runs, and every public name that is there has a stub and a docstring."""
    folder = pathlib.Path(lagkv.__file__).parent
    assert (folder / "py.typed").exists()
    tree = ast.parse((folder / "_core.pyi").read_text())
    stub = {n.name: n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    for name in lagkv.__all__:
        thing = getattr(lagkv, name)
        if isinstance(thing, type) and name != "Error":
            told = {n.name for n in stub[name].body if isinstance(n, ast.FunctionDef)}
            there = {n for n in vars(thing) if not n.startswith("_")}
            assert there == {n for n in told if not n.startswith("_")}, name
        assert thing.__doc__ or name in ("Error", "expected_queries"), name
    core = {n for n in dir(lagkv._core) if not n.startswith("_")}
    assert core - {"version", "expected_queries"} == set(stub)


def test_types_by_mypy(tmp_path):
    mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np\nimport lagkv\n"
        "k = np.zeros((2, 100, 8), np.float32)\n"
        "n: int = lagkv.compress('lagkv', k, k.copy(), lagkv.Cursor(), queries=k, protect=[1, 2])\n"
        "plan = lagkv.plan_eviction('full', lagkv.Layer(k, k.copy()))\n"
        "lagkv.advance(lagkv.Cursor(), 3)  # type: ignore[arg-type]\n")
    out, err, failed = mypy.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(program)])
    assert not failed, out + err
