"""Rows of Segments that were read from the index, by the Blocks they hold.

Knows Block numbers; nothing of files, and nothing of whether a row is still true.
"""

from __future__ import annotations

from collections import OrderedDict

from agent_memory.store.segments import SegmentRow
from agent_memory.types import SEGMENT_BLOCKS

REMEMBERED = 4096
"""Runs of ``SEGMENT_BLOCKS`` Blocks whose rows are remembered."""


class SegmentRows:
    """Remembers rows; those of the runs that were looked up first are forgotten first. Safe to read while another thread writes."""

    def __init__(self) -> None:
        self._near: OrderedDict[int, tuple[SegmentRow, ...]] = OrderedDict()  # rows that hold a Block of the run of that number

    def get(self, block: int) -> SegmentRow | None:
        """The row that holds a Block, if it is remembered."""
        for row in self._near.get(block // SEGMENT_BLOCKS, ()):
            if row.first_block <= block < row.stop:
                return row
        return None

    def put(self, row: SegmentRow) -> None:
        """Remember a row."""
        for run in range(row.first_block // SEGMENT_BLOCKS, -(-row.stop // SEGMENT_BLOCKS)):
            self._near[run] = (*self._near.get(run, ()), row)
        while len(self._near) > REMEMBERED:
            self._near.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._near.clear()
