"""One forward pass over memory: each layer appends its keys and values, then attends to sink, recalled, local and own tokens.

Knows the absolute grid of query groups; does not know models, text or files. While a group ends inside the attended set it attends to
everything at true positions; beyond, the queries of a group of 16 share one selection, whatever the forward was cut into. A token that is
decoded chooses alone: the other queries of its group would only crowd out what it looks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ..memory.layer_kv import LayerKV
from ..memory.session_kv import SessionKV
from .methods import Method, Sizes
from .positions import Attended, TruePositions
from .region import LayerRule, Region, Rotary, attend
from .selectors import Bounds, Selection
from .trace import Trace

HEARD = 8
"""Queries before a broken group that are kept, for what they say about it."""


class RecentQueries:
    """The last queries of each layer, ``[H, up to HEARD, d]``, and the token after them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[int, Tensor]] = {}

    def extend(self, layer: int, queries: Tensor, start: int) -> Tensor:
        """``queries [H, T, d]`` from token ``start`` on, headed by those just before them if they are known."""
        stop, past = self._layers.get(layer, (-1, queries[:, :0]))
        return torch.cat([past, queries], dim=1) if stop == start else queries

    def keep(self, layer: int, queries: Tensor, stop: int) -> None:
        """Remember the last of ``queries [H, T, d]``, which end before token ``stop``."""
        self._layers[layer] = (stop, queries[:, -HEARD:])


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive groups of one forward that are attended together; tokens ``[start, stop)``."""

    start: int
    stop: int
    dense: bool


def cut(start: int, stop: int, attended: int | None, group: int) -> list[Piece]:
    """Cut tokens ``[start, stop)`` into a dense piece, whole groups, and broken groups at either end."""
    border = stop if attended is None else min(max(attended, start), stop)
    pieces = [Piece(start, border, True)] if border > start else []
    at = border
    if at % group and at < stop:
        pieces.append(Piece(at, min(stop, at - at % group + group), False))
        at = pieces[-1].stop
    whole = stop - (stop - at) % group
    if whole > at:
        pieces.append(Piece(at, whole, False))
    if stop > max(whole, at):
        pieces.append(Piece(max(whole, at), stop, False))
    return pieces


class MemoryStep:
    """Attention of tokens ``[start, stop)`` at every layer.

    Args:
        kv: the Session's keys and values, holding tokens ``[0, start)``.
        method: which keys take part, and where.
        rotary: the model's rotation.
        ops: kernel implementation.
        span: ``(start, stop)``.
        recent: queries of the step before.
        trace: counts selections, if given.
    """

    def __init__(
        self,
        kv: SessionKV,
        method: Method,
        rotary: Rotary,
        ops: Operations,
        span: tuple[int, int],
        recent: RecentQueries,
        trace: Trace | None = None,
    ) -> None:
        self.kv, self.method, self.rotary, self.ops, self.recent, self.trace = kv, method, rotary, ops, recent, trace
        self.start, self.stop = span
        group = 1 if method.sizes is None else method.sizes.group
        self._chosen: dict[int, Selection] = {}
        self.pieces = cut(self.start, self.stop, method.attended, group)

    def attend(self, rule: LayerRule, q: Tensor, k: Tensor, v: Tensor, sliding: int | None = None) -> Tensor:
        """Append and attend at one layer.

        Args:
            rule: the layer's index, scale, sinks and softcap.
            q: ``[H, T, d]``, not rotated.
            k: ``[Hk, T, d]``, not rotated.
            v: ``[Hk, T, dv]``.
            sliding: width of a native sliding window, which is kept and does not recall.

        Returns:
            ``[T, H, dv]``.
        """
        self.kv.append(rule.index, k, v)
        if sliding is not None:
            return self._dense(rule, q, self.start, self.stop, sliding)
        outputs = []
        for piece in self.pieces:
            part = q[:, piece.start - self.start : piece.stop - self.start]
            outputs.append(self._dense(rule, part, piece.start, piece.stop) if piece.dense else self._recall(rule, part, piece))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _dense(self, rule: LayerRule, q: Tensor, start: int, stop: int, width: int | None = None) -> Tensor:
        """Attend to all earlier tokens (the last ``width`` of them) at true positions."""
        first = 0 if width is None else max(0, start - width + 1)
        k, v = self.kv.layers[rule.index].window.view(first, stop)
        tokens = torch.arange(first, stop, device=q.device)
        queries = tokens[start - first :]
        positions = TruePositions().regions(Attended(k[None], v[None], tokens[None, None], queries[None]))
        if width is not None:
            near = tokens[None, :] > queries[:, None] - width
            positions = [Region(r.keys, r.values, r.query_positions, r.key_positions, _and(r.visible, near)) for r in positions]
        out = attend(q[None], positions, self.rotary, rule, self.ops)
        return out[0].transpose(0, 1)

    def _recall(self, rule: LayerRule, q: Tensor, piece: Piece) -> Tensor:
        """Attend group by group, all groups of the piece at once: ``[H, T, d]`` to ``[T, H, dv]``."""
        sizes = self.method.sizes
        if sizes is None:
            raise RuntimeError("a method without sizes attends densely")
        group = sizes.group
        first = piece.start - piece.start % group
        count = max(1, (piece.stop - piece.start) // group)
        asked = q.reshape(q.shape[0], count, -1, q.shape[-1]).transpose(0, 1)
        # Whole groups listen to nobody before them: what is kept must not depend on where a forward began.
        voters = asked if piece.stop - piece.start >= group else self.recent.extend(rule.index, q, piece.start)[None]
        self.recent.keep(rule.index, q if voters is asked else voters[0], piece.stop)
        attended = self._attended(rule, asked, voters, first, piece.stop - (count - 1) * group - first, sizes)
        out = attend(asked, self.method.positions.regions(attended), self.rotary, rule, self.ops)
        return out.permute(0, 2, 1, 3).flatten(0, 1)

    def _choose(self, rule: LayerRule, voters: Tensor, asking: int, bounds: Bounds, layer: LayerKV) -> Selection:
        """This layer's own choice, or that of the last layer that chose for the same groups."""
        place = int(bounds.stops[0])
        if not self.method.chooses(rule.index):
            return self._chosen.get(place) or _nothing(voters.shape[0], voters.device)
        chosen = self.method.selector.select(voters, asking, rule.scaling, bounds, layer)
        self._chosen[place] = chosen
        if self.trace is not None:
            self.trace.lose(self.kv.lost)
            self.trace.choose(chosen.tokens, bounds.block, chosen.exact, chosen.certified, chosen.keys_scored)
        return chosen

    def _attended(self, rule: LayerRule, asked: Tensor, voters: Tensor, first: int, length: int, sizes: Sizes) -> Attended:
        """Sink, selected, local and own tokens of groups ``asked [G, H, T, d]``.

        The groups start at ``first``, one ``group`` apart; their last ``T`` of ``length`` tokens ask.
        """
        layer, count, device = self.kv.layers[rule.index], asked.shape[0], asked.device
        starts = first + torch.arange(count, device=device) * sizes.group
        bounds = Bounds(sizes.sink, starts - sizes.local, self.kv.lost, self.kv.layout.block_tokens)
        chosen = self._choose(rule, voters, asked.shape[2], bounds, layer)
        near_k, near_v = layer.window.spans(first - sizes.local, sizes.group, count, sizes.local + length)
        near = (starts - sizes.local)[:, None] + torch.arange(sizes.local + length, device=device)
        queries = near[:, -asked.shape[2] :]
        sink = layer.sink[:, None].expand(-1, count, -1, -1, -1)
        sink_tokens = torch.arange(sizes.sink, device=device).expand(count, -1)
        scope = chosen.tokens.shape[1]
        parts_k, parts_v, tokens = [sink[0]], [sink[1]], [sink_tokens[:, None].expand(-1, scope, -1)]
        if chosen.tokens.shape[2]:
            gathered = self.kv.gather(rule.index, chosen.tokens)
            parts_k.append(gathered.keys)
            parts_v.append(gathered.values)
            tokens.append(chosen.tokens.masked_fill(~gathered.valid, -1))
            if self.trace is not None:
                self.trace.read(gathered.blocks, gathered.tiers)
        tokens.append(near[:, None].expand(-1, scope, -1))
        return Attended(torch.cat([*parts_k, near_k], 2), torch.cat([*parts_v, near_v], 2), torch.cat(tokens, 2), queries)


def _nothing(groups: int, device: torch.device) -> Selection:
    return Selection(torch.empty((groups, 1, 0), dtype=torch.int64, device=device), exact=True, certified="memory", keys_scored=0)


def _and(visible: Tensor | None, more: Tensor) -> Tensor:
    return more if visible is None else visible & more
