"""A cache for Hugging Face Transformers (5.24 and later) that compresses itself while a model reads and answers.

    from lagkv.transformers import LagKVCache

    cache = LagKVCache("lagkv:lag=128,ratio=0.25", model)
    model.generate(**inputs, cache=cache)

Each layer uses the tokens appended, then compresses (use, then compress). The model sees the positions that tokens had when they
were read: cache.get_seq_length() counts the tokens dropped too. docs/python.md says more.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import operator
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

try:
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DummyLayer, get_layer_types_and_kwargs
except ImportError:
    raise ImportError(f"transformers {transformers_version}: must be 5.24 or later for lagkv.transformers") from None

import lagkv

__all__ = ["LagKVCache", "head_importance", "query_statistics"]

FIRST_QUERIES = 4  # of a text, which are unlike the rest: left out of the statistics, as kvpress does
KEYS_LOOKED_AT = 8  # new keys that a layer's first calls compare with what _projected() makes
FAR_ENOUGH = 16  # position of a key whose RoPE shows
SAME_KEYS = 0.03  # relative difference: a rounding of bfloat16 makes 0.004


class LagKVCache(Cache):
    """A cache whose layers of full attention are compressed by a policy; layers with a window of their own stay as they are.

    policy: a lagkv.Policy or a string. All layers, all heads and all entries of a batch keep the same number of rows: policies
    with select=adaptive or pyramid are refused, and kvzap, which reads what only its host can have. model: the model, wrapped or
    not; or its config, for policies that read keys and values as they are and batches without padding. protect: positions that
    are never dropped, ascending. head_budgets: with select=by_head each head keeps its own number; for each compressed layer a
    number for each KV head (lagkv.head_budgets() makes them). query_statistics: what query_statistics() returned, for policies
    with calibrated=yes; others that read statistics of queries take it in place of those of the sequence's own. threads: that
    share the heads of a sequence, or the entries of a batch without padding, 1 to 1024.

    A batch may be padded on the left: each entry keeps what it would keep alone. The cache can be copied (copy.deepcopy) and
    pickled.

    Raises lagkv.Error for what is refused, TypeError for what is no policy, model or list of positions. A refused call leaves the
    layer that refuses it as it was; a refused crop() leaves all layers.
    """

    def __init__(self, policy: Union[lagkv.Policy, str], model: Any, *, protect: Optional[Sequence[int]] = None,
                 head_budgets: Optional[Sequence[Sequence[float]]] = None,
                 query_statistics: Optional[Sequence[Tuple[Any, Any]]] = None, threads: int = 1) -> None:
        self.policy = policy if isinstance(policy, lagkv.Policy) else lagkv.parse(policy)
        lagkv.check("full", numpy.zeros((1, 1, 1), numpy.float32), protect=protect)
        self.protect = [int(p) for p in protect] if protect is not None else []
        self.pads: List[int] = []  # that each entry has among the newest tokens; empty: none
        self.visible: Optional[torch.Tensor] = None  # bool [batch, heads or 1, 1, rows]: rows before the new tokens; None: all
        self.fresh = 0  # new tokens of each entry, beside `visible`
        self.workspace = lagkv.Workspace(threads)
        module = _model_of(model)
        self.has_model = module is not None
        config = (module.config if module is not None else model).get_text_config(decoder=True)
        needs = self.policy.needs
        if (self.policy.ragged and not needs["head_budgets"]) or self.policy.sloped:
            raise lagkv.Error(f"policy {self.policy.text}: keeps different numbers of rows in heads or layers, which this cache "
                              "cannot hold but with select=by_head")
        if needs["importance"]:
            raise lagkv.Error(f"policy {self.policy.text}: reads what was fitted to the model beforehand, which this cache "
                              "does not take")
        if needs["calibrated"] and query_statistics is None:
            raise lagkv.Error(f"policy {self.policy.text}: reads what the model's queries usually are: give query_statistics")
        self.counts_queries = bool(needs["query_statistics"] and query_statistics is None)
        self.reads_queries = bool(needs["queries"] or needs["accumulated_attention"] or self.counts_queries)
        reads = ("queries" if self.reads_queries else "keys as they were before RoPE" if needs["rope"] else
                 "the RoPE of its queries" if needs["query_statistics"] else "")
        if reads and module is None:
            raise lagkv.Error(f"policy {self.policy.text}: reads {reads}: give the model in place of its config")
        self.mixes_heads = config.model_type == "diffllama"  # its query heads read the values of two KV heads
        types, options = get_layer_types_and_kwargs(config)
        ours = [t == "full_attention" for t in types]
        if not any(ours):
            raise lagkv.Error(f"model: has no layer of full attention (layers: {', '.join(sorted(set(types)))})")
        seen = {m.layer_idx: m for m in _attention_modules(module)} if module is not None else {}
        self.sees_masks = all(i in seen for i, own in enumerate(ours) if own)
        if needs["head_budgets"]:
            self._expect_masks_of_heads(module, types)
        heads: List[Tuple[int, int]] = []
        if needs["head_budgets"] or query_statistics is not None:
            heads = [_heads_of(config, seen[i]) for i, own in enumerate(ours) if own and i in seen]
        budgets = _budgets_of_layers(self.policy, head_budgets, [kv for _, kv in heads])
        if module is not None and reads and not self.sees_masks:
            raise lagkv.Error(f"model: {type(module).__name__} has layers without q_proj or qkv_proj: policy {self.policy.text} "
                              f"reads {reads}, which this cache cannot see there")
        usual = iter(_usual_queries(self.policy, query_statistics, [queries for queries, _ in heads]))
        ropes: Dict[str, lagkv.Rope] = {}
        if module is not None and (needs["rope"] or needs["query_statistics"]):
            pairs = _pairs(module)
            ropes = {t: _rope(config, t, pairs) for t in set(types) if t == "full_attention"}
        left = iter([(own, queries // kv) for own, (queries, kv) in zip(budgets or [], heads)])

        def layer_of(t: str, o: Dict[str, Any], own: bool) -> Any:
            if not own:
                return DYNAMIC_LAYER_TYPE_MAPPING[t](**o)
            layer = CompressedLayer(self, ropes.get(t)) if budgets is None else RaggedLayer(self, ropes.get(t), *next(left))
            layer.usual_queries = next(usual, None)
            return layer

        layers = [layer_of(t, o, own) for t, o, own in zip(types, options, ours)]
        self.count = sum(ours)  # compressed layers
        self.left: List[int] = []  # rows that the first layer has kept, of each entry
        if module is not None:
            _watch(module)
        super().__init__(layers=layers)

    def positions(self, layer_idx: int = 0) -> torch.Tensor:
        """The positions of the rows of a layer, int32 [batch, heads, rows]; -1: padding, which is hidden from attention."""
        layer = self.layers[layer_idx]
        if not isinstance(layer, CompressedLayer) or layer.kept is None:
            raise lagkv.Error(f"layer_idx={layer_idx}: is not compressed, or has no rows yet")
        return layer.kept

    def rows(self) -> int:
        """The rows that each head of a compressed layer has in use, those of the longest entry of the batch. With head budgets:
        those of the average head, rounded up."""
        if not isinstance(self.first(), RaggedLayer):
            return self.first().rows()
        layers = [layer for layer in self.layers if isinstance(layer, RaggedLayer) and layer.kept is not None]
        if not layers:  # after an exception some may have rows, and others none
            return 0
        in_use = torch.cat([layer.in_use() for layer in layers], -1)
        return -(-int(in_use.sum(-1).max()) // in_use.shape[-1])

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last -tokens_to_remove tokens, in all layers or none; lagkv.Error if they are not all the last ones."""
        ours = [layer for layer in self.layers if isinstance(layer, CompressedLayer)]
        for layer in ours:
            layer.check_crop(tokens_to_remove)
        for other in self.layers:
            if not isinstance(other, CompressedLayer):
                other.crop(tokens_to_remove)  # type: ignore[union-attr]  # those that cannot say so
        for layer in ours:
            layer.crop(tokens_to_remove)

    def hide(self, mask: Optional[torch.Tensor], n: int) -> Optional[torch.Tensor]:
        """The attention mask of n queries for the rows in use of a padded batch. Transformers makes it for the last tokens before
        the new ones, which these rows are not."""
        if self.visible is None:
            return mask
        batch = self.visible.shape[0]
        old = self.visible.to(self.visible.device if mask is None else mask.device).expand(-1, -1, n, -1)
        heads = max(old.shape[1], 1 if mask is None else mask.shape[1])
        if mask is None:
            new = torch.ones(n, self.fresh, dtype=torch.bool, device=old.device).tril(self.fresh - n)
        else:
            new = mask[..., -self.fresh:]
        new = new.expand(batch, heads, n, self.fresh)
        if new.dtype != torch.bool:
            old = torch.zeros(old.shape, dtype=new.dtype, device=old.device).masked_fill(~old, torch.finfo(new.dtype).min)
        return torch.cat([old.expand(-1, heads, -1, -1), new], -1)

    def first(self) -> CompressedLayer:
        """The first layer that is compressed."""
        return next(layer for layer in self.layers if isinstance(layer, CompressedLayer))

    def _expect_masks_of_heads(self, module: Optional[PreTrainedModel], types: Sequence[str]) -> None:
        """Refuses a model whose attention cannot be given a mask for each head."""
        if module is None:
            raise lagkv.Error(f"policy {self.policy.text}: hides rows of some heads: give the model in place of its config")
        if not self.sees_masks:
            raise lagkv.Error(f"model: {type(module).__name__} has layers without q_proj or qkv_proj: policy {self.policy.text} "
                              "hides rows of some heads, which this cache cannot do there")
        if any(not hasattr(m, "config") for m in _attention_modules(module)):  # XGLM's: not eager attention as others have it
            raise lagkv.Error(f"model: the attention of {type(module).__name__} takes one mask for all heads: policy "
                              f"{self.policy.text} hides rows of some heads, which this cache cannot do there")
        if any(issubclass(DYNAMIC_LAYER_TYPE_MAPPING[t], DummyLayer) for t in types):
            raise lagkv.Error(f"model: {type(module).__name__} has layers that read the keys of others: policy "
                              f"{self.policy.text} hides rows of some heads, which this cache cannot do there")


class CompressedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer: keys and values of the rows in use, where they came from, and what the policy has kept for it.

    A batch without padding has one cursor. A padded one has a cursor for each entry; the rows of an entry are the last ones of
    the tensors, and what lies before them is hidden from attention.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: LagKVCache, rope: Optional[lagkv.Rope]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.rope = cache, rope
        self.usual_queries: Optional[Tuple[torch.Tensor, torch.Tensor]] = None  # mean and covariance before RoPE, if given
        self.trusted = not (cache.reads_queries or rope is not None)  # keys are known to be what _projected() says
        self._forget()

    def _forget(self) -> None:
        self.padded = False
        self.cursors = [lagkv.Cursor()]
        self.length = 0  # tokens seen, padding and dropped ones too
        self.policy = self.cache.policy
        self.kept: Optional[torch.Tensor] = None  # positions
        self.attention: Optional[torch.Tensor] = None  # accumulated, float32 [batch, heads, rows]
        self.sums: Optional[numpy.ndarray[Any, Any]] = None  # key statistics
        self.queries: Optional[torch.Tensor] = None  # of the last tokens, after RoPE
        self.moments: Optional[List[torch.Tensor]] = None  # of the queries before RoPE: count, sum, sum of products
        self.scale: Optional[float] = None
        self.shown: Optional[_Shown] = None  # by the hook before attention, until update() takes it

    # ---- what Transformers asks ---------------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, padding and dropped ones too: where the next one has its place in the attention mask."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        """The rows as if they were the last tokens before the new ones: all of them are seen by every new token."""
        return self.rows() + query_length, self.length - self.rows()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Appends; returns all rows for attention, and keeps those that the policy leaves."""
        before = dict(self.__dict__)
        try:
            return self._updated(key_states, value_states, (kwargs.get("kwargs") or {}).get("position_ids"))
        except BaseException:
            self.__dict__.update(before)
            raise
        finally:
            self.shown = None

    def _updated(self, key_states: torch.Tensor, value_states: torch.Tensor, position_ids: Optional[torch.Tensor]) -> Any:
        if self.shown is None and self._hides_rows():
            raise lagkv.Error("model: is not the one that this cache was made for: its attention has not been seen, and would "
                              f"read rows that must be hidden ({self._hides()})")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, n, _ = key_states.shape
        fresh = self._numbers(batch, n)
        if not self.cache.has_model and position_ids is None and batch > 1:
            raise lagkv.Error(f"batch={batch}: nothing tells whether it is padded: give the model in place of its config")
        self._check_positions(position_ids, fresh)
        if not self.trusted:
            self._check_keys(key_states, fresh)
        if self.shown is not None and self.shown.after_rope is not None:
            self._observe(self.shown)
        keys, values = key_states, value_states
        if self.length:
            keys, values = (torch.cat([old, new], dim=-2) for old, new in zip(self._all(), (keys, values)))
        fresh = fresh[:, None].expand(batch, heads, n)
        self.kept = fresh.contiguous() if self.kept is None else torch.cat([self.kept, fresh], -1)
        self._begin(keys, values)
        self.keys, self.values = self._compressed(keys, values, n)
        if self.cache.mixes_heads and not bool((self.kept == self.kept[:, :1]).all()):
            raise lagkv.Error(f"model: its query heads read values of two heads: policy {self.policy.text} would keep other "
                              "tokens in each, and must keep the same, as with heads=shared")
        return keys, values

    def _all(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in use, [batch, heads, rows, dim]."""
        return self.keys, self.values

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keeps these, the rows of `kept`."""
        self.keys, self.values = keys, values

    def reset(self) -> None:
        super().reset()
        self._forget()

    def check_crop(self, tokens_to_remove: int) -> None:
        """Raises lagkv.Error for what crop() cannot take back."""
        if tokens_to_remove > 0:
            raise lagkv.Error(f"tokens_to_remove={tokens_to_remove}: must be 0 or less: minus the tokens to remove")
        least = max(c.compressed - c.tokens for c in self._all_cursors())
        if tokens_to_remove < least and self.kept is not None:
            raise lagkv.Error(f"tokens_to_remove={tokens_to_remove}: must be at least {least}: the rows before are sinks "
                              "and survivors")

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back tokens that were appended after the last rows were dropped; raises lagkv.Error for others."""
        self.check_crop(tokens_to_remove)
        n = -tokens_to_remove
        if n == 0 or self.kept is None:
            return
        if n == self.length:  # the next tokens may be those of another batch, with or without padding
            self.reset()
            return
        rows = self.rows() - n
        keys, values = self._all()
        self.kept = self.kept[..., :rows].contiguous()
        self._hold(keys[..., :rows, :], values[..., :rows, :])
        if self.attention is not None:
            self.attention = self.attention[..., :rows].contiguous()
        if self.queries is not None:
            self.queries = self.queries[..., :-n, :]
        for cursor in self._all_cursors():
            cursor.take_back(cursor.tokens - n)
        self.length -= n

    def _all_cursors(self) -> List[lagkv.Cursor]:
        return self.cursors

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._entries(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._entries(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._entries(lambda x: x[indices.to(x.device), ...])

    # ---- padding ------------------------------------------------------------------------------------------------------

    def rows(self) -> int:
        return 0 if self.kept is None else self.kept.shape[-1]

    def look_at(self, mask: Optional[torch.Tensor], batch: int, n: int, config: Any) -> Optional[torch.Tensor]:
        """Before attention: takes from its mask how much padding comes with n new tokens of each entry; -> the mask for the rows
        in use."""
        self.shown = _Shown()
        implementation = getattr(config, "_attn_implementation", "eager")  # XGLM's attention has no config
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise lagkv.Error(f"attn_implementation={implementation}: must be eager, sdpa or flash attention: its mask, a "
                              f"{type(mask).__name__}, does not show padding")
        if mask is not None and mask.ndim == 2 and not bool((mask != 0).all()):
            raise lagkv.Error(f"attn_implementation={implementation}: must be eager or sdpa for a padded batch")
        if self is self.cache.first():  # all layers of full attention have the same mask
            self.cache.pads = self._pads(mask, batch, n)
        if self.length == 0:
            self.padded = bool(self.cache.pads)
            self.cursors = [lagkv.Cursor() for _ in range(batch if self.padded else 1)]
        self.cache.visible, self.cache.fresh = self._visible() if self.length else None, n
        if self._hides_rows() and implementation not in ("eager", "sdpa"):
            raise lagkv.Error(f"attn_implementation={implementation}: must be eager or sdpa for {self._hides()}")
        return self.cache.hide(mask, n)

    def _hides_rows(self) -> bool:
        """Whether attention is given a mask for the rows in use; with head budgets it will be."""
        return self.padded and self.length > 0

    def _hides(self) -> str:
        return "a padded batch"

    def _visible(self) -> Optional[torch.Tensor]:
        """Which rows attention may see, bool [batch, query heads or 1, 1, rows]; None: all."""
        if not self.padded:
            return None
        rows, device = self.rows(), self.keys.device
        tokens = torch.tensor([c.tokens for c in self.cursors], device=device)
        return (torch.arange(rows, device=device) >= (rows - tokens)[:, None])[:, None, None]

    def _pads(self, mask: Optional[torch.Tensor], batch: int, n: int) -> List[int]:
        """The padding that each entry has among n new tokens, by an attention mask; empty: none."""
        if mask is None or mask.ndim != 4:
            return []
        seen = mask[:, 0, -1, -n:].expand(batch, n)
        hidden = ~seen if seen.dtype == torch.bool else seen != 0
        if not hidden.any():
            return []
        pads = hidden.int().cumprod(-1).sum(-1).tolist()
        begun = [c.seen() > 0 for c in self.cursors]
        for entry, (pad, all_hidden) in enumerate(zip(pads, hidden.sum(-1).tolist())):
            if all_hidden > pad or (pad and begun[entry % len(begun)]):
                raise lagkv.Error(f"attention_mask: entry {entry} hides {all_hidden} of {n} new tokens: only padding before the "
                                  "first token of an entry can be hidden")
        return pads

    def _numbers(self, batch: int, n: int) -> torch.Tensor:
        """The places of n new tokens in their entries, int32 [batch, n]; -1: padding."""
        first = torch.tensor([c.seen() for c in self.cursors], dtype=torch.int32)
        if self.cache.pads:
            first = first - torch.tensor(self.cache.pads, dtype=torch.int32)
        return (first[:, None] + torch.arange(n, dtype=torch.int32)).clamp(min=-1).expand(batch, n)

    def _check_positions(self, position_ids: Optional[torch.Tensor], fresh: torch.Tensor) -> None:
        if position_ids is None or position_ids.ndim != 2:
            return
        position_ids = position_ids.cpu().expand(fresh.shape)
        wrong = ((position_ids != fresh) & (fresh >= 0)).nonzero()
        if len(wrong):
            entry, at = wrong[0].tolist()
            raise lagkv.Error(f"position_ids: entry {entry} has {int(position_ids[entry, at])} for its token "
                              f"{int(fresh[entry, at])}: must count the tokens of each entry, without padding, and go on where "
                              "the cache ends" + ("" if self.cache.has_model else "; a padded batch needs the model in place of "
                                                  "its config"))

    # ---- compression --------------------------------------------------------------------------------------------------

    def _observe(self, shown: _Shown) -> None:
        """Takes the queries of the newest tokens, before these are appended."""
        needs, before_rope, after_rope = self.policy.needs, shown.before_rope, shown.after_rope
        assert before_rope is not None and after_rope is not None
        self.scale = shown.scale
        if needs["queries"] or needs["accumulated_attention"]:
            n = max(needs["queries"], after_rope.shape[-2] if needs["accumulated_attention"] else 0)
            both = after_rope if self.queries is None else torch.cat([self.queries, after_rope], -2)
            self.queries = both[..., -n:, :].detach()
        if self.cache.counts_queries:
            counts = (self._numbers(before_rope.shape[0], before_rope.shape[-2]) >= FIRST_QUERIES).to(before_rope.device)
            x = before_rope.detach().double().masked_fill(~counts[:, None, :, None], 0)
            moments = [counts.sum(-1)[:, None, None], x.sum(-2), x.transpose(-1, -2) @ x]
            self.moments = moments if self.moments is None else [a + b for a, b in zip(self.moments, moments)]

    def _check_keys(self, keys: torch.Tensor, fresh: torch.Tensor) -> None:
        """Refuses a model whose keys are not what _projected() and the Rope make of its hidden states: its queries would not be
        either. Looks at a few of the last new keys, until their positions are far enough from 0 for RoPE to show."""
        if self.shown is None or self.shown.keys is None:
            raise lagkv.Error("model: is not the one that this cache was made for: its attention has not been seen")
        before, after = self.shown.keys
        n = before.shape[-2]
        keys, positions = keys.detach()[..., -n:, :], fresh[:, -n:]
        real = (positions >= 0)[:, None, :, None].to(keys.device)
        off = _difference(keys * real, after * real)
        if self.rope is not None:
            off = max(off, _difference(_before_rope(keys, positions, self.rope) * real, before * real))
        if off > SAME_KEYS:
            raise lagkv.Error(f"model: {self.shown.module}: its keys are not k_proj, k_norm and RoPE of the hidden states (they "
                              f"differ by {100 * off:.0f} %): policy {self.cache.policy.text} cannot read its queries, nor keys "
                              "before RoPE")
        self.trusted = bool((positions >= FAR_ENOUGH).any())

    def _begin(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Before the policy sees rows: what it adds to has room for them."""
        batch, heads, rows, _ = keys.shape
        if self.length == 0:  # a budget in bytes is for all layers together
            self.policy = self.cache.policy.fit(lagkv.Layer(_on_cpu(keys[:1]), _on_cpu(values[:1])), self.cache.count)
        needs = self.policy.needs
        if needs["accumulated_attention"]:
            before = self.attention if self.attention is not None else torch.zeros(batch, heads, 0)
            self.attention = torch.cat([before, torch.zeros(batch, heads, rows - before.shape[-1])], -1)
        if needs["key_statistics"]:  # a copy: a call that fails leaves those before
            self.sums = numpy.zeros((batch, heads, 2 * keys.shape[-1] + 1)) if self.sums is None else self.sums.copy()

    def _compressed(self, keys: torch.Tensor, values: torch.Tensor, n: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """What stays of rows whose newest n have been appended, to be held; attention has seen them all."""
        batch, heads, rows, _ = keys.shape
        stays = [(entries, *self._stays(entries, keys, values, cursor, new)) for entries, cursor, new in self._parts(n)]
        left = [cursor.tokens for _, cursor, _ in stays]
        self._same_as_the_others(left)
        self.cursors, self.length = [cursor for _, cursor, _ in stays], self.length + n
        if all(index is None for _, _, index in stays) and max(left) == rows:
            return keys, values
        chosen = torch.zeros(batch, heads, max(left), dtype=torch.int64)
        hidden = torch.ones(chosen.shape, dtype=torch.bool)
        for entries, cursor, index in stays:
            first = max(left) - cursor.tokens
            chosen[entries, :, first:] = torch.arange(rows - cursor.tokens, rows) if index is None else index
            hidden[entries, :, first:] = False
        assert self.kept is not None
        self.kept = self.kept.gather(-1, chosen).masked_fill(hidden, -1)
        if self.attention is not None:
            self.attention = self.attention.gather(-1, chosen)
        chosen = chosen.to(keys.device)[..., None]
        return (keys.gather(-2, chosen.expand(-1, -1, -1, keys.shape[-1])),
                values.gather(-2, chosen.expand(-1, -1, -1, values.shape[-1])))

    def _parts(self, n: int) -> List[Tuple[slice, lagkv.Cursor, int]]:
        """The entries of each cursor, the cursor, and how many of the n newest tokens are no padding."""
        pads = self.cache.pads or [0] * len(self.cursors)
        return [(slice(b, b + 1) if self.padded else slice(None), cursor, n - pad)
                for b, (cursor, pad) in enumerate(zip(self.cursors, pads))]

    def _stays(self, entries: slice, keys: torch.Tensor, values: torch.Tensor, cursor: lagkv.Cursor,
               n: int) -> Tuple[lagkv.Cursor, Optional[torch.Tensor]]:
        """What stays of entries whose n newest tokens, padding aside, have been appended: their cursor, and the rows, int64
        [entries, heads, rows]; None: all."""
        plans = self._plans(entries, None, self.policy, keys, values, cursor, n)
        after = self._after(plans, cursor, n)
        if not plans:
            return after, None
        first = keys.shape[-2] - cursor.tokens - n
        return after, first + torch.from_numpy(numpy.stack([[p.rows(h) for h in range(p.heads)] for p in plans]))

    def _after(self, plans: List[lagkv.Plan], cursor: lagkv.Cursor, n: int, head: Optional[int] = None) -> lagkv.Cursor:
        """The cursor of entries with n new tokens after their plans, which must leave as many rows in all of their heads, or in
        the one that is given."""
        if not plans:
            return lagkv.Cursor(cursor.tokens + n, cursor.dropped, cursor.compressed)
        counts = {p.tokens_after(h) for p in plans for h in (range(p.heads) if head is None else [head])}
        if len(counts) != 1:
            raise lagkv.Error(f"policy {self.policy.text}: would keep from {min(counts)} to {max(counts)} rows in the heads and "
                              "entries of a layer, which must be as many")
        after = copy.copy(cursor)
        lagkv.advance(after, plans[0], head)
        return after

    def _plans(self, entries: slice, head: Optional[int], policy: lagkv.Policy, keys: torch.Tensor, values: torch.Tensor,
               cursor: lagkv.Cursor, n: int) -> List[lagkv.Plan]:
        """What a policy would keep of entries, all heads or one, whose n newest tokens have been appended: a plan for each entry;
        none: nothing is due. Adds the newest tokens to what the policy sums up."""
        needs, tokens = policy.needs, cursor.tokens + n
        due = len(policy.due(cursor, tokens)) != 0
        sums = needs["accumulated_attention"] or needs["key_statistics"]
        if n == 0 or not (due or sums):
            return []
        first, heads = keys.shape[-2] - tokens, slice(None) if head is None else slice(head, head + 1)
        layer = lagkv.Layer(_on_cpu(keys[entries, heads, first:]), _on_cpu(values[entries, heads, first:]),
                            **self._offers(entries, heads, first, cursor.seen() + n, n))
        if sums:
            lagkv.accumulate(policy, layer, cursor=cursor, n=n, workspace=self.cache.workspace)
            if needs["accumulated_attention"]:  # the newest tokens have been counted
                layer.offer(queries=self._last_queries(entries, heads, cursor.seen() + n) if needs["queries"] else None)
        plans = lagkv.plan_eviction(policy, layer, cursor=cursor, workspace=self.cache.workspace) if due else []
        return plans if plans and plans[0] else []

    def _queries_of(self, heads: slice, query_heads: int) -> slice:
        """The query heads that read these heads."""
        if heads == slice(None):
            return heads
        assert self.kept is not None
        group = query_heads // self.kept.shape[1]
        return slice(heads.start * group, heads.stop * group)

    def _last_queries(self, entries: slice, heads: slice, most: int) -> torch.Tensor:
        assert self.queries is not None
        own = self._queries_of(heads, self.queries.shape[1])
        return _on_cpu(self.queries[entries, own, -min(most, self.queries.shape[-2]):])

    def _offers(self, entries: slice, heads: slice, first: int, seen: int, n: int) -> Dict[str, Any]:
        """For heads of entries that have seen so many tokens, the newest n with this call, and whose rows begin at the first."""
        assert self.kept is not None
        needs = self.policy.needs
        offers: Dict[str, Any] = {"positions": self.kept[entries, heads, first:], "protect": self.cache.protect,
                                  "rope": self.rope}
        if self.scale is not None:
            offers["scale"] = self.scale
        if self.queries is not None:
            newest = n if needs["accumulated_attention"] else seen
            offers["queries"] = self._last_queries(entries, heads, newest)
        if self.attention is not None:
            offers["accumulated_attention"] = self.attention[entries, heads, first:]
        if self.sums is not None:
            offers["key_statistics"] = self.sums[entries, heads]
        moved: List[Tuple[Any, ...]] = []
        if self.usual_queries is not None and self.rope is not None:  # the same for all entries
            own = self._queries_of(heads, self.usual_queries[0].shape[0])
            mean, covariance = (x[own] for x in self.usual_queries)
            moved = [lagkv.moved(mean, covariance, self.rope, seen)] * self.kept[entries].shape[0]
        elif self.moments is not None and self.rope is not None:
            own = self._queries_of(heads, self.moments[1].shape[1])
            moments = [x[entries, own if x.shape[1] > 1 else slice(None)] for x in self.moments]
            moved = [lagkv.moved(m.float().cpu(), c.float().cpu(), self.rope, seen)
                     for m, c in zip(*_mean_and_covariance(moments))]
        if moved:
            offers["query_mean"] = numpy.stack([m[0] for m in moved])
            offers["query_covariance"] = numpy.stack([m[1] for m in moved])
        return offers

    def _same_as_the_others(self, rows: List[int]) -> None:
        """Transformers makes one mask for all layers of full attention."""
        if self is self.cache.first():
            self.cache.left = rows
        elif self.cache.left != rows:
            raise lagkv.Error(f"policy {self.policy.text}: would keep {max(rows)} rows in a layer, and {max(self.cache.left)} in "
                              "another")

    def _entries(self, select: Any) -> None:
        """Changes the entries of the batch."""
        if self.kept is None:
            return
        keys, values = (select(x).contiguous() for x in self._all())
        for name in ("kept", "attention", "queries"):
            x = getattr(self, name)
            if x is not None:
                setattr(self, name, select(x).contiguous())
        self._hold(keys, values)
        if self.sums is not None:
            self.sums = select(torch.from_numpy(self.sums)).contiguous().numpy()
        if self.moments is not None:
            self.moments = [select(x) for x in self.moments]
        if self.padded:
            self.cursors = [copy.copy(self.cursors[i]) for i in select(torch.arange(len(self.cursors))).tolist()]


class RaggedLayer(CompressedLayer):  # type: ignore[no-untyped-call]
    """One layer whose heads keep different numbers of rows (select=by_head).

    `keys` and `values` are flat, [rows of all entries and heads, dim]: the rows of `kept` that are not -1, in its order. The
    heads of an entry have one cursor until the first rows are dropped; from then on each head has its own, and a policy of its
    own. For each call the layer makes keys and values as long as the longest head; a mask hides what lies before the rows of a
    head.
    """

    def __init__(self, cache: LagKVCache, rope: Optional[lagkv.Rope], budgets: List[float], group: int) -> None:
        super().__init__(cache, rope)
        self.budgets = budgets
        self.group = group  # query heads of a KV head

    def _forget(self) -> None:
        super()._forget()
        self.apart: List[Optional[List[lagkv.Cursor]]] = []  # of each of `cursors`, once it has dropped rows: those of the heads
        self.policies: List[lagkv.Policy] = []  # of each head by itself

    def _begin(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if keys.shape[1] != len(self.budgets):  # latent keys are those of all heads
            raise lagkv.Error(f"model: its keys are those of {keys.shape[1]} heads, where its attention has {len(self.budgets)}: "
                              f"policy {self.policy.text} cannot keep other rows in each")
        super()._begin(keys, values)
        if self.length == 0:
            self.policies = [self.policy.for_head(budget) for budget in self.budgets]

    def in_use(self) -> torch.Tensor:
        """The rows of each head, int64 [batch, heads]."""
        return torch.zeros(1, len(self.budgets), dtype=torch.int64) if self.kept is None else (self.kept >= 0).sum(-1)

    def _hides_rows(self) -> bool:
        return True

    def _held(self, device: torch.device) -> torch.Tensor:
        """Which rows of the longest head there are, bool [batch, heads, rows]."""
        assert self.kept is not None
        return (self.kept >= 0).to(device)

    def _all(self) -> Tuple[torch.Tensor, torch.Tensor]:
        held = self._held(self.keys.device)

        def unfold(flat: torch.Tensor) -> torch.Tensor:
            out = flat.new_zeros(*held.shape, flat.shape[-1])
            out[held] = flat
            return out

        return unfold(self.keys), unfold(self.values)

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        held = self._held(keys.device)
        self.keys, self.values = keys[held], values[held]

    def _all_cursors(self) -> List[lagkv.Cursor]:
        return self.cursors + [c for heads in self.apart for c in heads or []]

    def _hides(self) -> str:
        return "select=by_head"

    def _visible(self) -> Optional[torch.Tensor]:
        return self._held(self.keys.device).repeat_interleave(self.group, 1)[:, :, None]

    def _compressed(self, keys: torch.Tensor, values: torch.Tensor, n: int) -> Tuple[torch.Tensor, torch.Tensor]:
        assert self.kept is not None
        batch, heads, rows, _ = keys.shape
        held = self.kept >= 0
        cursors: List[lagkv.Cursor] = []
        apart: List[Optional[List[lagkv.Cursor]]] = []
        for b, (entries, cursor, new) in enumerate(self._parts(n)):
            own = self.apart[b] if self.apart else None
            if own is None:  # one plan for all heads
                before, at = [cursor] * heads, list(range(heads))
                plans = [self._plans(entries, None, self.policy, keys, values, cursor, new)] * heads
            else:
                before, at = own, [0] * heads
                plans = [self._plans(entries, head, self.policies[head], keys, values, own[head], new) for head in range(heads)]
            after = [self._after(plans[head], before[head], new, at[head]) for head in range(heads)]
            for head in range(heads):
                for entry, plan in zip(range(batch)[entries], plans[head]):
                    held[entry, head] = False
                    held[entry, head, rows - before[head].tokens - new + torch.from_numpy(plan.rows(at[head]))] = True
            cursors.append(copy.copy(after[0]))
            apart.append(after if own is not None or any(plans) else None)
        self.cursors, self.apart, self.length = cursors, apart, self.length + n
        most = int(held.sum(-1).max())
        chosen = held.int().sort(dim=-1, stable=True).indices[..., rows - most:]  # rows that stay come last, in their order
        self.kept = self.kept.gather(-1, chosen).masked_fill(~held.gather(-1, chosen), -1)
        if self.attention is not None:
            self.attention = self.attention.gather(-1, chosen)
        held = held.to(keys.device)
        return keys[held], values[held]

    def _offers(self, entries: slice, heads: slice, first: int, seen: int, n: int) -> Dict[str, Any]:
        offers = super()._offers(entries, heads, first, seen, n)
        if heads == slice(None):
            offers["head_budgets"] = self.budgets
        return offers

    def _entries(self, select: Any) -> None:
        super()._entries(select)
        if self.apart and self.padded:
            self.apart = [copy.deepcopy(self.apart[i]) for i in select(torch.arange(len(self.apart))).tolist()]


# ---- head budgets -----------------------------------------------------------------------------------------------------------


def _heads_of(config: Any, module: torch.nn.Module) -> Tuple[int, int]:
    """The query heads and the KV heads of a layer. Its attention module knows better than the config, which has no one number
    where layers differ (Gemma 4)."""
    queries = getattr(module, "num_heads", None) or config.num_attention_heads
    group = getattr(module, "num_key_value_groups", None)
    return queries, queries // group if group else getattr(config, "num_key_value_heads", None) or queries


def _budgets_of_layers(policy: lagkv.Policy, budgets: Optional[Sequence[Sequence[float]]],
                       heads: Sequence[int]) -> Optional[List[List[float]]]:
    """Those of each compressed layer, which have so many KV heads, for select=by_head; None for other policies."""
    if not policy.needs["head_budgets"]:
        if budgets is not None:
            raise lagkv.Error(f"head_budgets: policy {policy.text} reads none: must have select=by_head")
        return None
    if budgets is None:
        raise lagkv.Error(f"policy {policy.text}: reads the budget of each head: give head_budgets")
    try:
        numbers = [[float(x) for x in layer] for layer in budgets]
    except (TypeError, ValueError) as e:
        raise TypeError(f"head_budgets: must be, for each layer, a list of numbers ({e})") from e
    if len(numbers) != len(heads):
        raise lagkv.Error(f"head_budgets: {len(numbers)} layers: must be the {len(heads)} with full attention")
    for i, (layer, own) in enumerate(zip(numbers, heads)):
        if len(layer) != own:
            raise lagkv.Error(f"head_budgets: {len(layer)} heads in layer {i}: must be the {own} of the keys")
        for head, multiple in enumerate(layer):
            if not 0 <= multiple <= torch.finfo(torch.float32).max:  # the library reads float
                raise lagkv.Error(f"head_budgets: {multiple} of head {head} in layer {i}: must be 0 or more, and finite as a "
                                  "float32")
    return numbers


def _indices(name: str, numbers: Iterable[Any]) -> List[int]:
    try:
        return [operator.index(x) for x in numbers]
    except TypeError as e:
        raise TypeError(f"{name}: must be a list of whole numbers ({e})") from e


def _implementations(config: Any) -> Dict[str, Any]:
    """The attention implementations of a config and of those in it, as set_attn_implementation() reads them."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation, **{name: _implementations(c) for name, c in parts.items() if c is not None}}


def _model_that_reads(model: Any) -> PreTrainedModel:
    module = _model_of(model)
    if module is None:
        raise lagkv.Error("model: must be the model, not its config, which reads nothing")
    return module


@contextlib.contextmanager
def _without_dropout(module: torch.nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _read(module: Any, ids: Sequence[int], cache: Cache, at_once: int) -> None:
    for at in range(0, len(ids), at_once):
        module(torch.tensor([ids[at:at + at_once]], device=module.device), cache=cache, logits_to_keep=1)


@torch.no_grad()
def head_importance(model: Any, tokens: Sequence[int], between: Sequence[int] = (), *, skip: int = 4) -> Any:
    """How much each KV head looks back at each token of a text when the model reads it a second time, for lagkv.head_budgets():
    the most attention that the token gets, float32 [layers with full attention, KV heads, len(tokens) - skip].

    tokens: of a text, as many as a prompt has. between: tokens that lie between the two readings, such as a request to say the
    text again. skip: the first tokens, which are unlike the rest, are not counted. numpy.concatenate(.., -1) joins several texts.
    The model's attention weights are read: eager attention is set for the call, and no dropout. Cost: two readings, and
    [query heads, 128, 2 len(tokens)] numbers at a time. Source: KVzip (arXiv 2505.23416).
    """
    module = _model_that_reads(model)
    ids, ids_between = _indices("tokens", tokens), _indices("between", between)
    if not 0 <= skip < len(ids):
        raise lagkv.Error(f"skip={skip}: must be 0 or more and less than the {len(ids)} tokens")
    config = module.config.get_text_config(decoder=True)
    types, _ = get_layer_types_and_kwargs(config)
    ours = [i for i, t in enumerate(types) if t == "full_attention"]
    modules = {m.layer_idx: m for m in _attention_modules(module)}
    if not ours or any(i not in modules for i in ours):
        raise lagkv.Error(f"model: {type(module).__name__} has no layers of full attention with q_proj or qkv_proj, whose "
                          "attention could be seen")
    kv_heads = {i: _heads_of(config, modules[i])[1] for i in ours}
    most = {i: torch.zeros(kv_heads[i], len(ids) - skip) for i in ours}
    count = False  # the queries are of the second reading

    def look(attention: Any, args: Tuple[Any, ...], output: Any) -> None:
        if not count:
            return
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise lagkv.Error(f"model: {type(attention).__name__} of layer {attention.layer_idx} shows no attention weights")
        seen = weights[0, :, :, skip:len(ids)].float().amax(1).cpu()  # [query heads, tokens]
        seen = seen.unflatten(0, (kv_heads[attention.layer_idx], -1)).amax(1)
        most[attention.layer_idx] = torch.maximum(most[attention.layer_idx], seen)

    before = _implementations(module.config)
    hooks = [modules[i].register_forward_hook(look) for i in ours]
    try:
        with _without_dropout(module):
            module.set_attn_implementation("eager")
            cache = DynamicCache(config=config)
            for part, counted in [(ids, False), (ids_between, False), (ids, True)]:
                count = counted
                _read(module, part, cache, 128)
    finally:
        for hook in hooks:
            hook.remove()
        module.set_attn_implementation(before)
    return torch.stack([most[i] for i in ours]).numpy()


# ---- what the model's queries usually are -----------------------------------------------------------------------------------


def _mean_and_covariance(moments: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Of count, sum and sum of products."""
    count, total, products = moments
    mean = total / count.clamp(min=1)
    return mean, products / count.clamp(min=1)[..., None] - mean[..., :, None] * mean[..., None, :]


def _usual_queries(policy: lagkv.Policy, statistics: Optional[Sequence[Tuple[Any, Any]]],
                   heads: Sequence[int]) -> List[Tuple[torch.Tensor, torch.Tensor]]:
    """Those of each compressed layer, which have so many query heads; none where none are given."""
    if statistics is None:
        return []
    if not policy.needs["query_statistics"]:
        raise lagkv.Error(f"query_statistics: policy {policy.text} reads none: must be one with expected_attention")
    try:
        pairs = [(_on_cpu(torch.as_tensor(mean)).float(), _on_cpu(torch.as_tensor(covariance)).float())
                 for mean, covariance in statistics]
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"query_statistics: must be, for each layer, a mean and a covariance ({e})") from e
    if len(pairs) != len(heads):
        raise lagkv.Error(f"query_statistics: {len(pairs)} layers: must be the {len(heads)} with full attention")
    for i, ((mean, covariance), own) in enumerate(zip(pairs, heads)):
        if mean.dim() != 2 or mean.shape[0] != own or covariance.shape != (*mean.shape, mean.shape[-1]):
            raise lagkv.Error(f"query_statistics: {list(mean.shape)} and {list(covariance.shape)} in layer {i}: must be [{own}, "
                              f"channels] and [{own}, channels, channels]")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise lagkv.Error(f"query_statistics: of layer {i}: must be finite")
    return pairs


@torch.no_grad()
def query_statistics(model: Any, tokens: Sequence[int], *, length: int = 2048) -> List[Tuple[Any, Any]]:
    """What the model's queries usually are before RoPE, once a model, for LagKVCache(query_statistics=): for each layer with full
    attention their mean, float32 [query heads, dim], and covariance, float32 [query heads, dim, dim].

    tokens: of texts such as the model will read, 8,192 or so; they are read as texts of `length` tokens, whose first 4 do not
    count. No dropout during the call. Cost: one reading, and dim products a query and channel. Source: ExpectedAttention (arXiv
    2510.00636).
    """
    module, ids = _model_that_reads(model), _indices("tokens", tokens)
    if length <= FIRST_QUERIES or len(ids) <= FIRST_QUERIES:
        raise lagkv.Error(f"length={length} of {len(ids)} tokens: must both be more than {FIRST_QUERIES}")
    sums: List[List[torch.Tensor]] = []
    with _without_dropout(module):
        for begin in range(0, len(ids), length):
            cache = LagKVCache("expected_attention:keep=1", module)
            _read(module, ids[begin:begin + length], cache, 512)
            ours = [layer for layer in cache.layers if isinstance(layer, CompressedLayer)]
            moments = [layer.moments for layer in ours if layer.moments is not None]
            sums = [[a + b for a, b in zip(x, y)] for x, y in zip(sums, moments)] if sums else moments
    usual = [_mean_and_covariance(moments) for moments in sums]
    return [(mean[0].float().cpu().numpy(), covariance[0].float().cpu().numpy()) for mean, covariance in usual]


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


def _model_of(model: Any) -> Optional[PreTrainedModel]:
    """The model of Transformers that this is or wraps (PEFT, torch.compile, DataParallel); None for a config."""
    if isinstance(model, torch.nn.Module):
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                return module
    elif isinstance(model, PreTrainedConfig):
        return None
    raise TypeError(f"model: must be a model of Transformers, or its config, not {type(model).__name__}")


def _attention_modules(model: torch.nn.Module) -> List[Any]:
    """Those that have a layer index and project queries."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and (hasattr(m, "q_proj") or hasattr(m, "qkv_proj"))]


def _pairs(model: PreTrainedModel) -> str:
    """Which channels the model's RoPE turns together; seen by turning the first channel a quarter turn."""
    module = _attention_modules(model)[0]
    rotation = _rotation_of(module)
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1
    for angles in (8, 4):  # some give each pair one angle
        try:
            turned = rotation(x, x, torch.zeros(1, 1, angles), torch.ones(1, 1, angles))[0].flatten()
            return "neighbours" if abs(float(turned[1])) > 0.5 else "halves"
        except (RuntimeError, TypeError, IndexError, ValueError):
            pass
    raise lagkv.Error(f"model: {type(module).__name__} rotates keys in a way that this cache does not know: the policy reads "
                      "keys as they were before RoPE")


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
    """Has every attention module show its mask and its queries to a LagKVCache, and the model its mask, once a model."""
    for module, hook in [(model, _before_model), *((m, _before_attention) for m in _attention_modules(model))]:
        if not getattr(module, "_lagkv_watched", False):
            module.register_forward_pre_hook(hook, with_kwargs=True)
            module._lagkv_watched = True


def _cache_of(kwargs: Dict[str, Any]) -> Optional[LagKVCache]:
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    return cache if isinstance(cache, LagKVCache) else None


def _before_model(model: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
    """Refuses padding where no attention module shows it."""
    cache, mask = _cache_of(kwargs), kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if cache is not None and not cache.sees_masks and isinstance(mask, torch.Tensor) and not bool((mask != 0).all()):
        raise lagkv.Error(f"attention_mask: hides tokens: must hide none for {type(model).__name__}, which has layers without "
                          "q_proj or qkv_proj, so that this cache cannot see their padding")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _before_attention(module: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Optional[Tuple[Any, Dict[str, Any]]]:
    cache = _cache_of(kwargs)
    if cache is None or module.layer_idx >= len(cache.layers):
        return None
    layer, given = cache.layers[module.layer_idx], kwargs.get("attention_mask")
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    if isinstance(layer, CompressedLayer):
        mask = layer.look_at(given, hidden.shape[0], hidden.shape[1], getattr(module, "config", None))
        if cache.reads_queries or not layer.trusted:
            _show(module, layer, hidden, kwargs.get("position_embeddings"))
    elif isinstance(layer, DummyLayer) and getattr(module, "layer_type", None) == "full_attention":
        mask = cache.hide(given, hidden.shape[1])  # it reads the keys and values of a compressed layer
    else:
        return None
    return None if mask is given else (args, {**kwargs, "attention_mask": mask})


class _Shown:
    """What an attention module has shown before its layer's update()."""

    module = ""
    before_rope: Optional[torch.Tensor] = None  # queries [batch, query heads, n, dim] of the newest tokens
    after_rope: Optional[torch.Tensor] = None
    keys: Optional[Tuple[torch.Tensor, torch.Tensor]] = None  # of a few of them, before and after RoPE
    scale: Optional[float] = None


@torch.no_grad()
def _show(module: Any, layer: CompressedLayer, hidden: torch.Tensor, cos_and_sin: Any) -> None:
    needs, shown = layer.policy.needs, _Shown()
    shown.module = f"{type(module).__name__} of layer {module.layer_idx}"
    try:
        cos, sin = cos_and_sin
        rotation = _rotation_of(module)
        if not layer.trusted:
            keys = _projected(module, "k", hidden[:, -KEYS_LOOKED_AT:])
            shown.keys = keys, rotation(keys, keys, cos[:, -KEYS_LOOKED_AT:], sin[:, -KEYS_LOOKED_AT:])[1]
        if layer.cache.reads_queries:
            n = hidden.shape[1]
            if not needs["accumulated_attention"] and not needs["query_statistics"]:  # the last ones are enough
                n = min(n, needs["queries"])
            shown.before_rope = _projected(module, "q", hidden[:, -n:])
            shown.after_rope = rotation(shown.before_rope, shown.before_rope, cos[:, -n:], sin[:, -n:])[0]
            shown.scale = getattr(module, "scaling", None)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as e:
        if layer.trusted or isinstance(e, (lagkv.Error, torch.OutOfMemoryError)):
            raise
        raise lagkv.Error(f"model: {shown.module}: its queries and keys are not q_proj and k_proj, a norm of each head and RoPE "
                          f"of the hidden states ({str(e).splitlines()[0]}): policy {layer.policy.text} cannot read them") from e
    layer.shown = shown


def _projected(module: Any, which: str, hidden: torch.Tensor) -> torch.Tensor:
    """The queries (q) or keys (k) [batch, heads, n, dim] before RoPE, as most models make them."""
    config, dim = module.config, module.head_dim
    queries, keys = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    heads = queries if which == "q" else keys
    if hasattr(module, "q_proj"):
        x = getattr(module, f"{which}_proj")(hidden)
    else:
        x = module.qkv_proj(hidden)
        if x.shape[-1] == (queries + 2 * keys) * dim:
            x = x.split([queries * dim, keys * dim, keys * dim], -1)[0 if which == "q" else 1]
    if x.shape[-1] != heads * dim:
        raise ValueError(f"{which}: {x.shape[-1]} numbers a token: must be those of {heads} heads x {dim}")
    norm = getattr(module, f"{which}_norm", None)
    x = x.unflatten(-1, (heads, dim))
    normed: torch.Tensor = norm(x) if norm is not None else x
    return normed.transpose(1, 2)


def _before_rope(keys: torch.Tensor, positions: torch.Tensor, rope: lagkv.Rope) -> torch.Tensor:
    """Keys [batch, heads, n, dim] of positions [batch, n] turned back, in double, as the library does."""
    dims = rope.dims or keys.shape[-1]
    frequencies = rope.base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims) * rope.position_scale
    if rope.factors:
        frequencies = frequencies / torch.tensor(rope.factors, dtype=torch.float64)
    angles = positions.double()[:, None, :, None] * frequencies
    halves = rope.pairs == "halves"
    a, b = (slice(0, dims // 2), slice(dims // 2, dims)) if halves else (slice(0, dims, 2), slice(1, dims, 2))
    out = keys.cpu().double().clone()
    x, y, cos, sin = out[..., a].clone(), out[..., b].clone(), angles.cos(), angles.sin()
    out[..., a], out[..., b] = x * cos + y * sin, y * cos - x * sin
    return out.to(keys.device)


def _difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """The norm of what x and y differ by but for a common factor (YaRN has one), of the norm of x."""
    if x.shape != y.shape:
        return 1.0
    x, y = x.cpu().double(), y.cpu().double()
    factor = (x * y).sum() / (y * y).sum().clamp(min=1e-300)
    return float((x - factor * y).norm() / x.norm().clamp(min=1e-300))
