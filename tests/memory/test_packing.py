"""Blocks in 8 and 4 bits: how far off they can be, how many bytes they take, and what cannot be packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.memory.host import HostTier
from agent_memory.memory.packing import Int4, Int8, Packing, packing_of
from agent_memory.types import KVLayout
from tests.memory.test_tiers import uids

SHAPE = (2, 3, 32, 64)


def around(kv: torch.Tensor, packing: Packing) -> torch.Tensor:
    rows = packing.pack(kv)
    assert rows.dtype == torch.uint8 and rows.shape == (len(kv), packing.row_bytes(tuple(kv.shape[1:])))
    return packing.unpack(rows, tuple(kv.shape[1:]), kv.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("packing", "most", "run"), [(Int8(), 127, 64), (Int4(), 7, 32)], ids=["int8", "int4"])
def test_a_number_is_off_by_half_a_step_of_its_own_run(packing: Packing, most: int, run: int, dtype: torch.dtype) -> None:
    kv = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    kv[0, 0, 1] *= 1000  # one KV head's keys of one Block
    kv[1, 1, :, 7] /= 1000  # one token's values
    kv[2, :, :, :, :32] *= 50  # half of every key and value
    kv = kv.to(dtype)
    again = around(kv, packing)
    assert again.dtype == dtype and again.shape == kv.shape
    runs = kv.double().unflatten(-1, (-1, run))
    step = runs.abs().amax(-1, keepdim=True) / most
    rounding = 2**-10 * runs.abs() + 2**-7 * runs.abs() * (dtype == torch.bfloat16)  # of the scale, and of what is handed back
    assert ((again.double().unflatten(-1, (-1, run)) - runs).abs() <= step / 2 * (1 + 2**-9) + rounding).all()


def test_zeros_stay_and_numbers_too_small_for_a_scale_become_zero() -> None:
    for packing in (Int8(), Int4()):
        assert around(torch.zeros(0, *SHAPE), packing).shape == (0, *SHAPE)
        kv = torch.zeros(2, *SHAPE)
        kv[1] = 1e-9
        assert not around(kv, packing).any()
        assert packing.unpack(torch.full((1, packing.row_bytes(SHAPE)), 255, dtype=torch.uint8), SHAPE, torch.float32).isnan().all()


@pytest.mark.parametrize(
    ("kind", "dtype", "times"),
    [("int8", "float32", 3.87), ("int8", "bfloat16", 1.93), ("int4", "float32", 7.1), ("int4", "bfloat16", 3.55)],
)
def test_bytes(kind: str, dtype: str, times: float) -> None:
    packing, layout = packing_of(kind), KVLayout((8,), (64,), dtype)  # type: ignore[arg-type]
    assert packing is not None
    exact = 2 * 8 * 32 * 64 * getattr(torch, dtype).itemsize
    assert exact / packing.row_bytes(layout.block_shape(0)) > times


@pytest.mark.parametrize("packing", [Int8(), Int4()], ids=["int8", "int4"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e9])
def test_what_cannot_be_scaled_is_not_taken(packing: Packing, bad: float) -> None:
    host = HostTier(SHAPE, torch.float32, 4, packing=packing)
    kv = torch.ones(3, *SHAPE)
    kv[1, 0, 0, 0, 0] = bad
    assert host.spill(0, uids(0, 1, 2), kv) == 2
    assert (host.table.find(0, uids(0, 1, 2)) >= 0).tolist() == [True, False, True]
    assert host.read(host.table.find(0, uids(0, 2))).isfinite().all()


def test_an_approximate_copy_is_never_packed_again_but_counts_as_used() -> None:
    host = HostTier(SHAPE, torch.float32, 2, packing=Int8())
    first, other = torch.randn(2, *SHAPE).split(1)
    host.spill(0, uids(7), first, np.array([True]))
    rows = host.data.clone()
    assert host.spill(0, uids(7, 8), torch.cat([other, other]), np.array([False, False])) == 0
    assert torch.equal(host.data[host.table.find(0, uids(7))], rows[host.table.find(0, uids(7))])
    host.spill(0, uids(9), other, np.array([True]))
    host.spill(0, uids(7), other, np.array([False]))
    host.spill(0, uids(10), other, np.array([True]))  # 9 leaves: 7 was used after it
    assert (host.table.find(0, uids(7, 9, 10)) >= 0).tolist() == [True, False, True]


def test_what_is_not_possible_is_one_line() -> None:
    with pytest.raises(ConfigError, match="cold='int3' is no kind of copy; choose one of exact, int8, int4"):
        packing_of("int3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="head dimension is 5; use cold='int8'"):
        Int4().row_bytes((2, 1, 32, 5))
    assert Int8().row_bytes((2, 1, 32, 5)) == 2 * 32 * 7
    assert packing_of("exact") is None
