"""What the tests share: small caches of random numbers, and LagKV written a second time, in double."""

import numpy as np
import pytest


def random_cache(shape, dtype=np.float32, seed=0):
    """Keys and values [.., heads, tokens, dim]."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for _ in range(2))


def reference_lagkv(keys, values, sink, lag, ratio):
    """The rows that each head keeps, [heads, rows], of the paper's formulas; keys and values [heads, tokens, dim]."""
    tokens = keys.shape[1]
    partitions = (tokens - sink) // lag
    if partitions < 2:
        return np.tile(np.arange(tokens), (keys.shape[0], 1))

    def deviation(x):
        x = np.asarray(x, np.float64)[:, sink:sink + partitions * lag]
        parts = x.reshape(x.shape[0], partitions, lag, -1)
        low, high = parts[:, 1:].min(2, keepdims=True), parts[:, 1:].max(2, keepdims=True)
        spread = ((parts[:, :-1] - low) / (high - low)).std(-1, ddof=1)
        e = np.exp(spread - spread.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    scores = deviation(keys) + deviation(values)
    best = np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :int(ratio * lag)], axis=-1)
    best = best + sink + lag * np.arange(partitions - 1)[:, None]
    heads = keys.shape[0]
    before = np.tile(np.arange(sink), (heads, 1))
    after = np.tile(np.arange(sink + (partitions - 1) * lag, tokens), (heads, 1))
    return np.concatenate([before, best.reshape(heads, -1), after], 1)


@pytest.fixture
def cache():
    return random_cache
