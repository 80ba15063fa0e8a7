"""The cache case by case: where a Block was makes no difference (P17), damage and leftovers are never handed out (P5, P10), budgets."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.errors import ConfigError
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.shelf import DEVICE, DISK, HOST
from agent_memory.types import Budget, KVLayout

LAYOUT = KVLayout((2, 1), (4, 8), "float32", 4)
PER_BLOCK = 2 * 2 * 2 * 4 * 4 * 4  # bytes of one Block at both layers


class Disk:
    """Every Block ever put, by (layer, Block number); ``damaged`` ones are refused."""

    def __init__(self) -> None:
        self.kv: dict[tuple[int, int], Tensor] = {}
        self.damaged: set[int] = set()
        self.reads = 0

    def read_kv(self, layer: int, blocks: np.ndarray, out: Tensor) -> np.ndarray:
        self.reads += len(blocks)
        for place, block in enumerate(blocks.tolist()):
            out[place] = self.kv[layer, block]
        return np.array([block not in self.damaged for block in blocks.tolist()], bool)


def fill(cache: TieredCache, disk: Disk, n: int, *, save: bool = True) -> np.ndarray:
    """Put ``n`` random Blocks; their Block numbers on disk are their uids."""
    uids = cache.allocate(n)
    dtype = getattr(torch, cache.layout.dtype)
    for layer in range(cache.layout.layers):
        # Random bits, so that NaN payloads and signed zeros are among what must come back.
        shape = (n, *cache.layout.block_shape(layer))
        kv = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).view(dtype)
        cache.put(layer, uids, kv)
        disk.kv.update({(layer, uid): kv[i] for i, uid in enumerate(uids.tolist())})
    if save:
        cache.saved(uids)
    return uids


def read(cache: TieredCache, disk: Disk, layer: int, uids: np.ndarray) -> tuple[Tensor, list[int]]:
    with cache.reading(layer, uids, uids, disk) as now:
        return now.pool[now.slots], now.tiers.tolist()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("device", "host", "tier"), [(20, 0, DEVICE), (4, 40, HOST), (4, 0, DISK)])
def test_bits_are_the_same_from_every_tier(dtype: str, device: int, host: int, tier: int) -> None:
    size = PER_BLOCK * getattr(torch, dtype).itemsize // 4
    cache = TieredCache(KVLayout((2, 1), (4, 8), dtype, 4), Budget(device=size * device), host_bytes=size * host, poison=True)
    disk = Disk()
    uids = np.concatenate([fill(cache, disk, 2) for _ in range(10)])
    for layer in (0, 1):
        for part in uids[:16].reshape(8, 2):  # the newest four are on the device in any case
            kv, tiers = read(cache, disk, layer, part)
            assert same_bits(kv, torch.stack([disk.kv[layer, uid] for uid in part.tolist()]))
            assert tiers == [tier, tier]
    assert disk.reads == (32 if tier == DISK else 0)


@pytest.mark.parametrize("host", [0, 8])
def test_blocks_of_layers_that_recall_nothing_leave_first(host: int) -> None:
    layout = KVLayout((1, 1), (8, 8), "float32", 4)
    block = 2 * 4 * 8 * 4
    cache = TieredCache(layout, Budget(device=8 * block), unread=[0], host_bytes=2 * host * block, poison=True)
    disk = Disk()
    uids = np.concatenate([fill(cache, disk, 1) for _ in range(6)])
    assert cache.resident(1, uids).all() and cache.resident(0, uids).tolist() == [False] * 4 + [True] * 2
    assert cache.stats()["spilled"] == 0
    kv, tiers = read(cache, disk, 0, uids[:2])
    assert tiers == [DISK, DISK] and same_bits(kv, torch.stack([disk.kv[0, uid] for uid in uids[:2].tolist()]))
    cache.check()


def test_a_damaged_block_has_no_slot_and_is_read_again_next_time() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4), poison=True), Disk()
    uids = fill(cache, disk, 3)
    fill(cache, disk, 4)  # pushes them out
    disk.damaged = {int(uids[1])}
    with cache.reading(0, uids, uids, disk) as now:
        assert (now.slots >= 0).tolist() == [True, False, True]
        assert same_bits(now.pool[now.slots[[0, 2]]], torch.stack([disk.kv[0, 0], disk.kv[0, 2]]))
    assert not cache.resident(0, uids)[1]
    assert cache.stats()["damaged"] == 1
    disk.damaged = set()
    kv, tiers = read(cache, disk, 0, uids)
    assert tiers == [DEVICE, DISK, DEVICE]
    assert same_bits(kv[1], disk.kv[0, 1])
    cache.check()


def test_what_is_being_read_outlives_release_and_reuse_of_its_name() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4), poison=True), Disk()
    uids = fill(cache, disk, 2)
    before = disk.kv[0, int(uids[0])]
    with cache.reading(0, uids, uids, disk) as now:
        cache.release(uids)
        again = fill(cache, disk, 2)
        assert set(again.tolist()) == set(uids.tolist())
        assert same_bits(now.pool[now.slots[0]], before)
        kv, _ = read(cache, disk, 0, again)
        assert same_bits(kv, torch.stack([disk.kv[0, uid] for uid in again.tolist()]))
        cache.check()
    cache.check()
    assert cache.stats()["pinned"] == 0


def test_a_reused_name_never_finds_what_it_named_before() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4), host_bytes=PER_BLOCK * 8, poison=True), Disk()
    old = fill(cache, disk, 4)
    fill(cache, disk, 4)  # the old ones are on the host now
    cache.release(old)
    new = cache.allocate(4)
    assert set(new.tolist()) == set(old.tolist())
    assert not any(cache.resident(layer, new).any() for layer in (0, 1))


def test_coldest_leaves_first() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4)), Disk()
    uids = fill(cache, disk, 4)
    read(cache, disk, 0, uids[[0, 2]])
    fill(cache, disk, 2)
    assert cache.resident(0, uids).tolist() == [True, False, True, False]
    assert cache.resident(1, uids).tolist() == [False, False, True, True]


def test_a_copy_that_fails_leaves_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4)), Disk()
    uids = cache.allocate(2)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.Tensor, "index_copy_", no_memory)
        cache.put(0, uids, torch.ones(2, *LAYOUT.block_shape(0)))
    assert not cache.resident(0, uids).any()
    cache.check()
    saved = fill(cache, disk, 2)
    fill(cache, disk, 4)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.Tensor, "index_copy_", no_memory)
        read(cache, disk, 0, saved)
    assert not cache.resident(0, saved).any()
    assert cache.stats()["pinned"] == 0
    cache.check()


def test_budget_below_one_step_names_the_least_that_is_enough() -> None:
    def cache_of(device: int) -> TieredCache:
        return TieredCache(LAYOUT, Budget(device=device), min_blocks=3, unsaved_blocks=5)

    with pytest.raises(ConfigError, match="Budget.device") as failure:
        cache_of(100)
    least = int(re.findall(r"at least (\d+)", str(failure.value))[0])
    cache, disk = cache_of(least), Disk()
    fill(cache, disk, 5, save=False)
    assert [cache.max_read(layer) for layer in (0, 1)] == [3, 3]
    with pytest.raises(ConfigError):
        cache_of(least - 1)


def test_only_copies_that_fill_the_device_are_a_named_error_and_stay() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4)), Disk()
    uids = fill(cache, disk, 4, save=False)
    more = cache.allocate(2)
    with pytest.raises(ConfigError, match="4 wait to be saved") as failure:
        cache.put(0, more, torch.zeros(2, *LAYOUT.block_shape(0)))
    with pytest.raises(ConfigError, match="do not fit"):
        read(cache, disk, 1, more)
    for layer in (0, 1):
        kv, tiers = read(cache, disk, layer, uids)
        assert same_bits(kv, torch.stack([disk.kv[layer, uid] for uid in uids.tolist()]))
        assert tiers == [DEVICE] * 4
    assert disk.reads == 0
    least = int(re.findall(r"at least (\d+)", str(failure.value))[0])
    fill(TieredCache(LAYOUT, Budget(device=least)), disk, 6, save=False)


@pytest.mark.parametrize("device", ["1KiB", "10KB", 12345, "1MiB"])
@pytest.mark.parametrize("layout", [LAYOUT, KVLayout((8, 1, 4, 8), (16, 4, 2, 16), "bfloat16"), KVLayout((1,), (1,), "float32", 1)])
def test_reserved_bytes_stay_within_budgets(layout: KVLayout, device: int | str) -> None:
    try:
        cache = TieredCache(layout, Budget(device=device), host_bytes=device)
    except ConfigError:
        return
    budget = 2 * {"1KiB": 1024, "10KB": 10_000, "1MiB": 2**20}.get(str(device), 12345)
    tensors = sum(tier.data.nbytes for tier in cache._tiers())
    assert tensors == cache.budget_bytes <= budget
    assert cache.used_bytes == 0


def test_on_a_cpu_the_host_tier_is_empty_by_default() -> None:
    assert TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4, host="1GiB")).budget_bytes == PER_BLOCK * 4


def test_other_shapes_and_dtypes_are_refused() -> None:
    cache = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4))
    uids = cache.allocate(1)
    for kv in (torch.zeros(1, *LAYOUT.block_shape(1)), torch.zeros(2, *LAYOUT.block_shape(0)), torch.zeros(1, 2, 2, 4, 4).half()):
        with pytest.raises(ConfigError, match="layer 0 holds"):
            cache.put(0, uids, kv)
    with pytest.raises(ConfigError, match="int8"):
        TieredCache(KVLayout((1,), (4,), "int8"), Budget())


def test_our_own_mistakes_are_assertions() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 4)), Disk()
    uids = fill(cache, disk, 2)
    for mistake in (
        lambda: cache.put(0, uids, torch.zeros(2, *LAYOUT.block_shape(0))),
        lambda: read(cache, disk, 0, np.array([uids[0], uids[0]])),
        lambda: cache.release(np.array([uids[0], uids[0]])),
        lambda: cache.retain(np.array([7])),
        lambda: cache.saved(np.array([-1])),
    ):
        with pytest.raises(AssertionError):
            mistake()
    cache.check()
    cache.release(uids)
    with pytest.raises(AssertionError):
        read(cache, disk, 0, uids)


def test_names_and_tables_stay_small_however_many_blocks_come_and_go() -> None:
    cache, disk = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 8)), Disk()
    for _ in range(200):
        uids = fill(cache, disk, 4)
        cache.retain(uids)
        cache.release(uids)
        cache.release(uids)
        assert uids.max() < 4
    many = cache.allocate(150_000)
    cache.put(1, many[-2:], torch.ones(2, *LAYOUT.block_shape(1)))
    assert cache.resident(1, many).sum() == 2
    cache.release(many)
    cache.check()
    assert cache.stats()["blocks"] == cache.used_bytes == 0


def test_two_threads_share_a_cache() -> None:
    cache, failures = TieredCache(LAYOUT, Budget(device=PER_BLOCK * 12), host_bytes=PER_BLOCK * 4, poison=True), []

    def session(seed: int) -> None:
        try:
            disk, random = Disk(), np.random.default_rng(seed)
            uids = np.empty(0, np.int64)
            for _ in range(60):
                uids = np.concatenate([uids, fill(cache, disk, 2)])
                some = random.choice(uids, min(4, len(uids)), replace=False)
                kv, _ = read(cache, disk, 0, some)
                assert same_bits(kv, torch.stack([disk.kv[0, uid] for uid in some.tolist()]))
            cache.release(uids)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=session, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    cache.check()
    assert cache.used_bytes == 0
