"""A cache for Hugging Face Transformers (5.24 and later) that compresses itself while a model reads and answers.

    from lagkv.transformers import LagKVCache

    cache = LagKVCache("lagkv:lag=128,ratio=0.25", model)
    model.generate(**inputs, cache=cache)

Each layer uses the tokens appended, then compresses (use, then compress). The model sees the positions that tokens had when they
were read: cache.get_seq_length() counts the tokens dropped too. docs/python.md says more.
"""

from __future__ import annotations

import importlib
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy
import torch
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

try:
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, get_layer_types_and_kwargs
except ImportError:
    raise ImportError(f"transformers {transformers_version}: must be 5.24 or later for lagkv.transformers") from None

import lagkv

__all__ = ["LagKVCache"]

FIRST_QUERIES = 4  # of a text, which are unlike the rest: left out of the statistics, as kvpress does


class LagKVCache(Cache):
    """A cache whose layers of full attention are compressed by a policy; layers with a window of their own stay as they are.

    policy: a lagkv.Policy or a string. All layers, all heads and all entries of a batch keep the same number of rows: policies
    with select=adaptive or pyramid are refused. model: the model, or its config for policies that read keys and values alone.
    protect: positions that are never dropped, ascending. threads: that share the heads of a layer.

    The sequences of a batch must be of equal length: padding is refused. Raises lagkv.Error.
    """

    def __init__(self, policy: Union[lagkv.Policy, str], model: Any, *, protect: Optional[Sequence[int]] = None,
                 threads: int = 1) -> None:
        self.policy = policy if isinstance(policy, lagkv.Policy) else lagkv.parse(policy)
        self.protect = list(protect or [])
        self.workspace = lagkv.Workspace(threads)
        module = model if isinstance(model, PreTrainedModel) else None
        config = (module.config if module is not None else model).get_text_config(decoder=True)
        if self.policy.ragged or self.policy.sloped:
            raise lagkv.Error(f"policy {self.policy.text}: keeps different numbers of rows in heads or layers, which this cache "
                              "cannot hold")
        needs = self.policy.needs
        self.reads_queries = bool(needs["queries"] or needs["accumulated_attention"] or needs["query_statistics"])
        if self.reads_queries and module is None:
            raise lagkv.Error(f"policy {self.policy.text}: reads queries: give the model in place of its config")
        types, options = get_layer_types_and_kwargs(config)
        ours = [t == "full_attention" for t in types]
        if not any(ours):
            raise lagkv.Error(f"model: has no layer of full attention (layers: {', '.join(sorted(set(types)))})")
        ropes: Dict[str, lagkv.Rope] = {}
        if needs["rope"] or needs["query_statistics"]:
            pairs = _pairs(module)
            ropes = {t: _rope(config, t, pairs) for t in set(types) if t == "full_attention"}
        layers = [CompressedLayer(self, ropes.get(t)) if own else DYNAMIC_LAYER_TYPE_MAPPING[t](**o)
                  for t, o, own in zip(types, options, ours)]
        self.count = sum(ours)  # compressed layers
        self.left: Tuple[int, int] = (0, 0)  # tokens seen, rows that the first layer keeps of them
        if self.reads_queries:
            _watch(module)
        super().__init__(layers=layers)

    def positions(self, layer_idx: int = 0) -> torch.Tensor:
        """The positions of the rows of a layer, int32 [batch, heads, rows]."""
        layer = self.layers[layer_idx]
        if not isinstance(layer, CompressedLayer) or layer.kept is None:
            raise lagkv.Error(f"layer_idx={layer_idx}: is not compressed, or has no rows yet")
        return layer.kept

    def rows(self) -> int:
        """The rows that a compressed layer has in use."""
        return next(layer.cursor.tokens for layer in self.layers if isinstance(layer, CompressedLayer))


class CompressedLayer(DynamicLayer):
    """One layer: keys and values of the rows in use, where they came from, and what the policy has kept for it."""

    def __init__(self, cache: LagKVCache, rope: Optional[lagkv.Rope]) -> None:
        super().__init__()
        self.cache, self.rope = cache, rope
        self._forget()

    def _forget(self) -> None:
        self.cursor = lagkv.Cursor()
        self.policy = self.cache.policy
        self.kept: Optional[torch.Tensor] = None  # positions
        self.attention: Optional[torch.Tensor] = None  # accumulated, float32 [batch, heads, rows]
        self.sums: Optional[numpy.ndarray[Any, Any]] = None  # key statistics
        self.queries: Optional[torch.Tensor] = None  # of the last tokens, after RoPE
        self.moments: Optional[List[Any]] = None  # of the queries before RoPE: count, sum, sum of products
        self.scale: Optional[float] = None

    # ---- what Transformers asks ---------------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones too: the position of the next one."""
        return self.cursor.seen()

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        """The rows as if they were the last tokens before the new ones: all of them are seen by every new token."""
        return self.cursor.tokens + query_length, self.cursor.dropped

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Appends; returns all rows for attention, and keeps those that the policy leaves."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._refuse_padding((kwargs.get("kwargs") or {}).get("position_ids"))
        batch, heads, n, _ = key_states.shape
        keys = torch.cat([self.keys, key_states], dim=-2) if self.cursor.tokens else key_states
        values = torch.cat([self.values, value_states], dim=-2) if self.cursor.tokens else value_states
        seen = self.cursor.seen()
        fresh = torch.arange(seen, seen + n, dtype=torch.int32).expand(batch, heads, n)
        self.kept = fresh.contiguous() if self.kept is None else torch.cat([self.kept, fresh], -1)
        self.keys, self.values = self._compressed(keys, values, n)
        return keys, values

    def reset(self) -> None:
        super().reset()
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back tokens that were appended after the last rows were dropped; raises lagkv.Error for others."""
        n = abs(tokens_to_remove)
        if tokens_to_remove > 0:
            raise lagkv.Error(f"tokens_to_remove={tokens_to_remove}: must be 0 or less: minus the tokens to remove")
        if n == 0 or self.kept is None:
            return
        rows = self.cursor.tokens - n
        if rows < self.cursor.compressed:
            least = self.cursor.compressed - self.cursor.tokens
            raise lagkv.Error(f"tokens_to_remove={tokens_to_remove}: must be at least {least}: the rows before are sinks "
                              "and survivors")
        self.keys, self.values = self.keys[..., :rows, :], self.values[..., :rows, :]
        self.kept = self.kept[..., :rows].contiguous()
        if self.attention is not None:
            self.attention = self.attention[..., :rows].contiguous()
        if self.queries is not None:
            self.queries = self.queries[..., :-n, :]
        self.cursor.take_back(rows)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._entries(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._entries(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._entries(lambda x: x[indices.to(x.device), ...])

    # ---- compression --------------------------------------------------------------------------------------------------

    def observe(self, before_rope: torch.Tensor, after_rope: torch.Tensor, scale: Optional[float]) -> None:
        """Queries [batch, query heads, n, dim] of the newest tokens, before they are appended."""
        needs = self.policy.needs
        self.scale = scale
        if needs["queries"] or needs["accumulated_attention"]:
            n = max(needs["queries"], after_rope.shape[-2] if needs["accumulated_attention"] else 0)
            both = after_rope if self.queries is None else torch.cat([self.queries, after_rope], -2)
            self.queries = both[..., -n:, :].detach()
        if needs["query_statistics"]:
            x = before_rope.detach().double()
            if self.moments is None:
                x, self.moments = x[..., FIRST_QUERIES:, :], [0, 0.0, 0.0]
            self.moments[0] += x.shape[-2]
            self.moments[1] = self.moments[1] + x.sum(-2)
            self.moments[2] = self.moments[2] + x.transpose(-1, -2) @ x

    def _compressed(self, keys: torch.Tensor, values: torch.Tensor, n: int) -> Tuple[torch.Tensor, torch.Tensor]:
        rows = keys.shape[-2]
        assert self.kept is not None
        if self.cursor.seen() == 0:  # a budget in bytes is for all layers together
            self.policy = self.cache.policy.fit(lagkv.Layer(_on_cpu(keys[:1]), _on_cpu(values[:1])), self.cache.count)
        due = len(self.policy.due(self.cursor, rows)) != 0
        needs = self.policy.needs
        sums = needs["accumulated_attention"] or needs["key_statistics"]
        if due or sums:
            layer = lagkv.Layer(_on_cpu(keys), _on_cpu(values), **self._offers(keys, n))
            if sums:
                lagkv.accumulate(self.policy, layer, cursor=self.cursor, n=n, workspace=self.cache.workspace)
                if needs["accumulated_attention"]:
                    layer.offer(queries=None)  # of the newest tokens alone: they have been counted
            if due:
                plans = lagkv.plan_eviction(self.policy, layer, cursor=self.cursor, workspace=self.cache.workspace)
                if plans[0]:
                    return self._gathered(keys, values, plans)
        self.cursor = lagkv.Cursor(rows, self.cursor.dropped, self.cursor.compressed)
        self._same_as_the_others(rows)
        return keys, values

    def _gathered(self, keys: torch.Tensor, values: torch.Tensor,
                  plans: Sequence[lagkv.Plan]) -> Tuple[torch.Tensor, torch.Tensor]:
        counts = {p.tokens_after(h) for p in plans for h in range(p.heads)}
        if len(counts) != 1:
            raise lagkv.Error(f"policy {self.policy.text}: would keep from {min(counts)} to {max(counts)} rows in the heads and "
                              "entries of a layer, which must be as many")
        index = torch.from_numpy(numpy.stack([[p.rows(h) for h in range(p.heads)] for p in plans]))
        assert self.kept is not None
        self.kept = self.kept.gather(-1, index)
        if self.attention is not None:
            self.attention = self.attention.gather(-1, index)
        lagkv.advance(self.cursor, plans[0])
        self._same_as_the_others(self.cursor.tokens)
        index = index.to(keys.device)[..., None]
        return (keys.gather(-2, index.expand(-1, -1, -1, keys.shape[-1])),
                values.gather(-2, index.expand(-1, -1, -1, values.shape[-1])))

    def _offers(self, keys: torch.Tensor, n: int) -> Dict[str, Any]:
        assert self.kept is not None
        batch, heads, rows, dim = keys.shape
        needs = self.policy.needs
        offers: Dict[str, Any] = {"positions": self.kept, "protect": self.cache.protect, "rope": self.rope}
        if self.scale is not None:
            offers["scale"] = self.scale
        if self.queries is not None:
            offers["queries"] = _on_cpu(self.queries[..., -n:, :] if needs["accumulated_attention"] else self.queries)
        if needs["accumulated_attention"]:
            before = self.attention if self.attention is not None else torch.zeros(batch, heads, 0)
            self.attention = torch.cat([before, torch.zeros(batch, heads, rows - before.shape[-1])], -1)
            offers["accumulated_attention"] = self.attention
        if needs["key_statistics"]:
            if self.sums is None:
                self.sums = numpy.zeros((batch, heads, 2 * dim + 1))
            offers["key_statistics"] = self.sums
        if self.moments is not None and self.rope is not None:
            count, total, products = self.moments
            mean = total / max(count, 1)
            covariance = products / max(count, 1) - mean[..., :, None] * mean[..., None, :]
            moved = [lagkv.moved(m.float().cpu(), c.float().cpu(), self.rope, self.cursor.seen() + n)
                     for m, c in zip(mean, covariance)]
            offers["query_mean"] = numpy.stack([m[0] for m in moved])
            offers["query_covariance"] = numpy.stack([m[1] for m in moved])
        return offers

    def _same_as_the_others(self, rows: int) -> None:
        """Transformers makes one mask for all layers of full attention."""
        seen, expected = self.cache.left
        if seen != self.cursor.seen():
            self.cache.left = (self.cursor.seen(), rows)
        elif expected != rows:
            raise lagkv.Error(f"policy {self.policy.text}: would keep {rows} rows in a layer, and {expected} in another")

    def _refuse_padding(self, position_ids: Optional[torch.Tensor]) -> None:
        if position_ids is None or position_ids.ndim != 2:
            return
        first = self.cursor.seen()
        wrong = (position_ids != torch.arange(first, first + position_ids.shape[1], device=position_ids.device)).nonzero()
        if len(wrong):
            entry, at = wrong[0].tolist()
            raise lagkv.Error(f"position_ids: entry {entry} has {int(position_ids[entry, at])} for token {first + at}: the "
                              "sequences of a batch must be of equal length, without padding, and go on where the cache ends")

    def _entries(self, select: Any) -> None:
        """Changes the entries of the batch."""
        for name in ("keys", "values", "kept", "attention", "queries"):
            x = getattr(self, name)
            if x is not None and x.numel():
                setattr(self, name, select(x).contiguous())
        if self.sums is not None:
            self.sums = select(torch.from_numpy(self.sums)).contiguous().numpy()
        if self.moments is not None:
            self.moments[1:] = [select(x) for x in self.moments[1:]]


# ---- models -----------------------------------------------------------------------------------------------------------------


def _on_cpu(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().cpu()
    return x if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.float()


def _rotation_of(module: torch.nn.Module) -> Any:
    """The model's own apply_rotary_pos_emb."""
    source = importlib.import_module(type(module).__module__)
    function = getattr(source, "apply_rotary_pos_emb", None)
    if function is None:
        raise lagkv.Error(f"model: {type(module).__name__} has no apply_rotary_pos_emb: its queries cannot be read")
    return function


def _attention_modules(model: torch.nn.Module) -> List[torch.nn.Module]:
    """Those that have a layer index and project queries."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and (hasattr(m, "q_proj") or hasattr(m, "qkv_proj"))]


def _pairs(model: Optional[PreTrainedModel]) -> str:
    """Which channels the model's RoPE turns together; seen by turning the first channel a quarter turn."""
    modules = _attention_modules(model) if model is not None else []
    if not modules:
        return "halves"  # as nearly all models of Transformers have it
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1
    cos, sin = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    turned = _rotation_of(modules[0])(x, x, cos, sin)[0].flatten()
    return "neighbours" if abs(float(turned[1])) > 0.5 else "halves"


def _rope(config: Any, layer_type: str, pairs: str) -> lagkv.Rope:
    """The rotary embedding of a config."""
    parameters = config.rope_parameters
    if parameters is not None and "rope_type" not in parameters:
        parameters = parameters.get(layer_type)
    if parameters is None:
        raise lagkv.Error("model: has no rope_parameters: the policy reads keys as they were before RoPE")
    kind, base = parameters.get("rope_type", "default"), float(parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dims = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    if kind == "default":
        return lagkv.Rope(base, pairs=pairs, dims=dims)
    if kind not in ("linear", "llama3", "yarn"):
        raise lagkv.Error(f"model: rope_type={kind}: must be default, linear, llama3 or yarn for policies that undo RoPE")
    frequencies = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")[0].double().numpy()
    dims = 2 * len(frequencies)
    factors = base ** (-numpy.arange(0, dims, 2) / dims) / frequencies
    return lagkv.Rope(base, pairs=pairs, dims=dims, factors=[float(f) for f in factors])


def _watch(model: Any) -> None:
    """Has every attention module show its queries to a LagKVCache, once a model."""
    for module in _attention_modules(model):
        if not getattr(module, "_lagkv_watched", False):
            module.register_forward_pre_hook(_show_queries, with_kwargs=True)
            module._lagkv_watched = True  # type: ignore[assignment]


def _show_queries(module: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    if not isinstance(cache, LagKVCache) or not cache.reads_queries:
        return
    layer = cache.layers[module.layer_idx]
    if not isinstance(layer, CompressedLayer):
        return
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    cos, sin = kwargs["position_embeddings"]
    needs = layer.policy.needs
    if not needs["accumulated_attention"] and not needs["query_statistics"]:  # the last ones are enough
        last = needs["queries"]
        hidden, cos, sin = hidden[:, -last:], cos[:, -last:], sin[:, -last:]
    with torch.no_grad():
        queries = module.q_proj(hidden) if hasattr(module, "q_proj") else module.qkv_proj(hidden)
        heads = module.config.num_attention_heads
        queries = queries[..., :heads * module.head_dim].unflatten(-1, (heads, module.head_dim))
        norm = getattr(module, "q_norm", None)
        queries = (norm(queries) if norm is not None else queries).transpose(1, 2)
        rotated = _rotation_of(module)(queries, queries, cos, sin)[0]
    layer.observe(queries, rotated, getattr(module, "scaling", None))
