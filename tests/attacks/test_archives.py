"""Archives that anyone could have written: any value at any place of them, with sums that fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from agent_memory.errors import AgentMemoryError
from agent_memory.store.store import Store
from tests.attacks.support import VALUES, make, nothing_outside, rewritten
from tests.store.support import append, assert_numbered, folder_digest, open_session

JSON_VALUES = st.recursive(
    VALUES.filter(lambda value: not isinstance(value, bytes)) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), JSON_VALUES | st.binary(max_size=200)), min_size=1, max_size=3)
"""Which place, of all there are, takes which value."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, the whole excepted."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def readable(data: bytes) -> list[Any]:
    """The lines, as long as none of them was broken by a change before this one."""
    try:
        return [json.loads(line) for line in data.splitlines()]
    except ValueError:
        return []


def change(manifest: dict[str, Any], entries: dict[str, bytes], number: int, value: Any) -> None:
    """Put a value at one place: of the manifest, of a line of the turns, or as (a part of) an entry or its name."""
    lines = readable(entries.get("turns.jsonl", b""))
    everything: list[tuple[str, Any]] = [("manifest", path) for path in places(manifest) if path[0] != "files"]
    everything += [("turns", path) for path in places(lines)]
    everything += [(kind, name) for name in entries for kind in ("entry", "part", "name")] * 5
    kind, at = everything[number % len(everything)]
    if kind in ("manifest", "turns"):
        target: Any = manifest if kind == "manifest" else lines
        for key in at[:-1]:
            target = target[key]
        target[at[-1]] = value if not isinstance(value, bytes) else value.hex()
        if kind == "turns":
            entries["turns.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    if kind == "name":
        entries[str(value)[:200].encode("utf-8", "replace").decode() or "x"] = entries.pop(at)
    elif kind == "entry":
        entries[at] = data
    else:
        where = number % max(len(entries[at]), 1)
        entries[at] = entries[at][:where] + data + entries[at][where + len(data) :]


def attack(folder: Path, archive: Path, changes: list[tuple[int, Any]]) -> None:
    """Import a changed archive: it is refused with an error of our own and nothing written, or it is a whole Session."""
    root, other = folder / "store", folder / "changed.zip"

    def change_all(manifest: dict[str, Any], entries: dict[str, bytes]) -> None:
        for number, value in changes:
            change(manifest, entries, number, value)

    rewritten(archive, other, change_all)
    with nothing_outside(root) as files, Store.open(root, files=files) as store:
        before = folder_digest(root / "sessions")
        try:
            info = store.import_(other, name="made", namespace="crafted")
        except AgentMemoryError:
            assert folder_digest(root / "sessions") == before
        else:
            with closing(store.view("made", "crafted")) as view:
                assert len(view.turns()) == info.turns
                assert view.tokens(0, view.token_count).size == info.tokens
            assert store.verify().ok
            store.delete("made", "crafted")
        with closing(open_session(store, "after")) as timeline:
            append(timeline)
        store.delete("after")


def prepared(folder: Path) -> Path:
    """A Store, and an archive of one of its Sessions."""
    make(folder / "store")
    with Store.open(folder / "store") as store:
        store.export("s", "default", folder / "whole.zip")
    (folder / "changed.zip").touch()
    return folder / "whole.zip"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(changes=CHANGES)
def test_any_value_at_any_place(folder: Path, changes: list[tuple[int, Any]]) -> None:
    whole = folder / "whole.zip"
    attack(folder, whole if whole.exists() else prepared(folder), changes)


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(10))
def test_any_value_at_any_place_for_long(folder: Path, part: int) -> None:
    """20,000 of them, none longer than five seconds of the processor; what was in the Store is whole afterwards."""
    whole = prepared(folder)

    @seed(part)
    @settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(changes=CHANGES)
    def every(changes: list[tuple[int, Any]]) -> None:
        began = time.process_time()
        attack(folder, whole, changes)
        assert time.process_time() - began < 5

    every()
    with Store.open(folder / "store") as store:
        assert store.verify().ok
        assert_numbered(open_session(store))
