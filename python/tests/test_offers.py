"""What a host may offer, and every method with it."""

import pickle

import numpy as np
import pytest
from conftest import random_cache

import lagkv

HEADS, GROUP, TOKENS, DIM = 2, 3, 160, 16


def everything(policy, keys, values, seed=0, batch=None):
    """All that any policy reads beside keys and values [heads, TOKENS, DIM]."""
    rng = np.random.default_rng(seed)
    before = () if batch is None else (batch,)
    query_heads = HEADS * GROUP
    covariance = np.broadcast_to(np.eye(DIM, dtype=np.float32), before + (query_heads, DIM, DIM)).copy()
    offers = {
        "queries": rng.normal(size=before + (query_heads, TOKENS, DIM)).astype(np.float32),
        "query_mean": rng.normal(size=before + (query_heads, DIM)).astype(np.float32),
        "query_covariance": covariance,
        "positions": np.broadcast_to(np.arange(TOKENS, dtype=np.int32), before + (HEADS, TOKENS)).copy(),
        "importance": rng.normal(size=before + (HEADS, 2 * DIM + 1)).astype(np.float32),
        "rope": lagkv.Rope(pairs="halves"),
        "accumulated_attention": np.zeros(before + (HEADS, TOKENS), np.float32),
        "key_statistics": np.zeros(before + (HEADS, 2 * DIM + 1)),
    }
    lagkv.accumulate(policy, keys, values, lagkv.Cursor(), n=TOKENS, **offers)
    return offers


@pytest.mark.parametrize("budget", ["keep=0.25", "capacity=90", "lag=32,keep=0.25", "keep=0.3,heads=shared,pool=3"])
@pytest.mark.parametrize("name", [m["name"] for m in lagkv.methods() if not m["has_budget"]])
def test_every_method(name, budget):
    policy = lagkv.parse(f"{name}:{budget}")
    keys, values = random_cache((HEADS, TOKENS, DIM))
    offers = everything(policy, keys, values)
    lagkv.check(policy, keys, values, **offers)
    scores = lagkv.score(policy, keys, values, **offers)
    assert scores.shape[0] == HEADS and scores.dtype == np.float32 and not np.isnan(scores).any()
    plan = lagkv.plan_eviction(policy, keys, values, **offers)
    before = keys.copy()
    tokens = lagkv.compress(policy, keys, values, lagkv.Cursor(), **offers)
    assert tokens == plan.tokens_after() < TOKENS
    for h in range(HEADS):
        np.testing.assert_array_equal(keys[h, :tokens], before[h, plan.rows(h)])
        np.testing.assert_array_equal(offers["positions"][h, :tokens], plan.rows(h))  # they move with the rows


@pytest.mark.parametrize("name", [m["name"] for m in lagkv.methods() if m["has_budget"]])
def test_methods_with_a_budget_of_their_own(name):
    policy = lagkv.make_policy(name, capacity=3000 if name == "streaming_llm" else None)
    keys, values = random_cache((HEADS, 5000, 8))
    tokens = lagkv.compress(policy, keys, values, lagkv.Cursor())
    assert (tokens == 5000) == (name == "full")


def test_best_scores_stay():
    keys, values = random_cache((HEADS, TOKENS, DIM))
    policy = lagkv.parse("key_norm:sink=3,recent=5,keep=0.25")
    candidates = policy.due(lagkv.Cursor(), TOKENS)
    scores = lagkv.score(policy, keys, values, candidates=candidates)
    assert scores.shape == (HEADS, len(candidates)) and (candidates.begin, candidates.end) == (3, TOKENS - 5)
    plan = lagkv.plan_eviction(policy, keys, values)
    for h in range(HEADS):
        best = np.sort(np.argsort(-scores[h])[:candidates.keep]) + candidates.begin
        np.testing.assert_array_equal(plan.of(h), best)
    # Not due: the scores are those of all tokens between sinks and window.
    policy = lagkv.parse("key_norm:sink=3,recent=5,capacity=50")
    assert len(policy.due(lagkv.Cursor(), 40)) == 0
    assert lagkv.score(policy, keys, values, tokens=40).shape == (HEADS, 32)


def test_snapkv_is_attention_of_the_last_queries():
    keys, values = random_cache((HEADS, TOKENS, DIM))
    queries = np.random.default_rng(5).normal(size=(HEADS * GROUP, 32, DIM)).astype(np.float32)
    policy = lagkv.make_policy("snapkv", window=32, kernel=5, sink=0, keep=0.25)
    logits = queries.reshape(HEADS, GROUP, 32, DIM) @ keys[:, None].swapaxes(-1, -2) / np.sqrt(DIM)
    logits[..., np.arange(TOKENS) > np.arange(TOKENS - 32, TOKENS)[:, None]] = -np.inf
    e = np.exp(logits - logits.max(-1, keepdims=True))
    weights = e / e.sum(-1, keepdims=True)
    votes = weights.mean((1, 2))[:, :-32]
    expected = sum(np.pad(votes, ((0, 0), (2, 2)))[:, i:i + TOKENS - 32] for i in range(5)) / 5
    np.testing.assert_allclose(lagkv.score(policy, keys, values, queries=queries), expected, rtol=1e-4)
    weights = weights.reshape(HEADS * GROUP, 32, TOKENS).astype(np.float32)
    np.testing.assert_allclose(lagkv.score(policy, keys, values, weights=weights), expected, rtol=1e-4)
    # A ring that is not full, and a factor of the model's own.
    more = np.concatenate([queries, np.full_like(queries, np.nan)], 1)
    same = lagkv.score(policy, keys, values, queries=more, query_count=32, scale=1 / np.sqrt(DIM))
    np.testing.assert_allclose(same, expected, rtol=1e-4)


def test_h2o_accumulates_while_decoding():
    policy = lagkv.parse("h2o:capacity=80")
    keys, values = random_cache((HEADS, TOKENS, DIM))
    queries = np.random.default_rng(2).normal(size=(HEADS * GROUP, TOKENS, DIM)).astype(np.float32)
    attention = np.zeros((HEADS, TOKENS), np.float32)
    layer, cursor = lagkv.Layer(keys, values, 0, accumulated_attention=attention), lagkv.Cursor()
    for begin, end in ((0, 100), (100, 101), (101, 130)):
        at = layer.tokens
        keys[:, at:at + end - begin] = keys[:, begin:end]  # appended behind the rows in use
        attention[:, at:at + end - begin] = 0
        layer.tokens += end - begin
        layer.offer(queries=queries[:, begin:end])
        lagkv.accumulate(policy, layer, cursor=cursor, n=end - begin)
        layer.offer(queries=None)
        assert lagkv.compress(policy, layer, cursor=cursor) == 80
        assert (attention[:, :80] > 0).all()
    assert cursor.seen() == 130


def test_protected_tokens_stay():
    keys, values = random_cache((HEADS, TOKENS, DIM))
    positions = np.arange(TOKENS, dtype=np.uint32)[None].copy()  # one row for all heads
    protect = [20, 21, 77]
    tokens = lagkv.compress("key_diff:capacity=60,heads=shared", keys, values, lagkv.Cursor(), positions=positions,
                            protect=protect)
    assert tokens == 60 and set(protect) <= set(positions[0, :tokens].tolist())
    with pytest.raises(lagkv.Error, match="position 3 after 5: must be ascending"):
        lagkv.compress("key_diff:keep=0.5", keys, values, lagkv.Cursor(), protect=[5, 3])


def test_batches_of_offers():
    for text in ("h2o:keep=0.25", "novelty:capacity=60", "expected_attention:keep=0.25", "snapkv:window=16,keep=0.25"):
        policy = lagkv.parse(text)
        keys, values = random_cache((3, HEADS, TOKENS, DIM))
        offers = everything(policy, keys, values, batch=3)
        plans = lagkv.plan_eviction(policy, keys, values, threads=2, **offers)
        for b, plan in enumerate(plans):
            one = {n: x if n == "rope" else x[b] for n, x in offers.items()}
            alone = lagkv.plan_eviction(policy, keys[b], values[b], **one)
            for h in range(HEADS):
                np.testing.assert_array_equal(plan.of(h), alone.of(h))


def test_query_statistics_move_to_positions_to_come():
    queries = np.random.default_rng(3).normal(size=(4, 300, DIM)) + 1
    mean, covariance = lagkv.query_statistics(queries)
    np.testing.assert_allclose(covariance[2], np.cov(queries[2].T, bias=True), atol=1e-5)
    rope = lagkv.Rope(pairs="halves")
    moved, spread, none = lagkv.moved(mean, covariance, rope, 100, 50)
    angle = np.arange(100, 150)[:, None] * 10000.0 ** (-np.arange(DIM // 2) / (DIM // 2))
    c, s = np.cos(angle).mean(0), np.sin(angle).mean(0)
    a, b = mean[:, :DIM // 2], mean[:, DIM // 2:]
    np.testing.assert_allclose(moved, np.concatenate([a * c - b * s, a * s + b * c], -1), atol=1e-5)
    assert none is None and spread.shape == covariance.shape
    keys, values = random_cache((2, 200, DIM))
    lagkv.check("expected_attention:calibrated=yes,keep=0.5", keys, values, query_mean=moved, query_covariance=spread)
    with pytest.raises(lagkv.Error, match=r"covariance: \[4, 16, 8\]: must be \[4, dim, 16\]"):
        lagkv.moved(mean, covariance[..., :8].copy(), rope, 0)


def test_budgets_in_bytes():
    policy = lagkv.parse("key_diff:budget_mb=0.02,sink=2,recent=4")
    keys, values = random_cache((2, 200, 16))
    with pytest.raises(lagkv.Error, match="is in bytes: make it a number of rows by fit"):
        lagkv.compress(policy, keys, values, lagkv.Cursor())
    fitted = policy.fit(lagkv.Layer(keys, values), 2)
    tokens = lagkv.compress(pickle.loads(pickle.dumps(fitted)), keys, values, lagkv.Cursor())
    assert tokens == 20000 // (2 * 2 * 2 * 16 * 4)
    for again in (fitted, fitted.for_head(2.0)):  # once it is one of rows, fit() leaves it as it is, in a pickle too
        for one in (again, again.fit(lagkv.Layer(keys, values), 2), again.fit(lagkv.Layer(keys, values), 1)):
            assert pickle.loads(pickle.dumps(one)).peak_rows(1, 1000) == one.peak_rows(1, 1000) == again.peak_rows(1, 1000)


def test_positions_of_all_heads_are_for_policies_that_keep_the_same_tokens_in_each():
    keys, values = random_cache((HEADS, TOKENS, DIM))
    one = np.arange(TOKENS, dtype=np.int32)[None]
    with pytest.raises(lagkv.Error, match=f"positions: head_stride=0: .* must be at least the {TOKENS} rows in use"):
        lagkv.check("key_norm:keep=0.25", keys, values, positions=one)
    lagkv.check("key_norm:keep=0.25,heads=shared", keys, values, positions=one)
    lagkv.check("key_norm:keep=0.25", keys, values, positions=np.tile(one, (HEADS, 1)))


def test_needs_say_where_positions_are_read():
    for text, needed in {"h2o:form=mean,keep=0.5": True, "h2o:keep=0.5": False, "key_diff": False}.items():
        assert lagkv.parse(text).needs["positions"] == needed


def test_layers_differ_by_their_place_in_the_list():
    """stripes keeps another sample in each layer."""
    keys = np.empty((3, HEADS, TOKENS, DIM), np.float32)
    keys[...] = np.arange(TOKENS, dtype=np.float32)[:, None]
    layers = [lagkv.Layer(k) for k in keys]
    rows = lagkv.compress_layers("stripes:keep=0.25", layers, [lagkv.Cursor() for _ in layers])
    assert rows == [40, 40, 40]
    first, second, third = keys[:, :, :40, 0]
    assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_head_budgets_share_out_the_most_important_rows():
    rng = np.random.default_rng(7)
    importance = rng.normal(size=(3, 2, 200)) + np.arange(6).reshape(3, 2, 1) / 3
    for share, least in ((0.25, 0), (0.25, 0.1), (0.5, 0.5), (1, 0)):
        ours = np.array(lagkv.head_budgets(importance, share, least))
        stay = np.zeros(importance.shape, bool)  # the same in rows: first those that each head keeps anyway
        for at in np.ndindex(3, 2):
            stay[at][np.argsort(-importance[at], kind="stable")[:round(200 * least)]] = True
        rest = np.where(stay, -np.inf, importance)
        threshold = np.sort(rest, axis=None)[::-1][:round(1200 * share) - stay.sum()]
        stay |= rest >= (threshold[-1] if len(threshold) else np.inf)
        assert ours.shape == (3, 2) and abs(ours.mean() - 1) < 1e-6
        np.testing.assert_allclose(ours, stay.mean(-1) / share, atol=1e-6)
    lists = [[list(head) for head in layer] for layer in importance]
    assert lagkv.head_budgets(lists, 0.25) == lagkv.head_budgets(importance.astype(np.float32), 0.25)
    for wrong, said in (((0, 0), "share=0: must be above 0"), ((float("nan"), 0), "share=nan: must be"),
                        ((0.25, 0.3), "least=0.3: must be from 0 to the share, 0.25")):
        with pytest.raises(lagkv.Error, match=said):
            lagkv.head_budgets(importance, *wrong)
    for wrong in (importance[0], [[["a"]]], 3):
        with pytest.raises(TypeError, match="importance: must be, for each layer and each head, a list of numbers"):
            lagkv.head_budgets(wrong, 0.25)
    with pytest.raises(TypeError, match="share='half': must be a number"):
        lagkv.head_budgets(importance, "half")
