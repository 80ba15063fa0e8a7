"""One suite for every Tier (P16), and the arithmetic of slots."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.memory.block import block_bytes
from agent_memory.memory.device import SlotPool
from agent_memory.memory.host import HostTier
from agent_memory.memory.tier import block_kinds, fit_slots
from agent_memory.types import KVLayout

SHAPE = (2, 2, 4, 3)


def blocks(*numbers: int) -> torch.Tensor:
    return torch.stack([torch.full(SHAPE, float(number)) for number in numbers])


def uids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("kind", [SlotPool, HostTier])
class TestTier:
    """What every Tier does."""

    def tier(self, kind: type[SlotPool], slots: int = 4) -> SlotPool:
        return kind(SHAPE, torch.float32, slots, layers=2, poison=True)

    def test_returns_what_it_was_given(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind)
        slots = tier.put(1, uids(7, 300), blocks(7, 300), only_copy=False)
        assert torch.equal(tier.read(slots), blocks(7, 300))
        assert tier.table.find(1, uids(300, 7, 8, 100_000)).tolist() == [slots[1], slots[0], -1, -1]
        assert tier.table.find(0, uids(7)).tolist() == [-1]
        tier.check()

    def test_coldest_goes_first_and_pinned_never(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind)
        slots = tier.put(0, uids(0, 1, 2, 3), blocks(0, 1, 2, 3), only_copy=False)
        tier.table.pin(slots[:1])
        tier.table.touch(slots[1:2])
        assert tier.make_room(2) == 2
        assert (tier.table.find(0, uids(0, 1, 2, 3)) >= 0).tolist() == [True, True, False, False]
        assert tier.table.available == 3
        assert tier.make_room(4) == 1
        assert torch.equal(tier.read(slots[:1]), blocks(0))
        tier.unpin(slots[:1])
        tier.check()

    def test_never_more_than_its_bytes(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind)
        assert tier.budget_bytes == tier.data.nbytes == 4 * 48 * 4
        tier.put(0, uids(0, 1, 2), blocks(0, 1, 2), only_copy=False)
        assert tier.used_bytes == 3 * 48 * 4
        with pytest.raises(AssertionError, match="2 slots wanted, 1 are free"):
            tier.put(0, uids(3, 4), blocks(3, 4), only_copy=False)
        tier.check()

    def test_forgets_at_every_layer_and_erases(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind)
        slots = [tier.put(layer, uids(5, 6), blocks(5, 6), only_copy=False) for layer in (0, 1)]
        tier.forget(uids(5, 99_999))
        assert (tier.table.find(1, uids(5, 6)) >= 0).tolist() == [False, True]
        assert tier.data[torch.from_numpy(slots[0][:1])].isnan().all()
        assert tier.used_bytes == 2 * 48 * 4
        tier.check()

    def test_forgotten_while_read_stays_readable(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind, slots=1)
        slots = tier.put(0, uids(5), blocks(5), only_copy=False)
        tier.table.pin(slots)
        tier.table.pin(slots)
        tier.forget(uids(5))
        tier.check()
        tier.unpin(slots)
        assert torch.equal(tier.read(slots), blocks(5))
        assert tier.table.available == 0
        tier.unpin(slots)
        assert tier.read(slots).isnan().all()
        assert tier.table.available == 1

    def test_check_sees_a_write_into_a_free_slot(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind)
        tier.data[0] = 1.0
        with pytest.raises(AssertionError, match="free slot"):
            tier.check()

    def test_no_slots_at_all(self, kind: type[SlotPool]) -> None:
        tier = self.tier(kind, slots=0)
        assert (tier.make_room(3), tier.used_bytes, tier.table.available) == (0, 0, 0)
        assert tier.table.find(0, uids(1)).tolist() == [-1]
        tier.check()


def test_only_copies_stay_until_saved() -> None:
    pool = SlotPool(SHAPE, torch.float32, 3, layers=2)
    for layer in (0, 1):
        pool.put(layer, uids(4), blocks(4), only_copy=True)
    pool.put(0, uids(5), blocks(5), only_copy=False)
    assert pool.make_room(3) == 1
    pool.table.saved(uids(4))
    assert (pool.table.only_copies, pool.make_room(3)) == (0, 2)


def test_host_takes_what_fits_and_copies_nothing_twice() -> None:
    host = HostTier(SHAPE, torch.float32, 2, layers=1)
    assert host.spill(0, uids(0, 1, 2), blocks(0, 1, 2)) == 2
    assert host.spill(0, uids(0, 1), blocks(8, 9)) == 0
    assert torch.equal(host.read(host.table.find(0, uids(0, 1))), blocks(0, 1))
    assert host.spill(0, uids(3), blocks(3)) == 1
    assert (host.table.find(0, uids(0, 1, 3)) >= 0).tolist() == [False, True, True]
    assert host.spill(0, uids(1, 4), blocks(1, 4)) == 1  # 1 is there already and now used, so 3 makes room
    assert torch.equal(host.read(host.table.find(0, uids(1, 4))), blocks(1, 4))
    host.check()


def test_a_full_tier_makes_room_for_several_at_once() -> None:
    pool = SlotPool((1,), torch.float32, 640)
    pool.put(0, np.arange(640), torch.zeros(640, 1), only_copy=False)
    assert pool.make_room(1) == 10
    assert (pool.table.find(0, np.arange(640)) < 0).tolist() == [True] * 10 + [False] * 630


def test_layers_of_one_shape_share_and_bytes_are_split_by_need() -> None:
    layout = KVLayout((2, 1, 2, 4), (4, 8, 4, 4), "bfloat16", 4)
    kinds = block_kinds(layout)
    assert [kind.layers for kind in kinds] == [(0, 2), (1,), (3,)]
    assert [kind.block_bytes for kind in kinds] == [block_bytes(layout, layer) for layer in (0, 1, 3)] == [128, 128, 256]
    assert fit_slots(kinds, 640 * 10) == [20, 10, 10]
    assert fit_slots(kinds, 640 * 10 + 639) == [21, 10, 10]
    assert fit_slots(kinds, 2 * 512 + 640, min_blocks=2) == [4, 3, 3]
    with pytest.raises(ConfigError, match="at least 1024"):
        fit_slots(kinds, 1023, min_blocks=2)
