"""A Store made without a model, and the command run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory.cli import main
from agent_memory.store.segments import TensorBytes
from agent_memory.store.store import Store
from agent_memory.types import KVLayout, ModelId, Recall, RecalledTurn
from tests.integrations.tiny import save_tiny_model

MODEL = ModelId("Tiny", "c", "w", "float32", "r", "t", "x")
LAYOUT = KVLayout((1,), (8,), "float32")
RECALL = Recall(turns=(RecalledTurn(0, "tool", "registry", 40, 0.75, "disk", "name: alpha"),), blocks=1, tiers={"disk": 1}, exact=False)
OLD_RECALL = {name: value for name, value in asdict(RECALL).items() if not name.endswith("_share")}
"""As versions without attention shares recorded it."""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON object."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AGENT_MEMORY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*words: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        printed = capsys.readouterr()
        return Result(int(left.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def filled(own_folder: Path) -> Path:
    """``./memory`` with the Session ``alpha`` (a tool's record, a question, an answer; one Block on disk) and a branch of it."""
    with Store.open("memory") as store:
        timeline = store.session("alpha", model=MODEL, layout=LAYOUT)
        timeline.append_turn("tool", "name: alpha\x1b[2J\nversion: 4.1.7", np.arange(40), name="registry", chain="a")
        timeline.append_turn("user", "What is the version of alpha?", np.arange(9), chain="b")
        timeline.append_turn("assistant", "4.1.7", np.arange(5), chain="c", recall=OLD_RECALL)
        data = np.arange(1 * 2 * 1 * 32 * 8, dtype=np.float32)
        timeline.put_segment(0, {"layers.0.kv": TensorBytes("F32", (1, 2, 1, 32, 8), data.view(np.uint8))})
        timeline.fork("alpha/1", 1, conversation="alpha")
        timeline.close()
    return own_folder / "memory"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))
