"""A disk that is full after a turn was kept: the error says so, and sending the same again does not double it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent_memory.errors import StoreFull
from agent_memory.store.files import Files
from agent_memory.store.store import Store
from tests.session.conftest import MakeRuntime, story


class Disk(Files):
    """Has no room for Segments while it is ``full``."""

    full = False

    def create(self, path: Path) -> int:
        if self.full and ".safetensors" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path)


def test_a_turn_that_is_kept_is_not_doubled(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    disk = Disk()
    with Store.open(tmp_path / "full", files=disk) as store, make_runtime(store=store).session("a") as session:
        texts = story(1, 12)
        session.append("tool", texts[0], name="read")
        disk.full = True
        said = "\n".join(texts)
        with pytest.raises(StoreFull, match=r"turn 1 of session 'a' is kept.*it is not doubled"):
            session.append("tool", said, name="read")
        assert [turn.text for turn in session.turns()][-1] == said
        with pytest.raises(StoreFull, match="is kept"):  # as often as it is tried
            session.append("tool", said, name="read")
        disk.full = False
        receipt = session.append("tool", said, name="read")
        assert (receipt.turn, session.timeline.turn_count, session.engine.kv.length > 1000) == (1, 2, True)
        session.append("tool", said, name="read")  # said a second time it is another turn
        assert session.timeline.turn_count == 3


def test_a_question_that_is_kept_is_not_doubled(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    disk = Disk()
    with Store.open(tmp_path / "full", files=disk) as store, make_runtime(store=store).session("a") as session:
        session.append("tool", "\n".join(story(1, 12)), name="read", prefill=False)
        disk.full = True
        with pytest.raises(StoreFull, match="is kept"):
            session.reply("What is there?", max_new_tokens=4)
        disk.full = False
        session.reply("What is there?", max_new_tokens=4)
        assert [turn.role for turn in session.turns()] == ["tool", "user", "assistant"]
