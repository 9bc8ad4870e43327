"""PyTorch's tensors: bfloat16, transposed and expanded ones, and the same rows as NumPy's."""

import importlib.util
import pathlib

import numpy as np
import pytest
from conftest import random_cache

import lagkv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "compare_torch.py"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_rows_as_from_numpy(dtype):
    keys, values = (torch.from_numpy(x).to(dtype) for x in random_cache((2, 3, 300, 16)))
    wide = keys.float().numpy().copy(), values.float().numpy().copy()
    where = keys.data_ptr(), values.data_ptr()
    policy = "lagkv:sink=4,lag=32,ratio=0.25"
    tokens = lagkv.compress(policy, keys, values, lagkv.Cursor())
    assert tokens == lagkv.compress(policy, *wide, lagkv.Cursor())
    assert (keys.data_ptr(), values.data_ptr()) == where
    for x, y in zip((keys, values), wide):
        np.testing.assert_array_equal(x[..., :tokens, :].float().numpy(), y[..., :tokens, :])


def test_transposed_tensors():
    keys, values = (torch.from_numpy(x) for x in random_cache((3, 300, 16)))
    k = torch.empty(300, 3, 16).transpose(0, 1).copy_(keys)  # [tokens, heads, dim] in memory
    v = torch.empty(3, 16, 300).transpose(1, 2).copy_(values)
    assert lagkv.compress("key_diff:keep=0.25", k, v, lagkv.Cursor()) == lagkv.compress("key_diff:keep=0.25", keys, values,
                                                                                     lagkv.Cursor())
    assert torch.equal(k, keys) and torch.equal(v, values)


def test_expanded_and_other_tensors_are_refused():
    keys, values = (torch.from_numpy(x) for x in random_cache((1, 300, 16)))
    with pytest.raises(lagkv.Error, match="overlap for 4 heads"):
        lagkv.compress("lagkv", keys.expand(4, -1, -1), values.expand(4, -1, -1), lagkv.Cursor())
    with pytest.raises(lagkv.Error, match="dtype float64"):
        lagkv.compress("lagkv", keys.double(), values, lagkv.Cursor())
    with pytest.raises(TypeError, match="keys: must be an array"):
        lagkv.compress("lagkv", keys.to_sparse(), values, lagkv.Cursor())


@pytest.mark.skipif(not SCRIPT.exists(), reason="the tests run outside a checkout")
def test_the_benchmark_tells_a_wrong_token_from_a_tie():
    spec = importlib.util.spec_from_file_location("compare_torch", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    keys, values = (torch.from_numpy(x).double() for x in random_cache((2, 16 + 4 * 32, 8)))
    scores = script.sum_of_scores(keys[:, 16:], values[:, 16:], 32)
    kept = script.official_step(keys.clone(), values.clone(), 32, 8)[2].flatten(1)
    assert script.beyond_the_border(scores, kept, 8) == (0, 0.0)
    best, worst = scores[1, 2].argsort(descending=True)[[7, 31]] + 16 + 2 * 32
    wrong = torch.where(kept == best, worst, kept)
    n, gap = script.beyond_the_border(scores, wrong, 8)
    assert n == 1 and gap > script.OF_A_SCORE
    assert script.beyond_the_border(scores, torch.where(kept == best, best - 32, kept), 8)[1] == float("inf")
    scores[1, 2, worst - 16 - 2 * 32] = scores[1, 2, best - 16 - 2 * 32]
    assert script.beyond_the_border(scores, wrong, 8) == (0, 0.0)
