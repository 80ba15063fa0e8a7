"""A forward cut into pieces that are attended together: on the absolute grid of query groups, and where the dense part ends.

Knows token indices only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive groups of one forward that are attended together; tokens ``[start, stop)``."""

    start: int
    stop: int
    dense: bool


def cut(start: int, stop: int, attended: int | None, group: int, at: int | None = None) -> list[Piece]:
    """Cut tokens ``[start, stop)`` into a dense piece, whole groups, and broken groups at either end; and at the border ``at`` of
    two groups, if given."""
    if at is not None and start < at < stop:
        return [*cut(start, at, attended, group), *cut(at, stop, attended, group)]
    border = stop if attended is None else min(max(attended, start), stop)
    pieces = [Piece(start, border, True)] if border > start else []
    if border % group and border < stop:
        pieces.append(Piece(border, min(stop, border - border % group + group), False))
        border = pieces[-1].stop
    whole = stop - (stop - border) % group
    if whole > border:
        pieces.append(Piece(border, whole, False))
    if stop > max(whole, border):
        pieces.append(Piece(max(whole, border), stop, False))
    return pieces
