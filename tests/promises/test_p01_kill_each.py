"""P1 for everything else that writes: forks, imports, exports, closing and replies, killed at any instant, lose and double nothing."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.store import archive
from agent_memory.store.store import Store
from tests.store.support import Child, append, assert_numbered, assert_whole, fill, fill_segments, open_session, segment

Tell = Callable[[str], None]
FEW, MANY = 12, 200


def prepare(root: Path) -> None:
    """A Session with Segments and a tail, and its archive beside the Store."""
    with Store.open(root) as store:
        fill_segments(store)
        store.export("s", "default", root.parent / "s.zip")


def fork(root: Path, tell: Tell) -> None:
    with Store.open(root) as store:
        timeline = open_session(store)
        tell("open")
        for number in count(len(store.sessions())):
            timeline.fork(f"fork-{number}", 7)
            tell(f"fork-{number}")


def import_(root: Path, tell: Tell) -> None:
    with Store.open(root) as store:
        tell("open")
        for number in count(len(store.sessions())):
            tell(store.import_(root.parent / "s.zip", name=f"import-{number}").name)


def export(root: Path, tell: Tell) -> None:
    with Store.open(root) as store:
        tell("open")
        for number in count():
            store.export("s", "default", root.parent / f"{number % 3}.out.zip")
            tell("s")


def close(root: Path, tell: Tell) -> None:
    tell("open")
    for number in count():
        with Store.open(root) as store:
            timeline = open_session(store, f"close-{os.getpid()}-{number}")
            fill(timeline, 3)
            timeline.put_tail(48, segment(0, 1))
            timeline.close()
        tell(timeline.name)


def check(root: Path, told: set[str]) -> None:
    """All that was acknowledged is there; all that is there is whole."""
    with Store.open(root) as store:
        infos = {info.name: info for info in store.sessions()}
        assert told <= infos.keys()
        assert store.verify().ok
        for name, info in infos.items():
            timeline = open_session(store, name)
            assert_numbered(timeline)
            assert info.turns == {"f": 7, "i": 13, "s": 13}.get(name[0], timeline.turn_count)
            append(timeline) if name[0] == "c" else None
            timeline.close()
        folders = {path.name for path in (root / "sessions").iterdir() if any(path.iterdir())}
        assert len(folders) <= len(infos)
    for path in root.parent.glob("*.out.zip"):
        archive.check(path)
    assert_whole(root)


def kill_often(root: Path, work: Callable[[Path, Tell], None], rounds: int) -> None:
    prepare(root)
    random_delay = random.Random(work.__name__)  # noqa: S311
    told, ever = set[str](), set[str]()
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    for number in range(rounds):
        if number % 20 == 0:
            shutil.rmtree(root)
            shutil.copytree(whole, root)
            told = set()
        child = Child(lambda tell: work(root, tell))
        if number % 4:  # else the kill may come while the Store is being opened
            child.wait_for_line()
        time.sleep(random_delay.uniform(0, 0.1))
        child.kill()
        lines, status = child.finish()
        assert status == -9
        told |= set(lines) - {"open"}
        ever |= told
        check(root, told)
    assert ever or rounds < MANY


@pytest.mark.parametrize("work", [fork, import_, export, close])
def test_what_was_acknowledged_survives(fresh: Callable[[], Path], work: Callable[[Path, Tell], None]) -> None:
    kill_often(fresh(), work, FEW)


@pytest.mark.campaign
@pytest.mark.parametrize("work", [fork, import_, export, close])
def test_what_was_acknowledged_survives_200_kills(fresh: Callable[[], Path], work: Callable[[Path, Tell], None]) -> None:
    kill_often(fresh(), work, MANY)


@pytest.fixture
def loaded() -> Iterator[tuple[Any, Any]]:
    """The pocket model, on one thread: a forked process has none of torch's others."""
    from agent_memory import pocket
    from agent_memory.model.load import load

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(pocket.path())
    torch.set_num_threads(threads)


@pytest.mark.campaign
def test_replies_survive_200_kills(fresh: Callable[[], Path], loaded: tuple[Any, Any]) -> None:
    from agent_memory import pocket
    from agent_memory.runtime import Runtime
    from agent_memory.types import Budget

    root = fresh()

    def open_runtime() -> Runtime:
        return Runtime(*loaded, source=str(pocket.path()), store=root, budget=Budget(device="24MiB"))

    def reply(tell: Tell) -> None:
        with open_runtime() as runtime, runtime.session("a") as session:
            tell("open")
            while True:
                session.append("tool", f"package foo-{session.timeline.turn_count} " * 40, name="read")
                session.reply("What is there?", max_new_tokens=3)
                tell(str(session.timeline.turn_count))

    random_delay = random.Random(7)  # noqa: S311
    for number in range(MANY):
        if number % 40 == 0:
            root, least = fresh(), 0
        child = Child(reply)
        child.wait_for_line()
        time.sleep(random_delay.uniform(0, 0.4))
        child.kill()
        lines, _ = child.finish()
        least = max([least, *(int(line) for line in lines if line.isdigit())])
        with open_runtime() as runtime, runtime.session("a") as session:
            assert least <= session.timeline.turn_count <= least + 3
            assert runtime.store.verify().ok
            least = session.timeline.turn_count
    assert least > 0
