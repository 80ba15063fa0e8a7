"""Keys in groups of like keys, whatever their place in the timeline, so that a query reads the few groups it points at and not all keys.

Knows keys of one layer, their centres and members; nothing of queries, Blocks in Tiers, or what is chosen. After RetroInfer's wave index
(VLDB 19(5)), whose k-means over fixed segments would let the number of groups that have to be opened grow with the memory: here a
group that has too many members is halved instead, so that groups stay as fine as they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .cluster_tables import MEMBERS, RUN, ClusterTables
from .halving import halve, rank

STEP_TOKENS = 2048
"""Keys are added so many at a time, on an absolute grid, so that clusters are a function of the keys alone."""

TINIEST = 1e-30
"""So much above 0 that it can be divided by."""

_EMPTY = -1

Coded = tuple[Tensor, Tensor]
"""Keys in 8 bits: codes int8 ``[n, d]`` and their steps fp32 ``[n]``."""

Fetch = Callable[[Tensor], Coded]
"""Keys of tokens int64 ``[n]``."""

FetchOfHead = Callable[[int, Tensor], Coded]
"""The same of one KV head."""


class KeyClusters:
    """Clusters of one KV head's keys.

    Args:
        tables: of all KV heads; only the rows of this one are written.
        head: which one.
    """

    def __init__(self, tables: ClusterTables, head: int) -> None:
        self.tables, self.tokens = tables, 0
        self.head, self._count = head, 0

    def __len__(self) -> int:
        return self._count

    @property
    def centres(self) -> Tensor:
        """Mean key of each cluster, fp32 ``[C, d]``."""
        return self.tables.centres[self.head, : self._count]

    @property
    def reach(self) -> Tensor:
        """fp32 ``[C]``: how far along any direction the outermost member is expected beyond the centre, ``r * sqrt(2 ln(n) / d)``: the
        largest of n samples of a round normal distribution whose root mean square distance from its centre is r."""
        return self.tables.reach[self.head, : self._count]

    @property
    def members(self) -> Tensor:
        """Tokens of each cluster, int32 ``[C, M]``, padded with -1 at the end."""
        return self.tables.members[self.head, : self._count]

    @property
    def sizes(self) -> Tensor:
        """Members of each cluster, int64 ``[C]``."""
        return self.tables.sizes[self.head, : self._count]

    @property
    def room(self) -> int:
        """Members of a cluster at most."""
        return self.tables.members.shape[2]

    @property
    def holds_keys(self) -> bool:
        """Whether the keys of a cluster lie with it."""
        return self.tables.steps.shape[2] > 0

    def add(self, stop: int, fetch: Fetch) -> None:
        """Add the tokens up to ``stop``; clusters that get too many members are halved until they fit."""
        tokens = torch.arange(self.tokens, stop, device=self.sizes.device)
        codes, steps = fetch(tokens)
        nearest = self._nearest(_floats((codes, steps)))
        total = self.sizes + torch.bincount(nearest, minlength=self._count)
        over = (total > self.room)[nearest]
        self._enter(nearest[~over], tokens[~over], (codes[~over], steps[~over]))
        if bool(over.any()):
            self._split((total > self.room).nonzero()[:, 0], nearest[over], tokens[over], fetch)
        self.tokens = stop

    def cut(self, tokens: int, fetch: Fetch) -> None:
        """Forget the members from token ``tokens`` on; clusters stay as they are, but for what they lose."""
        for at in (self.members >= tokens).any(1).nonzero()[:, 0].split(1024):
            rows = self.members[at]
            gone = rows >= tokens
            owners = at.repeat_interleave(gone.sum(1))
            self._count_keys(owners, _floats(fetch(rows[gone].long())), -1)
            kept, order = rows.masked_fill(gone, _EMPTY).sort(1, descending=True)
            self.members[at] = kept
            self.sizes[at] = (kept >= 0).sum(1)
            if self.holds_keys:
                codes, steps = self.tables.codes[self.head], self.tables.steps[self.head]
                codes[at] = codes[at].gather(1, order[..., None].expand(-1, -1, codes.shape[2]))
                steps[at] = steps[at].gather(1, order)
            self._centre(at)
        self.tokens = min(self.tokens, tokens)

    def state(self) -> dict[str, Tensor]:
        """What is kept of the clusters, as ``load`` takes it: members, sums and squares of their keys."""
        tables, head, count = self.tables, self.head, self._count
        return {"members": self.members, "sums": tables.sums[head, :count], "squares": tables.squares[head, :count]}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether tensors are what :meth:`state` may have given: each token from 0 on a member once, all else as long as members are."""
        members, own = state["members"], self.state()
        if any(rows.dtype != own[name].dtype or rows.shape != (len(members), *own[name].shape[1:]) for name, rows in state.items()):
            return False
        tokens = members[members >= 0].sort().values
        return bool((tokens == torch.arange(len(tokens), dtype=tokens.dtype, device=tokens.device)).all())

    def load(self, state: Mapping[str, Tensor], tokens: int, fetch: Fetch) -> None:
        """Take up ``state`` of ``tokens`` tokens, whose keys ``fetch`` gives."""
        self._grow(len(state["members"]))
        for name, rows in self.state().items():
            rows.copy_(state[name])
        self.sizes.copy_((self.members >= 0).sum(1))
        self._centre(torch.arange(self._count, device=self.sizes.device))
        if self.holds_keys:
            for at in torch.arange(self._count, device=self.sizes.device).split(1024):
                row, place = (self.members[at] >= 0).nonzero(as_tuple=True)
                self._put(at[row], place, fetch(self.members[at[row], place].long()))
        self.tokens = tokens

    def fork(self, tables: ClusterTables) -> KeyClusters:
        """The same clusters in ``tables``, which hold the same rows."""
        twin = KeyClusters(tables, self.head)
        twin.tokens, twin._count = self.tokens, self._count
        return twin

    def _nearest(self, keys: Tensor) -> Tensor:
        """The cluster whose centre is nearest to each key."""
        if not self._count:
            self._grow(1)
        bias = self.centres.square().sum(1) / 2
        parts = [(part @ self.centres.T).sub_(bias).argmax(1) for part in keys.split(1024)]
        return torch.cat(parts)

    def _enter(self, clusters: Tensor, tokens: Tensor, coded: Coded) -> None:
        """Put tokens and their keys into clusters that have room for them."""
        order = clusters.argsort(stable=True)
        owners = clusters[order]
        place = self.sizes[owners] + rank(owners)
        self.members[owners, place] = tokens[order].to(torch.int32)
        if self.holds_keys:
            self._put(owners, place, (coded[0][order], coded[1][order]))
        self.sizes.add_(torch.bincount(clusters, minlength=self._count))
        self._count_keys(clusters, _floats(coded), 1)
        self._centre(owners.unique())

    def _put(self, clusters: Tensor, place: Tensor, coded: Coded) -> None:
        self.tables.codes[self.head][clusters, place], self.tables.steps[self.head][clusters, place] = coded

    def _count_keys(self, clusters: Tensor, keys: Tensor, sign: int) -> None:
        self.tables.sums[self.head].index_add_(0, clusters, keys, alpha=sign)
        self.tables.squares[self.head].index_add_(0, clusters, keys.square().sum(1), alpha=sign)

    def _split(self, full: Tensor, clusters: Tensor, tokens: Tensor, fetch: Fetch) -> None:
        """Halve the clusters ``full``, to which ``tokens`` belong too, until all fit; the first half keeps the cluster's number."""
        old = self.members[full]
        tokens = torch.cat([old[old >= 0].long(), tokens])
        group = torch.cat(
            [torch.arange(len(full), device=full.device).repeat_interleave((old >= 0).sum(1)), torch.searchsorted(full, clusters)]
        )
        codes, steps = fetch(tokens)
        group, count = halve(_floats((codes, steps)), group, len(full), self.room)
        numbers = torch.cat([full, torch.arange(self._count, self._count + count - len(full), device=full.device)])
        self._grow(self._count + count - len(full))
        for rows in self.state().values():
            rows[full] = 0
        self.sizes[full], self.members[full] = 0, _EMPTY
        order = tokens.argsort()
        self._enter(numbers[group[order]], tokens[order], (codes[order], steps[order]))

    def _centre(self, clusters: Tensor) -> None:
        tables, head = self.tables, self.head
        sizes = self.sizes[clusters].clamp(min=1)
        centres = tables.sums[head, clusters] / sizes[:, None]
        spread = (tables.squares[head, clusters] / sizes - centres.square().sum(1)).clamp_(min=0).div_(centres.shape[1])
        self.centres[clusters], tables.spread[head, clusters] = centres, spread
        if self.holds_keys:  # who reads keys out of clusters ranks them in 8 bits, too
            steps = centres.abs().amax(1).clamp_(min=TINIEST) / 127
            tables.centre_steps[head, clusters] = steps
            tables.centre_codes[head, clusters] = (centres / steps[:, None]).round_().to(torch.int8)
        self.reach[clusters] = (spread * 2 * sizes.log()).sqrt_()

    def _grow(self, count: int) -> None:
        self.tables.reserve(count)
        self._count = max(self._count, count)


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """Which keys are in clusters, and how.

    Attributes:
        start: tokens from which on there are clusters, a multiple of ``STEP_TOKENS``; below, a scan of every key costs less.
        behind: newest tokens that are in no cluster; a multiple of ``STEP_TOKENS``.
        members: keys of one cluster at most.
        holds_keys: keep a copy of the 8-bit keys with each cluster, so that it is read in one run.
    """

    start: int
    behind: int = 0
    members: int = MEMBERS
    holds_keys: bool = False


class LayerClusters:
    """Clusters of every KV head of one layer.

    Args:
        kv_heads: KV heads.
        head_dim: head dimension.
        plan: which keys, and how.
        device: where they lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, plan: ClusterPlan, device: torch.device | str = "cpu") -> None:
        self._plan = plan
        self._begin(ClusterTables.empty(kv_heads, head_dim, device, plan.members, holds_keys=plan.holds_keys))

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
        return max(0, tokens - self._plan.behind - self.blocks * BLOCK_TOKENS)

    def tables(self) -> ClusterTables:
        """Tables of all KV heads, cut behind the last cluster of any of them."""
        return self._tables.cut(self.most)

    def in_runs(self) -> tuple[Tensor, Tensor]:
        """``centres`` fp32 ``[Hk, C, d]`` and ``reach`` fp32 ``[Hk, C]`` of all KV heads, filled up to a multiple of ``RUN`` with clusters
        that reach nowhere."""
        rows = -(-self.most // RUN) * RUN
        return self._tables.centres[:, :rows], self._tables.reach[:, :rows]

    def members_of(self, clusters: Tensor) -> Tensor:
        """Tokens int32 ``[Hk, n, M]`` of clusters int64 ``[Hk, n]``, padded with -1."""
        return self._tables.take(clusters, slice(0, len(clusters)), "members")[0]

    def keys_of(self, clusters: Tensor, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of clusters int64 ``[s, ...]``, of each of the KV heads ``heads`` its own, where keys are held: tokens int32 ``[s, ..., M]``,
        padded with -1, their keys int8 ``[s, ..., M, d]`` and steps fp32 ``[s, ..., M]``."""
        tokens, codes, steps = self._tables.take(clusters, heads, "members", "codes", "steps")
        return tokens, codes, steps

    def cover(self, tokens: int, fetch: FetchOfHead) -> None:
        """Take in all whole steps of the first ``tokens`` tokens but those ``behind``; ``fetch(head, tokens)`` gives keys.

        Steps are always the same ones, so that how tokens arrived changes nothing. Broken off, it leaves nothing, to be made again.
        """
        tokens -= self._plan.behind
        if tokens < self._plan.start or self.blocks * BLOCK_TOKENS + STEP_TOKENS > tokens:
            return
        self._own()
        try:
            for number, head in enumerate(self.heads):
                keys_of = _of_head(fetch, number)
                while head.tokens + STEP_TOKENS <= tokens:
                    head.add(max(self._plan.start, head.tokens + STEP_TOKENS), keys_of)
        except BaseException:
            self._begin(self._tables.emptied())
            raise

    def truncate(self, tokens: int, fetch: FetchOfHead) -> None:
        """Forget what would be in no cluster were there only the first ``tokens`` tokens, a whole step at a time."""
        kept = max(0, tokens - self._plan.behind)
        kept -= kept % STEP_TOKENS
        if kept >= self.blocks * BLOCK_TOKENS:
            return
        if kept < self._plan.start:
            self._begin(self._tables.emptied())
            return
        self._own()
        for number, head in enumerate(self.heads):
            head.cut(kept, _of_head(fetch, number))

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, as ``load`` takes them; none where there are no clusters."""
        heads = enumerate(self.heads if self.blocks else [])
        return {f"{self._name(number)}.{name}": rows for number, head in heads for name, rows in head.state().items()}

    def load(self, state: Mapping[str, Tensor], tokens: int, fetch: FetchOfHead) -> None:
        """Take up what ``state`` gave, of clusters with the same start and of no more than ``tokens`` tokens, whose keys ``fetch`` gives;
        anything else is left to ``cover``."""
        found = [{name: state.get(f"{self._name(number)}.{name}") for name in head.state()} for number, head in enumerate(self.heads)]
        known = [{name: tensor for name, tensor in rows.items() if tensor is not None} for rows in found]
        if any(len(rows) < len(wanted) for rows, wanted in zip(known, found, strict=True)):
            return
        if not all(head.fits(rows) for head, rows in zip(self.heads, known, strict=True)):
            return
        counts = [int((rows["members"] >= 0).sum()) for rows in known]
        if max(counts) > tokens:
            return
        self._own()
        for number, (head, rows, count) in enumerate(zip(self.heads, known, counts, strict=True)):
            head.load(rows, count, _of_head(fetch, number))

    def _name(self, head: int) -> str:
        plan = self._plan
        return f"clusters.{plan.start}.{head}" if not plan.behind else f"clusters.{plan.start}.{plan.behind}.{head}"

    def fork(self) -> LayerClusters:
        """A twin; tables are shared until either changes."""
        twin = object.__new__(LayerClusters)
        self._shared = twin._shared = True
        twin._plan, twin._tables, twin.heads = self._plan, self._tables, [head.fork(self._tables) for head in self.heads]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes reserved; a fork's count where they were made until it changes them."""
        return 0 if self._shared else self._tables.nbytes

    def _own(self) -> None:
        if self._shared:
            self._tables, self._shared = self._tables.clone(), False
            self.heads = [head.fork(self._tables) for head in self.heads]


def _of_head(fetch: FetchOfHead, head: int) -> Fetch:
    return lambda tokens: fetch(head, tokens)


def _floats(coded: Coded) -> Tensor:
    codes, steps = coded
    return codes.float().mul_(steps[:, None])
