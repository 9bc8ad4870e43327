"""PyTorch's tensors: bfloat16, transposed and expanded ones, and the same rows as NumPy's."""

import numpy as np
import pytest
from conftest import random_cache

import lagkv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


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
