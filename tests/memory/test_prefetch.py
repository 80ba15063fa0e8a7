"""Blocks brought up in the background: read once, told to whoever reads them first, dropped when their Session lets them go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.memory.ahead import REMEMBERED, TRIED, Ahead
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.shelf import DEVICE, DISK
from agent_memory.types import Budget
from tests.memory.test_cache import LAYOUT, PER_BLOCK, Disk, fill, same_bits
from tests.store.support import Child


class GatedDisk(Disk):
    """A disk on which a read can be held up, and that can break."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on, self.broken = threading.Event(), threading.Event(), False
        self.go_on.set()

    def read_kv(self, layer: int, blocks: np.ndarray, out: Tensor) -> np.ndarray:
        self.inside.set()
        assert self.go_on.wait(20)
        if self.broken:
            raise OSError("the disk is gone")
        return super().read_kv(layer, blocks, out)

    def hold(self) -> None:
        self.inside.clear()
        self.go_on.clear()


@pytest.fixture
def cache() -> Iterator[TieredCache]:
    made = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 24), poison=True)
    yield made
    made.close()
    made.check()


def evicted(cache: TieredCache, disk: Disk, n: int) -> np.ndarray:
    """Saved Blocks that only the disk holds."""
    uids = fill(cache, disk, n)
    for _ in range(6):
        cache.release(fill(cache, disk, 4))
    for _ in range(6):
        fill(cache, disk, 4)
    assert not cache.resident(0, uids).any()
    return uids


def drained(cache: TieredCache) -> None:
    until = time.monotonic() + 20
    while len(cache._arrivals):
        assert time.monotonic() < until
        time.sleep(0.001)


def read(cache: TieredCache, disk: Disk, uids: np.ndarray, layer: int = 0) -> list[int]:
    with cache.reading(layer, uids, uids, disk) as now:
        there = (now.slots >= 0).numpy()
        expected = [disk.kv[layer, uid] for uid in uids[there].tolist()]
        assert same_bits(now.pool[now.slots[now.slots >= 0]], torch.stack(expected) if expected else now.pool[:0])
        return [int(tier) if here else -1 for tier, here in zip(now.tiers, there, strict=True)]


def test_what_was_brought_up_came_from_the_disk_once(cache: TieredCache) -> None:
    disk = GatedDisk()
    uids = evicted(cache, disk, 3)
    assert cache.prefetch(0, uids, uids, disk) == 3
    drained(cache)
    assert cache.prefetch(0, uids, uids, disk) == 0
    assert disk.reads == 3
    before = cache.stats()
    assert read(cache, disk, uids[:2]) == [DISK, DISK]
    assert read(cache, disk, uids) == [DEVICE, DEVICE, DISK]
    stats = cache.stats()
    assert (stats["prefetched"], stats["prefetch_hits"], disk.reads) == (3, 3, 3)
    assert (stats["device_hits"] - before["device_hits"], stats["disk_reads"] - before["disk_reads"]) == (2, 0)


def test_a_reader_waits_for_a_read_that_is_under_way(cache: TieredCache) -> None:
    disk = GatedDisk()
    uids = evicted(cache, disk, 3)
    disk.hold()
    cache.prefetch(0, uids, uids, disk)
    assert disk.inside.wait(20)
    assert cache.prefetch(0, uids, uids, disk) == 0
    found: list[list[int]] = []
    reader = threading.Thread(target=lambda: found.append(read(cache, disk, uids)))
    reader.start()
    reader.join(0.1)
    assert reader.is_alive() and cache.stats()["blocks"] > 0  # others go on meanwhile
    disk.go_on.set()
    reader.join(20)
    assert found == [[DISK] * 3] and disk.reads == 3


def test_a_reader_does_not_wait_for_what_has_not_begun(cache: TieredCache) -> None:
    disk, slow = GatedDisk(), GatedDisk()
    other, uids = evicted(cache, slow, 2), evicted(cache, disk, 3)
    slow.kv |= disk.kv
    slow.hold()
    cache.prefetch(1, other, other, slow)
    assert slow.inside.wait(20)
    cache.prefetch(0, uids, uids, disk)
    assert read(cache, disk, uids[:2]) == [DISK, DISK]  # while the one thread is busy
    slow.go_on.set()
    drained(cache)
    assert disk.reads == 3 and cache.stats()["prefetched"] == 2 + 1
    assert read(cache, disk, uids) == [DEVICE, DEVICE, DISK]


def test_what_is_released_meanwhile_is_dropped_and_its_name_finds_nothing_of_it(cache: TieredCache) -> None:
    disk = GatedDisk()
    uids = evicted(cache, disk, 4)
    cache.retain(uids[:1])  # a fork keeps one
    disk.hold()
    cache.prefetch(0, uids, uids, disk)
    assert disk.inside.wait(20)
    cache.release(uids)
    kept, new = uids[:1], cache.allocate(3)
    assert set(new.tolist()) == set(uids[1:].tolist())
    disk.go_on.set()
    drained(cache)
    assert cache.resident(0, kept).all() and not cache.resident(0, new).any()
    assert cache.stats()["prefetched"] == 1
    assert read(cache, disk, kept) == [DISK]


@pytest.mark.parametrize("broken", [False, True])
def test_damage_and_failures_are_left_to_the_reader(cache: TieredCache, broken: bool) -> None:
    disk = GatedDisk()
    uids = evicted(cache, disk, 3)
    disk.damaged, disk.broken = {int(uids[1])}, broken
    cache.prefetch(0, uids, uids, disk)
    drained(cache)
    assert cache.resident(0, uids).tolist() == [not broken, False, not broken]
    assert cache.stats()["damaged"] == 0
    if broken:
        with pytest.raises(OSError, match="the disk is gone"):
            read(cache, disk, uids)
        disk.broken = False
    assert read(cache, disk, uids) == [DISK, -1, DISK]
    assert cache.stats()["damaged"] == 1


def test_it_takes_half_the_room_that_may_be_given_up_and_nothing_in_use(cache: TieredCache) -> None:
    disk = GatedDisk()
    many = np.concatenate([evicted(cache, disk, 6) for _ in range(6)])
    many = many[~cache.resident(0, many)]
    assert len(many) >= 30
    held = many[:2]
    with cache.reading(0, held, held, disk) as now:
        before = now.pool[now.slots].clone()
        room = cache.max_read(0)
        assert cache.prefetch(0, many[2:], many[2:], disk) == room // 2
        drained(cache)
        assert same_bits(now.pool[now.slots], before)
        unsaved = fill(cache, disk, cache.max_read(0), save=False)
        assert cache.prefetch(0, many, many, disk) == 0
    assert cache.resident(0, unsaved).all()


def test_it_can_be_turned_off_and_ends_with_the_cache(cache: TieredCache) -> None:
    off, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 24, prefetch=False)), GatedDisk()
    uids = evicted(off, disk, 3)
    assert off.prefetch(0, uids, uids, disk) == 0 and disk.reads == 0
    unread = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 24), unread=[0])
    some = evicted(unread, disk, 3)
    assert unread.prefetch(0, some, some, disk) == 0
    uids = evicted(cache, disk, 3)
    assert not _threads()
    disk.hold()
    cache.prefetch(0, uids, uids, disk)
    assert disk.inside.wait(20) and len(_threads()) == 1
    threading.Timer(0.05, disk.go_on.set).start()
    cache.close()
    assert not _threads() and not cache.resident(0, uids).any()
    assert cache.prefetch(0, uids, uids, disk) == 0
    assert read(cache, disk, uids) == [DISK] * 3


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "agent-memory-prefetch" in thread.name]


def test_a_forked_child_asks_for_nothing(cache: TieredCache) -> None:
    disk = Disk()
    uids = evicted(cache, disk, 3)

    def ask(tell: Callable[[str], None]) -> None:
        tell(str(cache.prefetch(0, uids, uids, disk)))

    assert Child(ask).finish() == (["0"], 0)
    assert cache.prefetch(0, uids, uids, disk) == 3
    drained(cache)


def test_sessions_that_share_a_cache_prefetch_and_read_at_once() -> None:
    cache, failures = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 30), host_bytes=PER_BLOCK * 4, poison=True), []

    def session(seed: int) -> None:
        try:
            disk, random = GatedDisk(), np.random.default_rng(seed)
            uids = np.empty(0, np.int64)
            for step in range(120):
                uids = np.concatenate([uids, fill(cache, disk, 2)])
                some = random.choice(uids, min(4, len(uids)), replace=False)
                cache.prefetch(step % 2, some, some, disk)
                read(cache, disk, random.permutation(some), step % 2)
                if step % 10 == 9:
                    cache.prefetch(0, uids[:5], uids[:5], disk)
                    cache.release(uids[:20])
                    uids = uids[20:]
            cache.release(uids)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=session, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert not failures
    cache.check()
    stats = cache.stats()
    assert cache.used_bytes == 0 and stats["prefetch_hits"] <= stats["prefetched"] <= stats["prefetch_asked"]


class Asked:
    def __init__(self, chooses: tuple[bool, ...]) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.ahead = Ahead(chooses, 32, lambda layer, blocks: self.asked.append((layer, blocks.tolist())))


def tokens(*blocks: int) -> Tensor:
    return torch.tensor([-1, -1, *(32 * block + 5 for block in blocks)]).reshape(1, 1, -1)


def test_layers_that_take_over_a_choice_are_known() -> None:
    watched = Asked((False, True, False, False, True, False))
    watched.ahead.chosen(1, tokens(7, 3, 7))
    assert watched.asked == [(2, [3, 7]), (3, [3, 7]), (4, [3, 7])]
    watched.ahead.chosen(4, tokens(2))
    assert watched.asked[3:] == [(5, [2])]
    watched.ahead.chosen(5, tokens(2))
    off = Asked(())
    for layer in (0, 1):
        off.ahead.chosen(layer, tokens(7))
    assert len(watched.asked) == 4 and off.asked == []


@pytest.mark.parametrize("alike", [False, True])
def test_a_layer_that_chooses_is_guessed_while_half_is_right(alike: bool) -> None:
    watched, blocks = Asked((True, True)), np.array([1, 2, 3, 4])
    for _ in range(TRIED):
        watched.ahead.chosen(0, tokens(1, 2, 3, 4))
        watched.ahead.read(1, blocks if alike else blocks + 3, reply=False)
        watched.ahead.read(1, blocks, reply=False)
    assert len(watched.asked) == (TRIED if alike else TRIED // 4)


def test_what_replies_read_last_is_asked_for_again() -> None:
    watched = Asked((True, False))
    watched.ahead.read(0, np.array([5, 900]), reply=False)
    watched.ahead.again()
    assert watched.asked == []
    for block in range(100):
        watched.ahead.read(1, np.array([0, 100 - block]), reply=True)
    watched.ahead.again()
    assert watched.asked == [(1, [0, *range(1, REMEMBERED)])]
