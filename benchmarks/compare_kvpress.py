#!/usr/bin/env python3
"""kvpress's presses beside the same methods on lagkv's kernels, in one process: what they keep, and the time of the press alone.

  pip install . torch==2.13.0 transformers==5.24.0 accelerate && pip install --no-deps kvpress==0.5.5
  pip install cachetools datasets fire                             (what kvpress imports)
  python benchmarks/compare_kvpress.py [--tokens 4096,16384] [--threads 1] [--ratio 0.5]

A layer of the size of Llama 3.1 8B (32 query heads, 8 KV heads, 128 channels, f32) with random weights; keys and values have
channels of different scale and offset, as real ones do. Both sides get fresh copies, which are not timed, and queries whose
projection (q_proj) has been computed before. Prints a table in Markdown. "same": share of the rows that kvpress keeps that lagkv
keeps too (where kvpress keeps more than the budget: of as many as the budget).
"""

import argparse
import os
import statistics
import sys
import time

import kvpress
import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

import lagkv
from lagkv.kvpress import like


def presses(ratio):
    """Each with the arguments that make it the same as ours."""
    removed = {"compression_ratio": 1 - ratio}
    return [kvpress.LagKVPress(**removed, cross_scoring=True), kvpress.LagKVPress(**removed), kvpress.KnormPress(**removed),
            kvpress.KeyDiffPress(**removed), kvpress.CURPress(**removed, num_sinks=16), kvpress.StreamingLLMPress(**removed),
            kvpress.SnapKVPress(**removed), kvpress.TOVAPress(**removed), kvpress.ExpectedAttentionPress(**removed),
            kvpress.ObservedAttentionPress(**removed), kvpress.ChunkKVPress(kvpress.KnormPress(**removed))]


def name_of(press):
    name = type(press).__name__
    if name == "LagKVPress":
        return name + (", cross_scoring" if press.cross_scoring else "")
    return name + (f" of {type(press.press).__name__}" if name == "ChunkKVPress" else "")


def channels_of_all_sizes(generator, *shape):
    x = torch.randn(shape, generator=generator)
    scale = torch.randn(shape[:2] + (1, shape[-1]), generator=generator).exp()
    return x * scale + 2 * torch.randn(shape[:2] + (1, shape[-1]), generator=generator)


class Projected(torch.nn.Module):
    """q_proj of the last tokens, computed before."""

    def __init__(self, projection, hidden):
        super().__init__()
        self.out = projection(hidden)

    def forward(self, hidden):
        return self.out[:, -hidden.shape[1]:]


class Layer:
    """What a press is given."""

    def __init__(self, heads, kv_heads, dim, tokens):
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        config = LlamaConfig(hidden_size=heads * dim, num_attention_heads=heads, num_key_value_heads=kv_heads,
                             num_hidden_layers=1, max_position_embeddings=1 << 17)
        self.module = LlamaAttention(config, 0)
        self.module.rotary_emb = LlamaRotaryEmbedding(config)
        self.hidden = torch.randn(1, tokens, heads * dim, generator=generator)
        self.module.q_proj = Projected(self.module.q_proj, self.hidden)
        self.kwargs = {"position_embeddings": self.module.rotary_emb(self.hidden, torch.arange(tokens)[None])}
        self.keys = channels_of_all_sizes(generator, 1, kv_heads, tokens, dim)
        self.values = channels_of_all_sizes(generator, 1, kv_heads, tokens, dim)
        self.rope = lagkv.Rope(config.rope_parameters["rope_theta"], pairs="halves")
        self.heads = heads

    def attention(self):
        """Weights [1, heads, tokens, tokens] of random queries."""
        tokens, dim = self.keys.shape[2:]
        queries = torch.randn(1, self.heads, tokens, dim, generator=torch.Generator().manual_seed(3))
        logits = queries @ self.keys.repeat_interleave(self.heads // self.keys.shape[1], 1).transpose(2, 3) / dim ** 0.5
        return logits.masked_fill_(~torch.ones(tokens, tokens).tril().bool(), float("-inf")).softmax(-1)


def kept_by_kvpress(press, layer, attentions):
    """Rows [heads, kept]."""
    if isinstance(press, kvpress.ChunkKVPress):  # has no scores of its own; the rows are found again by their keys
        keys, _ = press.compress(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), attentions, layer.kwargs)
        return torch.stack([(keys[0, h][:, None, :8] == layer.keys[0, h][None, :, :8]).all(-1).int().argmax(-1)
                            for h in range(keys.shape[1])]).sort(-1).values
    scores = press.score(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), attentions, layer.kwargs)
    n = kvpress.utils.compute_n_kept(layer.keys.shape[2], press.compression_ratio)
    return scores.topk(n, dim=-1).indices[0].sort(-1).values


def kept_by_lagkv(press, layer, attentions):
    offers = press.offers(layer.module, layer.hidden, attentions, layer.kwargs)
    plan = lagkv.plan_eviction(press.policy, layer.keys[0], layer.values[0],
                               **{n: x[0] if hasattr(x, "shape") else x for n, x in offers.items()})
    return torch.from_numpy(np.stack([plan.rows(h) for h in range(plan.heads)]))


def timed(press, layer, attentions, repeats):
    times = []
    for i in range(repeats + 1):
        keys, values = layer.keys.clone(), layer.values.clone()
        begin = time.perf_counter()
        press.compress(layer.module, layer.hidden, keys, values, attentions, layer.kwargs)
        if i:
            times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tokens", default="4096,16384")
    a.add_argument("--attention-tokens", type=int, default=2048, help="for ObservedAttentionPress, which reads the whole matrix")
    a.add_argument("--heads", type=int, default=32)
    a.add_argument("--kv-heads", type=int, default=8)
    a.add_argument("--dim", type=int, default=128)
    a.add_argument("--ratio", type=float, default=0.5, help="share that stays")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--repeats", type=int, default=5)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    print(f"{o.heads} query heads, {o.kv_heads} KV heads, {o.dim} channels, f32; {o.ratio:.0%} of the rows stay; threads: "
          f"{o.threads} of {os.cpu_count()} cores; PyTorch {torch.__version__}, {lagkv.Workspace().target}\n")
    print("| press | tokens | same | kvpress, ms | lagkv, ms | times |\n|---|---|---|---|---|---|")
    wrong = 0
    with torch.no_grad():
        # The press that reads the whole matrix by itself, at its own number of tokens, which may be one of the others'.
        for tokens, reads_all in [(int(n), False) for n in o.tokens.split(",")] + [(o.attention_tokens, True)]:
            layer = Layer(o.heads, o.kv_heads, o.dim, tokens)
            for theirs in presses(o.ratio):
                if isinstance(theirs, kvpress.ObservedAttentionPress) != reads_all:
                    continue
                attentions = layer.attention() if reads_all else None
                ours = like(theirs, rope=layer.rope, threads=o.threads)
                x, y = kept_by_kvpress(theirs, layer, attentions), kept_by_lagkv(ours, layer, attentions)
                same = np.mean([len(np.intersect1d(p, q)) / min(len(p), len(q)) for p, q in zip(x, y)])
                by_rank = isinstance(theirs, kvpress.LagKVPress) and not theirs.cross_scoring  # ties between partitions
                in_chunks = isinstance(theirs, kvpress.ChunkKVPress)  # whole chunks alone: a few rows more or less than lagkv
                wrong += (x.shape != y.shape and not in_chunks) or (same < 0.999 and not by_rank)
                before, after = timed(theirs, layer, attentions, o.repeats), timed(ours, layer, attentions, o.repeats)
                print(f"| `{name_of(theirs)}` | {tokens:,} | {same:.2%} | {before:.1f} | {after:.1f} | {before / after:.1f} |",
                      flush=True)
    if wrong:
        sys.exit(f"{wrong} presses keep other rows")


if __name__ == "__main__":
    main()
