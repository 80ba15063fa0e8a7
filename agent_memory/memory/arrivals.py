"""Blocks that are read from their source in the background, before anybody asks for them.

Knows what is on its way, and who waits for it; nothing of slots, nor of why a Block is wanted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .block import BlockSource
from .shelf import Wanted

Land = Callable[[Wanted, Tensor], None]
"""Takes Blocks ``[n, *shape]`` that arrived whole, and are still wanted; called with the lock held."""


@dataclass(eq=False, slots=True)
class Arrival:
    """Some Blocks of one layer on their way: ``room(n)`` gives a tensor ``[n, *shape]`` to read them to, once it is their turn."""

    wanted: Wanted
    source: BlockSource
    room: Callable[[int], Tensor]
    started: bool = False


class Arrivals:
    """What is on its way. One thread reads, made when it is first needed.

    Args:
        lock: of the cache; held by the caller of every method but ``close``.
        land: see :data:`Land`.
    """

    def __init__(self, lock: threading.RLock, land: Land) -> None:
        self._landed, self._lock, self._land = threading.Condition(lock), lock, land
        self._coming: dict[tuple[int, int], Arrival] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._pid, self._closed = os.getpid(), False

    def __len__(self) -> int:
        return len(self._coming)

    @property
    def usable(self) -> bool:
        """Whether something can be asked for: not after ``close``, nor in a forked child, which has no such thread."""
        return not self._closed and self._pid == os.getpid()

    def awaited(self, layer: int, uids: np.ndarray) -> np.ndarray:
        """bool ``[n]``: True where a Block is on its way."""
        return np.fromiter(((layer, uid) in self._coming for uid in uids.tolist()), bool, len(uids))

    def ask(self, arrival: Arrival) -> None:
        """Have Blocks read, none of which is on its way."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="agent-memory-prefetch")
        self._coming.update({(arrival.wanted.layer, uid): arrival for uid in arrival.wanted.uids.tolist()})
        self._thread.submit(self._bring, arrival)

    def settle(self, layer: int, uids: np.ndarray) -> None:
        """Wait for Blocks that are being read now; those whose turn has not come are left to the caller."""
        while self._coming and self._pid == os.getpid():
            found = {(layer, uid): self._coming.get((layer, uid)) for uid in uids.tolist()}
            for key, arrival in found.items():
                if arrival is not None and not arrival.started:
                    del self._coming[key]
            if not any(arrival is not None and arrival.started for arrival in found.values()):
                return
            self._landed.wait()

    def forget(self, uids: np.ndarray) -> None:
        """These Blocks are gone at all layers: what arrives of them is dropped."""
        if self._coming:
            gone = set(uids.tolist())
            for key in [key for key in self._coming if key[1] in gone]:
                del self._coming[key]

    def close(self) -> None:
        """Drop what is on its way, and wait until nothing is read any more."""
        with self._lock:
            self._closed = True
            self._coming.clear()
            thread, self._thread = self._thread, None
            self._landed.notify_all()
        if thread is not None and self._pid == os.getpid():
            thread.shutdown()

    def _bring(self, arrival: Arrival) -> None:
        with self._lock:
            arrival.started = True
            arrival.wanted = _some(arrival.wanted, self._still(arrival))
        wanted, out = arrival.wanted, None
        good = np.zeros(len(wanted.uids), bool)
        try:
            if len(good):
                out = arrival.room(len(good))
                good = arrival.source.read_kv(wanted.layer, wanted.blocks, out)
        except Exception:
            out = None  # whoever wants one of them reads it himself, and is told what is wrong
        with self._lock:
            try:
                good = good & self._still(arrival)
                if out is not None and good.any():
                    self._land(_some(wanted, good), out if good.all() else out[good.nonzero()[0].tolist()])
            finally:
                for key in [key for key, other in self._coming.items() if other is arrival]:
                    del self._coming[key]
                self._landed.notify_all()

    def _still(self, arrival: Arrival) -> np.ndarray:
        layer, uids = arrival.wanted.layer, arrival.wanted.uids.tolist()
        return np.fromiter((self._coming.get((layer, uid)) is arrival for uid in uids), bool, len(uids))


def _some(wanted: Wanted, which: np.ndarray) -> Wanted:
    return replace(wanted, uids=wanted.uids[which], blocks=wanted.blocks[which])
