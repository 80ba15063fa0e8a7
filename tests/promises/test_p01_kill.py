"""P1: a turn whose append returned survives ``kill -9`` at any instant."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.store.store import Store
from tests.store.support import KV, Child, append, assert_numbered, assert_whole, block_bytes, open_session, segment

ROUNDS_A_STORE = 40


def write_forever(root: Path, tell: Callable[[str], None]) -> None:
    """Append turns and Segments, telling of each acknowledged turn."""
    with Store.open(root) as store:
        timeline = open_session(store)
        tell("open")
        while True:
            turn = append(timeline)
            tell(str(turn.index))
            if turn.index % 4 == 3:
                ready = timeline.token_count // 32
                last = timeline.segments()[-1:]
                again = last[0].first_block if last and last[0].blocks < 4 else timeline.kv_tokens // 32
                timeline.put_segment(again, segment(again, min(ready - again, 4)))


def check_after_kill(root: Path, acknowledged: int) -> int:
    """The timeline is the acknowledged turns plus at most one; returns their number."""
    with Store.open(root) as store:
        timeline = open_session(store)
        assert acknowledged <= timeline.turn_count <= acknowledged + 1
        assert_numbered(timeline)
        for block in range(timeline.kv_tokens // 32):
            assert timeline.read_block(KV, block) == block_bytes(block)
        assert store.verify().ok
        named = {row.file for row in timeline.segments()}
        on_disk = {str(path.relative_to(root / "sessions")) for path in (root / "sessions").rglob("*.*")}
        assert on_disk == named
        count = timeline.turn_count
    assert_whole(root)
    return count


@pytest.mark.parametrize("rounds", [50, pytest.param(200, marks=pytest.mark.campaign)])
def test_acknowledged_turns_survive_kills(fresh: Callable[[], Path], rounds: int) -> None:
    random_delay = random.Random(1)  # noqa: S311
    for round_number in range(rounds):
        if round_number % ROUNDS_A_STORE == 0:
            root, acknowledged = fresh(), 0
        child = Child(lambda tell, root=root: write_forever(root, tell))  # type: ignore[misc]
        if round_number % 4:  # else the kill may come while the Store is being opened
            child.wait_for_line()
        time.sleep(random_delay.uniform(0, 0.02))
        child.kill()
        lines, status = child.finish()
        assert status == -9
        told = [int(line) for line in lines if line != "open"]
        acknowledged = check_after_kill(root, max([acknowledged, *(index + 1 for index in told)]))
    assert acknowledged > 0
