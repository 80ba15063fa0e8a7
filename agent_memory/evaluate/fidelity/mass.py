"""How much of full attention's mass lies in the Blocks that a method would choose, layer by layer and KV head by KV head.

The model attends to everything, at true positions, so every query is the one full attention has; beside it the method is asked what it
would have chosen. What it chooses is weighed against an oracle that picks Blocks with as many tokens by the mass itself. Knows steps,
layers and Blocks; does not know texts or what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from agent_memory_kernels import operations

from ...attention.methods import Method, Sizes
from ...attention.pieces import Piece
from ...attention.recent_queries import RecentQueries
from ...attention.region import LayerRule
from ...attention.rotation import Rotary
from ...attention.selectors import Selection
from ...attention.step import MemoryStep
from ...engine import CHUNK_TOKENS
from ...kv_files import SegmentFiles
from ...layer_step import LayerStep
from ...memory.session_kv import SessionKV
from ...plans import kv_plan
from ...runtime import Runtime
from ...session import Session
from .rows import FIGURES

Kind = Literal["decoded", "groups"]
"""``decoded``: tokens of an answer, each choosing alone. ``groups``: tokens of the document, which share their group's choice."""


class MassTally:
    """Sums over queries, fp64 ``[layers][KV heads]`` of each kind.

    ``queries`` counts choices; ``available`` sums the share of a query's mass that lies between sink and local tokens, where a method
    may choose, averaged over the queries that share the choice and the query heads of the KV head; ``chosen`` the share in what it
    chose, ``oracle`` that in the Blocks with as many tokens that hold most. Layers that never chose hold zeros.
    """

    def __init__(self, kv_heads: Sequence[int]) -> None:
        self.sums: dict[Kind, dict[str, list[Tensor]]] = {
            kind: {name: [torch.zeros(heads, dtype=torch.float64) for heads in kv_heads] for name in FIGURES}
            for kind in ("decoded", "groups")
        }

    def add(self, kind: Kind, layer: int, available: Tensor, chosen: Tensor, oracle: Tensor) -> None:
        """Add choices of one layer, each ``[KV heads, groups]``."""
        sums = self.sums[kind]
        for name, shares in zip(FIGURES, (torch.ones_like(available), available, chosen, oracle), strict=True):
            sums[name][layer] += shares.double().sum(1).cpu()

    def to_dict(self) -> dict[str, dict[str, list[list[float]]]]:
        """Plain JSON types."""
        return {kind: {name: [one.tolist() for one in rows] for name, rows in sums.items()} for kind, sums in self.sums.items()}


@dataclass(frozen=True, slots=True)
class Weighed:
    """Shares of mass, each fp32 ``[KV heads, groups]``; see :class:`MassTally`."""

    available: Tensor
    chosen: Tensor
    oracle: Tensor


def weigh(mass: Tensor, tokens: Tensor, first: int, stops: Tensor, block: int) -> Weighed:
    """Shares of mass that a choice holds, and that the best choice of Blocks with as many tokens would hold.

    Args:
        mass: ``[KV heads, groups, tokens]``: attention weights averaged over the queries that share a choice; they sum to at most 1.
        tokens: int64 ``[groups, 1 or KV heads, n]``: chosen tokens, padded with -1.
        first: tokens before it are the sink.
        stops: int64 ``[groups]``: where the local tokens begin.
        block: tokens of a Block.
    """
    heads, groups, count = mass.shape
    index = torch.arange(count, device=mass.device)
    available = mass * ((index >= first) & (index < stops[:, None]))
    picked = mass.new_zeros((groups, tokens.shape[1], count + 1))
    picked.scatter_(2, tokens.masked_fill(tokens < 0, count), 1.0)
    picked = picked[..., :count].transpose(0, 1).expand(heads, -1, -1)
    padding = (0, -count % block)
    by_block = torch.nn.functional.pad(available, padding).unflatten(2, (-1, block)).sum(3)
    blocks = (picked.sum(2).long() + block - 1).div(block, rounding_mode="floor").clamp(max=by_block.shape[2])
    best = torch.nn.functional.pad(by_block.sort(2, descending=True).values.cumsum(2), (1, 0))
    return Weighed(available.sum(2), (available * picked).sum(2), best.gather(2, blocks[..., None])[..., 0])


class RotatedKeys:
    """Keys at their true positions, rotated once: fp32 ``[KV heads, tokens, d]`` of each layer."""

    def __init__(self) -> None:
        self._layers: dict[int, Tensor] = {}

    def of(self, layer: int, keys: Tensor, rotary: Rotary) -> Tensor:
        """Of all ``keys [KV heads, n, d]`` of a layer, those it was asked about before being the same."""
        known = self._layers.get(layer, keys[:, :0].float())[:, : keys.shape[1]]
        new = keys[:, known.shape[1] :]
        if new.shape[1]:
            cos, sin = rotary.table(layer, keys.shape[1])
            at = slice(known.shape[1], keys.shape[1])
            known = torch.cat([known, rotary.rotate(layer, new[None], cos[:, at], sin[:, at])[0].float()], dim=1)
        self._layers[layer] = known
        return known

    def truncate(self, length: int) -> None:
        """Forget tokens from ``length`` on."""
        self._layers = {layer: keys[:, :length] for layer, keys in self._layers.items()}


class MassStep(MemoryStep):
    """Attends to everything at true positions, and weighs what the method would have chosen.

    Args are those of :class:`MemoryStep`; ``kv`` has to hold every token in its windows.
    """

    def watch(self, tally: MassTally, kind: Kind | None, rotated: RotatedKeys) -> MassStep:
        """Where choices are counted, none for a None ``kind``; and the keys of the tokens before."""
        self._tally, self._kind, self._rotated = tally, kind, rotated
        return self

    def attend(self, rule: LayerRule, q: Tensor, k: Tensor, v: Tensor, sliding: int | None = None) -> Tensor:
        """As :meth:`MemoryStep.attend`, whatever the method chooses."""
        self.kv.append(rule.index, k, v)
        if sliding is not None or self.method.sizes is None:
            return self._dense(rule, q, self.start, self.stop, sliding)
        parts = [q[:, piece.start - self.start : piece.stop - self.start] for piece in self.pieces]
        weights = [self._weights(rule, part, piece) for piece, part in zip(self.pieces, parts, strict=True)]
        asking = [at for at, piece in enumerate(self.pieces) if not piece.dense]
        if asking:
            groups = [self._groups(rule.index, self.pieces[at], parts[at], self.method.sizes) for at in asking]
            chosen = self._choose(rule, groups, self.kv.layers[rule.index], self._nears(rule, groups))
            for at, one, selection in zip(asking, groups, chosen, strict=True):
                self._count(rule.index, weights[at], selection, self.method.sizes, one.place.bounds.stops)
        return torch.cat([self._outputs(rule.index, one) for one in weights]).to(v.dtype)

    def _count(self, layer: int, weights: Tensor, selection: Selection, sizes: Sizes, stops: Tensor) -> None:
        """Weigh the choices of the groups of one piece, whose queries have ``weights [KV heads, query heads of each, T, tokens]``."""
        if self._kind is not None and self.method.reads(layer):
            mass = weights.mean(1).unflatten(1, (len(stops), -1)).mean(2)
            found = weigh(mass, selection.tokens, sizes.sink, stops, self.kv.layout.block_tokens)
            self._tally.add(self._kind, layer, found.available, found.chosen, found.oracle)

    def _outputs(self, layer: int, weights: Tensor) -> Tensor:
        """``[T, H, dv]``."""
        _, values = self.kv.layers[layer].window.view(0, weights.shape[-1])
        return torch.einsum("hgtn,hnd->thgd", weights, values.float()).flatten(1, 2)

    def _weights(self, rule: LayerRule, q: Tensor, piece: Piece) -> Tensor:
        """Weights of plain rotary attention, fp32 ``[KV heads, query heads of each, T, tokens]``."""
        stored, _ = self.kv.layers[rule.index].window.view(0, piece.stop)
        keys = self._rotated.of(rule.index, stored, self.rotary)
        cos, sin = self.rotary.table(rule.index, piece.stop)
        at = slice(piece.start, piece.stop)
        rows = self.rotary.rotate(rule.index, q[None], cos[:, at], sin[:, at])[0].unflatten(0, (keys.shape[0], -1))
        logits = torch.einsum("hgtd,hnd->hgtn", rows.float(), keys).mul_(rule.scaling)
        if rule.softcap is not None:
            logits = rule.softcap * torch.tanh(logits / rule.softcap)
        index = torch.arange(piece.stop, device=logits.device)
        logits.masked_fill_(index > index[at, None], float("-inf"))
        if rule.sinks is None:
            return logits.softmax(-1)
        sinks = rule.sinks.float().reshape(keys.shape[0], -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]


class MassProbe:
    """A document's memory, as full attention made it, over which a method's choices are weighed.

    Args:
        runtime: of the method, over the Store that keeps the memory.
        session: the memory.
        tally: where choices are counted.
    """

    def __init__(self, runtime: Runtime, session: Session, tally: MassTally) -> None:
        head = session.turns(0, 1)
        self._runtime, self._tally, self._count = runtime, tally, session.tokens
        self.method: Method = runtime.method(head[0].tokens if head and head[0].meta.get("head") else 0)
        self._chunk = CHUNK_TOKENS if self.method.sizes is None else max(CHUNK_TOKENS, self.method.sizes.group)
        self._rotated = RotatedKeys()
        files = SegmentFiles(session.timeline)
        plan = replace(kv_plan(runtime.attachment, self.method, CHUNK_TOKENS), keep=None, least=None)
        self._kv = SessionKV(runtime.layout, plan, runtime.cache, files)
        files.load(self._kv)
        self._tokens = torch.from_numpy(session.timeline.tokens(0, session.tokens).astype("int64"))

    def close(self) -> None:
        """Give back what the memory holds."""
        self._kv.close()

    def answer(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Weigh what each token of an answer chooses but the last, which is never fed.

        Args:
            prompt: ids after the document: the question, and what asks for a reply.
            answer: ids of the reply.
        """
        start = self._floor()
        self._back_to(start)
        recent = RecentQueries()
        self._feed(torch.cat([self._tokens[start:], torch.tensor(prompt, dtype=torch.int64)]), recent, None, start)
        for token in answer[:-1]:
            self._feed(torch.tensor([token]), recent, "decoded", 0)

    def groups(self, spans: int) -> None:
        """Weigh what groups of the document choose: those of some spans of a forward's length, spread evenly over what lies beyond the
        attended set, the last groups with them. The memory is cut short by it."""
        group = 1 if self.method.sizes is None else self.method.sizes.group
        first, last = -(-(self.method.attended or 0) // group), self._count // group
        stops = sorted({last - (last - first) * at // spans for at in range(spans)}, reverse=True)
        for stop in stops:
            start = max(first, stop - self._chunk // group) * group
            if start < stop * group:
                self._back_to(start)
                self._feed(self._tokens[start : stop * group], RecentQueries(), "groups", 0)

    def _back_to(self, length: int) -> None:
        self._kv.truncate(length)
        self._rotated.truncate(length)

    def _floor(self) -> int:
        """Where the tokens of the document stop being final; see ``MemoryEngine.floor``."""
        attended, sizes = self.method.attended, self.method.sizes
        return self._count if attended is None or sizes is None or self._count <= attended else self._count - self._count % sizes.group

    def _feed(self, ids: Tensor, recent: RecentQueries, kind: Kind | None, since: int) -> None:
        while len(ids):
            start = self._kv.length
            size = min(self._chunk - start % self._chunk, len(ids))
            span = (start, start + size)
            step = MassStep(self._kv, self.method, self._runtime.attachment, operations(), span, recent, since=since)
            self._runtime.attachment.forward(
                ids[None, :size], start, LayerStep(step.watch(self._tally, kind, self._rotated)), logits="none"
            )
            ids = ids[size:]


@contextmanager
def opened_probe(runtime: Runtime, session: Session, tally: MassTally) -> Iterator[MassProbe | None]:
    """A probe, closed in the end; None for methods whose choices cannot be weighed.

    These are methods that attend to everything or choose nothing, and those that choose by attention that was counted while memory was
    made (InfLLM's representatives), which memory made by full attention does not have.
    """
    method = runtime.method(0)
    if not method.recalls or method.selector.keeps.representatives is not None:
        yield None
        return
    probe = MassProbe(runtime, session, tally)
    try:
        yield probe
    finally:
        probe.close()
