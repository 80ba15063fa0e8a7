"""What a longer memory costs: nothing more for the next Block, and next to nothing on Python's heap. Counters and bytes, never times."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_memory.kv_files import SegmentFiles
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.layer_kv import KVPlan
from agent_memory.memory.names import BlockNames
from agent_memory.memory.session_kv import SessionKV
from agent_memory.memory.slots import SlotTable
from agent_memory.memory.uids import Uids
from agent_memory.memory.window import LayerWindow
from agent_memory.store.store import Store
from agent_memory.types import Budget
from tests.store.support import LAYOUT, open_session

TURN = 512
PARTS = (51_200,) * 5


def append(timeline: object, kv: SessionKV, files: SegmentFiles, tokens: int) -> None:
    """Turns of ``TURN`` tokens: committed, their keys and values made, full Segments written."""
    for _ in range(tokens // TURN):
        files._timeline.append_turn("tool", "x" * 40, np.zeros(TURN, np.int32), chain="c")
        for layer in range(LAYOUT.layers):
            k = torch.full((LAYOUT.kv_heads[layer], TURN, LAYOUT.head_dim[layer]), float(kv.length))
            kv.append(layer, k, k)
        files.flush(kv, kv.length)


def heap() -> int:
    """Bytes on Python's heap, without numpy's arrays."""
    gc.collect()
    ours = (
        tracemalloc.DomainFilter(inclusive=False, domain=np.lib.tracemalloc_domain),
        tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),
    )
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)


def test_a_token_costs_a_tenth_of_a_byte_of_pythons_heap(fresh: Callable[[], Path]) -> None:
    with Store.open(fresh()) as store:
        timeline = open_session(store)
        files = SegmentFiles(timeline)
        cache = TieredCache(LAYOUT, Budget(device="1MiB"), min_blocks=32, unsaved_blocks=64)
        kv = SessionKV(LAYOUT, KVPlan(32, 512, (True, True)), cache, files)
        append(timeline, kv, files, 10_240)
        tracemalloc.start()
        held = []
        for tokens in (20_480, *PARTS):
            append(timeline, kv, files, tokens)
            held.append(heap())
        tracemalloc.stop()
        # Caches of SQLAlchemy, torch and the like fill up in some parts of the way; what a token costs, it costs in each of them.
        assert min(after - before for before, after in itertools.pairwise(held)) <= 0.1 * PARTS[0], held
        # The tables that name Blocks: 8 bytes a Block in the Session and 4 in the cache, 1 for lost, 4 a layer; doubled at worst.
        tables = kv._names.nbytes + cache._uids._references.nbytes + sum(shelf.pool.table._table.nbytes for shelf in cache._shelves)
        assert tables <= 2 * kv.blocks * (8 + 1 + 4 + 4 * LAYOUT.layers)
        kv.close()
        cache.check()


def test_names_of_blocks_move_as_often_as_they_double() -> None:
    names, moves, at = BlockNames(), 0, 0
    for number in range(50_000):
        names.append(np.array([number], np.int64))
        now = names._uids.__array_interface__["data"][0]
        moves, at = moves + (now != at), now
    assert moves <= 10
    assert (names.uids == np.arange(50_000)).all() and not names.lost.any()
    names.lost[7] = True
    names.truncate(49_000)
    twin = names.copy()
    names.truncate(3)
    names.append(np.array([9, 9, 9, 9, 9], np.int64))
    assert names.uids.tolist() == [0, 1, 2, 9, 9, 9, 9, 9] and not names.lost.any()
    assert (len(twin), twin.lost.nonzero()[0].tolist()) == (49_000, [7])
    twin.append(np.arange(300))
    assert not twin.lost[49_000:].any() and twin.uids[-1] == 299


def test_what_may_leave_is_counted_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step looks at the slots it uses, and at all of them only to choose who leaves: once for many Blocks."""
    table, looked = SlotTable(6400, 1), 0
    of = SlotTable._may_go

    def counting(self: SlotTable, slots: np.ndarray | slice) -> np.ndarray:
        nonlocal looked
        found = of(self, slots)
        looked += len(found)
        return found

    monkeypatch.setattr(SlotTable, "_may_go", counting)
    table.claim(0, np.arange(6400), table.next_free(6400), only_copy=False)
    looked = 0
    for step in range(400):
        uids = np.arange(6400 + step, 6401 + step)
        if table.free < 1:
            table.drop(table.victims(1))
        slots = table.next_free(1)
        table.claim(0, uids, slots, only_copy=False)
        table.pin(slots)
        assert table.available == 6399
        table.unpin(slots)
    assert looked <= 6400 * 4 + 400 * 4  # 100 slots leave at a time
    table.check()


def test_references_are_counted_in_one_pass() -> None:
    uids = Uids()
    names = uids.allocate(1000)
    uids.retain(names[[5, 5, 7]])
    assert uids.going(names[[5, 5, 7, 8]]).tolist() == [8]
    uids.release(names[[5, 7, 8, 5]])
    assert uids.going(names[5:8]).tolist() == [5, 6, 7]
    assert uids.going(names[[7, 9]]).tolist() == [7, 9]
    assert uids.going(names[:0]).tolist() == []
    uids.retain(names[:0])
    with pytest.raises(AssertionError, match=r"more often than retained: \[5\]"):
        uids.going(names[[5, 5]])
    uids.check()
    assert uids.alive == 999


def test_a_fork_shares_the_window_until_either_goes_on() -> None:
    window = LayerWindow(1, 4, 64, 32, dtype=torch.float32, device=torch.device("cpu"))
    window.append(torch.ones(1, 40, 4), torch.ones(1, 40, 4))
    forks = [window.copy() for _ in range(3)]
    held = window.view(0, 40)[0].data_ptr()
    assert all(fork.view(0, 40)[0].data_ptr() == held for fork in forks)
    forks[0].append(torch.full((1, 2, 4), 2.0), torch.full((1, 2, 4), 2.0))
    window.append(torch.full((1, 2, 4), 3.0), torch.full((1, 2, 4), 3.0))
    forks[1].truncate(8)
    forks[1].append(torch.full((1, 2, 4), 4.0), torch.full((1, 2, 4), 4.0))
    assert [one.view(one.stop - 1, one.stop)[0].flatten()[0].item() for one in (window, *forks)] == [3, 2, 4, 1]
    assert [(one.view(0, 8)[0] == 1).all().item() for one in (window, *forks)] == [True] * 4
    assert [one.stop for one in (window, *forks)] == [42, 42, 10, 40]
