"""What is known of every Block without reading it: the mean of its keys, and its keys in 8 bits with a bound on what that lost.

Knows unrotated keys of one layer and how far a sketched score can be from the true one; nothing of selection, Tiers or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..types import BLOCK_BITS, BLOCK_TOKENS
from .grid import as_float, coarsen, quantise
from .growing import GrowingRows

_EPSILON = 2.0**-24  # relative error of one rounding in fp32


@dataclass(frozen=True, slots=True)
class SketchScores:
    """Scores of queries against sketched keys, and how wrong they can be.

    Attributes:
        scores: fp32 ``[..., Hk, m, n, 32]``, -inf where the Block number was negative (padding).
        query_norm: fp32 ``[..., Hk, m]``, rounded up.
        radius: fp32 ``[..., Hk, n, 32]`` (``[Hk, n, 32]`` where all share the Blocks), rounded up. For every query and key
            ``|true - sketched| <= query_norm * radius``, where *true* is ``q . k`` computed in fp32 in any order of summation:
            the rounding of both sides is part of the radius.
    """

    scores: Tensor
    query_norm: Tensor
    radius: Tensor

    def bound(self) -> Tensor:
        """``query_norm * radius`` as fp32 ``[..., Hk, m, n, 32]``."""
        return self.query_norm[..., None, None] * self.radius[..., None, :, :]


class LayerSummary:
    """What is known of every Block of one layer without reading it.

    Args:
        kv_heads: KV heads of the layer (``Hk``).
        head_dim: head dimension (``d``).
        sketch: keep the 8-bit keys too; without them there are means only.
        device: where the rows lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, *, sketch: bool = True, device: torch.device | str = "cpu") -> None:
        self.kv_heads, self.head_dim, self.sketch, self.device = kv_heads, head_dim, sketch, torch.device(device)
        tokens = (kv_heads, BLOCK_TOKENS)
        self._rows = {"mean": GrowingRows((kv_heads, head_dim), torch.float32, device=device)}
        if sketch:
            self._rows["q8"] = GrowingRows((*tokens, head_dim), torch.int8, device=device)
            self._rows["scale"] = GrowingRows(tokens, torch.float32, device=device)
            self._rows["residual"] = GrowingRows(tokens, torch.float32, device=device)
        # The keys a scan reads, head by head so that a pass over them is one product of 8-bit integers, with one step a Block so
        # that the best of its products is the best of its integers. Made from the sketch, so that a Session that was reopened scans
        # the same numbers.
        heads = range(kv_heads if sketch else 0)
        self._scan = [GrowingRows((BLOCK_TOKENS, head_dim), torch.int8, device=device) for _ in heads]
        self._scan_steps = [GrowingRows((), torch.float32, device=device) for _ in heads]
        self._scan_radius = [GrowingRows((), torch.float32, device=device) for _ in heads]

    def __len__(self) -> int:
        return len(self.means)

    def append(self, keys: Tensor) -> None:
        """Summarise the unrotated ``keys`` ``[n, Hk, 32, d]`` (any floating-point dtype) of the next ``n`` Blocks."""
        keys = keys.to(self.device)
        new = {"mean": keys.to(torch.float32).mean(dim=2)}
        if self.sketch:
            new["q8"], new["scale"], new["residual"] = quantise(keys)
        self._extend(new)

    def truncate(self, n: int) -> None:
        """Forget every Block from ``n`` on."""
        for rows in self._everything():
            rows.truncate(n)

    def fork(self, n: int) -> LayerSummary:
        """A child that knows Blocks ``[0, n)``, sharing their rows; neither disturbs the other afterwards."""
        child = LayerSummary(self.kv_heads, self.head_dim, sketch=self.sketch, device=self.device)
        child._rows = {name: rows.fork(n) for name, rows in self._rows.items()}
        child._scan = [rows.fork(n) for rows in self._scan]
        child._scan_steps = [rows.fork(n) for rows in self._scan_steps]
        child._scan_radius = [rows.fork(n) for rows in self._scan_radius]
        return child

    @property
    def means(self) -> GrowingRows:
        """fp32 ``[N, Hk, d]``: mean key of each Block."""
        return self._rows["mean"]

    @property
    def q8(self) -> GrowingRows:
        """int8 ``[N, Hk, 32, d]``: keys divided by their scale."""
        return self._sketched("q8")

    @property
    def scale(self) -> GrowingRows:
        """fp32 ``[N, Hk, 32]``: step of each key's 8-bit grid."""
        return self._sketched("scale")

    @property
    def residual(self) -> GrowingRows:
        """fp32 ``[N, Hk, 32]``: ``|key - scale * q8|``, rounded up."""
        return self._sketched("residual")

    def float_keys(self, start: int, stop: int) -> Tensor:
        """Keys fp32 ``[n, Hk, 32, d]`` of Blocks ``[start, stop)`` as the 8-bit grid of each key gives them."""
        return as_float(self.q8.slice(start, stop)).mul_(self.scale.slice(start, stop)[..., None])

    def scanned(self, head: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """The keys of one KV head's first ``count`` Blocks on an 8-bit grid of each Block: int8 ``[*, 32, d]`` and fp32 ``[*]`` steps,
        in one or two pairs of views that follow each other."""
        pairs, left = [], count
        for keys, steps in zip(self._scan[head].views(), self._scan_steps[head].views(), strict=True):
            pairs.append((keys[:left], steps[:left]))
            left -= len(pairs[-1][0])
        return pairs

    def scanned_keys(self, head: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One KV head's keys int8 ``[n, d]`` of tokens int64 ``[n]`` as a scan reads them, and their steps fp32 ``[n]``."""
        blocks = tokens >> BLOCK_BITS
        return self._scan[head].gather(blocks, tokens & (BLOCK_TOKENS - 1)), self._scan_steps[head].gather(blocks)

    def products(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Products fp32 ``[Hk, m, n]`` of ``rows`` fp32 ``[Hk, m, d]`` with each KV head's keys of tokens int64 ``[Hk, n]``, on the grid a
        scan reads."""
        keys, steps = zip(*(self.scanned_keys(head, row) for head, row in enumerate(tokens)), strict=True)
        return torch.bmm(rows, torch.stack(keys).float().transpose(1, 2)).mul_(torch.stack(steps)[:, None])

    def block_keys(self, head: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """One KV head's keys int8 ``[n, 32, d]`` of Blocks int64 ``[n]``, and their steps fp32 ``[n]``; copies."""
        return self._scan[head].gather(blocks), self._scan_steps[head].gather(blocks)

    def span_keys(self, head: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """As :meth:`block_keys`, of Blocks ``[start, stop)``; views where they lie together."""
        return self._scan[head].slice(start, stop), self._scan_steps[head].slice(start, stop)

    @property
    def centre(self) -> Tensor:
        """fp32 ``[Hk, d]``: what is subtracted of every key before a scan: the mean key of the first Block. It adds the same to all scores
        of a query, and without the part all keys have in common the others are kept more finely."""
        return self.means.slice(0, 1)[0]

    def bounded(self, head: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """As :meth:`scanned`, with the radius fp32 ``[*]`` of each Block: no key less ``centre`` is further from its place on the grid,
        fp32 rounding of a product included."""
        pairs, at = [], 0
        for keys, steps in self.scanned(head, count):
            pairs.append((keys, steps, self._scan_radius[head].slice(at, at + len(keys))))
            at += len(keys)
        return pairs

    def sketches(self) -> list[tuple[Tensor, Tensor, Tensor, int]]:
        """``q8``, ``scale`` and ``residual`` of all Blocks where they lie, in one or two parts in order, each with what is reserved
        after it, and how many Blocks it has."""
        parts = zip(*(self._sketched(name).buffers() for name in ("q8", "scale", "residual")), strict=True)
        return [(codes, scale, residual, count) for (codes, count), (scale, _), (residual, _) in parts]

    def score_sketch(self, q: Tensor, blocks: Tensor | slice) -> SketchScores:
        """Scores of queries against the 8-bit keys of some Blocks, with their error bound.

        Args:
            q: ``[..., Hk, m, d]``, any floating-point dtype (used as fp32); ``m`` rows share a KV head, e.g. query heads times
                tokens of a group.
            blocks: int64 ``[n]``, the same Blocks for all; or ``[..., Hk, n]`` with q's leading dimensions, others for each head;
                or a ``slice`` of consecutive Blocks (no gathering). Negative numbers are padding.

        Raises:
            ConfigError: if the summary has no sketch.
            IndexError: if a Block number is out of range.
        """
        q = q.to(torch.float32)
        padding = None
        if isinstance(blocks, Tensor):
            padding = blocks < 0
            blocks = blocks.clamp(min=0)
        scale = self._of_heads(self.scale, blocks)
        keys = as_float(self._of_heads(self.q8, blocks)).mul_(scale[..., None])
        flat = q @ keys.flatten(-3, -2).transpose(-1, -2)
        scores = flat.view(*flat.shape[:-1], *scale.shape[-2:])
        if padding is not None and bool(padding.any()):
            spread = padding[..., None, :, None] if padding.dim() > 1 else padding[:, None]
            scores = scores.masked_fill(spread, -math.inf)
        # Norms are rounded up: their own fp32 error is below (d + 3) roundings.
        norm = q.norm(dim=-1) * (1 + (self.head_dim + 3) * _EPSILON)
        return SketchScores(scores, norm, self._radius(self._of_heads(self.residual, blocks), scale))

    @property
    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape, a Block, of what :meth:`state` gives."""
        return {name: (rows.dtype, tuple(rows.row_shape)) for name, rows in self._rows.items()}

    def state(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows of Blocks ``[start, stop)`` by name (``mean``, and with a sketch ``q8``, ``scale``, ``residual``), to be kept."""
        return {name: rows.slice(start, stop) for name, rows in self._rows.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Append rows that ``state`` gave earlier; names this summary does not keep are ignored.

        Raises:
            ConfigError: if a name is missing, or rows have another shape or dtype; nothing is appended then.
        """
        counts = set()
        for name, rows in self._rows.items():
            given = state.get(name)
            if given is None or given.dtype != rows.dtype or given.shape[1:] != rows.row_shape:
                found = "nothing" if given is None else f"{given.dtype} {tuple(given.shape)}"
                expected = f"{rows.dtype} [n, *{rows.row_shape}]"
                raise ConfigError(f"stored summary {name!r}: expected {expected}, found {found}; summarise the Blocks anew")
            counts.add(len(given))
        if len(counts) != 1:
            raise ConfigError(f"stored summaries cover {sorted(counts)} Blocks each, not the same; summarise the Blocks anew")
        self._extend(state)

    def blank(self, n: int) -> dict[str, Tensor]:
        """Rows as ``state`` gives them for ``n`` Blocks of which nothing is known: zero means and keys, infinite residuals."""
        state = {name: torch.zeros((n, *rows.row_shape), dtype=rows.dtype) for name, rows in self._rows.items()}
        if self.sketch:
            state["residual"].fill_(math.inf)
        return state

    @property
    def nbytes(self) -> int:
        """Bytes reserved by this summary; rows inherited by a fork are counted by the summary that made them."""
        return sum(rows.nbytes for rows in self._everything())

    def _everything(self) -> list[GrowingRows]:
        return [*self._rows.values(), *self._scan, *self._scan_steps, *self._scan_radius]

    def _extend(self, new: Mapping[str, Tensor]) -> None:
        start = len(self)
        try:
            for name, rows in self._rows.items():
                rows.append(new[name])
            if self.sketch:
                keys, steps, lost = coarsen(new["q8"], new["scale"], self.centre)
                radius = (self._radius(new["residual"], new["scale"]) + lost).amax(-1)
                for head in range(self.kv_heads):
                    self._scan[head].append(keys[:, head])
                    self._scan_steps[head].append(steps[:, head])
                    self._scan_radius[head].append(radius[:, head])
        except BaseException:
            # All rows grow, or none: a Block without its residual would be certified by a stale one.
            self.truncate(start)
            raise

    def _sketched(self, name: str) -> GrowingRows:
        if not self.sketch:
            raise ConfigError(f"this summary keeps means only, it has no {name}; make it with sketch=True")
        return self._rows[name]

    def _of_heads(self, rows: GrowingRows, blocks: Tensor | slice) -> Tensor:
        """Rows ``[N, Hk, ...]`` of ``blocks`` as ``[..., Hk, n, ...]``."""
        if isinstance(blocks, slice):
            start, stop, _ = blocks.indices(len(rows))
            return rows.slice(start, stop).transpose(0, 1)
        if blocks.dim() == 1:
            return rows.gather(blocks).transpose(0, 1)
        return rows.gather(blocks, torch.arange(self.kv_heads, device=blocks.device)[:, None])

    def _radius(self, residual: Tensor, scale: Tensor) -> Tensor:
        # Each fp32 dot product of d terms is off by at most (d + 2) roundings of |q||k|, whatever its order; the sketched keys have
        # one more each. |scale * q8| is at most 127 * sqrt(d) * scale, and |k| at most that plus the residual.
        rounding = (self.head_dim + 8) * _EPSILON
        return residual * (1 + rounding) + scale * (2 * rounding * 128 * math.sqrt(self.head_dim))
