"""What Sessions hold beside Blocks counts against the host budget: Blocks on the host make room for it, and an excess is reported."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from agent_memory.memory.cache import TieredCache
from agent_memory.memory.layer_kv import KVPlan
from agent_memory.memory.session_kv import SessionKV
from agent_memory.types import Budget, KVLayout
from tests.memory.test_cache import Disk
from tests.memory.test_cold import BLOCK, LAYOUT, fill


@dataclass(eq=False)
class Summaries:
    nbytes: int


def test_blocks_on_the_host_make_room_for_what_is_beside_them() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=4 * BLOCK, host=8 * BLOCK), host_bytes=8 * BLOCK, poison=True), Disk()
    fill(cache, disk, 4)
    for _ in range(4):
        fill(cache, disk, 4)
    assert cache.stats()["host_bytes"] == 8 * BLOCK and cache.stats()["over_budget_bytes"] == 0
    beside = Summaries(3 * BLOCK)
    cache.count(beside)
    stats = cache.stats()
    assert (stats["beside_bytes"], stats["over_budget_bytes"]) == (3 * BLOCK, 3 * BLOCK)
    fill(cache, disk, 4)
    stats = cache.stats()
    assert 4 * BLOCK <= stats["host_bytes"] <= 5 * BLOCK and stats["over_budget_bytes"] == 0
    beside.nbytes = 9 * BLOCK
    uids = fill(cache, disk, 4)
    assert (cache.stats()["host_bytes"], cache.stats()["over_budget_bytes"]) == (0, BLOCK)  # never an error
    cache.check()
    with cache.reading(0, uids, uids, disk) as now:
        assert (now.slots >= 0).all()
    cache.discount(beside)
    fill(cache, disk, 4)
    assert cache.stats()["beside_bytes"] == 0 and cache.stats()["host_bytes"] > 0
    cache.check()


def test_a_cache_that_is_let_go_frees_its_pools_at_once() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=4 * BLOCK, host=8 * BLOCK, cold="int8")), Disk()
    uids = fill(cache, disk, 2)
    fill(cache, disk, 4)
    cache.prefetch(0, uids, uids, disk)
    gone = weakref.ref(cache._shelves[0].pool)
    gc.disable()
    del cache
    gc.enable()
    assert gone() is None


def test_a_host_without_slots_reports_too() -> None:
    cache = TieredCache(LAYOUT, Budget(device=4 * BLOCK, host=100))
    beside = Summaries(140)
    cache.count(beside)
    assert cache.stats()["over_budget_bytes"] == 40
    del beside
    gc.collect()
    assert cache.stats()["over_budget_bytes"] == cache.stats()["beside_bytes"] == 0


def test_what_a_closed_session_held_is_freed_at_once() -> None:
    """Forks that waited for Python to look for cycles once filled 13 GB with their windows."""
    layout = KVLayout((1,), (8,), "float32")
    kv = SessionKV(layout, KVPlan(32, None, (True,)), TieredCache(layout, Budget(device="1MiB", host="1MiB")), Disk())
    gone = weakref.ref(kv.layers[0].window)
    gc.disable()
    kv.close()
    del kv
    gc.enable()
    assert gone() is None


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_a_session_counts_its_windows_and_summaries_until_it_is_closed(kv_heads: int) -> None:
    layout = KVLayout((kv_heads, kv_heads), (8, 8), "float32")
    cache = TieredCache(layout, Budget(device="16MiB", host="1MiB"))
    kv = SessionKV(layout, KVPlan(32, 64, (True, False)), cache, Disk())
    empty = cache.stats()["beside_bytes"]
    assert empty >= 2 * (2 * kv_heads * (128 + 32) * 8 * 4)  # windows and sinks
    k = torch.zeros(kv_heads, 32, 8)
    for _ in range(400):
        for layer in range(2):
            kv.append(layer, k, k)
    keys = 400 * 32 * kv_heads * 8
    assert cache.stats()["beside_bytes"] == kv.nbytes >= empty + keys  # at least a byte a number of every key
    child = kv.fork(kv.length, Disk())
    assert cache.stats()["beside_bytes"] == kv.nbytes + child.nbytes < 2 * kv.nbytes  # summaries are shared
    child.close()
    kv.close()
    assert cache.stats()["beside_bytes"] == 0
    assert not np.any(kv.lost)
