"""A caller's mistake is the caller's: it is refused in one line, stops nobody, and tells nothing that was said."""

from __future__ import annotations

import json
import math
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory.errors import AgentMemoryError, InvalidTurn, StoreCorrupt, StoreError, StoreFull
from agent_memory.store.files import Files
from agent_memory.store.store import INDEX_FILE, Store
from tests.attacks.support import make, rewritten, run_sql
from tests.store.support import Child, FaultyFiles, append, fill, folder_digest, open_session, segment


@pytest.mark.parametrize(
    "turn",
    [
        {"role": None}, {"role": "user<|end|>"}, {"role": 3}, {"text": None}, {"text": b"x"}, {"text": "\ud800"},
        {"name": "\udfff"}, {"name": 4}, {"chain": None}, {"chain": "\ud800"},
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be(store: Store, turn: dict[str, Any]) -> None:
    timeline = open_session(store)
    arguments = {"role": "user", "text": "x", "name": None, "chain": "c"} | turn
    role, text = arguments.pop("role"), arguments.pop("text")
    with pytest.raises(InvalidTurn):
        timeline.append_turn(role, text, [1], **arguments)
    append(timeline)
    assert timeline.turn_count == 1


@pytest.mark.parametrize("target", ["nowhere/a.zip", "file/a.zip", "."])
def test_an_export_that_has_no_place_stops_nothing(store: Store, target: str) -> None:
    timeline = open_session(store)
    fill(timeline, 3)
    (store.root.parent / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        store.export("s", "default", store.root.parent / target)
    append(timeline)


def test_an_export_that_has_no_room_stops_nothing(fresh: Callable[[], Path]) -> None:
    class Full(Files):
        def write(self, fd: int, data: Any) -> int:
            raise OSError(28, "No space left on device")

    root = fresh()
    make(root)
    with Store.open(root, files=Full()) as store:
        with pytest.raises(StoreFull, match="name another place"):
            store.export("s", "default", root.parent / "a.zip")
        append(open_session(store))
    assert not list(root.parent.glob("a.zip*"))


def test_what_a_killed_export_left_goes_with_the_next(fresh: Callable[[], Path]) -> None:
    root = fresh()
    make(root)
    target = root.parent / "a.zip"

    class Stuck(Files):
        def fsync(self, fd: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    def work(_: Callable[[str], None]) -> None:
        Store.open(root, files=Stuck()).export("s", "default", target)

    child = Child(work)
    assert child.finish()[1] == -signal.SIGKILL
    assert len(list(root.parent.glob("a.zip.*.tmp"))) == 1
    (root.parent / "a.zip.notes.tmp").touch()
    with Store.open(root) as store:
        store.export("s", "default", target)
    assert sorted(path.name for path in root.parent.glob("a.zip*")) == ["a.zip", "a.zip.notes.tmp"]


def set_turn(**fields: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], entries: dict[str, bytes]) -> None:
        lines = entries["turns.jsonl"].splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | fields).encode()
        entries["turns.jsonl"] = b"\n".join(lines) + b"\n"

    return change


def set_manifest(**fields: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda manifest, entries: manifest.update(fields)


def nan_keys(manifest: dict[str, Any], entries: dict[str, bytes]) -> None:
    segment_file = manifest["segments"][0]
    at, data = segment_file["tensors"]["layers.0.kv"][2], entries[segment_file["file"]]
    entries[segment_file["file"]] = data[:at] + b"\0\0\xc0\x7f" + data[at + 4 :]


def without_a_layer(manifest: dict[str, Any], entries: dict[str, bytes]) -> None:
    del manifest["segments"][0]["tensors"]["layers.1.kv"]


def deep(manifest: dict[str, Any], entries: dict[str, bytes]) -> None:
    lines = entries["turns.jsonl"].splitlines()
    lines[1] = lines[1].replace(b'"meta": {', b'"meta": {"a":' + b"[" * 5000 + b"]" * 5000 + b", ")
    entries["turns.jsonl"] = b"\n".join(lines) + b"\n"


@pytest.mark.parametrize(
    "change",
    [
        set_turn(role=None), set_turn(role="root"), set_turn(chain=None), set_turn(created=math.nan), set_turn(created=None),
        set_turn(text="\ud800"), set_turn(text=None), set_turn(name=5), set_turn(meta=[]), set_turn(meta=None), set_turn(recall=[1]),
        set_turn(tokens=-1), set_turn(tokens=2**40), set_turn(tokens=None),
        set_manifest(model=None), set_manifest(model={"a": 1}), set_manifest(layout={}), set_manifest(segments=[{}]), set_manifest(tail=5),
        set_manifest(format="x"), set_manifest(turns=5), set_manifest(layout={"kv_heads": [1], "head_dim": [8], "dtype": "float32"}),
        nan_keys, without_a_layer, deep,
    ],
)  # fmt: skip
def test_an_archive_that_cannot_be(fresh: Callable[[], Path], change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    root, other = fresh(), fresh()
    make(root)
    with Store.open(root) as store:
        store.export("s", "default", root.parent / "a.zip")
    archive = rewritten(root.parent / "a.zip", root.parent / "b.zip", change)
    with Store.open(other) as store:
        before = folder_digest(other)
        with pytest.raises(StoreCorrupt):
            store.import_(archive)
        assert folder_digest(other) == before
        append(open_session(store))
        assert store.import_(root.parent / "a.zip", name="good").turns == 13


def test_an_archive_that_vanishes_stops_nothing(fresh: Callable[[], Path]) -> None:
    root, other = fresh(), fresh()
    make(root)
    archive = root.parent / "a.zip"
    with Store.open(root) as store:
        store.export("s", "default", archive)

    class Vanishing(Files):
        def make_folder(self, path: Path) -> bool:  # after the archive was checked, before it is read
            if path.name not in ("sessions", "locks"):
                archive.write_bytes(archive.read_bytes()[:5000])
            return super().make_folder(path)

    with Store.open(other, files=Vanishing()) as store:
        with pytest.raises(StoreCorrupt, match="export it again"):
            store.import_(archive)
        append(open_session(store, "s"))


def test_an_error_tells_nothing_that_was_said(fresh: Callable[[], Path], caplog: pytest.LogCaptureFixture) -> None:
    root = fresh()
    with Store.open(root) as store:
        timeline = open_session(store)
        append(timeline)
        run_sql(root, "CREATE TRIGGER no BEFORE INSERT ON turns BEGIN SELECT RAISE(ABORT, 'no'); END")
        secret = "hunter" + "2"  # a traceback quotes the line of the call
        try:
            timeline.append_turn("user", f"the password is {secret}", np.arange(4), chain="c", meta={"key": secret})
        except AgentMemoryError:
            said = traceback.format_exc()
        assert secret not in said and "refused" in said and secret not in caplog.text
        run_sql(root, "DROP TRIGGER no")
        append(timeline)  # a row that was refused stops nothing


def test_only_a_write_that_failed_stops_a_store(fresh: Callable[[], Path]) -> None:
    root = fresh()
    files = FaultyFiles()
    with Store.open(root, files=files) as store:
        timeline = open_session(store)
        fill(timeline, 4)
        files.nth, files.only, files.done = 0, frozenset({"fsync"}), []
        with pytest.raises(StoreError, match="reopen"):
            timeline.put_segment(0, segment(0, 2))
        with pytest.raises(StoreError, match="stopped"):
            append(timeline)
    assert (root / INDEX_FILE).exists()
