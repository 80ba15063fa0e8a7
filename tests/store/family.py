"""Three generations of one Session, and what each must hold."""

from __future__ import annotations

from agent_memory.store.store import Store
from agent_memory.store.timeline import Timeline
from tests.store.support import (
    KV,
    block_bytes,
    fill,
    open_session,
    segment,
)


def family(store: Store) -> tuple[Timeline, Timeline, Timeline]:
    """Three generations: 12 turns and 6 Blocks, of which the child keeps 9 and 4, of which the grandchild keeps 7 and 3."""
    parent = open_session(store)
    fill(parent, 12)
    parent.put_segment(0, segment(0, 3))
    parent.put_segment(3, segment(3, 3))
    parent.fork("child", 9)
    child = open_session(store, "child")
    assert (child.turn_count, child.token_count, child.kv_tokens, child.chain) == (9, 144, 128, "chain 8")
    child.fork("grandchild", 7)
    grandchild = open_session(store, "grandchild")
    assert (grandchild.turn_count, grandchild.kv_tokens) == (7, 96)
    return parent, child, grandchild


def assert_family(parent: Timeline | None, child: Timeline | None, grandchild: Timeline) -> None:
    for timeline, word, own, blocks in ((parent, "turn", 12, 6), (child, "child", 9, 4), (grandchild, "grandchild", 7, 3)):
        if timeline is not None:
            texts = [turn.text for turn in timeline.turns()]
            assert texts[:own] == [f"turn {i}" for i in range(own)]
            assert texts[own:] == [f"{word} {i}" for i in range(own, len(texts))]
            assert [timeline.read_block(KV, block) for block in range(blocks)] == [block_bytes(block) for block in range(blocks)]
            assert [turn.index for turn in timeline.turns()] == list(range(timeline.turn_count))
