"""P10: nothing of one Session reaches another, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from agent_memory.errors import BlockDamaged, InvalidName, SessionExists, SessionNotFound
from agent_memory.store.store import Store
from tests.store.support import KV, append, fill, open_session, segment

NFC, NFD = "caf\u00e9", "cafe\u0301"
STRANGE = [
    "../x",
    "a/b",
    "/etc",
    ".",
    "..",
    NFC,
    NFD,
    "User",
    "user",
    "user1",
    "x" * 255,
    "%",
    "_",
    "'; DROP TABLE turns; --",
    "a\nb",
    " ",
    "ab",
    "b",
]
PAIRS = [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "a"), *(("strange", name) for name in STRANGE), *((name, "s") for name in STRANGE)]


def test_strange_names_are_only_names(fresh: Callable[[], Path]) -> None:
    root = fresh()
    outside = sorted(root.parent.rglob("*"))
    with Store.open(root) as store:
        for namespace, name in PAIRS:
            timeline = open_session(store, name, namespace)
            fill(timeline, 2, 16, word=f"{namespace}|{name}")
            timeline.put_segment(0, segment(0, 1, salt=len(namespace)))
            timeline.close()
        assert {(info.namespace, info.name) for info in store.sessions()} == set(PAIRS)
        for namespace, name in PAIRS:
            assert [turn.text for turn in store.turns(name, namespace)] == [f"{namespace}|{name} {i}" for i in range(2)]
        assert {info.name for info in store.sessions("strange")} == set(STRANGE)
    assert [path for path in sorted(root.parent.rglob("*")) if root not in path.parents] == [p for p in outside if root not in p.parents]


def test_names_that_join_to_the_same_text_do_not_share_a_lock(store: Store) -> None:
    held = [open_session(store, name, namespace) for namespace, name in (("ab", "c"), ("a", "bc"))]
    assert [timeline.turn_count for timeline in held] == [0, 0]


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "\u00e9" * 128, "\ud800", 7, None])
def test_what_cannot_be_a_name(store: Store, name: str) -> None:
    for names in ((name, "default"), ("s", name)):
        with pytest.raises(InvalidName):
            open_session(store, *names)
    with pytest.raises(InvalidName):
        open_session(store).fork(name)


def test_a_namespace_sees_only_its_own(store: Store) -> None:
    fill(open_session(store, "s", "alice"), 1)
    for action in (
        lambda: store.turns("s", "bob"),
        lambda: store.delete("s", "bob"),
        lambda: store.recalls("s"),
        lambda: store.verify("s"),
    ):
        with pytest.raises(SessionNotFound):
            action()
    assert store.sessions("bob") == []
    with pytest.raises(SessionNotFound):
        open_session(store, "s", "bob", create=False)
    with pytest.raises(SessionNotFound):
        open_session(store, "s", "bob", read_only=True)


def test_a_canary_stays_at_home(fresh: Callable[[], Path]) -> None:
    root = fresh()
    canary = "canary-d41d8cd9"
    with Store.open(root) as store:
        for name, word in (("a", canary), ("b", "song")):
            timeline = open_session(store, name)
            fill(timeline, 4, 16, word)
            timeline.put_segment(0, segment(0, 2, salt=ord(name)))
            assert not any(word in str(path) for path in root.rglob("*"))
            timeline.close()
        store.export("b", "default", root / "b.zip")
        assert canary.encode() not in (root / "b.zip").read_bytes()
        store.delete("a")
    for path in root.rglob("*"):
        assert path.is_dir() or canary.encode() not in path.read_bytes(), path


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=some.lists(
        some.tuples(some.sampled_from("append append seal fork delete reopen restart".split()), some.integers(0, 3)), max_size=50
    )
)
def test_any_history_reads_back_as_it_was_written(fresh: Callable[[], Path], steps: list[tuple[str, int]]) -> None:
    """The model is a dictionary: (namespace, name) -> list of (text, salt of its KV)."""
    root, names = fresh(), [("n", "a"), ("n", "a/1"), ("m", "a"), ("m", "b")]
    model: dict[tuple[str, str], list[str]] = {}
    store = Store.open(root)
    for number, (step, which) in enumerate(steps):
        namespace, name = names[which]
        held = model.get((namespace, name))
        if step == "restart":
            store.close()
            store = Store.open(root)
        elif step == "delete":
            if held is None:
                with pytest.raises(SessionNotFound):
                    store.delete(name, namespace)
            else:
                store.delete(name, namespace)
                del model[namespace, name]
        elif step == "fork" and held:
            target = names[which ^ 1][1] if namespace == names[which ^ 1][0] else "?"
            source = open_session(store, name, namespace)
            if (namespace, target) in model:
                with pytest.raises(SessionExists):
                    source.fork(target)
            else:
                at = number % (len(held) + 1)
                source.fork(target, at)
                model[namespace, target] = held[:at]
            source.close()
        elif step in ("append", "seal"):
            timeline = open_session(store, name, namespace)
            held = model.setdefault((namespace, name), [])
            if step == "append":
                append(timeline, 48, f"step {number}")
                held.append(f"step {number} {len(held)}")
            elif timeline.kv_tokens + 32 <= timeline.token_count:
                timeline.put_segment(timeline.kv_tokens // 32, segment(timeline.kv_tokens // 32, 1, salt=1))
            timeline.close()
        for (owner, called), texts in model.items():
            assert [turn.text for turn in store.turns(called, owner)] == texts
        assert {(info.namespace, info.name) for info in store.sessions(branches=True)} == set(model)
    assert store.verify().ok
    for owner, called in model:
        timeline = open_session(store, called, owner)
        for block in range(timeline.kv_tokens // 32):
            timeline.read_block(KV, block)
        with pytest.raises(BlockDamaged):
            timeline.read_block(KV, timeline.kv_tokens // 32)
    store.close()
