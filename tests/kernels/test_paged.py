"""Which paged backend is chosen, and what wrong arguments say."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from agent_memory_kernels import (
    Codes,
    KernelError,
    LogitRule,
    PagedOperations,
    Pages,
    Pool,
    Regions,
    Rotation,
    Timeline,
    checks,
    paged,
)
from agent_memory_kernels.reference import paged as definition

TORCH = paged("torch")


def test_a_backend_is_never_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paged("torch", "cuda") is definition and paged("auto", "cpu") is definition and paged() is definition
    with pytest.raises(KernelError, match="'magic'; choose 'auto', 'torch' or 'triton'"):
        paged("magic")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelError, match="CUDA device, not on 'cpu'" if importlib.util.find_spec("triton") else "not installed"):
        paged("triton", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend in ("triton", "auto"):
        with pytest.raises(KernelError, match="triton, which is not installed"):
            paged(backend, "cuda")
    assert issubclass(KernelError, ValueError) and issubclass(KernelError, RuntimeError)


def test_importing_the_package_does_not_import_triton() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # torch itself may import triton where it is installed.
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import agent_memory_kernels as k; k.paged('torch'); k.paged('auto', 'cpu');"
        "sys.exit('agent_memory_kernels.device' in sys.modules or ('triton' in sys.modules) != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def queries(m: int = 2, dim: int = 32) -> torch.Tensor:
    return torch.zeros(1, 2, m, dim)


KEYS = torch.zeros(3, 2, 16, 32)
ONE = torch.ones(1, dtype=torch.int32)
PAGES = Pages(torch.zeros(1, 3, dtype=torch.int32), ONE)
CODES = Codes(KEYS.to(torch.int8), KEYS[..., 0].contiguous(), KEYS[..., 0].contiguous())
LINE = Timeline(PAGES.table, ONE, ONE, ONE, 1, 1, 1)
REGIONS = Regions(torch.zeros(1, 1, 4, 4, dtype=torch.int32), (4,), torch.zeros(1, 1, 1, 1, dtype=torch.int32), ((0, 9),))
TURNS = Rotation(torch.zeros(9, 32), torch.zeros(9, 32))
RULE = LogitRule(1.0)


def attend(pool: Pool | None = None, regions: Regions = REGIONS, turns: Rotation = TURNS, rule: LogitRule = RULE, m: int = 2) -> object:
    return TORCH.attend(queries(m), pool or Pool(KEYS, KEYS), regions, turns, rule)


def line(**changes: object) -> Timeline:
    return dataclasses.replace(LINE, **changes)  # type: ignore[arg-type]


def of_regions(**changes: object) -> Regions:
    return dataclasses.replace(REGIONS, **changes)  # type: ignore[arg-type]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: TORCH.score(queries(dim=48), torch.zeros(3, 2, 16, 48), PAGES), "head size 48 has no kernel; allowed are 32, 64"),
    (lambda: TORCH.score(queries().double(), KEYS, PAGES), "queries is torch.float64; allowed are torch.float16"),
    (lambda: TORCH.score(queries(m=0), KEYS, PAGES), "m = 0"),
    (lambda: TORCH.score(queries(), KEYS.half(), PAGES), "keys are torch.float16, queries torch.float32; both must be the same"),
    (lambda: TORCH.score(queries(), KEYS.to("meta"), PAGES), "keys is on meta, queries on cpu; all must be on one device"),
    (lambda: TORCH.score(queries(), KEYS[:, :, :7], PAGES), "Blocks of 7 tokens; allowed are 1, 16"),
    (lambda: TORCH.score(queries(), KEYS[:, :1], PAGES), r"keys has shape \(3, 1, 16, 32\); needed is \[any, 2, any, 32\]"),
    (lambda: TORCH.score(queries(), torch.zeros(3, 2, 32, 16).mT, PAGES), "keys has stride 16 in its last dimension; needed is 1"),
    (lambda: TORCH.score(queries(), KEYS, Pages(PAGES.table.long(), ONE)), "table is torch.int64; allowed are torch.int32"),
    (lambda: TORCH.score(queries(), KEYS, Pages(PAGES.table, ONE.long())), "counts is torch.int64"),
    (lambda: TORCH.score(queries(), KEYS, Pages(PAGES.table, ONE, ONE.float())), "tokens is torch.float32"),
    (lambda: TORCH.score_int8(queries(), Codes(KEYS, CODES.scale, CODES.residual), PAGES), "codes is torch.float32"),
    (lambda: TORCH.score_int8(queries(), Codes(CODES.codes, CODES.scale.half(), CODES.residual), PAGES), "scale is torch.float16"),
    (
        lambda: TORCH.score_int8(queries(), Codes(CODES.codes, CODES.scale, CODES.residual.mT.contiguous().mT), PAGES),
        "residual has strides",
    ),
    (lambda: TORCH.score_codes(queries(dim=48), CODES, PAGES), "head size 48 has no kernel; allowed are 32, 64"),
    (lambda: TORCH.score_codes(queries().long(), CODES, PAGES), "queries is torch.int64; allowed are torch.float16"),
    (lambda: TORCH.score_codes(queries(dim=64), CODES, PAGES), r"codes has shape \(3, 2, 16, 32\); needed is \[any, 2, any, 64\]"),
    (
        lambda: TORCH.score_codes(queries(), Codes(KEYS, CODES.scale, CODES.residual), PAGES),
        "codes is torch.float32; allowed are torch.int8",
    ),
    (lambda: TORCH.score_codes(queries(), Codes(CODES.codes, CODES.scale[:2], CODES.residual), PAGES), r"scale has shape \(2, 2, 16\)"),
    (lambda: TORCH.score_codes(queries(), Codes(CODES.codes, CODES.scale.to("meta"), CODES.residual), PAGES), "scale is on meta"),
    (lambda: TORCH.score_codes(queries(), CODES, Pages(PAGES.table.long(), ONE)), "table is torch.int64; allowed are torch.int32"),
    (lambda: TORCH.rescore(queries(), KEYS, PAGES, torch.zeros(1, 2, 4)), "listed is torch.float32"),
    (lambda: TORCH.rescore(queries(), KEYS, PAGES, torch.zeros(1, 2, 2, 4, dtype=torch.int32)), "listed has shape"),
    (lambda: TORCH.select(KEYS.double(), 3), "scores is torch.float64"),
    (lambda: TORCH.select(KEYS, 0), "count=0; at least 1"),
    (lambda: TORCH.select(KEYS, 3, lengths=ONE), r"lengths has shape \(1,\); needed is \[3\]"),
    (lambda: TORCH.select(KEYS, 3, names=ONE), "names has shape"),
    (lambda: TORCH.certify(KEYS, KEYS, 4, 3), "capacity=3 holds fewer than count=4"),
    (lambda: TORCH.certify(KEYS, KEYS[..., :3], 4, 4), "upper has shape"),
    (lambda: TORCH.tally(ONE, 4), "named has shape"),
    (lambda: TORCH.tally(PAGES.table, 0), "width=0"),
    (lambda: TORCH.place(PAGES.table, LINE, 16), "blocks has shape"),
    (lambda: TORCH.place(PAGES.table[None], line(stops=ONE.long()), 16), "stops is torch.int64"),
    (lambda: TORCH.place(PAGES.table[None], line(local_blocks=0), 16), "local_blocks=0; at least 1"),
    (lambda: TORCH.place(PAGES.table[None], LINE, 20), "size=20 tokens of a Block"),
    (lambda: TORCH.select_and_place(KEYS[0], 1, LINE, 16), "table has shape"),
    (lambda: attend(Pool(KEYS, torch.zeros(3, 2, 16, 48))), "value size 48 has no kernel"),
    (lambda: attend(Pool(KEYS, KEYS.half())), "values are torch.float16"),
    (lambda: attend(Pool(KEYS, KEYS, KEYS)), "one of them is None"),
    (lambda: attend(Pool(KEYS, KEYS, KEYS.half(), KEYS)), "host_keys are torch.float16"),
    (lambda: attend(Pool(KEYS, KEYS, KEYS.mT.contiguous().mT, KEYS)), "host_keys have strides"),
    (lambda: attend(Pool(*[torch.zeros(3 * 2 * 16 * 32 + 1)[1:].view(3, 2, 16, 32)] * 4)), "multiples of 16 bytes"),
    (lambda: attend(regions=of_regions(ends=(2, 3))), "1 bands for 2 Regions|2 Regions"),
    (lambda: attend(regions=of_regions(ends=(3,))), r"ends=\(3,\); they must ascend to 4"),
    (lambda: attend(regions=of_regions(ends=(1, 2, 3, 4), bands=((0, 1),) * 4)), "4 Regions; allowed are 1 to 3"),
    (lambda: attend(regions=of_regions(entries=REGIONS.entries.expand(1, 3, 4, 4))), "entries of 3 heads; allowed are 1 and 2"),
    (lambda: attend(regions=of_regions(positions=REGIONS.positions.expand(1, 1, 1, 3))), "2 query rows are no multiple of 3"),
    (lambda: attend(regions=of_regions(positions=REGIONS.positions.long())), "positions is torch.int64"),
    (lambda: attend(regions=of_regions(factors=ONE.double().view(1, 1, 1))), "factors is torch.float64"),
    (lambda: attend(turns=Rotation(torch.zeros(9, 34), torch.zeros(9, 34))), "34 dimensions are rotated of a head of 32"),
    (lambda: attend(turns=Rotation(TURNS.cos, TURNS.sin.half())), "sin is torch.float16"),
    (lambda: attend(turns=Rotation(TURNS.cos[:0], TURNS.sin[:0])), "no positions"),
    (lambda: attend(rule=LogitRule(1.0, None, torch.zeros(3))), "3 sinks; needed is one a query head"),
    (lambda: TORCH.summarize(KEYS, ONE.long(), KEYS[:, :, 0], None), "pages is torch.int64"),
    (lambda: TORCH.summarize(KEYS, ONE, KEYS[:, :, 0].half(), None), "means is torch.float16"),
    (lambda: TORCH.summarize(KEYS, ONE, KEYS[:, :, 0], Codes(CODES.codes[:2], CODES.scale, CODES.residual)), "codes has shape"),
    (lambda: checks.check_finite("keys", torch.tensor([1.0, float("nan")])), "keys has a number that is not finite"),
    (lambda: checks.check_missed(torch.tensor([0, 7])), "7 sink or local tokens have no room"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_argument_is_named_with_what_is_allowed(call: Callable[[], object], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        call()


def test_kernels_check_as_the_definition_does(kernels: PagedOperations, device: str) -> None:
    q, keys = queries(dim=48).to(device), torch.zeros(3, 2, 16, 48, device=device)
    pages = Pages(PAGES.table.to(device), ONE.to(device))
    calls: list[Callable[[], object]] = [
        lambda: kernels.score(q, keys, pages),
        lambda: kernels.score_int8(q, CODES, pages),
        lambda: kernels.score_codes(q, CODES, pages),
        lambda: kernels.rescore(q, keys, pages, pages.table),
        lambda: kernels.select(keys.double(), 1),
        lambda: kernels.certify(keys, keys, 4, 3),
        lambda: kernels.tally(pages.counts, 1),
        lambda: kernels.place(pages.table, LINE, 16),
        lambda: kernels.select_and_place(keys, 1, LINE, 16),
        lambda: kernels.attend(q, Pool(keys, keys), REGIONS, None, RULE),
        lambda: kernels.summarize(keys, pages.counts, keys, None),
    ]
    for call in calls:
        with pytest.raises(KernelError):
            call()


def test_finite_numbers_pass() -> None:
    checks.check_finite("keys", KEYS)
    checks.check_missed(torch.zeros(3, dtype=torch.int32))
    assert bool(checks.unfit(torch.tensor([float("inf")])))
