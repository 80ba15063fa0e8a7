"""P16: budgets hold, eviction never loses a Block, a Block in use is never evicted, whatever the order of calls; against a dict."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import lru_cache

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from agent_memory.errors import ConfigError
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.shelf import DISK, Reading
from agent_memory.types import Budget, ColdKind, KVLayout

LAYOUT = KVLayout((2, 1, 2), (2, 4, 2), "float32", 2)
BLOCK_BYTES = 2 * 2 * 2 * 2 * 4  # the same at every layer, in two shapes
DEVICE_BLOCKS = 6


@lru_cache(maxsize=4096)
def content(layer: int, serial: int) -> Tensor:
    """What Block ``serial`` holds at ``layer``: no two alike."""
    shape = LAYOUT.block_shape(layer)
    return torch.arange(16, dtype=torch.float32).reshape(shape) + 16.0 * (3 * serial + layer)


def contents(layer: int, serials: list[int]) -> Tensor:
    return torch.stack([content(layer, serial) for serial in serials]) if serials else torch.empty(0, *LAYOUT.block_shape(layer))


class Disk:
    """Holds what was saved; some of it damaged. Fails a read altogether when told to."""

    def __init__(self) -> None:
        self.saved: set[int] = set()
        self.damaged: set[tuple[int, int]] = set()
        self.broken = False

    def read_kv(self, layer: int, blocks: np.ndarray, out: Tensor) -> np.ndarray:
        ok = np.array([b in self.saved and (layer, b) not in self.damaged for b in blocks.tolist()], bool)
        for place, (block, good) in enumerate(zip(blocks.tolist(), ok, strict=True)):
            # Half of a damaged Block is there: the cache must not hand it out.
            out[place, : 2 if good else 1] = content(layer, block)[: 2 if good else 1]
        if self.broken:
            raise OSError("the disk is gone")
        return ok


def near(kv: Tensor, other: Tensor) -> bool:
    """Equal but for what 8 bits lose."""
    return bool(((kv - other).abs() <= other.abs().amax(-1, keepdim=True) / 127).all())


def tiny(device_blocks: int, host_blocks: int = 0, cold: ColdKind = "exact") -> TieredCache:
    budget = Budget(device=3 * BLOCK_BYTES * device_blocks, cold=cold)
    return TieredCache(LAYOUT, budget, host_bytes=3 * BLOCK_BYTES * host_blocks, poison=True)


class Tiers(RuleBasedStateMachine):
    """A dict of what exists against the cache: P16."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.blocks: dict[int, tuple[int, int]] = {}  # serial -> uid, references
        self.unsaved: list[int] = []
        self.open: list[tuple[AbstractContextManager[Reading], int, list[int], Reading]] = []
        self.serial = 0

    @initialize(host=st.sampled_from([0, 2, 20]), cold=st.sampled_from(["exact", "exact", "int8"]))
    def make(self, host: int, cold: ColdKind) -> None:
        self.cache, self.cold = tiny(DEVICE_BLOCKS, host, cold), cold

    @rule(n=st.integers(0, 5), save=st.booleans())
    def put(self, n: int, save: bool) -> None:
        serials = list(range(self.serial, self.serial + n))
        self.serial += n
        uids = self.cache.allocate(n)
        for layer in range(3):
            room = self.cache.max_read(layer)
            try:
                self.cache.put(layer, uids, contents(layer, serials))
                assert room >= n
            except ConfigError:
                assert room < n
                self.cache.release(uids)
                return
        self.blocks.update({serial: (int(uid), 1) for serial, uid in zip(serials, uids, strict=True)})
        self.unsaved.extend(serials)
        if save:
            self.save(n)

    @rule(n=st.integers(1, 6))
    def save(self, n: int) -> None:
        now, self.unsaved = self.unsaved[:n], self.unsaved[n:]
        self.disk.saved.update(now)
        self.cache.saved(self.uids(now))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), layer=st.integers(0, 2), exact=st.booleans())
    def read(self, data: st.DataObject, layer: int, exact: bool) -> None:
        serials = data.draw(st.lists(st.sampled_from(sorted(self.blocks)), unique=True, max_size=6))
        hold = len(self.open) < 3 and data.draw(st.booleans())
        resident = self.cache.resident(layer, self.uids(serials))
        reading = self.cache.reading(layer, self.uids(serials), np.array(serials, np.int64), self.disk, exact=exact)
        room = self.cache.max_read(layer)
        before = self.cache.stats()["prefetch_hits"]
        try:
            now = reading.__enter__()
        except ConfigError:
            assert room < len(serials)
            return
        damaged = np.array([(layer, serial) in self.disk.damaged for serial in serials], bool)
        lost = (now.slots < 0).numpy()
        approximate = now.tiers > DISK
        if exact and self.cold != "exact":  # of those that are resident some were approximate
            assert not approximate.any() and not (lost & ~damaged).any() and not (damaged & ~resident & ~lost).any()
        else:
            early = self.cache.stats()["prefetch_hits"] - before  # resident, and said to come from the disk this once
            assert (lost == (damaged & ~resident)).all() and resident[now.tiers != DISK].all()
            assert np.count_nonzero(resident & (now.tiers == DISK)) == early
        self.open.append((reading, layer, serials, now))
        self.every_reader_sees_its_blocks()
        if not hold:
            self.open.pop()
            reading.__exit__(None, None, None)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), layer=st.integers(0, 2))
    def prefetch(self, data: st.DataObject, layer: int) -> None:
        serials = data.draw(st.lists(st.sampled_from(sorted(self.blocks)), unique=True, max_size=6))
        self.cache.prefetch(layer, self.uids(serials), np.array(serials, np.int64), self.disk)
        if data.draw(st.booleans()):
            self.release_some(serials[:1])
        while len(self.cache._arrivals):
            time.sleep(0)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        reading, *_ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        reading.__exit__(None, None, None)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        serial = data.draw(st.sampled_from(sorted(self.blocks)))
        uid, references = self.blocks[serial]
        self.cache.retain(np.array([uid]))
        self.blocks[serial] = uid, references + 1

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        serials = data.draw(st.lists(st.sampled_from(sorted(self.blocks)), unique=True, min_size=1, max_size=4))
        self.release_some(serials)

    def release_some(self, serials: list[int]) -> None:
        self.cache.release(self.uids(serials))
        for serial in serials:
            uid, references = self.blocks.pop(serial)
            if references > 1:
                self.blocks[serial] = uid, references - 1
        self.unsaved = [serial for serial in self.unsaved if serial in self.blocks]

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), layer=st.integers(0, 2))
    def damage(self, data: st.DataObject, layer: int) -> None:
        self.disk.damaged.add((layer, data.draw(st.sampled_from(sorted(self.blocks)))))

    @rule(layer=st.integers(0, 2))
    def read_from_a_broken_disk(self, layer: int) -> None:
        serials = [serial for serial in sorted(self.blocks) if serial not in self.unsaved][:3]
        pinned = self.cache.stats()["pinned"]
        self.disk.broken = True
        try:
            with self.cache.reading(layer, self.uids(serials), np.array(serials, np.int64), self.disk):
                pass
        except (OSError, ConfigError):
            pass
        self.disk.broken = False
        assert self.cache.stats()["pinned"] == pinned

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()

    @invariant()
    def tables_agree_and_budgets_hold(self) -> None:
        self.cache.check()
        stats = self.cache.stats()
        assert stats["device_bytes"] <= 3 * BLOCK_BYTES * DEVICE_BLOCKS
        assert stats["blocks"] == len(self.blocks)
        assert self.cache.used_bytes <= self.cache.budget_bytes

    @invariant()
    def only_copies_stay(self) -> None:
        for layer in range(3):
            assert self.cache.resident(layer, self.uids(self.unsaved)).all()

    @invariant()
    def every_reader_sees_its_blocks(self) -> None:
        for _, layer, serials, now in self.open:
            there = (now.slots >= 0).tolist()
            expected = contents(layer, [serial for serial, here in zip(serials, there, strict=True) if here])
            approximate, found = (now.tiers > DISK)[np.array(there, bool)], now.pool[now.slots[now.slots >= 0]]
            assert torch.equal(found[~approximate], expected[~approximate]) and near(found[approximate], expected[approximate])
            alive = [serial for serial, here in zip(serials, there, strict=True) if here and serial in self.blocks]
            shelf, row = self.cache._place[layer]
            assert (shelf.pool.table.find(row, self.uids(alive)) >= 0)[~(now.tiers > DISK)[np.isin(serials, alive)]].all()

    def uids(self, serials: list[int]) -> np.ndarray:
        return np.array([self.blocks[serial][0] for serial in serials], np.int64)


TestTiers = Tiers.TestCase
TestTiers.settings = settings(
    max_examples=500, stateful_step_count=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
