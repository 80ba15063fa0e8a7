"""From counted Blocks to recalled turns.

Knows a Trace and which turn holds which token; does not know how Blocks were chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from .attention.shares import SharedOut
from .attention.trace import Trace
from .memory.shelf import APPROXIMATE
from .types import BLOCK_TOKENS, Recall, RecalledTurn, TierName, Turn, foremost

if TYPE_CHECKING:
    from .store.timeline import Timeline

TIERS: tuple[TierName, ...] = ("device", "host", "disk", "host-int8", "host-int4")
"""The Tiers as a Trace counts them."""
SNIPPET = 240
"""Characters of a turn's text that a Recall repeats."""
MOST_TURNS = 32
"""Recalled turns that are listed."""


def make_recall(trace: Trace, timeline: Timeline) -> Recall:
    """The record of one reply, for people: which turns took part through memory, with what share of the attention, from which Tier."""
    read = trace.tiers
    holders = _holders(trace.blocks(), timeline)
    turns = {turn.index: turn for found in holders.values() for turn in found}
    chosen: Counter[int] = Counter()
    for block, found in holders.items():
        chosen.update({turn.index: trace.named(block) for turn in found})
    shared = None if trace.shares is None else trace.shares.result()
    scores = None if shared is None else _scores(shared, turns)
    ranked = sorted(turns, key=lambda index: (0.0 if scores is None else -scores[index], -chosen[index], index))
    slowest: dict[int, int] = {}
    for block, tier in read.items():
        for turn in holders[block]:
            slowest[turn.index] = max(slowest.get(turn.index, 0), tier)
    recalled = [
        RecalledTurn(
            turn=index,
            role=turns[index].role,
            name=turns[index].name,
            tokens_ago=timeline.token_count - turns[index].stop,
            score=None if scores is None else scores[index],
            tier=TIERS[slowest.get(index, 0)],
            text=turns[index].text[:SNIPPET],
            peak=None if shared is None else float(shared.peaks[turns[index].start : turns[index].stop].max(initial=0.0)),
        )
        for index in ranked
    ]
    hits = foremost(recalled, MOST_TURNS)
    tiers: Counter[str] = Counter(TIERS[tier] for tier in read.values())
    return Recall(
        turns=hits,
        exact=trace.exact and not any(tier in APPROXIMATE for tier in read.values()),
        certified=trace.certified,
        selections=trace.selections,
        blocks=len(read),
        keys_scored=trace.keys_scored,
        keys_rescored=trace.keys_rescored,
        tiers=dict(tiers),
        damaged=tuple(sorted(trace.damaged)),
        sink_share=None if shared is None else shared.sink,
        local_share=None if shared is None else shared.local,
        unread_share=None if shared is None else shared.unread,
        other_share=None if shared is None or scores is None else _unlisted(shared, scores, [hit.turn for hit in hits]),
    )


def _scores(shared: SharedOut, turns: dict[int, Turn]) -> dict[int, float]:
    """Attention share of each turn: of those of its tokens that were recalled."""
    before = np.concatenate([[0.0], np.cumsum(shared.recalled)])
    return {index: float(before[turn.stop] - before[turn.start]) for index, turn in turns.items()}


def _unlisted(shared: SharedOut, scores: dict[int, float], listed: list[int]) -> float:
    return max(0.0, float(shared.recalled.sum()) - sum(scores[index] for index in listed))


def _holders(blocks: Collection[int], timeline: Timeline) -> dict[int, list[Turn]]:
    """The turns that hold tokens of each Block; none where they are all of the reply that is being made. Each turn is read once."""
    holders: dict[int, list[Turn]] = {}
    known: list[Turn] = []
    for block in sorted(blocks):
        first, last = block * BLOCK_TOKENS, min(block * BLOCK_TOKENS + BLOCK_TOKENS, timeline.token_count)
        if first < last and (not known or known[-1].stop <= first):
            known.append(timeline.turn_at(first))
        while first < last and known[-1].stop < last:
            index = known[-1].index + 1
            known.extend(timeline.turns(index, index + 1))
        holders[block] = [turn for turn in known[-BLOCK_TOKENS:] if turn.start < last and turn.stop > first]
    return holders
