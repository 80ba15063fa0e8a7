"""What is noted of a reply while it is made: bounded by the memory, whatever is said, and made a record of with few statements."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sqlalchemy import event

from agent_memory.attention.trace import Trace
from agent_memory.recall import make_recall
from agent_memory.runtime import Runtime
from tests.session.conftest import story


def noted(choices: list[list[int]]) -> Trace:
    trace = Trace()
    for choice in choices:
        trace.choose_blocks(np.array([choice], np.int64), False, "no", 0)
    return trace


def test_a_choice_counts_once_for_each_block_it_names() -> None:
    trace = noted([[3, 3, 5, -1], [5, 9, -1, -1], [-1, -1, -1, -1]])
    trace.read(np.array([5, 9, 40]), np.array([0, 2, 1], np.uint8))
    trace.read(np.array([5, 9]), np.array([1, 0], np.uint8))
    assert [trace.named(block) for block in (0, 3, 5, 9, 1000)] == [0, 1, 2, 1, 0]
    assert trace.blocks() == {3, 5, 9, 40} and trace.tiers == {5: 1, 9: 2, 40: 1}
    assert trace.selections == 3


def test_what_is_noted_does_not_grow_with_the_reply() -> None:
    trace, blocks = Trace(), np.arange(3 * 1728).reshape(3, -1) // 32

    def reply(tokens: int) -> None:
        for _ in range(tokens * 30):
            trace.choose_blocks(blocks.copy(), False, "no", 0)
            trace.read(np.arange(54), np.zeros(54, np.uint8))

    reply(1)
    tracemalloc.start()
    try:
        reply(20)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("turns", [1, 12])
def test_a_turn_is_read_once_however_many_of_its_blocks_were_recalled(runtime: Runtime, turns: int) -> None:
    texts = story(4, 24)
    step = len(texts) // turns
    with runtime.session("a") as session:
        for at in range(0, len(texts), step):
            session.append("tool", "\n".join(texts[at : at + step]), name="read", prefill=False)
        count = session.tokens // 32
        assert count > 60
        statements: list[str] = []
        event.listen(runtime.store._database._engine, "before_cursor_execute", lambda c, cursor, sql, *rest: statements.append(sql))
        recall = make_recall(noted([list(range(count)), [count - 1]]), session.timeline)
        read = [sql for sql in statements if "FROM turns" in sql]
        assert len(recall.turns) == len(session.turns())
    assert 0 < len(read) <= len(recall.turns) + 1
