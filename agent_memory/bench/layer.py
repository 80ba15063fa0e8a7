"""One attention layer of an 8B-shaped model over a long history: recall against dense attention, certified recall against matmul and topk.

Knows the engine's own step on made-up keys, and torch's attention. Made-up keys say how long things take, not what is found: that is
measured on real keys (``quality``), with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agent_memory_kernels import operations

from ..attention.methods import Method, Sizes, make_method
from ..attention.selectors import RecallSelector
from ..attention.selectors.recall import RecallRule
from ..attention.selectors.recall.certified import Certified
from ..attention.selectors.recall.votes import Choice, Votes
from ..attention.shares import AttentionShares
from ..made_up import LayerShape, MadeUpLayer
from ..types import BLOCK_TOKENS
from .compare import Progress, Ratio, compare

HEADS, KV_HEADS, DIM = 32, 8, 128
"""One layer of Llama-3.1-8B."""

SIZES = Sizes(sink=32, recalled=1024, local=464, group=16)
ALONE = RecallRule(blocks=SIZES.recalled // BLOCK_TOKENS, echo=0.0)
"""Each query chooses for itself: what a model without tuned echo needs."""


def long_layer(tokens: int, dtype: torch.dtype, rule: RecallRule, alike: float = 1.5) -> MadeUpLayer:
    """The layer after so many tokens."""
    method = Method("recall", SIZES, RecallSelector(rule, operations()))
    return MadeUpLayer(LayerShape(HEADS, KV_HEADS, DIM, dtype), method, tokens, alike)


WINDOWS = (8_192, 131_072)
"""Trained windows of models of this shape, Llama-3-8B and Llama-3.1-8B: a memory that fits is scored at true distances throughout."""


def layer_by_mass(tokens: int, dtype: torch.dtype, window: int) -> MadeUpLayer:
    """The layer after so many tokens, with the default rule."""
    return MadeUpLayer(LayerShape(HEADS, KV_HEADS, DIM, dtype), make_method("recall", window), tokens)


def attention_layer(lengths: tuple[int, ...], progress: Progress, dtype: torch.dtype = torch.bfloat16) -> Iterator[Ratio]:
    """R1: a decode step of the layer, recall against dense attention in torch's best form and in the form most people run; by the best
    key of each Block, and by attention mass, the default of language models."""
    shape: dict[str, Any] = {"dtype": str(dtype), "query_heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
    for tokens, target in zip(lengths, ("4x", "15x"), strict=False):
        for label, rule in (("", ALONE), (", echo", replace(ALONE, echo=RecallRule(blocks=1).echo))):
            progress(f"R1: one layer over {tokens:,} tokens")
            layer = long_layer(tokens, dtype, rule)
            packed, as_used = dense(tokens, dtype)
            settings = shape | {"tokens": tokens, "recalled": SIZES.recalled, "local": SIZES.local, "scan": rule.scan, "echo": rule.echo}
            yield compare(f"R1 layer {tokens:,}{label}", layer.decode, packed, settings, target="" if label else target)
            if not label:
                yield compare(f"R1 layer {tokens:,} as used", layer.decode, as_used, settings, target="30x" if tokens > 100_000 else "")
        for window in WINDOWS:
            progress(f"R1: one layer over {tokens:,} tokens, by mass, window {window:,}")
            layer, packed = layer_by_mass(tokens, dtype, window), dense(tokens, dtype)[0]
            settings = shape | {"tokens": tokens, "window": window, "attended": layer.method.attended}
            yield compare(f"R1 layer {tokens:,}, mass, window {window:,}", layer.decode, packed, settings, target=target)


def summed_attention(tokens: int, progress: Progress, dtype: torch.dtype = torch.bfloat16) -> Iterator[Ratio]:
    """A decode step of the layer that adds up its attention, against the same step without."""
    progress(f"attention shares: one layer over {tokens:,} tokens")
    layer = long_layer(tokens, dtype, ALONE)
    shares = AttentionShares(tokens, torch.device("cpu"))
    detail = {
        "tokens": tokens,
        "attended": SIZES.attended,
        "dtype": str(dtype),
        "query_heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": DIM,
    }
    name = f"attention shares, layer {tokens:,}"
    yield compare(name, lambda: layer.decode(shares), layer.decode, detail, growth=True, rounds=60)


def dense(tokens: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Attention of one query over everything: grouped queries packed as rows over a cache that is there; and as most code runs it,
    growing the cache by concatenation and letting torch repeat the key heads."""
    keys, values = (torch.randn((1, KV_HEADS, tokens, DIM)).to(dtype) for _ in range(2))
    query = torch.randn((1, HEADS, 1, DIM)).to(dtype)
    attend = torch.nn.functional.scaled_dot_product_attention

    def packed() -> Tensor:
        return attend(query.reshape(1, KV_HEADS, HEADS // KV_HEADS, DIM), keys, values)

    def as_used() -> Tensor:
        k = torch.cat([keys, keys[:, :, :1]], dim=2)
        v = torch.cat([values, values[:, :, :1]], dim=2)
        return attend(query, k, v, enable_gqa=True)

    return packed, as_used


class LongProof:
    """Certified recall over made-up keys, and the same by products with every key."""

    def __init__(self, tokens: int, blocks: int) -> None:
        rule = RecallRule(blocks=blocks, scan="certified", vote="max", scope="kv_head", pool=False)
        self._layer = long_layer(tokens, torch.float32, rule, alike=0.0)
        part, self._blocks = self._layer.kv.layers[0], blocks
        if part.summary is None:
            raise RuntimeError("this layer keeps no summaries")
        every = torch.arange(tokens // BLOCK_TOKENS)
        self._keys = part.read_keys(every)[0].transpose(0, 1).flatten(1, 2).contiguous()
        self._proof = Certified(Votes(rule, operations()), part.summary, part.read_keys, DIM**-0.5)
        self._candidates = torch.ones((1, len(every)), dtype=torch.bool)
        self.ask()

    def ask(self) -> None:
        """Other queries from now on."""
        self._queries = torch.randn((1, KV_HEADS, HEADS // KV_HEADS, DIM), generator=self._layer.generator) * 2

    def ours(self) -> Choice:
        """The best Blocks of each KV head, proven."""
        return self._proof.choose(self._queries, HEADS // KV_HEADS, self._candidates)

    def baseline(self) -> Tensor:
        """The same Blocks by products with every key, int64 ``[Hk, blocks]`` in descending order of their best key."""
        scores = torch.matmul(self._queries[0], self._keys.transpose(1, 2))
        best: Tensor = scores.unflatten(2, (-1, BLOCK_TOKENS)).amax((1, 3)).topk(self._blocks).indices
        return best


def certified_recall(tokens: int, progress: Progress, blocks: int = 64, questions: int = 10) -> Iterator[Ratio]:
    """R2: the exact best Blocks of each KV head, proven from 8-bit keys, against products with every key and topk; the same sets."""
    progress(f"R2: certified recall over {tokens:,} tokens")
    proof = LongProof(tokens, blocks)
    same, rescored = 0, 0
    for _ in range(questions):
        proof.ask()
        choice = proof.ours()
        same += int(choice.proven and torch.equal(choice.blocks[0], proof.baseline().sort(-1).values))
        rescored += choice.rescored
    detail = {"tokens": tokens, "blocks": blocks, "identical_sets": f"{same} of {questions}", "blocks_rescored": rescored / questions}
    yield compare(f"R2 certified recall {tokens:,}", proof.ours, proof.baseline, detail, target="4x")
