"""Runs kernels for real where there is a CUDA device, and in Triton's interpreter where there is none."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

BEHIND = 256
"""Numbers behind what ``torch.empty`` gives in a kernel test."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # before Triton is imported: it is then that it looks. Where all tests run, tests/conftest.py was earlier.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    """Where tensors of kernel tests lie."""
    return DEVICE


@pytest.fixture(scope="session")
def kernels(device: str) -> object:
    """The Triton operations."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: `make test` installs it")
    from agent_memory_kernels import paged

    return paged("triton", device)


@pytest.fixture
def holes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``torch.empty`` gives NaN, or the least integer, with more of it behind: a kernel that leaves a hole or writes too far is seen."""
    empty, made = torch.empty, []

    def marked(*shape: Any, **options: Any) -> torch.Tensor:
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        whole: torch.Tensor = empty(size.numel() + BEHIND, **options)
        whole.fill_(float("nan") if whole.is_floating_point() else torch.iinfo(whole.dtype).min)
        made.append(whole)
        return whole[: size.numel()].view(size)

    monkeypatch.setattr(torch, "empty", marked)
    yield
    for whole in made:
        behind = whole[-BEHIND:]
        assert bool(behind.isnan().all() if whole.is_floating_point() else (behind == torch.iinfo(whole.dtype).min).all())
