"""lagkv's kernels as presses of kvpress (NVIDIA/kvpress, 0.5.5): in the place of a press, with the same arguments.

    from lagkv.kvpress import Press, like

    press = like(SnapKVPress(compression_ratio=0.5))    # the same scores and budget, by lagkv
    press = Press("novelty:keep=0.25")                  # any policy of lagkv's
    with press(model):
        ...

A press of kvpress compresses once, after the prompt. Keys and values are compressed in place.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple, Union

import kvpress
import numpy
import torch
from kvpress.utils import get_prerope_query_states

import lagkv

__all__ = ["Press", "like"]


class Press(kvpress.BasePress):
    """A press that drops what a policy drops. policy: a lagkv.Policy or a string, of a share (keep, ratio). rope: for policies
    that read keys as they were before RoPE. future: positions to come that expected_attention looks at. threads: that share the
    heads.

    Raises lagkv.Error for policies under which heads keep different numbers of rows (select=adaptive, select=by_head).
    """

    def __init__(self, policy: Union[lagkv.Policy, str], *, rope: Optional[lagkv.Rope] = None,
                 future: int = lagkv.expected_queries, threads: int = 1) -> None:
        self.policy = policy if isinstance(policy, lagkv.Policy) else lagkv.parse(policy)
        self.rope, self.future = rope, future
        self.workspace = lagkv.Workspace(threads)

    def compress(self, module: Any, hidden_states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                 attentions: Optional[torch.Tensor], kwargs: Dict[str, Any]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, heads, rows, dim]: views of the first rows of those given, which are compressed in place."""
        offers = self.offers(module, hidden_states, attentions, kwargs)
        if keys.device.type == "cpu":
            tokens = lagkv.compress(self.policy, keys, values, lagkv.Cursor(), workspace=self.workspace, **offers)
            return keys[..., :tokens, :], values[..., :tokens, :]
        plans = lagkv.plan_eviction(self.policy, keys.cpu(), values.cpu(), workspace=self.workspace, **offers)
        if not plans[0]:
            return keys, values
        index = torch.from_numpy(numpy.stack([[p.rows(h) for h in range(p.heads)] for p in plans])).to(keys.device)[..., None]
        return (keys.gather(2, index.expand(-1, -1, -1, keys.shape[-1])),
                values.gather(2, index.expand(-1, -1, -1, values.shape[-1])))

    def offers(self, module: Any, hidden_states: torch.Tensor, attentions: Optional[torch.Tensor],
               kwargs: Dict[str, Any]) -> Dict[str, Any]:
        """What the policy reads beside keys and values."""
        needs = self.policy.needs
        offers: Dict[str, Any] = {"rope": self.rope} if needs["rope"] else {}
        if needs["queries"] or needs["accumulated_attention"]:
            last = hidden_states.shape[1] if needs["accumulated_attention"] else needs["queries"]
            if attentions is not None:
                offers["weights"] = attentions[..., -last:, :].detach().cpu()
            else:
                cos, sin = (x[:, -last:].unsqueeze(1) for x in kwargs["position_embeddings"])
                q = get_prerope_query_states(module, hidden_states[:, -last:])
                half = q.shape[-1] // 2
                turned = torch.cat([-q[..., half:], q[..., :half]], -1)
                offers["queries"] = (q * cos + turned * sin).detach().cpu()
        if needs["query_statistics"]:
            if self.rope is None:
                raise lagkv.Error("rope: is missing: the policy moves the statistics of queries to positions to come")
            q = get_prerope_query_states(module, hidden_states[:, 4:]).detach()
            mean = q.mean(2)
            centred = q - mean[:, :, None]
            covariance = centred.transpose(-1, -2) @ centred / q.shape[2]
            moved = [lagkv.moved(m.float().cpu(), c.float().cpu(), self.rope, hidden_states.shape[1], self.future)
                     for m, c in zip(mean, covariance)]
            offers["query_mean"] = numpy.stack([m[0] for m in moved])
            offers["query_covariance"] = numpy.stack([m[1] for m in moved])
        return offers


def like(press: Any, *, rope: Optional[lagkv.Rope] = None, threads: int = 1) -> Press:
    """The press that keeps what a press of kvpress keeps: LagKV, Knorm, KeyDiff, SnapKV, TOVA, StreamingLLM, ObservedAttention,
    CUR (with sinks that are whole windows), ExpectedAttention (rope=), and ChunkKV over one of them.

    Raises lagkv.Error for others.
    """
    future = getattr(press, "n_future_positions", lagkv.expected_queries)
    return Press(policy_like(press), rope=rope, future=future, threads=threads)


def policy_like(press: Any) -> str:
    """The policy of like(), as text."""
    name = type(press).__name__
    keep = repr(1 - press.compression_ratio)
    if name == "ChunkKVPress":
        return f"{policy_like(press.press)},select=chunks,chunk={press.chunk_length}"
    if name == "LagKVPress":
        form = "kvpress_cross" if press.cross_scoring else "kvpress"
        return f"lagkv:form={form},sink={press.n_sink},lag={press.lag_size},ratio={keep}"
    if name == "KnormPress":
        return f"key_norm:sink=0,recent=0,keep={keep}"
    if name == "KeyDiffPress":
        return f"key_diff:sink=0,recent=0,keep={keep}"
    if name == "SnapKVPress":
        return f"snapkv:window={press.window_size},kernel={press.kernel_size},sink=0,keep={keep}"
    if name == "TOVAPress":
        return f"tova:sink=0,keep={keep}"
    if name == "StreamingLLMPress":
        return f"streaming_llm:sink={press.n_sink},keep={keep}"
    if name == "ObservedAttentionPress":
        return f"h2o:form=mean,sink=0,recent=0,recent_share=0,keep={keep}"
    if name == "CURPress":
        local = press.use_local_approximation and not press.use_random_leverage and press.leverage_type == "kv_product"
        if not local or press.num_sinks % press.local_window_size:
            raise lagkv.Error("CURPress: must have kv_product, local windows and no random leverage, and num_sinks a multiple of "
                              "local_window_size")
        return f"cur:window={press.local_window_size},sink={press.num_sinks},recent=0,keep={keep}"
    if name == "ExpectedAttentionPress":
        yes = {True: "yes", False: "no"}
        return (f"expected_attention:covariance={yes[press.use_covariance]},values={yes[press.use_vnorm]},"
                f"epsilon={press.epsilon},sink={press.n_sink},recent=0,keep={keep}")
    raise lagkv.Error(f"{name}: must be one of LagKV, Knorm, KeyDiff, SnapKV, TOVA, StreamingLLM, ObservedAttention, CUR, "
                      "ExpectedAttention, ChunkKV")
