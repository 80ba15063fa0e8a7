"""Sessions on the pocket model, in a fresh Store, with a device budget so small that most Blocks are on disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory import pocket
from agent_memory.model.load import load
from agent_memory.pocket import data
from agent_memory.runtime import Runtime
from agent_memory.types import Budget


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any]:
    """The pocket model and its tokenizer, loaded once."""
    return load(pocket.path())


MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def make_runtime(loaded: tuple[Any, Any], tmp_path: Path) -> Iterator[MakeRuntime]:
    """Runtimes over one Store."""
    made: list[Runtime] = []

    def make(**options: Any) -> Runtime:
        options.setdefault("store", tmp_path / "store")
        options.setdefault("budget", Budget(device="24MiB"))
        made.append(Runtime(*loaded, source=str(pocket.path()), **options))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> Runtime:
    return make_runtime()


def story(seed: int, turns: int) -> list[str]:
    """Tool outputs, of about 150 tokens each."""
    rng = random.Random(seed)
    return [data.render(data.make_record(rng), rng.choice(data.LAYOUTS)) + "\n" + data.noise(rng, 6) for _ in range(turns)]
