"""From counted Blocks to recalled turns.

Knows a Trace and which turn holds which token; does not know how Blocks were chosen.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .attention.trace import Trace
from .memory.shelf import APPROXIMATE
from .types import BLOCK_TOKENS, Recall, RecalledTurn, TierName

if TYPE_CHECKING:
    from .store.timeline import Timeline

TIERS: tuple[TierName, ...] = ("device", "host", "disk", "host-int8", "host-int4")
"""The Tiers as a Trace counts them."""
SNIPPET = 240
"""Characters of a turn's text that a Recall repeats."""
MOST_TURNS = 32
"""Recalled turns that are listed, best first."""


def make_recall(trace: Trace, timeline: Timeline) -> Recall:
    """The record of one reply, for people: which turns took part through memory, how often, and from which Tier."""
    holders = {block: _turns_of(block, timeline) for block in trace.blocks()}
    votes: Counter[int] = Counter()
    for chosen in trace.choices():
        votes.update({turn for block in chosen for turn in holders[block]})
    slowest: dict[int, int] = {}
    for block, tier in trace.tiers.items():
        for turn in holders.get(block, ()):
            slowest[turn] = max(slowest.get(turn, 0), tier)
    ranked = sorted(votes, key=lambda turn: (-votes[turn], turn))[:MOST_TURNS]
    now = timeline.token_count
    hits = []
    for index in ranked:
        held = timeline.turns(index, index + 1)[0]
        hits.append(
            RecalledTurn(
                turn=held.index,
                role=held.role,
                name=held.name,
                tokens_ago=now - held.stop,
                score=votes[index] / max(1, trace.selections),
                tier=TIERS[slowest.get(index, 0)],
                text=held.text[:SNIPPET],
            )
        )
    tiers: Counter[str] = Counter(TIERS[tier] for tier in trace.tiers.values())
    return Recall(
        turns=tuple(hits),
        exact=trace.exact and not any(tier in APPROXIMATE for tier in trace.tiers.values()),
        certified=trace.certified,
        selections=trace.selections,
        blocks=len(trace.tiers),
        keys_scored=trace.keys_scored,
        keys_rescored=trace.keys_rescored,
        tiers=dict(tiers),
        damaged=tuple(sorted(trace.damaged)),
    )


def _turns_of(block: int, timeline: Timeline) -> tuple[int, ...]:
    """Indices of the turns that hold tokens of a Block."""
    first = timeline.turn_at(block * BLOCK_TOKENS)
    found, last = [first.index], block * BLOCK_TOKENS + BLOCK_TOKENS
    turn = first
    while turn.stop < min(last, timeline.token_count):
        turn = timeline.turns(turn.index + 1, turn.index + 2)[0]
        found.append(turn.index)
    return tuple(found)
