"""One forward pass over memory: each layer appends its keys and values, then attends to sink, recalled, local and own tokens.

Knows the absolute grid of query groups; does not know models, text or files. While a group ends inside the attended set it attends to
everything at true positions; beyond, the queries of a group of 16 share one selection, whatever the forward was cut into. A token that is
decoded chooses alone: the other queries of its group would only crowd out what it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ..memory.layer_kv import LayerKV
from ..memory.session_kv import SessionKV
from .methods import Method, Sizes
from .pieces import Piece, cut
from .positions import Attended, PositionMap, TruePositions, true_but_split
from .region import Estimate, LayerRule, Rotary, attend, attend_and_weigh, attend_with_last_weights, log_sum_exp, rotated
from .selectors import Ask, Bounds, Selection
from .shares import AttentionShares
from .trace import Trace

HEARD = 12
"""Queries before a broken group that are kept, for what they say about it."""


class RecentQueries:
    """The last queries of each layer, ``[H, up to HEARD, d]``, and the token after them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[int, Tensor]] = {}

    def forget(self) -> None:
        """Know none any more."""
        self._layers.clear()

    def extend(self, layer: int, queries: Tensor, start: int) -> Tensor:
        """``queries [H, T, d]`` from token ``start`` on, headed by those just before them if they are known."""
        stop, past = self._layers.get(layer, (-1, queries[:, :0]))
        return torch.cat([past, queries], dim=1) if stop == start else queries

    def before(self, layer: int, start: int) -> Tensor | None:
        """The queries ``[H, n, d]`` just before token ``start``; None if they are not known."""
        stop, past = self._layers.get(layer, (-1, None))
        return past if stop == start else None

    def keep(self, layer: int, queries: Tensor, stop: int) -> None:
        """Remember the last of ``queries [H, T, d]``, which end before token ``stop``."""
        self._layers[layer] = (stop, queries[:, -HEARD:])


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of queries of one piece, one ``group`` apart.

    Attributes:
        queries: ``[G, H, T, d]``: the last ``T`` of each group's ``length`` tokens ask.
        voters: the queries that are heard, those asking last.
        first: the first of them.
        length: tokens of each group that exist.
        bounds: what they may choose from.
    """

    queries: Tensor
    voters: Tensor
    first: int
    length: int
    bounds: Bounds


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
        since: only those of tokens from here on, the border of two groups.
        settled: tokens before it will not be fed again, so that methods with feedback count them; by default those before ``since``,
            or all where nothing is traced.
        shares: takes the attention weights of the last token, if given.
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
        since: int = 0,
        settled: int | None = None,
        shares: AttentionShares | None = None,
    ) -> None:
        self.kv, self.method, self.rotary, self.ops, self.recent = kv, method, rotary, ops, recent
        self._trace, self._since, self._shares = trace, since, shares
        self.start, self.stop = span
        self._settled = settled if settled is not None else self.stop if trace is None else since
        group = 1 if method.sizes is None else method.sizes.group
        self._chosen: dict[int, Selection] = {}
        self.pieces = cut(self.start, self.stop, method.attended, group, since)

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
        parts = [q[:, piece.start - self.start : piece.stop - self.start] for piece in self.pieces]
        if self.method.selector.keeps.representatives is not None:
            return torch.cat([self._weighed(rule, one, part) for one, part in self._one_by_one(parts)])
        recalled = iter(self._recall(rule, [(piece, part) for piece, part in zip(self.pieces, parts, strict=True) if not piece.dense]))
        outputs = [
            self._dense(rule, part, piece.start, piece.stop) if piece.dense else next(recalled)
            for piece, part in zip(self.pieces, parts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _dense(self, rule: LayerRule, q: Tensor, start: int, stop: int, width: int | None = None) -> Tensor:
        """Attend to all earlier tokens: through the method's map if it attends to everything, else at true positions, and in a
        sliding layer to the last ``width`` of them."""
        everything = self.method.sizes is None and width is None
        positions: PositionMap = self.method.positions if everything else TruePositions(width)
        first = 0 if width is None else max(0, start - width + 1)
        return self._attend(rule, q[None], self._whole(rule, first, start, stop), positions, (start, stop))[0].transpose(0, 1)

    def _attend(
        self,
        rule: LayerRule,
        queries: Tensor,
        attended: Attended,
        positions: PositionMap,
        span: tuple[int, int],
        unread: Estimate | None = None,
    ) -> Tensor:
        """Attention of ``queries [G, H, T, d]``, of tokens ``[start, stop)``, to attended keys and what stands for those not read."""
        regions = positions.regions(attended)
        if self._trace is not None and span[0] >= self._since:
            self._trace.attended += queries.shape[0] * queries.shape[2] * sum(region.keys.shape[2] for region in regions)
        if self._shares is None or span[1] != self.stop:
            return attend(queries, regions, self.rotary, rule, self.ops, unread)
        out, weights = attend_with_last_weights(queries, regions, self.rotary, rule, self.ops, attended.tokens.shape[-1], unread)
        self._shares.add(weights, attended, queries.shape[1])
        return out

    def _whole(self, rule: LayerRule, first: int, start: int, stop: int) -> Attended:
        """All tokens ``[first, stop)``, for the queries from ``start`` on."""
        k, v = self.kv.layers[rule.index].window.view(first, stop)
        tokens = torch.arange(first, stop, device=k.device)
        sink = 0 if self.method.sizes is None else max(0, min(self.method.sizes.sink, stop) - first)
        return Attended(k[None], v[None], tokens[None, None], tokens[None, start - first :], sink)

    def _one_by_one(self, parts: list[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        """Dense pieces whole, the others group by group: what a group chooses depends on the one before it."""
        group = self.method.sizes.group if self.method.sizes is not None else 1
        for piece, part in zip(self.pieces, parts, strict=True):
            step = piece.stop - piece.start if piece.dense else group
            for at in range(piece.start, piece.stop, step):
                stop = min(at + step, piece.stop)
                yield Piece(at, stop, piece.dense), part[:, at - piece.start : stop - piece.start]

    def _weighed(self, rule: LayerRule, piece: Piece, q: Tensor) -> Tensor:
        """Attend to one group, or a dense piece, and count the attention its local tokens get (InfLLM, methods.md 2.2).

        Only groups that are final count: what is provisional is fed again.
        """
        layer, sizes = self.kv.layers[rule.index], self.method.sizes
        kept = layer.representatives
        if kept is None or sizes is None:
            raise RuntimeError("this layer keeps no representatives")
        positions: PositionMap = true_but_split(sizes.local) if piece.dense else self.method.positions
        if piece.dense:
            attended = self._whole(rule, 0, piece.start, piece.stop)
        else:
            groups = self._groups(rule.index, piece, q, sizes)
            (chosen,) = self._choose(rule, [groups], layer)
            attended = self._attended(rule, groups, chosen, sizes)
        if piece.stop > self._settled or not (piece.dense or piece.stop - piece.start == sizes.group):
            return self._attend(rule, q[None], attended, positions, (piece.start, piece.stop))[0].transpose(0, 1)
        regions = positions.regions(attended)
        out, mass = attend_and_weigh(q[None], regions, self.rotary, rule, self.ops)
        kept.add(mass[0], int(attended.tokens[0, 0, regions[0].first]), piece.stop)
        kept.cut(layer.window)
        return out[0].transpose(0, 1)

    def _recall(self, rule: LayerRule, pieces: list[tuple[Piece, Tensor]]) -> list[Tensor]:
        """Attend group by group, all groups of a piece at once: each piece's ``[H, T, d]`` to ``[T, H, dv]``."""
        if not pieces:
            return []
        if self.method.sizes is None:
            raise RuntimeError("a method without sizes attends densely")
        sizes = self.method.sizes
        groups = [self._groups(rule.index, piece, part, sizes) for piece, part in pieces]
        chosen = self._choose(rule, groups, self.kv.layers[rule.index])
        outputs = []
        for (piece, _), one, selection in zip(pieces, groups, chosen, strict=True):
            attended = self._attended(rule, one, selection, sizes)
            out = self._attend(rule, one.queries, attended, self.method.positions, (one.first, piece.stop), selection.unread)
            outputs.append(out.permute(0, 2, 1, 3).flatten(0, 1))
        return outputs

    def _groups(self, layer: int, piece: Piece, q: Tensor, sizes: Sizes) -> _Groups:
        """The groups of a piece, and who is heard when they choose."""
        group = sizes.group
        first = piece.start - piece.start % group
        count = max(1, (piece.stop - piece.start) // group)
        asked = q.reshape(q.shape[0], count, -1, q.shape[-1]).transpose(0, 1)
        # Whole groups listen to nobody before them: what is kept must not depend on where a forward began.
        voters = asked if piece.stop - piece.start >= group else self.recent.extend(layer, q, piece.start)[None]
        self.recent.keep(layer, q if voters is asked else voters[0], piece.stop)
        starts = first + torch.arange(count, device=q.device) * group
        bounds = Bounds(sizes.sink, starts - sizes.local, self.kv.lost, self.kv.layout.block_tokens)
        return _Groups(asked, voters, first, piece.stop - (count - 1) * group - first, bounds)

    def _choose(self, rule: LayerRule, groups: list[_Groups], layer: LayerKV) -> list[Selection]:
        """This layer's own choices, or those of the last layer that chose for the same groups."""
        if not self.method.chooses(rule.index):
            return [self._chosen.get(one.first) or _nothing(one.queries) for one in groups]
        asks = [self._ask(rule, one, first=one is groups[0]) for one in groups]
        chosen = self.method.selector.select(asks, rule.scaling, layer)
        for one, selection in zip(groups, chosen, strict=True):
            selection.check(one.bounds)
            self._chosen[one.first] = replace(selection, unread=None)  # masses are of this layer's queries only
            self.kv.ahead.chosen(rule.index, selection.tokens)
            trace = self._traced(one)
            if trace is not None:
                trace.lose(self.kv.lost)
                trace.choose(selection, one.bounds.block)
        return chosen

    def _ask(self, rule: LayerRule, groups: _Groups, first: bool) -> Ask:
        asking = groups.queries.shape[2]
        # Whoever is heard in a piece after the first asks in the piece before it.
        shared = 0 if first else groups.voters.shape[2] - asking
        last = groups.bounds.stops + self.method.sizes.local + groups.length if self.method.sizes is not None else groups.bounds.stops
        return Ask(
            groups.voters,
            asking,
            groups.bounds,
            shared,
            lambda x, positions: rotated(x, positions, self.rotary, rule.index),
            last[:, None] - asking + torch.arange(asking, device=last.device),
            rule.softcap,
            partial(self._near, rule, groups),
        )

    def _near(self, rule: LayerRule, groups: _Groups) -> Tensor:
        """Log-sum-exp ``[G, Hk, m]`` of what groups attend to whatever is chosen."""
        if self.method.sizes is None:
            raise RuntimeError("a method without sizes attends to everything")
        attended = self._attended(rule, groups, _nothing(groups.queries), self.method.sizes)
        return log_sum_exp(groups.queries, self.method.positions.regions(attended), self.rotary, rule, self.ops)

    def _traced(self, groups: _Groups) -> Trace | None:
        return self._trace if groups.first >= self._since else None

    def _attended(self, rule: LayerRule, groups: _Groups, chosen: Selection, sizes: Sizes) -> Attended:
        """Sink, selected, local and own tokens of groups of queries."""
        layer, device = self.kv.layers[rule.index], groups.queries.device
        count, _, asking, _ = groups.queries.shape
        scope, recalled = chosen.tokens.shape[1:]
        width, near_from = sizes.local + groups.length, sizes.sink + recalled
        kv = layer.sink.new_empty((2, count, layer.sink.shape[1], near_from + width, layer.sink.shape[3]))
        kv[:, :, :, : sizes.sink] = layer.sink[:, None]
        kv[0, :, :, near_from:], kv[1, :, :, near_from:] = layer.window.spans(groups.first - sizes.local, sizes.group, count, width)
        near = groups.bounds.stops[:, None] + torch.arange(width, device=device)
        tokens = torch.cat([torch.arange(sizes.sink, device=device).expand(count, scope, -1), chosen.tokens, _spread(near, scope)], 2)
        if recalled:
            trace = self._traced(groups)
            read = self.kv.gather(rule.index, chosen.tokens, kv[:, :, :, sizes.sink : near_from], blocks=chosen.blocks, exact=trace is None)
            tokens[:, :, sizes.sink : near_from].masked_fill_(~read.valid, -1)
            if trace is not None:
                trace.read(read.blocks, read.tiers)
        return Attended(kv[0], kv[1], tokens, near[:, -asking:], sizes.sink, recalled)


def _spread(tokens: Tensor, scope: int) -> Tensor:
    return tokens[:, None].expand(-1, scope, -1)


def _nothing(queries: Tensor) -> Selection:
    none = torch.empty((queries.shape[0], 1, 0), dtype=torch.int64, device=queries.device)
    return Selection(none, exact=True, certified="memory", keys_scored=0)
