"""Which Block lies in which slot, which slots may be given up, and which of those is coldest.

Knows entries (layer, uid), pins and last use as plain numpy arrays; nothing of bytes or tensors.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

_NOBODY = -1
_EVER = 1 << 60


class SlotTable:
    """Slots of one Tier for Blocks of one shape.

    A slot is *free*, *held* by an entry (layer, uid), or *abandoned*: its entry was forgotten while somebody was reading it; it is
    free once the last reader leaves. Held slots that are neither pinned nor the only copy may be given up, coldest first.

    Args:
        slots: how many there are.
        layers: layers whose Blocks share them; ``layer`` below is 0 to ``layers - 1``.
        unread: layers whose Blocks nobody is expected to read: once saved they are the coldest.

    Attributes:
        origin: uint8 ``[slots]``, for whoever claims slots to note where the bytes of each came from.
        changes: how often an entry came or went: who remembers slots can tell whether they are still what they were.
    """

    def __init__(self, slots: int, layers: int, unread: Collection[int] = ()) -> None:
        self.slots = slots
        self.unread = np.array(sorted(unread), np.int64)
        self._is_unread = np.isin(np.arange(layers), self.unread)
        self._table = np.full((layers, 256), _NOBODY, np.int32)  # slot of each (layer, uid)
        self._uid = np.full(slots, _NOBODY, np.int64)
        self._layer = np.zeros(slots, np.int32)
        self._pins = np.zeros(slots, np.int32)
        self._only_copy = np.zeros(slots, bool)
        self._last_used = np.zeros(slots, np.int64)
        self.origin = np.zeros(slots, np.uint8)
        self.changes = 0
        self._clock = 0
        self._may_leave = 0  # slots that are held, not pinned and not the only copy
        self._free = np.arange(slots, dtype=np.int64)[::-1].copy()  # a stack; its top is at _free_count
        self._free_count = slots

    def find(self, layer: int, uids: np.ndarray) -> np.ndarray:
        """int64 ``[n]``: slot of each entry, -1 where there is none."""
        width = self._table.shape[1]
        if len(uids) and uids.max() >= width:
            known = np.full(len(uids), _NOBODY, np.int64)
            inside = uids < width
            known[inside] = self._table[layer, uids[inside]]
            return known
        found: np.ndarray = self._table[layer, uids].astype(np.int64)
        return found

    def next_free(self, n: int) -> np.ndarray:
        """The ``n`` slots that ``claim`` takes next, int64; there must be as many (see ``victims``)."""
        if n > self._free_count:
            raise AssertionError(f"{n} slots wanted, {self._free_count} are free")
        return self._free[self._free_count - n : self._free_count][::-1].copy()

    def claim(self, layer: int, uids: np.ndarray, slots: np.ndarray, *, only_copy: bool, origin: int = 0) -> None:
        """These entries lie in ``slots``, as ``next_free`` gave them; ``origin`` is what ``self.origin`` says of them from now on."""
        self._reach(int(uids.max(initial=-1)))
        self._free_count -= len(slots)
        self.changes += len(slots)
        self._uid[slots], self._layer[slots], self._only_copy[slots] = uids, layer, only_copy
        self.origin[slots] = origin
        self._may_leave += 0 if only_copy else len(slots)
        self._table[layer, uids] = slots
        self.touch(slots)

    def touch(self, slots: np.ndarray) -> None:
        """These slots were used now; later in the array counts as later in time."""
        self._last_used[slots] = np.arange(self._clock, self._clock + len(slots))
        self._clock += len(slots)

    def pin(self, slots: np.ndarray) -> None:
        """One more reader of each (distinct) slot."""
        self._may_leave -= int(np.count_nonzero(self._may_go(slots)))
        self._pins[slots] += 1

    def unpin(self, slots: np.ndarray) -> np.ndarray:
        """One reader less of each; returns abandoned slots that became free."""
        self._pins[slots] -= 1
        self._may_leave += int(np.count_nonzero(self._may_go(slots)))
        return self._give_back(slots[(self._pins[slots] == 0) & (self._uid[slots] == _NOBODY)])

    def saved(self, uids: np.ndarray) -> None:
        """A lower Tier holds these Blocks, at all layers."""
        slots = self._slots_of(uids)
        before = np.count_nonzero(self._may_go(slots))
        self._only_copy[slots] = False
        self._may_leave += int(np.count_nonzero(self._may_go(slots)) - before)
        cold = slots[self._is_unread[self._layer[slots]]]
        self._last_used[cold] %= _EVER
        self._last_used[cold] -= _EVER  # before all others, in their own order

    def forget(self, uids: np.ndarray) -> np.ndarray:
        """Forget these Blocks at all layers; returns slots that became free (those being read become free later)."""
        return self.drop(self._slots_of(uids))

    def drop(self, slots: np.ndarray) -> np.ndarray:
        """Forget what these held slots hold; returns slots that became free."""
        self._may_leave -= int(np.count_nonzero(self._may_go(slots)))
        self.changes += len(slots)
        self._table[self._layer[slots], self._uid[slots]] = _NOBODY
        self._uid[slots], self._only_copy[slots] = _NOBODY, False
        return self._give_back(slots[self._pins[slots] == 0])

    def victims(self, n: int) -> np.ndarray:
        """Slots to drop so that ``n`` are free: the coldest that may be given up; a few more than needed, so that a full Tier does
        not have to look for them at every step.

        Returns as many as there are if they do not suffice.
        """
        short = n - self._free_count
        if short <= 0:
            return np.empty(0, np.int64)
        candidates = np.flatnonzero(self._may_go(slice(None)))
        wanted = max(short, self.slots // 64)
        if wanted >= len(candidates):
            return candidates
        return candidates[np.argpartition(self._last_used[candidates], wanted - 1)[:wanted]]

    def entries(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layers and uids held by ``slots``."""
        return self._layer[slots].astype(np.int64), self._uid[slots].copy()

    @property
    def free(self) -> int:
        """Slots nobody uses."""
        return self._free_count

    def held_uids(self) -> np.ndarray:
        """The uids of all held slots, int64, once for each slot."""
        held: np.ndarray = self._uid[self._uid != _NOBODY]
        return held

    def free_slots(self) -> np.ndarray:
        """The slots nobody uses, int64."""
        return self._free[: self._free_count]

    @property
    def only_copies(self) -> int:
        """Slots whose Block exists nowhere else."""
        return int(np.count_nonzero(self._only_copy))

    @property
    def pinned(self) -> int:
        """Slots being read."""
        return int(np.count_nonzero(self._pins))

    @property
    def available(self) -> int:
        """Slots that are free or may be given up now."""
        return self._free_count + self._may_leave

    def check(self) -> None:
        """Raises AssertionError if slots, entries, pins and free slots disagree."""
        held = np.flatnonzero(self._uid != _NOBODY)
        free = self.free_slots()
        abandoned = (self._uid == _NOBODY) & (self._pins > 0)
        if (np.bincount(np.concatenate([held, free]), minlength=self.slots) + abandoned != 1).any():
            raise AssertionError("a slot is lost, or in two states at once")
        if (self._table[self._layer[held], self._uid[held]] != held).any() or np.count_nonzero(self._table != _NOBODY) != len(held):
            raise AssertionError("entries and slots do not point at each other")
        if (self._pins < 0).any() or self._only_copy[free].any():
            raise AssertionError("a slot was unpinned too often, or a free one counts as an only copy")
        if self._may_leave != np.count_nonzero(self._may_go(slice(None))):
            raise AssertionError("slots that may be given up were counted wrongly")

    def _may_go(self, slots: np.ndarray | slice) -> np.ndarray:
        may_go: np.ndarray = (self._uid[slots] != _NOBODY) & (self._pins[slots] == 0) & ~self._only_copy[slots]
        return may_go

    def _slots_of(self, uids: np.ndarray) -> np.ndarray:
        slots = self._table[:, uids[uids < self._table.shape[1]]].ravel()
        return np.unique(slots[slots != _NOBODY]).astype(np.int64)

    def _give_back(self, slots: np.ndarray) -> np.ndarray:
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)
        return slots

    def _reach(self, uid: int) -> None:
        layers, width = self._table.shape
        if uid >= width:
            grown = np.full((layers, max(uid + 1, 2 * width)), _NOBODY, np.int32)
            grown[:, :width] = self._table
            self._table = grown
