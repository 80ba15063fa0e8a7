"""A host Tier that packs: more Blocks in the same bytes, on a CPU too; what comes from it is approximate, and never taken for exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.shelf import DEVICE, DISK, HOST_INT4, HOST_INT8
from agent_memory.types import Budget, ColdKind, KVLayout
from tests.memory.test_cache import Disk

LAYOUT = KVLayout((2, 2), (64, 64), "float32", 32)
BLOCK = 2 * 2 * 32 * 64 * 4 * 2  # bytes at both layers


def made(cold: ColdKind, device: int = 4, host: int = 8, layout: KVLayout = LAYOUT) -> TieredCache:
    return TieredCache(layout, Budget(device=device * BLOCK, host=host * BLOCK, cold=cold), poison=True)


def fill(cache: TieredCache, disk: Disk, n: int) -> np.ndarray:
    uids = cache.allocate(n)
    for layer in range(2):
        kv = torch.randn(n, *LAYOUT.block_shape(layer))
        cache.put(layer, uids, kv)
        disk.kv.update({(layer, uid): kv[i] for i, uid in enumerate(uids.tolist())})
    cache.saved(uids)
    return uids


def read(cache: TieredCache, disk: Disk, uids: np.ndarray, *, exact: bool, layer: int = 0) -> tuple[torch.Tensor, list[int]]:
    with cache.reading(layer, uids, uids, disk, exact=exact) as now:
        return now.pool[now.slots], now.tiers.tolist()


def written(disk: Disk, uids: np.ndarray, layer: int = 0) -> torch.Tensor:
    return torch.stack([disk.kv[layer, uid] for uid in uids.tolist()])


@pytest.mark.parametrize(("cold", "least"), [("exact", 1.0), ("int8", 3.8), ("int4", 7.0)])
def test_the_same_bytes_hold_more_blocks(cold: ColdKind, least: float) -> None:
    cache = TieredCache(LAYOUT, Budget(device=4 * BLOCK, host=8 * BLOCK, cold=cold), host_bytes=8 * BLOCK)
    slots = sum(shelf.host.table.slots for shelf in cache._shelves)
    assert slots >= least * 8 * 2
    assert sum(shelf.host.data.nbytes for shelf in cache._shelves) <= 8 * BLOCK


def test_on_a_cpu_there_is_a_packed_host_tier_and_no_exact_one() -> None:
    assert made("exact")._shelves[0].host.table.slots == 0
    assert made("int8")._shelves[0].host.table.slots > 0


@pytest.mark.parametrize(("cold", "tier"), [("int8", HOST_INT8), ("int4", HOST_INT4)])
def test_a_reader_is_told_or_gets_the_exact_one(cold: ColdKind, tier: int) -> None:
    cache, disk = made(cold), Disk()
    uids = fill(cache, disk, 2)
    fill(cache, disk, 4)  # pushes them out
    kv, tiers = read(cache, disk, uids, exact=False)
    assert tiers == [tier, tier] and disk.reads == 0
    assert not torch.equal(kv, written(disk, uids)) and float((kv - written(disk, uids)).abs().max()) < 0.5
    again, tiers = read(cache, disk, uids, exact=False)
    assert tiers == [tier, tier] and torch.equal(again, kv)  # on the device now, and still approximate
    assert (cache.stats()["approximate"], cache.stats()["host_hits"], cache.stats()["device_hits"]) == (4, 2, 2)
    kv, tiers = read(cache, disk, uids, exact=True)
    assert tiers == [DISK, DISK] and torch.equal(kv, written(disk, uids))
    kv, tiers = read(cache, disk, uids, exact=False)
    assert tiers == [DEVICE, DEVICE] and torch.equal(kv, written(disk, uids))
    assert (cache.stats()["approximate"], cache.stats()["disk_reads"]) == (4, 2)
    cache.check()


def test_errors_do_not_add_up() -> None:
    cache, disk = made("int8"), Disk()
    uids = fill(cache, disk, 2)
    first = None
    for _ in range(4):
        fill(cache, disk, 4)
        kv, tiers = read(cache, disk, uids, exact=False)
        assert tiers == [HOST_INT8] * 2
        assert first is None or torch.equal(kv, first)
        first = kv


def test_an_approximate_copy_that_outlives_the_packed_one_is_not_packed_again() -> None:
    cache, disk = made("int8", host=1), Disk()
    uids = fill(cache, disk, 1)
    fill(cache, disk, 4)
    for layer in (0, 1):
        read(cache, disk, uids, exact=False, layer=layer)
    for _ in range(8):
        fill(cache, disk, 1)
        for layer in (0, 1):
            assert read(cache, disk, uids, exact=False, layer=layer)[1] == [HOST_INT8]
    assert [cache._shelves[0].host.table.find(layer, uids).tolist() for layer in (0, 1)] == [[-1], [-1]]
    fill(cache, disk, 4)
    assert not cache.resident(0, uids).any() and not cache.resident(1, uids).any()
    assert read(cache, disk, uids, exact=False)[1] == [DISK]


def test_what_somebody_reads_stays_when_another_wants_it_exact() -> None:
    cache, disk = made("int8", device=8), Disk()
    uids = fill(cache, disk, 2)
    fill(cache, disk, 8)
    with cache.reading(0, uids, uids, disk, exact=False) as now:
        before = now.pool[now.slots].clone()
        kv, _ = read(cache, disk, uids, exact=True)
        assert torch.equal(kv, written(disk, uids))
        assert torch.equal(now.pool[now.slots], before)
        cache.check()
    cache.check()
    assert read(cache, disk, uids, exact=False)[1] == [DEVICE, DEVICE]


def test_damage_on_disk_is_not_hidden_by_an_approximate_copy() -> None:
    cache, disk = made("int8"), Disk()
    uids = fill(cache, disk, 2)
    fill(cache, disk, 4)
    disk.damaged = {int(uids[1])}
    with cache.reading(0, uids, uids, disk) as now:
        assert (now.slots >= 0).tolist() == [True, False]
    assert read(cache, disk, uids, exact=False)[1] == [DEVICE, HOST_INT8]


def test_layers_that_recall_nothing_are_not_packed_and_odd_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="use cold='int8'"):
        made("int4", layout=KVLayout((1,), (5,), "float32"))
    cache, disk = TieredCache(LAYOUT, Budget(device=4 * BLOCK, host=8 * BLOCK, cold="int8"), unread=[0]), Disk()
    uids = fill(cache, disk, 2)
    for _ in range(4):
        fill(cache, disk, 2)
    assert not cache.resident(0, uids).any() and cache.resident(1, uids).all()
