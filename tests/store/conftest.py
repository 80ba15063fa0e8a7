"""Folders for Stores: in memory where there is such a place, since these tests sync thousands of times."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_memory.store.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, quick to sync."""
    memory = Path("/dev/shm")  # noqa: S108
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Store just made, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "store"
    Store.open(path).close()
    return path


@pytest.fixture
def fresh(folder: Path, empty_store: Path) -> Callable[[], Path]:
    """Makes one new Store after another."""
    made = 0

    def make() -> Path:
        nonlocal made
        made += 1
        return Path(shutil.copytree(empty_store, folder / f"store-{made}"))

    return make


@pytest.fixture
def store(fresh: Callable[[], Path]) -> Iterator[Store]:
    """An open Store."""
    with Store.open(fresh()) as opened:
        yield opened
