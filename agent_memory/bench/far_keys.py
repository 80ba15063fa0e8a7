"""What it costs to choose by attention mass as the memory grows, on one layer of SmolLM2's shape with made-up keys.

Knows the engine's own step; keys that are made up say how long things take and how many are looked at, not what is found.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..attention.methods import make_method
from ..attention.selectors import MassSelector
from ..made_up import LayerShape, MadeUpLayer
from ..types import BLOCK_TOKENS
from .compare import Progress, Ratio, compare, counted

SHAPE = LayerShape(9, 3, 64)
"""A layer of SmolLM2-135M, in fp32."""

WINDOW = 8192
"""Its trained window."""

PREFILLED = 256
"""Tokens of a forward."""


def layer_of(tokens: int, spec: str = "recall") -> MadeUpLayer:
    """The layer after so many tokens."""
    return MadeUpLayer(SHAPE, make_method(spec, WINDOW), tokens)


def bytes_to_choose(layer: MadeUpLayer) -> float:
    """Bytes that a decoded token reads to choose, for each KV head: 8-bit keys with a step a Block; of clusters 8-bit centres with their
    steps, spreads and sizes, and of those it looks into, room for keys that are not there included, 8-bit keys with a step and a token
    each."""
    before = layer.trace.keys_scored
    layer.decode()
    scored, clusters = (layer.trace.keys_scored - before) / SHAPE.kv_heads, layer.kv.layers[0].clusters
    a_key, selector = SHAPE.head_dim + 4 / BLOCK_TOKENS, layer.method.selector
    every = scored > layer.kv.length - (layer.method.attended or 0)  # all that are not attended anyway
    if clusters is None or every or not isinstance(selector, MassSelector):
        return scored * a_key
    config, centres = selector.config, sum(len(head) for head in clusters.heads) / SHAPE.kv_heads
    looked_into = config.looked_into(clusters.most) * config.cluster_tokens * (SHAPE.head_dim + 8)
    late = layer.kv.length - clusters.blocks * BLOCK_TOKENS
    return centres * (SHAPE.head_dim + 16) + looked_into + late * a_key


def growth(lengths: tuple[int, int, int, int], progress: Progress) -> Iterator[Ratio]:
    """R10 of one layer: what a token reads, decodes and prefills over a long memory, against shorter ones."""
    window, double, middle, long = lengths
    progress("R10: layers are filled")
    layers = {tokens: layer_of(tokens) for tokens in lengths}
    read = {tokens: bytes_to_choose(layer) for tokens, layer in layers.items()}
    detail = {
        "query_heads": SHAPE.query_heads,
        "kv_heads": SHAPE.kv_heads,
        "head_dim": SHAPE.head_dim,
        "window": WINDOW,
        "method": "recall",
    }
    name = f"R10 layer, bytes to choose at {long:,} against {double:,}"
    yield counted(name, read[long], read[double], detail, target="at most 2x", unit="B", growth=True)
    progress("R10: one layer decodes")
    name = f"R10 layer, decode at {long:,} against {window:,}"
    yield compare(name, layers[long].decode, layers[window].decode, detail, target="at most 1.5x", growth=True, rounds=40)
    progress("R10: one layer prefills")
    less = window * 3 // 4
    name, short = f"R10 layer, prefill at {middle:,} against {less:,}", layer_of(less)
    ours, baseline = (lambda layer=layer: layer.prefill(PREFILLED) for layer in (layers[middle], short))
    yield compare(name, ours, baseline, detail, target="at most 1.67x", growth=True)


def against_every_key(tokens: int, progress: Progress) -> Iterator[Ratio]:
    """A step that looks far keys up, against one that scores every key."""
    progress(f"far keys: one layer over {tokens:,} tokens")
    ours, every = layer_of(tokens), layer_of(tokens, "recall:probes=0")
    detail = {"tokens": tokens, "bytes": bytes_to_choose(ours), "bytes_of_every_key": bytes_to_choose(every)}
    yield compare(f"far keys, decode at {tokens:,}", ours.decode, every.decode, detail, rounds=20)
    yield compare(f"far keys, prefill at {tokens:,}", lambda: ours.prefill(PREFILLED), lambda: every.prefill(PREFILLED), detail)
