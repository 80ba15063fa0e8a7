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
from .cluster_tables import MEMBERS, RUN, ClusterTables
from .halving import halve, rank

STEP_TOKENS = 2048
"""Keys are added so many at a time, on an absolute grid, so that clusters are a function of the keys alone."""

_EMPTY = -1

Fetch = Callable[[Tensor], Tensor]
"""Keys fp32 ``[n, d]`` of tokens int64 ``[n]``."""


class KeyClusters:
    """Clusters of one KV head's keys.

    Args:
        tables: of all KV heads; only the rows of this one are written.
        head: which one.
    """

    def __init__(self, tables: ClusterTables, head: int) -> None:
        self.tables, self.tokens = tables, 0
        self._head, self._count = head, 0

    def __len__(self) -> int:
        return self._count

    @property
    def centres(self) -> Tensor:
        """Mean key of each cluster, fp32 ``[C, d]``."""
        return self.tables.centres[self._head, : self._count]

    @property
    def reach(self) -> Tensor:
        """fp32 ``[C]``: how far along any direction the outermost member is expected beyond the centre, ``r * sqrt(2 ln(n) / d)``: the
        largest of n samples of a round normal distribution whose root mean square distance from its centre is r."""
        return self.tables.reach[self._head, : self._count]

    @property
    def members(self) -> Tensor:
        """Tokens of each cluster, int32 ``[C, MEMBERS]``, padded with -1 at the end."""
        return self.tables.members[self._head, : self._count]

    @property
    def sizes(self) -> Tensor:
        """Members of each cluster, int64 ``[C]``."""
        return self.tables.sizes[self._head, : self._count]

    def add(self, keys: Tensor, fetch: Fetch) -> None:
        """Add the next tokens' ``keys`` fp32 ``[n, d]``; clusters that get too many members are halved until they fit."""
        tokens = torch.arange(self.tokens, self.tokens + len(keys), device=keys.device)
        nearest = self._nearest(keys)
        total = self.sizes + torch.bincount(nearest, minlength=self._count)
        over = (total > MEMBERS)[nearest]
        self._enter(nearest[~over], tokens[~over], keys[~over])
        if bool(over.any()):
            self._split((total > MEMBERS).nonzero()[:, 0], nearest[over], tokens[over], fetch)
        self.tokens += len(keys)

    def cut(self, tokens: int, fetch: Fetch) -> None:
        """Forget the members from token ``tokens`` on; clusters stay as they are, but for what they lose."""
        for at in (self.members >= tokens).any(1).nonzero()[:, 0].split(1024):
            rows = self.members[at]
            gone = rows >= tokens
            lost = rows[gone].long()
            owners = at.repeat_interleave(gone.sum(1))
            self._count_keys(owners, fetch(lost), -1)
            kept = rows.masked_fill(gone, _EMPTY).sort(1, descending=True).values
            self.members[at] = kept
            self.sizes[at] = (kept >= 0).sum(1)
            self._centre(at)
        self.tokens = min(self.tokens, tokens)

    def state(self) -> dict[str, Tensor]:
        """What is kept of the clusters, as ``load`` takes it: members, sums and squares of their keys."""
        tables, head, count = self.tables, self._head, self._count
        return {"members": self.members, "sums": tables.sums[head, :count], "squares": tables.squares[head, :count]}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether tensors are what :meth:`state` may have given: each token from 0 on a member once, all else as long as members are."""
        members, own = state["members"], self.state()
        if any(rows.dtype != own[name].dtype or rows.shape != (len(members), *own[name].shape[1:]) for name, rows in state.items()):
            return False
        tokens = members[members >= 0].sort().values
        return bool((tokens == torch.arange(len(tokens), dtype=tokens.dtype, device=tokens.device)).all())

    def load(self, state: Mapping[str, Tensor], tokens: int) -> None:
        """Take up ``state`` of ``tokens`` tokens."""
        self._grow(len(state["members"]))
        for name, rows in self.state().items():
            rows.copy_(state[name])
        self.sizes.copy_((self.members >= 0).sum(1))
        self._centre(torch.arange(self._count, device=self.sizes.device))
        self.tokens = tokens

    def fork(self, tables: ClusterTables) -> KeyClusters:
        """The same clusters in ``tables``, which hold the same rows."""
        twin = KeyClusters(tables, self._head)
        twin.tokens, twin._count = self.tokens, self._count
        return twin

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
        place = self.sizes[owners] + rank(owners)
        self.members[owners, place] = tokens[order].to(torch.int32)
        self.sizes.add_(torch.bincount(clusters, minlength=self._count))
        self._count_keys(clusters, keys, 1)
        self._centre(owners.unique())

    def _count_keys(self, clusters: Tensor, keys: Tensor, sign: int) -> None:
        self.tables.sums[self._head].index_add_(0, clusters, keys, alpha=sign)
        self.tables.squares[self._head].index_add_(0, clusters, keys.square().sum(1), alpha=sign)

    def _split(self, full: Tensor, clusters: Tensor, tokens: Tensor, fetch: Fetch) -> None:
        """Halve the clusters ``full``, to which ``tokens`` belong too, until all fit; the first half keeps the cluster's number."""
        old = self.members[full]
        tokens = torch.cat([old[old >= 0].long(), tokens])
        group = torch.cat(
            [torch.arange(len(full), device=full.device).repeat_interleave((old >= 0).sum(1)), torch.searchsorted(full, clusters)]
        )
        keys = fetch(tokens)
        group, count = halve(keys, group, len(full), MEMBERS)
        numbers = torch.cat([full, torch.arange(self._count, self._count + count - len(full), device=full.device)])
        self._grow(self._count + count - len(full))
        for rows in self.state().values():
            rows[full] = 0
        self.sizes[full], self.members[full] = 0, _EMPTY
        order = tokens.argsort()
        self._enter(numbers[group[order]], tokens[order], keys[order])

    def _centre(self, clusters: Tensor) -> None:
        tables, head = self.tables, self._head
        sizes = self.sizes[clusters].clamp(min=1)
        centres = tables.sums[head, clusters] / sizes[:, None]
        spread = (tables.squares[head, clusters] / sizes - centres.square().sum(1)).clamp_(min=0).div_(centres.shape[1])
        self.centres[clusters], tables.spread[head, clusters] = centres, spread
        self.reach[clusters] = (spread * 2 * sizes.log()).sqrt_()

    def _grow(self, count: int) -> None:
        self.tables.reserve(count)
        self._count = max(self._count, count)


class LayerClusters:
    """Clusters of every KV head of one layer.

    Args:
        kv_heads: KV heads.
        head_dim: head dimension.
        start: tokens from which on there are clusters, a multiple of ``STEP_TOKENS``; below, a scan of every key costs less.
        behind: newest tokens that are in no cluster; a multiple of ``STEP_TOKENS``.
        device: where they lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, start: int, behind: int = 0, device: torch.device | str = "cpu") -> None:
        self.start, self.behind = start, behind
        self._begin(ClusterTables.empty(kv_heads, head_dim, device))

    def _begin(self, tables: ClusterTables) -> None:
        self._tables, self._shared = tables, False
        self.heads = [KeyClusters(tables, head) for head in range(len(tables.sums))]

    @property
    def blocks(self) -> int:
        """Blocks whose keys are in the clusters."""
        return min(head.tokens for head in self.heads) // BLOCK_TOKENS

    @property
    def fewest(self) -> int:
        """Clusters of the KV head that has the fewest."""
        return min(len(head) for head in self.heads)

    @property
    def most(self) -> int:
        """Clusters of the KV head that has the most."""
        return max(len(head) for head in self.heads)

    def pending(self, tokens: int) -> int:
        """Of so many tokens, those that have to be taken in and are not yet."""
        return max(0, tokens - self.behind - self.blocks * BLOCK_TOKENS)

    def tables(self) -> ClusterTables:
        """Tables of all KV heads, cut behind the last cluster of any of them."""
        return self._tables.cut(self.most)

    def in_runs(self) -> tuple[Tensor, Tensor]:
        """``centres`` fp32 ``[Hk, C, d]`` and ``reach`` fp32 ``[Hk, C]`` of all KV heads, filled up to a multiple of ``RUN`` with clusters
        that reach nowhere."""
        rows = -(-self.most // RUN) * RUN
        return self._tables.centres[:, :rows], self._tables.reach[:, :rows]

    def members_of(self, clusters: Tensor) -> Tensor:
        """Tokens int32 ``[Hk, n, MEMBERS]`` of clusters int64 ``[Hk, n]``, padded with -1."""
        heads, rows = clusters.shape[0], self._tables.rows
        flat = clusters + torch.arange(heads, device=clusters.device)[:, None] * rows
        return self._tables.members.view(heads * rows, MEMBERS).index_select(0, flat.flatten()).view(*clusters.shape, MEMBERS)

    def cover(self, tokens: int, fetch: Callable[[int, Tensor], Tensor]) -> None:
        """Take in all whole steps of the first ``tokens`` tokens but those ``behind``; ``fetch(head, tokens)`` gives keys.

        Steps are always the same ones, so that how tokens arrived changes nothing. Broken off, it leaves nothing, to be made again.
        """
        tokens -= self.behind
        if tokens < self.start or self.blocks * BLOCK_TOKENS + STEP_TOKENS > tokens:
            return
        self._own()
        try:
            for number, head in enumerate(self.heads):
                keys_of = _of_head(fetch, number)
                while head.tokens + STEP_TOKENS <= tokens:
                    stop = max(self.start, head.tokens + STEP_TOKENS)
                    head.add(keys_of(torch.arange(head.tokens, stop)), keys_of)
        except BaseException:
            self._begin(self._tables.emptied())
            raise

    def truncate(self, tokens: int, fetch: Callable[[int, Tensor], Tensor]) -> None:
        """Forget what would be in no cluster were there only the first ``tokens`` tokens, a whole step at a time."""
        kept = max(0, tokens - self.behind)
        kept -= kept % STEP_TOKENS
        if kept >= self.blocks * BLOCK_TOKENS:
            return
        if kept < self.start:
            self._begin(self._tables.emptied())
            return
        self._own()
        for number, head in enumerate(self.heads):
            head.cut(kept, _of_head(fetch, number))

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, as ``load`` takes them; none where there are no clusters."""
        heads = enumerate(self.heads if self.blocks else [])
        return {f"{self._name(number)}.{name}": rows for number, head in heads for name, rows in head.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` gave, of clusters with the same start; anything else is left to ``cover``."""
        found = [{name: state.get(f"{self._name(number)}.{name}") for name in head.state()} for number, head in enumerate(self.heads)]
        known = [{name: tensor for name, tensor in rows.items() if tensor is not None} for rows in found]
        if any(len(rows) < len(wanted) for rows, wanted in zip(known, found, strict=True)):
            return
        if not all(head.fits(rows) for head, rows in zip(self.heads, known, strict=True)):
            return
        self._own()
        for head, rows in zip(self.heads, known, strict=True):
            head.load(rows, int((rows["members"] >= 0).sum()))

    def _name(self, head: int) -> str:
        return f"clusters.{self.start}.{head}" if not self.behind else f"clusters.{self.start}.{self.behind}.{head}"

    def fork(self) -> LayerClusters:
        """A twin; tables are shared until either changes."""
        twin = object.__new__(LayerClusters)
        self._shared = twin._shared = True
        twin.behind = self.behind
        twin.start, twin._tables, twin.heads = self.start, self._tables, [head.fork(self._tables) for head in self.heads]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes reserved; a fork's count where they were made until it changes them."""
        return 0 if self._shared else self._tables.nbytes

    def _own(self) -> None:
        if self._shared:
            self._tables, self._shared = self._tables.clone(), False
            self.heads = [head.fork(self._tables) for head in self.heads]


def _of_head(fetch: Callable[[int, Tensor], Tensor], head: int) -> Fetch:
    return lambda tokens: fetch(head, tokens)
