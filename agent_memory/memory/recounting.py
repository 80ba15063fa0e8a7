"""Attention mass that was cut short, counted again on a twin.

Knows that the mass of a token is complete only if all queries near it were counted; does not know how they are fed.
"""

from __future__ import annotations

from collections.abc import Iterator

from .representatives import LayerRepresentatives
from .session_kv import SessionKV


def counted(kv: SessionKV) -> bool:
    """Whether the mass of all tokens that are in no represented block yet is complete."""
    return all(kept is None or kept.complete for kept in (part.representatives for part in kv.layers))


def twin_to_count(kv: SessionKV) -> SessionKV:
    """A twin that ends where counting has to begin again, with the blocks that are made already."""
    start = min(kept.restart() for kept, _ in _pairs(kv, kv))
    twin = kv.fork(start, kv.source)
    for mine, theirs in _pairs(kv, twin):
        theirs.begin(mine, start)
    return twin


def take_counts(kv: SessionKV, twin: SessionKV) -> None:
    """Take up what a twin has counted."""
    for mine, theirs in _pairs(kv, twin):
        mine.take(theirs)


def _pairs(one: SessionKV, other: SessionKV) -> Iterator[tuple[LayerRepresentatives, LayerRepresentatives]]:
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        if mine.representatives is not None and theirs.representatives is not None:
            yield mine.representatives, theirs.representatives
