"""Keys in groups of like keys, whatever their place in the timeline, so that a query reads the few groups it points at and not all keys.

Knows keys of one layer, their centres and members; nothing of queries, Blocks in Tiers, or what is chosen. After RetroInfer's wave index
(VLDB 19(5)), whose k-means over fixed segments would let the number of groups that have to be opened grow with the memory: here a
group that has too many members is halved instead, so that groups stay as fine as they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .halving import halve, rank

MEMBERS = 128
"""Keys of one cluster at most."""

STEP_TOKENS = 2048
"""Keys are added so many at a time, on an absolute grid, so that clusters are a function of the keys alone."""

RUN = 32
"""Rows of the tables that are looked at together are filled up to a multiple of this."""

_EMPTY = -1
_NOWHERE = -1e30

_FILL = {"_members": _EMPTY, "_reach": _NOWHERE}

Fetch = Callable[[Tensor], Tensor]
"""Keys fp32 ``[n, d]`` of tokens int64 ``[n]``."""


class KeyClusters:
    """Clusters of one KV head's keys.

    Args:
        head_dim: head dimension ``d``.
        device: where the tables lie.
    """

    def __init__(self, head_dim: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._count = 0
        self._shared = False
        self._sums = torch.zeros((0, head_dim), device=device)
        self._squares = torch.zeros(0, device=device)
        self._centres = torch.zeros((0, head_dim), device=device)
        self._reach = torch.zeros(0, device=device)
        self._sizes = torch.zeros(0, dtype=torch.int64, device=device)
        self._members = torch.zeros((0, MEMBERS), dtype=torch.int32, device=device)

    def __len__(self) -> int:
        return self._count

    @property
    def centres(self) -> Tensor:
        """Mean key of each cluster, fp32 ``[C, d]``."""
        return self._centres[: self._count]

    @property
    def reach(self) -> Tensor:
        """fp32 ``[C]``: how far along any direction the outermost member is expected beyond the centre, ``r * sqrt(2 ln(n) / d)``: the
        largest of n samples of a round normal distribution whose root mean square distance from its centre is r."""
        return self._reach[: self._count]

    def in_runs(self) -> tuple[Tensor, Tensor]:
        """``centres`` and ``reach``, filled up to a multiple of ``RUN`` with clusters that reach nowhere."""
        count = -(-self._count // RUN) * RUN
        return self._centres[:count], self._reach[:count]

    @property
    def members(self) -> Tensor:
        """Tokens of each cluster, int32 ``[C, MEMBERS]``, padded with -1 at the end."""
        return self._members[: self._count]

    def tokens_of(self, clusters: Tensor) -> Tensor:
        """Members int64 of ``clusters`` int64, which may be some of those that ``in_runs`` is filled up with."""
        members = self._members[clusters]
        return members[members >= 0].long()

    def add(self, keys: Tensor, fetch: Fetch) -> None:
        """Add the next tokens' ``keys`` fp32 ``[n, d]``; clusters that get too many members are halved until they fit."""
        self._own()
        tokens = torch.arange(self.tokens, self.tokens + len(keys), device=keys.device)
        nearest = self._nearest(keys)
        total = self._sizes[: self._count] + torch.bincount(nearest, minlength=self._count)
        over = (total > MEMBERS)[nearest]
        self._enter(nearest[~over], tokens[~over], keys[~over])
        if bool(over.any()):
            self._split((total > MEMBERS).nonzero()[:, 0], nearest[over], tokens[over], fetch)
        self.tokens += len(keys)

    def cut(self, tokens: int, fetch: Fetch) -> None:
        """Forget the members from token ``tokens`` on; clusters stay as they are, but for what they lose."""
        if tokens >= self.tokens:
            return
        self._own()
        for at in (self.members >= tokens).any(1).nonzero()[:, 0].split(1024):
            rows = self._members[at]
            gone = rows[rows >= tokens].long()
            owners = at.repeat_interleave((rows >= tokens).sum(1))
            keys = fetch(gone)
            self._sums.index_add_(0, owners, keys, alpha=-1)
            self._squares.index_add_(0, owners, keys.square().sum(1), alpha=-1)
            kept = rows.masked_fill(rows >= tokens, _EMPTY).sort(1, descending=True).values
            self._members[at] = kept
            self._sizes[at] = (kept >= 0).sum(1)
            self._centre(at)
        self.tokens = tokens

    def state(self) -> dict[str, Tensor]:
        """What is kept of the clusters, as ``load`` takes it: members, sums and squares of their keys."""
        count = self._count
        return {"members": self._members[:count], "sums": self._sums[:count], "squares": self._squares[:count]}

    def load(self, state: Mapping[str, Tensor], tokens: int) -> None:
        """Take up ``state`` of ``tokens`` tokens."""
        self._own()
        count = len(state["members"])
        self._grow(count)
        self._members[:count], self._sums[:count], self._squares[:count] = state["members"], state["sums"], state["squares"]
        self._sizes[:count] = (state["members"] >= 0).sum(1)
        self._centre(torch.arange(count, device=self._sizes.device))
        self.tokens = tokens

    def fork(self) -> KeyClusters:
        """A twin; tables are shared until either changes."""
        twin = object.__new__(KeyClusters)
        self._shared = True
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes reserved; a fork's count where they were made until it changes them."""
        return 0 if self._shared else sum(table.nbytes for table in self._tables().values())

    def _own(self) -> None:
        if self._shared:
            self.__dict__.update({name: table.clone() for name, table in self._tables().items()})
            self._shared = False

    def _tables(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}

    def _nearest(self, keys: Tensor) -> Tensor:
        """The cluster whose centre is nearest to each key."""
        if not self._count:
            self._grow(1)
        bias = self.centres.square().sum(1) / 2
        parts = [(part @ self.centres.T).sub_(bias).argmax(1) for part in keys.split(1024)]
        return torch.cat(parts)

    def _enter(self, clusters: Tensor, tokens: Tensor, keys: Tensor) -> None:
        """Put tokens into clusters that have room for them."""
        order = clusters.argsort(stable=True)
        owners = clusters[order]
        place = self._sizes[owners] + rank(owners)
        self._members[owners, place] = tokens[order].to(torch.int32)
        self._sizes += torch.bincount(clusters, minlength=len(self._sizes))
        self._sums.index_add_(0, clusters, keys)
        self._squares.index_add_(0, clusters, keys.square().sum(1))
        self._centre(owners.unique())

    def _split(self, full: Tensor, clusters: Tensor, tokens: Tensor, fetch: Fetch) -> None:
        """Halve the clusters ``full``, to which ``tokens`` belong too, until all fit; the first half keeps the cluster's number."""
        old = self._members[full]
        tokens = torch.cat([old[old >= 0].long(), tokens])
        group = torch.cat(
            [torch.arange(len(full), device=full.device).repeat_interleave((old >= 0).sum(1)), torch.searchsorted(full, clusters)]
        )
        keys = fetch(tokens)
        group, count = halve(keys, group, len(full), MEMBERS)
        numbers = torch.cat([full, torch.arange(self._count, self._count + count - len(full), device=full.device)])
        self._grow(self._count + count - len(full))
        self._sizes[full], self._sums[full], self._squares[full], self._members[full] = 0, 0.0, 0.0, _EMPTY
        order = tokens.argsort()
        self._enter(numbers[group[order]], tokens[order], keys[order])

    def _centre(self, clusters: Tensor) -> None:
        sizes = self._sizes[clusters].clamp(min=1)
        centres = self._sums[clusters] / sizes[:, None]
        variance = (self._squares[clusters] / sizes - centres.square().sum(1)).clamp_(min=0)
        self._centres[clusters] = centres
        self._reach[clusters] = (variance * 2 * sizes.log() / centres.shape[1]).sqrt_()

    def _grow(self, count: int) -> None:
        more = max(256, 2 * len(self._sizes), -(-count // RUN) * RUN) - len(self._sizes)
        if count > len(self._sizes):
            for name, table in self._tables().items():
                fill = _FILL.get(name, 0)
                setattr(self, name, torch.cat([table, table.new_full((more, *table.shape[1:]), fill)]))
        self._count = max(self._count, count)


class LayerClusters:
    """Clusters of every KV head of one layer.

    Args:
        kv_heads: KV heads.
        head_dim: head dimension.
        start: tokens from which on there are clusters, a multiple of ``STEP_TOKENS``; below, a scan of every key costs less.
        device: where they lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, start: int, device: torch.device | str = "cpu") -> None:
        self.start = start
        self.heads = [KeyClusters(head_dim, device) for _ in range(kv_heads)]

    @property
    def blocks(self) -> int:
        """Blocks whose keys are in the clusters."""
        return self.heads[0].tokens // BLOCK_TOKENS

    def cover(self, tokens: int, fetch: Callable[[int, Tensor], Tensor]) -> None:
        """Take in all whole steps of the first ``tokens`` tokens; ``fetch(head, tokens)`` gives keys.

        Steps are always the same ones, so that how tokens arrived changes nothing.
        """
        if tokens < self.start:
            return
        for number, head in enumerate(self.heads):
            keys_of = _of_head(fetch, number)
            while head.tokens + STEP_TOKENS <= tokens:
                stop = max(self.start, head.tokens + STEP_TOKENS)
                head.add(keys_of(torch.arange(head.tokens, stop)), keys_of)

    def truncate(self, tokens: int, fetch: Callable[[int, Tensor], Tensor]) -> None:
        """Forget tokens from ``tokens`` on, a whole step at a time."""
        kept = tokens - tokens % STEP_TOKENS
        for number, head in enumerate(self.heads):
            if kept < self.start and head.tokens:
                self.heads[number] = KeyClusters(head.centres.shape[1], head.centres.device)
            else:
                head.cut(kept, _of_head(fetch, number))

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, as ``load`` takes them; none where there are no clusters."""
        heads = enumerate(self.heads if self.blocks else [])
        return {f"{self._name(number)}.{name}": rows for number, head in heads for name, rows in head.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` gave, of clusters with the same start; anything else is left to ``cover``."""
        found = [{name: state.get(f"{self._name(number)}.{name}") for name in head.state()} for number, head in enumerate(self.heads)]
        for head, rows in zip(self.heads, found, strict=True):
            known = {name: tensor.to(head.centres.device) for name, tensor in rows.items() if tensor is not None}
            if len(known) == len(rows):
                head.load(known, int((known["members"] >= 0).sum()))

    def _name(self, head: int) -> str:
        return f"clusters.{self.start}.{head}"

    def fork(self) -> LayerClusters:
        """A twin that shares what both do not change."""
        twin = object.__new__(LayerClusters)
        twin.start, twin.heads = self.start, [head.fork() for head in self.heads]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(head.nbytes for head in self.heads)


def _of_head(fetch: Callable[[int, Tensor], Tensor], head: int) -> Fetch:
    return lambda tokens: fetch(head, tokens)
