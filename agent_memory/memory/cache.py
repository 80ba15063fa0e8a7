"""Blocks of every open Session of one Runtime, in byte-bounded Tiers: device, then host, then whatever a source reads from.

Knows which Tier holds which (Block, layer) and moves copies between them; nothing of Sessions, files, or why a Block is wanted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..types import Budget, KVLayout
from .arrivals import Arrival, Arrivals
from .beside import Beside, HostBudget
from .block import BlockSource, kv_dtype
from .device import SlotPool
from .host import HostTier
from .packing import packing_of
from .shelf import AHEAD, COUNTED, Reading, Shelf, Wanted, in_parts
from .sizes import parse_size
from .tier import block_kinds, fit_slots
from .uids import Uids


class TieredCache:
    """Blocks of every open Session of one Runtime in byte-bounded Tiers.

    A Block is named by a uid that the cache hands out; entries are (uid, layer). Uids are counted: forks share the Blocks they have
    in common. An entry put here is the only copy, and stays, until ``saved``; after that the coldest leave when room is needed.
    Methods may be called from several threads.

    Args:
        layout: shape of a Block at each layer; layers of equal shape share slots.
        budget: bytes each Tier may hold.
        device: where attention reads Blocks.
        min_blocks: Blocks that one ``reading`` must be able to ask for, however many wait to be saved.
        unsaved_blocks: Blocks that may wait to be saved, at all layers at once.
        unread: layers that recall nothing: their Blocks are there to be saved, and leave first.
        host_bytes: bytes of spilled Blocks in host memory; by default the host budget with a GPU, or where they are packed
            (``budget.cold``); nothing on a CPU otherwise, where device and host are the same memory.
        poison: fill free slots with NaN, so that a test sees it when one is read.

    Raises:
        ConfigError: if the device budget is too small for ``min_blocks`` and ``unsaved_blocks``; names the least that is enough.
    """

    def __init__(
        self,
        layout: KVLayout,
        budget: Budget,
        device: torch.device | str = "cpu",
        *,
        min_blocks: int = 1,
        unsaved_blocks: int = 0,
        unread: Collection[int] = (),
        host_bytes: int | str | None = None,
        poison: bool = False,
    ) -> None:
        self.layout, self.device = layout, torch.device(device)
        self._dtype, kinds = kv_dtype(layout), block_kinds(layout)
        packing = packing_of(budget.cold)
        if host_bytes is None:
            host_bytes = 0 if self.device.type == "cpu" and packing is None else budget.host
        device_slots = fit_slots(kinds, parse_size(budget.device), min_blocks=min_blocks, unsaved_blocks=unsaved_blocks)
        packed = block_kinds(layout, packing)
        host_slots = fit_slots(packed, parse_size(host_bytes))
        device_bytes = sum(kind.block_bytes * slots for kind, slots in zip(kinds, device_slots, strict=True))
        reserved = sum(kind.block_bytes * slots for kind, slots in zip(packed, host_slots, strict=True))
        self._host_budget = HostBudget(parse_size(budget.host), reserved)
        self._shelves = [
            Shelf(
                SlotPool(
                    kind.shape,
                    self._dtype,
                    device_slots[i],
                    layers=len(kind.layers),
                    unread=[row for row, layer in enumerate(kind.layers) if layer in unread],
                    device=self.device,
                    poison=poison,
                ),
                HostTier(
                    kind.shape, self._dtype, host_slots[i], packing=packing, layers=len(kind.layers), device=self.device, poison=poison
                ),
                device_bytes=device_bytes,
                host_budget=self._host_budget,
            )
            for i, kind in enumerate(kinds)
        ]
        self._place = {layer: (self._shelves[i], row) for i, kind in enumerate(kinds) for row, layer in enumerate(kind.layers)}
        self._uids = Uids()
        self._lock = threading.RLock()
        place = self._place  # not self: a cache that is in no cycle frees its pools when it is let go
        self._arrivals = Arrivals(self._lock, lambda wanted, kv: place[wanted.layer][0].land(wanted, kv))
        self._device_budget = parse_size(budget.device)
        self.prefetches = budget.prefetch
        self._later: deque[Callable[[], None]] = deque()

    def later(self, call: Callable[[], None]) -> None:
        """Have ``call`` made before the cache is used next. It may come from a finalizer, which Python runs in the middle of anything, with
        any lock held: nothing is waited for here."""
        self._later.append(call)

    def _do_later(self) -> None:
        """What was put off; with the lock held, before anything is looked at."""
        while self._later:
            self._later.popleft()()

    def count(self, beside: Beside) -> None:
        """Count what a Session holds beside Blocks (summaries, windows) against the host budget, until ``discount`` or its end."""
        with self._lock:
            self._do_later()
            self._host_budget.count(beside)

    def discount(self, beside: Beside) -> None:
        """Count it no more."""
        with self._lock:
            self._host_budget.discount(beside)

    def allocate(self, n: int) -> np.ndarray:
        """Names for ``n`` new Blocks, int64, each held once."""
        with self._lock:
            self._do_later()
            return self._uids.allocate(n)

    def retain(self, uids: np.ndarray) -> None:
        """Hold these Blocks once more (a fork)."""
        with self._lock:
            self._uids.retain(uids)

    def release(self, uids: np.ndarray) -> None:
        """Hold these Blocks once less; those nobody holds are forgotten in every Tier of the cache, and their names are used again."""
        with self._lock:
            # Bytes go before the name does: whatever interrupts this, a name handed out again never finds what it once named.
            gone = self._uids.going(uids)
            self._arrivals.forget(gone)
            for tier in self._tiers():
                tier.forget(gone)
            self._uids.release(uids)

    def put(self, layer: int, uids: np.ndarray, kv: Tensor) -> None:
        """Take a copy of new Blocks at one layer; it is the only copy, and stays on the device, until ``saved``.

        Args:
            layer: attention layer.
            uids: int64 ``[n]``, distinct, not here yet at this layer.
            kv: ``[n, 2, kv_heads, block_tokens, head_dim]`` of the layout's dtype.

        Raises:
            ConfigError: if the shape or dtype is another, or Blocks that cannot leave fill the Tier; nothing was taken then.
        """
        shelf, row = self._place[layer]
        expected = (len(uids), *self.layout.block_shape(layer))
        if tuple(kv.shape) != expected or kv.dtype != self._dtype:
            raise ConfigError(f"layer {layer} holds {self._dtype} {expected}, but was given {kv.dtype} {tuple(kv.shape)}")
        with self._lock:
            self._do_later()
            self._uids.expect_alive(uids)
            if (shelf.pool.table.find(row, uids) >= 0).any():
                raise AssertionError(f"a Block was put twice at layer {layer}; Blocks never change")
            shelf.make_room(len(uids))
            shelf.pool.put(row, uids, kv, only_copy=True)

    def saved(self, uids: np.ndarray) -> None:
        """A lower Tier (the disk) holds these Blocks at all layers: they may leave now."""
        with self._lock:
            self._uids.expect_alive(uids)
            for shelf in self._shelves:
                shelf.pool.table.saved(uids)

    @contextmanager
    def reading(self, layer: int, uids: np.ndarray, blocks: np.ndarray, source: BlockSource, *, exact: bool = True) -> Iterator[Reading]:
        """Hold Blocks on the device while the ``with`` block runs, bringing those that are elsewhere.

        Args:
            layer: attention layer.
            uids: int64 ``[n]``, distinct, at most ``max_read(layer)``.
            blocks: int64 ``[n]``, the same Blocks as ``source`` numbers them.
            source: where Blocks in neither Tier come from; called with the cache's lock held.
            exact: take none that is approximate (``budget.cold``), but read the source for it.

        Raises:
            ConfigError: if there is no room for so many at once.
        """
        shelf, row = self._place[layer]
        with self._lock:
            self._do_later()
            self._uids.expect_alive(uids)
            if len(np.unique(uids)) != len(uids):
                raise AssertionError("the Blocks of one reading must be distinct")
            self._arrivals.settle(layer, uids)
            slots, tiers = shelf.bring(Wanted(layer, row, uids, blocks, exact), source)
        try:
            yield Reading(shelf.pool.index(slots), shelf.pool.data, tiers)
        finally:
            with self._lock:
                shelf.pool.unpin(slots[slots >= 0])

    def prefetch(self, layer: int, uids: np.ndarray, blocks: np.ndarray, source: BlockSource) -> int:
        """Have saved Blocks brought up in the background, those that are in no Tier; never waits for one. Arguments as of ``reading``.

        A ``reading`` that comes while a Block is being read waits for it; one that comes before it is its turn reads it itself. They
        take at most half of the room that is free or may be given up, and what cannot be read is left to whoever asks for it.

        Returns:
            How many were asked for.
        """
        shelf, row = self._place[layer]
        if not self.prefetches or row in shelf.pool.table.unread or not len(uids):
            return 0
        with self._lock:
            self._uids.expect_alive(uids)
            which = np.flatnonzero(shelf.missing(row, uids))
            if not len(which) or not self._arrivals.usable:
                return 0
            which = which[~self._arrivals.awaited(layer, uids[which])]
            which = which[: max(0, shelf.pool.table.available // 2 - len(self._arrivals))]
            for part in in_parts(which, shelf.pool.block_bytes):
                shelf.counts["prefetch_asked"] += len(part)
                self._arrivals.ask(Arrival(Wanted(layer, row, uids[part], blocks[part]), source, shelf.empty))
            return len(which)

    def pages(self, layer: int, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where Blocks lie now, and their Tiers: see ``Shelf.pages``."""
        shelf, row = self._place[layer]
        with self._lock:
            return shelf.pages(row, uids)

    @property
    def changes(self) -> int:
        """A number that is another one after any Block came to a Tier or left it."""
        with self._lock:
            return sum(tier.table.changes for tier in self._tiers())

    def pools(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """All slots ``[slots, 2, kv_heads, block_tokens, head_dim]`` of the device, and of the host if it holds Blocks as they are."""
        shelf, _ = self._place[layer]
        kept = shelf.host.packing is None and shelf.host.table.slots > 0
        return shelf.pool.data, shelf.host.data if kept else None

    def close(self) -> None:
        """End what is read in the background; the cache can be read on."""
        with self._lock:
            self._do_later()
        self._arrivals.close()

    def max_read(self, layer: int) -> int:
        """How many Blocks one ``reading`` of this layer may ask for now."""
        with self._lock:
            self._do_later()
            return self._place[layer][0].pool.table.available

    def resident(self, layer: int, uids: np.ndarray) -> np.ndarray:
        """bool ``[n]``: True where a Tier of the cache holds the Block, exact or not, so that no source is needed."""
        shelf, row = self._place[layer]
        with self._lock:
            found: np.ndarray = (shelf.pool.table.find(row, uids) >= 0) | (shelf.host.table.find(row, uids) >= 0)
            return found

    @property
    def used_bytes(self) -> int:
        """Bytes of Blocks in all Tiers of the cache."""
        return sum(tier.used_bytes for tier in self._tiers())

    @property
    def budget_bytes(self) -> int:
        """Bytes reserved for Blocks in all Tiers of the cache: at most the budgets given."""
        return sum(tier.budget_bytes for tier in self._tiers())

    def stats(self) -> dict[str, int]:
        """Counts since the cache was made (Blocks read: ``device_hits``, ``host_hits``, ``disk_reads``, and ``prefetch_hits`` that were
        brought up before; of them ``damaged`` and ``approximate``; moved: ``evicted``, ``spilled``, and of ``prefetch_asked`` those
        ``prefetched``), and
        what is there now: ``blocks`` alive, ``pinned`` and ``only_copies`` slots, ``device_bytes`` and ``host_bytes`` of Blocks,
        ``beside_bytes`` of what Sessions hold beside them, and ``over_budget_bytes`` by which that and the Blocks on the host exceed
        ``Budget.host``: such a memory works, and takes more than it was given."""
        with self._lock:
            self._do_later()
            host_bytes = sum(shelf.host.used_bytes for shelf in self._shelves)
            counts = {name: sum(shelf.counts[name] for shelf in self._shelves) for name in (*COUNTED, *AHEAD)}
            return counts | {
                "blocks": self._uids.alive,
                "pinned": sum(shelf.pool.table.pinned for shelf in self._shelves),
                "only_copies": sum(shelf.pool.table.only_copies for shelf in self._shelves),
                "device_bytes": sum(shelf.pool.used_bytes for shelf in self._shelves),
                "host_bytes": host_bytes,
                "beside_bytes": self._host_budget.beside,
                "over_budget_bytes": self._host_budget.over(host_bytes),
            }

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken (a mistake of this package, never of its user)."""
        with self._lock:
            self._uids.check()
            for shelf in self._shelves:
                for tier in (shelf.pool, shelf.host):
                    tier.check()
                    self._uids.expect_alive(tier.table.held_uids())
                if shelf.host.table.only_copies or shelf.host.table.pinned:
                    raise AssertionError("the host holds an only copy, or somebody still reads from it")
            if sum(shelf.pool.budget_bytes for shelf in self._shelves) > self._device_budget:
                raise AssertionError("the device Tier is larger than its budget")

    def _tiers(self) -> list[SlotPool]:
        return [tier for shelf in self._shelves for tier in (shelf.pool, shelf.host)]
