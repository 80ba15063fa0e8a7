"""A Store that an older version wrote opens, verifies and answers as it did then (docs/promises.md).

``tests/fixtures/store-0001.tar.xz`` was written by the first version; ``make_store.py`` beside it says what is in it.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Runtime
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.tables import seal
from tests.store.support import folder_digest

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "store-0001.json").read_text(encoding="utf-8"))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The Store as the first version left it."""
    with tarfile.open(FIXTURES / "store-0001.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "store"


@pytest.fixture
def runtime(older: Path) -> Iterator[Runtime]:
    with Runtime.load(store=older) as runtime:
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


def version(root: Path) -> str:
    with closing(sqlite3.connect(root / INDEX_FILE)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_looking_leaves_the_older_format(older: Path) -> None:
    before = folder_digest(older)
    with Store.open(older, read_only=True) as store:
        assert store.verify().ok and len(store.sessions()) == 3
    assert folder_digest(older) == before and version(older) == "0001"
    Store.open(older).close()
    assert version(older) == "0002"


def test_branches_were_known_by_their_names(older: Path) -> None:
    """What was a branch by its name is one of that conversation; what only looks like one is not, and what was damaged stays so."""
    names = {"forked": "closed/7", "killed": "other/8"}
    with closing(sqlite3.connect(older / INDEX_FILE)) as connection, connection:
        connection.row_factory = sqlite3.Row
        for old, new in names.items():
            (row,) = connection.execute("SELECT * FROM sessions WHERE name = ?", (old,)).fetchall()
            columns = [column for column in row.keys() if column not in ("id", "seal")]  # noqa: SIM118 - a sqlite3.Row is no mapping
            sealed = seal(*((dict(row) | {"name": new})[column] for column in columns))
            connection.execute("UPDATE sessions SET name = ?, seal = ? WHERE id = ?", (new, sealed, row["id"]))
    with Store.open(older) as store:
        assert store.conversation("closed") == ["closed", "closed/7"]
        assert (store.conversation("other/8"), store.conversation("other")) == (["other/8"], [])
        assert store.verify().ok


def test_a_row_that_was_damaged_stays_damaged(older: Path) -> None:
    with closing(sqlite3.connect(older / INDEX_FILE)) as connection, connection:
        connection.execute("UPDATE sessions SET created = 5.0 WHERE name = 'closed'")
    with Store.open(older) as store:
        assert {info.name for info in store.sessions() if info.damage} == {"closed"}
        assert not store.verify().ok
