"""Both Tiers of one kind of Block: a device pool, the host below it, and how Blocks move between them and a source.

Knows one shape of Block; nothing of locks, of who is alive, or of other shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .beside import HostBudget
from .block import BlockSource
from .device import SlotPool
from .host import HostTier
from .packing import Int8

DEVICE, HOST, DISK, HOST_INT8, HOST_INT4 = range(5)
APPROXIMATE = (HOST_INT8, HOST_INT4)
"""Tiers that hold Blocks in fewer bytes, the last ones; what comes from them is said to, for as long as it stays on the device."""
COUNTED = ("device_hits", "host_hits", "disk_reads", "damaged", "evicted", "spilled", "approximate")
AHEAD = ("prefetch_asked", "prefetched", "prefetch_hits")
_STAGING_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Reading:
    """Blocks held for reading; they stay where they are until the ``with`` block ends.

    Attributes:
        slots: int64 ``[n]`` on the device, the place of each Block in ``pool``; -1 where it is damaged.
        pool: ``[slots, 2, kv_heads, block_tokens, head_dim]``, keys at index 0, values at 1. Read only, and only at ``slots``.
        tiers: uint8 ``[n]``, where each came from: 0 device, 1 host, 2 disk, 3 and 4 the host in 8 and 4 bits: approximate.
    """

    slots: Tensor
    pool: Tensor
    tiers: np.ndarray


@dataclass(frozen=True, slots=True)
class Wanted:
    """Blocks one reading asks for: ``uids`` as the cache names them, ``blocks`` as the source does, at ``layer`` (``row`` in its kind);
    with ``exact`` none that is approximate."""

    layer: int
    row: int
    uids: np.ndarray
    blocks: np.ndarray
    exact: bool = True


class Shelf:
    """Both Tiers of one kind of Block.

    Besides the Tiers it keeps a buffer of at most 4 MiB (or one Block) of ordinary memory, through which Blocks come from a source.
    ``counts`` counts what happened, by the names in ``COUNTED``.

    Args:
        pool: the device Tier.
        host: the Tier below it.
        device_bytes: all device Tiers together, for messages.
        host_budget: says how many of the host's slots may be used.
    """

    def __init__(self, pool: SlotPool, host: HostTier, *, device_bytes: int, host_budget: HostBudget) -> None:
        self.pool, self.host, self._device_bytes, self._host_budget = pool, host, device_bytes, host_budget
        self._host_tier = HOST if host.packing is None else HOST_INT8 if isinstance(host.packing, Int8) else HOST_INT4
        self.counts: Counter[str] = Counter()
        self._staging = torch.empty((0, *pool.data.shape[1:]), dtype=pool.data.dtype)

    def make_room(self, n: int) -> None:
        """Free ``n`` device slots; the coldest Blocks go down to the host as far as it has room.

        Raises:
            ConfigError: if too few may leave; says how large a device budget would do.
        """
        table = self.pool.table
        if n <= table.free:
            return
        if n > table.available:
            least = -(-self._device_bytes * (table.slots - table.available + n) // max(1, table.slots))
            raise ConfigError(
                f"{n} Blocks do not fit: of {table.slots} slots on the device {table.only_copies} wait to be saved and {table.pinned} "
                f"are in use; raise Budget.device to at least {least} bytes, or read fewer at once"
            )
        leaving = table.victims(n)
        if self.host.table.slots:
            self._spill(leaving)
        self.counts["evicted"] += self.pool.drop(leaving)

    def bring(self, wanted: Wanted, source: BlockSource) -> tuple[np.ndarray, np.ndarray]:
        """Device slots (pinned; -1 where damaged) and Tiers of the Blocks wanted; if it fails, nothing stays pinned."""
        table = self.pool.table
        slots = table.find(wanted.row, wanted.uids)
        if wanted.exact and self.host.packing is not None:
            self._drop_approximate(slots)
        tiers = np.where(slots >= 0, table.origin[slots], DISK).astype(np.uint8)
        hits = slots[slots >= 0]
        table.pin(hits)
        table.touch(hits)
        try:
            if len(hits) < len(slots):
                self._from_host(wanted, slots, tiers)
                self._from_source(wanted, slots, source)
        except BaseException:
            self.pool.unpin(slots[slots >= 0])
            raise
        early = hits[table.origin[hits] == DISK]
        table.origin[early] = DEVICE
        self.counts["device_hits"] += len(hits) - len(early)
        self.counts["prefetch_hits"] += len(early)
        self.counts["disk_reads"] += int(np.count_nonzero(tiers == DISK)) - len(early)
        self.counts["approximate"] += int(np.count_nonzero(tiers > DISK))
        self.counts["damaged"] += int((slots < 0).sum())
        return slots, tiers

    def missing(self, row: int, uids: np.ndarray) -> np.ndarray:
        """bool ``[n]``: True for Blocks in neither Tier."""
        missing: np.ndarray = (self.pool.table.find(row, uids) < 0) & (self.host.table.find(row, uids) < 0)
        return missing

    def pages(self, row: int, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 ``[n]``: the device slot of each Block, ``-(slot + 2)`` of the host where only that has it as it is, -1 where neither does;
        and uint8 ``[n]``, its Tier if either does."""
        found = self.pool.table.find(row, uids)
        tiers = np.where(found >= 0, self.pool.table.origin[found], HOST).astype(np.uint8)
        if self.host.table.slots and self.host.packing is None:
            below = self.host.table.find(row, uids)
            found = np.where((found < 0) & (below >= 0), -2 - below, found)
        return found.astype(np.int32), tiers

    def land(self, wanted: Wanted, kv: Tensor) -> None:
        """Take Blocks ``kv`` ``[n, *shape]`` that nobody reads yet; who reads one first is told that it came from the disk."""
        if len(kv) <= self.pool.table.available:
            self.make_room(len(kv))
            self.pool.put(wanted.row, wanted.uids, kv, only_copy=False, origin=DISK)
            self.counts["prefetched"] += len(kv)

    def empty(self, n: int) -> Tensor:
        """Room of its own for ``n`` Blocks ``[n, *shape]`` on the CPU, whose content is not defined."""
        made = torch.empty((n, *self.pool.data.shape[1:]), dtype=self.pool.data.dtype, pin_memory=self.pool.data.is_cuda)
        return made.fill_(torch.nan) if self.pool.poison else made

    def _drop_approximate(self, slots: np.ndarray) -> None:
        """Let go of approximate copies among ``slots`` and set those to -1; whoever is reading one keeps it until he leaves."""
        wrong = (slots >= 0) & (self.pool.table.origin[slots] > DISK)
        self.pool.drop(slots[wrong])
        slots[wrong] = -1

    def _spill(self, leaving: np.ndarray) -> None:
        rows, uids = self.pool.table.entries(leaving)
        sound = self.pool.table.origin[leaving] <= DISK
        most = int(self.host.table.slots * self._host_budget.share)
        for row in np.setdiff1d(rows, self.pool.table.unread):
            here = rows == row
            self.counts["spilled"] += self.host.spill(int(row), uids[here], self.pool.read(leaving[here]), sound[here], most)

    def _from_host(self, wanted: Wanted, slots: np.ndarray, tiers: np.ndarray) -> None:
        host = self.host.table
        missing = np.flatnonzero(slots < 0)
        found = host.find(wanted.row, wanted.uids[missing])
        if wanted.exact and self.host.packing is not None:
            found = np.full_like(found, -1)
        here, found = missing[found >= 0], found[found >= 0]
        # Pinned, because making room on the device spills other Blocks to the host.
        host.pin(found)
        host.touch(found)
        try:
            self.make_room(len(missing))
            slots[here] = self._take(wanted, here, self.host.read(found), DEVICE if self.host.packing is None else self._host_tier)
            tiers[here] = self._host_tier
            self.counts["host_hits"] += len(here)
        finally:
            self.host.unpin(found)

    def _from_source(self, wanted: Wanted, slots: np.ndarray, source: BlockSource) -> None:
        missing = np.flatnonzero(slots < 0)
        for part in in_parts(missing, self.pool.block_bytes):
            staging = self._empty(len(part))
            good = np.flatnonzero(source.read_kv(wanted.layer, wanted.blocks[part], staging))
            self.make_room(len(good))
            kv = staging if len(good) == len(part) else staging[torch.from_numpy(good)]
            slots[part[good]] = self._take(wanted, part[good], kv)

    def _take(self, wanted: Wanted, which: np.ndarray, kv: Tensor, origin: int = DEVICE) -> np.ndarray:
        taken = self.pool.put(wanted.row, wanted.uids[which], kv, only_copy=False, origin=origin)
        self.pool.table.pin(taken)
        return taken

    def _empty(self, n: int) -> Tensor:
        """Room for ``n`` Blocks ``[n, *shape]`` on the CPU, whose content is not defined."""
        if n > len(self._staging):
            self._staging = self.empty(n)
        if self.pool.poison:
            self._staging.fill_(torch.nan)
        return self._staging[:n]


def in_parts(which: np.ndarray, block_bytes: int) -> Iterator[np.ndarray]:
    """``which`` ``[n]`` in parts of Blocks that fit one buffer."""
    step = max(1, _STAGING_BYTES // block_bytes)
    return (which[i : i + step] for i in range(0, len(which), step))
