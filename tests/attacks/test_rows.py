"""Rows that were damaged, or changed and sealed again: found, kept apart from the rest, and never believed."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import time
import traceback
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from agent_memory.errors import FormatTooNew, SessionNotFound, StoreCorrupt, StoreError
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.tables import FORMAT
from tests.attacks.support import SEALED, VALUES, change, make, nothing_outside, run_sql, use_everything
from tests.store.support import LAYOUT, MODEL, append, assert_numbered, fill, open_session, segment, segment_files


@pytest.fixture
def made(fresh: Callable[[], Path]) -> Path:
    root = fresh()
    make(root)
    return root


def kinds(root: Path, namespace: str | None = None) -> list[tuple[str, str]]:
    with Store.open(root, read_only=True) as store:
        return [(found.session, found.kind.split(":")[0]) for found in store.verify(namespace=namespace).damage]


def test_a_damaged_session_hides_no_other(made: Path) -> None:
    """It is listed and reported, everything else is found and works, and it can be deleted."""
    run_sql(made, "UPDATE sessions SET created = 1.0 WHERE name = 's'")
    (made / "sessions" / "readme").touch()
    path = segment_files(made)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    run_sql(made, "UPDATE turns SET text = 'other' WHERE session_id = (SELECT id FROM sessions WHERE name = 't')")
    assert {("default/s", "index"), ("other/t", "turn")} <= set(kinds(made))
    with Store.open(made) as store:
        infos = {info.name: info.damage for info in store.sessions(branches=True)}
        assert infos.keys() == {"s", "fork", "t"} and infos["s"] and not infos["t"]
        with pytest.raises(StoreCorrupt, match="delete the session"):
            open_session(store)
        append(open_session(store, "new"))
        store.delete("s")
        assert [info.name for info in store.sessions("default")] == ["fork", "new"]
        with pytest.raises(SessionNotFound):
            store.delete("s")


def test_a_fork_of_a_damaged_session_keeps_what_it_needs_until_it_goes(made: Path) -> None:
    run_sql(made, "UPDATE sessions SET created = 1.0 WHERE name = 'fork'")
    with Store.open(made) as store:
        store.delete("s")
        assert segment_files(made)
        store.delete("fork")
        assert not segment_files(made)
        assert [info.name for info in store.sessions()] == ["t"]


def test_a_tenant_is_told_nothing_of_another(made: Path) -> None:
    run_sql(made, "UPDATE sessions SET created = 1.0 WHERE name = 's'", "UPDATE turns SET chain = 'x' WHERE idx = 0")
    assert {session for session, _ in kinds(made, namespace="other")} == {"other/t"}


def test_sessions_cannot_be_swapped(made: Path) -> None:
    with closing(sqlite3.connect(made / INDEX_FILE)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = 0")
        (s, t) = (connection.execute("SELECT id FROM sessions WHERE name = ?", name).fetchone()[0] for name in "st")
        for old, new in ((s, 99), (t, s), (99, t)):
            connection.execute("UPDATE sessions SET id = ? WHERE id = ?", (new, old))
    with Store.open(made) as store:
        for name, namespace in (("s", "default"), ("t", "other")):
            with pytest.raises(StoreCorrupt):
                store.turns(name, namespace)
        assert not store.verify().ok


def test_turns_missing_at_the_end_are_missed(made: Path) -> None:
    run_sql(made, "DELETE FROM turns WHERE idx >= 11 AND session_id = (SELECT id FROM sessions WHERE name = 's')")
    with Store.open(made) as store:
        assert any("the last 2 of 13 are missing" in found.kind for found in store.verify("s").damage)
        assert len(store.turns("s")) == 11  # what is there can be read
        with pytest.raises(StoreCorrupt, match="has 13 turns, 11 are in the index"):
            open_session(store)
        store.export("s", "default", made.parent / "kept.zip")
        store.delete("s")
        assert store.import_(made.parent / "kept.zip").turns == 11
        append(open_session(store))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER quiet BEFORE INSERT ON turns BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER gone AFTER INSERT ON turns BEGIN DELETE FROM turns WHERE idx = new.idx; END",
        "CREATE VIEW more AS SELECT * FROM turns",
        "CREATE TABLE extra (x)",
        "ALTER TABLE turns ADD COLUMN extra",
        "DROP INDEX live_names",
        "DROP TABLE tails",
    ],
)
def test_another_schema_is_refused(made: Path, statement: str) -> None:
    run_sql(made, statement)
    for read_only in (False, True):
        with pytest.raises(StoreCorrupt, match="schema"):
            Store.open(made, read_only=read_only)


def test_a_row_that_the_index_ignores_is_not_acknowledged(made: Path) -> None:
    with Store.open(made) as store:
        timeline = open_session(store)
        run_sql(made, "CREATE TRIGGER quiet BEFORE INSERT ON turns BEGIN SELECT RAISE(IGNORE); END")
        with pytest.raises(StoreCorrupt, match="did not take a turn"):
            append(timeline)


@pytest.mark.parametrize("version", ["0000", "zzzz", "0001x", ""])
def test_a_format_there_never_was(made: Path, version: str) -> None:
    run_sql(made, f"UPDATE alembic_version SET version_num = '{version}'")  # noqa: S608 - our own words
    with pytest.raises((StoreCorrupt, FormatTooNew), match="format"):
        Store.open(made)


def test_lineages_do_not_go_round(made: Path) -> None:
    change(made, "sessions", "name = 's'", parent_id=2)
    errors = use_everything(made)
    assert any("later one" in error for error in errors)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("segments", {"blocks": 10**15, "sums": b"", "places": "{}"}),
        ("segments", {"blocks": 10**15}),
        ("segments", {"header_bytes": 6 * 2**30}),
        ("segments", {"size": 6 * 2**30, "places": '{"layers.0.kv":["U8",[3,2147483648],0]}', "sums": b"\0" * 24}),
        ("tails", {"size": 6 * 2**30, "places": '{"layers.0.kv":["U8",[6442450944],0]}', "sums": b"\0" * 8}),
        ("tails", {"size": 6 * 2**30, "header_bytes": 6 * 2**30}),
    ],
)
def test_nothing_is_allocated_for_what_is_not_there(made: Path, table: str, columns: dict[str, Any]) -> None:
    change(made, table, "true" if table == "tails" else "first_block = 0", **columns)
    tracemalloc.start()
    errors = use_everything(made)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50 * 2**20
    assert table == "tails" or errors


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("turns", {"meta": "[1]"}), ("turns", {"meta": "{" * 5000}), ("turns", {"meta": '{"a":' * 5000 + "1" + "}" * 5000}),
        ("turns", {"recall": "[]"}), ("turns", {"created": "now"}), ("turns", {"role": 5}), ("turns", {"tokens": -4}),
        ("turns", {"ids": b"\xff" * 64}), ("turns", {"text": b"\xff\xfe"}),
        ("sessions", {"model": "[]"}), ("sessions", {"model": "{}"}), ("sessions", {"layout": "{}"}), ("sessions", {"layout": "nothing"}),
        ("sessions", {"layout": '{"kv_heads": [1], "head_dim": [8, 4], "dtype": "float32"}'}), ("sessions", {"fork_turns": "x"}),
        ("sessions", {"turns": 2**70 // 2**8}), ("sessions", {"created": None}),
        ("segments", {"places": "[]"}), ("segments", {"places": '{"layers.0.kv": 5}'}), ("segments", {"first_block": -3}),
        ("segments", {"header_bytes": 0.5}), ("sessions", {"parent_id": b""}), ("sessions", {"conversation": b""}),
    ],
)  # fmt: skip
def test_contents_that_cannot_be(made: Path, table: str, columns: dict[str, Any]) -> None:
    where = {"turns": "idx = 2", "sessions": "name = 's'", "segments": "first_block = 3"}[table]
    if columns.get("created", 1) is None:
        pytest.skip("the index itself keeps that out")
    change(made, table, where, **columns)
    assert kinds(made)
    use_everything(made)


def test_an_error_does_not_quote_what_the_index_holds(made: Path) -> None:
    run_sql(made, "UPDATE turns SET text = CAST(X'736563726574FF' AS TEXT)")
    with Store.open(made) as store:
        try:
            store.turns("s")
        except StoreCorrupt:
            said = traceback.format_exc()
        assert "secret" not in said and "decode" in said


def test_segments_are_held_to_the_layout(fresh: Callable[[], Path]) -> None:
    """A file that is whole, but without a layer, or with numbers that are none."""
    for wrong in ("missing", "nan"):
        root = fresh()
        tensors = segment(0, 2)
        if wrong == "missing":
            del tensors["layers.1.kv"]
        else:
            numbers = bytearray(bytes(memoryview(tensors["layers.0.kv"].data).cast("B")))  # type: ignore[arg-type]
            numbers[:4] = b"\0\0\xc0\x7f"
            tensors["layers.0.kv"] = replace(tensors["layers.0.kv"], data=numbers)
        with Store.open(root) as store:
            timeline = open_session(store)
            fill(timeline, 4)
            timeline.put_segment(0, tensors)
        assert kinds(root)


def test_a_reader_is_told_that_its_session_was_deleted(made: Path) -> None:
    with Store.open(made) as store, Store.open(made) as other:
        view = other.view("s", "default")
        store.delete("fork")
        store.delete("s")
        with pytest.raises(SessionNotFound, match="was deleted meanwhile"):
            view.turns()


def test_listing_takes_the_same_statements_for_one_session_or_many(fresh: Callable[[], Path]) -> None:
    root = fresh()
    counts = []
    with Store.open(root) as store:
        timeline = open_session(store, "0")
        fill(timeline, 1)
        for number in range(1, 40):
            timeline.fork(str(number))
            timeline.close()
            timeline = open_session(store, str(number))
            if number in (1, 39):
                asked: list[str] = []
                with store._database.read() as connection:
                    connection.connection.driver_connection.set_trace_callback(asked.append)  # type: ignore[union-attr]
                infos = store.sessions()
                counts.append(len([statement for statement in asked if statement.startswith("SELECT")]))
        assert len(infos) == 40 and infos[5].tokens == 16
    assert counts[0] == counts[1] > 0


COLUMNS = [(table, column) for table, columns in SEALED.items() for column in columns] + [("turns", "ids")]


def attack(root: Path, whole: Path, table: str, column: str, row: int, value: object) -> None:
    """One value of one column of one row, sealed again: whatever is done then, only errors of our own, and nothing outside."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    with closing(sqlite3.connect(root / INDEX_FILE)) as connection:
        rows = [number for (number,) in connection.execute(f"SELECT rowid FROM {table}")]  # noqa: S608 - our own words
    try:
        change(root, table, f"rowid = {rows[row % len(rows)]}", **{column: value})
    except (sqlite3.Error, OverflowError, UnicodeEncodeError):
        return  # the index itself keeps that out
    with nothing_outside(root) as files:
        use_everything(root, files)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(place=st.sampled_from(COLUMNS), row=st.integers(0, 30), value=VALUES)
def test_any_value_of_any_column(folder: Path, tmp_path: Path, place: tuple[str, str], row: int, value: object) -> None:
    whole = folder / "whole"
    if not whole.exists():
        make(whole)
    attack(folder / "attacked", whole, *place, row, value)


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(10))
def test_any_value_of_any_column_for_long(folder: Path, part: int) -> None:
    """20,000 of them: memory stays within twice the Store, and none takes five seconds of the processor."""
    whole = folder / "whole"
    make(whole)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())

    @seed(part)
    @settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(place=st.sampled_from(COLUMNS), row=st.integers(0, 30), value=VALUES)
    def every(place: tuple[str, str], row: int, value: object) -> None:
        began = time.process_time()
        attack(folder / "attacked", whole, *place, row, value)
        assert time.process_time() - began < 5

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    every()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2 * size + 64 * 2**20


def test_what_the_tests_know_is_what_there_is(made: Path) -> None:
    with closing(sqlite3.connect(made / INDEX_FILE)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (FORMAT,)
        columns = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in SEALED}
    for table, sealed in SEALED.items():
        assert set(columns[table]) - set(sealed) <= {"seal", "ids_seal", "ids", "id"}
    with Store.open(made) as store:
        assert store.verify().ok
        assert_numbered(open_session(store))
    assert (json.loads(json.dumps(MODEL.to_dict()))["architecture"], LAYOUT.layers) == ("Tiny", 2)
    with pytest.raises(StoreError):
        Store.open(made.parent / "nowhere", read_only=True)
