"""LagKVCache: positions right after eviction, every kind of method, batches, and what generate() does to a cache."""

import copy
import os
import pathlib
import pickle

import numpy
import pytest

import lagkv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="Transformers is not installed")

from lagkv.transformers import CompressedLayer, LagKVCache  # noqa: E402

TINY = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=4096)


def tiny(kind="Llama", implementation="eager", **changes):
    """A random model."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **changes})
    config._attn_implementation = implementation
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # so that attention is far from uniform
            if "proj" in name:
                p.mul_(8)
    return model


def tokens_of(batch, n, seed=0):
    return torch.randint(1, 97, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_with_masks(model, ids, steps, kept):
    """The model with a whole cache, in which a mask hides dropped tokens: kept[step][layer] are those in the cache before it."""
    cache, out, at = transformers.DynamicCache(config=model.config), [], 0
    for step, n in enumerate(steps):
        def hide(module, args, kwargs, step=step, at=at, n=n):
            layer = module.layer_idx
            heads = TINY["num_key_value_heads"]
            visible = torch.zeros(ids.shape[0], heads, at + n, dtype=torch.bool)
            for entry, head in numpy.ndindex(*visible.shape[:2]):
                if at:
                    visible[entry, head, [p for p in kept[step][layer][entry, head].tolist() if p >= 0]] = True
            visible[..., at:] = True
            mask = visible[:, :, None, :] & (torch.arange(at + n) <= torch.arange(at, at + n)[:, None])
            mask = mask.repeat_interleave(TINY["num_attention_heads"] // heads, 1)
            return args, {**kwargs, "attention_mask": torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))}
        hooks = [m.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for m in model.model.layers]
        out.append(model(ids[:, at:at + n], cache=cache).logits)
        for h in hooks:
            h.remove()
        at += n
    return out


POLICIES = ["lagkv:sink=4,lag=16,ratio=0.25", "key_diff:capacity=40,every=3,recent=8", "streaming_llm:capacity=40",
            "snapkv:window=16,keep=0.4", "h2o:capacity=50,recent=8", "tova:capacity=40", "novelty:keep=0.4,recent=8",
            "distinct:capacity=60,recent=8", "expected_attention:keep=0.4,recent=8", "value_norm:keep=0.5,recent=8,heads=shared",
            "fuse:lagkv+key_norm,lag=16,keep=0.25", "fuse:h2o+snapkv,window=16,keep=0.4,recent=8",
            "cur:keep=0.5,recent=8,select=chunks,chunk=4", "full"]
POLICIES += [f"{p},select=by_head" for p in (
    "key_diff:keep=0.4,recent=8", "novelty:capacity=40,recent=8,heads=own", "fuse:lagkv+key_norm,lag=16,keep=0.25",
    "expected_attention:keep=0.4,recent=8,covariance=no", "fuse:h2o+snapkv,window=16,keep=0.4,recent=8")]
BUDGETS = [[1.6, 0.4], [0.2, 1.0], [2.0, 0.8]]


def cache_for(policy, model, **options):
    """With head budgets, if the policy reads them."""
    return LagKVCache(policy, model, head_budgets=BUDGETS if "by_head" in policy else None, **options)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_logits_are_those_of_a_mask_on_the_whole_cache(policy, implementation):
    model, steps = tiny(implementation=implementation), [100, 30] + 40 * [1]
    ids = tokens_of(2, sum(steps))
    cache, kept, out, at = cache_for(policy, model), [], [], 0
    for n in steps:
        kept.append([cache.positions(i).clone() for i in range(3)] if at else [])
        out.append(model(ids[:, at:at + n], cache=cache).logits)
        at += n
        assert cache.get_seq_length() == at
    assert policy == "full" or cache.rows() < at
    for ours, reference in zip(out, logits_with_masks(model, ids, steps, kept)):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_kept_rows_are_those_of_the_library():
    """The same as compress() on the keys and values of a whole cache: prefill."""
    model, ids = tiny(), tokens_of(1, 200)
    whole = transformers.DynamicCache(config=model.config)
    model(ids, cache=whole)
    cache = LagKVCache("lagkv:sink=4,lag=16,ratio=0.25", model.config)  # keys and values alone: the config is enough
    model(ids, cache=cache)
    for i, layer in enumerate(whole.layers):
        tokens = lagkv.compress("lagkv:sink=4,lag=16,ratio=0.25", layer.keys, layer.values, lagkv.Cursor())
        assert tokens == cache.rows() == cache.layers[i].keys.shape[-2]
        assert torch.equal(layer.keys[..., :tokens, :], cache.layers[i].keys)
        assert torch.equal(layer.values[..., :tokens, :], cache.layers[i].values)
    positions = cache.positions(1)
    assert (positions[0, 0] != positions[0, 1]).any() and (positions.diff(dim=-1) > 0).all()


def padded(rows, pad=96):
    """Rows of tokens, one above the other, and their attention mask: padding on the left."""
    n = max(len(r) for r in rows)
    ids = torch.stack([torch.cat([torch.full((n - len(r),), pad), r]) for r in rows])
    mask = torch.stack([torch.arange(n) >= n - len(r) for r in rows]).long()
    return ids, mask


LENGTHS = [100, 61, 3, 93, 20]


@pytest.mark.parametrize("policy, implementation", [(p, "sdpa") for p in POLICIES] + [(p, "eager") for p in POLICIES[::4]])
@torch.no_grad()
def test_padded_entries_are_as_alone(policy, implementation):
    """The same logits, rows and positions after each step: a padded prompt, a second one without padding, then token by token."""
    model = tiny(implementation=implementation)
    if implementation == "sdpa":  # eager attention cannot: its softmax is in f32, and what hides in double is infinite there
        model = model.double()  # so that rounding decides between no tokens
    rows = [tokens_of(1, n + 60, seed)[0] for seed, n in enumerate(LENGTHS)]
    ids, mask = padded([r[:n] for r, n in zip(rows, LENGTHS)])
    cache, alone = cache_for(policy, model), [cache_for(policy, model) for _ in rows]
    at = 0
    for n in [0, 20] + 40 * [1]:
        new = torch.stack([r[length + at:length + at + n] for r, length in zip(rows, LENGTHS)]) if n else ids
        mask = torch.cat([mask, torch.ones(len(rows), n, dtype=torch.long)], -1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1]:]
        out = model(new, attention_mask=mask, position_ids=positions, cache=cache).logits
        at += n
        for b, one in enumerate(alone):
            tokens = rows[b][:LENGTHS[b]] if n == 0 else new[b]
            single = model(tokens[None], cache=one).logits
            torch.testing.assert_close(out[b, -len(tokens):], single[0], atol=1e-4, rtol=1e-4)
            for i in range(3):
                kept, own = cache.positions(i)[b], one.positions(i)[0]
                assert (kept[:, :-own.shape[-1]] == -1).all() and torch.equal(kept[:, -own.shape[-1]:], own)
        assert cache.get_seq_length() == 100 + at and cache.rows() == max(one.rows() for one in alone)
    assert policy == "full" or cache.rows() < 160


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Phi3", "Gemma3"])
def test_padded_batches_generate_as_each_entry_alone(kind):
    model = model_of(kind)
    rows = [tokens_of(1, n, seed)[0] for seed, n in enumerate(LENGTHS)]
    ids, mask = padded(rows)
    options = dict(max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    for policy, more in (("lagkv:sink=4,lag=16,ratio=0.25", {}), ("snapkv:window=16,keep=0.4", dict(num_beams=3)),
                         ("novelty:capacity=40,recent=8", {}), ("full", dict(prefill_chunk_size=32)),
                         ("key_diff:keep=0.4,recent=8,select=by_head", dict(num_beams=3))):
        if "by_head" in policy and kind == "Gemma3":  # two layers with full attention
            continue
        cache = cache_for(policy, model)
        out = model.generate(ids, cache=cache, attention_mask=mask, **options, **more)
        for b, row in enumerate(rows):
            single = model.generate(row[None], cache=cache_for(policy, model), attention_mask=torch.ones_like(row)[None],
                                    **options, **more)
            assert out[b, 100:].tolist() == single[0, len(row):].tolist(), (policy, b)


def test_queries_are_the_models_own():
    """SnapKV by the weights of eager attention keeps what it keeps by the queries that the cache has seen."""
    model, ids = tiny(), tokens_of(2, 120)
    policy = lagkv.parse("snapkv:window=16,keep=0.4")
    cache = LagKVCache(policy, model)
    whole = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, cache=cache)
        weights = model(ids, cache=whole, output_attentions=True).attentions
    for i, layer in enumerate(whole.layers):
        plans = lagkv.plan_eviction(policy, layer.keys, layer.values, weights=weights[i][..., -16:, :])
        for b, plan in enumerate(plans):
            for h in range(2):
                assert cache.positions(i)[b, h].tolist() == plan.rows(h).tolist()


def model_of(kind):
    changes = {"Gemma3": dict(sliding_window=16, layer_types=["sliding_attention", "full_attention", "full_attention"],
                              head_dim=8, query_pre_attn_scalar=8), "Phi3": dict(pad_token_id=0), "Qwen3": dict(head_dim=8),
               "Mistral": dict(sliding_window=None)}.get(kind, {})
    name = "Gemma3Text" if kind == "Gemma3" else kind
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**TINY, **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"])
def test_models(kind):
    model = model_of(kind)
    for policy in ("lagkv:sink=4,lag=16,ratio=0.25", "snapkv:window=16,keep=0.4", "novelty:keep=0.4,recent=8"):
        cache = LagKVCache(policy, model)
        out = model.generate(tokens_of(2, 100), cache=cache, max_new_tokens=20, do_sample=False, eos_token_id=None,
                             pad_token_id=0)
        assert out.shape == (2, 120) and cache.rows() < 119
        assert sum(isinstance(layer, CompressedLayer) for layer in cache.layers) == (2 if kind == "Gemma3" else 3)


def test_generate_in_turns_and_with_beams():
    model, ids = tiny(), tokens_of(1, 100)
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    full, plain = LagKVCache("full", model), transformers.DynamicCache(config=model.config)
    assert torch.equal(model.generate(ids, cache=full, **options), model.generate(ids, cache=plain, **options))
    cache = LagKVCache("key_diff:capacity=40,recent=8", model)
    first = model.generate(ids, cache=cache, **options)
    more = torch.cat([first, tokens_of(1, 5, 3)], -1)
    second = model.generate(more, cache=cache, **options)
    assert second.shape[-1] == 100 + 8 + 5 + 8 and cache.get_seq_length() == second.shape[-1] - 1 and cache.rows() == 40
    beams = model.generate(ids, cache=LagKVCache("h2o:capacity=50,recent=8", model), num_beams=3, **options)
    assert beams.shape == (1, 108)


@pytest.mark.parametrize("policy", ["snapkv:window=16,keep=0.4", "snapkv:window=16,keep=0.4,select=by_head"])
@torch.no_grad()
def test_tokens_can_be_taken_back_and_the_cache_begins_anew(policy):
    model, ids = tiny(), tokens_of(1, 120)
    cache = cache_for(policy, model)
    model(ids[:, :100], cache=cache)
    rows = cache.rows()
    model(ids[:, 100:104], cache=cache)
    cache.crop(-4)
    assert cache.rows() == rows and cache.get_seq_length() == 100
    again = model(ids[:, 100:104], cache=cache).logits
    with pytest.raises(lagkv.Error, match="tokens_to_remove=-100: must be at least"):
        cache.crop(-100)
    cache.reset()
    assert cache.get_seq_length() == 0
    model(ids[:, :100], cache=cache)
    torch.testing.assert_close(model(ids[:, 100:104], cache=cache).logits, again)


@pytest.mark.parametrize("policy", ["lagkv:sink=4,lag=16,ratio=0.25", "key_diff:capacity=40,select=by_head"])
def test_protected_tokens_stay(policy):
    model = tiny()
    cache = cache_for(policy, model, protect=[30, 31, 32])
    model.generate(tokens_of(1, 100), cache=cache, max_new_tokens=20, eos_token_id=None, pad_token_id=0)
    for i in range(3):
        for head in cache.positions(i)[0]:
            assert {30, 31, 32} <= set(head.tolist())


def test_half_precision():
    model = tiny(implementation="sdpa").to(torch.bfloat16)
    cache = LagKVCache("lagkv:sink=4,lag=16,ratio=0.25", model)
    model.generate(tokens_of(2, 100), cache=cache, max_new_tokens=5, eos_token_id=None, pad_token_id=0)
    assert cache.layers[0].keys.dtype == torch.bfloat16 and cache.rows() < 100


def test_refusals():
    model = tiny()
    with pytest.raises(lagkv.Error, match="select=adaptive: keeps different numbers of rows"):
        LagKVCache("key_diff:keep=0.5,select=adaptive", model)
    by_head = "key_diff:keep=0.5,select=by_head"
    for policy, given, budgets, message in (
            (by_head, model, None, "reads the budget of each head: give head_budgets"),
            ("key_diff:keep=0.5", model, BUDGETS, "head_budgets: policy key_diff:keep=0.5 reads none: must have select=by_head"),
            (by_head, model, BUDGETS[:2], "head_budgets: 2 layers: must be the 3 with full attention"),
            (by_head, model, [*BUDGETS[:2], [1.0]], "head_budgets: 1 heads in layer 2: must be the 2 of the keys"),
            (by_head, model, [*BUDGETS[:2], [1.0, -0.5]], "head_budgets: -0.5 of head 1 in layer 2: must be 0 or more"),
            (by_head, model, [[float("nan"), 1], *BUDGETS[1:]], "head_budgets: nan of head 0 in layer 0: must be 0 or more"),
            (by_head, model, [*BUDGETS[:2], [1, 1e39]], r"head_budgets: 1e\+39 of head 1 in layer 2: .*finite as a float32"),
            (by_head, model.config, BUDGETS, "hides rows of some heads: give the model in place of its config"),
            ("key_diff:keep=0.5,pyramid=2", model, None, "keeps different numbers of rows in heads or layers")):
        with pytest.raises(lagkv.Error, match=message):
            LagKVCache(policy, given, head_budgets=budgets)
    for bad in (3, [1, 2, 3], "ab", [["a", 1]] * 3, [[None, 1]] * 3):
        with pytest.raises(TypeError, match="head_budgets: must be, for each layer, a list of numbers"):
            LagKVCache(by_head, model, head_budgets=bad)
    flex = tiny(implementation="flex_attention")
    with pytest.raises(lagkv.Error, match="attn_implementation=flex_attention: must be eager, sdpa or flash attention: its mask"):
        flex(tokens_of(1, 60), cache=LagKVCache("lagkv:lag=16", flex))
    flash = copy.copy(model.config)
    flash._attn_implementation = "flash_attention_2"  # as it calls the hook before attention: with no mask, or that of the tokens
    for policy, mask, limit in ((by_head, None, "select=by_head"), ("lagkv:lag=16", torch.tensor([[0, 1, 1]]), "a padded batch")):
        cache = cache_for(policy, model)
        model(tokens_of(1, 60), cache=cache)
        with pytest.raises(lagkv.Error, match=f"attn_implementation=flash_attention_2: must be eager or sdpa for {limit}"):
            cache.layers[0].look_at(mask, 1, 3, flash)
    with pytest.raises(lagkv.Error, match="must be eager or sdpa for select=by_head"):  # before a prompt is read, too
        cache_for(by_head, model).layers[0].look_at(None, 1, 60, flash)
    with pytest.raises(lagkv.Error, match="reads queries: give the model in place of its config"):
        LagKVCache("snapkv", model.config)
    with pytest.raises(lagkv.Error, match="reads keys as they were before RoPE: give the model in place of its config"):
        LagKVCache("recommended:keep=0.25", model.config)
    with pytest.raises(lagkv.Error, match="policy kvzap: reads what was fitted to the model beforehand"):
        LagKVCache("kvzap", model)
    for bad in (None, "llama", 3, torch.nn.Linear(2, 2), transformers.LlamaForCausalLM):
        with pytest.raises(TypeError, match=f"model: must be a model of Transformers, or its config, not {type(bad).__name__}"):
            LagKVCache("lagkv", bad)
    for bad, error in ((5, TypeError), ([-1], TypeError), ("ab", TypeError), ([31, 30], lagkv.Error), ([3, 3], lagkv.Error)):
        with pytest.raises(error, match="protect"):
            LagKVCache("lagkv", model, protect=bad)
    assert LagKVCache("lagkv", model, protect=numpy.array([30, 31])).protect == [30, 31]
    ids, mask = padded([tokens_of(1, 60)[0], tokens_of(1, 53)[0]])
    options = dict(max_new_tokens=2, eos_token_id=None, pad_token_id=0)
    with pytest.raises(lagkv.Error, match="entry 1 has 0 for its token 1: must count .*a padded batch needs the model"):
        transformers.LlamaForCausalLM(model.config).generate(ids, cache=LagKVCache("lagkv:lag=16", model.config),
                                                             attention_mask=mask, **options)
    cache = LagKVCache("lagkv:lag=16", model)
    with pytest.raises(lagkv.Error, match="position_ids: entry 1 has 7 for its token 0: must count the tokens of each entry"):
        model(ids, attention_mask=mask, cache=cache)
    for at in (30, 59):  # in the middle, and on the right
        mask[1, at] = 0
        with pytest.raises(lagkv.Error, match="attention_mask: entry 1 hides 8 of 60 new tokens: only padding before the first"):
            model.generate(ids, cache=LagKVCache("lagkv:lag=16", model), attention_mask=mask, **options)
        mask[1, at] = 1
    cache = LagKVCache("lagkv:lag=16", model)
    model.generate(ids, cache=cache, attention_mask=mask, **options)
    more, hidden = torch.cat([ids, ids[:, :10]], -1), torch.cat([mask, torch.ones(2, 10, dtype=torch.long)], -1)
    hidden[0, 62] = 0
    with pytest.raises(lagkv.Error, match="attention_mask: entry 0 hides 1 of 9 new tokens"):
        model.generate(more, cache=cache, attention_mask=hidden, **options)
    with pytest.raises(lagkv.Error, match="tokens_to_remove=-54: must be at least -"):
        cache.crop(-54)


# ---- head budgets -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_heads_keep_what_the_library_keeps_by_their_budgets():
    """The prompt's heads together, then each head alone; the layer holds the rows that stay and no others."""
    model, ids, policy = tiny(), tokens_of(1, 160), lagkv.parse("key_diff:keep=0.25,sink=4,recent=8,select=by_head")
    whole, cache = transformers.DynamicCache(config=model.config), cache_for(policy.text, model)
    model(ids, cache=whole)
    model(ids, cache=cache)
    for i, layer in enumerate(cache.layers):
        keys, values = (x[0].numpy() for x in (whole.layers[i].keys, whole.layers[i].values))
        plan = lagkv.plan_eviction(policy, keys, values, head_budgets=BUDGETS[i])
        rows = [plan.rows(h) for h in range(2)]
        assert layer.in_use()[0].tolist() == [len(r) for r in rows] and rows[0].size != rows[1].size
        assert layer.keys.shape == layer.values.shape == (len(rows[0]) + len(rows[1]), 8)
        for h in range(2):
            assert [p for p in cache.positions(i)[0, h].tolist() if p >= 0] == rows[h].tolist()
        assert torch.equal(layer.keys, torch.from_numpy(numpy.concatenate([keys[h][rows[h]] for h in range(2)])))
    assert cache.rows() == -(-sum(int(layer.in_use().sum()) for layer in cache.layers) // 6)
    assert abs(cache.rows() / 160 - 0.25) < 0.1


@torch.no_grad()
def test_a_budget_in_bytes_is_that_of_all_heads():
    model, ids = tiny(), tokens_of(1, 200)
    cache = cache_for("key_diff:budget_mb=0.01,sink=1,recent=2,every=1,select=by_head", model)
    model(ids, cache=cache)
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert 0.009e6 < held <= 0.01e6 and cache.rows() < 30


@torch.no_grad()
def test_entries_can_be_put_in_another_order():
    model, ids = tiny(), tokens_of(3, 130)
    cache = cache_for("novelty:capacity=40,recent=8,heads=own,select=by_head", model)
    model(ids[:, :100], cache=cache)
    other = copy.deepcopy(cache)
    order = torch.tensor([2, 0, 1])
    for layer in other.layers:
        layer.reorder_cache(order)
    torch.testing.assert_close(model(ids[:, 100:], cache=cache).logits[order], model(ids[order, 100:], cache=other).logits)
    assert torch.equal(cache.positions(2)[order], other.positions(2))


@pytest.mark.parametrize("kind", ["Llama", "Gemma3", "Qwen3"])
@torch.no_grad()
def test_query_statistics_are_those_that_a_cache_counts_of_the_text(kind):
    model, ids = model_of(kind), tokens_of(2, 150)
    policy = "expected_attention:keep=0.4,recent=8"
    usual = lagkv.transformers.query_statistics(model, ids[0].tolist())
    of_another = lagkv.transformers.query_statistics(model, ids[1].tolist())
    counted, given, others, calibrated = (
        cache_for(policy + more, model, query_statistics=statistics)
        for more, statistics in [("", None), ("", usual), ("", of_another), (",calibrated=yes", usual)])
    for cache in (counted, given, others, calibrated):
        model(ids[:1], cache=cache)
    full = [i for i, layer in enumerate(counted.layers) if isinstance(layer, lagkv.transformers.CompressedLayer)]
    assert len(usual) == len(full) and all(mean.dtype == covariance.dtype == numpy.float32 for mean, covariance in usual)
    kept = [[cache.positions(i).tolist() for i in full] for cache in (counted, given, calibrated, others)]
    assert kept[0] == kept[1] == kept[2] != kept[3]
    model(ids[:1, :20], cache=given)  # its queries are not counted
    assert all(given.layers[i].moments is None for i in full)


@torch.no_grad()
def test_statistics_of_several_texts_are_those_of_all_their_queries():
    model, ids = tiny(), tokens_of(1, 100)[0].tolist()
    halves = [lagkv.transformers.query_statistics(model, part) for part in (ids[:50], ids[50:])]
    for (mean, covariance), *parts in zip(lagkv.transformers.query_statistics(model, ids, length=50), *halves):
        exact = sum(m for m, _ in parts) / 2
        numpy.testing.assert_allclose(mean, exact, atol=1e-5)
        square = sum(c + m[:, :, None] * m[:, None, :] for m, c in parts) / 2
        numpy.testing.assert_allclose(covariance, square - exact[:, :, None] * exact[:, None, :], atol=1e-5)


def test_query_statistics_leave_the_model_as_it_was():
    ids = tokens_of(1, 60)[0].tolist()
    model = tiny(attention_dropout=0.5)
    exact = lagkv.transformers.query_statistics(model, ids)
    model.train()
    for (mean, covariance), (same_mean, same_covariance) in zip(exact, lagkv.transformers.query_statistics(model, ids)):
        assert numpy.array_equal(mean, same_mean) and numpy.array_equal(covariance, same_covariance)
    with pytest.raises(IndexError):
        lagkv.transformers.query_statistics(model, [1000] * 50)
    assert all(m.training for m in model.modules())


@torch.no_grad()
def test_calibrated_heads_keep_what_the_library_keeps():
    model, ids = tiny(), tokens_of(3, 160)
    policy = "fuse:key_diff+expected_attention,by=best,covariance=no,calibrated=yes,sink=2,recent=8,keep=0.3,select=by_head"
    usual = lagkv.transformers.query_statistics(model, ids[2].tolist())
    cache = cache_for(policy, model, query_statistics=usual)
    model(ids[:2, :120], cache=cache)
    alone = cache_for(policy, model, query_statistics=usual)
    model(ids[1:2, :120], cache=alone)
    assert [cache.positions(i)[1].tolist() for i in range(3)] == [alone.positions(i)[0].tolist() for i in range(3)]
    model(ids[:2, 120:], cache=cache)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(model(ids[:2, :9], cache=cache).logits, model(ids[:2, :9], cache=again).logits)


def test_query_statistics_that_do_not_fit_are_refused():
    model = tiny()
    usual = lagkv.transformers.query_statistics(model, range(1, 60))
    policy = "expected_attention:keep=0.4,calibrated=yes"
    for statistics, why in [(None, "reads what the model's queries usually are: give query_statistics"),
                            (usual[:2], "query_statistics: 2 layers: must be the 3 with full attention"),
                            ([usual[0][::-1]] * 3, "in layer 0: must be .6, channels. and .6, channels, channels."),
                            ([(m * numpy.nan, c) for m, c in usual], "of layer 0: must be finite")]:
        with pytest.raises(lagkv.Error, match=why):
            LagKVCache(policy, model, query_statistics=statistics)
    for bad in (5, [1, 2, 3], [("a", "b")] * 3):
        with pytest.raises(TypeError, match="query_statistics: must be, for each layer, a mean and a covariance"):
            LagKVCache(policy, model, query_statistics=bad)
    with pytest.raises(lagkv.Error, match="query_statistics: policy key_diff.* reads none"):
        LagKVCache("key_diff", model, query_statistics=usual)
    with pytest.raises(lagkv.Error, match="reads the RoPE of its queries: give the model"):
        LagKVCache(policy, model.config, query_statistics=usual)
    with pytest.raises(lagkv.Error, match="length=4 of 59 tokens: must both be more than 4"):
        lagkv.transformers.query_statistics(model, range(1, 60), length=4)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3"])
@torch.no_grad()
def test_head_importance_is_the_most_attention_of_the_second_reading(kind):
    model, text, between = model_of(kind), tokens_of(1, 150)[0].tolist(), [5, 6, 7]
    ours = lagkv.transformers.head_importance(model, text, between)
    model.set_attn_implementation("eager")
    weights = model(torch.tensor([text + between + text]), output_attentions=True).attentions
    full = [w for w, t in zip(weights, getattr(model.config, "layer_types", ["full_attention"] * 3)) if t == "full_attention"]
    exact = torch.stack([w[0, :, 153:, 4:150].amax(1).unflatten(0, (2, -1)).amax(1) for w in full])
    assert ours.dtype == numpy.float32 and ours.shape == (len(full), 2, 146)
    torch.testing.assert_close(torch.from_numpy(ours), exact, atol=1e-5, rtol=1e-4)
    budgets = lagkv.head_budgets(ours, 0.25, 0.05)
    assert numpy.shape(budgets) == (len(full), 2) and abs(numpy.mean(budgets) - 1) < 1e-5
    with pytest.raises(lagkv.Error, match="skip=150: must be 0 or more and less than the 150 tokens"):
        lagkv.transformers.head_importance(model, text, skip=150)
    with pytest.raises(lagkv.Error, match="model: must be the model, not its config"):
        lagkv.transformers.head_importance(model.config, text)


def test_head_importance_leaves_the_model_as_it_was():
    model = tiny(implementation="sdpa")
    hooks = [len(m._forward_hooks) for m in model.modules()]
    lagkv.transformers.head_importance(model, range(1, 50))
    with pytest.raises(IndexError):
        lagkv.transformers.head_importance(model, [1000] * 50)
    assert model.config._attn_implementation == "sdpa" and hooks == [len(m._forward_hooks) for m in model.modules()]
    for bad in ("text", [1.5] * 50, tokens_of(1, 50)):
        with pytest.raises(TypeError, match="tokens: must be a list of whole numbers"):
            lagkv.transformers.head_importance(model, bad)
    with pytest.raises(TypeError, match="between: must be a list of whole numbers"):
        lagkv.transformers.head_importance(model, range(1, 50), "again")
    assert lagkv.transformers.head_importance(model, tokens_of(1, 50)[0]).shape == (3, 2, 46)


def test_head_importance_leaves_the_parts_of_a_model_as_they_were():
    """Each with an attention of its own, and dropout only where it was."""
    vision = transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                           image_size=16, patch_size=8)
    config = transformers.LlavaConfig(text_config=transformers.LlamaConfig(**TINY, attention_dropout=0.5), vision_config=vision)
    model = transformers.LlavaForConditionalGeneration(config).train()
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    model.model.vision_tower.eval()
    modes = [m.training for m in model.modules()]
    importance = [lagkv.transformers.head_importance(model, range(1, 50)) for _ in range(2)]
    assert numpy.array_equal(*importance)
    assert (config.text_config._attn_implementation, config.vision_config._attn_implementation) == ("sdpa", "eager")
    assert modes == [m.training for m in model.modules()]


@torch.no_grad()
def test_kv_heads_are_those_of_the_layer():
    """Gemma 4 has other numbers of them in layers of full attention than in the others, and its config no one number."""
    torch.manual_seed(0)
    model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**{
        **SMALL, **SLIDING, "num_key_value_heads": 4, "num_global_key_value_heads": 2, "attention_k_eq_v": True, "head_dim": 16,
        "global_head_dim": 32, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 0})).eval()
    budgets = lagkv.head_budgets(lagkv.transformers.head_importance(model, range(1, 60)), 0.4)
    assert numpy.shape(budgets) == (2, 2)
    cache = LagKVCache("key_diff:keep=0.4,recent=8,select=by_head", model, head_budgets=[[1.6, 0.4], [0.2, 1.8]])
    model.generate(tokens_of(1, 80), cache=cache, max_new_tokens=10, eos_token_id=None)
    with pytest.raises(lagkv.Error, match="hides rows of some heads: give the model in place of its config"):
        LagKVCache("key_diff:keep=0.4,select=by_head", model.config, head_budgets=budgets)
    for layer, longer in ((1, 0), (3, 1)):
        rows = cache.layers[layer].in_use()[0].tolist()
        assert rows[longer] > 2 * rows[1 - longer]


@torch.no_grad()
def test_keys_of_all_heads_are_refused_at_once():
    """DeepSeek's are latent; refused before the first rows are dropped, too."""
    model = other("DeepseekV3")
    cache = LagKVCache("key_diff:keep=0.4,recent=8,select=by_head", model, head_budgets=[[1] * 4] * 4)
    with pytest.raises(lagkv.Error, match="model: its keys are those of 1 heads, where its attention has 4"):
        model(tokens_of(1, 5), cache=cache)
    assert cache.rows() == cache.get_seq_length() == 0


@torch.no_grad()
def test_heads_whose_values_are_read_together_keep_the_same_tokens():
    """DiffLlama reads the values of two KV heads by the keys of one: other tokens in each would give other logits."""
    model, ids = tiny("DiffLlama", num_attention_heads=4, num_key_value_heads=2), tokens_of(1, 100)
    for policy in ("key_diff:keep=0.4,recent=8", "key_diff:keep=0.4,recent=8,select=by_head"):
        cache = cache_for(policy, model)
        with pytest.raises(lagkv.Error, match="model: its query heads read values of two heads: .* must keep the same"):
            model(ids, cache=cache)
        assert cache.get_seq_length() == 0
    for policy in ("key_diff:keep=0.4,recent=8,heads=shared", "streaming_llm:capacity=40"):
        cache = LagKVCache(policy, model)
        for new in ids.split([90, 9, 1], -1):
            model(new, cache=cache)
        assert cache.rows() < 60


def test_attention_without_a_config():
    """XGLM's."""
    torch.manual_seed(1)
    model = transformers.XGLMForCausalLM(transformers.XGLMConfig(vocab_size=97, d_model=48, ffn_dim=64, num_layers=3,
                                                                 attention_heads=2)).eval()
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    for batch, hidden in ((1, 0), (2, 39)):
        ids, mask = padded([tokens_of(1, 100 - hidden * b, b)[0] for b in range(batch)])
        plain = model.generate(ids, attention_mask=mask, **options)
        assert torch.equal(model.generate(ids, attention_mask=mask, cache=LagKVCache("full", model), **options), plain)
        cache = LagKVCache("key_diff:keep=0.4,recent=8", model)
        assert model.generate(ids, attention_mask=mask, cache=cache, **options).shape == plain.shape and cache.rows() < 60
    with pytest.raises(lagkv.Error, match="model: the attention of XGLMForCausalLM takes one mask for all heads"):
        cache_for("key_diff:keep=0.4,recent=8,select=by_head", model)


@torch.no_grad()
def test_rows_are_hidden_or_the_model_is_refused():
    """As where a cache is unpickled beside a freshly loaded model, which nobody watches."""
    by_head = "key_diff:keep=0.3,recent=8,select=by_head"
    ids, mask = padded([tokens_of(1, 100)[0], tokens_of(1, 61, 1)[0]])
    one = torch.ones(2, 1, dtype=torch.long)
    for policy, hidden in ((by_head, torch.ones_like(ids)), ("lagkv:lag=16", mask)):
        model, stranger = tiny(implementation="sdpa"), tiny(implementation="sdpa")
        cache = cache_for(policy, model)
        for new in (ids, one):
            positions = (hidden.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1]:]
            model(new, attention_mask=hidden, position_ids=positions, cache=cache)
            hidden = torch.cat([hidden, one], -1)
        other, positions = copy.deepcopy(cache), (hidden.cumsum(-1) - 1)[:, -1:]
        with pytest.raises(lagkv.Error, match="model: is not the one that this cache was made for: .* must be hidden"):
            stranger(one, attention_mask=hidden, position_ids=positions, cache=cache)
        LagKVCache("full", stranger)
        ours = stranger(one, attention_mask=hidden, position_ids=positions, cache=cache).logits
        torch.testing.assert_close(ours, model(one, attention_mask=hidden, position_ids=positions, cache=other).logits)


@pytest.mark.parametrize("policy", ["lagkv:lag=16", "expected_attention:keep=0.4,recent=8,select=by_head"])
@torch.no_grad()
def test_a_cache_all_of_whose_tokens_are_taken_back_is_as_new(policy):
    """The next tokens may be those of another batch, padded or not."""
    model = tiny()
    ids, mask = padded([tokens_of(1, 100)[0], tokens_of(1, 61, 1)[0]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    new = cache_for(policy, model)
    expected = model(ids, attention_mask=mask, position_ids=positions, cache=new).logits
    for batch in (1, 2):
        cache = cache_for(policy, model)
        model(tokens_of(batch, 10), cache=cache)
        cache.crop(-10)
        assert cache.get_seq_length() == cache.rows() == 0
        ours = model(ids, attention_mask=mask, position_ids=positions, cache=cache).logits
        torch.testing.assert_close(ours, expected)
        assert torch.equal(cache.positions(2), new.positions(2))


def test_rows_of_layers_that_an_exception_left_without_any():
    model = tiny()
    cache = cache_for("key_diff:keep=0.3,recent=8,select=by_head", model)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens_of(2, 100), cache=cache)
    assert cache.rows() == -(-int(cache.layers[0].in_use()[0].sum()) // 2)
    hook.remove()
    cache.reset()
    assert cache.rows() == 0 and model(tokens_of(1, 10), cache=cache).logits.shape == (1, 10, 97)


# ---- copies, refusals in the middle, other models --------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_goes_on_as_the_cache_does(policy, again):
    """As for a prompt that is read once and asked several things."""
    model = tiny()
    ids, mask = padded([tokens_of(1, 100)[0], tokens_of(1, 61, 1)[0]])
    more = torch.cat([ids, tokens_of(2, 20, 2)], -1)
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    for mask in (None, mask):
        cache = cache_for(policy, model)
        with torch.no_grad():
            positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
            model(ids, attention_mask=mask, position_ids=positions, cache=cache)
        other = again(cache)
        before = [x.clone() for x in (other.layers[1].keys, other.positions(1))]
        hidden = None if mask is None else torch.cat([mask, torch.ones(2, 20, dtype=torch.long)], -1)
        first = model.generate(more, attention_mask=hidden, cache=cache, **options)
        assert torch.equal(before[0], other.layers[1].keys) and torch.equal(before[1], other.positions(1))
        assert torch.equal(first, model.generate(more, attention_mask=hidden, cache=other, **options))
        assert torch.equal(cache.positions(2), other.positions(2))


class Wrapper(torch.nn.Module):
    """As PEFT and torch.compile wrap a model."""

    def __init__(self, model):
        super().__init__()
        self.inner = torch.nn.ModuleList([model])


def test_the_model_may_be_wrapped():
    model, ids = tiny(), tokens_of(2, 100)
    caches = [LagKVCache("snapkv:window=16,keep=0.4", m) for m in (model, Wrapper(model), torch.nn.DataParallel(model))]
    with torch.no_grad():
        for cache in caches:
            model(ids, cache=cache)
    assert all(torch.equal(cache.positions(1), caches[0].positions(1)) for cache in caches)


def same(x, y):
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, numpy.ndarray):
        return numpy.array_equal(x, y)
    if isinstance(x, list) and x and isinstance(x[0], (torch.Tensor, lagkv.Policy)):
        return len(x) == len(y) and all(same(a, b) for a, b in zip(x, y))
    return isinstance(x, (lagkv.Policy, lagkv.Rope)) or x == y


@pytest.mark.parametrize("policy", ["snapkv:window=16,keep=0.4", "key_diff:keep=0.4,recent=8,select=by_head"])
@torch.no_grad()
def test_a_compiled_model(policy):
    """What the cache does is left out of the graph."""
    ids, rows = tokens_of(1, 100), []
    for compiled in (False, True):
        model = tiny(implementation="sdpa")
        runs = torch.compile(model, backend="eager") if compiled else model
        cache = cache_for(policy, runs)
        for n in (80, 20):
            logits = runs(ids[:, cache.get_seq_length():][:, :n], cache=cache).logits
        rows.append((cache.positions(1), logits))
    assert torch.equal(rows[0][0], rows[1][0])
    torch.testing.assert_close(rows[0][1], rows[1][1])


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_a_refused_call_leaves_the_cache(policy, monkeypatch):
    """Refused before the first layer has appended anything, or where it chooses the rows; then all goes on as if it was not."""
    model, ids = tiny(), tokens_of(2, 130)
    cache, plain = cache_for(policy, model), cache_for(policy, model)
    for c in (cache, plain):
        model(ids[:, :100], cache=c)

    def fail(*_, **__):
        raise MemoryError("no scratch")
    state = {n: copy.deepcopy(x) for n, x in vars(cache.layers[0]).items() if n != "cache"}
    if policy != "full":
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(lagkv, "plan_eviction", fail)
            model(ids[:, 100:], cache=cache)
    with pytest.raises(lagkv.Error, match="position_ids: entry 0 has 7 for its token 100"):
        model(ids[:, 100:], position_ids=torch.arange(7, 37).expand(2, -1), cache=cache)
    for name, x in state.items():
        assert same(x, getattr(cache.layers[0], name)), name
    torch.testing.assert_close(model(ids[:, 100:], cache=cache).logits, model(ids[:, 100:], cache=plain).logits)
    assert torch.equal(cache.positions(1), plain.positions(1))


@torch.no_grad()
def test_tokens_are_taken_back_in_all_layers_or_none():
    model, ids = model_of("Gemma3"), tokens_of(1, 100)
    cache = LagKVCache("lagkv:sink=4,lag=16,ratio=0.25", model)
    cache.activate_past_recording()
    model(ids, cache=cache)
    lengths = [layer.get_seq_length() for layer in cache.layers]
    rows = [layer.keys.shape[-2] for layer in cache.layers]
    for n in (-90, 3):
        with pytest.raises(lagkv.Error, match=f"tokens_to_remove={n}: must be"):
            cache.crop(n)
        assert [layer.get_seq_length() for layer in cache.layers] == lengths
        assert [layer.keys.shape[-2] for layer in cache.layers] == rows
    cache = LagKVCache("lagkv:sink=4,lag=16,ratio=0.25", model)  # a sliding layer that has not been told to remember
    model(ids, cache=cache)
    rows = [layer.keys.shape[-2] for layer in cache.layers]
    with pytest.raises(RuntimeError):
        cache.crop(-2)
    assert [layer.keys.shape[-2] for layer in cache.layers] == rows


SMALL = dict(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0)
SLIDING = dict(sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
EXPERTS = dict(num_local_experts=2, num_experts_per_tok=1)
LATENT = dict(q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=4,
              num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
SHARED = dict(SLIDING, head_dim=16, num_kv_shared_layers=1, vocab_size_per_layer_input=97, hidden_size_per_layer_input=8)
OTHERS = {"Llama": {}, "Qwen3": {}, "Phi3": {}, "Gemma2": dict(SLIDING, head_dim=16), "Cohere": {}, "Granite": {},
          "Starcoder2": {}, "Glm4": dict(head_dim=16), "GptOss": dict(SLIDING, head_dim=16, **EXPERTS), "Mixtral": EXPERTS,
          "Ministral3": {}, "Cohere2": SLIDING, "SmolLM3": dict(no_rope_layers=[1, 1, 1, 0], layer_types=["full_attention"] * 4),
          "Exaone4": {}, "Lfm2": {}, "Olmo2": {}, "Phi": {}, "StableLm": {}, "Qwen3Next": {}, "DeepseekV3": LATENT,
          "Gemma4Text": SHARED, "GPTNeoX": {}}
REFUSED = {"Cohere2", "SmolLM3", "Exaone4", "Lfm2", "Olmo2", "Phi", "StableLm", "Qwen3Next", "DeepseekV3", "Gemma4Text",
           "GPTNeoX"}


def other(kind, implementation="eager"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **OTHERS[kind]})
    config._attn_implementation = implementation
    model = getattr(transformers, f"{kind.replace('Text', '')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "qkv", "kv_", "query_key")):
                p.mul_(6)
    return model


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_queries_are_the_models_own_or_refused(kind):
    """Layers without RoPE, norms of another shape, gates, latent keys: the attention by the queries that the cache sees is the
    model's, or the cache refuses the policy; and so the keys before RoPE. Policies of keys and values alone work all the same."""
    model, ids = other(kind), tokens_of(1, 60)
    refused = False
    try:
        cache = LagKVCache("h2o:capacity=1000", model)
        weights = model(ids, cache=cache, output_attentions=True).attentions
        seen = 0
        for i, layer in enumerate(cache.layers):
            if not isinstance(layer, CompressedLayer):
                continue
            seen += 1
            keys = layer.keys.repeat_interleave(layer.queries.shape[1] // layer.keys.shape[1], 1)
            logits = layer.queries @ keys.transpose(-1, -2) * layer.scale
            ours = logits.masked_fill(torch.ones(60, 60).triu(1).bool(), float("-inf")).softmax(-1)
            theirs = weights[i] / weights[i].sum(-1, keepdim=True)  # GPT-OSS has sinks beside the rows
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
        assert seen
    except lagkv.Error as e:
        refused = True
        assert str(e).startswith("model: ") and "h2o:capacity=1000" in str(e)
    assert refused == (kind in REFUSED)
    if kind in REFUSED - {"Qwen3Next"}:  # which has another q_proj, and plain keys
        with pytest.raises(lagkv.Error, match="^model: "):
            model(ids, cache=LagKVCache("recommended:capacity=1000", model))
    else:
        model(ids, cache=LagKVCache("recommended:capacity=1000", model))
    cache = LagKVCache("lagkv:sink=4,lag=8,ratio=0.25", model)
    model(ids, cache=cache)
    assert cache.rows() < 60


@torch.no_grad()
def test_another_model_than_the_caches_is_noticed():
    for policy in ("snapkv:window=16,keep=0.4", "recommended:keep=0.25"):
        with pytest.raises(lagkv.Error, match="model: is not the one that this cache was made for"):
            other("Mixtral")(tokens_of(1, 60), cache=LagKVCache(policy, other("Llama")))


@pytest.mark.parametrize("kind", ["Gemma4Text", "GPTNeoX", "Cohere2", "Olmo2", "DeepseekV3"])
def test_padding_is_seen_or_refused(kind):
    """Also in layers that read another layer's keys (Gemma 4), and in models whose attention has no q_proj."""
    model = other(kind, "sdpa")
    rows = [tokens_of(1, n, seed)[0] for seed, n in enumerate((100, 61, 20))]
    ids, mask = padded(rows)
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    if kind == "GPTNeoX":
        for given in (model, model.config):
            with pytest.raises(lagkv.Error, match="attention_mask: hides tokens: must hide none|batch=3: nothing tells"):
                model.generate(ids, attention_mask=mask, cache=LagKVCache("lagkv:lag=16", given), **options)
        assert model.generate(tokens_of(3, 60), cache=LagKVCache("lagkv:lag=16", model), **options).shape == (3, 80)
        return
    for policy, more in (("lagkv:sink=4,lag=16,ratio=0.25", {}), ("full", dict(prefill_chunk_size=32))):
        out = model.generate(ids, attention_mask=mask, cache=LagKVCache(policy, model), **options, **more)
        for b, row in enumerate(rows):
            single = model.generate(row[None], attention_mask=torch.ones_like(row)[None], cache=LagKVCache(policy, model),
                                    **options)
            assert out[b, 100:].tolist() == single[0, len(row):].tolist(), (policy, b)


def model_file():
    given = os.environ.get("LAGKV_MODEL")
    if given:
        return pathlib.Path(given)
    found = pathlib.Path(__file__).parents[2] / "build" / "downloads" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return found if found.exists() else None


@pytest.fixture(scope="module")
def real():
    """SmolLM2-135M-Instruct and its tokenizer."""
    path = model_file()
    if path is None:
        pytest.skip("no model: set LAGKV_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return tokenizer, model.eval()


@torch.no_grad()
def test_heads_that_look_back_recall_a_text(real):
    """With a quarter of the rows: the text's next token is the model's first guess when it reads the text again."""
    tokenizer, model = real
    texts = pathlib.Path(__file__).parents[2]
    between = tokenizer("\n\nRepeat the previous context exactly.\n\n").input_ids
    other = tokenizer((texts / "benchmarks/eval/tasks/text/calibration.txt").read_text()).input_ids[:500]
    budgets = lagkv.head_budgets(lagkv.transformers.head_importance(model, other, between), 0.25, 0.09)
    ids = tokenizer((texts / "docs" / "cursor.md").read_text()).input_ids[:400]
    usual = lagkv.transformers.query_statistics(model, other)
    fusion = "fuse:key_diff+expected_attention,by=best,covariance=no,calibrated=yes"
    recalled = {}
    for method, select, of_heads, of_queries in (("key_diff:pre_rope=yes", "", None, None),
                                                 ("key_diff:pre_rope=yes", ",select=by_head", budgets, None),
                                                 (fusion, ",select=by_head", budgets, usual)):
        cache = LagKVCache(f"{method},sink=4,recent=32,keep=0.25{select}", model, head_budgets=of_heads,
                           query_statistics=of_queries)
        model(torch.tensor([ids]), cache=cache)
        assert abs(cache.rows() - 100) <= 2
        guesses = model(torch.tensor([between + ids]), cache=cache).logits[0].argmax(-1)[len(between) + 7:-1]
        recalled[method + select] = float((guesses == torch.tensor(ids[8:])).float().mean())
    assert [r > 0.9 for r in recalled.values()] == [False, True, True] and min(recalled.values()) < 0.7, recalled


def test_a_real_model_finds_a_pass_key(real):
    tokenizer, model = real
    filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    prompt = filler * 20 + "The pass key is 71432. Remember it. 71432 is the pass key. " + filler * 20
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt + "What is the pass key?"}], tokenize=False,
                                         add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    cache = LagKVCache("lagkv:lag=256,ratio=0.5", model)
    out = model.generate(**inputs, cache=cache, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1]:])
    assert "71432" in answer and cache.rows() < 0.8 * cache.get_seq_length(), answer


def test_types_by_mypy(tmp_path):
    mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")
    out, err, failed = mypy.run(["--strict", "--cache-dir", str(tmp_path), "-m", "lagkv.transformers"])
    assert not failed, out + err
