"""One forward pass over memory: each layer appends its keys and values, then attends to sink, recalled, local and own tokens.

Knows the absolute grid of query groups; does not know models, text or files. While a group ends inside the attended set it attends to
everything at true positions; beyond, the queries of a group share one selection, whatever the forward was cut into. A token that is
decoded chooses alone: the other queries of its group would only crowd out what it looks for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ..memory.layer_kv import LayerKV
from ..memory.session_kv import SessionKV
from .evidence import Evidence
from .methods import Method, Sizes
from .pieces import Piece, cut
from .place import Place
from .positions import Attended, PositionMap, TruePositions, WindowPositions, true_but_split, with_kv_of
from .recent_queries import RecentQueries
from .region import (
    Attention,
    LayerRule,
    Region,
    Turned,
    attend,
    attend_and_weigh,
    attend_in_part,
    attend_with_last_weights,
    turned,
    with_sinks,
)
from .rotation import Buffers, Rotary, Turning, rotated
from .selectors import Ask, Selection
from .shares import AttentionShares
from .trace import Trace


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of queries of one piece.

    Attributes:
        queries: ``[G, H, T, d]``: the last ``T`` of each group's tokens ask.
        voters: the queries that are heard, those asking last.
        place: where they stand.
    """

    queries: Tensor
    voters: Tensor
    place: Place


class _Near:
    """What groups attend to whatever they choose, each part made when it is first asked for."""

    def __init__(self, step: MemoryStep, rule: LayerRule, groups: _Groups, sizes: Sizes) -> None:
        self._step, self._rule, self._groups, self._sizes = step, rule, groups, sizes

    @cached_property
    def attended(self) -> Attended:
        """Sink, local and own tokens."""
        return self._step.near(self._rule, self._groups, self._sizes)

    @cached_property
    def regions(self) -> list[Region]:
        """They, where they stand."""
        return self._groups.place.regions(self._step.method.positions, self.attended)

    @cached_property
    def parts(self) -> list[Turned]:
        """They, turned to where they stand."""
        return turned(self._groups.queries, self.regions, self._step.turning(self._rule, ("near", self._groups.place.first)))

    @cached_property
    def attention(self) -> Attention:
        """Attention to them; a layer's extra logits take no part in it."""
        return attend_in_part(self.parts, self._rule, self._step.ops)

    def log_sum_exp(self) -> Tensor:
        """fp32 ``[G, Hk, m]`` of all this takes, the layer's extra logits too."""
        return with_sinks(self.attention, self._rule)


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
        evidence: takes what the last group of each piece looks at, if given.
        brought: int64 ``[b]``, Blocks that are chosen and brought near, padded with -1.
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
        evidence: Evidence | None = None,
        brought: Tensor | None = None,
    ) -> None:
        self.kv, self.method, self.rotary, self.ops, self.recent = kv, method, rotary, ops, recent
        self._trace, self._since, self._shares = trace, since, shares
        self._evidence, self._brought = evidence, brought
        self.start, self.stop = span
        self._settled = settled if settled is not None else self.stop if trace is None else since
        group = 1 if method.sizes is None else method.sizes.group
        self._chosen: dict[int, Selection] = {}
        self._places: dict[int, Place] = {}
        self._dense_regions: dict[tuple[int | None, int, int], list[Region]] = {}
        self._buffers = Buffers()
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
        attended = self._whole(rule, first, start, stop)
        known = self._dense_regions.get((width, start, stop))
        regions = positions.regions(attended) if known is None else with_kv_of(known, attended)
        self._dense_regions.setdefault((width, start, stop), regions)
        return self._attend(rule, q[None], attended, regions, (start, stop))[0].transpose(0, 1)

    def _attend(
        self,
        rule: LayerRule,
        queries: Tensor,
        attended: Attended,
        regions: list[Region],
        span: tuple[int, int],
        unread: Attention | None = None,
    ) -> Tensor:
        """Attention of ``queries [G, H, T, d]``, of tokens ``[start, stop)``, to attended keys and what stands for those not read."""
        parts = turned(queries, regions, self.turning(rule, "all"))
        self._count_attended(queries, parts, span[0])
        if self._shares is None or span[1] != self.stop:
            return attend(queries, parts, rule, self.ops, [] if unread is None else [unread])
        return self._attend_and_share(rule, queries, [attended], parts, unread, self._shares)

    def _attend_and_share(
        self,
        rule: LayerRule,
        queries: Tensor,
        attended: Sequence[Attended],
        parts: list[Turned],
        unread: Attention | None,
        shares: AttentionShares,
    ) -> Tensor:
        """As :meth:`_attend`; ``shares`` takes the weights of the last token over what was attended to, in one piece or several."""
        keys = sum(piece.tokens.shape[-1] for piece in attended)
        out, weights = attend_with_last_weights(queries, parts, rule, self.ops, keys, unread)
        shares.add(weights, attended, queries.shape[1])
        return out

    def turning(self, rule: LayerRule, name: Hashable) -> Turning:
        """The layer's rotation, into buffers of that name."""
        return Turning(self.rotary, rule.index, self._buffers, name)

    def _count_attended(self, queries: Tensor, parts: list[Turned], start: int) -> None:
        if self._trace is not None and start >= self._since:
            self._trace.attended += queries.shape[0] * queries.shape[2] * sum(part.keys.shape[2] for part in parts)

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
            (chosen,) = self._choose(rule, [groups], layer, self._nears(rule, [groups]))
            attended = self._attended(rule, groups, chosen, sizes)
        if piece.stop > self._settled or not (piece.dense or piece.stop - piece.start == sizes.group):
            return self._attend(rule, q[None], attended, positions.regions(attended), (piece.start, piece.stop))[0].transpose(0, 1)
        parts = turned(q[None], positions.regions(attended), self.turning(rule, "all"))
        out, mass = attend_and_weigh(q[None], parts, rule, self.ops)
        kept.add(mass[0], int(attended.tokens[0, 0, parts[0].region.first]), piece.stop)
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
        nears = self._nears(rule, groups)
        chosen = self._choose(rule, groups, self.kv.layers[rule.index], nears)
        outputs = []
        for one, near, selection in zip(groups, nears, chosen, strict=True):
            if isinstance(self.method.positions, WindowPositions):
                out = self._join(rule, one, near, selection, sizes)
            else:
                attended = self._attended(rule, one, selection, sizes)
                regions, span = self.method.positions.regions(attended), (one.place.first, one.place.stop)
                out = self._attend(rule, one.queries, attended, regions, span, selection.unread)
            outputs.append(out.permute(0, 2, 1, 3).flatten(0, 1))
        return outputs

    def _join(self, rule: LayerRule, groups: _Groups, near: _Near, chosen: Selection, sizes: Sizes) -> Tensor:
        """Attention ``[G, H, T, dv]`` to sink and local tokens, where they stand whatever is recalled, joined with that to what is."""
        attended, parts = [near.attended], list(near.parts)
        if chosen.tokens.shape[2]:
            attended.append(self._recalled(rule, groups, chosen, sizes))
            offset = near.attended.tokens.shape[-1]
            regions = [replace(region, first=region.first + offset) for region in self.method.positions.regions(attended[1])]
            parts += turned(groups.queries, regions, self.turning(rule, "recalled"))
        self._count_attended(groups.queries, parts, groups.place.first)
        if self._shares is not None and groups.place.stop == self.stop:
            return self._attend_and_share(rule, groups.queries, attended, parts, chosen.unread, self._shares)
        others = [near.attention, *([] if chosen.unread is None else [chosen.unread])]
        return attend(groups.queries, parts[len(near.parts) :], rule, self.ops, others)

    def _groups(self, layer: int, piece: Piece, q: Tensor, sizes: Sizes) -> _Groups:
        """The groups of a piece, and who is heard when they choose."""
        place = self._places.get(piece.start)
        if place is None:
            place = self._places[piece.start] = Place(piece, sizes, self.kv)
        asked = q.reshape(q.shape[0], place.count, -1, q.shape[-1]).transpose(0, 1)
        # Whole groups listen to nobody before them: what is kept must not depend on where a forward began.
        voters = asked if piece.stop - piece.start >= sizes.group else self.recent.extend(layer, q, piece.start)[None]
        self.recent.keep(layer, q if voters is asked else voters[0], piece.stop)
        return _Groups(asked, voters, place)

    def _nears(self, rule: LayerRule, groups: list[_Groups]) -> list[_Near]:
        if self.method.sizes is None:
            raise RuntimeError("a method without sizes attends to everything")
        return [_Near(self, rule, one, self.method.sizes) for one in groups]

    def _choose(self, rule: LayerRule, groups: list[_Groups], layer: LayerKV, nears: list[_Near]) -> list[Selection]:
        """This layer's own choices, or those of the last layer that chose for the same groups."""
        if not self.method.chooses(rule.index):
            return [self._chosen.get(one.place.first) or _nothing(one.queries) for one in groups]
        asks = [self._ask(rule, one, near, first=one is groups[0]) for one, near in zip(groups, nears, strict=True)]
        chosen = self.method.selector.select(asks, rule.scaling, layer)
        for one, selection in zip(groups, chosen, strict=True):
            selection.check(one.place.bounds)
            self._chosen[one.place.first] = replace(selection, unread=None)  # masses are of this layer's queries only
            self.kv.ahead.chosen(rule.index, selection.tokens)
            trace = self._traced(one)
            if trace is not None:
                trace.lose(self.kv.lost)
                trace.choose(selection, one.place.bounds.block)
        return chosen

    def _ask(self, rule: LayerRule, groups: _Groups, near: _Near, first: bool) -> Ask:
        asking = groups.queries.shape[2]
        # Whoever is heard in a piece after the first asks in the piece before it.
        shared = 0 if first else groups.voters.shape[2] - asking
        looking = 0 if self._evidence is None else min(asking, groups.place.stop - self._evidence.since)
        return Ask(
            groups.voters,
            asking,
            groups.place.bounds,
            shared,
            lambda x, positions: rotated(x, positions, self.rotary, rule.index),
            groups.place.asking,
            rule.softcap,
            near.log_sum_exp,
            self._brought,
            self._evidence.add if looking > 0 and self._evidence is not None else None,
            looking,
        )

    def _traced(self, groups: _Groups) -> Trace | None:
        return self._trace if groups.place.first >= self._since else None

    def near(self, rule: LayerRule, groups: _Groups, sizes: Sizes) -> Attended:
        """Sink, local and own tokens of groups of queries."""
        kv = self._near_kv(rule, groups.place, sizes, 0)
        return Attended(kv[0], kv[1], groups.place.tokens, groups.place.asking, sizes.sink)

    def _recalled(self, rule: LayerRule, groups: _Groups, chosen: Selection, sizes: Sizes) -> Attended:
        """Only what groups of queries chose."""
        sink = self.kv.layers[rule.index].sink
        count, recalled = chosen.tokens.shape[0], chosen.tokens.shape[2]
        kv = self._buffers.take("recalled", (2, count, sink.shape[1], recalled, sink.shape[3]), sink)
        tokens = self._read(rule, groups, chosen, kv)
        brought, asking = None, groups.place.asking
        if self._brought is not None:
            brought = torch.isin(tokens.div(self.kv.layout.block_tokens, rounding_mode="floor"), self._brought) & (tokens >= 0)
        return Attended(kv[0], kv[1], tokens, asking, recalled=recalled, before=sizes.sink, brought=brought)

    def _read(self, rule: LayerRule, groups: _Groups, chosen: Selection, out: Tensor) -> Tensor:
        """Write what was chosen to ``out [2, G, Hk, n, d]``; returns the tokens ``[G, S, n]``, -1 where there is none."""
        trace = self._traced(groups)
        read = self.kv.gather(rule.index, chosen.tokens, out, blocks=chosen.blocks, exact=trace is None)
        if trace is not None:
            trace.read(read.blocks, read.tiers)
        return chosen.tokens.masked_fill(~read.valid, -1)

    def _attended(self, rule: LayerRule, groups: _Groups, chosen: Selection, sizes: Sizes) -> Attended:
        """Sink, selected, local and own tokens of groups of queries."""
        scope, recalled = chosen.tokens.shape[1:]
        kv = self._near_kv(rule, groups.place, sizes, recalled)
        tokens = self._read(rule, groups, chosen, kv[:, :, :, sizes.sink : sizes.sink + recalled]) if recalled else chosen.tokens
        sink, near = groups.place.tokens.expand(-1, scope, -1).tensor_split((sizes.sink,), dim=2)
        return Attended(kv[0], kv[1], torch.cat([sink, tokens, near], 2), groups.place.asking, sizes.sink, recalled)

    def _near_kv(self, rule: LayerRule, place: Place, sizes: Sizes, recalled: int) -> Tensor:
        """Keys and values ``[2, G, Hk, n, d]`` of sink, local and own tokens, with room for recalled ones after the sink."""
        layer, width, near_from = self.kv.layers[rule.index], sizes.local + place.length, sizes.sink + recalled
        shape = (2, place.count, layer.sink.shape[1], near_from + width, layer.sink.shape[3])
        kv = self._buffers.take(("near", place.first), shape, layer.sink)
        kv[:, :, :, : sizes.sink] = layer.sink[:, None]
        kv[0, :, :, near_from:], kv[1, :, :, near_from:] = layer.window.spans(place.first - sizes.local, sizes.group, place.count, width)
        return kv


def _nothing(queries: Tensor) -> Selection:
    none = torch.empty((queries.shape[0], 1, 0), dtype=torch.int64, device=queries.device)
    return Selection(none, exact=True, certified="memory", keys_scored=0)
