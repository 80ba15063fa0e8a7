"""Attention over pages and what places Blocks, by kernels, against their definition and one query at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from agent_memory_kernels import (
    FARTHEST,
    Codes,
    LogitRule,
    PagedOperations,
    Pages,
    Placed,
    Pool,
    Regions,
    Rotation,
    Timeline,
    Workspace,
    candidate_blocks,
    paged,
)
from agent_memory_kernels.reference.paged_attention import quantise

pytestmark = [pytest.mark.usefixtures("holes"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
TORCH = paged("torch")
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def made(device: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def whole(device: str, low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(device, torch.int32)


def ints(device: str, *values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def turns(device: str, positions: int, r: int, dtype: torch.dtype = torch.float32) -> Rotation:
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, r, 2) / r)
    angles = torch.cat([angles, angles], -1)
    return Rotation(angles.cos().to(device, dtype), angles.sin().to(device, dtype))


def turned(x: torch.Tensor, at: int, rotation: Rotation | None) -> torch.Tensor:
    """transformers' ``apply_rotary_pos_emb`` of one vector ``[d]`` in fp64."""
    if rotation is None:
        return x.double()
    r = rotation.cos.shape[1]
    front, back = x[:r].double(), x[r:].double()
    half = torch.cat([-front[r // 2 :], front[: r // 2]])
    return torch.cat([front * rotation.cos[at].double() + half * rotation.sin[at].double(), back])


def _on_cpu(x: Any) -> Any:
    """Tensors, and dataclasses of tensors, on the CPU."""
    if isinstance(x, torch.Tensor):
        return x.cpu()
    if not dataclasses.is_dataclass(x) or isinstance(x, type):
        return x
    return dataclasses.replace(x, **{field.name: _on_cpu(getattr(x, field.name)) for field in dataclasses.fields(x)})


def one_by_one(
    queries: torch.Tensor, pool: Pool, regions: Regions, rotation: Rotation | None, rule: LogitRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp64 attention of each query alone, on the CPU."""
    queries, pool, regions, rotation, rule = (_on_cpu(x) for x in (queries, pool, regions, rotation, rule))
    rows, heads, m, _ = queries.shape
    asked, shared = regions.positions.shape[3], regions.entries.shape[1] == 1
    out = torch.zeros(rows, heads, m, pool.values.shape[-1], dtype=torch.float64)
    lse = torch.full((rows, heads, m), -math.inf, dtype=torch.float64)
    for row, head, line in torch.cartesian_prod(torch.arange(rows), torch.arange(heads), torch.arange(m)).tolist():
        logits, values, begin = [], [], 0
        for region, (end, (low, high)) in enumerate(zip(regions.ends, regions.bands, strict=True)):
            here = int(regions.positions[region, row, 0 if shared else head, line % asked])
            query = turned(queries[row, head, line], here, rotation)
            for slot, position, first, stop in regions.entries[row, 0 if shared else head, begin:end].tolist():
                keys, values_of = (pool.keys, pool.values) if slot >= 0 else (pool.host_keys, pool.host_values)
                if slot == -1 or keys is None or values_of is None:
                    continue
                page = slot if slot >= 0 else -slot - 2
                for offset in range(first, stop):
                    if low <= here - position - offset < high:
                        logit = float(query @ turned(keys[page, head, offset], position + offset, rotation)) * rule.scale
                        logit *= 1.0 if regions.factors is None else float(regions.factors[region, row, line % asked])
                        logits.append(logit if rule.softcap is None else rule.softcap * math.tanh(logit / rule.softcap))
                        values.append(values_of[page, head, offset].double())
            begin = end
        sinks = [] if rule.sinks is None else [float(rule.sinks[head * (m // asked) + line // asked])]
        if logits or sinks:
            lse[row, head, line] = torch.logsumexp(torch.tensor(logits + sinks, dtype=torch.float64), 0)
        if logits:
            weights = (torch.tensor(logits, dtype=torch.float64) - lse[row, head, line]).exp()
            out[row, head, line] = weights @ torch.stack(values).cpu()
    return out, lse


def close(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double().cpu(), b.double().cpu(), atol=tolerance, rtol=tolerance)


def three_regions(device: str, rows: int, heads: int, asked: int, pages: int, hosts: int) -> Regions:
    """Eleven entries a row, some of them nothing, some in host memory, each with a few visible offsets."""
    slots, positions = whole(device, -1 - hosts, pages, rows, heads, 11, seed=4), whole(device, 0, 90, rows, heads, 11, seed=5)
    firsts, stops = whole(device, 0, 9, rows, heads, 11, seed=6), whole(device, 5, 17, rows, heads, 11, seed=7)
    entries = torch.stack([slots, positions, firsts, stops], -1)
    entries[0, :, 3:] = entries.new_tensor([-1, 0, 0, 0])
    bands = (0, FARTHEST), (0, 60), (30, 80)
    factors = torch.rand(3, rows, asked, generator=torch.Generator().manual_seed(9)).to(device) + 0.5
    return Regions(entries, (4, 4, 11) if heads == 1 else (2, 5, 11), whole(device, 20, 99, 3, rows, heads, asked, seed=8), bands, factors)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("rotary", [None, 16, 64])
def test_attend_is_attention_one_query_at_a_time(
    kernels: PagedOperations, device: str, shared: bool, softcap: float | None, sinks: bool, rotary: int | None
) -> None:
    rows, heads, group, asked, size = 2, 2, 3, 2, 16
    queries = made(device, rows, heads, group * asked, 64)
    host = [made("cpu", 3, heads, size, d, seed=d) for d in (64, 32)]
    host = [x.pin_memory() for x in host] if device == "cuda" else host
    pool = Pool(made(device, 9, heads, size, 64, seed=1), made(device, 9, heads, size, 32, seed=2), *host)
    regions = three_regions(device, rows, 1 if shared else heads, asked, 9, 3)
    rotation = None if rotary is None else turns(device, 120, rotary)
    rule = LogitRule(0.2, softcap, made(device, heads * group, seed=3) if sinks else None)
    expected = one_by_one(queries, pool, regions, rotation, rule)
    close(TORCH.attend(queries, pool, regions, rotation, rule), expected, 1e-5)
    workspace = Workspace()
    for _ in range(2):  # the counters are back at zero
        close(kernels.attend(queries, pool, regions, rotation, rule, workspace=workspace), expected, 1e-5)
    assert workspace.launches == {"attend_kernel": 2} and not workspace.zeros(queries.device, 1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "value", "rotary", "group", "asked", "size"),
    [(32, 32, 32, 1, 1, 32), (64, 64, 64, 16, 1, 32), (80, 80, 32, 5, 2, 32), (96, 96, 96, 1, 3, 16), (128, 64, 128, 4, 20, 32)]
    + [(256, 256, 64, 2, 1, 32), (128, 128, 128, 2, 8, 64)],
)
def test_attend(
    kernels: PagedOperations, device: str, dim: int, value: int, rotary: int, group: int, asked: int, size: int, dtype: torch.dtype
) -> None:
    queries = made(device, 2, 2, group * asked, dim, dtype=dtype)
    pool = Pool(made(device, 9, 2, size, dim, dtype=dtype, seed=1), made(device, 9, 2, size, value, dtype=dtype, seed=2))
    slots, n = whole(device, -1, 9, 2, 1, 6, seed=4), 6 * size
    start = torch.arange(6, device=device, dtype=torch.int32).expand(2, 1, 6) * size
    entries = torch.stack([slots, start, torch.zeros_like(slots), torch.full_like(slots, size)], -1)
    entries[0, 0, 5, 3] = size // 3
    positions = (n - asked + torch.arange(asked, device=device)).to(torch.int32).expand(2, 1, asked).contiguous()
    regions = Placed(entries, positions, ints(device, 0)).region()
    rotation, rule = turns(device, 2 * n, rotary, dtype), LogitRule(dim**-0.5)
    close(kernels.attend(queries, pool, regions, rotation, rule), TORCH.attend(queries, pool, regions, rotation, rule), TOLERANCE[dtype])


def test_splits_of_any_number_give_the_same(kernels: PagedOperations, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_memory_kernels import attend

    queries, pool = made(device, 1, 1, 2, 32), Pool(made(device, 9, 1, 16, 32, seed=1), made(device, 9, 1, 16, 32, seed=2))
    entries = torch.stack([whole(device, -1, 9, 1, 1, 40), *whole(device, 0, 16, 3, 1, 1, 40, seed=3)], -1)
    regions = Regions(entries, (40,), ints(device, 20, 14).view(1, 1, 1, 2), ((0, FARTHEST),))
    expected = TORCH.attend(queries, pool, regions, None, LogitRule(0.3))
    for programs in (1, 3, 7, 264):
        monkeypatch.setattr(attend, "PROGRAMS", programs)
        close(kernels.attend(queries, pool, regions, None, LogitRule(0.3)), expected, 1e-5)


def test_rows_that_see_nothing_give_nothing(kernels: PagedOperations, device: str) -> None:
    queries, pool = made(device, 1, 1, 2, 32), Pool(made(device, 3, 1, 16, 32), made(device, 3, 1, 16, 32))
    pool.values[1] = float("nan")
    entries = ints(device, 0, 50, 0, 16, -1, 0, 0, 16, 0, 0, 3, 3).view(1, 1, 3, 4)
    regions = Regions(entries, (3,), ints(device, 10).view(1, 1, 1, 1), ((0, FARTHEST),))
    for operations in (kernels, TORCH):
        out, lse = operations.attend(queries, pool, regions, turns(device, 99, 32), LogitRule(1.0))
        assert not out.any() and bool((lse == -math.inf).all())
    out, lse = kernels.attend(queries, pool, Regions(entries[:, :, :0], (0,), regions.positions, regions.bands), None, LogitRule(1.0))
    assert not out.any() and bool((lse == -math.inf).all())


def timeline(device: str, blocks: int, sinks: int = 3, locals_: int = 4) -> Timeline:
    """Rows with borders inside and on the edge of Blocks, shorter than their sinks, and empty."""
    slots = whole(device, -6, 50, 5, blocks, seed=1)
    lines = ints(device, 40, 0, 32, 64, 9), ints(device, 530, 512, 32, 9, 0), ints(device, 600, 515, 40, 33, 0)
    return Timeline(slots, *lines, 3, sinks, locals_)


def ranks(chosen: list[int], line: Timeline, row: int, size: int) -> list[tuple[int, int]]:
    """(slot, offset) of every attended token in timeline order; a token's rank is its position."""
    length = int(line.lengths[row])
    sink = min(int(line.sinks[row]), length)
    stop = min(max(int(line.stops[row]), sink), length)
    middle = [t for block in chosen if block >= 0 for t in range(block * size, (block + 1) * size) if sink <= t < stop]
    tokens = [*range(sink), *middle, *range(stop, length)]
    return [(int(line.table[row, t // size]), t % size) for t in tokens]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("count", [1, 4, 300])
def test_select_and_place_puts_each_token_at_its_rank(kernels: PagedOperations, device: str, count: int, named: bool) -> None:
    line, size = timeline(device, 20), 32
    scores = made(device, 5, 2, 20)
    names = None
    if named:
        names = torch.arange(20, dtype=torch.int32, device=device).expand(5, 2, 20).clone()
        names[:, :, 17:] = -1
    workspace = Workspace()
    chosen, placed = kernels.select_and_place(scores, count, line, size, names=names, workspace=workspace)
    assert workspace.launches == {"select_and_place_kernel": 1}
    wanted, expected = TORCH.select_and_place(scores, count, line, size, names=names)
    assert torch.equal(chosen, wanted)
    assert all(torch.equal(a, b) for a, b in zip(fields(placed), fields(expected), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fields(kernels.place(chosen, line, size)), fields(placed), strict=True))
    assert not placed.missed.any()
    for row in range(5):
        for head in range(2):
            blocks = [b for b in chosen[row, head].tolist() if b >= 0]
            assert blocks == sorted(set(blocks))
            expected_at = dict(enumerate(ranks(blocks, line, row, size)))
            seen = {}
            for slot, position, first, stop in placed.entries[row, head].tolist():
                for offset in range(first, stop):
                    assert position + offset not in seen
                    seen[position + offset] = (slot, offset)
            assert seen == {at: token for at, token in expected_at.items() if token[0] != -1}
            total = len(expected_at)
            assert placed.positions[row, head].tolist() == [max(total - 3 + t, 0) for t in range(3)]


def test_more_chosen_blocks_than_a_tile_are_placed(kernels: PagedOperations, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_memory_kernels import place

    monkeypatch.setattr(place, "TILE", 4)
    line = timeline(device, 20)
    chosen, placed = kernels.select_and_place(made(device, 5, 1, 20), 15, line, 32)
    assert all(torch.equal(a, b) for a, b in zip(fields(placed), fields(TORCH.place(chosen, line, 32)), strict=True))


def fields(placed: Placed) -> list[torch.Tensor]:
    return [placed.entries, placed.positions, placed.missed]


def test_select_and_place_chooses_between_sink_and_local_tokens_only(kernels: PagedOperations, device: str) -> None:
    line = timeline(device, 20)
    chosen, _ = kernels.select_and_place(torch.zeros(5, 1, 20, device=device), 30, line, 32)
    assert [[b for b in row if b >= 0] for row in chosen[:, 0].tolist()] == [list(range(1, 17)), list(range(16)), [], [], []]


def test_what_has_no_room_is_counted(kernels: PagedOperations, device: str) -> None:
    line = timeline(device, 20, sinks=1, locals_=1)
    for operations in (kernels, TORCH):
        placed = operations.place(torch.full((5, 2, 3), -1, dtype=torch.int32, device=device), line, 32)
        assert placed.missed[:, 0].tolist() == [8 + 600 - 544, 0, 0, 1, 0]


def test_a_certified_step_takes_five_launches_and_a_mean_step_three(kernels: PagedOperations, device: str) -> None:
    """A whole step by kernels is the same step by the definition, and nothing in it waits for the device."""
    rows, heads, dim, size, blocks = 2, 2, 64, 16, 20
    keys, values = made(device, 40, heads, size, dim), made(device, 40, heads, size, dim, seed=1)
    queries = made(device, rows, heads, 4, dim, seed=2)
    table = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:blocks] for i in range(rows)])
    pages = Pages(table.to(device, torch.int32), ints(device, 20, 15))
    line = Timeline(pages.table, ints(device, 16, 20), ints(device, 256, 200), ints(device, 320, 236), 1, 2, 6)
    codes, means = Codes(*quantise(keys)), keys.float().mean(2, keepdim=True)
    rotation, rule = turns(device, 400, dim), LogitRule(0.1)
    for certified, most in ((False, 3), (True, 5)):
        steps = []
        for operations in (kernels, TORCH):
            workspace = Workspace()
            if certified:
                limits = {"starts": line.sinks // size, "lengths": -(-line.stops // size)}
                found = candidate_blocks(operations, queries, (keys, codes), pages, 4, capacity=16, workspace=workspace, **limits)
                assert bool(found.proven.all())
                chosen, placed = operations.select_and_place(found.scores, 4, line, size, names=found.blocks, workspace=workspace)
            else:
                scores = operations.score(queries, means, pages, workspace=workspace)
                chosen, placed = operations.select_and_place(scores, 4, line, size, workspace=workspace)
            out, _ = operations.attend(queries, Pool(keys, values), placed.region(), rotation, rule, workspace=workspace)
            assert sum(workspace.launches.values()) == (most if operations is kernels else 0)
            steps.append((chosen, out))
        assert torch.equal(steps[0][0], steps[1][0]) and torch.allclose(steps[0][1], steps[1][1], atol=1e-5)
