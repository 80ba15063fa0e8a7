"""What only a CUDA device can show: a step that waits for nothing, captured once and replayed, reading pinned host memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from agent_memory_kernels import (
    Codes,
    LogitRule,
    PagedOperations,
    Pages,
    Pool,
    Rotation,
    Timeline,
    Workspace,
    candidate_blocks,
    paged,
)
from agent_memory_kernels.reference.paged_attention import quantise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: `make test-gpu` on a machine that has one")
SIZE, BLOCKS, DIM = 32, 64, 128


class Step:
    """A certified step of two Sessions whose buffers stay where they are."""

    def __init__(self, operations: PagedOperations) -> None:
        self.operations, self.workspace = operations, Workspace()
        g = torch.Generator().manual_seed(0)
        self.queries = torch.randn(2, 4, 4, DIM, generator=g).to("cuda", torch.bfloat16)
        keys, values = (torch.randn(96, 4, SIZE, DIM, generator=g).to(torch.bfloat16) for _ in range(2))
        self.pool = Pool(keys.cuda(), values.cuda(), keys.pin_memory(), values.pin_memory())
        self.codes = Codes(*quantise(self.pool.keys))
        table = torch.stack([torch.randperm(96, generator=g)[:BLOCKS] for _ in range(2)]).to("cuda", torch.int32)
        far = torch.where(torch.rand(table.shape, generator=g).cuda() < 0.5, table, -table - 2)  # half of them are read from the host
        ints = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in ((64, 64), (32, 40), (1800, 1500), (2000, 1700))]
        self.pages = Pages(table, ints[0])
        self.line = Timeline(far, ints[1], ints[2], ints[3], 1, 2, 9)
        angles = torch.outer(torch.arange(2048), 10000.0 ** (-torch.arange(0, DIM, 2) / DIM)).repeat(1, 2).cuda()
        self.turns = Rotation(angles.cos(), angles.sin())

    def __call__(self) -> torch.Tensor:
        limits = {"starts": self.line.sinks // SIZE, "lengths": self.line.stops // SIZE}
        stored = self.pool.keys, self.codes
        found = candidate_blocks(self.operations, self.queries, stored, self.pages, 8, capacity=48, workspace=self.workspace, **limits)
        _, placed = self.operations.select_and_place(found.scores, 8, self.line, SIZE, names=found.blocks, workspace=self.workspace)
        rule = LogitRule(DIM**-0.5)
        return self.operations.attend(self.queries, self.pool, placed.region(), self.turns, rule, workspace=self.workspace)[0]


@pytest.fixture
def step(kernels: PagedOperations) -> Step:
    return Step(kernels)


def expected(step: Step) -> torch.Tensor:
    kept, step.operations = step.operations, paged("torch")
    out = step()
    step.operations = kept
    return out


def test_a_step_waits_for_nothing(step: Step) -> None:
    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(out, expected(step), atol=3e-2)


def test_a_captured_step_is_replayed_for_other_queries_and_lengths(step: Step) -> None:
    step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = step()
    changes: list[Callable[[], object]] = [
        lambda: step.queries.normal_(),
        lambda: step.line.lengths.add_(17),
        lambda: step.line.stops.sub_(100),
        lambda: step.pages.counts.sub_(5),
    ]
    for change in changes:
        change()
        graph.replay()
        assert torch.allclose(out, expected(step), atol=3e-2)
        assert not step.workspace.zeros(out.device, 1).any()
