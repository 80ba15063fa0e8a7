"""Position maps by their formulas: every logit from its own pair (i, j) in float64, one softmax, no regions and no code under test.

Rotation only knows differences: a query at phi and a key at psi give ``(a . b) cos + (a x b) sin`` of ``(phi - psi) * frequency``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

TILE = 64
"""Rows of the dense forward at a time, so that a tile stays in the cache of a CPU."""

Place = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Map:
    """Where query i and key j stand for each other, ``place(i, j) -> (phi, psi)``, and the window that tau counts from (None: 1)."""

    place: Place
    log_n: int | None = None

    def relative(self, i: Tensor, j: Tensor) -> Tensor:
        """phi - psi of int64 ``i`` and ``j``, broadcast, in float64."""
        phi, psi = self.place(i, j)
        return phi.double() - psi.double()

    def tau(self, i: Tensor) -> Tensor:
        """Logit factor of query ``i``: ``max(1, ln(i + 1) / ln(window))``."""
        if self.log_n is None:
            return torch.ones_like(i, dtype=torch.float64)
        return ((i + 1).double().log() / math.log(self.log_n)).clamp(min=1.0)


def near_and_far(border: int, far: Place, log_n: int | None = None) -> Map:
    """(i, j) while ``i - j < border``, then ``far``."""

    def place(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        phi, psi = far(i, j)
        near = i - j < border
        return torch.where(near, i.double(), phi.double()), torch.where(near, j.double(), psi.double())

    return Map(place, log_n)


def full() -> Map:
    """Plain rotary attention."""
    return Map(lambda i, j: (i, j))


def rerope(w: int, log_n: int | None = None) -> Map:
    """D >= w: (w, 0)."""
    return near_and_far(w, lambda i, j: (torch.full_like(i, w), torch.zeros_like(j)), log_n)


def leaky_rerope(w: int, k: int, log_n: int | None = None) -> Map:
    """D >= w: ((i + w(k - 1)) / k, j / k), real numbers."""
    return near_and_far(w, lambda i, j: ((i + w * (k - 1)).double() / k, j.double() / k), log_n)


def self_extend(neighbours: int, group: int, log_n: int | None = None) -> Map:
    """D >= W: (i // G + W - W // G, j // G)."""
    shift = neighbours - neighbours // group
    return near_and_far(neighbours, lambda i, j: (i // group + shift, j // group), log_n)


def string(shift: int, window: int) -> Map:
    """D >= S: (i - S + W, j)."""
    return near_and_far(shift, lambda i, j: (i - shift + window, j))


def infllm(n: int) -> Map:
    """D >= n: (n - 1, 0)."""
    return near_and_far(n, lambda i, j: (torch.full_like(i, n - 1), torch.zeros_like(j)))


def dca(chunk: int, cap: int) -> Map:
    """Keys at j mod s; queries at i mod s for their own chunk, min(i mod s + s, cap) for the one before, cap for older ones."""

    def place(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        gap = i // chunk - j // chunk
        before = (i % chunk + chunk).clamp(max=cap)
        phi = torch.where(gap == 0, i % chunk, torch.where(gap == 1, before, torch.full_like(before, cap)))
        return phi, j % chunk

    return Map(place)


WINDOW = 256
"""Trained window that the methods of ``MAPS`` are made for."""

MAPS = {
    "full": full(),
    "rerope": rerope(128, WINDOW),
    "rerope:window=16:log_n=false": rerope(16),
    "leaky_rerope": leaky_rerope(128, 16, WINDOW),
    "leaky_rerope:window=24:factor=4:log_n=false": leaky_rerope(24, 4),
    "self_extend:neighbours=24:group=4": self_extend(24, 4),
    "self_extend:neighbours=40:group=8:log_n=true": self_extend(40, 8, WINDOW),
    "dca": dca(192, 255),
    "dca-code": dca(160, 192),
    "dca:chunk=20:cap=30": dca(20, 30),
    "string:shift=30:window=8": string(30, 8),
}
"""What each name means, written out with the numbers that the formulas give for the window."""

FAR = [name for name in MAPS if name != "full"]


def frequencies(dim: int, theta: float = 10000.0) -> Tensor:
    """Angle of each pair of dimensions at position 1, ``[dim / 2]``."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _products(queries: Tensor, keys: Tensor, relative: Tensor, omega: Tensor) -> Tensor:
    """Products ``[G, H, T, n]`` of rotated queries ``[G, H, T, d]`` and keys ``[G, H, n, d]`` at distances ``[G, 1 or H, T, n]``."""
    half = queries.shape[-1] // 2
    total = torch.zeros((*queries.shape[:3], keys.shape[2]), dtype=torch.float64)
    for f, frequency in enumerate(omega.tolist()):
        a, b = queries[..., [f, f + half]], keys[..., [f, f + half]]
        angle = relative * frequency
        total.addcmul_(angle.cos(), a @ b.transpose(-1, -2))
        turned = torch.stack([b[..., 1], -b[..., 0]], dim=-1)
        total.addcmul_(angle.sin(), a @ turned.transpose(-1, -2))
    return total


@dataclass(frozen=True)
class Rule:
    """What else a layer does to its logits."""

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None


def weights(queries: Tensor, keys: Tensor, tokens: Tensor, asked: Tensor, how: Map, rule: Rule) -> Tensor:
    """Share of each key in each query, by one softmax over all of them.

    Args:
        queries: ``[G, H, T, d]``.
        keys: ``[G, Hk, n, d]``; query head ``h`` has KV head ``h // (H / Hk)``.
        tokens: ``[G, S, n]``, -1 where there is no key; ``S`` is 1 or ``Hk``.
        asked: ``[G, T]``, token index of each query.
        how: the map.
        rule: scale, softcap and sinks.

    Returns:
        ``[G, H, T, n]`` in float64; rows add up to one less the share of the sink logit.
    """
    heads, kv_heads = queries.shape[1], keys.shape[1]
    pair = torch.arange(heads) // (heads // kv_heads)
    i = asked[:, None, :, None]
    j = tokens[:, pair if tokens.shape[1] > 1 else slice(None), None, :]
    products = _products(queries.double(), keys.double()[:, pair], how.relative(i, j), frequencies(queries.shape[-1]))
    logits = products * rule.scaling * how.tau(asked)[:, None, :, None]
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    logits = logits.masked_fill((j < 0) | (j > i), float("-inf"))
    if rule.sinks is not None:
        sink = rule.sinks.double()[None, :, None, None].expand(*logits.shape[:3], 1)
        return torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1]
    return logits.softmax(-1)


def attention(queries: Tensor, keys: Tensor, values: Tensor, tokens: Tensor, asked: Tensor, how: Map, rule: Rule) -> Tensor:
    """``[G, H, T, dv]`` in float64; arguments as of ``weights``, and values ``[G, Hk, n, dv]``."""
    heads, kv_heads = queries.shape[1], keys.shape[1]
    pair = torch.arange(heads) // (heads // kv_heads)
    return weights(queries, keys, tokens, asked, how, rule) @ values.double()[:, pair]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed: Tensor = x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
    return normed


def _heads(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """``[1, heads, T, dim]``."""
    split: Tensor = (x @ weight.double().T).unflatten(-1, (-1, dim))
    return split.transpose(0, 1)[None]


def forward(model, ids: Tensor, how: Map) -> Tensor:
    """Logits ``[T, vocabulary]`` of a Llama in float64, all keys attended, positions by ``how``."""
    config, eps = model.config, model.config.rms_norm_eps
    x = model.model.embed_tokens.weight.double()[ids]
    tokens, rule = torch.arange(len(ids)), Rule(config.head_dim**-0.5)
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        normed = _norm(x, layer.input_layernorm.weight, eps)
        q, k, v = (_heads(normed, part.weight, config.head_dim) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        tiles = []
        for start in range(0, len(ids), TILE):
            stop = min(start + TILE, len(ids))
            seen = tokens[None, None, :stop]
            tiles.append(attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], seen, tokens[None, start:stop], how, rule))
        mixed = torch.cat(tiles, dim=2)[0].transpose(0, 1).flatten(1)
        x = x + mixed @ attn.o_proj.weight.double().T
        normed = _norm(x, layer.post_attention_layernorm.weight, eps)
        gated = silu(normed @ mlp.gate_proj.weight.double().T) * (normed @ mlp.up_proj.weight.double().T)
        x = x + gated @ mlp.down_proj.weight.double().T
    logits: Tensor = _norm(x, model.model.norm.weight, eps) @ model.lm_head.weight.double().T
    return logits


class Rotations:
    """Half-split rotation; angles in float64, or rounded as a model's rotary module does."""

    def __init__(self, dim: int, dtype: torch.dtype = torch.float64) -> None:
        self.omega, self.dtype = frequencies(dim).to(dtype), dtype

    def cos_sin(self, layer, positions):
        angles = (positions.to(self.dtype)[:, None] * self.omega).repeat(1, 2)[None]
        return angles.cos().float(), angles.sin().float()

    def table(self, layer, n, device=None):
        return self.cos_sin(layer, torch.arange(n))

    def rotate(self, layer, x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]

    def halves(self, layer, n):
        cos, sin = (pair[0].chunk(2, dim=-1)[0] for pair in self.table(layer, n))
        return torch.cat([cos, sin], dim=-1)


def random(tokens: Tensor, count: int, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` queries, and keys and values for ``tokens [G, S, n]``; where there is no key stands one that would show at once.

    ``shape`` is (H, Hk, d).
    """
    g = torch.Generator().manual_seed(seed)
    groups, _, n = tokens.shape
    heads, kv_heads, dim = shape
    queries = torch.randn(groups, heads, count, dim, generator=g) * 2
    keys, values = torch.randn(2, groups, kv_heads, n, dim, generator=g)
    absent = (tokens < 0).expand(groups, kv_heads, n)[..., None]
    return queries, keys.masked_fill(absent, 30.0), values.masked_fill(absent, 1e4)


def everything(n: int, count: int) -> tuple[Tensor, Tensor]:
    """All tokens before ``n``, the last ``count`` of which ask."""
    tokens = torch.arange(n)
    return tokens[None, None], tokens[None, n - count :]


def sparse(scope: int, count: int, seed: int, starts=(2, 700, 1203), local: int = 21, room: int = 90) -> tuple[Tensor, Tensor]:
    """Groups of ``count`` queries from ``starts`` on, with the tokens just before them and up to ``room`` older ones."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(starts), scope, room + local + count), -1)
    for group, start in enumerate(starts):
        for head in range(scope):
            old = torch.randperm(max(0, start - local), generator=g)[: room - 7 * head].sort().values
            slots = torch.randperm(room, generator=g)[: len(old)].sort().values
            tokens[group, head, slots] = old
        near = torch.arange(start - local, start + count)
        tokens[group, :, room:] = near.clamp(min=-1)
    return tokens, torch.tensor(starts)[:, None] + torch.arange(count)
