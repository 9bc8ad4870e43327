"""Presses of lagkv's kernels keep what those of kvpress keep; benchmarks/compare_kvpress.py does it at size."""

import importlib.util
import pathlib
import re
import sys
import types

import numpy as np
import pytest

import lagkv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
kvpress = pytest.importorskip("kvpress", reason="kvpress is not installed")

from lagkv.kvpress import Press, like, policy_like  # noqa: E402

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "from-kvpress.md"
SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "compare_kvpress.py"
HEADS, GROUP, TOKENS, DIM = 2, 3, 700, 16
REMOVED = {"compression_ratio": 0.6}
PRESSES = [kvpress.LagKVPress(**REMOVED, cross_scoring=True), kvpress.KnormPress(**REMOVED), kvpress.KeyDiffPress(**REMOVED),
           kvpress.CURPress(**REMOVED, num_sinks=16), kvpress.StreamingLLMPress(**REMOVED), kvpress.SnapKVPress(**REMOVED),
           kvpress.TOVAPress(**REMOVED), kvpress.ObservedAttentionPress(**REMOVED)]


def cache(batch=2):
    torch.manual_seed(1)
    keys, values = torch.randn(2, batch, HEADS, TOKENS, DIM)
    logits = torch.randn(batch, HEADS * GROUP, TOKENS, TOKENS).masked_fill(~torch.ones(TOKENS, TOKENS).tril().bool(), -torch.inf)
    return keys, values, logits.softmax(-1)


@pytest.mark.parametrize("theirs", PRESSES, ids=lambda p: type(p).__name__)
def test_the_same_rows(theirs):
    keys, values, attentions = cache()
    module = types.SimpleNamespace(head_dim=DIM, config=types.SimpleNamespace(num_attention_heads=HEADS * GROUP))
    hidden = torch.zeros(2, TOKENS, 1)
    k, v = theirs.compress(module, hidden, keys.clone(), values.clone(), attentions, {})
    where = keys.data_ptr()
    ours, our_values = like(theirs, threads=2).compress(module, hidden, keys, values, attentions, {})
    assert ours.shape == k.shape and ours.data_ptr() == where
    for theirs_of, ours_of in ((k, ours), (v, our_values)):  # theirs come by score, ours by position
        np.testing.assert_array_equal(theirs_of.sort(2).values, ours_of.sort(2).values)


def test_any_policy_is_a_press():
    keys, values, _ = cache(1)
    press = Press("novelty:keep=0.25", rope=lagkv.Rope(pairs="halves"))
    k, v = press.compress(None, torch.zeros(1, TOKENS, 1), keys, values, None, {})
    assert k.shape[2] == v.shape[2] == TOKENS // 4
    with pytest.raises(lagkv.Error, match="different numbers of tokens a head"):
        Press("key_norm:keep=0.5,select=adaptive").compress(None, torch.zeros(1, TOKENS, 1), *cache(1)[:2], None, {})
    with pytest.raises(lagkv.Error, match="RandomPress: must be one of"):
        like(kvpress.RandomPress(**REMOVED))
    with pytest.raises(lagkv.Error, match="num_sinks a multiple of local_window_size"):
        like(kvpress.CURPress(**REMOVED))


@pytest.mark.skipif(not PAGE.exists(), reason="the tests run outside a checkout")
def test_the_policies_of_the_page():
    rows = re.findall(r"^\| `(\w+Press\(.+\))` \| `(.+)` \|$", PAGE.read_text(), re.M)
    assert len(rows) == 11
    for press, policy in rows:
        assert policy_like(eval(press, vars(kvpress))) == policy
        lagkv.parse(policy)
    elsewhere = re.findall(r"`(\w+Press)`", PAGE.read_text())
    assert all(hasattr(kvpress, name) for name in elsewhere)


@pytest.mark.skipif(not SCRIPT.exists(), reason="the tests run outside a checkout")
@pytest.mark.parametrize("tokens", ["640", "512,640"])
def test_the_benchmark_has_each_press_once_at_each_size(tokens, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    spec = importlib.util.spec_from_file_location("compare_kvpress", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--tokens", tokens, "--attention-tokens", "512", "--heads", "4", "--kv-heads",
                                      "2", "--dim", "16", "--repeats", "1"])
    script.main()
    rows = re.findall(r"^\| `(.+)` \| (\d+) \|", capsys.readouterr().out, re.M)
    expected = []
    for press in map(script.name_of, script.presses(0.5)):
        expected += [(press, n) for n in (["512"] if press == "ObservedAttentionPress" else tokens.split(","))]
    assert sorted(rows) == sorted(expected)
