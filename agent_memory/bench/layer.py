"""One attention layer of an 8B-shaped model over a long history: recall against dense attention, certified recall against matmul and topk.

Knows the engine's own step on made-up keys, and torch's attention. Made-up keys say how long things take, not what is found: that is
measured on real keys (``quality``), with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_memory_kernels import operations

from ..attention.methods import Method, Sizes
from ..attention.region import LayerRule
from ..attention.selectors import RecallSelector
from ..attention.selectors.recall import RecallRule
from ..attention.selectors.recall.certified import Certified
from ..attention.selectors.recall.votes import Choice, Votes
from ..attention.step import MemoryStep, RecentQueries
from ..attention.trace import Trace
from ..memory.cache import TieredCache
from ..memory.layer_kv import KVPlan
from ..memory.session_kv import SessionKV
from ..model.rope import half_rotation
from ..types import BLOCK_TOKENS, Budget, KVLayout
from .compare import Progress, Ratio, compare

HEADS, KV_HEADS, DIM = 32, 8, 128
"""One layer of Llama-3.1-8B."""

SIZES = Sizes(sink=32, recalled=1024, local=464, group=16)
ALONE = RecallRule(blocks=SIZES.recalled // BLOCK_TOKENS, echo=0.0)
"""Each query chooses for itself: what a model without tuned echo needs."""


class _NoDisk:
    def read_kv(self, layer: int, blocks: np.ndarray, out: Tensor) -> np.ndarray:
        raise RuntimeError("everything is in memory")


class _Rotary:
    """Llama's rotary embedding, base 500,000, applied as the attached model does."""

    def __init__(self, longest: int, dtype: torch.dtype) -> None:
        inverse = 500_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
        angles = torch.outer(torch.arange(longest), inverse)
        both = torch.cat([angles, angles], dim=-1)
        self._cos, self._sin = both.cos()[None].to(dtype), both.sin()[None].to(dtype)

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos[:, positions], self._sin[:, positions]

    def table(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        return self._cos[:, :n], self._sin[:, :n]

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return half_rotation(x, cos, sin)


class LongLayer:
    """A Session of one layer that holds ``tokens`` made-up tokens.

    Keys are of a thousand kinds, ``alike`` times as far apart as the noise within one; 0 leaves the noise alone.
    """

    def __init__(self, tokens: int, dtype: torch.dtype, rule: RecallRule, alike: float = 1.5, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.kinds = dtype, alike * torch.randn((KV_HEADS, 1024, DIM), generator=self.generator)
        self.method = Method("recall", SIZES, RecallSelector(rule, operations()))
        layout = KVLayout((KV_HEADS,), (DIM,), str(dtype).removeprefix("torch."))
        bytes_of = 2 * KV_HEADS * DIM * dtype.itemsize * (tokens + 16_384)
        cache = TieredCache(layout, Budget(device=bytes_of), min_blocks=256, unsaved_blocks=256)
        plan = KVPlan(SIZES.sink, SIZES.attended + 1024, (True,), self.method.selector.keeps, SIZES.attended)
        self.kv = SessionKV(layout, plan, cache, _NoDisk())
        self.rotary, self.recent, self.trace = _Rotary(SIZES.attended + 64, dtype), RecentQueries(), Trace()
        for at in range(0, tokens, 2048):
            self.kv.append(0, *self.made(min(2048, tokens - at)))

    def made(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, count, d]``."""
        which = torch.randint(1024, (KV_HEADS, count, 1), generator=self.generator).expand(-1, -1, DIM)
        keys = self.kinds.gather(1, which) + torch.randn((KV_HEADS, count, DIM), generator=self.generator)
        return keys.to(self.dtype), torch.randn((KV_HEADS, count, DIM), generator=self.generator).to(self.dtype)

    def decode(self) -> Tensor:
        """Append one token and attend to it: ``[1, H, d]``."""
        start = self.kv.length
        step = MemoryStep(self.kv, self.method, self.rotary, operations(), (start, start + 1), self.recent, self.trace)
        q = torch.randn((HEADS, 1, DIM), generator=self.generator).to(self.dtype)
        return step.attend(LayerRule(0, DIM**-0.5), q, *self.made(1))


def attention_layer(lengths: tuple[int, ...], progress: Progress, dtype: torch.dtype = torch.bfloat16) -> Iterator[Ratio]:
    """R1: a decode step of the layer, recall against dense attention in torch's best form and in the form most people run."""
    for tokens, target in zip(lengths, ("4x", "15x"), strict=False):
        for label, rule in (("", ALONE), (", echo", replace(ALONE, echo=RecallRule(blocks=1).echo))):
            progress(f"R1: one layer over {tokens:,} tokens")
            layer = LongLayer(tokens, dtype, rule)
            packed, as_used = dense(tokens, dtype)
            shape: dict[str, Any] = {"tokens": tokens, "dtype": str(dtype), "query_heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
            settings = shape | {"recalled": SIZES.recalled, "local": SIZES.local, "scan": rule.scan, "echo": rule.echo}
            yield compare(f"R1 layer {tokens:,}{label}", layer.decode, packed, settings, target="" if label else target)
            if not label:
                yield compare(f"R1 layer {tokens:,} as used", layer.decode, as_used, settings, target="30x" if tokens > 100_000 else "")


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
        self._layer = LongLayer(tokens, torch.float32, rule, alike=0.0)
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
