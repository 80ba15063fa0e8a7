"""A Store that an older version wrote opens, verifies and answers as it did then (docs/promises.md).

``tests/fixtures/store-0001.tar.xz`` was written by the first version; ``make_store.py`` beside it says what is in it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Runtime

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "store-0001.json").read_text(encoding="utf-8"))


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with tarfile.open(FIXTURES / "store-0001.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    with Runtime.load(store=tmp_path / "store") as runtime:
        yield runtime


def test_sessions_are_listed_and_sound(runtime: Runtime) -> None:
    found = [[info.name, info.turns, info.tokens, info.parent] for info in runtime.store.sessions()]
    assert found == EXPECTED["sessions"]
    report = runtime.store.verify()
    assert report.ok and report.sessions == 3 and report.blocks > 0


@pytest.mark.parametrize("name", ["closed", "forked", "killed"])
def test_answers_are_what_they_were(runtime: Runtime, name: str) -> None:
    with runtime.session(name, create=False) as session:
        for expected in EXPECTED["answers"]:
            if expected["session"] != name:
                continue
            assert session.tokens == expected["tokens"]
            with session.fork(f"ask {expected['question']}") as child:
                said = child.reply(expected["question"])
                recall = child.last_recall
            assert said == expected["said"]
            assert recall is not None
            assert (recall.blocks, recall.selections) == (expected["blocks"], expected["selections"])
            assert sorted(turn.turn for turn in recall.turns) == expected["turns"]
    assert runtime.store.verify().ok
