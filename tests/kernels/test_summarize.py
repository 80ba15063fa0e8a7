"""Summaries of new Blocks by kernels: means, codes, and a residual that covers what the codes lost."""

from __future__ import annotations

import pytest
import torch

from agent_memory_kernels import Codes, PagedOperations, paged

pytestmark = [pytest.mark.usefixtures("holes"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF = float("inf")


def blank(keys: torch.Tensor) -> tuple[torch.Tensor, Codes]:
    steps = torch.full(keys.shape[:3], 7.0, device=keys.device)
    return torch.full((*keys.shape[:2], keys.shape[3]), 7.0, device=keys.device), Codes(
        torch.full(keys.shape, 7, dtype=torch.int8, device=keys.device), steps, steps.clone()
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 80, 128, 256])
def test_summaries_of_new_pages(kernels: PagedOperations, device: str, backend: str, dim: int, dtype: torch.dtype) -> None:
    keys = torch.randn(7, 2, 32, dim, generator=torch.Generator().manual_seed(dim)).to(device)
    keys[0, 0, 0] = 0
    keys[0, 0, 1, 0], keys[0, 0, 2, 1], keys[0, 0, 3, 2] = INF, float("nan"), -INF
    keys[0, 1] *= 1e-30 if dtype == torch.float32 else 1e-4
    keys[1, 1] *= 1e30 if dtype == torch.float32 else 1e4
    keys[2, 0] *= 1e-37 if dtype == torch.float32 else 1e-7
    keys[2, 1, :, 5] *= 400
    keys = keys.to(dtype)
    means, codes = blank(keys)
    operations = kernels if backend == "triton" else paged("torch")
    new = torch.tensor([2, -1, 0, 5, 1], dtype=torch.int32, device=device)
    operations.summarize(keys, new, means, codes)
    for page in (3, 4, 6):
        assert bool((means[page] == 7).all() & (codes.codes[page] == 7).all() & (codes.residual[page] == 7).all())
    at = [0, 1, 2, 5]
    exact = keys[at].double()
    finite = exact.isfinite().all(-1)
    off = (means[at].double() - exact.mean(2)).abs() / exact.abs().mean(2)
    assert bool((off < 1e-5)[exact.mean(2).isfinite()].all())
    assert torch.equal(means[at].isfinite(), exact.mean(2).isfinite())
    lost = (exact - codes.scale[at].double()[..., None] * codes.codes[at].double()).norm(dim=-1)
    residual, scale = codes.residual[at].double(), codes.scale[at].double()
    assert bool((residual[finite] >= lost[finite]).all())
    assert bool((residual[finite] <= lost[finite] * 1.001 + 2e-3 * scale[finite] + 1e-35).all())
    assert bool((lost[finite] <= scale[finite] * 0.51 * dim**0.5 + 1e-40 * dim).all())
    assert bool((codes.codes[at].abs() <= 127).all())
    assert bool((residual[~finite] == INF).all() & (codes.codes[at][~finite] == 0).all() & (scale[~finite] == 0).all())
    assert float(residual[0, 0, 0]) == 0 and not codes.codes[0, 0, 0].any()


def test_means_alone(kernels: PagedOperations, device: str) -> None:
    keys = torch.randn(3, 1, 16, 64).to(device)
    means, _ = blank(keys)
    kernels.summarize(keys, torch.tensor([0, 2], dtype=torch.int32, device=device), means, None)
    assert torch.allclose(means[[0, 2]], keys[[0, 2]].mean(2), atol=1e-6) and bool((means[1] == 7).all())
