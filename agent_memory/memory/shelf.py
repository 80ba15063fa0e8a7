"""Both Tiers of one kind of Block: a device pool, the host below it, and how Blocks move between them and a source.

Knows one shape of Block; nothing of locks, of who is alive, or of other shapes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .block import BlockSource
from .device import SlotPool
from .host import HostTier

DEVICE, HOST, DISK = 0, 1, 2
COUNTED = ("device_hits", "host_hits", "disk_reads", "damaged", "evicted", "spilled")
_STAGING_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Reading:
    """Blocks held for reading; they stay where they are until the ``with`` block ends.

    Attributes:
        slots: int64 ``[n]`` on the device, the place of each Block in ``pool``; -1 where it is damaged.
        pool: ``[slots, 2, kv_heads, block_tokens, head_dim]``, keys at index 0, values at 1. Read only, and only at ``slots``.
        tiers: uint8 ``[n]``, where each came from: 0 device, 1 host, 2 disk.
    """

    slots: Tensor
    pool: Tensor
    tiers: np.ndarray


@dataclass(frozen=True, slots=True)
class Wanted:
    """Blocks one reading asks for: ``uids`` as the cache names them, ``blocks`` as the source does, at ``layer`` (``row`` in its kind)."""

    layer: int
    row: int
    uids: np.ndarray
    blocks: np.ndarray


class Shelf:
    """Both Tiers of one kind of Block.

    Besides the Tiers it keeps a buffer of at most 4 MiB (or one Block) of ordinary memory, through which Blocks come from a source.
    ``counts`` counts what happened, by the names in ``COUNTED``.
    """

    def __init__(self, pool: SlotPool, host: HostTier) -> None:
        self.pool, self.host = pool, host
        self.counts: Counter[str] = Counter()
        self._staging = torch.empty((0, *pool.data.shape[1:]), dtype=pool.data.dtype)

    def make_room(self, n: int, device_bytes: int) -> None:
        """Free ``n`` device slots; the coldest Blocks go down to the host as far as it has room.

        Raises:
            ConfigError: if too few may leave; of ``device_bytes``, the whole device budget, it says how much would do.
        """
        table = self.pool.table
        if n <= table.free:
            return
        if n > table.available:
            least = -(-device_bytes * (table.slots - table.available + n) // max(1, table.slots))
            raise ConfigError(
                f"{n} Blocks do not fit: of {table.slots} slots on the device {table.only_copies} wait to be saved and {table.pinned} "
                f"are in use; raise Budget.device to at least {least} bytes, or read fewer at once"
            )
        leaving = table.victims(n)
        if self.host.table.slots:
            self._spill(leaving)
        self.counts["evicted"] += self.pool.drop(leaving)

    def bring(self, wanted: Wanted, source: BlockSource, device_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        """Device slots (pinned; -1 where damaged) and Tiers of the Blocks wanted; if it fails, nothing stays pinned."""
        table = self.pool.table
        slots = table.find(wanted.row, wanted.uids)
        tiers = np.where(slots >= 0, DEVICE, DISK).astype(np.uint8)
        hits = slots[slots >= 0]
        table.pin(hits)
        table.touch(hits)
        try:
            if len(hits) < len(slots):
                self._from_host(wanted, slots, tiers, device_bytes)
                self._from_source(wanted, slots, source, device_bytes)
        except BaseException:
            self.pool.unpin(slots[slots >= 0])
            raise
        self.counts.update(device_hits=len(hits), host_hits=int((tiers == HOST).sum()), disk_reads=int((tiers == DISK).sum()))
        self.counts["damaged"] += int((slots < 0).sum())
        return slots, tiers

    def _spill(self, leaving: np.ndarray) -> None:
        rows, uids = self.pool.table.entries(leaving)
        for row in np.setdiff1d(rows, self.pool.table.unread):
            here = rows == row
            self.counts["spilled"] += self.host.spill(int(row), uids[here], self.pool.read(leaving[here]))

    def _from_host(self, wanted: Wanted, slots: np.ndarray, tiers: np.ndarray, device_bytes: int) -> None:
        host = self.host.table
        missing = np.flatnonzero(slots < 0)
        found = host.find(wanted.row, wanted.uids[missing])
        here, found = missing[found >= 0], found[found >= 0]
        # Pinned, because making room on the device spills other Blocks to the host.
        host.pin(found)
        host.touch(found)
        try:
            self.make_room(len(missing), device_bytes)
            slots[here] = self._take(wanted, here, self.host.read(found))
            tiers[here] = HOST
        finally:
            self.host.unpin(found)

    def _from_source(self, wanted: Wanted, slots: np.ndarray, source: BlockSource, device_bytes: int) -> None:
        missing = np.flatnonzero(slots < 0)
        step = max(1, _STAGING_BYTES // self.pool.block_bytes)
        for part in (missing[i : i + step] for i in range(0, len(missing), step)):
            staging = self._empty(len(part))
            good = np.flatnonzero(source.read_kv(wanted.layer, wanted.blocks[part], staging))
            self.make_room(len(good), device_bytes)
            kv = staging if len(good) == len(part) else staging[torch.from_numpy(good)]
            slots[part[good]] = self._take(wanted, part[good], kv)

    def _take(self, wanted: Wanted, which: np.ndarray, kv: Tensor) -> np.ndarray:
        taken = self.pool.put(wanted.row, wanted.uids[which], kv, only_copy=False)
        self.pool.table.pin(taken)
        return taken

    def _empty(self, n: int) -> Tensor:
        """Room for ``n`` Blocks ``[n, *shape]`` on the CPU, whose content is not defined."""
        if n > len(self._staging):
            self._staging = torch.empty((n, *self._staging.shape[1:]), dtype=self._staging.dtype, pin_memory=self.pool.data.is_cuda)
        if self.pool.poison:
            self._staging.fill_(torch.nan)
        return self._staging[:n]
