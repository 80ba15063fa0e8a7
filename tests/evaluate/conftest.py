"""Runtimes of the tiny model, and the command line, for all evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.cli import main
from agent_memory.runtime import Runtime
from tests.evaluate.tiny import MakeRuntime, Words, tiny


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeRuntime]:
    """Runtimes of the tiny model over one Store."""
    made: list[Runtime] = []

    def runtime(**options: Any) -> Runtime:
        made.append(Runtime(*tiny(), **{"store": tmp_path / "store", **options}))
        return made[-1]

    yield runtime
    for one in made:
        one.close()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run
