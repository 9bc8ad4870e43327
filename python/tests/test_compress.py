"""compress() and what it consists of, on NumPy arrays: the right rows, in place, in any layout."""

import copy
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from conftest import random_cache, reference_lagkv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lagkv

POLICY = "lagkv:sink=4,lag=32,ratio=0.25"
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def gathered(x, rows):
    return np.take_along_axis(x, rows[..., None], -2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_keeps_what_the_formula_keeps(dtype):
    keys, values = random_cache((3, 300, 16), dtype)
    rows = reference_lagkv(keys, values, 4, 32, 0.25)
    expected = gathered(keys, rows), gathered(values, rows)
    cursor = lagkv.Cursor()
    tokens = lagkv.compress(POLICY, keys, values, cursor)
    assert tokens == rows.shape[1]
    np.testing.assert_array_equal(keys[:, :tokens], expected[0])
    np.testing.assert_array_equal(values[:, :tokens], expected[1])
    assert (cursor.tokens, cursor.dropped, cursor.seen()) == (tokens, 300 - tokens, 300)


@quick
@given(st.data())
def test_any_layout_gives_the_same_bytes(data):
    """Transposed, padded and reversed arrays; what lies between the elements of the view stays as it was."""
    heads, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 20))
    tokens = data.draw(st.integers(1, 200))
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    keys, values = random_cache((heads, tokens, dim), dtype, data.draw(st.integers(0, 99)))

    def laid_out(x):
        order = data.draw(st.permutations(range(3)))
        step, gap, turned = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 5)), data.draw(st.booleans())
        shape = [x.shape[i] + gap for i in order]
        shape[2] *= step
        where = tuple(slice(0, x.shape[i]) if at < 2 else slice(0, x.shape[i] * step, step) for at, i in enumerate(order))
        memory, taken = np.full(shape, 7, dtype), np.zeros(shape, bool)
        view = memory[where].transpose(np.argsort(order))
        view = view[::-1] if turned else view
        taken[where], view[...] = True, x
        return memory, taken, view

    (*k_memory, k), (*v_memory, v) = laid_out(keys), laid_out(values)
    policy = data.draw(st.sampled_from(["lagkv:sink=2,lag=8,ratio=0.5", "key_diff:sink=1,recent=3,keep=0.3", "full",
                                        "streaming_llm:sink=2,capacity=20", "fuse:key_norm+value_norm,recent=5,keep=0.5"]))
    direction = data.draw(st.sampled_from(["front", "window"]))
    ones, others = lagkv.Cursor(), lagkv.Cursor()
    expected = lagkv.compress(policy, keys, values, ones, direction=direction)
    assert lagkv.compress(policy, k, v, others, direction=direction) == expected
    assert ones == others
    np.testing.assert_array_equal(k, keys)
    np.testing.assert_array_equal(v, values)
    for memory, taken in (k_memory, v_memory):
        assert (memory[~taken] == 7).all()


def test_in_place_without_a_copy():
    keys, values = random_cache((8, 4000, 64), np.float16)
    workspace, policy = lagkv.Workspace(), lagkv.parse("lagkv:lag=128,ratio=0.25")
    where = keys.ctypes.data, values.ctypes.data
    tracemalloc.start()
    tokens = lagkv.compress(policy, keys, values, lagkv.Cursor(), workspace=workspace)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tokens < 4000 and (keys.ctypes.data, values.ctypes.data) == where
    assert peak < 20_000  # bytes; the cache has 8 million


def test_what_crosses_is_the_memory_itself():
    """A producer that counts: one export a call, of the array's own address."""
    class Producer:
        def __init__(self, x):
            self.x, self.exports = x, 0

        def __dlpack__(self, **kwargs):
            capsule = self.x.__dlpack__(**kwargs)
            self.exports += 1  # not where an older NumPy refuses an argument, and is asked again without it
            return capsule

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    keys, values = random_cache((2, 200, 8))
    expected = lagkv.compress(POLICY, keys.copy(), values.copy(), lagkv.Cursor())
    producers = Producer(keys), Producer(values)
    before = keys.copy()
    assert lagkv.compress(POLICY, *producers, lagkv.Cursor()) == expected
    assert [p.exports for p in producers] == [1, 1]
    assert not np.array_equal(keys, before)


def test_arrays_live_as_long_as_their_layer():
    keys, values = random_cache((2, 200, 8))
    layer = lagkv.Layer(keys, values)
    plan = lagkv.plan_eviction(POLICY, keys, values)
    del keys, values
    assert lagkv.compress(POLICY, layer, cursor=lagkv.Cursor()) == plan.tokens_after() == layer.tokens


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([POLICY, "key_diff:capacity=50,every=4",
                                                                              "streaming_llm:capacity=40"]))
def test_decoding_keeps_the_count(steps, policy):
    keys, values = random_cache((2, sum(steps), 8))
    layer, cursor, workspace = lagkv.Layer(keys, values, 0), lagkv.Cursor(), lagkv.Workspace()
    seen = 0
    for n in steps:
        layer.tokens += n
        seen += n
        assert lagkv.compress(policy, layer, cursor=cursor, workspace=workspace) == layer.tokens == cursor.tokens
        assert cursor.seen() == seen
    assert layer.tokens <= lagkv.peak_rows(policy, max(steps), seen)


def test_batch_is_each_entry_by_itself():
    keys, values = random_cache((3, 2, 300, 8))
    for policy in (POLICY, "key_diff:keep=0.25", "value_norm:keep=0.5,select=chunks,chunk=8"):
        k, v, at = keys.copy(), values.copy(), lagkv.Cursor()
        tokens = lagkv.compress(policy, k, v, at, threads=2)
        assert at.tokens == tokens
        for b in range(3):
            one_k, one_v = keys[b].copy(), values[b].copy()
            assert lagkv.compress(policy, one_k, one_v, lagkv.Cursor()) == tokens
            np.testing.assert_array_equal(k[b, :, :tokens], one_k[:, :tokens])
            np.testing.assert_array_equal(v[b, :, :tokens], one_v[:, :tokens])
    np.testing.assert_array_equal(lagkv.score(POLICY, keys, values)[1], lagkv.score(POLICY, keys[1], values[1]))


def test_plan_then_compact_is_compress():
    keys, values = random_cache((3, 300, 8))
    policy = "key_diff:keep=0.25"
    cursor, other = lagkv.Cursor(), lagkv.Cursor()
    plan = lagkv.plan_eviction(policy, keys, values, cursor)
    gathered_keys = np.stack([keys[h, plan.rows(h)] for h in range(3)])
    k = keys.copy()
    lagkv.compact(k, plan)
    lagkv.advance(cursor, plan)
    workspace = lagkv.Workspace()
    tokens = lagkv.compress(policy, keys, values, other, workspace=workspace)
    assert cursor == other and plan.tokens_after() == tokens and bool(plan)
    np.testing.assert_array_equal(k[:, :tokens], keys[:, :tokens])
    np.testing.assert_array_equal(gathered_keys, keys[:, :tokens])
    again = workspace.last_plan()
    assert again.candidates == plan.candidates and (again.of(2) == plan.of(2)).all()
    assert [plan.source(1, i) for i in range(tokens)] == list(plan.rows(1))

    entries, workspace = random_cache((3, 3, 300, 8), seed=1), lagkv.Workspace(2)  # of several the last one's
    planned = lagkv.plan_eviction(policy, *entries, lagkv.Cursor(), workspace=workspace)
    shown = [workspace.last_plan()]
    layers = [lagkv.Layer(*random_cache((3, 300, 8), seed=2)), lagkv.Layer(*entries)]
    lagkv.compress_layers(policy, layers, [lagkv.Cursor(), lagkv.Cursor()], workspace=workspace)
    for last in (*shown, workspace.last_plan()):
        assert all((last.of(h) == planned[2].of(h)).all() for h in range(3))
    assert not lagkv.plan_eviction("full", keys, values)
    assert list(lagkv.plan_eviction("full", keys, values).rows()) == list(range(300))


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_that_share_rows(threads):
    """Their rows would move twice: refused where something is due, and nothing moves."""
    keys, values = random_cache((3, 300, 24))
    other_keys, other_values = random_cache((3, 300, 24), seed=1)
    before = [x.copy() for x in (keys, values, other_keys, other_values)]
    for shared, message in (((keys, other_values), "layer 1: its keys lie where the keys of layer 0 do, and would move twice"),
                            ((other_keys, values), "layer 1: its values lie where the values of layer 0 do"),
                            ((values, other_values), "layer 1: its keys lie where the values of layer 0 do")):
        for policy in ("lagkv:lag=32,ratio=0.5", "key_diff:keep=0.5"):
            cursors = [lagkv.Cursor(), lagkv.Cursor()]
            with pytest.raises(lagkv.Error, match=message):
                lagkv.compress_layers(policy, [lagkv.Layer(keys, values), lagkv.Layer(*shared)], cursors, threads=threads)
            assert [c.tokens for c in cursors] == [0, 0]
            lagkv.compress_layers(policy, [lagkv.Layer(keys, values, tokens=20), lagkv.Layer(*shared, tokens=20)], cursors)
    positions = np.tile(np.arange(300, dtype=np.int32), (3, 1))
    layers = [lagkv.Layer(keys, values, positions=positions), lagkv.Layer(other_keys, other_values, positions=positions)]
    with pytest.raises(lagkv.Error, match="layer 1: its positions lie where the positions of layer 0 do, and would move twice"):
        lagkv.compress_layers("key_diff:keep=0.5", layers, [lagkv.Cursor(), lagkv.Cursor()], threads=threads)
    assert (positions == np.arange(300)).all()
    one, two = random_cache((3, 3, 300, 24)), random_cache((3, 3, 300, 24), seed=1)  # the layer is named, not its entry
    for first, last in ((one[0], one[0]), (one[0][:2], one[0][1:]), (two[0], one[1])):
        layers = [lagkv.Layer(first, one[1][:len(first)]), lagkv.Layer(*random_cache((1, 3, 300, 24), seed=2)),
                  lagkv.Layer(last, two[1][:len(last)])]
        with pytest.raises(lagkv.Error, match="layer 2: its keys lie where the (keys|values) of layer 0 do"):
            lagkv.compress_layers("key_diff:keep=0.5", layers, [lagkv.Cursor() for _ in layers], threads=threads)
    assert all((x == was).all() for x, was in zip((keys, values, other_keys, other_values), before))


def test_values_in_the_rows_of_the_keys():
    """Latent rows hold keys and values: as values of their own they would move twice. Plans may be made of them."""
    rows, other = random_cache((2, 3, 300, 24))
    before, policy = rows.copy(), lagkv.parse("lagkv:lag=32,ratio=0.5")
    cursor = lagkv.Cursor()
    for keys, values in ((rows, rows), (rows, rows[..., :16]), (rows, rows[..., 8:]), (rows[..., 8:], rows),
                         (rows[1], rows[1, ..., 4:20])):
        with pytest.raises(lagkv.Error, match="values: lie in the rows of the keys, which would move twice"):
            lagkv.compress(policy, keys, values, cursor)
        with pytest.raises(lagkv.Error, match="values: lie in the rows of the keys, which would move twice"):
            lagkv.compress_layers(policy, [lagkv.Layer(other, other.copy()), lagkv.Layer(keys, values)],
                                  [lagkv.Cursor(), lagkv.Cursor()], workspace=lagkv.Workspace(2))
    assert cursor.tokens == 0 and (rows == before).all()
    assert lagkv.plan_eviction(policy, rows[0], rows[0, ..., :16])
    lagkv.compress("key_diff:keep=0.5", rows, None, cursor)
    assert cursor.tokens == 150
    halves = np.concatenate([before, before], -1)  # keys and values side by side share no unit
    assert lagkv.compress(policy, halves[..., :24], halves[..., 24:], lagkv.Cursor()) < 300


def test_ragged_plans():
    keys, values = random_cache((3, 300, 8))
    keys[0] *= 3
    policy = lagkv.parse("key_norm:keep=0.25,select=adaptive")
    assert policy.ragged
    with pytest.raises(lagkv.Error, match="different numbers of tokens a head"):
        lagkv.compress(policy, keys, values, lagkv.Cursor())
    plan = lagkv.plan_eviction(policy, keys, values)
    assert len({plan.tokens_after(h) for h in range(3)}) > 1
    cursor = lagkv.Cursor()
    lagkv.advance(cursor, plan, 0)
    assert cursor.tokens == plan.tokens_after(0)


def test_heads_of_their_own_budgets():
    keys, values = random_cache((3, 300, 8))
    policy = lagkv.parse("key_diff:sink=4,recent=8,keep=0.25,select=by_head")
    assert policy.ragged and policy.needs["head_budgets"]
    with pytest.raises(lagkv.Error, match="head_budgets: the policy reads the budget of each head"):
        lagkv.plan_eviction(policy, keys, values)
    for wrong, said in (([1, 2], "head_budgets: 2 heads: must be the 3"), ([1, 1, -1], "head_budgets: -1 of head 2")):
        with pytest.raises(lagkv.Error, match=said):
            lagkv.plan_eviction(policy, keys, values, head_budgets=wrong)
    with pytest.raises(TypeError, match="head_budgets=.*: must be a number of each head"):
        lagkv.Layer(keys, values, head_budgets="half")
    plan = lagkv.plan_eviction(policy, keys, values, head_budgets=np.array([0.5, 4, 0]))
    assert [plan.tokens_after(h) for h in range(3)] == [38, 300, 12]

    for multiple, rows in ((0.5, 37), (2, 150)):
        own = policy.for_head(multiple)
        assert not own.ragged and not own.needs["head_budgets"]
        for one in (own, pickle.loads(pickle.dumps(own)), policy.for_head(2).for_head(multiple / 2)):
            assert lagkv.compress(one, keys[:1].copy(), values[:1].copy(), lagkv.Cursor()) == rows
    with pytest.raises(lagkv.Error, match="multiple=-1: must be 0 or more, and finite"):
        policy.for_head(-1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_byte(threads):
    keys, values = random_cache((5, 700, 16), np.float16)
    for policy in (POLICY, "novelty:keep=0.25,pre_rope=no", "fuse:lagkv+key_diff,lag=64,keep=0.25"):
        k, v, k1, v1 = keys.copy(), values.copy(), keys.copy(), values.copy()
        offers = {"rope": lagkv.Rope(pairs="halves")}
        tokens = lagkv.compress(policy, k, v, lagkv.Cursor(), threads=threads, **offers)
        assert tokens == lagkv.compress(policy, k1, v1, lagkv.Cursor(), **offers)
        assert k.tobytes() == k1.tobytes() and v.tobytes() == v1.tobytes()


def test_the_gil_is_released_and_one_workspace_serves_one_call():
    keys, values = random_cache((8, 60_000, 64))
    policy = lagkv.parse("lagkv:lag=128,ratio=0.9")
    workspace = lagkv.Workspace()
    span, refusals = [], []

    def work():
        span.append(time.perf_counter())
        lagkv.compress(policy, keys, values, lagkv.Cursor(), workspace=workspace)
        span.append(time.perf_counter())

    small = random_cache((1, 8, 8))
    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while thread.is_alive():
        ticks.append(time.perf_counter())
        try:
            lagkv.compress(policy, *small, lagkv.Cursor(), workspace=workspace)
        except lagkv.Error as e:
            refusals.append(str(e))
        time.sleep(0.0005)
    thread.join()
    assert sum(span[0] < t < span[1] for t in ticks) > 3
    assert "workspace: is in use by another thread" in refusals


NO_ROOM_FOR_THREADS = """
import resource
import numpy as np
import lagkv
random = np.random.default_rng(1)
keys, values = (random.normal(size=(6, 2, 400, 16)).astype(np.float32) for _ in range(2))
right_keys, right_values = keys.copy(), values.copy()
tokens = lagkv.compress("key_diff:keep=0.25", right_keys, right_values, lagkv.Cursor())
cursor, workspace = lagkv.Cursor(), lagkv.Workspace(64)
lagkv.compress("key_diff:keep=0.25", keys.copy(), values.copy(), lagkv.Cursor(), workspace=lagkv.Workspace(1))
pages = int(open("/proc/self/statm").read().split()[0]) + 20 * 256  # 20 MiB more: two stacks
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096, pages * 4096))
assert lagkv.compress("key_diff:keep=0.25", keys, values, cursor, workspace=workspace) == tokens == cursor.tokens
assert (keys[:, :, :tokens] == right_keys[:, :, :tokens]).all() and (values[:, :, :tokens] == right_values[:, :, :tokens]).all()
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_threads_that_cannot_be_started_are_not_missed():
    done = subprocess.run([sys.executable, "-c", NO_ROOM_FOR_THREADS], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


def test_all_layers_or_none():
    caches = [random_cache((2, 300, 8), seed=i) for i in range(3)]
    layers = [lagkv.Layer(k, v) for k, v in caches]
    cursors = [lagkv.Cursor() for _ in layers]
    alone = [lagkv.compress(POLICY, k.copy(), v.copy(), lagkv.Cursor()) for k, v in caches]
    assert lagkv.compress_layers(POLICY, layers, cursors, threads=2) == alone == [c.tokens for c in cursors]

    caches = [random_cache((2, n, 8), seed=n) for n in (300, 200)]
    layers, cursors = [lagkv.Layer(k, v) for k, v in caches], [lagkv.Cursor(), lagkv.Cursor()]
    before = [x.copy() for c in caches for x in c]
    with pytest.raises(lagkv.Error, match="layer 1: would keep .* nothing moved"):
        lagkv.compress_layers(POLICY, layers, cursors)
    assert all((a == b).all() for a, b in zip(before, (x for c in caches for x in c)))
    assert cursors == [lagkv.Cursor(), lagkv.Cursor()]
    with pytest.raises(lagkv.Error, match="cursors=1: must be 2, one a layer"):
        lagkv.compress_layers(POLICY, layers, cursors[:1])
    with pytest.raises(lagkv.Error, match="is cursors.0. too"):
        lagkv.compress_layers(POLICY, layers, [cursors[0]] * 2)
    with pytest.raises(lagkv.Error, match="layers.1.: is layers.0. too"):
        lagkv.compress_layers(POLICY, [layers[0]] * 2, cursors)

    sloped = lagkv.parse("key_diff:keep=0.25,pyramid=20")
    layers = [lagkv.Layer(*random_cache((2, 300, 8), seed=i)) for i in range(4)]
    counts = lagkv.compress_layers(sloped, layers, [lagkv.Cursor() for _ in layers], equal_counts=False)
    assert sorted(counts, reverse=True) == counts and len(set(counts)) > 1
    one = sloped.for_layer(2, 4)
    assert lagkv.compress(one, *random_cache((2, 300, 8), seed=2), lagkv.Cursor()) == counts[2]
    assert lagkv.compress(pickle.loads(pickle.dumps(one)), *random_cache((2, 300, 8), seed=2), lagkv.Cursor()) == counts[2]


def test_cursor():
    cursor = lagkv.Cursor(tokens=100, dropped=40, compressed=30)
    for other in (copy.copy(cursor), copy.deepcopy(cursor), pickle.loads(pickle.dumps(cursor)), lagkv.Cursor.load(cursor.save())):
        assert other == cursor and other is not cursor and other.seen() == 140
    lagkv.take_back(other, 60)
    assert (other.tokens, other.dropped, other.compressed) == (60, 40, 30) and other != cursor
    assert cursor != 3 and len(cursor.save()) == 28
    lagkv.take_out(other, 25, 35, gap="closed")
    assert (other.tokens, other.dropped, other.compressed) == (50, 40, 25)
    lagkv.take_out(other, 45, 55)  # five that were appended since the last call
    assert (other.tokens, other.dropped, other.compressed, other.seen()) == (45, 50, 25, 95)
    for refused, words in (((5, 4), "begin=5: must be at most end=4"), ((5, 2**62), f"end={2**62}: must be at most")):
        with pytest.raises(lagkv.Error, match=words):
            lagkv.take_out(other, *refused)
    with pytest.raises(lagkv.Error, match="gap=left: must be kept or closed"):
        lagkv.take_out(other, 1, 2, gap="left")
    assert (other.tokens, other.dropped, other.compressed) == (45, 50, 25)
    with pytest.raises(TypeError):
        hash(cursor)
    with pytest.raises(lagkv.Error, match="saved cursor of 27 bytes: must be 28"):
        lagkv.Cursor.load(cursor.save()[:-1])
    with pytest.raises(lagkv.Error, match="compressed=3: must be at most tokens=2"):
        lagkv.Cursor(tokens=2, compressed=3)
    with pytest.raises(lagkv.Error, match="tokens=50: the cursor counts 100 rows"):
        lagkv.compress(POLICY, *random_cache((1, 50, 8)), cursor)


def test_positions_after_eviction():
    """rerotate() gives the keys that stay the positions 0, 1, 2, ...: the same as rotating them there at once."""
    rng = np.random.default_rng(1)
    raw, values = rng.normal(size=(2, 200, 16)), rng.normal(size=(2, 200, 16)).astype(np.float32)

    def rotated(x, positions):
        angle = positions[:, None] * 10000.0 ** (-np.arange(8) / 8)
        c, s = np.cos(angle), np.sin(angle)
        a, b = x[..., :8], x[..., 8:]
        return np.concatenate([a * c - b * s, a * s + b * c], -1).astype(np.float32)

    keys, rope = rotated(raw, np.arange(200)), lagkv.Rope(10000, pairs="halves")
    plan = lagkv.plan_eviction(POLICY, keys, values)
    lagkv.compact(keys, plan)
    lagkv.rerotate(keys, plan, rope)
    n = plan.tokens_after()
    expected = rotated(np.stack([raw[h, plan.rows(h)] for h in range(2)]), np.arange(n))
    np.testing.assert_allclose(keys[:, :n], expected, atol=2e-5)
